//! Another process, asked line by line: its answers are waited for within a time, and it ends with
//! the value that holds it.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_getcpuclockid};
use nix::unistd::Pid;
use serde_json::Value;

/// Lines that nobody has read yet; a process that says more waits.
const LINES_MAX: usize = 1024;

/// One process, ended with this value.
pub struct Process {
    child: Child,
    stdin: ChildStdin,
    lines: Receiver<String>,
    /// The CPU time of all its threads, those that have ended too.
    clock: Option<ClockId>,
    log: String,
}

impl Process {
    /// What it writes to standard error goes to the log.
    pub fn start(mut command: Command, log: &Path) -> Result<Self, String> {
        let file = File::create(log).map_err(|error| format!("{}: {error}", log.display()))?;
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(file);
        let shown = crate::shell::shown(&command);
        let mut child = command.spawn().map_err(|error| format!("`{shown}`: {error}"))?;
        let pipes = child.stdin.take().zip(child.stdout.take());
        let (stdin, stdout) = pipes.ok_or("no pipe to a child")?;
        let clock = clock_getcpuclockid(Pid::from_raw(child.id().cast_signed())).ok();
        let log = log.display().to_string();
        Ok(Self { child, stdin, lines: lines(stdout), clock, log })
    }

    /// Writes a line to its standard input.
    pub fn tell(&mut self, line: &str) -> Result<(), String> {
        writeln!(self.stdin, "{line}").map_err(|_| self.last_words())
    }

    /// The first line of which `wanted` makes something.
    pub fn wait_for<T>(
        &mut self,
        patience: Duration,
        wanted: impl Fn(&str) -> Option<T>,
    ) -> Result<T, String> {
        let until = Instant::now() + patience;
        loop {
            match self.lines.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(line) => {
                    if let Some(found) = wanted(&line) {
                        return Ok(found);
                    }
                }
                Err(RecvTimeoutError::Timeout) => {
                    return Err(format!("no answer within {} s", patience.as_secs()));
                }
                Err(RecvTimeoutError::Disconnected) => return Err(self.last_words()),
            }
        }
    }

    /// Why it has ended, as far as its log tells.
    fn last_words(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let last = text.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("no word");
        let log = Path::new(&self.log).file_name().unwrap_or_default().display();
        format!("it ended with: {last} (logs/{log})")
    }

    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    pub fn cpu_s(&self) -> f64 {
        let spent = self.clock.and_then(|clock| clock.now().ok());
        spent.map_or(0.0, |time| Duration::from(time).as_secs_f64())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail only where it is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The JSON object that a line is.
pub fn json(line: &str) -> Option<Value> {
    serde_json::from_str(line).ok().filter(Value::is_object)
}

/// Lines as they come, read on a thread of their own so that waiting for one has an end.
pub fn lines(from: impl Read + Send + 'static) -> Receiver<String> {
    let (send, lines) = sync_channel(LINES_MAX);
    std::thread::spawn(move || {
        let read = BufReader::new(from).lines().map_while(Result::ok);
        for line in read {
            if send.send(line).is_err() {
                break;
            }
        }
    });
    lines
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(30);

    #[test]
    fn a_process_is_asked_and_ended() {
        let script = r#"echo noise; echo "segment x y"; read line; echo "{\"got\": \"$line\"}""#;
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        let log = std::env::temp_dir().join(format!("xtask-{}-process", std::process::id()));
        let mut process = Process::start(command, &log).unwrap();
        let segment =
            process.wait_for(PATIENCE, |line| line.strip_prefix("segment ").map(str::to_owned));
        assert_eq!(segment.as_deref(), Ok("x y"));
        process.tell("cell").unwrap();
        assert_eq!(process.wait_for(PATIENCE, json).unwrap(), json!({"got": "cell"}));
        assert!(process.wait_for(PATIENCE, json).unwrap_err().contains("it ended"));
        drop(process);
        std::fs::remove_file(log).unwrap();
    }
}

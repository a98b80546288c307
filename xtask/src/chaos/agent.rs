//! An agent as a process: told by lines of JSON, stopped, let go, killed.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use super::lock;

/// Longer than any wait inside an agent, after the longest stops, stalls and time-outs: who takes
/// longer hangs.
const PATIENCE: Duration = Duration::from_secs(100);
/// Time for an engine to start, and for a process to end that has nothing more to do.
const START: Duration = Duration::from_secs(30);

pub struct Agent {
    name: String,
    child: Mutex<Child>,
    stdin: Mutex<Option<ChildStdin>>,
    waiting: Arc<Mutex<Waiting>>,
    next_id: AtomicU64,
    was_killed: AtomicBool,
    log: PathBuf,
    /// What it said when it was ready.
    pub ready: Value,
}

#[derive(Default)]
struct Waiting {
    answers: HashMap<u64, SyncSender<Value>>,
    is_over: bool,
}

/// Why there is no answer.
#[derive(Debug)]
pub enum Silence {
    /// The process was killed, which is no fault of its own.
    Killed,
    /// A promise was broken.
    Wrong(String),
}

pub type Answer = Result<Value, Silence>;

impl Agent {
    /// Starts it; what it says unasked is passed to `wrong`.
    pub fn start(
        name: &str,
        mut command: Command,
        log: PathBuf,
        wrong: impl Fn(String) + Send + 'static,
    ) -> Result<Self, String> {
        let file = File::create(&log).map_err(|error| format!("{}: {error}", log.display()))?;
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(file);
        let mut child = command.spawn().map_err(|error| format!("{name}: {error}"))?;
        let pipes = child.stdin.take().zip(child.stdout.take());
        let (stdin, stdout) = pipes.ok_or("no pipe to a child")?;
        let waiting = Arc::new(Mutex::new(Waiting::default()));
        let (give, take) = sync_channel(1);
        let wrong = {
            let name = name.to_owned();
            move |what: &str| wrong(format!("{name}: {what}"))
        };
        listen(stdout, waiting.clone(), give, wrong);
        let mut agent = Self {
            name: name.to_owned(),
            child: Mutex::new(child),
            stdin: Mutex::new(Some(stdin)),
            waiting,
            next_id: AtomicU64::new(1),
            was_killed: AtomicBool::new(false),
            log,
            ready: Value::Null,
        };
        let ready = take.recv_timeout(START);
        agent.ready = ready.map_err(|_| format!("{name} did not start: {}", agent.last_words()))?;
        Ok(agent)
    }

    /// Gives an order and waits for what came of it.
    pub fn ask(&self, order: Value) -> Answer {
        self.send(order).wait()
    }

    /// Gives an order.
    pub fn send(&self, mut order: Value) -> Pending<'_> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let (give, answer) = sync_channel(1);
        let shown = order.to_string();
        order["id"] = id.into();
        let mut waiting = lock(&self.waiting);
        if !waiting.is_over {
            waiting.answers.insert(id, give);
        }
        drop(waiting);
        // A process that is gone says so by its silence.
        let _ = lock(&self.stdin).as_mut().map(|stdin| writeln!(stdin, "{order}"));
        Pending { agent: self, answer, shown }
    }

    /// Whether it took the signal; one that has ended takes none.
    pub fn signal(&self, signal: Signal) -> bool {
        let mut child = lock(&self.child);
        matches!(child.try_wait(), Ok(None)) && kill(pid(&child), signal).is_ok()
    }

    pub fn kill(&self) {
        self.was_killed.store(true, Ordering::Relaxed);
        let mut child = lock(&self.child);
        let _ = child.kill();
        let _ = child.wait();
    }

    pub fn pid(&self) -> u32 {
        lock(&self.child).id()
    }

    /// The end of its input is the end of its work.
    pub fn end(&self) -> Result<(), String> {
        lock(&self.stdin).take();
        let mut child = lock(&self.child);
        match wait(&mut child, START) {
            Some(status) if status.success() => Ok(()),
            Some(status) => Err(format!("{} ended with {status}", self.name)),
            None => Err(format!("{} does not end", self.name)),
        }
    }

    /// Why it ended by itself, as far as its log tells.
    fn last_words(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let last = text.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("no word");
        format!("{last} ({})", self.log.display())
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let mut child = lock(&self.child);
        let _ = child.kill();
        let _ = child.wait();
    }
}

/// An answer that is to come.
pub struct Pending<'a> {
    agent: &'a Agent,
    answer: Receiver<Value>,
    shown: String,
}

impl Pending<'_> {
    pub fn wait(self) -> Answer {
        let name = &self.agent.name;
        let answer = match self.answer.recv_timeout(PATIENCE) {
            Ok(answer) => answer,
            Err(RecvTimeoutError::Timeout) => {
                let seconds = PATIENCE.as_secs();
                let hang = format!("{name} hangs: nothing for {seconds} s after {}", self.shown);
                return Err(Silence::Wrong(hang));
            }
            Err(RecvTimeoutError::Disconnected) => return Err(self.agent.gone()),
        };
        for fault in ["wrong", "failed"] {
            if let Some(what) = answer[fault].as_str() {
                return Err(Silence::Wrong(format!("{name}: {what}, after {}", self.shown)));
            }
        }
        Ok(answer["ok"].clone())
    }
}

impl Agent {
    fn gone(&self) -> Silence {
        match self.was_killed.load(Ordering::Relaxed) {
            true => Silence::Killed,
            false => {
                Silence::Wrong(format!("{} ended by itself: {}", self.name, self.last_words()))
            }
        }
    }
}

/// A thread that passes on what a process says.
fn listen(
    stdout: ChildStdout,
    waiting: Arc<Mutex<Waiting>>,
    ready: SyncSender<Value>,
    wrong: impl Fn(&str) + Send + 'static,
) {
    std::thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            let Ok(mut said) = serde_json::from_str::<Value>(&line) else {
                wrong(&format!("it said {line:?}"));
                continue;
            };
            if let Some(id) = said["id"].as_u64() {
                let answer = said["answer"].take();
                let asker = lock(&waiting).answers.remove(&id);
                // Nobody waits for the answer of a process that was given up.
                asker.map(|asker| asker.send(answer));
            } else if let Some(what) = said["wrong"].as_str() {
                wrong(what);
            } else {
                let _ = ready.try_send(said["ready"].take());
            }
        }
        let mut waiting = lock(&waiting);
        waiting.is_over = true;
        waiting.answers.clear();
    });
}

fn wait(child: &mut Child, at_most: Duration) -> Option<ExitStatus> {
    let start = Instant::now();
    while start.elapsed() < at_most {
        if let Ok(Some(status)) = child.try_wait() {
            return Some(status);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    None
}

fn pid(child: &Child) -> Pid {
    Pid::from_raw(child.id().cast_signed())
}

/// TCP ports at which a process listens: those of its sockets in `proc_net_tcp(5)`.
pub fn listening(pid: u32) -> Result<Vec<u16>, String> {
    let folder = Path::new("/proc").join(pid.to_string());
    let read = |what: &str| {
        std::fs::read_to_string(folder.join(what)).map_err(|error| format!("{what}: {error}"))
    };
    let entries = std::fs::read_dir(folder.join("fd")).map_err(|error| format!("fd: {error}"))?;
    let links = entries.filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok());
    let own: Vec<_> = links.map(|link| link.to_string_lossy().into_owned()).collect();
    let is_own = |inode: &str| own.contains(&format!("socket:[{inode}]"));
    let table = read("net/tcp")?;
    Ok(table
        .lines()
        .filter_map(listener)
        .filter(|(_, inode)| is_own(inode))
        .map(|(p, _)| p)
        .collect())
}

/// Port and inode of a line that shows a listening socket.
fn listener(line: &str) -> Option<(u16, &str)> {
    const LISTEN: &str = "0A";
    let words: Vec<_> = line.split_whitespace().collect();
    let port = words.get(1)?.rsplit(':').next()?;
    let port = u16::from_str_radix(port, 16).ok()?;
    (*words.get(3)? == LISTEN).then_some((port, *words.get(9)?))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn agent(script: &str) -> (Agent, Receiver<String>) {
        let (give, wrongs) = std::sync::mpsc::channel();
        let mut command = Command::new("bash");
        command.args(["-c", &format!("echo '{{\"ready\": 7}}'; {script}")]);
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let log = std::env::temp_dir().join(format!("chaos-agent-{}-{number}", std::process::id()));
        let wrong = move |what| drop(give.send(what));
        (Agent::start("a", command, log, wrong).unwrap(), wrongs)
    }

    #[test]
    fn answers_find_who_asked_and_faults_are_told() {
        let script = r#"read a; read b
            echo '{"id": 2, "answer": {"ok": "b"}}'; echo '{"id": 1, "answer": {"ok": "a"}}'
            read c; echo '{"wrong": "a byte"}'; echo '{"id": 3, "answer": {"failed": "no"}}'"#;
        let (agent, wrongs) = agent(script);
        assert_eq!(agent.ready, 7);
        let (one, two) = (agent.send(json!({})), agent.send(json!({})));
        assert_eq!(one.wait().unwrap(), "a");
        assert_eq!(two.wait().unwrap(), "b");
        let failed = agent.ask(json!({ "do": "x" })).unwrap_err();
        assert!(matches!(failed, Silence::Wrong(what) if what.contains("no, after")));
        assert_eq!(wrongs.recv().unwrap(), "a: a byte");
        agent.end().unwrap();
    }

    #[test]
    fn only_the_killed_may_be_silent() {
        let (killed, _wrongs) = agent("read a; read b");
        let pending = killed.send(json!({}));
        killed.kill();
        assert!(matches!(pending.wait(), Err(Silence::Killed)));
        assert!(matches!(killed.ask(json!({})), Err(Silence::Killed)));
        assert!(!killed.signal(Signal::SIGCONT));
        let (dead, _wrongs) = agent("read a; echo 'it hurts' >&2; exit 1");
        let silence = dead.ask(json!({})).unwrap_err();
        assert!(matches!(silence, Silence::Wrong(what) if what.contains("it hurts")));
        assert!(dead.end().is_err());
    }

    #[test]
    fn listening_sockets_are_found() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        assert!(listening(std::process::id()).unwrap().contains(&port));
        drop(listener);
        assert!(!listening(std::process::id()).unwrap().contains(&port));
    }
}

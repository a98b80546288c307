//! One side of a measurement: a process, what it has said, and its end.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// How soon a word or an end is noticed: often enough for measurements of seconds, and seldom
/// enough to leave the guest's CPUs alone.
const POLL: Duration = Duration::from_millis(100);
/// Of a failed side's last words, what fits into a remark.
const LAST_WORDS_MAX: usize = 200;

/// A process that ends with this value; all that it says is in a file.
pub struct Side {
    child: Child,
    log: PathBuf,
}

impl Side {
    pub fn start(mut command: Command, log: &Path) -> Result<Self, String> {
        let failed = |error: std::io::Error| format!("{}: {error}", log.display());
        let file = File::create(log).map_err(failed)?;
        command.stdin(Stdio::null()).stdout(file.try_clone().map_err(failed)?).stderr(file);
        let shown = crate::shell::shown(&command);
        let child = command.spawn().map_err(|error| format!("`{shown}`: {error}"))?;
        Ok(Self { child, log: log.to_owned() })
    }

    /// What `wanted` makes of all that was said, as soon as it makes something of it.
    pub fn wait_for<T>(
        &mut self,
        patience: Duration,
        wanted: impl Fn(&str) -> Option<T>,
    ) -> Result<T, String> {
        let until = Instant::now() + patience;
        loop {
            // Asked first: a process may say it and end at once.
            let ended = self.ended()?;
            match (wanted(&self.said()), ended) {
                (Some(found), _) => return Ok(found),
                (None, Some(status)) => return Err(self.failure(status)),
                (None, None) if Instant::now() > until => return Err(self.silence(patience)),
                (None, None) => std::thread::sleep(POLL),
            }
        }
    }

    /// All that it said, once it has ended well.
    pub fn finish(&mut self, patience: Duration) -> Result<String, String> {
        let until = Instant::now() + patience;
        loop {
            match self.ended()? {
                Some(status) if status.success() => return Ok(self.said()),
                Some(status) => return Err(self.failure(status)),
                None if Instant::now() > until => return Err(self.silence(patience)),
                None => std::thread::sleep(POLL),
            }
        }
    }

    fn ended(&mut self) -> Result<Option<ExitStatus>, String> {
        self.child.try_wait().map_err(|error| error.to_string())
    }

    fn said(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    fn failure(&self, status: ExitStatus) -> String {
        format!("{status}: {}", self.last_words())
    }

    fn silence(&self, patience: Duration) -> String {
        format!("still running after {} s: {}", patience.as_secs(), self.last_words())
    }

    fn last_words(&self) -> String {
        let said = self.said();
        let last = said.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("no word");
        last.trim().chars().take(LAST_WORDS_MAX).collect()
    }
}

impl Drop for Side {
    fn drop(&mut self) {
        // Both fail only where it is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(30);

    fn side(folder: &Path, script: &str) -> Side {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        Side::start(command, &folder.join("log")).unwrap()
    }

    #[test]
    fn words_ends_and_failures_are_told() {
        let folder = tempfile::tempdir().unwrap();
        let mut good = side(folder.path(), "echo ready >&2; echo done");
        good.wait_for(PATIENCE, |said| said.contains("ready").then_some(())).unwrap();
        assert_eq!(good.finish(PATIENCE).as_deref(), Ok("ready\ndone\n"));
        let mut bad = side(folder.path(), "echo no such device; exit 3");
        let error = bad.finish(PATIENCE).unwrap_err();
        assert_eq!(error, "exit status: 3: no such device");
        let never: Result<(), _> = bad.wait_for(PATIENCE, |_| None);
        assert_eq!(never.unwrap_err(), error);
        let mut slow = side(folder.path(), "echo begun; exec sleep 60");
        let error = slow.finish(Duration::from_millis(500)).unwrap_err();
        assert_eq!(error, "still running after 0 s: begun");
    }
}

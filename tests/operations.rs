//! What operators meet: the command as a service, told to end by a signal, its metrics and health.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

/// The command, running; killed with the test.
struct Kvrail {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
    errors: BufReader<ChildStderr>,
}

impl Kvrail {
    fn start(arguments: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kvrail"));
        command.arg("bench").args(arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("it starts");
        let input = child.stdin.take();
        let output = BufReader::new(child.stdout.take().unwrap());
        let errors = BufReader::new(child.stderr.take().unwrap());
        Self { child, input, output, errors }
    }

    /// A target, and its segment name.
    fn target(arguments: &[&str]) -> (Self, String) {
        let always = ["--mode", "target", "--buffer-size", "16M"];
        let mut target = Self::start(&[&always, arguments].concat());
        let segment = target.line();
        (target, segment.strip_prefix("segment ").expect("its name").to_owned())
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).expect("a line");
        line.trim_end().to_owned()
    }

    fn json(&mut self) -> serde_json::Value {
        let line = self.line();
        serde_json::from_str(&line).unwrap_or_else(|_| panic!("{line:?}; {}", self.errors()))
    }

    fn errors(&mut self) -> String {
        let mut text = String::new();
        self.errors.read_to_string(&mut text).expect("text");
        text
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    fn ends_well(&mut self) {
        drop(self.input.take());
        let status = self.child.wait().unwrap();
        assert!(status.success(), "{status}: {}", self.errors());
    }
}

impl Drop for Kvrail {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An initiator that measures what it is asked to.
fn initiator(segment: &str, arguments: &[&str]) -> Kvrail {
    let always = ["--mode", "initiator", "--segment-id", segment, "--buffer-size", "16M"];
    let mut initiator =
        Kvrail::start(&[&always[..], &["--threads", "2", "--cells"], arguments].concat());
    assert_eq!(initiator.json()["ready"], true);
    initiator
}

impl Kvrail {
    fn ask(&mut self, cell: &str) {
        writeln!(self.input.as_mut().unwrap(), "{cell}").expect("it listens");
    }
}

#[test]
fn a_target_that_is_told_to_end_fails_no_transfer_of_its_initiators() {
    let (mut target, segment) = Kvrail::target(&[]);
    let mut initiators = ["auto", "tcp"].map(|path| initiator(&segment, &["--path", path]));
    // Each has done something, and has more to do than the test has patience.
    for initiator in &mut initiators {
        initiator.ask("write 64K 16 0.01");
        assert!(initiator.json()["batches"].as_u64().unwrap() > 0);
        initiator.ask("read 1M 4 3600");
    }
    target.signal(Signal::TERM);
    target.ends_well();
    for initiator in &mut initiators {
        let report = initiator.json();
        assert_eq!(report["drained"], true, "{report}");
        initiator.ask("read 64K 1 0.01");
        assert_eq!(initiator.json()["batches"], 0, "nothing is sent to it any more");
        initiator.ends_well();
    }
}

//! What operators meet: the command as a service, told to end by a signal, its metrics and health.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::stopping;

/// Far more than anything here needs.
const PATIENCE: Duration = Duration::from_secs(30);

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
        command.arg("bench").args(arguments).env_remove("KVRAIL_LOG");
        Self::spawn(command)
    }

    /// One that writes all log lines that it can, as JSON.
    fn talkative(arguments: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kvrail"));
        command.args(["--log-format", "json", "bench"]).args(arguments);
        command.env("KVRAIL_LOG", "kvrail=debug");
        Self::spawn(command)
    }

    fn spawn(mut command: Command) -> Self {
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

    /// Where its metrics are, which it says when it serves them; its log may come before.
    fn metrics(&mut self) -> String {
        let mut said = String::new();
        while self.errors.read_line(&mut said).expect("a line") > 0 {
            let line = said.lines().last().unwrap_or_default();
            let address = line.strip_prefix("metrics at http://");
            if let Some(address) = address.and_then(|rest| rest.strip_suffix("/metrics")) {
                return address.to_owned();
            }
        }
        panic!("it ended and had said {said:?}")
    }

    fn errors(&mut self) -> String {
        let mut text = String::new();
        self.errors.read_to_string(&mut text).expect("text");
        text
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
    stopping::signal(&target.child, Signal::TERM);
    target.ends_well();
    for initiator in &mut initiators {
        let report = initiator.json();
        assert_eq!(report["drained"], true, "{report}");
        initiator.ask("read 64K 1 0.01");
        assert_eq!(initiator.json()["batches"], 0, "nothing is sent to it any more");
        initiator.ends_well();
    }
}

/// What an HTTP server answers: its status, and the body.
fn get(address: &str, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).expect("it listens");
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\n\r\n").expect("it reads");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("it answers and closes");
    let (head, body) = answer.split_once("\r\n\r\n").expect("head and body");
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

/// The value of a metric; 0 before it was recorded.
fn metric(address: &str, name: &str) -> u64 {
    let (status, text) = get(address, "/metrics");
    assert_eq!(status, 200);
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    value.map_or(0, |value| value.parse().expect("a whole number"))
}

/// Bytes and batches of both directions over one path, by the bench's reports and by the metrics.
/// The target sees what is asked of it: `served`.
fn adds_up(path: &str, served: &[&str]) {
    let any_port = ["--metrics", "127.0.0.1:0"];
    let (mut target, segment) = Kvrail::target(&any_port);
    let mut initiator = initiator(&segment, &[&any_port[..], &["--path", path]].concat());
    let (there, here) = (target.metrics(), initiator.metrics());
    let (mut batches, mut bytes) = (0, HashMap::new());
    for cell in ["write 64K 4 0.05", "read 100000 3 0.05", "write 1M 2 0.05"] {
        initiator.ask(cell);
        let report = initiator.json();
        let number = |name: &str| report[name].as_u64().unwrap_or_else(|| panic!("{report}"));
        batches += number("batches");
        let operation = report["operation"].as_str().unwrap().to_owned();
        *bytes.entry(operation).or_default() +=
            number("batches") * number("batch") * number("block_bytes");
        let own = |name: &str| metric(&here, &format!("{name}{{path=\"{path}\"}}"));
        assert_eq!(own("kvrail_carried_bytes_total"), bytes.values().sum::<u64>(), "{cell}");
        assert_eq!(own("kvrail_batch_seconds_count"), batches, "{cell}");
    }
    for operation in served {
        let name = format!("kvrail_served_bytes_total{{operation=\"{operation}\"}}");
        // A shard counts when it comes to rest.
        let since = Instant::now();
        while metric(&there, &name) != bytes[*operation] {
            assert!(since.elapsed() < PATIENCE, "{name}: {bytes:?}, {}", metric(&there, &name));
        }
    }
}

#[test]
fn metrics_over_tcp_add_up_to_what_the_bench_reports_on_both_sides() {
    adds_up("tcp", &["write", "read"]);
}

#[test]
fn metrics_on_one_host_add_up_to_what_the_bench_reports() {
    // Reads are copied by who reads: the target does not see them.
    adds_up("host", &["write"]);
}

#[test]
fn health_is_told_while_it_serves_and_while_it_drains() {
    let (mut target, segment) = Kvrail::target(&["--metrics", "127.0.0.1:0"]);
    let address = target.metrics();
    let health = || {
        let (status, body) = get(&address, "/healthz");
        (status, serde_json::from_str::<serde_json::Value>(&body).expect("JSON"))
    };
    let (status, body) = health();
    assert_eq!(
        (status, &body["status"], &body["engine"]),
        (200, &"serving".into(), &segment.into())
    );
    assert_eq!(get(&address, "/").0, 404);
    // A guest that can't answer holds the drain up.
    let mut guest = initiator(body["engine"].as_str().unwrap(), &["--path", "tcp"]);
    stopping::stop(&guest.child);
    stopping::signal(&target.child, Signal::TERM);
    let since = Instant::now();
    let (status, body) = loop {
        assert!(since.elapsed() < PATIENCE, "it does not drain");
        let found = health();
        if found.0 != 200 {
            break found;
        }
    };
    assert_eq!((status, &body["status"]), (503, &"draining".into()));
    stopping::signal(&guest.child, Signal::CONT);
    target.ends_well();
    guest.ends_well();
}

/// Whether this host has io_uring, by what the command says where it is asked for.
pub(super) fn has_uring() -> bool {
    let local = ["--mode", "initiator", "--path", "local", "--driver", "uring"];
    let mut trial = Kvrail::start(
        &[&local[..], &["--buffer-size", "16M", "--threads", "1", "--duration", "0.01"]].concat(),
    );
    let is_there = trial.child.wait().unwrap().success();
    let said = trial.errors();
    assert!(is_there || said.contains("io_uring can't be used"), "{said}");
    is_there
}

/// A target and an initiator that writes, reads and compares, both with these options; the target
/// is told to end.
pub(super) fn a_run(arguments: &[&str]) {
    let (mut target, segment) = Kvrail::target(arguments);
    let mut initiator =
        initiator(&segment, &[&["--verify", "--batch-size", "8"], arguments].concat());
    initiator.ask("read 64K 16 0.05");
    assert!(initiator.json()["batches"].as_u64().is_some_and(|batches| batches > 0));
    stopping::signal(&target.child, Signal::TERM);
    target.ends_well();
    initiator.ends_well();
}

#[test]
fn settings_come_from_a_file_and_options_go_before_it() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("kvrail.toml");
    let text = "local_hostname = 'localhost'\nsame_host = false\nidle = 'event'\nprotocol = 'tcp'";
    std::fs::write(&file, text).unwrap();
    let config = ["--config", file.to_str().unwrap()];
    let (_target, segment) = Kvrail::target(&config);
    assert!(segment.starts_with("localhost:"), "{segment}");
    let mut initiator = initiator(&segment, &config);
    initiator.ask("read 64K 4 0.01");
    let report = initiator.json();
    assert_eq!((&report["path"], &report["idle"]), (&"tcp".into(), &"Event".into()));
    let named = ["--local-server-name", "127.0.0.1", "--idle", "hybrid"];
    let (_target, segment) = Kvrail::target(&[&config[..], &named].concat());
    assert!(segment.starts_with("127.0.0.1:"), "{segment}");
    std::fs::write(&file, "protocl = 'tcp'").unwrap();
    let mut wrong = Kvrail::start(&[&["--mode", "target"], &config[..]].concat());
    assert!(!wrong.child.wait().unwrap().success());
    let said = wrong.errors();
    assert!(said.contains("kvrail.toml") && said.contains("did you mean \"protocol\""), "{said}");
}

/// The requests that log lines with this message are about.
fn requests(log: &str, message: &str) -> Vec<String> {
    let lines = log.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let told = lines.filter(|line| line["fields"]["message"] == message);
    told.map(|line| line["fields"]["request"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn both_logs_call_a_request_by_the_same_name() {
    let target = ["--mode", "target", "--buffer-size", "16M"];
    let mut target = Kvrail::talkative(&target);
    let segment = target.line().strip_prefix("segment ").unwrap().to_owned();
    let initiator = ["--mode", "initiator", "--buffer-size", "16M", "--cells"];
    let mut initiator = Kvrail::talkative(&[&initiator[..], &["--segment-id", &segment]].concat());
    assert_eq!(initiator.json()["ready"], true);
    stopping::signal(&target.child, Signal::TERM);
    target.ends_well();
    initiator.ends_well();
    let (there, here) = (target.errors(), initiator.errors());
    let arrived = requests(&here, "we arrive");
    assert_eq!(arrived.len(), 1, "{here}");
    assert_eq!(requests(&there, "a guest arrives"), arrived);
    let left = requests(&there, "it is asked to leave");
    assert_eq!(left.len(), 1, "{there}");
    assert_eq!(requests(&here, "a host asks us to leave"), left);
    assert_ne!(arrived, left);
}

//! The other side: Mooncake's processes (Python engine, bench, metadata server) under control.
//!
//! Every process ends with the value that owns it, whatever the test does; what it logged is
//! kept in a file, whose end is shown when the test fails.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::setup::Setup;

/// Longer than Mooncake's own 30 s transfer timeout, so that its verdict comes first.
const ANSWER_S: u64 = 45;
/// A Python process imports the wheel in about 1 s; a busy machine may need ten times that.
const START_S: u64 = 20;

/// 0.3.13's timer of a connection that it does not reuse fires too soon now and then, against its
/// own target too (in 1 of 104 runs of a second): these words before their time are not about us.
const GAVE_UP: &str = "no transfer progress within 30s";
const GIVES_UP_S: u64 = 25;
const BENCH_TRIES: u32 = 3;

/// Bytes `skip..skip + length` of pattern `seed`, as agent.py makes them.
pub fn pattern(seed: u8, skip: usize, length: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(length + 16);
    for k in skip as u64 / 8..(skip + length).div_ceil(8) as u64 {
        bytes.extend_from_slice(&((u64::from(seed) << 56) + k * 0x9E37_79B1).to_le_bytes());
    }
    bytes.truncate(skip % 8 + length);
    bytes.split_off(skip % 8)
}

/// A child process and its log; ends with this value.
pub struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `command` with its stderr, and its stdout unless the caller pipes it, in a log.
    fn start(mut command: Command, name: &str, stdout_piped: bool) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("interop");
        std::fs::create_dir_all(&folder).unwrap();
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let log = folder.join(format!("{name}-{}-{number}.log", std::process::id()));
        let file = File::create(&log).unwrap();
        command.stderr(file.try_clone().unwrap());
        command.stdout(if stdout_piped { Stdio::piped() } else { file.into() });
        let child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        Self { child, log }
    }

    fn logged(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// Waits until the process exits; true if it said success.
    fn finish(&mut self, limit: Duration) -> bool {
        let end = Instant::now() + limit;
        loop {
            match self.child.try_wait().unwrap() {
                Some(status) => return status.success(),
                None if Instant::now() > end => panic!("still running: {}", self.log.display()),
                None => thread::sleep(Duration::from_millis(20)),
            }
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            let text = self.logged();
            let lines: Vec<_> = text.lines().collect();
            let tail = &lines[lines.len().saturating_sub(25)..];
            eprintln!("--- end of {}\n{}", self.log.display(), tail.join("\n"));
        } else {
            let _ = std::fs::remove_file(&self.log);
        }
    }
}

/// Mooncake's Python engine, driven by JSON lines.
pub struct Agent {
    process: Process,
    requests: Option<ChildStdin>,
    answers: Receiver<String>,
    pub name: String,
}

impl Agent {
    /// Starts an engine that is known as `host` in `metadata` ("P2PHANDSHAKE" or a URL).
    pub fn start(setup: Setup, host: &str, metadata: &str) -> Self {
        let mut command = setup.command("python");
        command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/interop/agent.py"));
        command.stdin(Stdio::piped());
        let mut process = Process::start(command, "agent", true);
        let requests = process.child.stdin.take();
        let stdout = BufReader::new(process.child.stdout.take().unwrap());
        let (sender, answers) = channel();
        thread::spawn(move || {
            stdout.lines().map_while(Result::ok).all(|line| sender.send(line).is_ok())
        });
        let mut agent = Self { process, requests, answers, name: String::new() };
        let answer = agent.ask(json!({"do": "init", "host": host, "metadata": metadata}));
        agent.name = answer["name"].as_str().unwrap().to_owned();
        agent
    }

    /// An engine in peer-to-peer mode on loopback.
    pub fn p2p(setup: Setup) -> Self {
        Self::start(setup, "127.0.0.1", "P2PHANDSHAKE")
    }

    /// Sends one request of agent.py's and waits for its answer; an error fails the test.
    pub fn ask(&mut self, request: Value) -> Value {
        let requests = self.requests.as_mut().expect("the agent was stopped");
        writeln!(requests, "{request}").unwrap_or_else(|error| panic!("{request}: {error}"));
        let line = match self.answers.recv_timeout(Duration::from_secs(ANSWER_S)) {
            Ok(line) => line,
            Err(error) => panic!("no answer to {request}: {error}"),
        };
        let mut answer: Value = serde_json::from_str(&line).unwrap();
        match answer.get("error") {
            Some(error) => panic!("{request} answered {error}"),
            None => answer["ok"].take(),
        }
    }

    /// Maps and registers memory, full of pattern `seed`; answers its address.
    pub fn register(&mut self, length: usize, seed: u8) -> u64 {
        self.ask(json!({"do": "register", "length": length, "seed": seed}))["addr"]
            .as_u64()
            .unwrap()
    }

    /// `write` or `read` of `length` bytes; answers Mooncake's code, where 0 is success.
    pub fn transfer(&mut self, op: &str, peer: &str, remote: u64, offset: u64, length: u64) -> i64 {
        let request = json!({
            "do": op, "peer": peer, "remote": remote, "offset": offset, "length": length
        });
        self.ask(request).as_i64().unwrap()
    }

    /// `batch_write` or `batch_read` of (offset, remote, length) triples.
    pub fn batch(&mut self, op: &str, peer: &str, requests: &[(u64, u64, u64)]) -> i64 {
        self.ask(json!({"do": op, "peer": peer, "requests": requests})).as_i64().unwrap()
    }

    /// Fills its own region 0 at `offset` with the pattern.
    pub fn fill(&mut self, seed: u8, offset: usize, length: usize) {
        self.ask(json!({"do": "fill", "seed": seed, "offset": offset, "length": length}));
    }

    /// Asserts that its region 0 holds pattern `seed` from byte `skip` on, at `offset`.
    pub fn expect(&mut self, seed: u8, skip: usize, offset: usize, length: usize) {
        let differs = self.compare(seed, skip, offset, length);
        assert_eq!(differs, None, "their memory differs from pattern {seed}");
    }

    /// Where its region 0 first differs from pattern `seed`, if it does.
    pub fn compare(&mut self, seed: u8, skip: usize, offset: usize, length: usize) -> Option<u64> {
        let request = json!({
            "do": "compare", "seed": seed, "skip": skip, "offset": offset, "length": length
        });
        self.ask(request).as_u64()
    }

    /// Asks `peer` for a sign of life; 0 is yes.
    pub fn probe(&mut self, peer: &str) -> i64 {
        self.ask(json!({"do": "probe", "peer": peer})).as_i64().unwrap()
    }

    /// The notifications it has, waited for until there are `count`: (name, message).
    pub fn notifies(&mut self, count: usize) -> Vec<(String, String)> {
        let mut all = Vec::new();
        eventually("notifications", || {
            let got = self.ask(json!({"do": "get_notifies"}));
            all.extend(serde_json::from_value::<Vec<(String, String)>>(got).unwrap());
            all.len() >= count
        });
        all
    }

    /// Ends the engine in an orderly way: it withdraws its metadata.
    pub fn stop(mut self) {
        self.ask(json!({"do": "close"}));
        self.requests = None;
        assert!(self.process.finish(Duration::from_secs(START_S)), "the agent failed at its end");
    }
}

/// `transfer_engine_bench` as initiator for one second on `segment`.
pub struct Bench {
    pub threads: usize,
    pub batch: usize,
    pub block: usize,
}

impl Bench {
    /// The bytes it touches, from the start of the target's first buffer.
    pub fn span(&self) -> usize {
        self.threads * self.batch * self.block
    }

    /// Runs it; panics unless it completed with at least one batch.
    pub fn run(&self, setup: Setup, metadata: &str, segment: &str, operation: &str) {
        let (mut tries, mut ended) = (1, self.once(setup, metadata, segment, operation));
        while ended.as_ref().is_err_and(|log| log.contains(GAVE_UP)) && tries < BENCH_TRIES {
            (tries, ended) = (tries + 1, self.once(setup, metadata, segment, operation));
        }
        if let Err(log) = ended {
            panic!("the bench failed to {operation}:\n{log}");
        }
    }

    /// One run; what it logged if it failed or moved nothing.
    fn once(&self, setup: Setup, to: &str, segment: &str, operation: &str) -> Result<(), String> {
        let mut command = bench(setup, "initiator", to, "127.0.0.1");
        command.arg(format!("--segment_id={segment}")).arg(format!("--operation={operation}"));
        command.arg(format!("--threads={}", self.threads)).arg("--duration=1");
        command.arg(format!("--batch_size={}", self.batch));
        command.arg(format!("--block_size={}", self.block));
        command.arg(format!("--buffer_size={}", self.span()));
        let start = Instant::now();
        let mut process = Process::start(command, "bench", false);
        let success = process.finish(Duration::from_secs(ANSWER_S));
        let text = process.logged();
        let result = text.split("batch count ").nth(1).and_then(|rest| rest.split(',').next());
        let batches: u64 = result.map_or(0, |count| count.parse().unwrap());
        let stalled = start.elapsed() > Duration::from_secs(GIVES_UP_S);
        assert!(!stalled, "the bench waited for us to {operation}:\n{text}");
        if success && batches > 0 { Ok(()) } else { Err(text) }
    }
}

/// `transfer_engine_bench` as a peer-to-peer target; answers its segment name too.
pub fn bench_target(setup: Setup) -> (Process, String) {
    let command = bench(setup, "target", "P2PHANDSHAKE", "127.0.0.1");
    let process = Process::start(command, "bench-target", false);
    let mut name = None;
    eventually("the bench target's port", || {
        let text = process.logged();
        let ready = text.contains("listen on port");
        name = text.split("listening on ").nth(1).map(|s| s.lines().next().unwrap().to_owned());
        ready && name.is_some()
    });
    (process, name.unwrap())
}

fn bench(setup: Setup, mode: &str, metadata: &str, name: &str) -> Command {
    let mut command = setup.bench();
    command.args(["--protocol=tcp", "--device_name=", "--logtostderr"]);
    command.arg(format!("--mode={mode}")).arg(format!("--metadata_server={metadata}"));
    command.arg(format!("--local_server_name={name}"));
    command
}

/// Mooncake's own HTTP metadata server.
pub struct MetadataServer {
    _process: Process,
    pub url: String,
}

impl MetadataServer {
    /// Starts the server of this wheel on a free port.
    pub fn start(setup: Setup) -> Self {
        let mut command = setup.command("mooncake_http_metadata_server");
        let port = free_port();
        command.args(["--host", "127.0.0.1", "--port"]).arg(port.to_string());
        let process = Process::start(command, "metadata-server", false);
        let open = || TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok();
        eventually("the metadata server", open);
        Self { _process: process, url: format!("http://127.0.0.1:{port}/metadata") }
    }
}

/// A port that was free a moment ago.
fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port()
}

/// Waits until `done` says so; a protocol-v1 write, for one, lands after it was reported.
pub fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(START_S);
    while !done() {
        assert!(Instant::now() < end, "{what}: not within {START_S} s");
        thread::sleep(Duration::from_millis(20));
    }
}

//! An engine where something is missing: two processes of this host exchange bytes, messages and
//! counter steps there, `kvrail doctor` says what is missing, and what can't work names a remedy.
//!
//! `cargo xtask test --only environments` makes the surroundings and runs each test in its own; a
//! test checks first that it is where it believes to be.

use std::fs;
use std::io::{BufRead, BufReader, ErrorKind as Io};
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use kvrail::runtime::{Driver, Runtime};
use kvrail::{
    Access, Batch, Candidate, Engine, Error, ErrorKind, Eternal, Location, Means, PathKind, Peer,
    Region, Verdict,
};
use serde_json::Value;

const LEN: usize = 8 << 20;
/// Of the memory that the first process registers, rather than allocates.
const FOREIGN_LEN: usize = 1 << 20;
/// The counter that both processes step.
const COUNTER: u64 = 7;
/// Tells the other process under which host to start, and by which path to be reached.
const HOST: &str = "KVRAIL_ENVIRONMENT_HOST";
const SAME_HOST: &str = "KVRAIL_ENVIRONMENT_SAME_HOST";

/// How two processes are to reach each other.
#[derive(Clone, Copy)]
struct Way<'a> {
    host: &'a str,
    same_host: bool,
    peers_may_trace: bool,
}

#[test]
#[ignore = "cargo xtask test --only environments"]
fn nothing_missing() {
    assert_eq!(exchange("127.0.0.1"), Driver::Uring);
    let way = Way { host: "127.0.0.1", same_host: true, peers_may_trace: false };
    assert_eq!(transfers(way).1.verdict, Verdict::Chosen);
    assert_eq!(verdict("io_uring"), "ok");
    assert_eq!(verdict("loopback"), "ok");
}

#[test]
#[ignore = "cargo xtask test --only environments"]
fn io_uring_forbidden() {
    without_io_uring();
}

#[test]
#[ignore = "cargo xtask test --only environments"]
fn io_uring_unknown() {
    without_io_uring();
}

fn without_io_uring() {
    assert_eq!(status("Seccomp"), "2", "a filter is active");
    uring_is_refused("io_uring");
    assert_eq!(exchange("127.0.0.1"), Driver::Epoll);
    assert_eq!(verdict("io_uring"), "warn");
}

#[test]
#[ignore = "cargo xtask test --only environments"]
fn unprivileged() {
    is_nobody();
    exchange("127.0.0.1");
    verdict("io_uring");
}

#[test]
#[ignore = "cargo xtask test --only environments"]
fn little_locked_memory() {
    is_nobody();
    let limits = fs::read_to_string("/proc/self/limits").unwrap();
    let locked = limits.lines().find(|line| line.starts_with("Max locked memory")).unwrap();
    assert!(locked.contains(" 65536 "), "{locked}");
    uring_is_refused("ulimit -l");
    assert_eq!(exchange("127.0.0.1"), Driver::Epoll);
    assert_eq!(verdict("memlock"), "warn");
}

#[test]
#[ignore = "cargo xtask test --only environments"]
fn one_cpu() {
    on_one_cpu();
}

#[test]
#[ignore = "cargo xtask test --only environments"]
fn cpuset_of_one_cpu() {
    assert_eq!(status("Cpus_allowed_list"), "1", "the cpuset's");
    on_one_cpu();
}

fn on_one_cpu() {
    let allowed = status("Cpus_allowed_list");
    assert!(allowed.parse::<u32>().is_ok(), "one CPU: {allowed}");
    exchange("127.0.0.1");
    assert_eq!(verdict("cpus"), "warn");
}

#[test]
#[ignore = "cargo xtask test --only environments"]
fn ptrace_scope_1() {
    // A parent may trace its children unasked; here the child is to read the parent.
    let refused = foreign_memory_at_scope("1", false);
    assert_eq!(refused.verdict, Verdict::Unusable);
    assert!(refused.why.contains("peers_may_trace"), "{}", refused.why);
    assert_eq!(foreign_memory_at_scope("1", true).verdict, Verdict::Chosen);
    exchange("127.0.0.1");
}

#[test]
#[ignore = "cargo xtask test --only environments"]
fn ptrace_scope_2() {
    let refused = foreign_memory_at_scope("2", true);
    assert_eq!(refused.verdict, Verdict::Unusable);
    assert!(refused.why.contains("Engine::allocate"), "{}", refused.why);
    exchange("127.0.0.1");
}

/// By what memory that was registered travels to a process that may not trace us unasked.
fn foreign_memory_at_scope(scope: &str, peers_may_trace: bool) -> Candidate {
    is_nobody();
    let found = fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope").unwrap();
    assert_eq!(found.trim(), scope);
    assert_eq!(verdict("foreign_memory"), "warn");
    transfers(Way { host: "127.0.0.1", same_host: true, peers_may_trace }).1
}

#[test]
#[ignore = "cargo xtask test --only environments"]
fn full_dev_shm() {
    let error = fs::write("/dev/shm/one-more", [1; 4096]).unwrap_err();
    assert_eq!(error.kind(), Io::StorageFull);
    exchange("127.0.0.1");
    assert_eq!(verdict("memfd"), "ok");
}

#[test]
#[ignore = "cargo xtask test --only environments"]
fn read_only_root() {
    nothing_can_be_written(Io::ReadOnlyFilesystem);
}

#[test]
#[ignore = "cargo xtask test --only environments"]
fn read_only_root_unprivileged() {
    is_nobody();
    nothing_can_be_written(Io::ReadOnlyFilesystem);
}

fn nothing_can_be_written(why: Io) {
    let home = std::env::var_os("HOME").map_or_else(|| "/".into(), PathBuf::from);
    for folder in ["/".into(), home, std::env::temp_dir(), "/dev/shm".into(), "/run".into()] {
        let error = fs::write(folder.join("kvrail-was-here"), "x").unwrap_err();
        // Nobody is not even let into root's home.
        let hidden = error.kind() == Io::PermissionDenied && folder.ends_with("root");
        assert!(error.kind() == why || hidden, "{}: {error}", folder.display());
    }
    exchange("127.0.0.1");
    assert_eq!(verdict("memfd"), "ok");
}

#[test]
#[ignore = "cargo xtask test --only environments"]
fn ipv6_only() {
    let error = TcpListener::bind("127.0.0.1:0").unwrap_err();
    assert_eq!(error.kind(), Io::AddrNotAvailable);
    exchange("::1");
    exchange("localhost");
    assert_eq!(verdict("loopback"), "warn");
    let engine = Engine::builder().host("::1").start().unwrap();
    let error = futures_lite::future::block_on(engine.open("127.0.0.1:12001")).unwrap_err();
    assert!(error.to_string().contains("IPv6"), "{error}");
    // Whoever keeps the default host is told what to say instead.
    let error = Engine::builder().start().map(|engine| engine.name().to_owned()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused);
    assert!(
        error.to_string().contains("127.0.0.1") && error.to_string().contains("host"),
        "{error}"
    );
}

/// What the other process does; started by [`transfers`], which names the way.
#[test]
#[ignore = "started by the others"]
fn the_other_process() {
    let host = std::env::var(HOST).expect("another test starts this one");
    let same_host = std::env::var(SAME_HOST).unwrap() == "true";
    let way = Way { host: &host, same_host, peers_may_trace: false };
    let engine = way.engine();
    let counter = engine.counter(COUNTER).unwrap();
    let region = region(&engine, LEN + FOREIGN_LEN);
    fill(&region, &pattern(1, LEN));
    println!("\nsegment {}", engine.name());
    run(async {
        let sender = engine.notification().await;
        counter.reached(1).await;
        let expected = [pattern(2, LEN), pattern(4, FOREIGN_LEN)].concat();
        assert!(contents(&region) == expected, "not what the first process wrote");
        let peer = engine.open(std::str::from_utf8(&sender.bytes).unwrap()).await.unwrap();
        way.is_taken_to(&peer);
        fill(&region, &pattern(3, LEN));
        write(&engine, &[(&region, LEN)], &peer, "back").await.unwrap();
        // Stays until the first process has looked and says so.
        counter.reached(2).await;
    });
}

/// Bytes, messages and counter steps between two processes, by shared memory and over TCP;
/// answers on what this engine's shards wait.
fn exchange(host: &str) -> Driver {
    let both =
        [true, false].map(|same_host| transfers(Way { host, same_host, peers_may_trace: false }).0);
    assert_eq!(both[0], both[1]);
    both[0]
}

/// Reads and writes 8 MiB between two processes, both ways, with messages and counter steps; what
/// becomes of foreign memory's own path to the other process is answered too.
fn transfers(way: Way) -> (Driver, Candidate) {
    let mut other = Other::start(way);
    let engine = way.engine();
    let counter = engine.counter(COUNTER).unwrap();
    let region = region(&engine, LEN);
    let foreign = engine.register(Eternal::new(FOREIGN_LEN).foreign(), Access::LOCAL).unwrap();
    fill(&foreign, &pattern(4, FOREIGN_LEN));
    let mut candidates = Vec::new();
    run(async {
        let peer = engine.open(&other.segment).await.unwrap();
        way.is_taken_to(&peer);
        candidates = engine.explain(&peer, &foreign).await.write;
        let mut batch = Batch::new(&peer);
        batch.read(region.lease(0..LEN).unwrap(), peer.buffers()[0].addr);
        drop(engine.transfer(batch).await.unwrap());
        assert!(contents(&region) == pattern(1, LEN), "not what the other process had");
        fill(&region, &pattern(2, LEN));
        let sources = [(&region, LEN), (&foreign, FOREIGN_LEN)];
        write(&engine, &sources, &peer, engine.name()).await.unwrap();
        let message = engine.notification().await;
        assert_eq!((&message.bytes[..], &*message.from), (&b"back"[..], &*other.segment));
        counter.reached(1).await;
        assert!(contents(&region) == pattern(3, LEN), "not what the other process wrote");
        let mut last = Batch::new(&peer);
        last.count(COUNTER, 1);
        // The process may be gone before it has answered.
        let _ = engine.transfer(last).await;
    });
    assert!(other.child.wait().unwrap().success(), "the other process");
    let of_foreign = candidates.into_iter().find(|one| one.means == Means::ProcessVm);
    (engine.runtime().driver(), of_foreign.unwrap())
}

/// Writes regions one behind the other into the peer's first range.
async fn write(
    engine: &Engine,
    from: &[(&Region, usize)],
    peer: &Peer,
    says: &str,
) -> Result<(), Error> {
    let mut batch = Batch::new(peer);
    let mut to = peer.buffers()[0].addr;
    for (region, len) in from {
        batch.write(&region.share(0..*len)?, to);
        to += *len as u64;
    }
    batch.notify(says).count(COUNTER, 1);
    engine.transfer(batch).await.map_err(|failed| failed.error().clone())?;
    Ok(())
}

impl Way<'_> {
    fn engine(&self) -> Engine {
        let builder = Engine::builder().host(self.host).same_host(self.same_host);
        builder.peers_may_trace(self.peers_may_trace).start().unwrap()
    }

    fn is_taken_to(&self, peer: &Peer) {
        let expected = if self.same_host { PathKind::Host } else { PathKind::Tcp };
        assert_eq!(peer.path(), expected);
    }
}

/// Another process of this test binary, ended with the test.
struct Other {
    child: Child,
    segment: String,
    /// Open, or its last words would be the end of it.
    _output: BufReader<ChildStdout>,
}

impl Other {
    fn start(way: Way) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .args(["--ignored", "--exact", "the_other_process", "--nocapture"])
            .env(HOST, way.host);
        command.env(SAME_HOST, way.same_host.to_string());
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        let segment = loop {
            line.clear();
            assert!(output.read_line(&mut line).unwrap() > 0, "it ended before it had a name");
            if let Some(name) = line.trim().strip_prefix("segment ") {
                break name.to_owned();
            }
        };
        Self { child, segment, _output: output }
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The doctor's verdict on one check. An engine has run here, so none is `fail`, whatever is
/// missing has a remedy, and scripts see success.
fn verdict(name: &str) -> String {
    let kvrail = std::env::var_os("KVRAIL_COMMAND");
    let kvrail = kvrail.unwrap_or_else(|| env!("CARGO_BIN_EXE_kvrail").into());
    let output = Command::new(kvrail).args(["doctor", "--json"]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}");
    let report: Value = serde_json::from_str(&said).unwrap();
    let checks = report["checks"].as_array().unwrap();
    for check in checks {
        let fine =
            check["verdict"] == "ok" || check["verdict"] == "warn" && check["remedy"].is_string();
        assert!(fine, "{check}");
    }
    let check = checks.iter().find(|check| check["name"] == name);
    let check = check.unwrap_or_else(|| panic!("{name} is not in {said}"));
    check["verdict"].as_str().unwrap().to_owned()
}

/// Shards that insist on io_uring are told why not, in words that hold a remedy.
fn uring_is_refused(words: &str) {
    let error = Runtime::builder().driver(Driver::Uring).build().map(|_| ()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused);
    assert!(error.to_string().contains(words), "{error}");
}

fn is_nobody() {
    assert!(status("Uid").starts_with("65534\t"));
    assert_eq!(status("CapEff"), "0000000000000000");
}

/// A line of this process's status.
fn status(name: &str) -> String {
    let text = fs::read_to_string("/proc/self/status").unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(":\t"));
    line.unwrap_or_else(|| panic!("{name} is in {text}")).to_owned()
}

fn region(engine: &Engine, len: usize) -> Region {
    engine.allocate(len, Location::Cpu(None), Access::READ_WRITE).unwrap()
}

fn fill(region: &Region, bytes: &[u8]) {
    region.lease(0..bytes.len()).unwrap().copy_in(0, bytes).unwrap();
}

fn contents(region: &Region) -> Vec<u8> {
    let mut bytes = vec![0; region.len()];
    region.share(0..region.len()).unwrap().copy_out(0, &mut bytes).unwrap();
    bytes
}

/// Bytes that differ from place to place and from seed to seed.
fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let words = (1..=len as u64 / 8).map(|at| (at * 8 + seed).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    words.flat_map(u64::to_le_bytes).collect()
}

/// Runs a test to its end, and fails it rather than hang.
fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let limit = Duration::from_secs(60);
    runtime.block_on(async { tokio::time::timeout(limit, test).await.expect("the test hangs") });
}

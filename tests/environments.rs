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
use kvrail::{Access, Batch, Engine, Error, ErrorKind, Location, Peer, Region};
use serde_json::Value;

const LEN: usize = 8 << 20;
/// The counter that both processes step.
const COUNTER: u64 = 7;
/// Tells the other process under which host to start.
const HOST: &str = "KVRAIL_ENVIRONMENT_HOST";

#[test]
#[ignore = "cargo xtask test --only environments"]
fn nothing_missing() {
    assert_eq!(exchange("127.0.0.1"), Driver::Uring);
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
    with_ptrace_scope("1");
}

#[test]
#[ignore = "cargo xtask test --only environments"]
fn ptrace_scope_2() {
    with_ptrace_scope("2");
}

fn with_ptrace_scope(scope: &str) {
    is_nobody();
    let found = fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope").unwrap();
    assert_eq!(found.trim(), scope);
    exchange("127.0.0.1");
    assert_eq!(verdict("foreign_memory"), "warn");
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

/// What the other process does; started by [`exchange`], which names the host.
#[test]
#[ignore = "started by the others"]
fn the_other_process() {
    let host = std::env::var(HOST).expect("another test starts this one");
    let engine = Engine::builder().host(host).start().unwrap();
    let counter = engine.counter(COUNTER).unwrap();
    let region = region(&engine, Access::READ_WRITE);
    fill(&region, &pattern(1));
    println!("\nsegment {}", engine.name());
    run(async {
        let sender = engine.notification().await;
        counter.reached(1).await;
        assert_eq!(contents(&region), pattern(2), "what the first process wrote");
        let peer = engine.open(std::str::from_utf8(&sender.bytes).unwrap()).await.unwrap();
        fill(&region, &pattern(3));
        write(&engine, &region, &peer, "back").await.unwrap();
        // Stays until the first process has looked and says so.
        counter.reached(2).await;
    });
}

/// Reads and writes 8 MiB between two processes, both ways, with messages and counter steps;
/// answers on what this engine's shards wait.
fn exchange(host: &str) -> Driver {
    let mut other = Other::start(host);
    let engine = Engine::builder().host(host).start().unwrap();
    let counter = engine.counter(COUNTER).unwrap();
    let region = region(&engine, Access::READ_WRITE);
    run(async {
        let peer = engine.open(&other.segment).await.unwrap();
        let mut batch = Batch::new(&peer);
        batch.read(region.lease(0..LEN).unwrap(), peer.buffers()[0].addr);
        drop(engine.transfer(batch).await.unwrap());
        assert_eq!(contents(&region), pattern(1), "what the other process had");
        fill(&region, &pattern(2));
        write(&engine, &region, &peer, engine.name()).await.unwrap();
        let message = engine.notification().await;
        assert_eq!((&message.bytes[..], &*message.from), (&b"back"[..], &*other.segment));
        counter.reached(1).await;
        assert_eq!(contents(&region), pattern(3), "what the other process wrote");
        let mut last = Batch::new(&peer);
        last.count(COUNTER, 1);
        engine.transfer(last).await.unwrap();
    });
    assert!(other.child.wait().unwrap().success(), "the other process");
    engine.runtime().driver()
}

async fn write(engine: &Engine, from: &Region, peer: &Peer, says: &str) -> Result<(), Error> {
    let mut batch = Batch::new(peer);
    batch.write(&from.share(0..LEN)?, peer.buffers()[0].addr).notify(says).count(COUNTER, 1);
    engine.transfer(batch).await.map_err(|failed| failed.error().clone())?;
    Ok(())
}

/// Another process of this test binary, ended with the test.
struct Other {
    child: Child,
    segment: String,
    /// Open, or its last words would be the end of it.
    _output: BufReader<ChildStdout>,
}

impl Other {
    fn start(host: &str) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--ignored", "--exact", "the_other_process", "--nocapture"]).env(HOST, host);
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

fn region(engine: &Engine, access: Access) -> Region {
    engine.allocate(LEN, Location::Cpu(None), access).unwrap()
}

fn fill(region: &Region, bytes: &[u8]) {
    region.lease(0..LEN).unwrap().copy_in(0, bytes).unwrap();
}

fn contents(region: &Region) -> Vec<u8> {
    let mut bytes = vec![0; LEN];
    region.share(0..LEN).unwrap().copy_out(0, &mut bytes).unwrap();
    bytes
}

/// Bytes that differ from place to place and from seed to seed.
fn pattern(seed: u64) -> Vec<u8> {
    let words = (1..=LEN as u64 / 8).map(|at| (at * 8 + seed).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    words.flat_map(u64::to_le_bytes).collect()
}

/// Runs a test to its end, and fails it rather than hang.
fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let limit = Duration::from_secs(60);
    runtime.block_on(async { tokio::time::timeout(limit, test).await.expect("the test hangs") });
}

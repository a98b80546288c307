//! On what the shards wait: chosen by what the kernel gives, said once with the remedy, and enough
//! for transfers in poor environments: little locked memory, no privileges, one CPU.

use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use futures_lite::future::block_on;
use kvrail::runtime::{Driver, Idle, Runtime, Shards};
use kvrail::{Access, Batch, Engine, ErrorKind, Location};
use kvrail_reactors::affinity;

const KVRAIL: &str = env!("CARGO_BIN_EXE_kvrail");

/// The least that runs an engine and ends.
const SHORT: [&str; 9] = [
    "bench",
    "--mode=initiator",
    "--threads=1",
    "--batch-size=4",
    "--block-size=4K",
    "--duration=1",
    "--buffer-size=1M",
    "--verify",
    "--json",
];

/// Both drivers, or what the kernel leaves of them.
fn drivers() -> Vec<Driver> {
    match affinity::probe_uring() {
        Ok(()) => vec![Driver::Epoll, Driver::Uring],
        Err(error) => {
            eprintln!("not on io_uring, which the kernel refuses: {error}");
            vec![Driver::Epoll]
        }
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The lines of a log that name the driver.
fn announced(output: &Output) -> Vec<String> {
    let log = text(&output.stderr);
    assert!(output.status.success(), "{log}");
    log.lines().filter(|line| line.contains("driver")).map(str::to_owned).collect()
}

#[test]
fn the_choice_is_what_the_kernel_gives_and_is_said_once() {
    let mut bench = Command::new(KVRAIL);
    bench.args(SHORT).args(["--path=local"]).env("KVRAIL_LOG", "kvrail=info");
    let lines = announced(&bench.output().unwrap());
    assert_eq!(lines.len(), 1, "{lines:?}");
    match affinity::probe_uring() {
        Ok(()) => assert!(lines[0].contains("uring"), "{lines:?}"),
        Err(_) => assert!(
            lines[0].contains("WARN")
                && lines[0].contains("epoll")
                && lines[0].contains("allow io_uring_setup"),
            "{lines:?}"
        ),
    }
    let engine = Engine::builder().start().unwrap();
    let given = affinity::probe_uring().map_or(Driver::Epoll, |()| Driver::Uring);
    assert_eq!(engine.driver(), given);
}

#[test]
fn io_uring_where_there_is_none_is_an_error_with_the_remedy() {
    let Err(refused) = affinity::probe_uring() else {
        return eprintln!("the kernel has io_uring: `cargo xtask without-uring` takes it away");
    };
    let error = Engine::builder().driver(Driver::Uring).start().err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Refused);
    assert!(error.to_string().contains("allow io_uring_setup"), "{error}, {refused}");
    assert!(Runtime::builder().driver(Driver::Uring).build().is_err());
}

/// A copy of the program where anybody may run it.
fn program() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let everybody = || std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(folder.path(), everybody()).unwrap();
    let program = folder.path().join("kvrail");
    std::fs::copy(KVRAIL, &program).unwrap();
    std::fs::set_permissions(&program, everybody()).unwrap();
    (folder, program)
}

/// `program` as a user without privileges, who may lock 64 KiB: Docker's default for both.
fn poor(program: &Path, arguments: &[&str]) -> Command {
    const NOBODY: u32 = 65_534;
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -l 64 && exec \"$0\" \"$@\""]).arg(program).args(arguments);
    if std::fs::metadata("/proc/self").is_ok_and(|me| std::os::unix::fs::MetadataExt::uid(&me) == 0)
    {
        command.uid(NOBODY).gid(NOBODY);
    }
    command.current_dir("/").stderr(Stdio::piped());
    command
}

/// Ends with the test.
struct Target(Child);

impl Drop for Target {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn little_locked_memory_and_no_privileges_are_enough() {
    let (_folder, program) = program();
    let serve = ["bench", "--mode=target", "--buffer-size=1M"];
    let mut target = Target(poor(&program, &serve).stdout(Stdio::piped()).spawn().unwrap());
    let mut line = String::new();
    BufReader::new(target.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let Some(segment) = line.trim().strip_prefix("segment ") else {
        let _ = target.0.kill();
        let mut said = String::new();
        target.0.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        panic!("{said}");
    };
    let segment = format!("--segment-id={segment}");
    for path in ["host", "tcp"] {
        let asked = format!("--path={path}");
        let asked = [&SHORT[..], &[&segment, &asked]].concat();
        let output = poor(&program, &asked).output().unwrap();
        let lines = announced(&output);
        assert!(lines.len() == 1 && lines[0].contains("epoll"), "{lines:?}");
        assert!(lines[0].contains("may lock 65536 bytes"), "{lines:?}");
        assert!(lines[0].contains("ulimit -l"), "{lines:?}");
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!((&report["verified"], &report["path"]), (&true.into(), &path.into()));
    }

    let uring = [&SHORT[..], &["--path=local", "--driver=uring"]].concat();
    let output = poor(&program, &uring).output().unwrap();
    let said = text(&output.stderr);
    assert!(!output.status.success() && said.contains("may lock 65536 bytes"), "{said}");
}

/// Descriptors run out at every place of a start in turn. Where io_uring's share is not to be had,
/// in the executor or in the reactor, epoll goes on with what is left, or the error is clear.
#[test]
fn out_of_descriptors_is_epoll_or_an_error_and_never_a_panic() {
    let mut said = String::new();
    // Several shards need more descriptors for rings of their own than a start takes in passing.
    for (shards, descriptors) in (5..40).map(|n| (1, n)).chain((20..64).map(|n| (4, n))) {
        let limited = format!("ulimit -n {descriptors} && exec \"$0\" \"$@\"");
        let mut command = Command::new("sh");
        command.args(["-c", &limited, KVRAIL]).args(SHORT);
        // Nobody is there, so that it always ends at once.
        command.arg(format!("--shards={shards}")).arg("--segment-id=127.0.0.1:1");
        let output = command.env("KVRAIL_LOG", "kvrail=info").output().unwrap();
        let log = text(&output.stderr);
        // tokio's signals panic without a descriptor; only these tests' features bring them.
        assert!(!log.contains("panicked") || log.contains("signal/unix.rs"), "{log}");
        assert!(log.contains("kvrail: "), "with {descriptors}: {log}");
        said += &log;
    }
    let refused = affinity::probe_uring().is_err();
    assert!(refused || said.contains("the io_uring executor can't start"), "{said}");
    assert!(refused || said.contains("io_uring is not used after all"), "{said}");
    assert!(said.contains("epoll"), "{said}");
}

#[test]
fn one_cpu_is_enough() {
    let one = affinity::allowed().unwrap()[0];
    for driver in drivers() {
        // The thread's children inherit its CPU.
        let transfer = move || {
            affinity::restrict(&[one]).unwrap();
            let engine = || Engine::builder().driver(driver).shards(Shards::Count(2));
            let (ours, theirs) = (engine().start().unwrap(), engine().start().unwrap());
            assert_eq!(ours.driver(), driver);
            let allocate = |engine: &Engine, access| {
                engine.allocate(8 << 20, Location::Cpu(None), access).unwrap()
            };
            let source = allocate(&ours, Access::LOCAL);
            let target = allocate(&theirs, Access::READ_WRITE);
            source.lease(0..5).unwrap().copy_in(0, b"bytes").unwrap();
            let peer = block_on(ours.open(theirs.name())).unwrap();
            let mut batch = Batch::new(&peer);
            batch.write(&source.share(0..source.len()).unwrap(), target.addr());
            block_on(ours.transfer(batch)).unwrap();
            let mut got = [0; 5];
            target.share(0..5).unwrap().copy_out(0, &mut got).unwrap();
            assert_eq!(&got, b"bytes");
        };
        std::thread::spawn(transfer).join().unwrap();
    }
}

/// How often the shards of this process have gone to sleep.
fn sleeps() -> u64 {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    let status = tasks.filter_map(|task| {
        let status = std::fs::read_to_string(task.ok()?.path().join("status")).ok()?;
        status.starts_with("Name:\tkvrail-").then_some(status)
    });
    let count = |status: String| {
        let line = status.lines().find(|line| line.starts_with("voluntary_ctxt_switches"))?;
        line.split_whitespace().last()?.parse::<u64>().ok()
    };
    status.map(|status| count(status).expect("a count")).sum()
}

/// A parked shard has nothing that wakes it: no tick, no poll, whatever connections are open.
#[test]
fn an_idle_engine_sleeps() {
    for driver in drivers() {
        let engine = || Engine::builder().driver(driver).idle(Idle::Event).start().unwrap();
        let (ours, theirs) = (engine(), engine());
        let peer = block_on(ours.open(theirs.name())).unwrap();
        block_on(ours.notify(&peer, "over a connection that stays open")).unwrap();
        block_on(theirs.notification());
        let slept = (0..200).any(|_| {
            let before = sleeps();
            std::thread::sleep(Duration::from_millis(200));
            sleeps() == before
        });
        assert!(slept, "{driver}: something wakes the shards again and again");
    }
}

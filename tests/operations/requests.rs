//! A transfer that fails at its target is found in both processes' logs by one name: the target,
//! in a process of its own, refuses what its policy does not permit, and what a grant that was
//! taken back permits no more.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::Duration;

use kvrail::{
    Access, Authentication, Batch, Engine, EngineBuilder, Error, ErrorKind, GrantOptions, Location,
    Peers, Policy, Protocol, Reference, Region, Rule,
};
use serde_json::Value;

/// Tells the binary that it is the target: the folder of the keys, and the path.
const MARK: &str = "KVRAIL_TEST_LOGGING_TARGET";

/// The answer stands behind this, as libtest writes to the same output.
const ANSWER: &str = "=> ";

/// Far more than anything here needs.
const PATIENCE: Duration = Duration::from_secs(60);

const LEN: usize = 4096;

/// A counter that the target has opened.
const COUNTER: u64 = 7;

/// What this process has logged.
static LOG: Mutex<Vec<u8>> = Mutex::new(Vec::new());

struct ToLog;

impl Write for ToLog {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        LOG.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Logs as the command does where it is asked for everything.
fn log_to<W: Write + 'static>(writer: fn() -> W) {
    let log = tracing_subscriber::fmt().json().with_env_filter("kvrail=debug");
    log.with_writer(writer).init();
}

/// An engine that holds the first of these keys, whose name is its file's.
fn builder(folder: &Path, name: &str, path: &str) -> EngineBuilder {
    let keys = Authentication::Keys(folder.join(name));
    Engine::builder().authentication(keys).same_host(path == "host").protocol(Protocol::Tcp)
}

fn region(engine: &Engine, label: &str) -> Region {
    let region = engine.allocate(LEN, Location::Cpu(None), Access::READ_WRITE).unwrap();
    region.set_label(label).unwrap();
    region
}

/// Not a test: what the other process does.
#[test]
#[ignore = "the other process of the test here"]
fn a_target_that_logs() {
    let Ok(orders) = std::env::var(MARK) else { return };
    let (path, folder) = orders.split_once(' ').unwrap();
    log_to(std::io::stderr);
    let rule = Rule::new(Peers::Named("prefill".into()), Access::WRITE).of(["cache"]);
    let policy = Policy::Rules(vec![rule]);
    let engine = builder(Path::new(folder), "decode", path).policy(policy).start().unwrap();
    let (cache, private) = (region(&engine, "cache"), region(&engine, "private"));
    let _counter = engine.counter(COUNTER).unwrap();
    let grant = engine.grant(&cache, 0..LEN, Access::WRITE, GrantOptions::default()).unwrap();
    let reference: String = grant.reference().to_bytes().map(|byte| format!("{byte:02x}")).concat();
    run(async {
        grant.revoke().await;
    });
    let (cache, private) = (cache.addr(), private.addr());
    println!("\n{ANSWER}{} {cache} {private} {reference}", engine.name());
    std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
    run(engine.stop());
}

fn run<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(PATIENCE, work).await }).expect("it hangs")
}

/// The target, killed with the test.
struct Target {
    child: Child,
    /// Libtest writes to it yet.
    _output: BufReader<ChildStdout>,
    name: String,
    cache: u64,
    private: u64,
    reference: Reference,
}

impl Target {
    fn start(folder: &Path, path: &str) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["requests::a_target_that_logs", "--exact", "--ignored", "--nocapture"]);
        command.env(MARK, format!("{path} {}", folder.display()));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("a process");
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let lines = output.by_ref().lines().map_while(Result::ok);
        let mut answers = lines.filter_map(|line| Some(line.split_once(ANSWER)?.1.to_owned()));
        let answer = answers.next().expect("it starts");
        let [name, cache, private, reference] = *answer.split(' ').collect::<Vec<_>>() else {
            panic!("{answer}")
        };
        let byte = |at: usize| u8::from_str_radix(&reference[2 * at..2 * at + 2], 16).unwrap();
        let bytes: [u8; kvrail::REFERENCE_BYTES] = std::array::from_fn(byte);
        Self {
            name: name.to_owned(),
            cache: cache.parse().unwrap(),
            private: private.parse().unwrap(),
            reference: Reference::from_bytes(&bytes),
            child,
            _output: output,
        }
    }

    /// What it had logged when it ended.
    fn end(mut self) -> Log {
        drop(self.child.stdin.take());
        let mut text = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut text).unwrap();
        assert!(self.child.wait().unwrap().success(), "{text}");
        Log::new(&text)
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Log lines, by their fields.
#[derive(Debug)]
struct Log(Vec<Value>);

impl Log {
    fn new(text: &str) -> Self {
        let fields = |line: &str| Some(serde_json::from_str::<Value>(line).ok()?["fields"].clone());
        Self(text.lines().filter_map(fields).collect())
    }

    /// What this process has logged since the last time.
    fn own() -> Self {
        let text = std::mem::take(&mut *LOG.lock().unwrap_or_else(PoisonError::into_inner));
        Self::new(&String::from_utf8(text).unwrap())
    }

    /// The lines with this message, of which there is at least one.
    fn of(&self, message: &str) -> Vec<&Value> {
        let lines: Vec<_> = self.0.iter().filter(|line| line["message"] == message).collect();
        assert!(!lines.is_empty(), "{message}: {self:?}");
        lines
    }

    /// The requests that the lines with this message are about.
    fn requests(&self, message: &str) -> BTreeSet<String> {
        let request = |line: &Value| line["request"].as_str().expect("a name").to_owned();
        self.of(message).into_iter().map(request).collect()
    }
}

fn status(result: Result<kvrail::Outcome, kvrail::Failed>) -> Result<(), Error> {
    result.map(drop).map_err(Error::from)
}

/// Keys of both, a file for each, whose first line is its holder's.
fn keys() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let [decode, prefill] = [("decode", "d0"), ("prefill", "f0")]
        .map(|(name, byte)| format!("{name} = {}\n", byte.repeat(32)));
    std::fs::write(folder.path().join("decode"), format!("{decode}{prefill}")).unwrap();
    std::fs::write(folder.path().join("prefill"), format!("{prefill}{decode}")).unwrap();
    folder
}

#[test]
fn a_request_has_one_name_in_both_logs() {
    static LOGGING: LazyLock<()> = LazyLock::new(|| log_to(|| ToLog));
    LazyLock::force(&LOGGING);
    let folder = keys();
    for path in ["tcp", "host"] {
        let target = Target::start(folder.path(), path);
        let engine = builder(folder.path(), "prefill", path).start().unwrap();
        let memory = engine.allocate(LEN, Location::Cpu(None), Access::LOCAL).unwrap();
        let peer = run(engine.open(&target.name)).unwrap();
        assert_eq!(peer.path().label(), path);
        // To an address, or under the grant.
        let write = |addr: Option<u64>| {
            let (mut batch, lease) = (Batch::new(&peer), memory.share(0..LEN).unwrap());
            match addr {
                Some(addr) => batch.write(&lease, addr),
                None => batch.write_to(&lease, &target.reference, 0),
            };
            batch.count(COUNTER, 1);
            status(run(async { engine.transfer(batch).await }))
        };
        write(Some(target.cache)).expect("its rule permits that");
        let here = Log::own();
        let refused = write(Some(target.private)).expect_err("no rule permits that");
        assert_eq!(refused.kind(), ErrorKind::Refused, "{refused}");
        let here_refused = Log::own();
        let stale = write(None).expect_err("the grant was taken back");
        assert_eq!(stale.kind(), ErrorKind::Stale, "{stale}");
        let here_stale = Log::own();
        drop(peer);
        run(engine.stop());
        let there = target.end();

        let taken = here.requests("the peer has taken the event");
        assert_eq!(there.requests("a peer's event"), taken, "{path}");
        let failed = here_refused.requests("a request has failed");
        assert_eq!(there.requests("refused a peer's request"), failed, "{path}: {there:?}");
        assert!(failed.is_disjoint(&taken) && failed.len() == 1, "{failed:?}");
        for line in there.of("refused a peer's request") {
            assert_eq!(line["peer"], "prefill", "the name that it has proven");
        }
        // From the batch to the request, in the log of the process that posted it.
        let posted = here_refused.of("posted");
        let [failed, ended] = ["a request has failed", "ended"].map(|what| here_refused.of(what));
        for line in failed.iter().chain(&ended) {
            assert_eq!(line["transfer"], posted[0]["transfer"], "{path}");
        }
        assert_eq!(ended[0]["error"], refused.to_string(), "{path}");
        if path == "tcp" {
            let failed = here_stale.requests("a request has failed");
            assert_eq!(there.requests("refused a peer's request under a grant"), failed);
        } else {
            // The peer's ledger says so, and it isn't asked.
            assert!(here_stale.of("ended")[0]["error"].is_string());
        }
    }
}

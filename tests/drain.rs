//! An engine that goes while its peers are at work: guests in processes of their own read and
//! write without pause, over the same host and over TCP, until they are told to go elsewhere. What
//! they had posted ends well, and what they post later is refused before anything is sent.

mod stopping;

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use kvrail::{Access, Batch, Engine, ErrorKind, GrantOptions, Landed, Location, Peer, Region};
use rustix::process::Signal;

/// Tells the binary that it is a guest, and what it is to do: the host's name, an address there,
/// and the path.
const MARK: &str = "KVRAIL_TEST_GUEST";

/// Answers stand behind this, as libtest writes to the same output.
const ANSWER: &str = "=> ";

/// Who posts at a time, in each guest.
const CALLERS: usize = 4;

/// Bytes of a batch: many slices, so that a drain comes in the middle of some.
const LEN: usize = 4 << 20;

/// Far more than a drain needs.
const PATIENCE: Duration = Duration::from_secs(60);

/// Killed on drop.
struct Guest {
    child: Child,
    answers: Receiver<String>,
}

impl Guest {
    /// A guest that is at work.
    fn start(host: &Engine, region: &Region, path: &str) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["a_guest", "--exact", "--ignored", "--nocapture"]);
        command.env(MARK, format!("{} {} {path}", host.name(), region.addr()));
        let mut child = command.stdout(Stdio::piped()).spawn().expect("a process");
        let output = child.stdout.take().unwrap();
        let (send, answers) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if let Some((_, answer)) = line.split_once(ANSWER) {
                    // Nobody may listen any more.
                    let _ = send.send(answer.to_owned());
                }
            }
        });
        let guest = Self { child, answers };
        assert_eq!(guest.hear(), "at work");
        guest
    }

    fn hear(&self) -> String {
        self.answers.recv_timeout(PATIENCE).expect("the guest answers")
    }

    /// Every caller of it was refused, before anything was sent, and not sooner.
    fn was_refused(&self) {
        for _ in 0..CALLERS {
            assert_eq!(self.hear(), "Draining No");
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Not a test: what the other processes do.
#[test]
#[ignore = "the other process of the tests here"]
fn a_guest() {
    let Ok(orders) = std::env::var(MARK) else { return };
    let [host, addr, path] = *orders.split(' ').collect::<Vec<_>>() else { panic!("{orders}") };
    let engine = Engine::builder().same_host(path == "Host").start().unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let peer = engine.open(host).await.unwrap();
        assert_eq!(format!("{:?}", peer.path()), path);
        let (addr, begun) = (addr.parse::<u64>().unwrap(), Arc::new(AtomicUsize::new(0)));
        let post = |k| work(engine.clone(), peer.clone(), addr + (k * LEN) as u64, begun.clone());
        let callers: Vec<_> = (0..CALLERS).map(|k| tokio::spawn(post(k))).collect();
        for caller in callers {
            println!("\n{ANSWER}{}", caller.await.unwrap());
        }
    });
    // Its process goes when it is killed, as a service's would that has other peers.
    std::thread::park();
}

/// Posts until it is refused; how.
async fn work(engine: Engine, peer: Peer, addr: u64, begun: Arc<AtomicUsize>) -> String {
    let memory = engine.allocate(LEN, Location::Cpu(None), Access::LOCAL).unwrap();
    for count in 0.. {
        let mut batch = Batch::new(&peer);
        match count % 2 {
            0 => batch.write(&memory.share(0..LEN).unwrap(), addr),
            _ => batch.read(memory.lease(0..LEN).unwrap(), addr),
        };
        if let Err(failed) = engine.transfer(batch).await {
            return format!("{:?} {:?}", failed.error().kind(), failed.error().landed());
        }
        if count == 1 && begun.fetch_add(1, Ordering::Relaxed) == CALLERS - 1 {
            println!("\n{ANSWER}at work");
        }
    }
    unreachable!("it works until it is refused")
}

/// An engine with memory for guests.
fn host() -> (Engine, Region) {
    let engine = Engine::builder().start().expect("an engine");
    let region = engine.allocate(CALLERS * LEN, Location::Cpu(None), Access::READ_WRITE);
    (engine, region.expect("a region"))
}

/// Runs a test to its end, and fails it rather than hang.
fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("tokio");
    let limit = 2 * PATIENCE;
    runtime.block_on(async { tokio::time::timeout(limit, test).await.expect("the test hangs") });
}

#[test]
fn under_load_no_transfer_fails() {
    run(async {
        let (host, region) = host();
        let guests = ["Host", "Tcp", "Tcp"].map(|path| Guest::start(&host, &region, path));
        let drained = host.drain(PATIENCE).await;
        assert!(drained.is_complete(), "{drained:?}");
        guests.iter().for_each(Guest::was_refused);
    });
}

#[test]
fn while_it_drains_nothing_begins_and_one_who_cannot_leave_holds_it_up() {
    run(async {
        let (host, region) = host();
        let guest = Guest::start(&host, &region, "Tcp");
        // Opened before, and idle: it is told, too.
        let other = Engine::builder().start().unwrap();
        let idle = other.open(host.name()).await.unwrap();
        stopping::stop(&guest.child);
        let draining = tokio::spawn({
            let host = host.clone();
            async move { host.drain(PATIENCE).await }
        });
        while !host.is_draining() {
            tokio::task::yield_now().await;
        }
        let granted = host.grant(&region, 0..LEN, Access::READ, GrantOptions::default());
        assert_eq!(granted.unwrap_err().kind(), ErrorKind::Draining);
        assert_eq!(host.open(other.name()).await.unwrap_err().kind(), ErrorKind::Draining);
        let newcomer = Engine::builder().start().unwrap();
        let refused = newcomer.open(host.name()).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Draining);
        assert_eq!(refused.peer(), Some(host.name()));
        let memory = other.allocate(4096, Location::Cpu(None), Access::LOCAL).unwrap();
        // It is told soon, and served until then.
        loop {
            let mut batch = Batch::new(&idle);
            batch.write(&memory.share(0..4096).unwrap(), region.addr());
            if let Err(failed) = other.transfer(batch).await {
                let error = failed.error();
                assert_eq!((error.kind(), error.landed()), (ErrorKind::Draining, Landed::No));
                break;
            }
        }
        let mut batch = Batch::new(&host.local());
        batch.write(&region.share(0..64).unwrap(), region.addr() + 4096);
        let failed = host.transfer(batch).await.unwrap_err();
        assert_eq!(failed.error().kind(), ErrorKind::Draining);
        assert!(!draining.is_finished(), "the stopped guest has not left");
        stopping::signal(&guest.child, Signal::CONT);
        let drained = draining.await.unwrap();
        assert!(drained.is_complete(), "{drained:?}");
        guest.was_refused();
    });
}

#[test]
fn who_does_not_leave_in_time_is_named_and_who_is_dead_is_not_waited_for() {
    run(async {
        let (host, region) = host();
        let [stopped, mut killed] = ["Tcp", "Host"].map(|path| Guest::start(&host, &region, path));
        stopping::stop(&stopped.child);
        killed.child.kill().unwrap();
        killed.child.wait().unwrap();
        let drained = host.drain(Duration::from_secs(2)).await;
        assert!(!drained.is_complete());
        assert_eq!(drained.stayed().len(), 1, "{drained:?}");
    });
}

//! A peer in a process of its own, that can be killed and stopped: this test binary started again,
//! doing what it is told by lines on its standard input, each answered by one line.

use std::io::{BufRead, BufReader, Write};
use std::process::{ChildStdin, Command, Stdio};
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use kvrail::{Access, Engine, Location, Region, RemoteBuffer};
use kvrail_reactors::cuda::Driver;
use kvrail_reactors::cuda::outside::EternalVram;
use rustix::process::Signal;

use super::leaks::Held;
use super::{contents, driver, engine_on, fill, pages, pattern, read, stopping, write};

/// Tells the binary that it is a peer.
const MARK: &str = "KVRAIL_TEST_PEER";

/// Before what the peer says, since libtest writes to the same output.
const ANSWER: &str = "=> ";

/// Of every region between two processes: many pages of a size that engines have.
pub(crate) const LEN: usize = 2 << 20;
pub(crate) const PAGES: usize = 512;

/// What memory of a GPU's goes to other processes by.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Means {
    /// A descriptor: the engine has allocated it.
    Descriptor,
    /// An IPC handle: somebody else has.
    Handle,
}

pub(crate) const BOTH: [Means; 2] = [Means::Descriptor, Means::Handle];

/// Memory on GPU 0 that can be given to an engine more than once.
#[derive(Debug)]
pub(crate) enum Memory {
    Own,
    Foreign(EternalVram),
}

impl Memory {
    pub(crate) fn new(driver: &Arc<dyn Driver>, means: Means) -> Self {
        match means {
            Means::Descriptor => Self::Own,
            Means::Handle => {
                Self::Foreign(EternalVram::new(driver.clone(), 0, LEN, true).expect("memory"))
            }
        }
    }

    /// Foreign memory is the same each time, own is new.
    pub(crate) fn region(&self, engine: &Engine) -> Region {
        let region = match self {
            Self::Own => engine.allocate(LEN, Location::Cuda(0), Access::READ_WRITE),
            Self::Foreign(memory) => engine.register_vram(memory.foreign(), Access::READ_WRITE),
        };
        region.expect("a region")
    }
}

/// Such a peer; killed on drop.
pub(crate) struct Child {
    child: std::process::Child,
    orders: Option<ChildStdin>,
    answers: Receiver<String>,
    pub(crate) name: String,
}

impl Child {
    pub(crate) fn start() -> Self {
        let mut command = Command::new(std::env::current_exe().expect("this binary"));
        command.args(["child::a_peer", "--exact", "--ignored", "--nocapture"]).env(MARK, "1");
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("a process");
        let (orders, output) = (child.stdin.take(), child.stdout.take().expect("an output"));
        let (send, answers) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if let Some((_, answer)) = line.split_once(ANSWER) {
                    // Nobody may listen any more.
                    let _ = send.send(answer.to_owned());
                }
            }
        });
        let mut child = Self { child, orders, answers, name: String::new() };
        child.name = child.ask("name");
        child
    }

    pub(crate) fn ask(&mut self, order: &str) -> String {
        writeln!(self.orders.as_mut().expect("it lives"), "{order}").expect("the peer listens");
        self.answers.recv_timeout(Duration::from_secs(30)).expect("the peer answers")
    }

    /// Has it show memory, all of it zeros; its number is how many it has shown before.
    pub(crate) fn shown(&mut self, means: Means) -> RemoteBuffer {
        let addr = parsed(&self.ask(&format!("show {means:?}")));
        RemoteBuffer { name: Location::Cuda(0).to_string(), addr, len: LEN as u64 }
    }

    /// Has it write and read this region of the engine's for ever, from memory of these means;
    /// returns once the first time is over.
    pub(crate) fn use_for_ever(&mut self, engine: &Engine, region: &Region, means: Means) {
        let order = format!("use {} {} {means:?}", engine.name(), region.addr());
        assert_eq!(self.ask(&order), "begun");
    }

    /// How often it has done so.
    pub(crate) fn rounds(&mut self) -> usize {
        parsed(&self.ask("rounds"))
    }

    /// Returns when it does so still.
    pub(crate) fn goes_on(&mut self) {
        let (before, since) = (self.rounds(), Instant::now());
        while self.rounds() < before + 2 {
            assert!(since.elapsed() < Duration::from_secs(10), "another peer is not served");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Has it take back what it showed last, and show the same or other memory in its place.
    pub(crate) fn take_back(&mut self) {
        parsed::<u64>(&self.ask("take_back"));
    }

    pub(crate) fn held(&mut self) -> Held {
        let answer = self.ask("held");
        let (fds, used_bytes) = answer.split_once(' ').expect("two numbers");
        Held { fds: parsed(fds), used_bytes: parsed(used_bytes) }
    }

    pub(crate) fn stop(&self) {
        stopping::stop(&self.child);
    }

    pub(crate) fn go_on(&self) {
        stopping::signal(&self.child, Signal::CONT);
    }

    /// Kills it; returns when it is dead.
    pub(crate) fn kill(&mut self) {
        self.child.kill().expect("it lives");
        self.child.wait().expect("an end");
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // It may be dead already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn parsed<T: FromStr>(word: &str) -> T {
    word.parse().ok().unwrap_or_else(|| panic!("`{word}` is no number"))
}

fn means(word: &str) -> Means {
    BOTH.into_iter().find(|means| format!("{means:?}") == word).expect("means")
}

/// Not a test: what the other processes do.
#[test]
#[ignore = "the peer of tests in this suite"]
fn a_peer() {
    if std::env::var_os(MARK).is_none() {
        return;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    runtime.expect("a runtime").block_on(async {
        let driver = driver();
        let engine = engine_on(&driver, |builder| builder);
        let mut state = State { driver, engine, shown: Vec::new(), rounds: Arc::default() };
        for line in std::io::stdin().lines().map_while(Result::ok) {
            let words: Vec<_> = line.split_whitespace().collect();
            println!("\n{ANSWER}{}", state.obey(&words).await);
        }
    });
}

struct State {
    driver: Arc<dyn Driver>,
    engine: Engine,
    shown: Vec<(Memory, Region)>,
    rounds: Arc<AtomicUsize>,
}

impl State {
    async fn obey(&mut self, words: &[&str]) -> String {
        match *words {
            ["name"] => self.engine.name().to_owned(),
            ["show", by] => {
                let shown = self.show(Memory::new(&self.driver, means(by)));
                self.shown.last().inspect(|(_, region)| fill(region, &[0; LEN]));
                shown
            }
            ["take_back"] => {
                let (memory, region) = self.shown.pop().expect("it was shown");
                self.engine.unregister(region).await.expect("quiet");
                self.show(memory)
            }
            ["fill", number, seed] => {
                fill(self.region(number), &pattern(parsed(seed), LEN));
                "ok".to_owned()
            }
            ["check", number, seed] => {
                let is_same = contents(self.region(number)) == pattern(parsed(seed), LEN);
                if is_same { "same" } else { "different" }.to_owned()
            }
            ["use", name, addr, by] => self.use_for_ever(name, parsed(addr), means(by)).await,
            ["held"] => {
                let Held { fds, used_bytes } = Held::now(&self.driver);
                format!("{fds} {used_bytes}")
            }
            ["rounds"] => self.rounds.load(Ordering::Relaxed).to_string(),
            _ => panic!("unknown order {words:?}"),
        }
    }

    fn region(&self, number: &str) -> &Region {
        &self.shown[parsed::<usize>(number)].1
    }

    fn show(&mut self, memory: Memory) -> String {
        let region = memory.region(&self.engine);
        let addr = region.addr().to_string();
        self.shown.push((memory, region));
        addr
    }

    async fn use_for_ever(&self, name: &str, addr: u64, means: Means) -> String {
        let (engine, rounds) = (self.engine.clone(), self.rounds.clone());
        let near = Memory::new(&self.driver, means).region(&engine);
        let peer = engine.open(name).await.expect("a peer");
        let far = RemoteBuffer { name: Location::Cuda(0).to_string(), addr, len: LEN as u64 };
        let (begun, is_begun) = tokio::sync::oneshot::channel();
        tokio::spawn(async move {
            let (pages, mut begun) = (pages(PAGES, LEN / PAGES), Some(begun));
            fill(&near, &pattern(addr, LEN));
            // Until this process is killed, or what it uses is taken back.
            while engine.transfer(write(&peer, &near, &far, &pages)).await.is_ok()
                && engine.transfer(read(&peer, &near, &far, &pages)).await.is_ok()
            {
                rounds.fetch_add(1, Ordering::Relaxed);
                begun.take().map(|begun| begun.send(()));
            }
        });
        if is_begun.await.is_ok() { "begun" } else { "failed" }.to_owned()
    }
}

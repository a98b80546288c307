//! Peers in processes of their own: this test binary started again, doing what it is told by
//! lines on its standard input, each answered by one line.

use std::collections::{HashMap, VecDeque};
use std::io::{BufRead, BufReader, Write};
use std::process::{ChildStdin, Command, Stdio};
use std::str::FromStr;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use kvrail::{Access, Batch, Engine, Eternal, Metadata, Peer, Region, Transfer, Verdict};
use rustix::process::{Pid, Signal, kill_process};

use super::{contents, fill, pattern, region};

/// Tells the binary that it is a peer.
const MARK: &str = "KVRAIL_TEST_PEER";

/// Answers stand behind this, as libtest writes to the same output.
const ANSWER: &str = "=> ";

/// A peer in a process of its own; killed on drop.
pub(crate) struct Process {
    child: std::process::Child,
    orders: Option<ChildStdin>,
    answers: Receiver<String>,
}

/// A region of such a peer's.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Far {
    pub(crate) number: usize,
    pub(crate) addr: u64,
}

impl Process {
    /// A peer whose engine has `settings`, with its segment name.
    pub(crate) fn start(settings: &str) -> (Self, String) {
        let mut process = Self::start_by(Command::new(std::env::current_exe().unwrap()));
        let name = process.ask(&format!("engine {settings}"));
        (process, name)
    }

    /// A peer without an engine, started by a command that becomes this binary.
    pub(crate) fn start_by(mut command: Command) -> Self {
        command.args(["process::a_peer", "--exact", "--ignored", "--nocapture"]).env(MARK, "1");
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("a process");
        let (orders, output) = (child.stdin.take(), child.stdout.take().unwrap());
        let (send, answers) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if let Some((_, answer)) = line.split_once(ANSWER) {
                    // Nobody may listen any more.
                    let _ = send.send(answer.to_owned());
                }
            }
        });
        Self { child, orders, answers }
    }

    pub(crate) fn tell(&mut self, order: &str) {
        writeln!(self.orders.as_mut().unwrap(), "{order}").expect("the peer listens");
    }

    pub(crate) fn hear(&self) -> String {
        self.answers.recv_timeout(Duration::from_secs(60)).expect("the peer answers")
    }

    pub(crate) fn ask(&mut self, order: &str) -> String {
        self.tell(order);
        self.hear()
    }

    /// Has it get memory: `allocate LEN ACCESS` or `register LEN ACCESS`.
    pub(crate) fn region(&mut self, order: &str) -> Far {
        let answer = self.ask(order);
        let (number, addr) = answer.split_once(' ').unwrap();
        Far { number: parsed(number), addr: parsed(addr) }
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    pub(crate) fn stop(&self) {
        self.signal(Signal::STOP);
        while !self.is_stopped() {
            std::thread::yield_now();
        }
    }

    /// The kernel's word: a stopped process runs no instruction.
    pub(crate) fn is_stopped(&self) -> bool {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.child.id())).unwrap();
        let stat = |task: std::fs::DirEntry| std::fs::read_to_string(task.path().join("stat"));
        tasks.map(|task| stat(task.unwrap()).unwrap()).all(|stat| state(&stat) == "T")
    }

    /// Processor time that it has used, in clock ticks (10 ms).
    pub(crate) fn cpu_ticks(&self) -> u64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        let fields: Vec<_> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
        parsed::<u64>(fields[11]) + parsed::<u64>(fields[12])
    }

    pub(crate) fn kill(&mut self) {
        self.signal(Signal::KILL);
        self.child.wait().unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // A peer that ended by itself is fine, too.
        drop(self.orders.take());
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn state(stat: &str) -> &str {
    stat.rsplit_once(") ").map_or("", |(_, rest)| &rest[..1])
}

fn parsed<T: FromStr>(word: &str) -> T {
    word.parse().ok().unwrap_or_else(|| panic!("`{word}` is no number"))
}

/// Not a test: what the other processes do.
#[test]
#[ignore = "the other process of the tests here"]
fn a_peer() {
    if std::env::var_os(MARK).is_none() {
        return;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let mut state = State::default();
    for line in std::io::stdin().lines().map_while(Result::ok) {
        let words: Vec<_> = line.split_whitespace().collect();
        let answer = runtime.block_on(state.obey(&words));
        println!("\n{ANSWER}{answer}");
    }
}

#[derive(Default)]
struct State {
    engine: Option<Engine>,
    regions: Vec<Region>,
    foreign: HashMap<usize, Eternal>,
    peer: Option<Peer>,
    out: VecDeque<tokio::task::JoinHandle<String>>,
}

impl State {
    async fn obey(&mut self, words: &[&str]) -> String {
        match *words {
            ["engine", ref settings @ ..] => self.start(settings),
            [what @ ("allocate" | "register"), len, access] => self.add(what, len, access),
            ["grant", region] => {
                let (region, options) = (self.region(region), Default::default());
                let all = 0..region.len();
                let grant = self.engine().grant(&region, all, Access::READ, options).unwrap();
                let reference = grant.reference().to_string();
                std::mem::forget(grant);
                reference
            }
            ["fill", region, seed] => {
                let region = self.region(region);
                fill(&region, &pattern(parsed(seed), region.len()));
                "ok".to_owned()
            }
            ["check", region, seed] => {
                let region = self.region(region);
                let is_same = contents(&region) == pattern(parsed(seed), region.len());
                if is_same { "same" } else { "different" }.to_owned()
            }
            ["open", name] => match self.engine().open(name).await {
                Ok(peer) => format!("{:?}", self.peer.insert(peer).path()),
                Err(error) => format!("failed {error}"),
            },
            ["close"] => {
                self.peer = None;
                "ok".to_owned()
            }
            [what @ ("write" | "read" | "write_to" | "read_from"), region, far] => {
                self.begin(what, region, far)
            }
            ["end"] => self.out.pop_front().unwrap().await.unwrap(),
            ["explain", region] => self.explain(region).await,
            ["counter", id] => {
                let counter = self.engine().counter(parsed(id)).unwrap();
                let value = counter.value();
                std::mem::forget(counter);
                value.to_string()
            }
            ["stop"] => {
                self.engine().stop().await;
                "ok".to_owned()
            }
            _ => panic!("unknown order {words:?}"),
        }
    }

    fn engine(&self) -> Engine {
        self.engine.clone().unwrap()
    }

    fn region(&self, number: &str) -> Region {
        self.regions[parsed::<usize>(number)].clone()
    }

    fn start(&mut self, settings: &[&str]) -> String {
        let mut builder = Engine::builder();
        for setting in settings {
            builder = match setting.split_once('=').unwrap() {
                ("same_host", on) => builder.same_host(parsed(on)),
                ("folder", folder) => builder.socket_folder(folder),
                ("name", name) => builder.name(name),
                ("host", host) => builder.host(host),
                ("metadata", url) => builder.metadata(Metadata::Http(url.to_owned())),
                _ => panic!("unknown setting {setting}"),
            };
        }
        match builder.start() {
            Ok(engine) => self.engine.insert(engine).name().to_owned(),
            Err(error) => format!("failed {error}"),
        }
    }

    fn add(&mut self, what: &str, len: &str, access: &str) -> String {
        let access = match access {
            "read" => Access::READ,
            "write" => Access::WRITE,
            "both" => Access::READ_WRITE,
            _ => Access::LOCAL,
        };
        let (len, number) = (parsed(len), self.regions.len());
        let region = match what {
            "allocate" => region(&self.engine(), len, access),
            _ => {
                let memory = *self.foreign.entry(number).or_insert_with(|| Eternal::new(len));
                self.engine().register(memory.foreign(), access).unwrap()
            }
        };
        self.regions.push(region.clone());
        format!("{number} {}", region.addr())
    }

    /// Posts a transfer of a whole region, on another thread.
    fn begin(&mut self, what: &str, region: &str, far: &str) -> String {
        let (engine, region) = (self.engine(), self.region(region));
        let mut batch = Batch::new(self.peer.as_ref().unwrap());
        let all = 0..region.len();
        match what {
            "write" => batch.write(&region.share(all).unwrap(), parsed(far)),
            "read" => batch.read(region.lease(all).unwrap(), parsed(far)),
            "write_to" => batch.write_to(&region.share(all).unwrap(), &parsed(far), 0),
            _ => batch.read_from(region.lease(all).unwrap(), &parsed(far), 0),
        };
        self.out.push_back(tokio::spawn(async move { ended(engine.transfer(batch).await) }));
        "begun".to_owned()
    }

    async fn explain(&self, region: &str) -> String {
        let peer = self.peer.as_ref().unwrap();
        let explanation = self.engine().explain(peer, &self.region(region)).await;
        let rows = explanation.write.iter().chain(&explanation.read);
        let row = |row: &kvrail::Candidate| {
            let mark = if row.verdict == Verdict::Chosen { "->" } else { "--" };
            format!("{mark} {:?} {:?}: {}", row.path, row.means, row.why)
        };
        rows.map(row).collect::<Vec<_>>().join(" | ")
    }
}

fn ended(result: <Transfer as IntoFuture>::Output) -> String {
    match result {
        Ok(_) => "ok".to_owned(),
        Err(failed) => format!("{:?}", failed.error().kind()),
    }
}

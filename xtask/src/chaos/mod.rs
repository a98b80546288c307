//! `cargo xtask chaos`: real processes that reach into each other's memory while they are killed,
//! stopped and cut off, under an oracle that knows every byte.
//!
//! - `agent` `seat`: the processes, `examples/chaos_agent`
//! - `relay`: the network between them
//! - `guest`: RDMA, for which everything goes into a guest
//! - `player`: transfers, and what is known when they end
//! - `trouble`: what befalls the cluster
//! - `peace`: what every process holds when nothing is under way
//! - `tally`: what happened

mod agent;
pub mod guest;
mod peace;
mod player;
mod relay;
mod seat;
mod tally;
mod trouble;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};

use self::agent::Agent;
use self::seat::Seat;
use self::tally::{Ledger, Tally};
use crate::proof;
use crate::shell::Shell;
use crate::steps::Outcome;

/// Streams of transfers; each has a counter of its own at every owner.
const PLAYERS: u64 = 8;
/// Streams of trouble, so that two things go wrong at a time.
const TROUBLES: u64 = 2;

const AGENT: &str = "chaos_agent";

/// How long, and over which paths.
#[derive(Args)]
pub struct Options {
    /// How long each path is under fire, in seconds.
    #[arg(long, default_value_t = 30)]
    seconds: u64,
    /// Over which path; `rdma` in a guest, `all` that need none.
    #[arg(long, value_enum, default_value = "all")]
    path: Choice,
    /// Draws the same transfers and the same trouble again; the moments differ.
    #[arg(long)]
    seed: Option<u64>,
    /// Agents without optimisation, but with all debug assertions.
    #[arg(long)]
    debug: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Choice {
    Local,
    Host,
    Tcp,
    Rdma,
    All,
}

/// How the agents' transfers travel.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Local,
    Host,
    Tcp,
    Rdma,
}

impl Way {
    fn word(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Host => "host",
            Self::Tcp => "tcp",
            Self::Rdma => "rdma",
        }
    }

    /// Whether shared memory is left aside.
    fn is_network(self) -> bool {
        matches!(self, Self::Tcp | Self::Rdma)
    }

    /// Whether everything goes through relays.
    fn is_relayed(self) -> bool {
        self == Self::Tcp
    }

    fn seats(self) -> u8 {
        if self == Self::Local { 2 } else { 3 }
    }
}

impl Choice {
    fn ways(self) -> Vec<Way> {
        match self {
            Self::Local => vec![Way::Local],
            Self::Host => vec![Way::Host],
            Self::Tcp => vec![Way::Tcp],
            Self::Rdma => vec![Way::Rdma],
            Self::All => vec![Way::Local, Way::Host, Way::Tcp],
        }
    }
}

/// What was found to be wrong.
type Wrongs = Arc<Mutex<Vec<String>>>;

/// What agents are started with.
struct Field {
    way: Way,
    program: PathBuf,
    logs: PathBuf,
    registry: String,
}

/// The cluster of one path.
struct Arena {
    field: Field,
    seed: u64,
    seats: Vec<Seat>,
    until: Mutex<Instant>,
    wrongs: Wrongs,
    tally: Mutex<Tally>,
    ledger: Mutex<Ledger>,
    /// Held while a process is replaced.
    killing: Mutex<()>,
}

impl Arena {
    /// Whether the load goes on.
    fn is_on(&self) -> bool {
        Instant::now() < *lock(&self.until) && lock(&self.wrongs).is_empty()
    }

    fn accuse(&self, what: String) {
        lock(&self.wrongs).push(what);
    }

    fn way(&self) -> Way {
        self.field.way
    }

    fn is_local(&self) -> bool {
        self.way() == Way::Local
    }

    fn tally(&self) -> MutexGuard<'_, Tally> {
        lock(&self.tally)
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        lock(&self.ledger)
    }
}

/// What `cargo xtask test` does: every path for half a minute.
pub fn brief(shell: &Shell) -> Outcome {
    run(shell, &Options { seconds: 30, path: Choice::All, seed: None, debug: false })
}

/// Runs the paths in turn; an error says what was found.
pub fn chaos(options: &Options) -> Outcome {
    run(&Shell::new()?, options)
}

fn run(shell: &Shell, options: &Options) -> Outcome {
    let logs = shell.root.join("target/chaos");
    std::fs::create_dir_all(&logs).map_err(|error| format!("{}: {error}", logs.display()))?;
    let (seed, ways) = (options.seed.unwrap_or_else(draw), options.path.ways());
    for &way in &ways {
        println!("\n{}: {} s under fire, seed {seed}", way.word(), options.seconds);
        let again = format!("cargo xtask chaos --path {} --seed {seed}", way.word());
        one(shell, way, options, (&logs, seed))
            .map_err(|found| format!("{found}\nto draw the same again: {again}"))?;
    }
    Ok(format!("{} paths, {} s each, seed {seed}", ways.len(), options.seconds))
}

fn one(
    shell: &Shell,
    way: Way,
    options: &Options,
    (logs, seed): (&Path, u64),
) -> Result<(), String> {
    let (logs, is_release, seconds) = (logs.to_owned(), !options.debug, options.seconds);
    if way == Way::Rdma {
        let program = guest::agents(shell, is_release)?;
        return guest::play(shell, &guest::Play::new(program, logs, seconds, seed));
    }
    let program = proof::example(shell, AGENT, is_release)?;
    let field = Field { way, program, logs, registry: String::new() };
    fight(field, seed, Duration::from_secs(seconds))
}

/// A seed for those who name none; short, for it may be typed again.
fn draw() -> u64 {
    fastrand::u64(..1_000_000)
}

/// One path, from peace to peace.
fn fight(mut field: Field, seed: u64, time: Duration) -> Result<(), String> {
    let mut command = field.command();
    command.arg("registry");
    let log = field.logs.join("registry.log");
    let registry = Agent::start("registry", command, log, |what| eprintln!("{what}"))?;
    field.registry = registry.ready.as_str().unwrap_or_default().to_owned();
    let wrongs = Wrongs::default();
    let seats = (0..field.way.seats()).map(|id| Seat::new(&field, id, &wrongs));
    let seats = seats.collect::<Result<_, _>>()?;
    let until = Mutex::new(Instant::now());
    let (tally, ledger, killing) = Default::default();
    let arena = Arena { field, seed, seats, until, wrongs, tally, ledger, killing };
    let start = Instant::now();
    let before = peace::warm_up(&arena)?;
    println!("everybody has reached everybody, in {:.1} s", start.elapsed().as_secs_f32());
    *lock(&arena.until) = Instant::now() + time;
    *arena.tally() = Tally::default();
    std::thread::scope(|scope| {
        let arena = &arena;
        for number in 0..PLAYERS {
            scope.spawn(move || player::play(arena, number));
        }
        for number in 0..TROUBLES {
            scope.spawn(move || trouble::make(arena, number));
        }
        scope.spawn(|| show(arena, time));
    });
    let after = peace::settle(&arena, &before);
    println!("{}\n{}", arena.tally().table(), after.as_deref().unwrap_or("not at rest"));
    let found: Vec<_> = std::mem::take(&mut *lock(&arena.wrongs));
    let found = found.into_iter().chain(after.err()).collect::<Vec<_>>();
    if !found.is_empty() {
        return Err(found.join("\n"));
    }
    arena.seats.iter().try_for_each(Seat::end)?;
    registry.end()
}

fn show(arena: &Arena, time: Duration) {
    let style = ProgressStyle::with_template("{bar:30} {pos}/{len} s  {msg}");
    let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
    let bar = ProgressBar::new(time.as_secs()).with_style(style);
    while arena.is_on() {
        std::thread::sleep(Duration::from_millis(200));
        let left = lock(&arena.until).saturating_duration_since(Instant::now());
        bar.set_position((time.saturating_sub(left)).as_secs());
        let tally = arena.tally();
        let trouble = tally.events.values().sum::<u64>();
        bar.set_message(format!("{} transfers, {trouble} troubles", tally.transfers));
    }
    bar.finish_and_clear();
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

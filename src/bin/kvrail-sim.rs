//! The simulator's command line; `cargo xtask sim` builds and runs it.

use std::ops::Range;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use kvrail::sim::{Canary, Options, Report, Worlds, run, shrink};

/// Runs whole engines on a simulated network, one seed after the other.
#[derive(Parser)]
struct Cli {
    /// Seeds to run, A..B without B.
    #[arg(long, value_parser = range, default_value = "0..2000")]
    seeds: Range<u64>,
    /// Threads; all CPUs by default.
    #[arg(long)]
    jobs: Option<usize>,
    /// Runs this one seed only.
    #[arg(long)]
    seed: Option<u64>,
    /// Prints what happened, line by line (with --seed).
    #[arg(long)]
    trace: bool,
    /// Leaves out happenings while the seed still fails (with --seed).
    #[arg(long)]
    shrink: bool,
    /// Happenings of the schedule to leave out, by number.
    #[arg(long, value_delimiter = ',')]
    drop: Vec<usize>,
    /// Makes a mistake, which some seed must find.
    #[arg(long, value_parser = canary)]
    canary: Option<Canary>,
    /// What is simulated: whole engines, or the RDMA path.
    #[arg(long, value_parser = world, default_value = "engines")]
    world: Worlds,
}

fn range(text: &str) -> Result<Range<u64>, String> {
    let parsed = text.split_once("..").and_then(|(a, b)| Some(a.parse().ok()?..b.parse().ok()?));
    parsed.filter(|seeds| !seeds.is_empty()).ok_or_else(|| "write A..B, such as 0..2000".into())
}

fn world(name: &str) -> Result<Worlds, String> {
    Worlds::named(name).ok_or_else(|| "the worlds are engines and rdma".into())
}

fn canary(name: &str) -> Result<Canary, String> {
    let names = Canary::ALL.map(Canary::name).join(", ");
    Canary::named(name).ok_or_else(|| format!("the canaries are {names}"))
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    // A panic is a seed's failure, and reported as such.
    std::panic::set_hook(Box::new(|_| {}));
    let options = Options {
        canary: cli.canary,
        is_traced: cli.trace,
        dropped: cli.drop.clone(),
        world: cli.world,
    };
    let is_good = match cli.seed {
        Some(seed) => one(seed, options, &cli),
        None => many(&options, &cli),
    };
    if is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// One seed, with all that can be told of it.
fn one(seed: u64, mut options: Options, cli: &Cli) -> bool {
    if cli.shrink {
        options.dropped = shrink(seed, &options);
    }
    let report = run(seed, &options);
    report.trace.iter().for_each(|line| println!("{line}"));
    let (transfers, succeeded, steps) = (report.transfers, report.succeeded, report.steps);
    println!("seed {seed}: {transfers} transfers, {succeeded} succeeded, {steps} steps");
    match report.failure {
        Some(what) => {
            let left = report.happenings;
            println!("seed {seed} FAILED, with {left} happenings: {what}");
            println!("replay: {}", command(seed, &options, "trace"));
            false
        }
        None => true,
    }
}

fn command(seed: u64, options: &Options, how: &str) -> String {
    let mut command = format!("cargo xtask sim --seed {seed} --{how}");
    if options.world == Worlds::Rdma {
        command += " --world rdma";
    }
    if let Some(canary) = options.canary {
        command += &format!(" --canary {}", canary.name());
    }
    if !options.dropped.is_empty() {
        let numbers: Vec<_> = options.dropped.iter().map(ToString::to_string).collect();
        command += &format!(" --drop {}", numbers.join(","));
    }
    command
}

/// What all seeds did together.
#[derive(Default)]
struct Totals {
    seeds: u64,
    transfers: usize,
    succeeded: usize,
    steps: u64,
    virtual_time: Duration,
    failures: Vec<(u64, String)>,
}

impl Totals {
    fn add(&mut self, seed: u64, report: Report) {
        self.seeds += 1;
        self.transfers += report.transfers;
        self.succeeded += report.succeeded;
        self.steps += report.steps;
        self.virtual_time += Duration::from_nanos(report.virtual_ns);
        self.failures.extend(report.failure.map(|what| (seed, what)));
    }
}

/// Many seeds on many threads. A canary's run is good when a seed finds it.
fn many(options: &Options, cli: &Cli) -> bool {
    let start = Instant::now();
    let jobs =
        cli.jobs.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, Into::into));
    let bar = ProgressBar::new(cli.seeds.end - cli.seeds.start);
    if let Ok(style) = ProgressStyle::with_template("{bar:40} {pos}/{len} seeds, {eta} left") {
        bar.set_style(style);
    }
    let (next, is_over) = (AtomicU64::new(cli.seeds.start), AtomicBool::new(false));
    let totals = Mutex::new(Totals::default());
    let worker = || {
        while !is_over.load(Ordering::Relaxed) {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= cli.seeds.end {
                return;
            }
            let report = run(seed, options);
            // The first failure is enough.
            is_over.fetch_or(report.failure.is_some(), Ordering::Relaxed);
            totals.lock().expect("no worker panics here").add(seed, report);
            bar.inc(1);
        }
    };
    std::thread::scope(|scope| (0..jobs).for_each(|_| drop(scope.spawn(worker))));
    bar.finish_and_clear();
    summary(totals.into_inner().expect("no worker panics here"), start.elapsed(), options)
}

fn summary(totals: Totals, took: Duration, options: &Options) -> bool {
    let Totals { seeds, transfers, succeeded, steps, virtual_time, mut failures } = totals;
    println!(
        "{seeds} seeds in {:.1} s: {transfers} transfers, {succeeded} succeeded; {steps} steps, \
         each with a look at every byte; {:.0} s of virtual time",
        took.as_secs_f64(),
        virtual_time.as_secs_f64()
    );
    failures.sort_unstable();
    for (seed, what) in &failures {
        println!("seed {seed} FAILED: {what}");
        println!("replay: {}", command(*seed, options, "trace"));
        println!("shrink: {}", command(*seed, options, "shrink"));
    }
    match options.canary {
        None => failures.is_empty(),
        Some(canary) if failures.is_empty() => {
            println!("{} lives on: no seed finds it", canary.name());
            false
        }
        Some(canary) => {
            println!("{} is found after {seeds} seeds", canary.name());
            true
        }
    }
}

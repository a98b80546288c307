//! `cargo xtask compare`: kvrail, its peers and the machine's limits, measured in turn.
//!
//! - `contender`: the workloads and who takes part; new ones are entered there
//! - `plan`: which cells, for how long
//! - `launch` `process`: getting, starting, asking and holding the contenders
//! - `rounds`: A B C, A B C, ...
//! - `figures` `latency` `bars` `facts`: what came of it, and what it is held against
//! - `report` `html` `plots` `chart`: the same for people
//! - `rdma`: the same in a guest with soft-RoCE NICs

mod bars;
mod chart;
mod contender;
mod facts;
mod figures;
mod html;
mod latency;
mod launch;
mod plan;
mod plots;
mod process;
pub mod rdma;
mod report;
mod rounds;
mod trace;

use std::fs;
use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::json;

use self::contender::{Program, TRACE, WORKLOADS, Workload, workload};
use self::facts::Facts;
use self::figures::Results;
pub use self::launch::{release, said};
use self::plan::{Caches, Cell, FULL, Pace, QUICK, cells};
use self::rounds::Rounds;
use self::trace::Trace;
use crate::shell::Shell;
use crate::size;
use crate::steps::Outcome;

/// Bytes of a request, unless others are named.
const SIZES: [usize; 4] = [4 << 10, 64 << 10, 1 << 20, 16 << 20];

/// What to compare.
#[derive(Args, Clone)]
pub struct Options {
    /// Shorter measurements and fewer batches: everything in five minutes.
    #[arg(long)]
    quick: bool,
    /// How often every contender measures every cell.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Only these workloads: tcp, host, process-vm, local, callers, latency, peers, slices, trace;
    /// or rdma, which is measured by itself.
    #[arg(long, value_name = "WORKLOAD", value_delimiter = ',')]
    only: Vec<String>,
    /// Bytes of a request; 4K,64K,1M,16M by default, 64K,1M of rdma.
    #[arg(long, value_name = "SIZE", value_delimiter = ',', value_parser = size::parse)]
    cells: Vec<usize>,
    /// Requests of a batch; 1,16,128 by default, 1,16 when quick, 16,128 of rdma.
    #[arg(long, value_name = "NUMBER", value_delimiter = ',')]
    batches: Vec<u64>,
    /// A trace of requests to replay too, by TCP: lines of JSON with `timestamp` in milliseconds
    /// and `hash_ids`, one for each block of 512 tokens, as Mooncake publishes them. `--only
    /// trace` measures nothing else.
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
    /// Whether the same memory is used again and again, or walked through.
    #[arg(long, value_enum, default_value = "hot")]
    caches: Caches,
    /// Leave these out: mooncake, nixl, ucx, iperf3, limits, kvrail; perftest of rdma.
    #[arg(long, value_name = "PROGRAM", value_delimiter = ',')]
    without: Vec<String>,
    /// Where report.html, report.md, report.svg, raw.json and the contenders' logs go.
    #[arg(long, value_name = "FOLDER", default_value = "target/compare")]
    out: PathBuf,
}

impl Options {
    fn pace(&self) -> Pace {
        if self.quick { QUICK } else { FULL }
    }

    fn workloads(&self) -> Result<Vec<&'static Workload>, String> {
        match self.only.is_empty() {
            true => Ok(WORKLOADS.iter().chain(self.trace.as_ref().map(|_| &TRACE)).collect()),
            false => self.only.iter().map(|name| self.workload(name)).collect(),
        }
    }

    fn workload(&self, name: &str) -> Result<&'static Workload, String> {
        match (name == TRACE.name, &self.trace) {
            (true, Some(_)) => Ok(&TRACE),
            (true, None) => Err("name the trace by --trace FILE".into()),
            (false, _) => workload(name),
        }
    }

    fn cells(&self) -> Result<Vec<Cell>, String> {
        let sizes = if self.cells.is_empty() { &SIZES[..] } else { &self.cells };
        let sizes: Vec<_> = sizes.iter().map(|&bytes| bytes as u64).collect();
        let batches = match (self.batches.is_empty(), self.quick) {
            (false, _) => self.batches.clone(),
            (true, true) => vec![1, 16],
            (true, false) => vec![1, 16, 128],
        };
        if self.rounds == 0 || sizes.contains(&0) || batches.contains(&0) {
            return Err("rounds, sizes and batches are 1 or more".into());
        }
        let cells = cells(&sizes, &batches, self.caches);
        match cells.is_empty() {
            true => Err(format!(
                "no batch fits into {}: name smaller --cells or --batches",
                size::show(plan::BUFFER_BYTES as usize)
            )),
            false => Ok(cells),
        }
    }

    fn check_without(&self) -> Result<(), String> {
        let words = Program::ALL.map(Program::word);
        match self.without.iter().find(|name| !words.contains(&name.as_str())) {
            Some(name) => Err(format!("nothing here is called {name}: it is {}", words.join(", "))),
            None => Ok(()),
        }
    }
}

/// Measures, writes the report and prints the summary.
pub fn compare(options: &Options) -> Result<Vec<Results>, String> {
    let shell = Shell::new()?;
    if options.only == [rdma::NAME] {
        return rdma::compare(&shell, options).map(|()| Vec::new());
    }
    let (workloads, cells) = (options.workloads()?, options.cells()?);
    let trace = options.trace.as_deref().map(Trace::load).transpose()?.map(Cell::of_trace);
    options.check_without()?;
    let out = shell.root.join(&options.out);
    let logs = out.join("logs");
    fs::create_dir_all(&logs).map_err(|error| format!("{}: {error}", logs.display()))?;
    let field = Field::prepare(&shell, options, &workloads)?;
    let facts = Facts::gather(&shell, &field.versions);
    let rounds = Rounds {
        shell: &shell,
        field: &field,
        cells: &cells,
        trace,
        count: options.rounds,
        pace: options.pace(),
        logs: &logs,
    };
    let results = rounds.run(&workloads);
    let Pace { warm_up_s, measure_s, .. } = options.pace();
    write(&out, &facts, &results, &Method { rounds: options.rounds, warm_up_s, measure_s })?;
    Ok(results)
}

/// What is installed, and why the rest is not.
struct Field {
    versions: Vec<(String, String)>,
    missing: Vec<(Program, String)>,
}

impl Field {
    /// A peer that can't be had is missing, with the reason; our own sources must build.
    fn prepare(shell: &Shell, options: &Options, workloads: &[&Workload]) -> Result<Self, String> {
        let contenders = || workloads.iter().flat_map(|one| one.contenders);
        let (mut versions, mut missing) = (Vec::new(), Vec::new());
        for program in Program::ALL {
            if !contenders().any(|one| one.program == program) {
                continue;
            }
            let word = program.word().to_owned();
            let is_unwanted = options.without.contains(&word);
            let installed = match is_unwanted {
                true => Err("left out, as asked".to_owned()),
                false => program.install(shell),
            };
            match installed {
                Ok(version) => versions.push((word, version)),
                Err(why) if program.is_built_here() && !is_unwanted => return Err(why),
                Err(why) => missing.push((program, why)),
            }
        }
        Ok(Self { versions, missing })
    }

    fn missing(&self, program: Program) -> Option<&str> {
        self.missing.iter().find(|(one, _)| *one == program).map(|(_, why)| why.as_str())
    }
}

/// How it was measured.
struct Method {
    rounds: usize,
    warm_up_s: f64,
    measure_s: f64,
}

fn write(out: &Path, facts: &Facts, results: &[Results], method: &Method) -> Outcome {
    let raw = json!({
        "facts": facts.json(),
        "rounds": method.rounds,
        "warm_up_s": method.warm_up_s,
        "measure_s": method.measure_s,
        "workloads": results.iter().map(Results::json).collect::<Vec<_>>(),
    });
    let files = [
        ("raw.json", format!("{raw:#}\n")),
        ("report.md", report::markdown(facts, results, method.rounds)),
        ("report.html", html::page(facts, results, method.rounds)?),
        ("report.svg", html::picture(facts, results)?),
    ];
    for (name, text) in files {
        let path = out.join(name);
        fs::write(&path, text).map_err(|error| format!("{}: {error}", path.display()))?;
    }
    print!("\n{}", report::summary(results));
    println!("\n{} has all of it; beside it are", out.join("report.html").display());
    println!("report.md, raw.json, and report.svg, the picture of it");
    Ok("written".into())
}

/// One cell, one round, Mooncake and the limits: what keeps the ruler itself straight.
pub fn smoke(shell: &Shell) -> Outcome {
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
    let out = PathBuf::from("target/compare/smoke");
    let options = Options {
        quick: true,
        rounds: 1,
        only: words(&["tcp"]),
        cells: vec![64 << 10],
        batches: vec![16],
        caches: Caches::Hot,
        trace: None,
        without: words(&["nixl"]),
        out: out.clone(),
    };
    let results = compare(&options)?;
    let read = |name: &str| {
        let file = fs::read_to_string(shell.root.join(&out).join(name));
        file.map_err(|error| format!("no {name}: {error}"))
    };
    let reports = [read("report.md")?, read("report.html")?];
    for (at, column) in results[0].columns.iter().enumerate() {
        let has_figure = results[0].rows.iter().all(|row| row.throughput(at).is_some());
        if !has_figure && column.name != "NIXL tcp" {
            let why = column.note.as_deref().unwrap_or("no word why");
            return Err(format!("{} has no figure: {why}", column.name));
        }
        if !reports.iter().all(|report| report.contains(&column.name)) {
            return Err(format!("a report doesn't speak of {}", column.name));
        }
    }
    Ok(format!("{} contenders, one round", results[0].columns.len() - 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options() -> Options {
        let (only, without) = (Vec::new(), Vec::new());
        let (cells, batches) = (vec![4096, 16 << 20], Vec::new());
        let out = PathBuf::from("unused");
        let caches = Caches::Hot;
        let trace = None;
        Options { quick: true, rounds: 5, only, cells, batches, caches, trace, without, out }
    }

    #[test]
    fn options_pick_cells_and_name_their_mistakes() {
        assert_eq!(options().cells().map(|cells| cells.len()), Ok(8));
        let full = Options { quick: false, ..options() };
        assert_eq!(full.cells().map(|cells| cells.len()), Ok(10));
        let error = Options { cells: vec![1 << 30], ..options() }.cells().unwrap_err();
        assert!(error.contains("256M"), "{error}");
        assert!(Options { rounds: 0, ..options() }.cells().is_err());
        let error = Options { without: vec!["nixel".into()], ..options() }.check_without();
        assert!(error.is_err_and(|error| error.contains("nixel") && error.contains("nixl")));
        assert!(Options { only: vec!["ram".into()], ..options() }.workloads().is_err());
        let only = vec![TRACE.name.to_owned()];
        let error = Options { only: only.clone(), ..options() }.workloads().err();
        assert!(error.is_some_and(|error| error.contains("--trace FILE")));
        let trace = Some(PathBuf::from("requests.jsonl"));
        assert_eq!(Options { only, trace, ..options() }.workloads().map(|all| all.len()), Ok(1));
        assert_eq!(options().workloads().map(|all| all.len()), Ok(WORKLOADS.len()));
    }
}

//! RDMA: one guest with two soft-RoCE NICs, in which perftest, Mooncake and kvrail take turns.
//!
//! - `system`: who they are: how they are got, their commands, their figures
//! - `guest` `side`: the rounds, inside of the guest
//! - `results`: what came of it; pure

mod guest;
mod results;
mod side;
mod system;

use std::fs;
use std::path::Path;

pub use self::guest::{Plan, rounds};
use self::results::results;
pub use self::side::Side as Program;
use self::system::System;
pub use self::system::{Task, kvrail as bench};
use super::facts::Facts;
pub use super::plan::Cell;
use super::{Method, Options, write};
use crate::shell::{Shell, own_program, quoted};
use crate::vm::guest::Boot;
use crate::vm::{Job, Machine, prepare};

/// What `--only` calls it; it is measured only when asked for, as it needs a guest.
pub const NAME: &str = "rdma";
/// The sizes and batches that are measured unless others are named, where both sides' memory holds
/// them: a caller who waits often, and as deep as perftest is by itself (`--tx-depth`).
const SIZES: [usize; 2] = [64 << 10, 1 << 20];
const BATCHES: [u64; 2] = [16, 128];
/// Seconds of a measurement: dozens of batches, or a few of the largest.
const MEASURE_S: f64 = 4.0;
const QUICK_S: f64 = 1.0;
/// What a measurement may take beyond that: starting both sides in an emulated machine takes four
/// seconds, and ten times that on a busy host.
const OVERHEAD_S: f64 = 40.0;
const MEMORY_MIB: u32 = 3072;

/// Said wherever the figures are.
const CAVEATS: [(&str, &str); 2] = [
    (
        "soft-RoCE",
        "In an emulated machine the kernel's CPU time stands in for the NIC. These figures compare \
         programs with each other; soft-RoCE's speed is never RDMA's speed",
    ),
    ("batches", "For perftest b16 is 16 messages on their way on each of its two queue pairs"),
];

/// Measures, writes the report and prints the summary.
pub fn compare(shell: &Shell, options: &Options) -> Result<(), String> {
    let out = shell.root.join(&options.out).join(NAME);
    fs::create_dir_all(&out).map_err(|error| format!("{}: {error}", out.display()))?;
    let (mut versions, missing) = installed(shell, &options.without)?;
    let plan = plan(options, &versions)?;
    let boot = prepare(shell, None)?;
    versions.push(("guest".to_owned(), described(&boot)));
    let mut facts = Facts::gather(shell, &versions);
    facts.lines.extend(CAVEATS.map(|(name, text)| (name.to_owned(), text.to_owned())));
    let results = results(&plan, &measured(&boot, &plan)?, &missing);
    let method = Method { rounds: plan.rounds, warm_up_s: 0.0, measure_s: plan.seconds };
    write(&out, &facts, std::slice::from_ref(&results), &method)?;
    CAVEATS.iter().for_each(|(name, text)| println!("{name}: {text}"));
    let is_complete = |at: usize| results.rows.iter().all(|row| row.throughput(at).is_some());
    match (0..results.columns.len()).any(is_complete) {
        true => Ok(()),
        false => Err("no system has a figure in every cell".to_owned()),
    }
}

type Versions = Vec<(String, String)>;

/// What there is, and why the rest is not.
fn installed(
    shell: &Shell,
    without: &[String],
) -> Result<(Versions, Vec<(System, String)>), String> {
    let words = System::ALL.map(System::word);
    if let Some(name) = without.iter().find(|name| !words.contains(&name.as_str())) {
        return Err(format!("{NAME} has no {name}: it has {}", words.join(", ")));
    }
    let (mut versions, mut missing) = (Vec::new(), Vec::new());
    for system in System::ALL {
        let installed = match without.iter().any(|name| name == system.word()) {
            true => Err("left out, as asked".to_owned()),
            false => system.install(shell),
        };
        match installed {
            Ok(version) => versions.push((system.word().to_owned(), version)),
            Err(why) => missing.push((system, why)),
        }
    }
    Ok((versions, missing))
}

fn plan(options: &Options, versions: &Versions) -> Result<Plan, String> {
    let sizes = if options.cells.is_empty() { &SIZES[..] } else { &options.cells };
    let batches =
        if options.batches.is_empty() { BATCHES.to_vec() } else { options.batches.clone() };
    let plan = Plan {
        rounds: options.rounds,
        seconds: if options.quick { QUICK_S } else { MEASURE_S },
        sizes: sizes.iter().map(|&bytes| bytes as u64).collect(),
        batches,
        systems: versions.iter().map(|(word, _)| word.clone()).collect(),
    };
    match plan.rounds == 0 || plan.cells().is_empty() || plan.systems.is_empty() {
        true => Err("nothing to measure: no round, no batch that fits, or no system".to_owned()),
        false => Ok(plan),
    }
}

fn machine() -> Machine {
    Machine { nics: 2, memory_mib: MEMORY_MIB, ..Machine::default() }
}

/// The guest in a line; its kernel's folder has the name of its version.
fn described(boot: &Boot) -> String {
    let version = boot.vmlinux.parent().and_then(Path::file_name).unwrap_or_default();
    let Machine { smp, memory_mib, .. } = machine();
    format!("kernel {}, {smp} emulated CPUs, {memory_mib} MiB", version.display())
}

/// Boots the guest, which tells as it goes; one that dies half-way has told the half.
fn measured(boot: &Boot, plan: &Plan) -> Result<Vec<guest::Told>, String> {
    let measurements = plan.rounds * plan.cells().len() * plan.systems.len();
    let limit_s = measurements as f64 * (plan.seconds + OVERHEAD_S);
    println!("{measurements} measurements in a guest");
    let words = [own_program()?, "rdma-rounds".to_owned()];
    let words = words.into_iter().chain(plan.words());
    let command = words.map(|word| quoted(&word)).collect::<Vec<_>>().join(" ");
    let job = Job { command, limit_s: limit_s as u64, keep: true };
    let ended = boot.run(&machine(), &job)?;
    let told: Vec<_> = ended.output.lines().filter_map(guest::told).collect();
    match (told.is_empty(), ended.code) {
        (true, code) => Err(format!("the guest told of no measurement (exit code {code})")),
        (false, 0) => Ok(told),
        (false, code) => {
            println!("the guest ended before its time (exit code {code})");
            Ok(told)
        }
    }
}

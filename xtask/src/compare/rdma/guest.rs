//! The rounds, by this program itself inside of the guest: each cell by every system in turn, again
//! and again. A line of JSON on standard output tells of each measurement.
//!
//! Both sides are started anew for each: Mooncake's workers poll without end, and soft-RoCE works
//! on the CPU that is left.

use std::path::Path;
use std::time::Duration;

use clap::Args;
use serde_json::{Value, json};

use super::super::plan::{Caches, Cell, cells};
use super::side::Side;
use super::system::{BUFFER_BYTES, System, Task};
use crate::shell::Shell;

/// Starting takes a second or two in a guest, ten on a busy host.
const START_LIMIT: Duration = Duration::from_secs(40);
/// Beyond its own seconds: an initiator's start, connection and last batch.
const END_LIMIT: Duration = Duration::from_secs(60);
/// A target that is about to be ready registers its memory, and no word tells when it has.
const SETTLE: Duration = Duration::from_millis(1500);

/// What is measured. Both the host, which asks, and the guest know it.
#[derive(Args, Clone)]
pub struct Plan {
    #[arg(long)]
    pub rounds: usize,
    #[arg(long)]
    pub seconds: f64,
    #[arg(long, value_delimiter = ',')]
    pub sizes: Vec<u64>,
    #[arg(long, value_delimiter = ',')]
    pub batches: Vec<u64>,
    /// The systems that take part.
    #[arg(long, value_delimiter = ',')]
    pub systems: Vec<String>,
}

impl Plan {
    /// The words that `cargo xtask rdma-rounds` takes.
    pub fn words(&self) -> Vec<String> {
        let list =
            |numbers: &[u64]| numbers.iter().map(u64::to_string).collect::<Vec<_>>().join(",");
        vec![
            format!("--rounds={}", self.rounds),
            format!("--seconds={}", self.seconds),
            format!("--sizes={}", list(&self.sizes)),
            format!("--batches={}", list(&self.batches)),
            format!("--systems={}", self.systems.join(",")),
        ]
    }

    pub fn cells(&self) -> Vec<Cell> {
        let mut cells = cells(&self.sizes, &self.batches, Caches::Hot);
        cells.retain(|cell| cell.block_bytes * cell.batch <= BUFFER_BYTES);
        cells
    }

    fn takes_part(&self, system: System) -> bool {
        self.systems.iter().any(|word| word == system.word())
    }
}

/// Runs the rounds.
pub fn rounds(plan: &Plan) -> Result<(), String> {
    let shell = Shell::new()?;
    let logs = tempfile::tempdir().map_err(|error| format!("a folder for logs: {error}"))?;
    for round in 0..plan.rounds {
        for cell in plan.cells() {
            for system in System::ALL.into_iter().filter(|&system| plan.takes_part(system)) {
                let task = Task { cell, seconds: plan.seconds };
                println!(
                    "{}",
                    line(round, task, system, measure(&shell, logs.path(), task, system))
                );
            }
        }
    }
    Ok(())
}

fn measure(shell: &Shell, logs: &Path, task: Task, system: System) -> Result<f64, String> {
    let mut target = Side::start(system.command(shell, task, None)?, &logs.join("target"))?;
    let segment = target
        .wait_for(START_LIMIT, |said| system.segment(said))
        .map_err(|error| format!("target: {error}"))?;
    std::thread::sleep(SETTLE);
    let command = system.command(shell, task, Some(&segment))?;
    let mut initiator = Side::start(command, &logs.join("initiator"))?;
    let said = initiator.finish(END_LIMIT + Duration::from_secs_f64(task.seconds))?;
    let figure = system.megabytes_per_second(&said, task.cell);
    figure.filter(|figure| *figure > 0.0).ok_or_else(|| "it told no throughput".to_owned())
}

/// Of one measurement.
#[derive(Clone, PartialEq, Debug)]
pub struct Told {
    pub round: usize,
    pub cell: String,
    pub system: String,
    pub result: Result<f64, String>,
}

fn line(round: usize, task: Task, system: System, result: Result<f64, String>) -> Value {
    let (cell, system) = (task.cell.name(), system.word());
    match result {
        Ok(rate) => {
            json!({"round": round, "cell": cell, "system": system, "megabytes_per_second": rate})
        }
        Err(error) => json!({"round": round, "cell": cell, "system": system, "error": error}),
    }
}

/// What a line of the guest's tells; nothing, if it is none of them.
pub fn told(line: &str) -> Option<Told> {
    let line = crate::process::json(line)?;
    let word = |name: &str| line[name].as_str().map(str::to_owned);
    let result = match word("error") {
        Some(error) => Err(error),
        None => Ok(line["megabytes_per_second"].as_f64()?),
    };
    let round = usize::try_from(line["round"].as_u64()?).ok()?;
    Some(Told { round, cell: word("cell")?, system: word("system")?, result })
}

#[cfg(test)]
mod tests {
    use super::*;

    const CELL: Cell =
        Cell { operation: "read", block_bytes: 65536, batch: 16, walk: 1, trace: None };

    #[test]
    fn what_the_guest_tells_is_what_the_host_hears() {
        let task = Task { cell: CELL, seconds: 1.0 };
        for result in [Ok(41.5), Err("no \"device\"".to_owned())] {
            let heard = told(&line(3, task, System::Kvrail, result.clone()).to_string());
            let (cell, system) = ("read 64K b16".to_owned(), "kvrail".to_owned());
            assert_eq!(heard, Some(Told { round: 3, cell, system, result }));
        }
        assert_eq!(told("warning: {}"), None);
        assert_eq!(told(r#"{"round": 1, "cell": "x", "system": "y"}"#), None);
    }

    #[test]
    fn batches_fit_into_the_buffers() {
        let plan = Plan {
            rounds: 5,
            seconds: 2.5,
            sizes: vec![65536, 8 << 20],
            batches: vec![1, 16],
            systems: vec!["kvrail".into()],
        };
        let names: Vec<_> = plan.cells().iter().map(Cell::name).collect();
        assert_eq!(names[..3], ["write 64K b1", "write 64K b16", "write 8M b1"]);
        assert_eq!(names.len(), 6);
        assert_eq!(plan.words()[2], "--sizes=65536,8388608");
        assert!(plan.takes_part(System::Kvrail) && !plan.takes_part(System::Perftest));
    }
}

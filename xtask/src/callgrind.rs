//! Programs under callgrind, which counts the instructions of every thread. They say where a phase
//! begins, and do a thing a number of times in one phase and twice as often in the next; so the
//! start, and what a phase itself costs, cancel.

use std::fs;
use std::path::Path;

use crate::shell::{Shell, find, shown};

/// Callgrind dumps, and counts anew, where this function of the program is entered.
const PHASE: &str = "*begin_phase*";

/// What was done, and the instructions that it takes to do it once; in the program's order.
pub type Counted = Vec<(String, f64)>;

/// Sees to it that valgrind is there.
pub fn install(shell: &Shell) -> Result<(), String> {
    match find("valgrind") {
        Some(_) => Ok(()),
        None => shell.apt(&["valgrind"], "counting instructions"),
    }
}

/// Runs a program, which does everything `count` times and then twice as often.
pub fn count(shell: &Shell, program: &Path, count: u32) -> Result<Counted, String> {
    let dumps = tempfile::tempdir().map_err(|error| format!("a folder for dumps: {error}"))?;
    let out = dumps.path().join("dump");
    let mut valgrind = shell.command("valgrind");
    valgrind.args(["--quiet", "--tool=callgrind", &format!("--dump-before={PHASE}")]);
    valgrind.arg(format!("--callgrind-out-file={}", out.display()));
    valgrind.arg(program).arg(count.to_string());
    println!("$ {}", shown(&valgrind));
    let output = valgrind.output().map_err(|error| format!("valgrind: {error}"))?;
    let said = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        return Err(format!("valgrind: {}", String::from_utf8_lossy(&output.stderr)));
    }
    // The first dump is of the time before the first phase, the second of that phase.
    let totals = (2..).map_while(|number| total(&out.with_extension(number.to_string())));
    Ok(once(said.lines().zip(totals)))
}

/// The instructions of one dump.
fn total(dump: &Path) -> Option<u64> {
    let text = fs::read_to_string(dump).ok()?;
    text.lines().rev().find_map(|line| line.strip_prefix("totals: ")?.parse().ok())
}

/// From the phases' names and instructions: what `tcp write 16 1000` has more than its neighbour
/// with 500.
fn once<'a>(phases: impl Iterator<Item = (&'a str, u64)>) -> Counted {
    let counted = phases.map(|(name, total)| {
        let (name, count) = name.rsplit_once(' ')?;
        Some((name, count.parse::<f64>().ok()?, total as f64))
    });
    let counted: Vec<_> = counted.collect();
    let pairs = counted.windows(2).filter_map(|pair| match *pair {
        [Some((one, few, cheap)), Some((other, many, dear))] if one == other => {
            Some((one.to_owned(), (dear - cheap) / (many - few)))
        }
        _ => None,
    });
    pairs.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_start_and_what_a_phase_costs_cancel() {
        let phases = [
            ("warm up", 9_000),
            ("tcp read 1 fresh 10", 107),
            ("tcp read 1 fresh 20", 207),
            ("warm up", 8_000),
            ("tcp read 16 prepared 10", 50),
            ("tcp read 16 prepared 20", 75),
            ("end", 1),
        ];
        let named = [("tcp read 1 fresh", 10.0), ("tcp read 16 prepared", 2.5)];
        assert_eq!(once(phases.into_iter()), named.map(|(name, price)| (name.to_owned(), price)));
    }
}

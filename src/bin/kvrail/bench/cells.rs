//! Many measurements in one process, as their asker goes along: a line in, a line out.

use std::io::{BufRead, Write};

use clap::ValueEnum;
use kvrail::{Error, Result};
use serde_json::json;

use super::replay::Schedule;
use super::run::Run;
use super::{Operation, Options, differs, replay, seconds};
use crate::report::Report;
use crate::size;

/// The line that asks for one more look at the data.
const VERIFY: &str = "verify";
/// What lines begin with that ask for a trace, and for a look at the bytes it left.
const REPLAY: &str = "replay";
const VERIFY_REPLAY: &str = "verify-replay";

/// Answers every line of standard input until it ends, after one look at the data itself where
/// `--verify` asks for it. A line that can't be carried out gets an `error` that says why, and the
/// next one is read.
pub(super) fn answer(mut run: Run) -> Result<()> {
    if run.options.verify {
        run.check()?;
        if run.verify()? == Some(false) {
            return Err(differs());
        }
    }
    println!("{}", json!({"ready": true, "path": run.path()}));
    for line in std::io::stdin().lock().lines() {
        let line = line.map_err(|error| Error::lost("standard input").with_source(error))?;
        let found = match line.trim() {
            VERIFY => look(&run),
            line => match line.split_once(' ') {
                Some((REPLAY, schedule)) => replayed(&mut run, schedule, replay::measure),
                Some((VERIFY_REPLAY, schedule)) => replayed(&mut run, schedule, replay::verify),
                _ => measure(&mut run, line),
            },
        };
        let answer = found.unwrap_or_else(|error| json!({"error": error}).to_string());
        let told = writeln!(std::io::stdout(), "{answer}");
        told.map_err(|error| Error::lost("standard output").with_source(error))?;
    }
    Ok(())
}

/// Writes and reads back what the last cell transferred, or what the options name.
fn look(run: &Run) -> Result<String, String> {
    match run.check().and_then(|()| run.verify()) {
        Ok(Some(verified)) => Ok(json!({"verified": verified}).to_string()),
        Ok(None) => Err("start the bench with --verify".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

fn replayed(
    run: &mut Run,
    schedule: &str,
    play: fn(&mut Run, &Schedule) -> Result<Report>,
) -> Result<String, String> {
    let report = play(run, &replay::read(schedule)?).map_err(|error| error.to_string())?;
    match report.verified {
        Some(false) => Err(differs().to_string()),
        _ => Ok(report.json()),
    }
}

fn measure(run: &mut Run, cell: &str) -> Result<String, String> {
    run.options = read(cell, &run.options)?;
    let report = run.check().and_then(|()| run.measure());
    report.map(|report| report.json()).map_err(|error| error.to_string())
}

/// `write 64K 16 0.5`, or `write 64K 16 0.5 100` to walk over 100 batches: what to measure;
/// everything else stays as it was.
fn read(line: &str, options: &Options) -> Result<Options, String> {
    let words: Vec<_> = line.split_whitespace().collect();
    let (operation, block, batch, time, walk) = match words[..] {
        [operation, block, batch, time] => (operation, block, batch, time, "1"),
        [operation, block, batch, time, walk] => (operation, block, batch, time, walk),
        _ => return Err(format!("{line:?} is not OPERATION BLOCK BATCH SECONDS WALK")),
    };
    let number = |word: &str| word.parse().map_err(|_| format!("{word:?} is not a number"));
    Ok(Options {
        operation: Operation::from_str(operation, true)?,
        block_size: size::parse(block)?,
        batch_size: number(batch)?,
        walk: number(walk)?,
        duration: seconds(time)?,
        ..options.clone()
    })
}

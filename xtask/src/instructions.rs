//! The instructions of hot functions, by callgrind, beside those of benches/instructions.md, which
//! is the record: what takes more than that and a margin fails, until somebody writes the record
//! anew and says in the commit what the rise is for. Falls are written when somebody does.
//!
//! A count is a matter of the compiler, of libc and of what valgrind makes of the CPU, so the
//! record names them, and where others are at work nothing is compared. It is a matter of the
//! checkout's folder, too: symbols' hashes hold it. By the profile `count` a crate is one unit, not
//! several that are cut by those hashes, and 20 of 21 functions count the same wherever they are
//! built; the other one, a flight's, differed by 8.5 % between two checkouts of the same source. So
//! this is no step of `test`: compare where the record was written.

use std::fs;
use std::path::PathBuf;
use std::process::Stdio;

use clap::Args;

use crate::callgrind::{self, Counted};
use crate::compare::said;
use crate::proof;
use crate::shell::{Shell, shown};
use crate::steps::Outcome;

const PROGRAM: &str = "instructions";
const RECORD: &str = "benches/instructions.md";
/// What the program takes; the others would only be built for nothing.
const FEATURES: &str = "rdma,sim";

/// A rise that needs no reason, in percent. Counts themselves differ by less than 0.1 from run to
/// run.
const MARGIN_PERCENT: f64 = 3.0;

/// Calls of a phase: phases themselves differ by some hundred instructions, and the cheapest
/// function takes nine.
const CALLS: u32 = 1_000;

/// What to do with the counts.
#[derive(Args)]
pub struct Options {
    /// Write them to benches/instructions.md; say why in the commit.
    #[arg(long)]
    write: bool,
}

/// Counts, and compares with the record or writes it.
pub fn instructions(options: &Options) -> Result<(), String> {
    let shell = Shell::new()?;
    if !options.write {
        println!("{}", check(&shell)?);
        return Ok(());
    }
    let now = count(&shell)?;
    let text = Record { makers: makers(&shell), counts: now }.text();
    fs::write(shell.root.join(RECORD), &text).map_err(|error| format!("{RECORD}: {error}"))?;
    print!("{text}");
    Ok(())
}

/// Compares with the record.
fn check(shell: &Shell) -> Outcome {
    let text = fs::read_to_string(shell.root.join(RECORD));
    let record = Record::read(&text.map_err(|error| format!("{RECORD}: {error}"))?);
    let (now, makers) = (count(shell)?, makers(shell));
    print!("{}", table(&record.counts, &now));
    if record.makers != makers {
        println!("\n  The record is of other makers, SO NOTHING WAS COMPARED:");
        println!("  record: {}\n  here:   {makers}", record.makers);
        println!("  `cargo xtask instructions --write` makes it anew.\n");
        return Ok("NOT COMPARED, other makers: see above".into());
    }
    let wrong = findings(&record.counts, &now);
    match wrong.is_empty() {
        true => Ok(format!("{} functions, none over its record by {MARGIN_PERCENT} %", now.len())),
        false => Err(format!(
            "{}: make it cheaper, or `cargo xtask instructions --write` and say why in the commit",
            wrong.join("; ")
        )),
    }
}

fn count(shell: &Shell) -> Result<Counted, String> {
    callgrind::install(shell)?;
    callgrind::count(shell, &build(shell)?, CALLS)
}

/// Builds the program; answers where it is. The compiler takes the target's oldest CPU unless flags
/// of the user's say otherwise, so those stay out.
fn build(shell: &Shell) -> Result<PathBuf, String> {
    let build = format!(
        "build --locked --package kvrail --profile count --features {FEATURES} \
         --message-format json --bench {PROGRAM}"
    );
    let mut command = shell.cargo(&build);
    command.env_remove("RUSTFLAGS").env_remove("CARGO_ENCODED_RUSTFLAGS");
    command.stderr(Stdio::inherit());
    println!("$ {}", shown(&command));
    let output = command.output().map_err(|error| format!("cargo build: {error}"))?;
    let found = proof::executable(&String::from_utf8_lossy(&output.stdout), PROGRAM);
    found.filter(|_| output.status.success()).ok_or(format!("benches/{PROGRAM}: not built"))
}

/// What counts depend on beside the sources.
fn makers(shell: &Shell) -> String {
    let rustc = said(shell.command("rustc").arg("--version"));
    let libc = said(shell.command("ldd").arg("--version"));
    let libc = libc.rsplit(' ').next().unwrap_or_default().to_owned();
    let valgrind = said(shell.command("valgrind").arg("--version"));
    format!("{rustc}, {}, glibc {libc}, {valgrind}, {FEATURES}", std::env::consts::ARCH)
}

/// benches/instructions.md.
#[derive(Debug, Default, PartialEq)]
struct Record {
    makers: String,
    counts: Counted,
}

/// Stands before the makers; what follows is a table.
const MAKERS: &str = "Counted with ";

impl Record {
    fn text(&self) -> String {
        let mut text = format!(
            "# Instructions of hot functions\n\n\
             One call each, by callgrind. `cargo xtask {PROGRAM}` counts again and\n\
             fails where a function takes {MARGIN_PERCENT} % more than here.\n\
             `cargo xtask {PROGRAM} --write` writes this file; the commit that does so says what\n\
             each rise is for. The functions are in `src/hot.rs` and `benches/{PROGRAM}.rs`.\n\n\
             {MAKERS}{}.\n\n\
             | function | instructions |\n| --- | ---: |\n",
            self.makers
        );
        let rows = self.counts.iter().map(|(name, count)| format!("| {name} | {count:.0} |\n"));
        rows.for_each(|row| text += &row);
        text
    }

    fn read(text: &str) -> Self {
        let makers = text.lines().find_map(|line| line.strip_prefix(MAKERS)?.strip_suffix('.'));
        let row = |line: &str| {
            let (name, count) = line.strip_prefix("| ")?.strip_suffix(" |")?.split_once(" | ")?;
            Some((name.to_owned(), count.parse().ok()?))
        };
        let counts = text.lines().filter_map(row).collect();
        Self { makers: makers.unwrap_or_default().to_owned(), counts }
    }
}

fn of(counts: &Counted, name: &str) -> Option<f64> {
    counts.iter().find(|(known, _)| known == name).map(|(_, count)| *count)
}

fn table(record: &Counted, now: &Counted) -> String {
    let heads = ["instructions a call", "record", "now"];
    let mut text = format!("\n{:<42}{:>10}{:>10}\n", heads[0], heads[1], heads[2]);
    for (name, now) in now {
        text += &match of(record, name) {
            Some(record) => {
                let change = percent(record, *now);
                format!("{name:<42}{record:>10.0}{now:>10.0}{change:>+8.1} %\n")
            }
            None => format!("{name:<42}{:>10}{now:>10.0}\n", "-"),
        };
    }
    text
}

fn percent(record: f64, now: f64) -> f64 {
    (now / record - 1.0) * 100.0
}

/// What the record does not allow, each in a few words.
fn findings(record: &Counted, now: &Counted) -> Vec<String> {
    let dear = now.iter().filter_map(|(name, now)| match of(record, name) {
        Some(record) if percent(record, *now) > MARGIN_PERCENT => {
            Some(format!("{name} takes {:+.1} %", percent(record, *now)))
        }
        Some(_) => None,
        None => Some(format!("{name} is not in {RECORD}")),
    });
    let gone = record.iter().filter(|(name, _)| of(now, name).is_none());
    dear.chain(gone.map(|(name, _)| format!("{name} was not counted"))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(counts: &[(&str, f64)]) -> Counted {
        counts.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect()
    }

    #[test]
    fn what_was_written_is_read() {
        let counts = counts(&[("plan 10,000 pages", 1_234_567.0), ("tcp: header", 30.0)]);
        let record = Record { makers: "rustc 1.95.0, x86_64, tls,sim".to_owned(), counts };
        assert_eq!(Record::read(&record.text()), record);
    }

    #[test]
    fn a_rise_is_found_and_so_is_what_only_one_side_has() {
        let record = counts(&[("a", 1000.0), ("b", 1000.0), ("c", 1000.0), ("gone", 1.0)]);
        let now = counts(&[("a", 1029.0), ("b", 1031.0), ("c", 1.0), ("new", 1.0)]);
        let found = ["b takes +3.1 %", "new is not in benches/instructions.md"];
        assert_eq!(findings(&record, &now)[..2], found);
        assert_eq!(findings(&record, &now)[2..], ["gone was not counted"]);
        assert!(table(&record, &now).contains("1031    +3.1 %"));
    }

    #[test]
    fn the_record_in_the_repository_names_its_makers_and_functions() {
        let record = Record::read(include_str!("../../benches/instructions.md"));
        assert!(record.makers.starts_with("rustc ") && record.counts.len() > 1);
    }
}

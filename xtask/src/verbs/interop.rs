//! The exchange: two programs, each at a soft-RoCE NIC of a guest, write and read each other's
//! memory, and every byte is compared.
//!
//! - `side`: a program that speaks the lines of tests/interop/agent.py, which is Mooncake's side
//! - `agents`: two of them
//! - `bench`: one of them, and `kvrail bench`

mod agents;
mod bench;
mod side;

use std::fs;
use std::path::{Path, PathBuf};

use clap::Args;

use crate::mooncake::{SOFT_ROCE, WHEELS};
use crate::shell::{Shell, own_program, quoted, run};
use crate::steps::Outcome;
use crate::vm::{Job, Machine, prepare};

/// The patterns that memory is full of at first, and what is sent.
const TARGETS: u8 = 1;
const INITIATORS: u8 = 2;
const SENT: u8 = 3;
/// Ten times what a pair takes on a machine with two busy cores.
const LIMIT_PER_PAIR_S: u64 = 240;
/// Of each side's log, when something went wrong.
const LINES_SHOWN: usize = 25;

/// Who meets Mooncake's wheel, from either side; without either, the wheel meets itself.
#[derive(Args, Clone)]
pub struct Options {
    /// A program, as a line for the shell, that speaks the lines of tests/interop/agent.py.
    #[arg(long, value_name = "LINE")]
    agent: Option<String>,
    /// The program kvrail, built with the feature rdma, by its `bench`.
    #[arg(long, value_name = "PROGRAM")]
    kvrail: Option<PathBuf>,
    /// Here, in the guest, and not in a guest of its own.
    #[arg(long, hide = true)]
    inside: bool,
}

impl Options {
    /// This program of ours meets Mooncake's.
    pub fn with_kvrail(kvrail: PathBuf) -> Self {
        Self { agent: None, kvrail: Some(kvrail), inside: false }
    }
}

/// The command line, as users run it.
pub fn release(shell: &Shell) -> Result<PathBuf, String> {
    run(&mut shell.cargo("build --release --locked -p kvrail --bin kvrail --features rdma"))?;
    Ok(crate::compare::release().join("kvrail"))
}

/// A meeting: what it is called, and what makes it happen, with a folder for logs, and answers how
/// many packets it took.
type Meeting<'a> = (&'a str, Box<dyn Fn(&Path) -> Result<u64, String> + 'a>);

/// Installs the wheel, boots a guest and has the programs meet in it.
pub fn exchange(shell: &Shell, options: &Options) -> Outcome {
    let theirs = mooncake(shell);
    let meetings = meetings(options, &theirs);
    if options.inside {
        return inside(&meetings);
    }
    WHEELS[0].install(shell)?;
    let machine = Machine { nics: 2, ..Machine::default() };
    let limit_s = LIMIT_PER_PAIR_S * meetings.len() as u64;
    let job = Job { command: command(options)?, limit_s, keep: false };
    match prepare(shell, None)?.run(&machine, &job)?.code {
        0 => Ok(format!("{} pairs over soft-RoCE", meetings.len())),
        code => Err(format!("exit code {code}: see above")),
    }
}

/// The same exchange, as the guest is told of it.
fn command(options: &Options) -> Result<String, String> {
    let mut words = vec![own_program()?, "rdma-exchange".to_owned()];
    words.push("--inside".to_owned());
    words.extend(options.agent.iter().map(|line| format!("--agent={line}")));
    let kvrail = options.kvrail.iter().map(|path| format!("--kvrail={}", path.display()));
    words.extend(kvrail);
    Ok(words.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" "))
}

/// The line that starts Mooncake's side.
fn mooncake(shell: &Shell) -> String {
    let agent = shell.root.join("tests/interop/agent.py");
    let words = [WHEELS[0].python(shell), agent];
    let set = SOFT_ROCE.map(|(name, value)| format!("{name}={value}"));
    let words = words.map(|word| quoted(&word.to_string_lossy()));
    format!("env {} {}", set.join(" "), words.join(" "))
}

fn meetings<'a>(options: &'a Options, theirs: &'a str) -> Vec<Meeting<'a>> {
    let mut meetings: Vec<Meeting<'a>> = Vec::new();
    if let Some(ours) = &options.agent {
        meetings.push(("our agent to Mooncake", Box::new(|logs| agents::meet(theirs, ours, logs))));
        meetings.push(("Mooncake to our agent", Box::new(|logs| agents::meet(ours, theirs, logs))));
    }
    if let Some(kvrail) = &options.kvrail {
        meetings.push((
            "our bench to Mooncake",
            Box::new(|logs| bench::to_mooncake(kvrail, theirs, logs)),
        ));
        meetings.push((
            "Mooncake to our bench",
            Box::new(|logs| bench::from_mooncake(kvrail, theirs, logs)),
        ));
    }
    if meetings.is_empty() {
        meetings
            .push(("Mooncake to Mooncake", Box::new(|logs| agents::meet(theirs, theirs, logs))));
    }
    meetings
}

/// All of them, in turn: one that fails doesn't keep the others from trying.
fn inside(meetings: &[Meeting]) -> Outcome {
    let mut failed = Vec::new();
    for (name, meet) in meetings {
        let logs = tempfile::tempdir().map_err(|error| format!("a folder for logs: {error}"))?;
        match meet(logs.path()) {
            Ok(packets) => println!("{name}: every byte is right, {packets} packets"),
            Err(why) => {
                println!("{name}: {why}");
                show_ends(logs.path());
                failed.push(*name);
            }
        }
    }
    match failed.is_empty() {
        true => Ok(format!("{} pairs", meetings.len())),
        false => Err(format!("failed: {}", failed.join(", "))),
    }
}

/// The last lines of all logs: the guest takes the rest with it.
fn show_ends(logs: &Path) {
    for entry in fs::read_dir(logs).into_iter().flatten().flatten() {
        let text = fs::read(entry.path()).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<_> = text.lines().collect();
        let tail = &lines[lines.len().saturating_sub(LINES_SHOWN)..];
        println!("--- end of the {}'s log\n{}", entry.file_name().display(), tail.join("\n"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ours_meet_mooncake_from_either_side() {
        let shell = Shell::new().unwrap();
        let theirs = mooncake(&shell);
        assert!(theirs.starts_with("env MC_GID_INDEX=1 MC_WORKERS_PER_CTX=1 '"), "{theirs}");
        assert!(theirs.ends_with("tests/interop/agent.py'"), "{theirs}");
        let mut options = Options { agent: None, kvrail: None, inside: false };
        let names = |options: &Options| {
            let meetings = meetings(options, &theirs);
            meetings.iter().map(|meeting| meeting.0.to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(names(&options), ["Mooncake to Mooncake"]);
        options.agent = Some("ours --gid 1".to_owned());
        options.kvrail = Some("kvrail".into());
        assert_eq!(names(&options).len(), 4);
        let line = command(&options).unwrap();
        assert!(line.ends_with("'--inside' '--agent=ours --gid 1' '--kvrail=kvrail'"), "{line}");
    }
}

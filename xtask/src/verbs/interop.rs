//! The exchange: two programs, each at a soft-RoCE NIC of a guest, write and read each other's
//! memory, and every byte is compared. Both speak the lines of tests/interop/agent.py, which is
//! Mooncake's side; a program of ours that speaks them too takes either side.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use clap::Args;
use serde_json::{Value, json};

use crate::mooncake::{SOFT_ROCE, WHEELS};
use crate::process::{Process, json as answer};
use crate::shell::{Shell, quoted};
use crate::steps::Outcome;
use crate::vm::nics::{MTU_BYTES, NICS, Nic, packets_received};
use crate::vm::{Job, Machine, prepare};

/// Of each side's memory: more than its transport carries in one slice.
const LENGTH: u64 = 4 << 20;
/// Of one large transfer, at odd places: what is left around it must stay as it was.
const ODD: (u64, u64) = (77, 3_000_003);
/// Requests of a batch; each lands in the opposite order.
const PIECES: u64 = 32;
/// What memory is full of at first, and what is sent.
const TARGETS: u8 = 1;
const INITIATORS: u8 = 2;
const SENT: u8 = 3;

/// A Python process imports the wheel in ten seconds in a guest, and Mooncake gives a transfer up
/// after thirty: its verdict comes first.
const PATIENCE: Duration = Duration::from_secs(60);
/// Ten times what a pair takes on a machine with two busy cores.
const LIMIT_PER_PAIR_S: u64 = 240;

/// Which programs meet.
#[derive(Args, Clone)]
pub struct Options {
    /// A program, as a line for the shell, that speaks the lines of tests/interop/agent.py; it
    /// meets Mooncake's wheel from either side. Without one, the wheel meets itself.
    #[arg(long, value_name = "LINE")]
    program: Option<String>,
    /// Here, in the guest, and not in a guest of its own.
    #[arg(long, hide = true)]
    inside: bool,
}

/// Who meets whom: names for people, and lines for the shell.
struct Pair {
    name: &'static str,
    target: String,
    initiator: String,
}

/// Installs the wheel, boots a guest and has the programs meet in it.
pub fn exchange(shell: &Shell, options: &Options) -> Outcome {
    let pairs = pairs(shell, options.program.as_deref());
    if options.inside {
        return inside(&pairs);
    }
    WHEELS[0].install(shell)?;
    let own = std::env::current_exe().map_err(|error| format!("our own program: {error}"))?;
    let mut command = format!("{} rdma-exchange --inside", quoted(&own.to_string_lossy()));
    if let Some(program) = &options.program {
        command += &format!(" --program={}", quoted(program));
    }
    let machine = Machine { nics: 2, ..Machine::default() };
    let job = Job { command, limit_s: LIMIT_PER_PAIR_S * pairs.len() as u64, keep: false };
    match prepare(shell, None)?.run(&machine, &job)?.code {
        0 => Ok(format!("{} pairs over soft-RoCE", pairs.len())),
        code => Err(format!("exit code {code}: see above")),
    }
}

fn pairs(shell: &Shell, program: Option<&str>) -> Vec<Pair> {
    let pair = |name, target: &str, initiator: &str| Pair {
        name,
        target: target.to_owned(),
        initiator: initiator.to_owned(),
    };
    let theirs = mooncake(shell);
    match program {
        None => vec![pair("Mooncake to Mooncake", &theirs, &theirs)],
        Some(ours) => {
            vec![pair("ours to Mooncake", &theirs, ours), pair("Mooncake to ours", ours, &theirs)]
        }
    }
}

/// The line that starts Mooncake's side.
fn mooncake(shell: &Shell) -> String {
    let agent = shell.root.join("tests/interop/agent.py");
    let words = [WHEELS[0].python(shell), agent];
    let set = SOFT_ROCE.map(|(name, value)| format!("{name}={value}"));
    let words = words.map(|word| quoted(&word.to_string_lossy()));
    format!("env {} {}", set.join(" "), words.join(" "))
}

/// All pairs, in turn: one that fails doesn't keep the others from trying.
fn inside(pairs: &[Pair]) -> Outcome {
    let mut failed = Vec::new();
    for pair in pairs {
        match pair.meet() {
            Ok(packets) => println!("{}: every byte is right, {packets} packets", pair.name),
            Err(why) => {
                println!("{}: {why}", pair.name);
                failed.push(pair.name);
            }
        }
    }
    match failed.is_empty() {
        true => Ok(format!("{} pairs", pairs.len())),
        false => Err(failed.join(", ")),
    }
}

impl Pair {
    /// Answers how many packets it took.
    fn meet(&self) -> Result<u64, String> {
        let logs = tempfile::tempdir().map_err(|error| format!("a folder for logs: {error}"))?;
        let side = |line, nic, name: &str, seed| {
            let side = Side::start(line, nic, &logs.path().join(name), seed);
            side.map_err(|error| format!("the {name}: {error}"))
        };
        let mut target = side(&self.target, &NICS[0], "target", TARGETS)?;
        let mut initiator = side(&self.initiator, &NICS[1], "initiator", INITIATORS)?;
        let packets = [
            counted(&NICS[1], LENGTH, || read(&mut initiator, &target))?,
            counted(&NICS[0], ODD.1, || write(&mut initiator, &mut target))?,
            counted(&NICS[0], LENGTH, || write_batch(&mut initiator, &mut target))?,
            counted(&NICS[1], LENGTH, || read_batch(&mut initiator, &mut target))?,
        ];
        initiator.ask(json!({"do": "close"}))?;
        target.ask(json!({"do": "close"}))?;
        Ok(packets.iter().sum())
    }
}

/// Whatever it does brings so many bytes to a NIC: answers the packets.
fn counted(
    nic: &Nic,
    bytes: u64,
    transfer: impl FnOnce() -> Result<(), String>,
) -> Result<u64, String> {
    let before = packets_received(nic)?;
    transfer()?;
    let packets = packets_received(nic)? - before;
    let needed = bytes / MTU_BYTES;
    match packets >= needed {
        true => Ok(packets),
        false => Err(format!("{} received {packets} packets, not {needed}", nic.device)),
    }
}

/// All of the target's memory, as it was at first.
fn read(initiator: &mut Side, target: &Side) -> Result<(), String> {
    initiator.transfer("read", target, 0, LENGTH)?;
    initiator.expect(TARGETS, 0, 0, LENGTH)
}

/// A part at odd places, and nothing around it.
fn write(initiator: &mut Side, target: &mut Side) -> Result<(), String> {
    let (offset, length) = ODD;
    initiator.ask(json!({"do": "fill", "seed": SENT, "length": LENGTH}))?;
    initiator.transfer("write", target, offset, length)?;
    let end = offset + length;
    target.expect(TARGETS, 0, 0, offset)?;
    target.expect(SENT, offset, offset, length)?;
    target.expect(TARGETS, end, end, LENGTH - end)
}

/// Pieces of the initiator's memory, each in the opposite place.
fn write_batch(initiator: &mut Side, target: &mut Side) -> Result<(), String> {
    initiator.ask(json!({"do": "fill", "seed": INITIATORS, "length": LENGTH}))?;
    initiator.batch("batch_write", target)?;
    pieces().try_for_each(|(here, there)| target.expect(INITIATORS, here, there, PIECE))
}

fn read_batch(initiator: &mut Side, target: &mut Side) -> Result<(), String> {
    target.ask(json!({"do": "fill", "seed": SENT, "length": LENGTH}))?;
    initiator.batch("batch_read", target)?;
    pieces().try_for_each(|(here, there)| initiator.expect(SENT, there, here, PIECE))
}

const PIECE: u64 = LENGTH / PIECES;

/// Where each piece is at the initiator, and at the target.
fn pieces() -> impl Iterator<Item = (u64, u64)> {
    (0..PIECES).map(|k| (k * PIECE, (PIECES - 1 - k) * PIECE))
}

/// One program, its engine and its memory.
struct Side {
    process: Process,
    /// What its peer calls it.
    name: String,
    base: u64,
}

impl Side {
    /// Starts an engine at a NIC, and registers memory full of a pattern.
    fn start(line: &str, nic: &Nic, log: &Path, seed: u8) -> Result<Self, String> {
        let mut command = Command::new("sh");
        command.args(["-c", &format!("exec {line}")]);
        let process = Process::start(command, log)?;
        let mut side = Self { process, name: String::new(), base: 0 };
        let init = json!({
            "do": "init", "host": nic.address, "protocol": "rdma", "device": nic.device
        });
        let started = side.ask(init)?;
        side.name = started["name"].as_str().ok_or("init told no name")?.to_owned();
        let memory = side.ask(json!({"do": "register", "length": LENGTH, "seed": seed}))?;
        side.base = memory["addr"].as_u64().ok_or("register told no address")?;
        Ok(side)
    }

    fn ask(&mut self, request: Value) -> Result<Value, String> {
        let asked = |error: String| format!("{request}: {error}");
        self.process.tell(&request.to_string()).map_err(asked)?;
        let mut answer = self.process.wait_for(PATIENCE, answer).map_err(asked)?;
        match answer.get("error") {
            Some(error) => Err(asked(error.to_string())),
            None => Ok(answer["ok"].take()),
        }
    }

    /// A request whose answer is Mooncake's code, of which 0 is success.
    fn succeed(&mut self, request: Value) -> Result<(), String> {
        let shown = format!("{} of {}", request["do"], request["length"]);
        match self.ask(request)? {
            code if code == 0 => Ok(()),
            code => Err(format!("{shown}: code {code}")),
        }
    }

    /// At the same place of both memories.
    fn transfer(&mut self, what: &str, to: &Self, at: u64, length: u64) -> Result<(), String> {
        self.succeed(json!({
            "do": what, "peer": to.name, "remote": to.base + at, "offset": at, "length": length
        }))
    }

    fn batch(&mut self, what: &str, to: &Self) -> Result<(), String> {
        let requests: Vec<_> =
            pieces().map(|(here, there)| json!([here, to.base + there, PIECE])).collect();
        self.succeed(json!({"do": what, "peer": to.name, "requests": requests}))
    }

    /// Its memory from `at` on is the pattern from `skip` on.
    fn expect(&mut self, seed: u8, skip: u64, at: u64, length: u64) -> Result<(), String> {
        let compare = json!({
            "do": "compare", "seed": seed, "skip": skip, "offset": at, "length": length
        });
        match self.ask(compare)? {
            Value::Null => Ok(()),
            wrong => Err(format!("{}: byte {wrong} is not pattern {seed}'s", self.name)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_meets_mooncake_from_either_side() {
        let shell = Shell::new().unwrap();
        let both = pairs(&shell, Some("ours --gid-index 1"));
        assert_eq!((both.len(), both[0].initiator.as_str()), (2, "ours --gid-index 1"));
        assert_eq!(both[1].target, both[0].initiator);
        let theirs = &both[0].target;
        assert!(theirs.starts_with("env MC_GID_INDEX=1 MC_WORKERS_PER_CTX=1 '"), "{theirs}");
        assert!(theirs.ends_with("tests/interop/agent.py'"), "{theirs}");
        assert_eq!(pairs(&shell, None).len(), 1);
    }

    /// An agent that answers each request with the next of these lines.
    fn side(answers: &[&str]) -> (Result<Side, String>, tempfile::TempDir) {
        let folder = tempfile::tempdir().unwrap();
        let lines = answers.iter().map(|answer| format!("read line; echo '{answer}';"));
        let line = format!("sh -c {}", quoted(&lines.collect::<String>()));
        (Side::start(&line, &NICS[0], &folder.path().join("log"), 1), folder)
    }

    #[test]
    fn what_goes_wrong_is_told() {
        let started = [r#"{"ok": {"name": "a:1", "port": 1}}"#, r#"{"ok": {"addr": 4096}}"#];
        let rest = [r#"{"ok": 7}"#, r#"{"ok": null}"#, r#"{"ok": -1}"#, r#"{"error": "no"}"#];
        let (side, _folder) = side(&[&started[..], &rest[..]].concat());
        let mut side = side.unwrap();
        assert_eq!((side.name.as_str(), side.base), ("a:1", 4096));
        assert_eq!(side.expect(1, 0, 0, 8).unwrap_err(), "a:1: byte 7 is not pattern 1's");
        assert_eq!(side.expect(1, 0, 0, 8), Ok(()));
        let failed = side.succeed(json!({"do": "read", "length": 5})).unwrap_err();
        assert_eq!(failed, "\"read\" of 5: code -1");
        assert!(side.ask(json!({"do": "fill"})).unwrap_err().ends_with("\"no\""));
        assert!(side.ask(json!({"do": "fill"})).unwrap_err().contains("ended"));
    }
}

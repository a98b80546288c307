//! One side of an exchange: a program that speaks the lines of tests/interop/agent.py, at a NIC.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};

use crate::process::{Process, json as answer};
use crate::vm::nics::{MTU_BYTES, Nic, packets_received};

/// Of each side's memory: more than its transport carries in one slice.
pub const LENGTH: u64 = 4 << 20;
/// Requests of a batch; each lands in the opposite order.
const PIECES: u64 = 32;
/// Bytes of each.
pub const PIECE: u64 = LENGTH / PIECES;
/// A Python process imports the wheel in ten seconds in a guest, and Mooncake gives a transfer up
/// after thirty: its verdict comes first.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// One program, its engine and its memory.
pub struct Side {
    process: Process,
    pub memory: Memory,
}

/// Where bytes are written to and read from.
pub struct Memory {
    /// What a peer calls the engine that has it.
    pub engine: String,
    pub base: u64,
}

impl Side {
    /// Starts an engine at a NIC, and registers memory full of a pattern.
    pub fn start(line: &str, nic: &Nic, log: &Path, seed: u8) -> Result<Self, String> {
        let mut command = Command::new("sh");
        command.args(["-c", &format!("exec {line}")]);
        let process = Process::start(command, log)?;
        let memory = Memory { engine: String::new(), base: 0 };
        let mut side = Self { process, memory };
        let init = json!({
            "do": "init", "host": nic.address, "protocol": "rdma", "device": nic.device
        });
        let started = side.ask(init)?;
        side.memory.engine = started["name"].as_str().ok_or("init told no name")?.to_owned();
        let memory = side.ask(json!({"do": "register", "length": LENGTH, "seed": seed}))?;
        side.memory.base = memory["addr"].as_u64().ok_or("register told no address")?;
        Ok(side)
    }

    pub fn ask(&mut self, request: Value) -> Result<Value, String> {
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
    pub fn transfer(
        &mut self,
        what: &str,
        to: &Memory,
        at: u64,
        length: u64,
    ) -> Result<(), String> {
        self.succeed(json!({
            "do": what, "peer": to.engine, "remote": to.base + at, "offset": at, "length": length
        }))
    }

    pub fn batch(&mut self, what: &str, to: &Memory) -> Result<(), String> {
        let requests: Vec<_> =
            pieces().map(|(here, there)| json!([here, to.base + there, PIECE])).collect();
        self.succeed(json!({"do": what, "peer": to.engine, "requests": requests}))
    }

    /// All of its memory becomes this pattern.
    pub fn fill(&mut self, seed: u8) -> Result<(), String> {
        self.ask(json!({"do": "fill", "seed": seed, "length": LENGTH})).map(drop)
    }

    /// Its memory from `at` on is the pattern from `skip` on.
    pub fn expect(&mut self, seed: u8, skip: u64, at: u64, length: u64) -> Result<(), String> {
        let compare = json!({
            "do": "compare", "seed": seed, "skip": skip, "offset": at, "length": length
        });
        match self.ask(compare)? {
            Value::Null => Ok(()),
            wrong => Err(format!("{}: byte {wrong} is not pattern {seed}'s", self.memory.engine)),
        }
    }
}

/// Where each piece is at the initiator, and at the target.
pub fn pieces() -> impl Iterator<Item = (u64, u64)> {
    (0..PIECES).map(|k| (k * PIECE, (PIECES - 1 - k) * PIECE))
}

/// Whatever it does brings so many bytes to a NIC: answers the packets.
pub fn counted(
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shell::quoted;
    use crate::vm::nics::NICS;

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
        assert_eq!((side.memory.engine.as_str(), side.memory.base), ("a:1", 4096));
        assert_eq!(side.expect(1, 0, 0, 8).unwrap_err(), "a:1: byte 7 is not pattern 1's");
        assert_eq!(side.expect(1, 0, 0, 8), Ok(()));
        let failed = side.succeed(json!({"do": "read", "length": 5})).unwrap_err();
        assert_eq!(failed, "\"read\" of 5: code -1");
        assert!(side.ask(json!({"do": "fill"})).unwrap_err().ends_with("\"no\""));
        assert!(side.ask(json!({"do": "fill"})).unwrap_err().contains("ended"));
    }
}

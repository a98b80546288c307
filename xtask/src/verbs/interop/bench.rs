//! `kvrail bench` and Mooncake's engine: the bench writes what it reads back, or serves memory that
//! the engine writes, reads back and compares.

use std::path::Path;

use serde_json::json;

use super::side::{LENGTH, Memory, PATIENCE, PIECE, Side, counted, pieces};
use super::{INITIATORS, SENT, TARGETS};
use crate::compare::rdma::{Cell, Program, Task, bench};
use crate::process;
use crate::vm::nics::NICS;

/// What the bench transfers: a batch of it is a quarter of the target's memory.
const BLOCK_BYTES: u64 = 64 << 10;
const BATCH: u64 = 16;

fn task(operation: &'static str) -> Task {
    let cell = Cell { operation, block_bytes: BLOCK_BYTES, batch: BATCH, walk: 1, trace: None };
    Task { cell, seconds: 1.0 }
}

/// Our initiator at Mooncake's engine. Answers the packets.
pub fn to_mooncake(kvrail: &Path, mooncake: &str, logs: &Path) -> Result<u64, String> {
    let mut target = Side::start(mooncake, &NICS[0], &logs.join("target"), TARGETS)?;
    let mut packets = 0;
    for operation in ["write", "read"] {
        let mut command = bench(kvrail, task(operation), &NICS[1], Some(&target.memory.engine));
        command.arg("--verify");
        packets += counted(&NICS[0], BATCH * BLOCK_BYTES, || {
            let said = Program::start(command, &logs.join("initiator"))?.finish(PATIENCE)?;
            let report = said.lines().find_map(process::json).ok_or("the bench told nothing")?;
            match report["verified"] == json!(true) {
                true => Ok(()),
                false => Err(format!("not verified: {report}")),
            }
        })?;
    }
    let end = BATCH * BLOCK_BYTES;
    target.expect(TARGETS, end, end, LENGTH - end)?;
    target.ask(json!({"do": "close"}))?;
    Ok(packets)
}

/// Mooncake's engine at our target. Answers the packets.
pub fn from_mooncake(kvrail: &Path, mooncake: &str, logs: &Path) -> Result<u64, String> {
    let command = bench(kvrail, task("write"), &NICS[0], None);
    let mut target = Program::start(command, &logs.join("target"))?;
    let named = |said: &str| {
        let mut names = said.lines().filter_map(|line| line.strip_prefix("segment "));
        names.next().map(|name| name.trim().to_owned())
    };
    let engine = target.wait_for(PATIENCE, named)?;
    let mut theirs = Side::start(mooncake, &NICS[1], &logs.join("initiator"), INITIATORS)?;
    let base = theirs.ask(json!({"do": "first_buffer_address", "peer": engine}))?;
    let memory = Memory { engine, base: base.as_u64().ok_or("no buffer in our descriptor")? };
    let packets = [
        counted(&NICS[0], LENGTH, || theirs.transfer("write", &memory, 0, LENGTH))?,
        counted(&NICS[1], LENGTH, || read_back(&mut theirs, &memory))?,
        counted(&NICS[0], LENGTH, || batches(&mut theirs, &memory))?,
    ];
    theirs.ask(json!({"do": "close"}))?;
    Ok(packets.iter().sum())
}

/// What was written is what is read, over memory that was made different meanwhile.
fn read_back(theirs: &mut Side, memory: &Memory) -> Result<(), String> {
    theirs.fill(SENT)?;
    theirs.transfer("read", memory, 0, LENGTH)?;
    theirs.expect(INITIATORS, 0, 0, LENGTH)
}

/// Written piece by piece to the opposite places, and read as a whole; then back into place.
fn batches(theirs: &mut Side, memory: &Memory) -> Result<(), String> {
    theirs.fill(SENT)?;
    theirs.batch("batch_write", memory)?;
    theirs.fill(INITIATORS)?;
    theirs.transfer("read", memory, 0, LENGTH)?;
    pieces().try_for_each(|(here, there)| theirs.expect(SENT, here, there, PIECE))?;
    theirs.batch("batch_read", memory)?;
    theirs.expect(SENT, 0, 0, LENGTH)
}

//! Two programs that both speak the lines of tests/interop/agent.py.

use std::path::Path;

use serde_json::json;

use super::side::{LENGTH, PIECE, Side, counted, pieces};
use super::{INITIATORS, SENT, TARGETS};
use crate::vm::nics::NICS;

/// Of one large transfer, at odd places: what is left around it must stay as it was.
const ODD: (u64, u64) = (77, 3_000_003);

/// Answers how many packets it took.
pub fn meet(target: &str, initiator: &str, logs: &Path) -> Result<u64, String> {
    let side = |line: &str, nic, name: &str, seed| {
        let side = Side::start(line, nic, &logs.join(name), seed);
        side.map_err(|error| format!("the {name}: {error}"))
    };
    let mut target = side(target, &NICS[0], "target", TARGETS)?;
    let mut initiator = side(initiator, &NICS[1], "initiator", INITIATORS)?;
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

/// All of the target's memory, as it was at first.
fn read(initiator: &mut Side, target: &Side) -> Result<(), String> {
    initiator.transfer("read", &target.memory, 0, LENGTH)?;
    initiator.expect(TARGETS, 0, 0, LENGTH)
}

/// A part at odd places, and nothing around it.
fn write(initiator: &mut Side, target: &mut Side) -> Result<(), String> {
    let (offset, length) = ODD;
    initiator.fill(SENT)?;
    initiator.transfer("write", &target.memory, offset, length)?;
    let end = offset + length;
    target.expect(TARGETS, 0, 0, offset)?;
    target.expect(SENT, offset, offset, length)?;
    target.expect(TARGETS, end, end, LENGTH - end)
}

/// Pieces of the initiator's memory, each in the opposite place.
fn write_batch(initiator: &mut Side, target: &mut Side) -> Result<(), String> {
    initiator.fill(INITIATORS)?;
    initiator.batch("batch_write", &target.memory)?;
    pieces().try_for_each(|(here, there)| target.expect(INITIATORS, here, there, PIECE))
}

fn read_batch(initiator: &mut Side, target: &mut Side) -> Result<(), String> {
    target.fill(SENT)?;
    initiator.batch("batch_read", &target.memory)?;
    pieces().try_for_each(|(here, there)| initiator.expect(SENT, there, here, PIECE))
}

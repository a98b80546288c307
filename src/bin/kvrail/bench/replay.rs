//! A trace of requests, each moved when it arrives, one after the other: what a decode process sees
//! of a busy prefill.

use std::time::{Duration, Instant};

use futures_lite::future::block_on;
use kvrail::Result;

use super::run::{Run, Work, new_histogram};
use super::{Operation, Options};
use crate::report::Report;
use crate::size;

/// What a line asks for.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Schedule {
    block_bytes: usize,
    requests: Vec<Request>,
}

#[derive(Debug, PartialEq, Eq)]
struct Request {
    arrival: Duration,
    blocks: usize,
}

/// Reads `BLOCK MS:BLOCKS,MS:BLOCKS,...`, in the order of arrival.
pub(super) fn read(words: &str) -> Result<Schedule, String> {
    let wrong = || "a trace is BLOCK MS:BLOCKS,MS:BLOCKS,...".to_owned();
    let (block, requests) = words.trim().split_once(' ').ok_or_else(wrong)?;
    let requests = requests.split(',').map(|request| {
        let (ms, blocks) = request.split_once(':')?;
        let arrival = Duration::from_millis(ms.parse().ok()?);
        Some(Request { arrival, blocks: blocks.parse().ok()? })
    });
    let requests = requests.collect::<Option<_>>().ok_or_else(wrong)?;
    Ok(Schedule { block_bytes: size::parse(block)?, requests })
}

/// Moves all of it by one caller, through the whole buffer again and again. A request's time begins
/// with its arrival, whoever was before it.
pub(super) fn measure(run: &mut Run, schedule: &Schedule) -> Result<Report> {
    lay_out(run, schedule)?;
    // The report counts blocks: requests have several.
    Ok(Report { batch: 1, ..run.reported(|| play(run, schedule))? })
}

/// The same, after it was played once to see whether the buffer there holds what was written.
pub(super) fn verify(run: &mut Run, schedule: &Schedule) -> Result<Report> {
    lay_out(run, schedule)?;
    let is_equal = run.verify_by(0, || play(run, schedule).map(drop))?;
    Ok(Report { verified: Some(is_equal), ..measure(run, schedule)? })
}

/// As many blocks as the buffer holds, or as there are.
fn lay_out(run: &mut Run, schedule: &Schedule) -> Result<()> {
    let blocks: usize = schedule.requests.iter().map(|request| request.blocks).sum();
    let slots = run.options.buffer_size / schedule.block_bytes.max(1);
    run.options = Options {
        operation: Operation::Write,
        block_size: schedule.block_bytes,
        batch_size: slots.min(blocks),
        threads: 1,
        walk: 1,
        pages: None,
        ..run.options.clone()
    };
    run.check()
}

fn play(run: &Run, schedule: &Schedule) -> Result<Work> {
    let slots = run.options.batch_size;
    let (started, mut slot, mut latency) = (Instant::now(), 0, new_histogram()?);
    for request in &schedule.requests {
        std::thread::sleep(request.arrival.saturating_sub(started.elapsed()));
        let mut left = request.blocks;
        while left > 0 {
            let some = left.min(slots - slot);
            block_on(run.engine.post(&run.prepare_slots(slot..slot + some)?))?;
            (slot, left) = ((slot + some) % slots, left - some);
        }
        let took = started.elapsed().saturating_sub(request.arrival);
        latency.saturating_record(took.as_nanos() as u64);
    }
    let blocks: usize = schedule.requests.iter().map(|request| request.blocks).sum();
    Ok(Work { batches: blocks as u64, elapsed: started.elapsed(), latency })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedules_are_read_and_nonsense_is_told() {
        let request = |ms, blocks| Request { arrival: Duration::from_millis(ms), blocks };
        let requests = vec![request(0, 3), request(3000, 1)];
        assert_eq!(read("4K 0:3,3000:1"), Ok(Schedule { block_bytes: 4096, requests }));
        for wrong in ["", "4K", "4K 0:3,", "4K 3", "x 0:3"] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }
}

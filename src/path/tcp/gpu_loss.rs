//! A GPU that did not give or take a connection's bytes: the connection ends, since part of a
//! request may be out, and those requests fail that the GPU owes bytes of. The others go on
//! elsewhere.

use std::io;

use kvrail_reactors::cuda::Failure;
use kvrail_reactors::region::Slice;
use kvrail_reactors::stream::{Direction, gpu_failure};
use kvrail_reactors::vector::Vector;

use super::client::{Action, Request};
use crate::Landed;

#[derive(Debug, Clone)]
pub(super) struct GpuLoss {
    pub(super) failure: Failure,
    direction: Direction,
    /// Of a send: what did not go out of its writes, in bytes, oldest first. Nothing was sent
    /// behind them.
    unsent_bytes: Vec<usize>,
}

impl GpuLoss {
    /// Of an operation that ended so, with this left of its vector.
    pub(super) fn of(error: &io::Error, direction: Direction, vector: &Vector) -> Option<Self> {
        let failure = gpu_failure(error)?.clone();
        let unsent_bytes = vector.memory().map(Slice::len).collect();
        Some(Self { failure, direction, unsent_bytes })
    }

    /// Whether the GPU owes bytes of this request, and then what of it has landed. To be asked of
    /// each that is unanswered, the youngest first.
    pub(super) fn owes(&mut self, request: &Request) -> Option<Landed> {
        let is_on_gpu = |slice: &Slice| slice.region().device().is_some();
        match (&request.action, self.direction) {
            (Action::Write(slice), Direction::Send) if !slice.is_empty() => {
                let left = self.unsent_bytes.pop()?;
                let landed = if left == slice.len() { Landed::No } else { Landed::Maybe };
                is_on_gpu(slice).then_some(landed)
            }
            (Action::Read(slice), Direction::Receive) => is_on_gpu(slice).then_some(Landed::Maybe),
            _ => None,
        }
    }
}

//! Which cells are measured, for how long: pure.

use super::contender::Shape;
use super::trace::{self, Trace};
use crate::size;

/// Bytes of memory on each side. A batch fits into it: 16 requests of 16 MiB, 128 of 1 MiB.
pub const BUFFER_BYTES: u64 = 256 << 20;

/// One shape, measured by all contenders in turn.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Cell {
    pub operation: &'static str,
    pub block_bytes: u64,
    /// Requests of a batch.
    pub batch: u64,
    /// Batches, behind each other in memory, that take turns.
    pub walk: u64,
    /// Requests that arrive by themselves, in place of batches one after the other.
    pub trace: Option<&'static Trace>,
}

/// Where the bytes are when they are asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum Caches {
    /// The same batch again and again.
    Hot,
    /// Batch after batch through the whole buffer, or as far as handles for all of them go.
    Cold,
}

/// 16 MiB of batches of one 4 KiB block, several times the second-level caches of today; and so
/// many prepared batches cost each contender tens of milliseconds to make.
const WALK_MAX: u64 = 4096;

impl Cell {
    /// `read 64K b16`, as tables call it; `read 64K b16 cold` where batches take turns.
    pub fn name(&self) -> String {
        let block = size::show(self.block_bytes as usize);
        if self.trace.is_some() {
            return format!("{} {block}", self.operation);
        }
        let cold = if self.walk > 1 { " cold" } else { "" };
        format!("{} {block} b{}{cold}", self.operation, self.batch)
    }

    /// The trace's first seconds as a cell of its own; it lasts as long as this program.
    pub fn of_trace(trace: Trace) -> Self {
        let trace = Some(&*Box::leak(Box::new(trace)));
        Self { operation: "replay", block_bytes: trace::BLOCK_BYTES, batch: 1, walk: 1, trace }
    }

    /// The line with which it warms up: a trace's first bytes are looked at.
    pub fn first_line(&self, pace: Pace) -> String {
        let verify = if self.trace.is_some() { "verify-" } else { "" };
        format!("{verify}{}", self.line(pace.warm_up_s))
    }

    /// Seconds that it is measured for.
    pub fn measure_s(&self, pace: Pace) -> f64 {
        if self.trace.is_some() { pace.trace_s } else { pace.measure_s }
    }

    /// The line that asks for it.
    pub fn line(&self, seconds: f64) -> String {
        let Self { operation, block_bytes, batch, walk, trace } = self;
        if let Some(trace) = trace {
            return format!("replay {}", trace.words(seconds));
        }
        format!("{operation} {block_bytes} {batch} {seconds} {walk}")
    }
}

/// Every operation, size and batch that fits into the buffers.
pub fn cells(sizes: &[u64], batches: &[u64], caches: Caches) -> Vec<Cell> {
    let mut cells = Vec::new();
    for operation in ["write", "read"] {
        for &block_bytes in sizes {
            let fitting = batches.iter().filter_map(|&batch| {
                let bytes = block_bytes.checked_mul(batch).filter(|&bytes| bytes > 0)?;
                let walk = match caches {
                    Caches::Hot => BUFFER_BYTES.min(bytes) / bytes,
                    Caches::Cold => (BUFFER_BYTES / bytes).min(WALK_MAX),
                };
                (walk > 0).then_some(Cell { operation, block_bytes, batch, walk, trace: None })
            });
            cells.extend(fitting);
        }
    }
    cells
}

/// Both operations on these shapes.
pub fn shapes_cells(shapes: &[Shape]) -> Vec<Cell> {
    let cell = |operation| {
        let of = move |&Shape { block_bytes, batch, walk }| Cell {
            operation,
            block_bytes,
            batch,
            walk,
            trace: None,
        };
        shapes.iter().map(of)
    };
    ["write", "read"].into_iter().flat_map(cell).collect()
}

/// How long one contender gets for one cell in one round.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Pace {
    /// Connections wake up and caches fill before it counts.
    pub warm_up_s: f64,
    pub measure_s: f64,
    /// Of a trace, which has its own pace.
    pub trace_s: f64,
    /// How often a figure that others disturbed is taken again.
    pub retries: usize,
}

/// Half a second, hundreds of batches of most shapes.
pub const FULL: Pace = Pace { warm_up_s: 0.1, measure_s: 0.5, trace_s: 60.0, retries: 2 };
/// All workloads in five minutes.
pub const QUICK: Pace = Pace { warm_up_s: 0.03, measure_s: 0.08, trace_s: 10.0, retries: 0 };
/// What starting, stopping, asking and long batches add to a measurement, in the mean.
const OVERHEAD_S: f64 = 0.06;

impl Pace {
    /// Seconds for so many measurements.
    pub fn estimate_s(&self, measurements: usize) -> f64 {
        measurements as f64 * (self.warm_up_s + self.measure_s + OVERHEAD_S)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_are_the_product_of_what_was_asked_and_fit_into_the_buffers() {
        let cells = cells(&[4096, 16 << 20], &[1, 16, 128], Caches::Hot);
        let names: Vec<_> = cells.iter().map(Cell::name).collect();
        let wanted = ["4K b1", "4K b16", "4K b128", "16M b1", "16M b16"];
        let both =
            ["write", "read"].map(|operation| wanted.map(|one| format!("{operation} {one}")));
        assert_eq!(names, both.concat());
        assert!(super::cells(&[u64::MAX], &[2], Caches::Cold).is_empty());
    }

    #[test]
    fn cold_cells_walk_through_the_buffers() {
        let cells = cells(&[4096, 1 << 20], &[1, 128], Caches::Cold);
        let walks: Vec<_> = cells.iter().take(4).map(|cell| cell.walk).collect();
        assert_eq!(walks, [4096, 512, 256, 2]);
        assert_eq!(cells[0].name(), "write 4K b1 cold");
    }

    #[test]
    fn shapes_of_workloads_fit_into_the_buffers() {
        let shapes = super::super::contender::WORKLOADS.iter().flat_map(|one| one.shapes);
        for Shape { block_bytes, batch, walk } in shapes {
            assert!(block_bytes * batch * walk <= BUFFER_BYTES, "{block_bytes} b{batch} x {walk}");
        }
    }

    #[test]
    fn a_cell_is_asked_for_in_the_words_of_the_drivers() {
        let cell = Cell { operation: "read", block_bytes: 65536, batch: 16, walk: 3, trace: None };
        assert_eq!(cell.line(0.5), "read 65536 16 0.5 3");
    }

    #[test]
    fn the_quick_pace_takes_five_minutes_for_everything() {
        let cells = cells(&[4 << 10, 64 << 10, 1 << 20, 16 << 20], &[1, 16], Caches::Hot).len();
        let figures = super::super::contender::WORKLOADS.iter().map(|one| {
            let own = shapes_cells(one.shapes).len();
            one.contenders.len() * if own > 0 { own } else { cells }
        });
        let seconds = QUICK.estimate_s(figures.sum::<usize>() * 5);
        assert!(seconds < 300.0, "{seconds}");
    }
}

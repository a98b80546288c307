//! Which cells are measured, for how long: pure.

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
}

impl Cell {
    /// `read 64K b16`, as tables call it.
    pub fn name(&self) -> String {
        format!("{} {} b{}", self.operation, size::show(self.block_bytes as usize), self.batch)
    }

    /// The line that asks for it.
    pub fn line(&self, seconds: f64) -> String {
        format!("{} {} {} {seconds}", self.operation, self.block_bytes, self.batch)
    }
}

/// Every operation, size and batch that fits into the buffers.
pub fn cells(sizes: &[u64], batches: &[u64]) -> Vec<Cell> {
    let mut cells = Vec::new();
    for operation in ["write", "read"] {
        for &block_bytes in sizes {
            let fitting = batches.iter().filter(|&&batch| {
                block_bytes.checked_mul(batch).is_some_and(|bytes| bytes <= BUFFER_BYTES)
            });
            cells.extend(fitting.map(|&batch| Cell { operation, block_bytes, batch }));
        }
    }
    cells
}

/// How long one contender gets for one cell in one round.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Pace {
    /// Connections wake up and caches fill before it counts.
    pub warm_up_s: f64,
    pub measure_s: f64,
    /// How often a figure that others disturbed is taken again.
    pub retries: usize,
}

/// Half a second, hundreds of batches of most shapes.
pub const FULL: Pace = Pace { warm_up_s: 0.1, measure_s: 0.5, retries: 2 };
/// All workloads in five minutes.
pub const QUICK: Pace = Pace { warm_up_s: 0.05, measure_s: 0.2, retries: 0 };
/// What starting, stopping and asking add to a measurement.
const OVERHEAD_S: f64 = 0.02;

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
        let cells = cells(&[4096, 16 << 20], &[1, 16, 128]);
        let names: Vec<_> = cells.iter().map(Cell::name).collect();
        let wanted = ["4K b1", "4K b16", "4K b128", "16M b1", "16M b16"];
        let both =
            ["write", "read"].map(|operation| wanted.map(|one| format!("{operation} {one}")));
        assert_eq!(names, both.concat());
        assert!(super::cells(&[u64::MAX], &[2]).is_empty());
    }

    #[test]
    fn a_cell_is_asked_for_in_the_words_of_the_drivers() {
        let cell = Cell { operation: "read", block_bytes: 65536, batch: 16 };
        assert_eq!(cell.line(0.5), "read 65536 16 0.5");
    }

    #[test]
    fn the_quick_pace_takes_five_minutes_for_everything() {
        let cells = cells(&[4 << 10, 64 << 10, 1 << 20, 16 << 20], &[1, 16]).len();
        let contenders = super::super::contender::WORKLOADS.iter().map(|one| one.contenders.len());
        let seconds = QUICK.estimate_s(cells * contenders.sum::<usize>() * 5);
        assert!(seconds < 300.0, "{seconds}");
    }
}

//! Measures a GPU's crossovers: the same copies by the engine and by the kernel, on memory taken
//! for the purpose. Once for each GPU and way, when memory there is first taken or reached, which
//! costs as much anyway; never by a thread that moves others' bytes.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::crossover::{Crossover, Measured, Timed, Way};
use super::driver::{Driver, Failure};
use super::memory::DeviceMemory;
use super::pages::Pages;
use super::plan::{Range, Ranges};
use super::reactor::{Cuda, Group};
use crate::Reactor;
use crate::doorbell::Doorbell;
use crate::region::Region;

/// Ranges that are timed: their length, and how many go one behind the other, as in a batch, which
/// is where the engine loses time with short ones. Factors of 4 tell a crossover well enough: from
/// one to the next the better one wins by a third.
const LENGTHS: [(usize, usize); 5] =
    [(64 << 10, 4), (256 << 10, 4), (1 << 20, 4), (4 << 20, 4), (BENCH_BYTES, 1)];

/// Bytes of either end.
const BENCH_BYTES: usize = 16 << 20;

/// How many short ranges are timed, and their length: a base page's, the shortest that KV caches
/// are moved by.
const COUNTS: [usize; 4] = [1, 2, 3, 4];
const COUNTED_BYTES: usize = 4096;

/// Times that each is done. Of five two may go wrong; and there are fewer where the bus is slow: no
/// round is begun behind this time.
const ROUNDS_MAX: usize = 5;
const BUDGET: Duration = Duration::from_millis(8);

/// The GPU may have others' work to do first: so long each of the copies is waited for. By itself
/// one takes 1.5 ms at most, over a PCIe 3.0 bus.
const PATIENCE: Duration = Duration::from_millis(200);

/// A GPU with less than that free is left alone: others may be about to take it.
const FREE_MIN_BYTES: u64 = 8 * BENCH_BYTES as u64;

/// Memory of a device is about to be taken, or used, in this process: measures what that makes
/// possible and nobody has measured yet.
pub fn use_vram(driver: &Arc<dyn Driver>, device: u32) -> Vec<Measured> {
    let known = driver.crossovers();
    if !known.begin_use(device) {
        return Vec::new();
    }
    let near = || vram(driver, device);
    let within = || Bench::new(driver, device, near()?, near()?)?.run();
    let from_host = || Bench::new(driver, device, host(driver)?, near()?)?.run();
    let mut measured = Vec::new();
    measured.extend(known.measure(device, Way::SameGpu, within));
    measured.extend(known.measure(device, Way::Host, from_host));
    for other in known.used_beside(device) {
        for (copier, far) in [(device, other), (other, device)] {
            let from_far =
                || Bench::new(driver, copier, vram(driver, far)?, vram(driver, copier)?)?.run();
            if reaches(driver, copier, far) {
                measured.extend(known.measure(copier, Way::OtherGpu, from_far));
            }
        }
    }
    measured
}

/// A peer's memory is mapped here, and will be read from: measures the way to it, unless that is
/// known. The peer's bytes are read, never written.
pub fn reach_vram(source: &Arc<Region>) -> Vec<Measured> {
    // Else no length were told from the next, and a longer one may come.
    let Some(memory) = source.device().filter(|_| source.len() >= BENCH_BYTES) else {
        return Vec::new();
    };
    let (driver, held) = (memory.driver(), memory.device());
    let known = driver.crossovers();
    let way_to = |target: u32| {
        // As copies are made: by the target's device, unless only the source's reaches both.
        let copier = if memory.is_reached_by(target) { target } else { held };
        let measure = || Bench::new(driver, copier, source.clone(), vram(driver, target)?)?.run();
        let is_reached = copier == target || reaches(driver, copier, target);
        is_reached.then(|| known.measure(copier, Way::OtherGpu, measure)).flatten()
    };
    known.used_beside(held).into_iter().filter_map(way_to).collect()
}

fn reaches(driver: &Arc<dyn Driver>, device: u32, other: u32) -> bool {
    let facts = driver.devices().get(device as usize);
    facts.is_some_and(|facts| facts.reaches.contains(&other))
}

/// An end on a device.
fn vram(driver: &Arc<dyn Driver>, device: u32) -> Result<Arc<Region>, Failure> {
    let no = |why: &str| Failure::refused("calibrate", why);
    if driver.free_bytes(device)? < FREE_MIN_BYTES {
        return Err(no("the GPU has little memory free"));
    }
    let memory = DeviceMemory::allocate(driver.clone(), device, BENCH_BYTES)?;
    let region = Region::on_device(memory, BENCH_BYTES);
    region.map(Arc::new).ok_or_else(|| no("the driver gave no memory"))
}

/// An end in host memory.
fn host(driver: &Arc<dyn Driver>) -> Result<Arc<Region>, Failure> {
    let region = Region::allocate(BENCH_BYTES, None);
    let region = region.map_err(|error| Failure::refused("calibrate", error.to_string()))?;
    region.reach(driver)?;
    Ok(Arc::new(region))
}

/// One way of one device.
struct Bench {
    cuda: Cuda,
    copier: (Arc<dyn Driver>, u32),
    from: Arc<Region>,
    to: Arc<Region>,
}

/// The same copies, by either.
struct Copies {
    timed: Timed,
    engine: Arc<Pages>,
    kernel: Arc<Pages>,
}

impl Bench {
    fn new(
        driver: &Arc<dyn Driver>,
        device: u32,
        from: Arc<Region>,
        to: Arc<Region>,
    ) -> Result<Self, Failure> {
        let doorbell = Doorbell::new();
        let doorbell =
            doorbell.map_err(|error| Failure::refused("calibrate", error.to_string()))?;
        let cuda = Cuda::new(1, Arc::new(doorbell));
        Ok(Self { cuda, copier: (driver.clone(), device), from, to })
    }

    fn run(mut self) -> Result<Crossover, Failure> {
        let found = self.measure();
        if !self.cuda.is_idle() {
            // Both ends are held until the GPU is done, which others' work may keep it from. Where
            // there is no thread to be had it is waited for here.
            let name = "kvrail-calibrate".to_owned();
            let _waits = std::thread::Builder::new().name(name).spawn(move || drop(self));
        }
        found
    }

    fn measure(&mut self) -> Result<Crossover, Failure> {
        let of_length = |(len, count): (usize, usize)| self.copies(len, len, count);
        let mut lengths = LENGTHS.map(of_length);
        let mut counts = COUNTS.map(|count| self.copies(count, COUNTED_BYTES, count));
        // The first launch loads the kernel, the first copy wakes the engine.
        for copies in &mut counts {
            self.time(copies)?;
            copies.timed = Timed { size: copies.timed.size, ..Timed::default() };
        }
        let start = Instant::now();
        for round in 0..ROUNDS_MAX {
            if round > 0 && start.elapsed() > BUDGET {
                break;
            }
            lengths.iter_mut().chain(&mut counts).try_for_each(|copies| self.time(copies))?;
        }
        Ok(Crossover::of(&lengths.map(|copies| copies.timed), &counts.map(|copies| copies.timed)))
    }

    /// So many ranges of a length, told apart from others by `size`.
    fn copies(&self, size: usize, len: usize, count: usize) -> Copies {
        let engines = Crossover { engine_min_bytes: 0, engine_max_ranges: usize::MAX };
        let kernels = Crossover { engine_min_bytes: usize::MAX, engine_max_ranges: 0 };
        let by = |crossover| {
            let mut ranges = Ranges::with_room(count);
            ranges.change_way(crossover);
            for at in (0..count).map(|k| (k * len) as u64) {
                // Neighbours, which are to stay apart.
                ranges.change_regions();
                ranges.push(Range { from: self.from.addr() + at, to: self.to.addr() + at, len });
            }
            let regions = vec![self.from.clone(), self.to.clone()];
            Arc::new(Pages::planned(self.copier.clone(), regions, &ranges))
        };
        let timed = Timed { size, ..Timed::default() };
        Copies { timed, engine: by(engines), kernel: by(kernels) }
    }

    fn time(&mut self, copies: &mut Copies) -> Result<(), Failure> {
        copies.timed.engine.push(self.make(&copies.engine)?);
        copies.timed.kernel.push(self.make(&copies.kernel)?);
        Ok(())
    }

    /// How long these take from their launch to the sight of their end.
    fn make(&mut self, pages: &Arc<Pages>) -> Result<Duration, Failure> {
        let busy = |_| Failure::refused("calibrate", "others are under way");
        let (start, mut done) = (Instant::now(), Vec::with_capacity(1));
        self.cuda.submit(Group { tag: 0, pages: pages.clone() }).map_err(busy)?;
        while start.elapsed() < PATIENCE {
            self.cuda.poll(1, &mut done);
            if let Some(ended) = done.pop() {
                return ended.error.map_or(Ok(start.elapsed()), Err);
            }
            std::hint::spin_loop();
        }
        Err(Failure::refused("calibrate", "the GPU is busy with others' work"))
    }
}

#[cfg(all(test, feature = "sim"))]
mod tests;

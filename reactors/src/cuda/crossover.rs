//! Pure: from where on a range is the copy engine's and no longer the kernel's. That depends on the
//! GPU and on what lies between it and the memory, so it is told from timings; and it is kept for
//! each GPU that copies and each kind of way.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use super::driver::Failure;

/// What the copy engine is better at than the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Crossover {
    /// From this length on a range is the copy engine's.
    pub engine_min_bytes: usize,
    /// As many ranges are not worth a kernel.
    pub engine_max_ranges: usize,
}

impl Default for Crossover {
    /// What holds where nothing was measured. Between two H200s the copy engine does 214 GB/s for
    /// ranges of 1 MiB, one behind the other, and the kernel of 16 blocks 310; for 4 MiB 326 and
    /// 320, for 16 MiB 368. Between two H100s the kernel takes 10.4 us from launch to end for up to
    /// 16 pages of 4 KiB; the copy engine takes 10.5 us for one, 16.9 for two, 23.7 for three.
    fn default() -> Self {
        Self { engine_min_bytes: 4 << 20, engine_max_ranges: 1 }
    }
}

/// What lies between a GPU that copies and the memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// Nothing: both ends are on it.
    SameGpu,
    /// A link to another GPU, which has an end.
    OtherGpu,
    /// The bus to the host's memory, where an end is.
    Host,
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::SameGpu => "within the GPU",
            Self::OtherGpu => "to another GPU",
            Self::Host => "to host memory",
        })
    }
}

/// The least length that may be the copy engine's, and the shortest that is timed: shorter ranges
/// are what the kernel is for.
pub const ENGINE_MIN_BYTES_LEAST: usize = 64 << 10;

/// From this length on ranges are the copy engine's in any case: as many as a launch takes are
/// 25 GiB already, whose end a region that is taken back waits for.
pub const ENGINE_MIN_BYTES_MOST: usize = 16 << 20;

/// As many ranges may be the copy engine's at most: each costs it 6.5 us behind the first.
pub const ENGINE_MAX_RANGES_MOST: usize = 4;

/// The engine wins though it takes longer by this part: timings of the same copy differ by as much,
/// and it takes no multiprocessors.
const TIE_PART: u32 = 16;

/// The same copies by either, several times.
#[derive(Debug, Clone, Default)]
pub struct Timed {
    /// Bytes of each range, or how many ranges, whichever is what differs.
    pub size: usize,
    /// How long the copy engine took each time.
    pub engine: Vec<Duration>,
    /// How long the kernel took each time.
    pub kernel: Vec<Duration>,
}

impl Timed {
    /// By medians, which one that was held up does not move.
    fn is_engine_s(&self) -> bool {
        match (median(&self.engine), median(&self.kernel)) {
            (Some(engine), Some(kernel)) => engine <= kernel + kernel / TIE_PART,
            _ => false,
        }
    }
}

/// The lower one, of an even number.
fn median(times: &[Duration]) -> Option<Duration> {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    sorted.get(sorted.len().checked_sub(1)? / 2).copied()
}

impl Crossover {
    /// What timings tell: of ranges of several lengths, and of few short ones by their count.
    ///
    /// A length is the engine's where it wins at it and at all longer ones, a count where it wins
    /// at it and at all lower ones: so one timing that went wrong makes no hole.
    pub fn of(lengths: &[Timed], counts: &[Timed]) -> Self {
        let sorted = |timed: &[Timed]| {
            let mut sizes: Vec<_> =
                timed.iter().map(|timed| (timed.size, timed.is_engine_s())).collect();
            sizes.sort_unstable();
            sizes
        };
        let longest_first = sorted(lengths).into_iter().rev();
        let won = longest_first.take_while(|(_, is_won)| *is_won).last();
        let fewest_first = sorted(counts).into_iter();
        let most = fewest_first.take_while(|(_, is_won)| *is_won).last();
        let engine_min_bytes = won
            .map_or(ENGINE_MIN_BYTES_MOST, |(bytes, _)| bytes)
            .clamp(ENGINE_MIN_BYTES_LEAST, ENGINE_MIN_BYTES_MOST);
        // One range takes either as long, so it takes no multiprocessors.
        let engine_max_ranges = most.map_or(1, |(count, _)| count).clamp(1, ENGINE_MAX_RANGES_MOST);
        Self { engine_min_bytes, engine_max_ranges }
    }
}

/// What was found of one way.
#[derive(Debug)]
pub struct Measured {
    /// The GPU that copies.
    pub device: u32,
    /// Between it and the memory.
    pub way: Way,
    /// The crossover, or why the default stands.
    pub found: Result<Crossover, Failure>,
}

/// The crossovers of a driver's devices: the default where none was measured.
#[derive(Debug)]
pub struct Crossovers {
    devices: Vec<Device>,
    /// One at a time: two that measure would measure each other.
    measuring: Mutex<()>,
}

#[derive(Debug, Default)]
struct Device {
    /// This process has memory there.
    is_used: AtomicBool,
    ways: [Known; 3],
}

#[derive(Debug, Default)]
struct Known {
    /// Nobody else is to measure it.
    is_taken: AtomicBool,
    crossover: OnceLock<Crossover>,
}

impl Crossovers {
    /// Those of so many devices, each to be measured once.
    pub fn new(devices: usize) -> Self {
        Self {
            devices: (0..devices).map(|_| Device::default()).collect(),
            measuring: Mutex::default(),
        }
    }

    /// The same, never to be measured.
    pub fn fixed(devices: usize) -> Self {
        let all = Self::new(devices);
        let ways = all.devices.iter().flat_map(|device| &device.ways);
        ways.for_each(|known| known.is_taken.store(true, Ordering::Relaxed));
        all
    }

    fn known(&self, device: u32, way: Way) -> Option<&Known> {
        self.devices.get(device as usize).map(|device| &device.ways[way as usize])
    }

    /// The crossover of a device's copies on a way. Never waits.
    pub fn of(&self, device: u32, way: Way) -> Crossover {
        self.found(device, way).unwrap_or_default()
    }

    /// The same; none where the default stands.
    pub fn found(&self, device: u32, way: Way) -> Option<Crossover> {
        self.known(device, way)?.crossover.get().copied()
    }

    /// Says what it is, unless that is known.
    pub fn set(&self, device: u32, way: Way, crossover: Crossover) {
        if let Some(known) = self.known(device, way) {
            // The first word stands.
            let _: Result<(), Crossover> = known.crossover.set(crossover);
        }
    }

    /// This process has, or is about to have, memory on a device; `true` the first time.
    pub(super) fn begin_use(&self, device: u32) -> bool {
        // SeqCst: of two devices that are used at once one sees the other.
        let known = self.devices.get(device as usize);
        known.is_some_and(|known| !known.is_used.swap(true, Ordering::SeqCst))
    }

    /// The devices that are used but for this one.
    pub(super) fn used_beside(&self, device: u32) -> Vec<u32> {
        let used = |known: &u32| self.devices[*known as usize].is_used.load(Ordering::SeqCst);
        (0..self.devices.len() as u32).filter(|other| *other != device).filter(used).collect()
    }

    /// Measures a way, unless somebody has tried.
    pub(super) fn measure(
        &self,
        device: u32,
        way: Way,
        measure: impl FnOnce() -> Result<Crossover, Failure>,
    ) -> Option<Measured> {
        let known = self.known(device, way)?;
        if known.is_taken.swap(true, Ordering::Relaxed) {
            return None;
        }
        let _alone = self.measuring.lock().unwrap_or_else(PoisonError::into_inner);
        let found = measure();
        if let Ok(crossover) = found {
            self.set(device, way, crossover);
        }
        Some(Measured { device, way, found })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LENGTHS: [usize; 5] = [64 << 10, 256 << 10, 1 << 20, 4 << 20, 16 << 20];

    fn micros(times: &[u64]) -> Vec<Duration> {
        times.iter().copied().map(Duration::from_micros).collect()
    }

    /// Of each size what the engine and the kernel took, in microseconds.
    fn timed(sizes: &[usize], times: &[(u64, u64)]) -> Vec<Timed> {
        let one = |(size, (engine, kernel)): (&usize, &(u64, u64))| Timed {
            size: *size,
            engine: micros(&[*engine]),
            kernel: micros(&[*kernel]),
        };
        sizes.iter().zip(times).map(one).collect()
    }

    #[test]
    fn a_length_is_the_engine_s_if_all_longer_ones_are() {
        let of =
            |times: &[(u64, u64)]| Crossover::of(&timed(&LENGTHS, times), &[]).engine_min_bytes;
        // As between two H100s, with an engine that starts sooner, and beyond what either could be.
        assert_eq!(of(&[(30, 11), (30, 13), (30, 23), (52, 53), (46, 53)]), 4 << 20);
        assert_eq!(of(&[(19, 11), (12, 13), (13, 17), (19, 36), (18, 36)]), 256 << 10);
        assert_eq!(of(&[(1, 2); 5]), ENGINE_MIN_BYTES_LEAST);
        assert_eq!(of(&[(2, 1); 5]), ENGINE_MIN_BYTES_MOST);
        assert_eq!(of(&[(1, 2), (1, 2), (1, 2), (1, 2), (2, 1)]), ENGINE_MIN_BYTES_MOST);
        // One that won by chance.
        assert_eq!(of(&[(5, 11), (30, 13), (30, 23), (52, 53), (46, 53)]), 4 << 20);
        // As long but for noise: nobody pays multiprocessors for that.
        assert_eq!(of(&[(30, 11), (30, 13), (24, 23), (52, 53), (46, 53)]), 1 << 20);
    }

    #[test]
    fn a_count_is_the_engine_s_if_all_lower_ones_are() {
        let of = |times: &[(u64, u64)]| {
            Crossover::of(&[], &timed(&[1, 2, 3, 4], times)).engine_max_ranges
        };
        assert_eq!(of(&[(11, 10), (17, 10), (24, 10), (31, 11)]), 1);
        assert_eq!(of(&[(8, 10), (9, 10), (24, 10), (9, 11)]), 2);
        assert_eq!(of(&[(20, 10); 4]), 1);
        assert_eq!(of(&[(8, 10); 4]), ENGINE_MAX_RANGES_MOST);
        assert_eq!(of(&[]), 1);
    }

    #[test]
    fn times_that_something_held_up_are_outvoted() {
        let mut lengths = timed(&LENGTHS, &[(30, 11), (30, 13), (30, 23), (52, 53), (46, 53)]);
        lengths[2].engine = micros(&[30, 31, 1, 29, 30]);
        lengths[3].engine = micros(&[52, 9000, 51, 53, 8000]);
        lengths[4].kernel = micros(&[53, 1, 53, 54, 53]);
        assert_eq!(Crossover::of(&lengths, &[]).engine_min_bytes, 4 << 20);
    }

    #[test]
    fn a_way_is_measured_once_and_failures_leave_the_default() {
        let found = Crossover { engine_min_bytes: 1 << 20, engine_max_ranges: 2 };
        let all = Crossovers::new(2);
        assert!(all.measure(1, Way::Host, || Ok(found)).is_some());
        assert!(all.measure(1, Way::Host, || panic!("it was measured")).is_none());
        assert_eq!(all.of(1, Way::Host), found);
        let failed = all.measure(0, Way::Host, || Err(Failure::refused("measure", "a test")));
        assert!(failed.is_some_and(|measured| measured.found.is_err()));
        assert!(all.measure(0, Way::Host, || panic!("it was tried")).is_none());
        for (device, way) in [(0, Way::Host), (1, Way::SameGpu), (1, Way::OtherGpu), (9, Way::Host)]
        {
            assert_eq!(all.of(device, way), Crossover::default());
        }
        assert!(all.measure(9, Way::Host, || panic!("there is none")).is_none());
        assert!(Crossovers::fixed(1).measure(0, Way::Host, || panic!("it is fixed")).is_none());
    }

    #[test]
    fn devices_in_use_are_known_from_their_first_time_on() {
        let all = Crossovers::new(3);
        assert!(all.begin_use(2) && !all.begin_use(2) && all.begin_use(0) && !all.begin_use(3));
        assert_eq!((all.used_beside(0), all.used_beside(1)), (vec![2], vec![0, 2]));
    }

    /// So many times of each, in microseconds.
    fn any_timed(sizes: &'static [usize]) -> impl Strategy<Value = Vec<Timed>> {
        let times = || proptest::collection::vec(1u64..1000, 1..6);
        proptest::collection::vec((times(), times()), sizes.len()).prop_map(move |all| {
            let one = |(size, (engine, kernel)): (&usize, (Vec<u64>, Vec<u64>))| Timed {
                size: *size,
                engine: micros(&engine),
                kernel: micros(&kernel),
            };
            sizes.iter().zip(all).map(one).collect()
        })
    }

    proptest! {
        /// Whatever was measured is bounded, and a slower engine never gets more to do.
        #[test]
        fn a_slower_engine_gets_no_more(
            lengths in any_timed(&LENGTHS),
            counts in any_timed(&[1, 2, 3, 4]),
            slower in (0usize..5, 1u32..4),
        ) {
            let before = Crossover::of(&lengths, &counts);
            prop_assert!(LENGTHS.contains(&before.engine_min_bytes));
            prop_assert!((1..=ENGINE_MAX_RANGES_MOST).contains(&before.engine_max_ranges));
            let (mut slow_lengths, mut slow_counts) = (lengths, counts);
            let (at, times) = slower;
            let all = slow_lengths.get_mut(at).into_iter().chain(slow_counts.get_mut(at));
            all.for_each(|timed| timed.engine.iter_mut().for_each(|time| *time *= times));
            let after = Crossover::of(&slow_lengths, &slow_counts);
            prop_assert!(after.engine_min_bytes >= before.engine_min_bytes);
            prop_assert!(after.engine_max_ranges <= before.engine_max_ranges);
        }

        /// Of five times two may be anything.
        #[test]
        fn the_few_that_went_wrong_change_nothing(
            wins in proptest::collection::vec(any::<bool>(), 5),
            wrong in proptest::collection::vec((0u64..100_000, 0u64..100_000), 10),
        ) {
            let clean = |is_won: &bool| if *is_won { (10, 20) } else { (20, 10) };
            let times: Vec<_> = wins.iter().map(clean).collect();
            let clean = timed(&LENGTHS, &times);
            let mut noisy = clean.clone();
            for (timed, wrong) in noisy.iter_mut().zip(wrong.chunks(2)) {
                let with = |times: &[Duration], wrong: &[u64]| {
                    [times.repeat(3), micros(wrong)].concat()
                };
                timed.engine = with(&timed.engine, &[wrong[0].0, wrong[1].0]);
                timed.kernel = with(&timed.kernel, &[wrong[0].1, wrong[1].1]);
            }
            prop_assert_eq!(Crossover::of(&noisy, &[]), Crossover::of(&clean, &[]));
        }
    }
}

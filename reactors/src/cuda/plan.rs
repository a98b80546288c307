//! Pure: which launches move a list of ranges. Neighbours are joined first, but for those between
//! other regions, which may be other allocations; then long ranges and the few go to the copy
//! engine, which takes none of the device's multiprocessors, and the many to the kernel, for which
//! a thousand cost one launch.

use super::even::Even;

/// Bytes at one address to go to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    /// First byte of the source.
    pub from: u64,
    /// First byte of the target.
    pub to: u64,
    /// How many.
    pub len: usize,
}

/// From this length on a range is the copy engine's. Measured between two H200s: at 1 MiB it does
/// 214 GB/s one behind the other and the kernel of 16 blocks 310, at 4 MiB 326 and 320, at 16 MiB
/// 368.
pub const ENGINE_MIN_BYTES: usize = 4 << 20;

/// As many ranges are not worth a kernel. Between two H100s it takes 10.4 us from launch to end for
/// up to 16 pages of 4 KiB; the copy engine takes 10.5 us for one, 16.9 for two, 23.7 for three.
pub const ENGINE_MAX_RANGES: usize = 1;

/// Pages that one launch takes: what fits into 32,764 bytes of arguments.
pub const LAUNCH_MAX_PAGES: usize = 1600;

/// The longest page of a launch is at most so many times the shortest: the kernel gives each as
/// many chunks as the longest has.
const SKEW_MAX: usize = 16;

/// One call to the driver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Launch {
    /// By the copy engine.
    Copy(Range),
    /// By the kernel, pages of any length.
    Pages(Vec<Range>),
    /// By the kernel, pages of one length.
    Even(Even),
}

/// Ranges to be moved, in the order in which they were asked for. Those that follow each other on
/// both sides are one.
#[derive(Debug, Default)]
pub struct Ranges {
    ranges: Vec<Range>,
    /// The first one that the next may be joined with.
    joinable: usize,
}

impl Ranges {
    /// Room for so many.
    pub fn with_room(ranges: usize) -> Self {
        Self { ranges: Vec::with_capacity(ranges), joinable: 0 }
    }

    /// Room for so many more.
    pub fn make_room(&mut self, ranges: usize) {
        self.ranges.reserve(ranges);
    }

    /// What comes from here on lies between other regions.
    pub fn change_regions(&mut self) {
        self.joinable = self.ranges.len();
    }

    /// Adds some that lie between regions of their own.
    pub fn extend_apart(&mut self, ranges: impl Iterator<Item = Range>) {
        self.change_regions();
        ranges.for_each(|range| self.push(range));
        self.change_regions();
    }

    /// Adds one that isn't empty.
    pub fn push(&mut self, range: Range) {
        match self.ranges[self.joinable..].last_mut() {
            Some(last) if last.is_followed_by(&range) => last.len += range.len,
            _ => self.ranges.push(range),
        }
    }
}

/// The launches that move these. With `may_page` false the kernel can't reach some of the memory.
pub fn launches(ranges: Ranges, may_page: bool) -> Vec<Launch> {
    let joined = ranges.ranges;
    let is_long = |range: &Range| range.len >= ENGINE_MIN_BYTES;
    let pages = joined.iter().filter(|range| !is_long(range)).count();
    if !may_page || pages <= ENGINE_MAX_RANGES {
        return joined.into_iter().map(Launch::Copy).collect();
    }
    let mut launches = Vec::new();
    let mut open = Open::default();
    for range in joined {
        if is_long(&range) {
            launches.push(Launch::Copy(range));
        } else if let Some(full) = open.add(range) {
            launches.push(full);
        }
    }
    launches.extend(open.close());
    launches
}

impl Launch {
    /// One that copies these pages; none where there are none.
    fn pages(pages: Vec<Range>) -> Option<Self> {
        match Even::of(&pages) {
            Some(even) => Some(Self::Even(even)),
            None => (!pages.is_empty()).then_some(Self::Pages(pages)),
        }
    }

    /// The launch but for what comes from or goes to these addresses; none where that is all.
    pub fn without(&self, addresses: &[std::ops::Range<u64>]) -> Option<Self> {
        let stays = |range: &Range| !addresses.iter().any(|taken| range.touches(taken));
        match self {
            Self::Copy(range) => stays(range).then_some(Self::Copy(*range)),
            Self::Pages(pages) => Self::pages(pages.iter().copied().filter(stays).collect()),
            Self::Even(pages) => Self::pages(pages.ranges().filter(stays).collect()),
        }
    }
}

impl Range {
    fn touches(&self, addresses: &std::ops::Range<u64>) -> bool {
        let is_there = |start: u64| {
            start < addresses.end && start.saturating_add(self.len as u64) > addresses.start
        };
        is_there(self.from) || is_there(self.to)
    }

    fn is_followed_by(&self, next: &Self) -> bool {
        let len = self.len as u64;
        (self.from.wrapping_add(len), self.to.wrapping_add(len)) == (next.from, next.to)
    }
}

/// A launch that takes more pages still.
#[derive(Default)]
struct Open {
    pages: Vec<Range>,
    shortest: usize,
    longest: usize,
}

impl Open {
    /// Takes a page; returns the launch before it, if the page doesn't go with it.
    fn add(&mut self, page: Range) -> Option<Launch> {
        let shortest = self.shortest.min(page.len);
        let longest = self.longest.max(page.len);
        let fits = self.pages.len() < LAUNCH_MAX_PAGES && longest <= shortest * SKEW_MAX;
        if !self.pages.is_empty() && fits {
            (self.shortest, self.longest) = (shortest, longest);
            self.pages.push(page);
            return None;
        }
        let full = self.close();
        (self.shortest, self.longest) = (page.len, page.len);
        self.pages.push(page);
        full
    }

    fn close(&mut self) -> Option<Launch> {
        Launch::pages(std::mem::take(&mut self.pages))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn range(from: u64, to: u64, len: usize) -> Range {
        Range { from, to, len }
    }

    /// So many pages of one length, none of them neighbours.
    fn pages(count: u64, len: usize) -> Ranges {
        let step = 2 * len as u64;
        ranges((0..count).map(move |k| range(k * step, (1 << 40) + k * step, len)))
    }

    fn ranges(all: impl Iterator<Item = Range>) -> Ranges {
        let mut ranges = Ranges::default();
        all.for_each(|range| ranges.push(range));
        ranges
    }

    #[test]
    fn many_pages_are_one_launch_and_few_are_the_copy_engine_s() {
        let planned = launches(pages(960, 12 << 10), true);
        assert!(matches!(&planned[..], [Launch::Even(pages)] if pages.at.len() == 960));
        let planned = launches(pages(1, 4096), true);
        assert!(matches!(&planned[..], [Launch::Copy(_)]));
        let planned = launches(pages(8192, 4096), true);
        assert_eq!(planned.len(), 8192usize.div_ceil(LAUNCH_MAX_PAGES));
    }

    #[test]
    fn neighbours_become_one_and_long_ranges_leave_the_kernel_alone() {
        let one = (0..1000).map(|k| range(k * 4096, (1 << 40) + k * 4096, 4096));
        assert_eq!(launches(ranges(one), true), [Launch::Copy(range(0, 1 << 40, 4_096_000))]);
        let long = range(1 << 50, 1 << 51, ENGINE_MIN_BYTES);
        let mut with_long = pages(100, 4096);
        with_long.push(long);
        let planned = launches(with_long, true);
        assert!(matches!(&planned[..], [Launch::Copy(copied), Launch::Even(_)] if *copied == long));
    }

    #[test]
    fn neighbours_of_different_regions_stay_apart() {
        let mut ranges = Ranges::default();
        ranges.push(range(0, 1 << 40, 4096));
        ranges.change_regions();
        ranges.push(range(4096, (1 << 40) + 4096, 4096));
        ranges.push(range(8192, (1 << 40) + 8192, 4096));
        let (first, rest) = (range(0, 1 << 40, 4096), range(4096, (1 << 40) + 4096, 8192));
        assert_eq!(launches(ranges, true), [Launch::Pages(vec![first, rest])]);
    }

    #[test]
    fn what_was_taken_back_is_left_out() {
        let ranges = [range(0, 1000, 10), range(10, 2000, 10), range(20, 3000, 10)];
        let without = |launch: &Launch, taken: std::ops::Range<u64>| launch.without(&[taken]);
        let left =
            |pages: &[usize]| Launch::pages(pages.iter().map(|k| ranges[*k]).collect()).unwrap();
        for pages in [Launch::Pages(ranges.to_vec()), left(&[0, 1, 2])] {
            assert_eq!(without(&pages, 2009..2010), Some(left(&[0, 2])));
            assert_eq!(pages.without(&[2010..2020, 29..100]), Some(left(&[0, 1])));
            assert_eq!(without(&pages, 0..30), None);
        }
        let copy = Launch::Copy(ranges[0]);
        assert_eq!((without(&copy, 10..20), without(&copy, 1005..1006)), (Some(copy), None));
    }

    #[test]
    fn what_the_kernel_can_t_reach_is_the_copy_engine_s() {
        let planned = launches(pages(100, 4096), false);
        assert!(planned.len() == 100 && planned.iter().all(|one| matches!(one, Launch::Copy(_))));
    }

    proptest! {
        /// Whatever is asked for, every byte is moved once, and no launch is one that the kernel
        /// doesn't take.
        #[test]
        fn launches_tile_what_was_asked(
            lens in proptest::collection::vec((1usize..6 << 20, any::<bool>()), 1..400),
        ) {
            let (mut at, mut asked) = (0u64, Vec::new());
            for (len, is_neighbour) in lens {
                at += if is_neighbour { 0 } else { 64 };
                asked.push(range(at, (1 << 40) + at, len));
                at += len as u64;
            }
            let mut moved: Vec<Range> = Vec::new();
            for launch in launches(ranges(asked.iter().copied()), true) {
                match launch {
                    Launch::Copy(range) => moved.push(range),
                    Launch::Even(pages) => {
                        prop_assert!(pages.at.len() <= LAUNCH_MAX_PAGES);
                        moved.extend(pages.ranges());
                    }
                    Launch::Pages(pages) => {
                        prop_assert!(pages.len() <= LAUNCH_MAX_PAGES);
                        let longest = pages.iter().map(|page| page.len).max().unwrap();
                        let shortest = pages.iter().map(|page| page.len).min().unwrap();
                        prop_assert!(longest < ENGINE_MIN_BYTES && longest <= shortest * SKEW_MAX);
                        moved.extend(pages);
                    }
                }
            }
            moved.sort_by_key(|range| range.from);
            let joined = |all: Vec<Range>| ranges(all.into_iter()).ranges;
            prop_assert_eq!(joined(moved), joined(asked));
        }
    }
}

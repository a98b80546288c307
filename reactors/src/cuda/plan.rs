//! Pure: which launches move a list of ranges. Neighbours are joined first, but for those between
//! other regions, which may be other allocations; then long ranges and the few go to the copy
//! engine, which takes none of the device's multiprocessors, and the many to the kernel, for which
//! a thousand cost one launch. What is long and few is a crossover's to say, that of each range's
//! way.

use super::crossover::Crossover;
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
    /// Each with the first range that it counts for; those before have the default.
    crossovers: Vec<(usize, Crossover)>,
}

impl Ranges {
    /// Room for so many.
    pub fn with_room(ranges: usize) -> Self {
        Self { ranges: Vec::with_capacity(ranges), ..Self::default() }
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

    /// What comes from here on goes another way, which has this crossover.
    pub fn change_way(&mut self, crossover: Crossover) {
        if self.crossover() != crossover {
            self.crossovers.push((self.ranges.len(), crossover));
            self.change_regions();
        }
    }

    /// That of the way which the next one goes.
    pub fn crossover(&self) -> Crossover {
        self.crossovers.last().map_or_else(Crossover::default, |(_, last)| *last)
    }

    /// Each with its way's crossover.
    fn each(&self) -> impl Iterator<Item = (Range, Crossover)> + '_ {
        let (mut changes, mut crossover) =
            (self.crossovers.iter().peekable(), Crossover::default());
        self.ranges.iter().enumerate().map(move |(k, range)| {
            while let Some((_, changed)) = changes.next_if(|(start, _)| *start <= k) {
                crossover = *changed;
            }
            (*range, crossover)
        })
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
pub fn launches(ranges: &Ranges, may_page: bool) -> Vec<Launch> {
    let short = ranges.each().filter(|(range, crossover)| !crossover.is_long(range));
    // Where ways differ in what few is, the one says it to which a launch is worth most.
    let (pages, few) = short.fold((0, usize::MAX), |(pages, few), (_, crossover)| {
        (pages + 1, few.min(crossover.engine_max_ranges))
    });
    if !may_page || pages <= few {
        return ranges.ranges.iter().copied().map(Launch::Copy).collect();
    }
    let mut launches = Vec::new();
    let mut open = Open::default();
    for (range, crossover) in ranges.each() {
        if crossover.is_long(&range) {
            launches.push(Launch::Copy(range));
        } else if let Some(full) = open.add(range) {
            launches.push(full);
        }
    }
    launches.extend(open.close());
    launches
}

impl Crossover {
    fn is_long(&self, range: &Range) -> bool {
        range.len >= self.engine_min_bytes
    }
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

    /// What holds where nothing was measured.
    fn default() -> Crossover {
        Crossover::default()
    }

    fn ranges(all: impl Iterator<Item = Range>) -> Ranges {
        let mut ranges = Ranges::default();
        all.for_each(|range| ranges.push(range));
        ranges
    }

    #[test]
    fn many_pages_are_one_launch_and_few_are_the_copy_engine_s() {
        let planned = launches(&pages(960, 12 << 10), true);
        assert!(matches!(&planned[..], [Launch::Even(pages)] if pages.at.len() == 960));
        let planned = launches(&pages(1, 4096), true);
        assert!(matches!(&planned[..], [Launch::Copy(_)]));
        let planned = launches(&pages(8192, 4096), true);
        assert_eq!(planned.len(), 8192usize.div_ceil(LAUNCH_MAX_PAGES));
    }

    #[test]
    fn neighbours_become_one_and_long_ranges_leave_the_kernel_alone() {
        let one = (0..1000).map(|k| range(k * 4096, (1 << 40) + k * 4096, 4096));
        assert_eq!(launches(&ranges(one), true), [Launch::Copy(range(0, 1 << 40, 4_096_000))]);
        let long = range(1 << 50, 1 << 51, default().engine_min_bytes);
        let mut with_long = pages(100, 4096);
        with_long.push(long);
        let planned = launches(&with_long, true);
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
        assert_eq!(launches(&ranges, true), [Launch::Pages(vec![first, rest])]);
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
        let planned = launches(&pages(100, 4096), false);
        assert!(planned.len() == 100 && planned.iter().all(|one| matches!(one, Launch::Copy(_))));
    }

    #[test]
    fn what_is_long_and_few_is_a_crossover_s_to_say() {
        let planned = |count, len, engine_min_bytes, engine_max_ranges| {
            let mut ranges = Ranges::default();
            ranges.change_way(Crossover { engine_min_bytes, engine_max_ranges });
            pages(count, len).ranges.into_iter().for_each(|page| ranges.push(page));
            let launches = launches(&ranges, true);
            let is_copy = |launch: &&Launch| matches!(launch, Launch::Copy(_));
            (launches.iter().filter(is_copy).count(), launches.len())
        };
        assert_eq!(planned(10, 64 << 10, 64 << 10, 1), (10, 10));
        assert_eq!(planned(10, (64 << 10) - 1, 64 << 10, 1), (0, 1));
        assert_eq!(planned(10, 15 << 20, 16 << 20, 1), (0, 1));
        assert_eq!((planned(3, 4096, 1 << 20, 3), planned(4, 4096, 1 << 20, 3)), ((3, 3), (0, 1)));
        assert_eq!(planned(1, 4096, 1 << 20, 0), (0, 1));
    }

    #[test]
    fn each_range_goes_by_its_own_way_s_crossover() {
        let crossover = |engine_min_bytes| Crossover { engine_min_bytes, engine_max_ranges: 1 };
        let mut ranges = Ranges::default();
        let mut at = 0;
        for engine_min_bytes in [4096, 8192, 4096, 4096, default().engine_min_bytes] {
            ranges.change_way(crossover(engine_min_bytes));
            ranges.push(range(at, (1 << 40) + at, 5000));
            at += 1 << 20;
        }
        let copied: Vec<_> = launches(&ranges, true)
            .into_iter()
            .filter_map(|launch| match launch {
                Launch::Copy(range) => Some(range.from >> 20),
                _ => None,
            })
            .collect();
        assert_eq!(copied, [0, 2, 3]);
        // Neighbours on different ways stay apart.
        let mut ranges = Ranges::default();
        ranges.push(range(0, 1 << 40, 4096));
        ranges.change_way(crossover(4096));
        ranges.push(range(4096, (1 << 40) + 4096, 4096));
        assert_eq!(launches(&ranges, true).len(), 2);
        // Few is what each of the ways calls few.
        let mut ranges = Ranges::default();
        for (at, engine_max_ranges) in [(0, 3), (1 << 20, 1)] {
            ranges.change_way(Crossover { engine_max_ranges, ..default() });
            ranges.push(range(at, (1 << 40) + at, 4096));
        }
        assert!(matches!(&launches(&ranges, true)[..], [Launch::Even(_)]));
    }

    /// Of one or none of several ways.
    fn any_crossover() -> impl Strategy<Value = Option<Crossover>> {
        let any = (1usize..6 << 20, 0usize..5).prop_map(|(engine_min_bytes, engine_max_ranges)| {
            Crossover { engine_min_bytes, engine_max_ranges }
        });
        proptest::option::weighted(0.1, any)
    }

    proptest! {
        /// Whatever is asked for, every byte is moved once, no launch is one that the kernel
        /// doesn't take, and each range is moved by what its way is best at.
        #[test]
        fn launches_tile_what_was_asked(
            asks in proptest::collection::vec(
                (1usize..6 << 20, any::<bool>(), any_crossover()), 1..400),
        ) {
            let (mut at, mut asked, mut ways) = (0u64, Ranges::default(), vec![(0, default())]);
            for (len, is_neighbour, changed) in asks {
                at += if is_neighbour { 0 } else { 64 };
                if let Some(crossover) = changed {
                    asked.change_way(crossover);
                    ways.push((at, crossover));
                }
                asked.push(range(at, (1 << 40) + at, len));
                at += len as u64;
            }
            let way = |range: &Range| {
                let at = ways.partition_point(|(start, _)| *start <= range.from);
                ways[at - 1].1
            };
            let (mut moved, mut copied) = (Vec::new(), Vec::new());
            for launch in launches(&asked, true) {
                let pages = match launch {
                    Launch::Copy(range) => {
                        copied.push(range);
                        continue;
                    }
                    Launch::Even(pages) => pages.ranges().collect(),
                    Launch::Pages(pages) => pages,
                };
                prop_assert!(pages.len() <= LAUNCH_MAX_PAGES);
                let longest = pages.iter().map(|page| page.len).max().unwrap();
                let shortest = pages.iter().map(|page| page.len).min().unwrap();
                prop_assert!(longest <= shortest * SKEW_MAX);
                prop_assert!(pages.iter().all(|page| page.len < way(page).engine_min_bytes));
                moved.extend(pages);
            }
            let few: Vec<_> =
                copied.iter().filter(|range| range.len < way(range).engine_min_bytes).collect();
            prop_assert!(few.iter().all(|range| few.len() <= way(range).engine_max_ranges));
            prop_assert!(few.is_empty() || moved.is_empty());
            moved.extend(copied);
            moved.sort_by_key(|range| range.from);
            let joined = |all: Vec<Range>| ranges(all.into_iter()).ranges;
            prop_assert_eq!(joined(moved), joined(asked.ranges));
        }
    }
}

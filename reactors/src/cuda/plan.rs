//! Pure: which launches move a list of ranges. Neighbours are joined first; then long ranges and
//! the few go to the copy engine, which takes none of the device's multiprocessors, and the many
//! to the kernel, for which a thousand cost one launch.

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

/// As many ranges are not worth a kernel: it takes 12.5 us from launch to end where the copy engine
/// takes 4.6 and 2 a range.
pub const ENGINE_MAX_RANGES: usize = 3;

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
    /// By the kernel.
    Pages(Vec<Range>),
}

/// The launches that move `ranges`, none of which is empty. With `may_page` false the kernel can't
/// reach some of the memory.
pub fn launches(ranges: impl Iterator<Item = Range>, may_page: bool) -> Vec<Launch> {
    let joined = joined(ranges);
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

/// Ranges that follow each other on both sides are one.
fn joined(ranges: impl Iterator<Item = Range>) -> Vec<Range> {
    let mut joined: Vec<Range> = Vec::with_capacity(ranges.size_hint().0);
    for range in ranges {
        match joined.last_mut() {
            Some(last) if last.is_followed_by(&range) => last.len += range.len,
            _ => joined.push(range),
        }
    }
    joined
}

impl Range {
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
        let pages = std::mem::take(&mut self.pages);
        (!pages.is_empty()).then_some(Launch::Pages(pages))
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
    fn pages(count: u64, len: usize) -> impl Iterator<Item = Range> {
        let step = 2 * len as u64;
        (0..count).map(move |k| range(k * step, (1 << 40) + k * step, len))
    }

    #[test]
    fn many_pages_are_one_launch_and_few_are_the_copy_engine_s() {
        let planned = launches(pages(960, 12 << 10), true);
        assert!(matches!(&planned[..], [Launch::Pages(pages)] if pages.len() == 960));
        let planned = launches(pages(3, 4096), true);
        assert!(matches!(&planned[..], [Launch::Copy(_), Launch::Copy(_), Launch::Copy(_)]));
        let planned = launches(pages(8192, 4096), true);
        assert_eq!(planned.len(), 8192usize.div_ceil(LAUNCH_MAX_PAGES));
    }

    #[test]
    fn neighbours_become_one_and_long_ranges_leave_the_kernel_alone() {
        let one = (0..1000).map(|k| range(k * 4096, (1 << 40) + k * 4096, 4096));
        assert_eq!(launches(one, true), [Launch::Copy(range(0, 1 << 40, 4_096_000))]);
        let long = range(1 << 50, 1 << 51, ENGINE_MIN_BYTES);
        let planned = launches(pages(100, 4096).chain([long]), true);
        assert!(
            matches!(&planned[..], [Launch::Copy(copied), Launch::Pages(_)] if *copied == long)
        );
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
            for launch in launches(asked.iter().copied(), true) {
                match launch {
                    Launch::Copy(range) => moved.push(range),
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
            prop_assert_eq!(joined(moved.into_iter()), joined(asked.into_iter()));
        }
    }
}

//! Pages of one length between two stretches of memory, as they mostly are: each is two distances
//! of 32 bits, so that a launch's arguments weigh a third and start sooner. Between two H100s 960
//! pages of 12 KiB took 48.3 us as ranges and 45.9 us so, 1,600 of 4 KiB 38.2 and 31.7. Peers of a
//! host tell each other of pages in this form, too.

use super::crossover::Crossover;
use super::plan::{LAUNCH_MAX_PAGES, Range};

/// Pages of one length.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Even {
    /// What sources' distances are counted from.
    pub(super) from: u64,
    /// What targets' distances are counted from.
    pub(super) to: u64,
    /// Bytes of each page.
    pub(super) len: u32,
    /// Distances are counted in units of two to this.
    pub(super) shift: u32,
    /// Of each page the source's distance, and above it the target's.
    pub(super) at: Vec<u64>,
}

/// Where pages of one length are between two ends, as peers tell each other.
#[derive(Debug, Clone, Copy)]
pub struct Places<'a> {
    /// Of each page the source's distance, and above it the target's, 32 bits each.
    pub words: &'a [u64],
    /// What distances are counted in: a power of two.
    pub unit_bytes: usize,
    /// Where the ends begin, by the same count, in bytes.
    pub starts: [usize; 2],
}

impl Places<'_> {
    /// Each page's offsets in the two ends, in bytes.
    pub fn offsets(&self) -> impl Iterator<Item = [usize; 2]> {
        let Places { words, unit_bytes, starts: [from, to] } = *self;
        let offset = move |units: u32, start| (units as usize * unit_bytes).wrapping_sub(start);
        words.iter().map(move |word| [offset(*word as u32, from), offset((word >> 32) as u32, to)])
    }

    /// The lowest and the highest of the sources' distances, and of the targets'.
    pub fn bounds(words: &[u64]) -> [(u32, u32); 2] {
        let wider = |(low, high): (u32, u32), one: u32| (low.min(one), high.max(one));
        let nothing = [(u32::MAX, 0); 2];
        words.iter().fold(nothing, |[from, to], word| {
            [wider(from, *word as u32), wider(to, (word >> 32) as u32)]
        })
    }

    /// Whether all pages of `len` bytes are inside of ends that are so long.
    fn are_inside(&self, lens: [usize; 2], len: usize) -> bool {
        let at = |units: u32| units as usize * self.unit_bytes;
        let is_inside = |(low, high): (u32, u32), start: usize, end_len: usize| {
            at(low) >= start && at(high) - start <= end_len.saturating_sub(len) && len <= end_len
        };
        let [from, to] = Self::bounds(self.words);
        is_inside(from, self.starts[0], lens[0]) && is_inside(to, self.starts[1], lens[1])
    }

    /// Whether one page follows another on both sides; now and then where none does.
    fn may_join(&self, len: usize) -> bool {
        let units = (len / self.unit_bytes) as u64;
        let step = units | units << 32;
        len.is_multiple_of(self.unit_bytes)
            && self.words.windows(2).any(|pair| pair[1].wrapping_sub(pair[0]) == step)
    }
}

impl Even {
    /// Pages of `len` bytes between two ends, as they were told; none where they are no launch as
    /// they stand, on a way of this crossover, or not inside.
    pub(super) fn between(
        ends: &Range,
        to_len: usize,
        places: Places<'_>,
        len: usize,
        crossover: Crossover,
    ) -> Option<Self> {
        let count = places.words.len();
        let is_launch = count > crossover.engine_max_ranges
            && count <= LAUNCH_MAX_PAGES
            && (1..crossover.engine_min_bytes).contains(&len)
            && places.unit_bytes.is_power_of_two();
        if !is_launch || !places.are_inside([ends.len, to_len], len) || places.may_join(len) {
            return None;
        }
        Some(Self {
            from: ends.from.wrapping_sub(places.starts[0] as u64),
            to: ends.to.wrapping_sub(places.starts[1] as u64),
            len: u32::try_from(len).ok()?,
            shift: places.unit_bytes.trailing_zeros(),
            at: places.words.to_vec(),
        })
    }

    /// The pages in this form; none where they differ in length or lie too far apart.
    pub fn of(pages: &[Range]) -> Option<Self> {
        let len = pages.first()?.len;
        let from = pages.iter().map(|page| page.from).min()?;
        let to = pages.iter().map(|page| page.to).min()?;
        let distances = |page: &Range| (page.from - from) | (page.to - to);
        let mut all = 0;
        for page in pages {
            if page.len != len {
                return None;
            }
            all |= distances(page);
        }
        let shift = all.trailing_zeros().min(u32::BITS - 1);
        if all >> shift > u64::from(u32::MAX) {
            return None;
        }
        let word = |page: &Range| (page.from - from) >> shift | (page.to - to) >> shift << 32;
        let at = pages.iter().map(word).collect();
        Some(Self { from, to, len: u32::try_from(len).ok()?, shift, at })
    }

    /// The pages as ranges.
    pub fn ranges(&self) -> impl Iterator<Item = Range> + '_ {
        self.at.iter().map(|word| Range {
            from: self.from.wrapping_add((word & u64::from(u32::MAX)) << self.shift),
            to: self.to.wrapping_add(word >> 32 << self.shift),
            len: self.len as usize,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn pages_of_several_lengths_or_too_far_apart_stay_ranges() {
        let page = |from, len| Range { from, to: 0, len };
        assert_eq!(Even::of(&[page(0, 16), page(16, 17)]), None);
        assert_eq!(Even::of(&[page(0, 16), page((1 << 33) - 1, 16)]), None);
        assert!(Even::of(&[page(0, 16), page((1 << 33) - 2, 16)]).is_some());
        assert_eq!(Even::of(&[page(0, 1 << 33)]), None);
        assert_eq!(Even::of(&[]), None);
    }

    /// Ends of 1 MiB that begin 4 KiB into what places are counted from.
    fn between(words: &[u64], len: usize) -> Option<Even> {
        let ends = Range { from: 1 << 40, to: 1 << 41, len: 1 << 20 };
        let places = Places { words, unit_bytes: 16, starts: [4096, 4096] };
        Even::between(&ends, 1 << 20, places, len, Crossover::default())
    }

    fn word(from: u64, to: u64) -> u64 {
        ((4096 + from) / 16) | (((4096 + to) / 16) << 32)
    }

    #[test]
    fn what_a_peer_tells_is_a_launch_as_it_stands() {
        let even = between(&[word(0, 8192), word(65536, 0)], 4096).expect("a launch");
        let range =
            |from: u64, to: u64| Range { from: (1 << 40) + from, to: (1 << 41) + to, len: 4096 };
        assert_eq!(even.ranges().collect::<Vec<_>>(), [range(0, 8192), range(65536, 0)]);
    }

    #[test]
    fn what_a_peer_tells_is_never_outside_of_the_ends() {
        let last = (1 << 20) - 4096;
        assert!(between(&[word(0, 0), word(last, last)], 4096).is_some());
        for wrong in [word(last + 16, 0), word(0, last + 16), 0, word(0, 0) - 1, u64::MAX] {
            assert_eq!(between(&[word(0, 0), wrong], 4096), None, "{wrong:#x}");
        }
        assert_eq!(between(&[word(0, 0), word(0, 4096)], (1 << 20) + 1), None);
    }

    #[test]
    fn neighbours_single_pages_and_long_ones_are_planned() {
        assert_eq!(between(&[word(0, 0)], 4096), None);
        assert_eq!(between(&[word(0, 0), word(4096, 4096)], 4096), None);
        assert!(between(&[word(0, 0), word(4096, 8192)], 4096).is_some());
        assert_eq!(between(&[word(0, 0), word(16, 0)], 0), None);
    }

    proptest! {
        #[test]
        fn what_is_written_down_is_read(
            places in proptest::collection::vec((0u64..1 << 32, 0u64..1 << 32), 1..50),
            bases in (any::<u32>(), any::<u32>()),
            len in 1usize..1 << 20,
            unit in 0u32..16,
        ) {
            let at = |base: u32, place: u64| (u64::from(base) << 20) + (place << unit);
            let page = |(from, to)| Range { from: at(bases.0, from), to: at(bases.1, to), len };
            let pages: Vec<_> = places.into_iter().map(page).collect();
            let even = Even::of(&pages).expect("near each other");
            prop_assert_eq!(even.ranges().collect::<Vec<_>>(), pages);
        }
    }
}

//! A list of copies that a peer asks for: gathered from its entries, then found in one look where
//! all of it lies in one region on either side, as it mostly does. Its words were copied out of the
//! ring before they are looked at.

use kvrail_reactors::cuda::Places;
use kvrail_reactors::host::lane::{Corrupt, Responder};

use super::entry::{CopyEntry, LIST_UNIT_BYTES, LISTED_COPIES, ListEntry, ListedCopy, listed};
use crate::limits::HOST_LIST_COPIES;

/// A list whose entries are arriving, or whose copies are begun one by one.
#[derive(Debug)]
pub(super) struct Listing {
    pub(super) asked: ListEntry,
    /// Each a [`ListedCopy`].
    copies: Vec<u64>,
    /// Copies that were begun.
    begun: usize,
}

/// What lies between a list's first and last byte, on one side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) start: u64,
    pub(super) len: u64,
}

impl Listing {
    /// None of a length that nobody asks for.
    pub(super) fn new(asked: ListEntry) -> Option<Self> {
        let is_asked_for = (1..=HOST_LIST_COPIES).contains(&(asked.count as usize));
        let copies = || Vec::with_capacity(asked.count as usize);
        is_asked_for.then(|| Self { asked, copies: copies(), begun: 0 })
    }

    /// Takes what has come of it, between whose entries no others may be; whether anything had.
    pub(super) fn fill(&mut self, ring: &mut Responder) -> Result<bool, Corrupt> {
        let mut has_come = false;
        while !self.is_whole()
            && let Some(words) = ring.receive()?
        {
            self.add(listed(&words).ok_or(Corrupt)?);
            has_come = true;
        }
        Ok(has_come)
    }

    pub(super) fn add(&mut self, copies: &[u64; LISTED_COPIES]) {
        let missing = self.asked.count as usize - self.copies.len();
        self.copies.extend_from_slice(&copies[..missing.min(LISTED_COPIES)]);
    }

    pub(super) fn is_whole(&self) -> bool {
        self.copies.len() == self.asked.count as usize
    }

    pub(super) fn bytes(&self) -> u64 {
        u64::from(self.asked.len) * u64::from(self.asked.count)
    }

    /// What it spans of the source, by offsets, and of the target, by addresses; none where a sum
    /// overflows.
    pub(super) fn spans(&self) -> Option<(Span, Span)> {
        let [from, to] = Places::bounds(&self.copies);
        Some((self.span(self.asked.offset, from)?, self.span(self.asked.addr, to)?))
    }

    fn span(&self, base: u64, (low, high): (u32, u32)) -> Option<Span> {
        let start = base.checked_add(u64::from(low) * LIST_UNIT_BYTES)?;
        let last = base.checked_add(u64::from(high) * LIST_UNIT_BYTES)?;
        Some(Span { start, len: last.checked_add(self.asked.len.into())? - start })
    }

    /// Where its copies are, counted from the spans' beginnings.
    pub(super) fn places(&self, (source, target): (Span, Span)) -> Places<'_> {
        let start = |base: u64, span: Span| span.start.wrapping_sub(base) as usize;
        let starts = [start(self.asked.offset, source), start(self.asked.addr, target)];
        Places { words: &self.copies, unit_bytes: LIST_UNIT_BYTES as usize, starts }
    }

    /// The next copy by itself; none when all were begun.
    pub(super) fn next(&mut self) -> Option<CopyEntry> {
        let copy = ListedCopy::from_word(*self.copies.get(self.begun)?);
        self.begun += 1;
        let ListEntry { part, last, source, offset, addr, len, key, .. } = self.asked;
        let at = |base: u64, units: u32| base.saturating_add(u64::from(units) * LIST_UNIT_BYTES);
        let last = last && self.begun == self.copies.len();
        let (offset, addr) = (at(offset, copy.from), at(addr, copy.to));
        Some(CopyEntry { part, last, source, offset, addr, len: len.into(), key })
    }

    pub(super) fn is_begun(&self) -> bool {
        self.begun == self.copies.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listing(copies: &[(u32, u32)]) -> Listing {
        let (source, offset, addr, len) = (1, 1 << 20, 1 << 40, 100);
        let count = copies.len() as u32;
        let asked = ListEntry { part: 1, last: true, source, offset, addr, len, count, key: None };
        let mut listing = Listing::new(asked).unwrap();
        for chunk in copies.chunks(LISTED_COPIES) {
            let mut listed = [0; LISTED_COPIES];
            for (listed, (from, to)) in listed.iter_mut().zip(chunk) {
                *listed = ListedCopy { from: *from, to: *to }.to_word();
            }
            listing.add(&listed);
        }
        assert!(listing.is_whole());
        listing
    }

    #[test]
    fn a_list_spans_from_its_first_to_its_last_byte() {
        let listing = listing(&[(5, 9), (2, 30), (9, 8)]);
        let spans = listing.spans().unwrap();
        assert_eq!(spans.0, Span { start: (1 << 20) + 2 * 16, len: 7 * 16 + 100 });
        assert_eq!(spans.1, Span { start: (1 << 40) + 8 * 16, len: 22 * 16 + 100 });
        let offsets: Vec<_> = listing.places(spans).offsets().collect();
        assert_eq!(offsets, [[48, 16], [0, 352], [112, 0]]);
    }

    #[test]
    fn ends_of_the_address_space_are_no_span() {
        let mut listing = listing(&[(0, 0), (1, 1)]);
        for (offset, addr) in [(u64::MAX - 20, 0), (0, u64::MAX - 20), (u64::MAX, u64::MAX)] {
            (listing.asked.offset, listing.asked.addr) = (offset, addr);
            assert_eq!(listing.spans(), None);
        }
    }

    #[test]
    fn no_list_is_empty_or_longer_than_a_launch() {
        let asked = listing(&[(0, 0)]).asked;
        for count in [0, HOST_LIST_COPIES as u32 + 1, u32::MAX] {
            assert!(Listing::new(ListEntry { count, ..asked }).is_none());
        }
    }
}

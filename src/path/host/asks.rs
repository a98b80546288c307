//! What a part asks of the peer, and its words: copies that are alike go as lists, seven to an
//! entry, the others one by one.

use std::ops::Range;
use std::sync::Arc;

use kvrail_reactors::host::lane::REQUEST_WORDS;

use super::entry::{
    CopyEntry, Entry, LIST_UNIT_BYTES, LISTED_COPIES, ListEntry, ListedCopy, with_part,
};
use crate::limits::{HOST_LIST_COPIES, HOST_PART_COPIES};
use crate::memory::grant::Key;

/// A list of fewer copies takes no fewer entries.
const LIST_MIN_COPIES: usize = 3;

/// Copies of a batch's first list at most: a GPU begins on it while the others are read, which are
/// as long as a launch takes, as each launch costs 6 us. Between two H100s 960 pages of 12 KiB took
/// 66 us with 160 and with 224, 62 with 288, 65 with 480.
const FIRST_LIST_COPIES: usize = 288;

/// A copy that the peer is asked for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ask {
    /// Which request of the batch.
    pub(crate) request: usize,
    /// The number of the region that the bytes are in.
    pub(crate) source: u64,
    pub(crate) offset: u64,
    /// Where they go, at the peer.
    pub(crate) addr: u64,
    pub(crate) len: u64,
    /// The grant that it is asked for under, if any.
    pub(crate) key: Option<Key>,
}

/// The copies of a part, to be asked for once or again and again.
#[derive(Debug)]
pub(crate) struct Asks {
    asks: Vec<Ask>,
    /// All but the part's number.
    entries: Vec<[u64; REQUEST_WORDS]>,
    bytes: u64,
}

impl Asks {
    /// The parts that these copies are asked for in. What a GPU makes goes in parts of as many as
    /// a launch takes, where they are lists; else the ring has to hold several parts.
    pub(crate) fn parts(asks: &[Ask], by_gpu: bool) -> Vec<Arc<Self>> {
        let parts = |asks: &[Ask], most: usize| {
            let part = |part: &[Ask]| Arc::new(Self::new(part.to_vec(), HOST_LIST_COPIES));
            asks.chunks(most).map(part).collect::<Vec<_>>()
        };
        if !by_gpu {
            return parts(asks, HOST_PART_COPIES);
        }
        let fit = |(number, chunk): (usize, &[Ask])| {
            let first = if number == 0 { FIRST_LIST_COPIES } else { HOST_LIST_COPIES };
            let whole = Self::new(chunk.to_vec(), first);
            match whole.entries.len() <= HOST_PART_COPIES {
                true => vec![Arc::new(whole)],
                false => parts(chunk, HOST_PART_COPIES),
            }
        };
        asks.chunks(HOST_LIST_COPIES).enumerate().flat_map(fit).collect()
    }

    /// Of at least one copy; the first list has `first` of them at most.
    fn new(asks: Vec<Ask>, first: usize) -> Self {
        let mut entries = Vec::with_capacity(asks.len() / LISTED_COPIES + 2);
        let mut start = 0;
        while start < asks.len() {
            let most = if start == 0 { first } else { HOST_LIST_COPIES };
            let (alike, bases) = alike(&asks[start..], most);
            let is_last = start + alike == asks.len();
            if alike < LIST_MIN_COPIES {
                entries.push(copy(&asks[start], start + 1 == asks.len()));
                start += 1;
            } else {
                list(&asks[start..start + alike], bases, is_last, &mut entries);
                start += alike;
            }
        }
        let bytes = asks.iter().map(|ask| ask.len).sum();
        Self { asks, entries, bytes }
    }

    pub(crate) fn as_slice(&self) -> &[Ask] {
        &self.asks
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whose copies these are.
    pub(crate) fn requests(&self) -> std::ops::RangeInclusive<usize> {
        let of = |ask: Option<&Ask>| ask.map_or(0, |ask| ask.request);
        of(self.asks.first())..=of(self.asks.last())
    }

    /// Its words as those of this part.
    pub(super) fn entries(&self, part: u64) -> impl Iterator<Item = [u64; REQUEST_WORDS]> + '_ {
        self.entries.iter().map(move |words| with_part(*words, part))
    }
}

/// What the offsets and the addresses of a list are counted from.
#[derive(Debug, Clone, Copy)]
struct Bases {
    offset: u64,
    addr: u64,
}

/// How many of the first copies, `most` at most, can be one list, and its bases.
fn alike(asks: &[Ask], most: usize) -> (usize, Bases) {
    let first = &asks[0];
    let (mut from, mut to) = (first.offset..first.offset, first.addr..first.addr);
    let mut count = 0;
    for ask in asks.iter().take(most) {
        let is_alike = (ask.source, ask.len, ask.key) == (first.source, first.len, first.key);
        let (wider_from, wider_to) = (with(&from, ask.offset), with(&to, ask.addr));
        let fits = u32::try_from(ask.len).is_ok() && is_short(&wider_from) && is_short(&wider_to);
        let is_aligned = ask.offset.abs_diff(first.offset) | ask.addr.abs_diff(first.addr);
        if !is_alike || !fits || !is_aligned.is_multiple_of(LIST_UNIT_BYTES) {
            break;
        }
        (from, to) = (wider_from, wider_to);
        count += 1;
    }
    (count, Bases { offset: from.start, addr: to.start })
}

fn with(range: &Range<u64>, one: u64) -> Range<u64> {
    range.start.min(one)..range.end.max(one)
}

fn is_short(range: &Range<u64>) -> bool {
    (range.end - range.start) / LIST_UNIT_BYTES <= u64::from(u32::MAX)
}

fn copy(ask: &Ask, last: bool) -> [u64; REQUEST_WORDS] {
    let Ask { source, offset, addr, len, key, .. } = *ask;
    Entry::Copy(CopyEntry { part: 0, last, source, offset, addr, len, key }).encode()
}

fn list(asks: &[Ask], bases: Bases, last: bool, entries: &mut Vec<[u64; REQUEST_WORDS]>) {
    let Bases { offset, addr } = bases;
    let Ask { source, key, len, .. } = asks[0];
    // Both were looked at when the copies were found alike.
    let (len, count) = (len as u32, asks.len() as u32);
    entries.push(
        Entry::List(ListEntry { part: 0, last, source, offset, addr, len, count, key }).encode(),
    );
    let units = |bytes: u64| (bytes / LIST_UNIT_BYTES) as u32;
    entries.extend(asks.chunks(LISTED_COPIES).map(|chunk| {
        let mut copies = [0; LISTED_COPIES];
        for (copy, ask) in copies.iter_mut().zip(chunk) {
            let (from, to) = (units(ask.offset - offset), units(ask.addr - addr));
            *copy = ListedCopy { from, to }.to_word();
        }
        Entry::Listed(copies).encode()
    }));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::list::Listing;
    use super::*;

    /// The copies that a server makes of these entries.
    fn read(asks: &Asks, part: u64) -> Vec<CopyEntry> {
        let (mut copies, mut open) = (Vec::new(), None::<Listing>);
        for words in asks.entries(part) {
            match Entry::decode(&words).expect("our own") {
                Entry::Copy(copy) => copies.push(copy),
                Entry::List(list) => open = Some(Listing::new(list).expect("a length")),
                Entry::Listed(listed) => {
                    let listing = open.as_mut().expect("a list");
                    listing.add(&listed);
                    if listing.is_whole() {
                        copies.extend(std::iter::from_fn(|| listing.next()));
                    }
                }
                other => panic!("{other:?}"),
            }
        }
        copies
    }

    fn list_lengths(asks: &Asks) -> Vec<u32> {
        let length = |words| match Entry::decode(&words) {
            Some(Entry::List(list)) => Some(list.count),
            _ => None,
        };
        asks.entries(1).filter_map(length).collect()
    }

    fn ask((source, offset, addr, len): (u64, u64, u64, u64)) -> Ask {
        let key = (source == 2).then_some(Key { slot: 7, word: 9 });
        Ask { request: 0, source, offset, addr, len, key }
    }

    #[test]
    fn pages_of_one_length_are_a_list() {
        let page = |k: u64| ask((1, k * 12288, (959 - k) * 12288, 12288));
        let asks = Asks::new((0..960).map(page).collect(), HOST_LIST_COPIES);
        assert_eq!(asks.entries.len(), 1 + 960usize.div_ceil(LISTED_COPIES));
        assert_eq!(read(&asks, 5).len(), 960);
        let page = |k: u64| ask((1, k * 12288, (3999 - k) * 12288, 12288));
        let parts = Asks::parts(&(0..4000).map(page).collect::<Vec<_>>(), true);
        let lists = parts.iter().map(|part| list_lengths(part)).collect::<Vec<_>>();
        assert_eq!(lists, [vec![288, 1312], vec![1600], vec![800]], "a GPU begins early");
        let apart = |k: u64| ask((1, k << 40, k, 16));
        assert_eq!(Asks::new((0..9).map(apart).collect(), HOST_LIST_COPIES).entries.len(), 9);
    }

    /// A ring that is full has a whole part in it, whose reply wakes the asker to send on.
    #[test]
    fn the_ring_holds_several_parts_whatever_they_are() {
        let listed = |k: u64| ask((1, k * 4096, k * 4096, 4096));
        let apart = |k: u64| ask((1, k * 1000, k * 1000, 1000));
        for (count, by_gpu, parts) in [(4000, true, 3), (4000, false, 16)] {
            assert_eq!(
                Asks::parts(&(0..count).map(listed).collect::<Vec<_>>(), by_gpu).len(),
                parts
            );
        }
        for by_gpu in [true, false] {
            let parts = Asks::parts(&(0..2000).map(apart).collect::<Vec<_>>(), by_gpu);
            assert!(parts.iter().all(|part| part.entries.len() <= HOST_PART_COPIES));
            assert_eq!(parts.iter().map(|part| read(part, 1).len()).sum::<usize>(), 2000);
        }
    }

    proptest! {
        /// However copies are written down, they are read as they were asked for, and the last of
        /// them is the last.
        #[test]
        fn what_is_asked_is_read(
            pages in proptest::collection::vec(
                (1u64..3, 0u64..1 << 37, prop_oneof![0u64..1 << 20, any::<u64>()], 1u64..3), 1..100,
            ),
            is_aligned in any::<bool>(),
        ) {
            let unit = if is_aligned { LIST_UNIT_BYTES } else { 1 };
            let whole = |(source, offset, addr, len)| {
                ask((source, offset / unit * unit, addr / unit * unit, len * 4096))
            };
            let asks = Asks::new(pages.into_iter().map(whole).collect(), HOST_LIST_COPIES);
            let copies = read(&asks, 5);
            prop_assert_eq!(copies.len(), asks.asks.len());
            for (index, (copy, ask)) in copies.iter().zip(&asks.asks).enumerate() {
                let Ask { source, offset, addr, len, key, .. } = *ask;
                let last = index + 1 == copies.len();
                prop_assert_eq!(*copy, CopyEntry { part: 5, last, source, offset, addr, len, key });
            }
        }
    }
}

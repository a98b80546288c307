//! What a lane's words mean: requests to copy into the peer's memory, and their replies. Pure;
//! any words decode to something or to nothing, and fuzzing holds it to that.

use kvrail_reactors::host::lane::{REPLY_WORDS, REQUEST_WORDS};

use crate::memory::grant::Key;

/// Bytes of an event's body that one entry carries: all words but the first.
const BODY_BYTES: usize = (REQUEST_WORDS - 1) * size_of::<u64>();

/// Copies of a list that one entry names: a word each, all but the first.
pub(crate) const LISTED_COPIES: usize = REQUEST_WORDS - 1;

/// What a list counts its offsets in: the kernel's words, which memory that is used with GPUs is
/// aligned to. So a list reaches 64 GiB in either region.
pub(crate) const LIST_UNIT_BYTES: u64 = 16;

const COPY: u64 = 1;
const CANCEL: u64 = 2;
const EVENT: u64 = 3;
const BODY: u64 = 4;
const LIST: u64 = 5;
const LISTED: u64 = 6;
/// Flag of a part's last copy or list.
const LAST: u64 = 1 << 8;
/// Flag of a copy or list that is asked for under a grant.
const GRANTED: u64 = 1 << 9;
/// Where a list has its grant's slot.
const SLOT_SHIFT: u32 = 32;

const DONE: u64 = 1;
const FAILED: u64 = 2;

/// A request of a lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Entry {
    /// Copy bytes of an offered region to an address of the responder's. Copies of a part follow
    /// each other and end with the one that is `last`.
    Copy(CopyEntry),
    /// Copies of one length between two regions follow, `count` of them. A part may have lists and
    /// copies.
    List(ListEntry),
    /// The next copies of a list, a [`ListedCopy`] a word, zeros behind its end.
    Listed([u64; LISTED_COPIES]),
    /// Do no more of this part, and say when it is over.
    Cancel { part: u64 },
    /// An event of `len` body bytes follows, as a part of its own.
    Event { part: u64, len: u64 },
    /// The next bytes of an event's body, zeros behind its end.
    Body([u8; BODY_BYTES]),
}

/// See [`Entry::Copy`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CopyEntry {
    pub(crate) part: u64,
    pub(crate) last: bool,
    pub(crate) source: u64,
    pub(crate) offset: u64,
    pub(crate) addr: u64,
    pub(crate) len: u64,
    /// The grant that it is asked for under, if any.
    pub(crate) key: Option<Key>,
}

/// See [`Entry::List`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ListEntry {
    pub(crate) part: u64,
    pub(crate) last: bool,
    pub(crate) source: u64,
    /// What the copies' offsets in the source are counted from.
    pub(crate) offset: u64,
    /// What the copies' addresses are counted from.
    pub(crate) addr: u64,
    /// Bytes of each copy.
    pub(crate) len: u32,
    pub(crate) count: u32,
    /// The grant that all of it is asked for under, if any.
    pub(crate) key: Option<Key>,
}

/// Where a copy of a list is, in units of [`LIST_UNIT_BYTES`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct ListedCopy {
    pub(crate) from: u32,
    pub(crate) to: u32,
}

impl ListedCopy {
    /// The word that it travels as.
    pub(crate) fn to_word(self) -> u64 {
        pair(self.from, self.to)
    }

    pub(crate) fn from_word(word: u64) -> Self {
        let (from, to) = unpair(word);
        Self { from, to }
    }
}

impl Entry {
    pub(crate) fn encode(&self) -> [u64; REQUEST_WORDS] {
        match *self {
            Self::Copy(CopyEntry { part, last, source, offset, addr, len, key }) => {
                let last = if last { LAST } else { 0 };
                let (granted, slot, word) =
                    key.map_or((0, 0, 0), |key| (GRANTED, key.slot.into(), key.word));
                [COPY | last | granted, part, source, offset, addr, len, slot, word]
            }
            Self::List(ListEntry { part, last, source, offset, addr, len, count, key }) => {
                let last = if last { LAST } else { 0 };
                let (granted, slot, word) =
                    key.map_or((0, 0, 0), |key| (GRANTED, u64::from(key.slot), key.word));
                let kind = LIST | last | granted | slot << SLOT_SHIFT;
                [kind, part, source, offset, addr, pair(len, count), word, 0]
            }
            Self::Listed(copies) => {
                let mut words = [LISTED; REQUEST_WORDS];
                words[1..].copy_from_slice(&copies);
                words
            }
            Self::Cancel { part } => [CANCEL, part, 0, 0, 0, 0, 0, 0],
            Self::Event { part, len } => [EVENT, part, len, 0, 0, 0, 0, 0],
            Self::Body(bytes) => {
                let mut words = [BODY; REQUEST_WORDS];
                for (word, bytes) in words[1..].iter_mut().zip(bytes.as_chunks().0) {
                    *word = u64::from_le_bytes(*bytes);
                }
                words
            }
        }
    }

    /// The entry, unless nobody sends such words.
    pub(crate) fn decode(words: &[u64; REQUEST_WORDS]) -> Option<Self> {
        let [kind, part, rest @ ..] = *words;
        match kind & !(LAST | GRANTED) {
            COPY => {
                let [source, offset, addr, len, slot, word] = rest;
                let slot = u32::try_from(slot).ok()?;
                let key = (kind & GRANTED != 0).then_some(Key { slot, word });
                let last = kind & LAST != 0;
                Some(Self::Copy(CopyEntry { part, last, source, offset, addr, len, key }))
            }
            _ if u64::from(kind as u32) & !(LAST | GRANTED) == LIST => {
                let [source, offset, addr, sizes, word, _] = rest;
                let ((len, count), slot) = (unpair(sizes), (kind >> SLOT_SHIFT) as u32);
                let key = (kind & GRANTED != 0).then_some(Key { slot, word });
                let last = kind & LAST != 0;
                Some(Self::List(ListEntry { part, last, source, offset, addr, len, count, key }))
            }
            LISTED if kind == LISTED => listed(words).copied().map(Self::Listed),
            CANCEL if kind == CANCEL => Some(Self::Cancel { part }),
            EVENT if kind == EVENT => Some(Self::Event { part, len: rest[0] }),
            BODY if kind == BODY => {
                let mut bytes = [0; BODY_BYTES];
                for (word, bytes) in words[1..].iter().zip(bytes.as_chunks_mut().0) {
                    *bytes = word.to_le_bytes();
                }
                Some(Self::Body(bytes))
            }
            _ => None,
        }
    }
}

/// The copies of an [`Entry::Listed`]; none of another.
pub(super) fn listed(words: &[u64; REQUEST_WORDS]) -> Option<&[u64; LISTED_COPIES]> {
    let [kind, copies @ ..] = words;
    (*kind == LISTED).then_some(copies)
}

/// The words of a copy or list as those of this part; what belongs to a list has no number.
pub(super) fn with_part(words: [u64; REQUEST_WORDS], part: u64) -> [u64; REQUEST_WORDS] {
    let [kind, _, rest @ ..] = words;
    if kind == LISTED {
        return words;
    }
    let mut words = [kind, part, 0, 0, 0, 0, 0, 0];
    words[2..].copy_from_slice(&rest);
    words
}

fn pair(low: u32, high: u32) -> u64 {
    u64::from(low) | u64::from(high) << 32
}

fn unpair(word: u64) -> (u32, u32) {
    (word as u32, (word >> 32) as u32)
}

/// An event's body as entries, behind its [`Entry::Event`].
pub(crate) fn body(bytes: &[u8]) -> impl Iterator<Item = Entry> + '_ {
    bytes.chunks(BODY_BYTES).map(|chunk| {
        let mut body = [0; BODY_BYTES];
        body[..chunk.len()].copy_from_slice(chunk);
        Entry::Body(body)
    })
}

/// How a copy or an event ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// As asked.
    Ok,
    /// No region permits it, or nobody has opened the counter.
    Refused,
    /// The queue of notifications is full.
    Busy,
    /// The source could not be read: it was never offered, or its memory is gone.
    Unreadable,
    /// It was cancelled, or the responder took its memory back.
    Ended,
    /// The grant that it was asked for under does not hold, or not any more.
    Stale,
    /// The GPU that had to make it did not.
    Gpu,
}

const VERDICTS: [Verdict; 7] = [
    Verdict::Ok,
    Verdict::Refused,
    Verdict::Busy,
    Verdict::Unreadable,
    Verdict::Ended,
    Verdict::Stale,
    Verdict::Gpu,
];

impl Verdict {
    fn word(self) -> u32 {
        VERDICTS.iter().position(|verdict| *verdict == self).unwrap_or(0) as u32
    }

    fn of(word: u32) -> Option<Self> {
        VERDICTS.get(word as usize).copied()
    }
}

/// A reply of a lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reply {
    /// So many copies of a part failed, from this position in the part on.
    Failed { part: u64, index: u64, count: u32, verdict: Verdict },
    /// A part is over, and nothing of it touches any memory any more. Of its copies, so many were
    /// looked at, in order; the verdict is an event's.
    Done { part: u64, ended: u64, verdict: Verdict },
}

impl Reply {
    pub(crate) fn encode(&self) -> [u64; REPLY_WORDS] {
        match *self {
            Self::Failed { part, index, count, verdict } => {
                [FAILED, part, index, pair(verdict.word(), count)]
            }
            Self::Done { part, ended, verdict } => [DONE, part, ended, pair(verdict.word(), 0)],
        }
    }

    /// The reply, unless nobody sends such words.
    pub(crate) fn decode(words: &[u64; REPLY_WORDS]) -> Option<Self> {
        let [kind, part, number, verdict] = *words;
        let (verdict, count) = unpair(verdict);
        let verdict = Verdict::of(verdict)?;
        match kind {
            FAILED => Some(Self::Failed { part, index: number, count, verdict }),
            DONE if count == 0 => Some(Self::Done { part, ended: number, verdict }),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let (source, offset, addr, len) = (2, 3, 4, 5);
        let copy = CopyEntry { part: 1, last: false, source, offset, addr, len, key: None };
        let (len, count) = (u32::MAX, 5);
        let list = ListEntry { part: 1, last: true, source, offset, addr, len, count, key: None };
        let key = Some(Key { slot: u32::MAX, word: u64::MAX });
        let entries = [
            Entry::List(list),
            Entry::List(ListEntry { last: false, key, len: 0, count: u32::MAX, ..list }),
            Entry::Listed(std::array::from_fn(|k| {
                ListedCopy { from: k as u32, to: u32::MAX }.to_word()
            })),
            Entry::Copy(copy),
            Entry::Copy(CopyEntry { part: u64::MAX, last: true, ..copy }),
            Entry::Copy(CopyEntry { key: Some(Key { slot: u32::MAX, word: 6 }), ..copy }),
            Entry::Cancel { part: 9 },
            Entry::Event { part: 9, len: 77 },
            Entry::Body(std::array::from_fn(|k| k as u8)),
        ];
        for entry in entries {
            assert_eq!(Entry::decode(&entry.encode()), Some(entry));
        }
        for verdict in VERDICTS {
            let failed = Reply::Failed { part: 1, index: 2, count: 3, verdict };
            assert_eq!(Reply::decode(&failed.encode()), Some(failed));
            let done = Reply::Done { part: 1, ended: 2, verdict };
            assert_eq!(Reply::decode(&done.encode()), Some(done));
        }
    }

    #[test]
    fn other_words_mean_nothing() {
        for kind in [0, 7, LISTED | LAST, LISTED << 32, CANCEL | LAST, EVENT | GRANTED, COPY << 32]
        {
            assert_eq!(Entry::decode(&[kind; REQUEST_WORDS]), None, "{kind:#x}");
        }
        let slot = 1 << 32;
        assert_eq!(Entry::decode(&[COPY | GRANTED, 0, 0, 0, 0, 0, slot, 1]), None);
        assert_eq!(Reply::decode(&[DONE, 0, 0, 7]), None);
        assert_eq!(Reply::decode(&[3, 0, 0, 0]), None);
    }

    #[test]
    fn a_body_is_cut_and_padded() {
        let bytes: Vec<u8> = (0..100).collect();
        let mut joined = Vec::new();
        for entry in body(&bytes) {
            let Entry::Body(part) = entry else { panic!("{entry:?}") };
            joined.extend(part);
        }
        assert_eq!((&joined[..100], joined.len()), (&bytes[..], 112));
        assert_eq!(body(&[]).count(), 0);
    }
}

//! What an engine stands by, in words that its peers map read-only: regions that are alive, grants
//! that hold. A reader looks here behind every copy: if the owner has taken the memory back
//! meanwhile, what was read is nobody's answer. So the owner waits for no reader, not even for one
//! that is stopped.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering, fence};

use super::mapping::{Mapping, Mode, NotMappable, own_memfd, seal, sealed_bytes};

/// Mark of a slot that holds nothing. Marks begin at 1.
const NOBODY: u64 = 0;

/// An engine's own ledger: slots of `ROW` words, of which the first is the mark of what the slot
/// holds. No mark is used twice.
#[derive(Debug)]
pub struct Ledger<const ROW: usize = 1> {
    words: Words<ROW>,
    fd: OwnedFd,
}

/// A peer's ledger.
#[derive(Debug)]
pub struct LedgerView<const ROW: usize = 1> {
    words: Words<ROW>,
}

#[derive(Debug)]
struct Words<const ROW: usize> {
    mapping: Mapping,
    slots: usize,
}

impl<const ROW: usize> Words<ROW> {
    fn row(&self, slot: usize) -> Option<[&AtomicU64; ROW]> {
        let first = slot.checked_mul(ROW).filter(|_| slot < self.slots)?;
        // SAFETY: the row's words lie inside the mapping, which has `slots` rows and which `self`
        // keeps, are aligned (mappings are page-aligned), and are accessed by atomics only, on both
        // sides.
        Some(std::array::from_fn(|word| unsafe {
            &*self.mapping.base().as_ptr().cast::<AtomicU64>().add(first + word).cast_const()
        }))
    }
}

impl<const ROW: usize> Ledger<ROW> {
    /// A ledger of so many slots.
    ///
    /// # Errors
    /// The system's own.
    pub fn new(slots: usize) -> io::Result<Self> {
        let bytes = slots * ROW * size_of::<u64>();
        let fd = own_memfd("kvrail-ledger", bytes)?;
        let mapping = Mapping::new(&fd, bytes, Mode::ReadWrite)?;
        seal(&fd, true)?;
        Ok(Self { words: Words { mapping, slots }, fd })
    }

    /// The memfd that peers map.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// A slot that holds nothing holds this from now on.
    pub fn enter(&self, slot: usize, row: [u64; ROW]) {
        let Some(words) = self.words.row(slot) else { return };
        for (word, value) in words.iter().zip(row).skip(1) {
            word.store(value, Ordering::Relaxed);
        }
        words[0].store(row[0], Ordering::Release);
    }

    /// What the slot holds is taken back: whoever has not looked yet reads in vain. The memory may
    /// be used again from here on.
    pub fn strike(&self, slot: usize) {
        if let Some(words) = self.words.row(slot) {
            words[0].store(NOBODY, Ordering::SeqCst);
            // Whatever is stored into the memory, or the row, afterwards comes behind the mark.
            fence(Ordering::SeqCst);
        }
    }
}

impl<const ROW: usize> LedgerView<ROW> {
    /// Maps a peer's ledger of so many slots.
    ///
    /// # Errors
    /// [`NotMappable`], as for [`super::view::View::map`].
    pub fn map(fd: impl AsFd, slots: usize) -> Result<Self, NotMappable> {
        let bytes = slots * ROW * size_of::<u64>();
        let has_bytes = sealed_bytes(&fd, true)?;
        if has_bytes < bytes as u64 || bytes == 0 {
            return Err(NotMappable::TooShort { has_bytes, wanted_bytes: bytes as u64 });
        }
        let mapping = Mapping::new(fd, bytes, Mode::Read)?;
        mapping.populate()?;
        Ok(Self { words: Words { mapping, slots } })
    }

    /// Whether the slot holds this still, after everything that was read before this call.
    pub fn holds(&self, slot: usize, mark: u64) -> bool {
        // The copy's loads must not drift behind the word's (a reader of a sequence lock).
        fence(Ordering::Acquire);
        let row = self.words.row(slot).filter(|_| mark != NOBODY);
        row.is_some_and(|words| words[0].load(Ordering::Acquire) == mark)
    }

    /// The slot's words, if it holds this.
    pub fn row(&self, slot: usize, mark: u64) -> Option<[u64; ROW]> {
        let row = self.words.row(slot)?.map(|word| word.load(Ordering::Acquire));
        // The mark behind its row too: the row is that of no later one.
        (row[0] == mark && self.holds(slot, mark)).then_some(row)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_sees_what_the_owner_strikes() {
        let ledger = Ledger::new(4).unwrap();
        let view = LedgerView::<1>::map(ledger.fd(), 4).unwrap();
        ledger.enter(3, [17]);
        assert!(view.holds(3, 17));
        assert!(!view.holds(3, 18) && !view.holds(2, 17) && !view.holds(2, 0));
        assert!(!view.holds(4, 17) && !view.holds(usize::MAX, 17));
        ledger.strike(3);
        assert!(!view.holds(3, 17));
        assert!(LedgerView::<1>::map(ledger.fd(), 1 << 20).is_err());
    }

    #[test]
    fn a_row_is_read_whole_or_not_at_all() {
        let ledger = Ledger::new(2).unwrap();
        let view = LedgerView::map(ledger.fd(), 2).unwrap();
        ledger.enter(1, [7, 8, 9]);
        assert_eq!(view.row(1, 7), Some([7, 8, 9]));
        assert_eq!((view.row(1, 8), view.row(0, 0), view.row(2, 7)), (None, None, None));
        ledger.strike(1);
        ledger.enter(1, [10, 11, 12]);
        assert_eq!((view.row(1, 7), view.row(1, 10)), (None, Some([10, 11, 12])));
        assert!(LedgerView::<3>::map(ledger.fd(), 171).is_err(), "it has room for 170 in a page");
    }
}

//! Which regions of an engine are alive, in words that its peers map read-only. A reader looks
//! here behind every copy: if the owner has taken the region back meanwhile, what was read is
//! nobody's answer. So the owner waits for no reader, not even for one that is stopped.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering, fence};

use super::mapping::{Mapping, Mode, NotMappable, own_memfd, seal, sealed_bytes};

/// Word of a slot that holds no region. Regions are numbered from 1.
const NOBODY: u64 = 0;

/// An engine's own ledger.
#[derive(Debug)]
pub struct Ledger {
    words: Words,
    fd: OwnedFd,
}

/// A peer's ledger.
#[derive(Debug)]
pub struct LedgerView {
    words: Words,
}

#[derive(Debug)]
struct Words {
    mapping: Mapping,
    slots: usize,
}

impl Words {
    fn get(&self, slot: usize) -> Option<&AtomicU64> {
        // SAFETY: the word lies inside the mapping, which `self` keeps, is aligned (mappings are
        // page-aligned), and is accessed by atomics only, on both sides.
        (slot < self.slots).then(|| unsafe {
            &*self.mapping.base().as_ptr().cast::<AtomicU64>().add(slot).cast_const()
        })
    }
}

impl Ledger {
    /// A ledger of so many slots.
    ///
    /// # Errors
    /// The system's own.
    pub fn new(slots: usize) -> io::Result<Self> {
        let bytes = slots * size_of::<u64>();
        let fd = own_memfd("kvrail-ledger", bytes)?;
        let mapping = Mapping::new(&fd, bytes, Mode::ReadWrite)?;
        seal(&fd, true)?;
        Ok(Self { words: Words { mapping, slots }, fd })
    }

    /// The memfd that peers map.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Region `id` is alive, in a slot that no living region has.
    pub fn enter(&self, slot: usize, id: u64) {
        if let Some(word) = self.words.get(slot) {
            word.store(id, Ordering::Release);
        }
    }

    /// The slot's region is taken back: whoever has not looked yet reads in vain. Its memory may
    /// be used again from here on.
    pub fn strike(&self, slot: usize) {
        if let Some(word) = self.words.get(slot) {
            word.store(NOBODY, Ordering::SeqCst);
            // Whatever is stored into the region afterwards comes behind the word.
            fence(Ordering::SeqCst);
        }
    }
}

impl LedgerView {
    /// Maps a peer's ledger of so many slots.
    ///
    /// # Errors
    /// [`NotMappable`], as for [`super::view::View::map`].
    pub fn map(fd: impl AsFd, slots: usize) -> Result<Self, NotMappable> {
        let bytes = slots * size_of::<u64>();
        let has_bytes = sealed_bytes(&fd, true)?;
        if has_bytes < bytes as u64 || bytes == 0 {
            return Err(NotMappable::TooShort { has_bytes, wanted_bytes: bytes as u64 });
        }
        let mapping = Mapping::new(fd, bytes, Mode::Read)?;
        mapping.populate()?;
        Ok(Self { words: Words { mapping, slots } })
    }

    /// Whether the region is alive still, after everything that was read before this call.
    pub fn holds(&self, slot: usize, id: u64) -> bool {
        // The copy's loads must not drift behind the word's (a reader of a sequence lock).
        fence(Ordering::Acquire);
        id != NOBODY && self.words.get(slot).is_some_and(|word| word.load(Ordering::Acquire) == id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_sees_what_the_owner_strikes() {
        let ledger = Ledger::new(4).unwrap();
        let view = LedgerView::map(ledger.fd(), 4).unwrap();
        ledger.enter(3, 17);
        assert!(view.holds(3, 17));
        assert!(!view.holds(3, 18) && !view.holds(2, 17) && !view.holds(2, 0));
        assert!(!view.holds(4, 17) && !view.holds(usize::MAX, 17));
        ledger.strike(3);
        assert!(!view.holds(3, 17));
        assert!(LedgerView::map(ledger.fd(), 1 << 20).is_err());
    }
}

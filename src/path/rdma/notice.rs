//! The record behind which a counter advances: written into the receiver's mailbox, on the queue
//! pair that carried the data and behind it, by a write whose immediate is its number.

use kvrail_reactors::region::Slice;

/// One rail's word that its part of a transfer's data is in place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Notice {
    /// Which event of its sender.
    pub(crate) event: u64,
    /// Which part of the event, of how many.
    pub(crate) part: u32,
    pub(crate) parts: u32,
    /// How often this part was sent before.
    pub(crate) attempt: u32,
    /// Events below are over: nothing of them is sent again.
    pub(crate) floor: u64,
    pub(crate) counter: u64,
    pub(crate) amount: u64,
}

/// Bytes of a notice, and of its slot in a mailbox.
pub(crate) const NOTICE_BYTES: usize = 64;

/// Bytes of the word that counts the notices read, before a queue's slots.
pub(crate) const CONSUMED_BYTES: usize = 8;

/// Bytes of one queue's part of a mailbox.
pub(crate) const fn queue_bytes(slots: usize) -> usize {
    CONSUMED_BYTES + slots * NOTICE_BYTES
}

impl Notice {
    /// As it stands in its slot.
    pub(crate) fn write_to(&self, slot: &Slice) {
        let words = [
            self.event,
            u64::from(self.part) | u64::from(self.parts) << 32,
            u64::from(self.attempt),
            self.floor,
            self.counter,
            self.amount,
        ];
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        // A slot is longer than a notice.
        let _ = slot.write(0, &bytes);
    }

    pub(crate) fn read_from(slot: &Slice) -> Self {
        let word = |index: usize| read_word(slot, index * 8);
        Self {
            event: word(0),
            part: word(1) as u32,
            parts: (word(1) >> 32) as u32,
            attempt: word(2) as u32,
            floor: word(3),
            counter: word(4),
            amount: word(5),
        }
    }
}

/// The word at `offset`; 0 where there is none.
pub(crate) fn read_word(slice: &Slice, offset: usize) -> u64 {
    let mut bytes = [0; 8];
    let _ = slice.read(offset, &mut bytes);
    u64::from_le_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use kvrail_reactors::region::Region;

    use super::*;

    #[test]
    fn a_notice_comes_out_as_it_went_in() {
        let region = Arc::new(Region::allocate(NOTICE_BYTES, None).unwrap());
        let slot = Slice::new(region, 0, NOTICE_BYTES).unwrap();
        let notice = Notice {
            event: u64::MAX,
            part: 2,
            parts: 3,
            attempt: 9,
            floor: 4,
            counter: 1 << 60,
            amount: 7,
        };
        notice.write_to(&slot);
        assert_eq!(Notice::read_from(&slot), notice);
    }
}

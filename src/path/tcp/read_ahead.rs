//! How far a server reads ahead on a connection with small requests. Pure.

use crate::limits::{READ_AHEAD_MAX_BYTES, SMALL_REQUEST_BYTES, SMALL_ROOM_BYTES};

/// Room behind the body that is being received: a copy costs less than a system call for each
/// request. It grows while a peer fills it, since each receive costs an answer too, and is back
/// where it was when the peer pauses, so that idle connections keep little memory.
#[derive(Debug)]
pub(super) struct ReadAhead {
    /// The last request was small.
    is_on: bool,
    room_bytes: usize,
}

impl Default for ReadAhead {
    fn default() -> Self {
        Self { is_on: false, room_bytes: SMALL_ROOM_BYTES }
    }
}

impl ReadAhead {
    /// A request of so many bytes begins.
    pub(super) fn begin(&mut self, len: u64) {
        self.is_on = len <= SMALL_REQUEST_BYTES;
    }

    /// A receive brought so many bytes.
    pub(super) fn received(&mut self, count: usize) {
        if !self.is_on || count < SMALL_ROOM_BYTES {
            self.room_bytes = SMALL_ROOM_BYTES;
        } else if count >= self.room_bytes {
            self.room_bytes = (2 * self.room_bytes).min(READ_AHEAD_MAX_BYTES);
        }
    }

    /// Room for the next receive; `None` where there is nothing to read ahead.
    pub(super) fn room_bytes(&self) -> Option<usize> {
        self.is_on.then_some(self.room_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_grows_while_it_is_filled_and_a_pause_gives_it_back() {
        let mut ahead = ReadAhead::default();
        assert_eq!(ahead.room_bytes(), None);
        ahead.begin(SMALL_REQUEST_BYTES);
        ahead.received(100);
        assert_eq!(ahead.room_bytes(), Some(SMALL_ROOM_BYTES));
        for _ in 0..10 {
            ahead.received(ahead.room_bytes().unwrap() + 100);
        }
        assert_eq!(ahead.room_bytes(), Some(READ_AHEAD_MAX_BYTES));
        ahead.received(SMALL_ROOM_BYTES);
        assert_eq!(ahead.room_bytes(), Some(READ_AHEAD_MAX_BYTES), "less is no pause");
        ahead.received(SMALL_ROOM_BYTES - 1);
        assert_eq!(ahead.room_bytes(), Some(SMALL_ROOM_BYTES));
        ahead.received(2 * SMALL_ROOM_BYTES);
        ahead.begin(SMALL_REQUEST_BYTES + 1);
        assert_eq!(ahead.room_bytes(), None, "large bodies need none");
        ahead.received(1 << 20);
        ahead.begin(1);
        assert_eq!(ahead.room_bytes(), Some(SMALL_ROOM_BYTES));
    }
}

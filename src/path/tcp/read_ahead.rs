//! How far a server reads ahead on a connection with small requests. Pure.

use crate::limits::{
    READ_AHEAD_AFTER_BYTES, READ_AHEAD_MAX_BYTES, SMALL_REQUEST_BYTES, SMALL_ROOM_BYTES,
};

/// Room behind the body that is being received: a copy costs less than a system call for each
/// request. It is larger while a peer fills it again and again, since each receive costs an answer
/// too, and is back where it was when the peer pauses: idle connections keep little memory, and
/// short batches are answered while the rest of them comes.
#[derive(Debug, Default)]
pub(super) struct ReadAhead {
    /// The last request was small.
    is_on: bool,
    /// Bytes that have come without a pause.
    streamed_bytes: usize,
}

impl ReadAhead {
    /// A request of so many bytes begins.
    pub(super) fn begin(&mut self, len: u64) {
        self.is_on = len <= SMALL_REQUEST_BYTES;
    }

    /// A receive brought so many bytes.
    pub(super) fn received(&mut self, count: usize) {
        self.streamed_bytes = match self.is_on && count >= SMALL_ROOM_BYTES {
            true => self.streamed_bytes.saturating_add(count),
            false => 0,
        };
    }

    /// Room for the next receive; `None` where there is nothing to read ahead.
    pub(super) fn room_bytes(&self) -> Option<usize> {
        let is_streaming = self.streamed_bytes >= READ_AHEAD_AFTER_BYTES;
        self.is_on.then_some(if is_streaming { READ_AHEAD_MAX_BYTES } else { SMALL_ROOM_BYTES })
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
        let mut streamed = 0;
        while streamed < READ_AHEAD_AFTER_BYTES {
            assert_eq!(ahead.room_bytes(), Some(SMALL_ROOM_BYTES));
            ahead.received(SMALL_ROOM_BYTES);
            streamed += SMALL_ROOM_BYTES;
        }
        assert_eq!(ahead.room_bytes(), Some(READ_AHEAD_MAX_BYTES));
        ahead.received(SMALL_ROOM_BYTES);
        assert_eq!(ahead.room_bytes(), Some(READ_AHEAD_MAX_BYTES), "less is no pause");
        ahead.received(SMALL_ROOM_BYTES - 1);
        assert_eq!(ahead.room_bytes(), Some(SMALL_ROOM_BYTES));
        ahead.received(READ_AHEAD_AFTER_BYTES);
        ahead.begin(SMALL_REQUEST_BYTES + 1);
        assert_eq!(ahead.room_bytes(), None, "large bodies need none");
        ahead.received(READ_AHEAD_AFTER_BYTES);
        ahead.begin(1);
        assert_eq!(ahead.room_bytes(), Some(SMALL_ROOM_BYTES));
    }
}

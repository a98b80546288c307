//! How far a server reads ahead on a connection with small requests. Pure.

use crate::limits::{
    HEADERS_ROOM_BYTES, READ_AHEAD_AFTER_BYTES, READ_AHEAD_MAX_BYTES, SMALL_REQUEST_BYTES,
    SMALL_ROOM_BYTES,
};

/// Room behind the body that is being received: a copy costs less than a system call for each
/// request. It is larger while a peer fills it again and again, since each receive costs an answer
/// too, and is back where it was when the peer pauses: idle connections keep little memory, and
/// short batches are answered while the rest of them comes. Behind a READ of any length the next
/// header comes, so there is room for a batch of those.
#[derive(Debug, Default)]
pub(super) struct ReadAhead {
    after: After,
    /// Bytes that have come without a pause.
    streamed_bytes: usize,
}

/// What the last request was.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum After {
    /// One whose body is best received into its place.
    #[default]
    Large,
    LargeRead,
    Small,
}

impl ReadAhead {
    /// A request of so many bytes begins; a READ's don't come from the peer.
    pub(super) fn begin(&mut self, len: u64, is_read: bool) {
        self.after = match is_read {
            _ if len <= SMALL_REQUEST_BYTES => After::Small,
            true => After::LargeRead,
            false => After::Large,
        };
    }

    /// A receive brought so many bytes.
    pub(super) fn received(&mut self, count: usize) {
        self.streamed_bytes = match self.after == After::Small && count >= SMALL_ROOM_BYTES {
            true => self.streamed_bytes.saturating_add(count),
            false => 0,
        };
    }

    /// Room for the next receive; `None` where there is nothing to read ahead.
    pub(super) fn room_bytes(&self) -> Option<usize> {
        let is_streaming = self.streamed_bytes >= READ_AHEAD_AFTER_BYTES;
        match self.after {
            After::Large => None,
            After::LargeRead => Some(HEADERS_ROOM_BYTES),
            After::Small if is_streaming => Some(READ_AHEAD_MAX_BYTES),
            After::Small => Some(SMALL_ROOM_BYTES),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_grows_while_it_is_filled_and_a_pause_gives_it_back() {
        let mut ahead = ReadAhead::default();
        assert_eq!(ahead.room_bytes(), None);
        ahead.begin(SMALL_REQUEST_BYTES, false);
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
        ahead.begin(SMALL_REQUEST_BYTES + 1, false);
        assert_eq!(ahead.room_bytes(), None, "large bodies need none");
        ahead.received(READ_AHEAD_AFTER_BYTES);
        ahead.begin(1, false);
        assert_eq!(ahead.room_bytes(), Some(SMALL_ROOM_BYTES));
    }
    #[test]
    fn behind_a_large_read_there_is_room_for_a_batch_of_headers() {
        let mut ahead = ReadAhead::default();
        ahead.begin(SMALL_REQUEST_BYTES + 1, true);
        assert_eq!(ahead.room_bytes(), Some(HEADERS_ROOM_BYTES));
        ahead.begin(SMALL_REQUEST_BYTES, true);
        assert_eq!(ahead.room_bytes(), Some(SMALL_ROOM_BYTES), "a small write may follow");
    }
}

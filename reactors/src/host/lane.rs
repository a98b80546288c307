//! A lane: requests one way and replies the other, as rings of words in memory that two processes
//! map. A message costs two cache lines and no system call while its reader is awake.
//!
//! Nothing in it is trusted: whoever reads an index checks it against its own, words are copied
//! out before they are looked at, and what they mean is for the caller to check. The memory's size
//! is sealed, so it can't be taken away.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering, fence};

use super::mapping::{Mapping, Mode, NotMappable, own_memfd, seal, sealed_bytes};
use crate::region::PAGE_BYTES;

/// Words of a request: one cache line.
pub const REQUEST_WORDS: usize = 8;

/// Words of a reply: half a cache line.
pub const REPLY_WORDS: usize = 4;

/// Messages that fit into a ring. 1,024 requests are what a batch of 128 needs eight times over,
/// and together with the replies 96 KiB a lane; a larger batch goes in as it is worked off.
pub const RING_MESSAGES: usize = 1024;

/// Requests that are published at a time, so that the responder takes the first of many while the
/// last are written; few enough that it soon begins, and enough that the index seldom moves.
const PUBLISHED_MESSAGES: usize = 16;

/// Messages that a reader copies out at a time: the lines come from the writer's cache side by
/// side, where one by one each is waited for.
const TAKEN_MESSAGES: usize = PUBLISHED_MESSAGES;

/// Words of a cache line: indices and flags have one each, so that two sides don't share any.
const LINE_WORDS: usize = 8;

/// A lane's header: the two indices of either ring, two sleeping flags and the closed flag.
const HEADER_LINES: usize = 8;
const REQUEST_HEAD: usize = 0;
const REQUEST_TAIL: usize = LINE_WORDS;
const REPLY_HEAD: usize = 2 * LINE_WORDS;
const REPLY_TAIL: usize = 3 * LINE_WORDS;
const RESPONDER_SLEEPS: usize = 4 * LINE_WORDS;
const REQUESTER_SLEEPS: usize = 5 * LINE_WORDS;
const CLOSED: usize = 6 * LINE_WORDS;
const REQUESTS: usize = HEADER_LINES * LINE_WORDS;
const REPLIES: usize = REQUESTS + RING_MESSAGES * REQUEST_WORDS;
const LANE_BYTES: usize =
    ((REPLIES + RING_MESSAGES * REPLY_WORDS) * size_of::<u64>()).next_multiple_of(PAGE_BYTES);

/// The peer wrote an index that no honest one has: the lane is of no use any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the peer broke the ring of a lane")]
pub struct Corrupt;

/// Makes the memory of `count` lanes: its memfd, for the peer, and the requesting ends.
///
/// # Errors
/// The system's own.
pub fn create(count: usize) -> io::Result<(OwnedFd, Vec<Requester>)> {
    let bytes = count * LANE_BYTES;
    let fd = own_memfd("kvrail-lanes", bytes)?;
    let mapping = Arc::new(Mapping::new(&fd, bytes, Mode::ReadWrite)?);
    seal(&fd, false)?;
    Ok((fd, (0..count).map(|index| Requester::new(Words::of(&mapping, index))).collect()))
}

/// Maps the memory of `count` lanes that a peer made: the responding ends.
///
/// # Errors
/// [`NotMappable`] where the memfd isn't sealed, is shorter, or the system refuses.
pub fn open(fd: impl AsFd, count: usize) -> Result<Vec<Responder>, NotMappable> {
    let bytes = count * LANE_BYTES;
    let has_bytes = sealed_bytes(&fd, false)?;
    if has_bytes < bytes as u64 || bytes == 0 {
        return Err(NotMappable::TooShort { has_bytes, wanted_bytes: bytes as u64 });
    }
    // Touching a hole in a memfd of small pages makes a page; of huge pages it could be a signal.
    let block_bytes = rustix::fs::fstat(&fd)?.st_blksize;
    if usize::try_from(block_bytes) != Ok(PAGE_BYTES) {
        return Err(NotMappable::NotSealed);
    }
    let mapping = Arc::new(Mapping::new(fd, bytes, Mode::ReadWrite)?);
    mapping.populate()?;
    Ok((0..count).map(|index| Responder::new(Words::of(&mapping, index))).collect())
}

/// The words of one lane.
#[derive(Debug, Clone)]
struct Words {
    mapping: Arc<Mapping>,
    first: usize,
}

impl Words {
    fn of(mapping: &Arc<Mapping>, index: usize) -> Self {
        Self { mapping: mapping.clone(), first: index * LANE_BYTES / size_of::<u64>() }
    }

    fn at(&self, word: usize) -> &AtomicU64 {
        let at = self.first + word;
        debug_assert!(at < self.mapping.len() / size_of::<u64>());
        // SAFETY: every caller names a word below LANE_BYTES (constants, or an index taken modulo
        // RING_MESSAGES), and the mapping was made for all lanes. It is page-aligned, outlives the
        // reference, and both sides reach it by atomics only.
        unsafe { &*self.mapping.base().as_ptr().cast::<AtomicU64>().add(at).cast_const() }
    }

    fn is_closed(&self) -> bool {
        self.at(CLOSED).load(Ordering::Acquire) != 0
    }

    fn close(&self) {
        self.at(CLOSED).store(1, Ordering::SeqCst);
    }

    /// Announces a sleep; messages published from here on ring. Look at the ring once more then.
    fn sleep(&self, flag: usize) {
        self.at(flag).store(1, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    fn wake(&self, flag: usize) {
        self.at(flag).store(0, Ordering::Relaxed);
    }

    /// Whether whoever was just sent something sleeps, and nobody has rung yet.
    fn must_ring(&self, flag: usize) -> bool {
        fence(Ordering::SeqCst);
        let flag = self.at(flag);
        flag.load(Ordering::Relaxed) != 0 && flag.swap(0, Ordering::AcqRel) != 0
    }
}

/// Where a ring lies in its lane.
#[derive(Debug, Clone, Copy)]
struct Place {
    head: usize,
    tail: usize,
    slots: usize,
}

const REQUEST_RING: Place = Place { head: REQUEST_HEAD, tail: REQUEST_TAIL, slots: REQUESTS };
const REPLY_RING: Place = Place { head: REPLY_HEAD, tail: REPLY_TAIL, slots: REPLIES };

/// The writing end of a ring of messages of `W` words.
#[derive(Debug)]
struct Producer<const W: usize> {
    words: Words,
    place: Place,
    head: u64,
    /// The reader's index as last seen.
    tail: u64,
}

impl<const W: usize> Producer<W> {
    fn new(words: Words, place: Place) -> Self {
        Self { words, place, head: 0, tail: 0 }
    }

    /// How many messages fit now.
    fn room(&mut self) -> Result<usize, Corrupt> {
        let tail = self.words.at(self.place.tail).load(Ordering::Acquire);
        let filled = self.head.wrapping_sub(tail);
        if filled > RING_MESSAGES as u64 || filled > self.head.wrapping_sub(self.tail) {
            return Err(Corrupt);
        }
        self.tail = tail;
        Ok(RING_MESSAGES - filled as usize)
    }

    /// Writes a message that is known to fit; the reader sees it after `publish`.
    fn push(&mut self, message: &[u64; W]) {
        let slot = self.place.slots + self.head as usize % RING_MESSAGES * W;
        for (k, word) in message.iter().enumerate() {
            self.words.at(slot + k).store(*word, Ordering::Relaxed);
        }
        self.head += 1;
    }

    fn publish(&self) {
        self.words.at(self.place.head).store(self.head, Ordering::Release);
    }
}

/// The reading end of a ring of messages of `W` words.
#[derive(Debug)]
struct Consumer<const W: usize> {
    words: Words,
    place: Place,
    tail: u64,
    /// Messages that were copied out of the ring, up to `filled`; those before `next` are used.
    taken: [[u64; W]; TAKEN_MESSAGES],
    next: usize,
    filled: usize,
}

impl<const W: usize> Consumer<W> {
    fn new(words: Words, place: Place) -> Self {
        Self { words, place, tail: 0, taken: [[0; W]; TAKEN_MESSAGES], next: 0, filled: 0 }
    }

    fn pop(&mut self) -> Result<Option<[u64; W]>, Corrupt> {
        if self.next == self.filled {
            self.take()?;
        }
        let message = self.taken[..self.filled].get(self.next).copied();
        self.next += usize::from(message.is_some());
        Ok(message)
    }

    /// Copies out what there is, as far as there is room.
    fn take(&mut self) -> Result<(), Corrupt> {
        let head = self.words.at(self.place.head).load(Ordering::Acquire);
        let waiting = head.wrapping_sub(self.tail);
        if waiting > RING_MESSAGES as u64 {
            return Err(Corrupt);
        }
        (self.next, self.filled) = (0, TAKEN_MESSAGES.min(waiting as usize));
        for message in &mut self.taken[..self.filled] {
            let slot = self.place.slots + self.tail as usize % RING_MESSAGES * W;
            *message = std::array::from_fn(|k| self.words.at(slot + k).load(Ordering::Relaxed));
            self.tail += 1;
        }
        if self.filled > 0 {
            self.words.at(self.place.tail).store(self.tail, Ordering::Release);
        }
        Ok(())
    }

    fn is_empty(&self) -> bool {
        self.next == self.filled
            && self.words.at(self.place.head).load(Ordering::Acquire) == self.tail
    }
}

/// The end that asks. Belongs to one thread at a time.
#[derive(Debug)]
pub struct Requester {
    requests: Producer<REQUEST_WORDS>,
    replies: Consumer<REPLY_WORDS>,
    words: Words,
}

impl Requester {
    fn new(words: Words) -> Self {
        let requests = Producer::new(words.clone(), REQUEST_RING);
        let replies = Consumer::new(words.clone(), REPLY_RING);
        Self { requests, replies, words }
    }

    /// Writes as many of `messages` as there is room for, and publishes them. Returns how many,
    /// and whether the peer sleeps and must be rung.
    ///
    /// # Errors
    /// [`Corrupt`]: the peer broke the ring.
    pub fn send<'a>(
        &mut self,
        messages: impl Iterator<Item = &'a [u64; REQUEST_WORDS]>,
    ) -> Result<(usize, bool), Corrupt> {
        let room = self.requests.room()?;
        let mut sent = 0;
        for message in messages.take(room) {
            self.requests.push(message);
            sent += 1;
            if sent % PUBLISHED_MESSAGES == 0 {
                self.requests.publish();
            }
        }
        if sent == 0 {
            return Ok((0, false));
        }
        self.requests.publish();
        Ok((sent, self.words.must_ring(RESPONDER_SLEEPS)))
    }

    /// The next reply, if one is there.
    ///
    /// # Errors
    /// [`Corrupt`]: the peer broke the ring.
    pub fn receive(&mut self) -> Result<Option<[u64; REPLY_WORDS]>, Corrupt> {
        self.replies.pop()
    }

    /// Announces that nobody looks for replies; `false` where one is there already.
    pub fn sleep(&self) -> bool {
        self.words.sleep(REQUESTER_SLEEPS);
        self.replies.is_empty()
    }

    /// Somebody looks for replies again.
    pub fn wake(&self) {
        self.words.wake(REQUESTER_SLEEPS);
    }

    /// Ends the lane for both sides: the responder starts nothing any more.
    pub fn close(&self) {
        self.words.close();
    }

    /// Whether either side has ended it.
    pub fn is_closed(&self) -> bool {
        self.words.is_closed()
    }

    /// The peer's progress: changes whenever it has taken requests out of the ring, some before it
    /// looks at them, or answered one.
    pub fn progress(&self) -> (u64, u64) {
        let load = |word| self.words.at(word).load(Ordering::Relaxed);
        (load(REQUEST_TAIL), load(REPLY_HEAD))
    }
}

/// The end that answers. Belongs to one thread at a time.
#[derive(Debug)]
pub struct Responder {
    requests: Consumer<REQUEST_WORDS>,
    replies: Producer<REPLY_WORDS>,
    words: Words,
}

impl Responder {
    fn new(words: Words) -> Self {
        let requests = Consumer::new(words.clone(), REQUEST_RING);
        let replies = Producer::new(words.clone(), REPLY_RING);
        Self { requests, replies, words }
    }

    /// The next request, if one is there.
    ///
    /// # Errors
    /// [`Corrupt`]: the peer broke the ring.
    pub fn receive(&mut self) -> Result<Option<[u64; REQUEST_WORDS]>, Corrupt> {
        self.requests.pop()
    }

    /// Replies that fit now.
    ///
    /// # Errors
    /// [`Corrupt`]: the peer broke the ring.
    pub fn room(&mut self) -> Result<usize, Corrupt> {
        self.replies.room()
    }

    /// Sends a reply, for which there is room. Returns whether the peer sleeps and must be rung.
    pub fn send(&mut self, reply: &[u64; REPLY_WORDS]) -> bool {
        self.replies.push(reply);
        self.replies.publish();
        self.words.must_ring(REQUESTER_SLEEPS)
    }

    /// Announces that nobody looks for requests; `false` where one is there already.
    pub fn sleep(&self) -> bool {
        self.words.sleep(RESPONDER_SLEEPS);
        self.requests.is_empty()
    }

    /// Somebody looks for requests again.
    pub fn wake(&self) {
        self.words.wake(RESPONDER_SLEEPS);
    }

    /// Ends the lane for both sides.
    pub fn close(&self) {
        self.words.close();
    }

    /// Whether either side has ended it.
    pub fn is_closed(&self) -> bool {
        self.words.is_closed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lane() -> (Requester, Responder) {
        let (fd, mut requesters) = create(2).unwrap();
        (requesters.pop().unwrap(), open(fd, 2).unwrap().pop().unwrap())
    }

    #[test]
    fn messages_go_both_ways_in_order_and_full_is_an_answer() {
        let (mut asks, mut answers) = lane();
        let messages: Vec<_> = (0..RING_MESSAGES as u64 + 5).map(|k| [k; REQUEST_WORDS]).collect();
        let (sent, must_ring) = asks.send(messages.iter()).unwrap();
        assert_eq!((sent, must_ring), (RING_MESSAGES, false));
        assert_eq!(asks.send(messages.iter()).unwrap(), (0, false));
        for k in 0..RING_MESSAGES as u64 {
            assert_eq!(answers.receive().unwrap(), Some([k; REQUEST_WORDS]));
            assert!(!answers.send(&[k, 1, 2, 3]));
        }
        assert_eq!(answers.receive().unwrap(), None);
        assert_eq!(answers.room().unwrap(), 0);
        for k in 0..RING_MESSAGES as u64 {
            assert_eq!(asks.receive().unwrap(), Some([k, 1, 2, 3]));
        }
        assert_eq!(asks.receive().unwrap(), None);
    }

    #[test]
    fn a_sleeper_is_rung_once_and_one_with_mail_does_not_sleep() {
        let (mut asks, mut answers) = lane();
        assert!(answers.sleep());
        assert_eq!(asks.send([[1; 8]].iter()).unwrap(), (1, true));
        assert_eq!(asks.send([[2; 8]].iter()).unwrap(), (1, false));
        assert!(!answers.sleep());
        answers.wake();
        assert!(asks.sleep());
        assert!(answers.send(&[0; 4]));
        assert!(!asks.sleep());
        asks.wake();
        assert!(!answers.send(&[0; 4]));
    }

    #[test]
    fn a_peer_that_breaks_the_indices_is_found_out() {
        let (mut asks, mut answers) = lane();
        asks.words.at(REQUEST_HEAD).store(RING_MESSAGES as u64 + 1, Ordering::Release);
        assert_eq!(answers.receive(), Err(Corrupt));
        answers.words.at(REPLY_HEAD).store(u64::MAX, Ordering::Release);
        assert_eq!(asks.receive(), Err(Corrupt));
        answers.words.at(REQUEST_TAIL).store(1, Ordering::Release);
        assert_eq!(asks.send([[1; 8]].iter()), Err(Corrupt));
        asks.words.at(REPLY_TAIL).store(77, Ordering::Release);
        assert_eq!(answers.room(), Err(Corrupt));
    }

    #[test]
    fn an_end_is_seen_by_both() {
        let (asks, answers) = lane();
        assert!(!asks.is_closed() && !answers.is_closed());
        asks.close();
        assert!(answers.is_closed());
    }

    #[test]
    fn lanes_do_not_overlap_and_a_short_memfd_is_refused() {
        let (fd, mut asks) = create(2).unwrap();
        let mut answers = open(&fd, 2).unwrap();
        asks[0].send([[7; 8]].iter()).unwrap();
        assert_eq!(answers[1].receive().unwrap(), None);
        assert_eq!(answers[0].receive().unwrap(), Some([7; 8]));
        assert!(matches!(open(&fd, 3), Err(NotMappable::TooShort { .. })));
        assert!(matches!(open(&fd, 0), Err(NotMappable::TooShort { .. })));
    }
}

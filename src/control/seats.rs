//! Room for a bounded number of connections that together hold a bounded number of bytes.
//!
//! When either bound is reached, the connection that has waited longest without saying what it
//! wants loses its seat, so that a flood of silent clients never keeps a good one out.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

/// How far a connection is, in the order in which they lose their seats.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    /// Answered; waits for the peer to close, and loses nothing.
    Closing,
    /// Has not said yet what it wants.
    Asking,
    /// Being answered.
    Answering,
}

#[derive(Clone)]
pub(crate) struct Seats {
    room: Arc<Mutex<Room>>,
}

struct Room {
    /// By arrival: the smallest key has waited longest.
    taken: BTreeMap<u64, Taken>,
    next: u64,
    bytes: usize,
    max_seats: usize,
    max_bytes: usize,
}

struct Taken {
    phase: Phase,
    bytes: usize,
    /// Dropped with the entry, which tells the seat's holder to leave.
    _stay: oneshot::Sender<()>,
}

impl Seats {
    pub fn new(max_seats: usize, max_bytes: usize) -> Self {
        let room = Room {
            taken: BTreeMap::new(),
            next: 0,
            bytes: 0,
            max_seats: max_seats.max(1),
            max_bytes,
        };
        Self { room: Arc::new(Mutex::new(room)) }
    }

    /// A seat for a connection that has just arrived; always succeeds, at the cost of another.
    pub fn take(&self) -> (Seat, Evicted) {
        let (stay, evicted) = oneshot::channel();
        let mut room = lock(&self.room);
        while room.taken.len() >= room.max_seats {
            room.evict_longest_waiting(None);
        }
        let id = room.next;
        room.next += 1;
        room.taken.insert(id, Taken { phase: Phase::Asking, bytes: 0, _stay: stay });
        (Seat { room: Arc::clone(&self.room), id }, evicted)
    }

    /// Frees one seat, as when the process is out of file descriptors.
    pub fn evict_one(&self) {
        lock(&self.room).evict_longest_waiting(None);
    }

    #[cfg(test)]
    pub fn taken(&self) -> usize {
        lock(&self.room).taken.len()
    }
}

impl Room {
    /// Returns false if there was nobody else to evict.
    fn evict_longest_waiting(&mut self, except: Option<u64>) -> bool {
        let others = self.taken.iter().filter(|(id, _)| Some(**id) != except);
        let victim = others.min_by_key(|(id, taken)| (taken.phase, **id)).map(|(id, _)| *id);
        victim.is_some_and(|id| self.remove(id))
    }

    fn remove(&mut self, id: u64) -> bool {
        let removed = self.taken.remove(&id);
        self.bytes -= removed.as_ref().map_or(0, |taken| taken.bytes);
        removed.is_some()
    }
}

/// One connection's place; given back on drop.
pub(crate) struct Seat {
    room: Arc<Mutex<Room>>,
    id: u64,
}

/// Completes when the seat is given to somebody else.
pub(crate) type Evicted = oneshot::Receiver<()>;

impl Seat {
    /// How far the connection is.
    pub fn enter(&self, phase: Phase) {
        if let Some(taken) = lock(&self.room).taken.get_mut(&self.id) {
            taken.phase = phase;
        }
    }

    /// Says how many bytes the connection holds now; others make room if need be.
    pub fn hold(&self, bytes: usize) {
        let mut room = lock(&self.room);
        let Some(taken) = room.taken.get_mut(&self.id) else { return };
        let before = std::mem::replace(&mut taken.bytes, bytes);
        room.bytes = room.bytes - before + bytes;
        while room.bytes > room.max_bytes && room.evict_longest_waiting(Some(self.id)) {}
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        lock(&self.room).remove(self.id);
    }
}

/// Nothing under this lock leaves it half done, so a panic elsewhere does not spoil it.
fn lock(room: &Mutex<Room>) -> MutexGuard<'_, Room> {
    room.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_evicted(evicted: &mut Evicted) -> bool {
        evicted.try_recv() == Err(oneshot::error::TryRecvError::Closed)
    }

    #[test]
    fn the_longest_waiting_loses_its_seat() {
        let seats = Seats::new(2, 100);
        let (served, mut served_evicted) = seats.take();
        served.enter(Phase::Answering);
        let (_silent, mut silent_evicted) = seats.take();
        let (_good, mut good_evicted) = seats.take();
        assert!(!is_evicted(&mut served_evicted));
        assert!(is_evicted(&mut silent_evicted));
        assert!(!is_evicted(&mut good_evicted));
        assert_eq!(seats.taken(), 2);
    }

    #[test]
    fn the_answered_leave_before_the_silent() {
        let seats = Seats::new(2, 100);
        let (_silent, mut silent_evicted) = seats.take();
        let (answered, mut answered_evicted) = seats.take();
        answered.enter(Phase::Closing);
        let _good = seats.take();
        assert!(is_evicted(&mut answered_evicted));
        assert!(!is_evicted(&mut silent_evicted));
    }

    #[test]
    fn bytes_are_bounded_too() {
        let seats = Seats::new(10, 100);
        let (first, mut first_evicted) = seats.take();
        let (second, _second_evicted) = seats.take();
        first.hold(60);
        second.hold(40);
        assert!(!is_evicted(&mut first_evicted));
        second.hold(41);
        assert!(is_evicted(&mut first_evicted));
        drop((first, second));
        assert_eq!(seats.taken(), 0);
        assert_eq!(lock(&seats.room).bytes, 0);
    }

    #[test]
    fn an_evicted_seat_counts_for_nothing() {
        let seats = Seats::new(1, 100);
        let (first, _) = seats.take();
        first.hold(50);
        let (second, _) = seats.take();
        first.hold(70);
        drop(first);
        second.hold(10);
        assert_eq!(lock(&seats.room).bytes, 10);
    }
}

//! Completion sources of kvrail. All `unsafe`, every system call and every device live here.
//!
//! # The contract
//!
//! A reactor takes work and later says that it has ended. It never blocks and it never lets go
//! of memory early: whatever a piece of work reads or writes is owned by the reactor from
//! [`Reactor::submit`] until that work comes out of [`Reactor::poll`]. So a completion is also
//! the proof that the memory is quiet, and [`Reactor::fence`] only hurries it along.
//!
//! [`copy`] is the shortest full example.
#![deny(unsafe_op_in_unsafe_fn)]

pub mod affinity;
pub mod copy;
pub mod cuda;
pub mod doorbell;
mod epoll;
mod foreign;
pub mod host;
pub mod numa;
pub mod probe;
pub mod region;
#[cfg(feature = "sim")]
pub mod sim;
pub mod sockets;
pub mod stream;
#[doc(hidden)]
pub mod sync;
pub mod ticket;
pub mod uring;
pub mod vector;
pub mod verbs;

/// A source of completions, driven by the one thread that owns it.
pub trait Reactor {
    /// What it can be asked to do. Owns the memory it touches.
    type Work;
    /// How a piece of work ended; gives the memory back.
    type Done;

    /// Takes `work` under a new name, or gives it back when the reactor is full. Never blocks.
    fn submit(&mut self, work: Self::Work) -> Result<u64, Self::Work>;

    /// Moves work forward and appends what has ended, at most `budget` of it. Never blocks.
    /// Returns how much was done, 0 when there was nothing to do.
    fn poll(&mut self, budget: usize, done: &mut Vec<Self::Done>) -> usize;

    /// Called before parking. `true`: the next completion rings the doorbell. `false`: something
    /// is already there, poll again.
    fn arm(&mut self) -> bool;

    /// Asks for an early end of the named work. It still comes out of [`Reactor::poll`], and
    /// only then is its memory untouched for good. Unknown names are ignored.
    fn fence(&mut self, name: u64);
}

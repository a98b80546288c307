//! What two processes of one host share, and the one rule that makes it safe:
//! **a process writes only into memory of its own.** A peer's memory is mapped read-only (or read
//! by `process_vm_readv`), and whoever owns the destination copies. So nobody can be stopped in
//! the middle of a store into somebody else's memory, and taking memory back never waits for a
//! peer.
//!
//! - [`socket`]: Unix sockets that pass descriptors; the kernel says who is at the other end
//! - [`view`]: a peer's region, mapped read-only from a memfd that can't shrink
//! - [`process`]: a peer's foreign memory, read where the kernel permits it
//! - [`lane`]: requests and replies in a ring of words that both map; nothing in it is trusted
//! - [`ledger`]: the owner's list of regions that are alive, for readers to check behind a copy

pub mod lane;
pub mod ledger;
mod mapping;
pub mod process;
pub mod socket;
pub mod view;

pub use self::mapping::NotMappable;

//! Bounds of what operators ask for: draining.

use super::{DIRECTORY_MAX_PEERS, FENCE_MS};

/// Guests that an engine remembers, of whom it asks to leave when it drains; as many as peers that
/// it remembers itself. The one who came first is forgotten first.
pub const GUESTS_MAX: usize = DIRECTORY_MAX_PEERS;

/// Time for a peer to take note of a guest: a round trip, as a fence. Opening a peer that is
/// stopped takes that much longer.
pub const ARRIVE_MS: u64 = FENCE_MS;

/// Time that a guest takes to answer that it has not left yet. Shorter than the answer's own limit
/// by far, longer than most transfers.
pub const LEAVE_MS: u64 = 5_000;

/// Between two questions to a guest, so that one who errs at once is not asked without pause.
pub const LEAVE_PAUSE_MS: u64 = 50;

/// Guests that are asked to leave at a time: each takes a descriptor for as long.
pub const LEAVING_MAX: usize = 256;

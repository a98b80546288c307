//! Bounds of what operators ask for: draining, metrics, configuration files.

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

/// Scrapes and health checks at a time; the one that waits longest makes room for a newcomer.
pub const EXPORTER_CONNECTIONS_MAX: usize = 64;

/// How often samples are sorted into buckets when nobody scrapes: the exporter crate's own default.
pub const EXPORTER_UPKEEP_MS: u64 = 5_000;

/// Upper ends of histograms' buckets, in seconds: three a decade, from the shortest copies (10 us)
/// to the deadline for progress (30 s).
pub const SECONDS_BUCKETS: [f64; 20] = [
    1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1, 0.2, 0.5, 1.0,
    2.0, 5.0, 10.0, 30.0,
];

/// Longest configuration file: far more than all settings take.
pub const CONFIG_MAX_BYTES: u64 = 64 << 10;

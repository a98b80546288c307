//! Bounds of metadata services: as their client, and of our own server.

use super::CONTROL_FRAME_MAX_BYTES;

/// Time for one request to a metadata server (Mooncake's value).
pub const METADATA_REQUEST_MS: u64 = 3_000;

/// Time to connect to a metadata server (Mooncake's value).
pub const METADATA_CONNECT_MS: u64 = 1_500;

/// How long etcd and Redis keep an engine's documents after its last word, by default. They are
/// renewed in every third part of this, and each try may take [`METADATA_REQUEST_MS`]: two may fail
/// before the name is lost. A killed engine is found for so long.
pub const METADATA_LEASE_MS: u64 = 15_000;

/// The shortest lease: etcd's count in seconds, and below one its own elections outlast them.
pub const METADATA_LEASE_MIN_MS: u64 = 1_000;

/// The longest lease: a name that a dead engine holds for longer than a day is one for good.
pub const METADATA_LEASE_MAX_MS: u64 = 24 * 3_600_000;

/// Renewals in the time of a lease.
pub const METADATA_RENEWALS: u32 = 3;

/// How far the clocks of two hosts may be apart before one takes the other's document, which it
/// also cannot reach, for abandoned. Hosts without NTP drift by a second or so a day.
pub const METADATA_SKEW_MS: u64 = 60_000;

/// Times a name is looked at and put: once, and once more when another engine was faster or our own
/// lease ran out in between.
pub const METADATA_PUT_TRIES: u32 = 2;

/// Members of etcd that are tried one after the other; it recommends seven at most.
pub const ETCD_MEMBERS_MAX: usize = 8;

/// Keys a metadata server keeps: two per engine, for 32,768 engines.
pub const METADATA_KEYS_MAX: usize = 65_536;

/// Longest key of a metadata server; a name is a host and a port, a DNS name has 253 bytes at most.
pub const METADATA_KEY_MAX_BYTES: usize = 1024;

/// Bytes a metadata server keeps in all, keys and values.
pub const METADATA_TOTAL_MAX_BYTES: usize = 256 << 20;

/// Connections a metadata server has at once; the longest-waiting one makes room.
pub const METADATA_CONNECTIONS_MAX: usize = 512;

/// Life of one connection to a metadata server, which carries one request.
pub const METADATA_CONNECTION_MS: u64 = 10_000;

/// Bytes of requests that all connections to a metadata server hold: sixty-four of the largest.
pub const METADATA_BUFFERED_MAX_BYTES: usize = 64 * CONTROL_FRAME_MAX_BYTES;

//! Bounds of what peers prove and what is made of it.

/// Keys of one file: one for each engine of a large cluster, in a few hundred KiB.
pub const KEYS_MAX: usize = 4096;

/// Longest name of a key: the handshake says its length in one byte.
pub const KEY_NAME_MAX_BYTES: usize = u8::MAX as usize;

/// Longest file that is read for authentication: a chain of certificates has a few KiB, as many
/// keys as may be have 1.3 MiB.
pub const AUTH_FILE_MAX_BYTES: usize = 2 << 20;

/// How often those files are looked at, at most: a rotation takes effect within a second, and a
/// flood of handshakes doesn't read files.
pub const AUTH_FILES_LOOK_MS: u64 = 1_000;

/// How long a pass for a data connection is good: the connection stands when it is asked for, so
/// what it has to outlast is a busy shard.
pub const PASS_NS: u64 = 10_000_000_000;

/// Passes that one peer may have and not use: those of [`crate::limits::LANES_MAX`] new lanes on
/// each shard of a large host.
pub const PASSES_PEER_MAX: usize = 1024;

/// Passes of all peers: 10 MB or so.
pub const PASSES_MAX: usize = 1 << 16;

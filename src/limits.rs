//! Every bound by name, with its reason. What users may change is in [`crate::config`].

/// Longest control frame we accept or send, type byte included.
/// Mooncake's default and minimum (`MC_HANDSHAKE_MAX_LENGTH`): a larger one no default peer reads.
pub const CONTROL_FRAME_MAX_BYTES: usize = 1 << 20;

/// Regions of one engine. Each takes 60 bytes or so of the descriptor, which a default peer reads
/// up to [`CONTROL_FRAME_MAX_BYTES`]: 8,192 fit with room for names.
pub const REGIONS_MAX: usize = 8192;

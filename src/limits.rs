//! Every bound by name, with its reason. What users may change is in [`crate::config`].

/// Longest control frame we accept or send, type byte included.
/// Mooncake's default and minimum (`MC_HANDSHAKE_MAX_LENGTH`): a larger one no default peer reads.
pub const CONTROL_FRAME_MAX_BYTES: usize = 1 << 20;

//! Every bound by name, with its reason. What users may change is in [`crate::config`].

/// Longest control frame we accept or send, type byte included.
/// Mooncake's default and minimum (`MC_HANDSHAKE_MAX_LENGTH`): a larger one no default peer reads.
pub const CONTROL_FRAME_MAX_BYTES: usize = 1 << 20;

/// Port of a control daemon whose name has none (Mooncake's `MC_HANDSHAKE_PORT`).
pub const CONTROL_DEFAULT_PORT: u16 = 12001;

/// Ports for the control daemon and the data listener (Mooncake's `MC_MIN_RPC_PORT` and
/// `MC_MAX_RPC_PORT`): firewalls of a Mooncake cluster are opened for these.
pub const CONTROL_PORTS: std::ops::RangeInclusive<u16> = 15000..=17000;

/// Random ports tried before any free one is taken; Mooncake's number.
pub const CONTROL_PORT_TRIES: u32 = 500;

/// Connections the kernel keeps until we accept them. Linux cuts it to `net.core.somaxconn`
/// (4096 by default); Mooncake uses 128, which a flood of silent clients fills at once.
pub const CONTROL_BACKLOG: u32 = 1024;

/// Control connections served at once; the longest-waiting half-open one makes room for a newcomer.
/// Well under the usual soft limit of 1024 open files, of which data connections need their share.
pub const CONTROL_CONNECTIONS_MAX: usize = 256;

/// Bytes that all control connections together hold: thirty-two of the largest frames.
pub const CONTROL_BUFFERED_MAX_BYTES: usize = 32 * CONTROL_FRAME_MAX_BYTES;

/// Time for a client to send its whole request, and again for it to take our answer. Mooncake allows
/// 5 s for each read; we bound the whole, so that dripping a byte at a time gains nothing.
pub const CONTROL_REQUEST_MS: u64 = 10_000;

/// Time for a client to close after our answer: closing first could reset the connection while the
/// answer is still unread. Mooncake waits 5 s; a client that reads needs milliseconds.
pub const CONTROL_LINGER_MS: u64 = 2_000;

/// Pause after a failed accept (out of file descriptors), so that it does not spin.
pub const CONTROL_ACCEPT_PAUSE_MS: u64 = 10;

/// Time for one TCP connect (Mooncake's `MC_HANDSHAKE_CONNECT_TIMEOUT`).
pub const CONTROL_CONNECT_MS: u64 = 5_000;

/// Time for name resolution and all addresses of a host together: three connects.
pub const CONTROL_CONNECT_ALL_MS: u64 = 15_000;

/// Time for a peer to answer a request. A Mooncake daemon serves one client at a time and may spend
/// 5 s on each silent one ahead of us, so Mooncake's own clients wait 60 s.
pub const CONTROL_ANSWER_MS: u64 = 60_000;

/// Calls (resolve, notify, probe, connect) under way at once; more are Busy.
pub const CONTROL_CALLS_MAX: usize = 1024;

/// Time for stopping the control thread after the keys are withdrawn: name lookups that hang in libc
/// are left behind.
pub const CONTROL_STOP_MS: u64 = 1_000;

/// Threads for name lookups, the only blocking calls of the control plane.
pub const CONTROL_LOOKUP_THREADS: usize = 4;

/// Peers whose descriptors are remembered.
pub const DIRECTORY_MAX_PEERS: usize = 4096;

/// Bytes of remembered descriptors: sixty-four of the largest.
pub const DIRECTORY_MAX_BYTES: usize = 64 * CONTROL_FRAME_MAX_BYTES;

/// Time for one request to a metadata server (Mooncake's value).
pub const METADATA_REQUEST_MS: u64 = 3_000;

/// Time to connect to a metadata server (Mooncake's value).
pub const METADATA_CONNECT_MS: u64 = 1_500;

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

/// Longest segment name; leaves room for a key's prefix.
pub const NAME_MAX_BYTES: usize = METADATA_KEY_MAX_BYTES / 2;

/// Bytes of requests that all connections to a metadata server hold: sixty-four of the largest.
pub const METADATA_BUFFERED_MAX_BYTES: usize = 64 * CONTROL_FRAME_MAX_BYTES;

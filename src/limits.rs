//! Every bound by name, with its reason. What users may change is in [`crate::config`].

use std::time::Duration;

/// Longest control frame we accept or send, type byte included.
/// Mooncake's default and minimum (`MC_HANDSHAKE_MAX_LENGTH`): a larger one no default peer reads.
pub const CONTROL_FRAME_MAX_BYTES: usize = 1 << 20;

/// Highest CPU number plus one that a CPU list may name: eight times the largest NR_CPUS a Linux
/// kernel is built with, so a damaged list can't make us allocate.
pub const CPUS_MAX: usize = 64 << 10;

/// Most shards of a runtime: one for each CPU of the largest two-socket machines. A shard costs two
/// threads (the executor has a helper), three small rings and two eventfds.
pub const SHARDS_MAX: usize = 1024;

/// Most shards that are started unasked: the two sockets' worth of NICs (eight) of the largest
/// GPU nodes; the CPUs belong to the service that embeds us.
pub const SHARDS_DEFAULT_MAX: usize = 8;

/// How long a shard polls for more work before it parks, by default: about what waking it costs
/// (57 us from parked, measured over an eventfd), so spinning at most doubles the price of a wake.
pub const IDLE_BUDGET: Duration = Duration::from_micros(50);

/// Messages that wait for one actor or pump. A caller past it is told Busy, so memory is bounded by
/// this times the message's size.
pub const MAILBOX_MESSAGES: usize = 1024;

/// Requests to start something on a shard that wait for its next turn.
pub const SHARD_COMMANDS: usize = 1024;

/// Messages, tasks or commands that a shard takes from one queue in a turn: enough to amortize the
/// turn, few enough that the next completion source waits microseconds.
pub const TURN_BURST: usize = 64;

/// Turns in vain after which a spinning shard offers its CPU to other threads: with more spinning
/// threads than CPUs, a round trip between two shards took 7.7 ms (two time slices) without it.
pub const SPIN_TURNS: u32 = 64;

/// How long a stopping runtime lets actors and pumps finish, by default. A transfer that needs
/// longer has lost its peer.
pub const STOP_DRAIN: Duration = Duration::from_secs(5);

/// How long `stop` waits beyond the drain for shards to let go of what is left: a shard that
/// exceeds it has a handler that blocks its thread, and is abandoned with a warning.
pub const STOP_GRACE: Duration = Duration::from_secs(1);

/// How often a stopping shard that has nothing to do asks its pumps whether they are quiet.
pub const STOP_TICK: Duration = Duration::from_millis(1);

/// Locked memory that the executor insists on per process, in bytes (glommio's own floor).
pub const MEMLOCK_MIN_BYTES: u64 = 512 << 10;

/// Executor ring entries. A shard waits for its doorbell and one timer; transfers have a ring of
/// their own.
pub const EXECUTOR_RING_ENTRIES: usize = 16;

/// The executor's preempt timer: never, as a shard is one task and has nobody to give way to.
/// When it fires between a reactor pass and the first task after it, the executor parks with that
/// task runnable, for ever. At 1 ms a loaded machine did so within minutes, and a container's CPU
/// quota stops threads for up to 100 ms.
pub const EXECUTOR_PREEMPT: Duration = Duration::from_secs(365 * 24 * 3600);

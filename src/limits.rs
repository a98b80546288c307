//! Every bound by name, with its reason. What users may change is in [`crate::EngineBuilder`].

mod auth;
mod metadata;
mod operations;

use std::time::Duration;

pub use self::auth::*;
pub use self::metadata::*;
pub use self::operations::*;

/// Longest control frame we accept or send, type byte included.
/// Mooncake's default and minimum (`MC_HANDSHAKE_MAX_LENGTH`): a larger one no default peer reads.
pub const CONTROL_FRAME_MAX_BYTES: usize = 1 << 20;

/// Regions of one engine. Each takes 60 bytes or so of the descriptor, which a default peer reads
/// up to [`CONTROL_FRAME_MAX_BYTES`]: 8,192 fit with room for names.
pub const REGIONS_MAX: usize = 8192;

/// Grants of one engine that hold at a time: a block each for 65,536 blocks, 64 GiB of KV cache in
/// blocks of 1 MiB. Their words take 2 MiB that every peer of this host maps.
pub const GRANTS_MAX: usize = 1 << 16;

/// Highest CPU number plus one that a CPU list may name: eight times the largest NR_CPUS a Linux
/// kernel is built with, so a damaged list can't make us allocate.
pub const CPUS_MAX: usize = 64 << 10;

/// Entries of an RDMA port's address table that are read; the largest tables have 256.
pub const GIDS_MAX: usize = 1024;

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

/// Descriptors that an engine opens before it has a peer: 11 and 6 a shard, for the eight shards
/// it starts unasked.
pub const OPEN_FILES_MIN: u64 = 64;

/// Descriptors that serve a node: the usual soft limit, good for 900 connections and more.
pub const OPEN_FILES_AMPLE: u64 = 1024;

/// Executor ring entries. A shard waits for its doorbell and one timer; transfers have a ring of
/// their own.
pub const EXECUTOR_RING_ENTRIES: usize = 16;

/// The executor's preempt timer: never, as a shard is one task and has nobody to give way to.
/// When it fires between a reactor pass and the first task after it, the executor parks with that
/// task runnable, for ever. At 1 ms a loaded machine did so within minutes, and a container's CPU
/// quota stops threads for up to 100 ms.
pub const EXECUTOR_PREEMPT: Duration = Duration::from_secs(365 * 24 * 3600);

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

/// Time for a client to send its whole request, and again for it to take our answer. Mooncake has
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

/// Time for stopping the control thread after the keys are withdrawn: lookups that hang in libc
/// are left behind.
pub const CONTROL_STOP_MS: u64 = 1_000;

/// Threads for name lookups, the only blocking calls of the control plane.
pub const CONTROL_LOOKUP_THREADS: usize = 4;

/// Peers whose descriptors are remembered.
pub const DIRECTORY_MAX_PEERS: usize = 4096;

/// Bytes of remembered descriptors: sixty-four of the largest.
pub const DIRECTORY_MAX_BYTES: usize = 64 * CONTROL_FRAME_MAX_BYTES;

/// Longest segment name; leaves room for a key's prefix.
pub const NAME_MAX_BYTES: usize = METADATA_KEY_MAX_BYTES / 2;

/// Bytes that one receive takes in: large enough that a call costs little beside the copy
/// (1 MiB is 100 us or more), small enough that a shard's other connections get their turn.
pub const RECEIVE_MAX_BYTES: usize = 1 << 20;

/// Bytes that one send hands over; as [`RECEIVE_MAX_BYTES`].
pub const SEND_MAX_BYTES: usize = 1 << 20;

/// Pieces of one send or receive; the kernel takes 1,024 (`UIO_MAXIOV`), and past some dozens a
/// longer list gains nothing at 4 KiB a piece.
pub const SEND_MAX_PARTS: usize = 256;

/// Requests up to this size are received through a read-ahead buffer: copying 16 KiB once more
/// costs about as much as the system call it saves (1 us).
pub const SMALL_REQUEST_BYTES: u64 = 16 << 10;

/// The read-ahead buffer of a connection with small requests.
pub const SMALL_ROOM_BYTES: usize = 64 << 10;

/// Room for headers behind a READ of any length: a lane's window of them
/// ([`LANE_WINDOW_REQUESTS`], 17 bytes each) comes by one receive, and a large body behind them is
/// copied no further than this.
pub const HEADERS_ROOM_BYTES: usize = 17 * LANE_WINDOW_REQUESTS;

/// Small requests that come without a pause until more is read ahead: a batch shorter than that is
/// stored and answered piece by piece while its rest is sent.
pub const READ_AHEAD_AFTER_BYTES: usize = 1 << 20;

/// The read-ahead buffer from then on: 28 writes of 12 KiB come by a receive then, not 7, and are
/// answered by one send. Small enough to lie in a core's second-level cache (1 MiB and more).
pub const READ_AHEAD_MAX_BYTES: usize = 256 << 10;

/// Replies that wait on one connection before we stop reading its requests. A peer that pipelines
/// without reading is slowed down, and costs us 64 bytes a reply.
pub const REPLIES_MAX: usize = 512;

/// Longest event body: a notification and its sender's name. Mooncake passes 100,000 bytes.
pub const EVENT_MAX_BYTES: u64 = 256 << 10;

/// Requests under way on one connection. Mooncake's and our server answer in order, so more only
/// hide latency; 256 of 4 KiB fill [`SEND_MAX_BYTES`] and cost 30 KiB of bookkeeping.
pub const LANE_WINDOW_REQUESTS: usize = 256;

/// Bytes under way on one connection: some sends ahead of the answers, and small enough that a
/// cancelled transfer stops within milliseconds.
pub const LANE_WINDOW_BYTES: usize = 8 << 20;

/// Slices of one batch: 65,536 carry a 128k-token prompt layer by layer (8,192 blocks of 8
/// layers' pages) and cost 3 MiB of bookkeeping.
pub const BATCH_SLICES_MAX: usize = 1 << 16;

/// Counters that are open at a time; one a layer and request is thousands.
pub const COUNTERS_MAX: usize = 1 << 16;

/// Notifications that wait to be read. Mooncake keeps any number, which a peer can use to eat
/// our memory.
pub const NOTIFICATIONS_MAX: usize = 4096;

/// Bytes of the notifications that wait to be read.
pub const NOTIFICATIONS_MAX_BYTES: usize = 16 << 20;

/// Connections to one peer from one shard. Mooncake's initiator uses 4 a peer.
pub const LANES_MAX: usize = 4;

/// Bytes that wait for a peer for each connection to it: below, another connection gains nothing.
pub const LANE_SPREAD_BYTES: usize = 2 << 20;

/// Attempts to send one slice alone. A peer that closed a connection has stopped storing from it,
/// so the slice may go out again; thrice distinguishes a lost connection from a peer that keeps
/// closing.
pub const ATTEMPTS_MAX: u32 = 3;

/// Connections that peers may have open to one shard: idle ones live for ever (Mooncake loses
/// writes on a connection closed under it), so their number has a cap; the longest idle makes room.
/// 1,000 half-open ones leave room for real peers; each costs under 1 KiB.
pub const SERVER_CONNECTIONS_MAX: usize = 4096;

/// Operations of one shard's ring: a send and a receive for every connection, alarms besides.
pub const RING_OPERATIONS_MAX: usize = 2 * SERVER_CONNECTIONS_MAX + 1024;

/// How often a shard with work under way looks at its clocks.
pub const TICK_NS: u64 = 10_000_000;

/// A posted slice of a cancelled or expired transfer gets so long to end by itself before its
/// connection is closed under it; a healthy connection needs a few milliseconds.
pub const ENDING_GRACE_NS: u64 = 100_000_000;

/// The same for a peer that does move bytes, but slowly: a full window ([`LANE_WINDOW_BYTES`])
/// takes so long at 32 Mbit/s. Without it a byte now and then outlives any deadline.
pub const ENDING_MAX_NS: u64 = 2_000_000_000;

/// A peer in mid-request that moves no byte for so long is gone. Mooncake's status time-out.
pub const PROGRESS_DEADLINE_NS: u64 = 30_000_000_000;

/// Time for a peer to read our last replies behind a refusal and to close. Closing first, with its
/// bytes unread, resets the connection: replies that it has not read yet are lost.
pub const LINGER_NS: u64 = 1_000_000_000;

/// Copies queued on one shard's local-copy actor; one batch may bring [`BATCH_SLICES_MAX`].
pub const COPIES_MAX: usize = 4 * BATCH_SLICES_MAX;

/// Bytes of one request under a grant on a data connection: a slice, since only kvrail peers ask
/// so. What is denied costs the connection as many bytes as what is granted, so it has a cap.
pub const GRANTED_MAX_BYTES: u64 = SLICE_BYTES as u64;

/// Bytes of one slice: what one lane carries at once and a lost connection repeats. As long as a
/// send ([`SEND_MAX_BYTES`]), so that one slice never waits for half of itself.
pub const SLICE_BYTES: usize = 1 << 20;

/// A batch goes to one more shard for each of these; below, the hop costs more than it gains.
pub const TCP_GROUP_BYTES: usize = 4 << 20;

/// Local copies up to this size, and as much of larger ones, are done on the caller's thread:
/// 100 us where they hit the caches. Waking a shard costs 25 us on an idle machine and a time
/// slice on a busy one, so handing over sooner did not pay (`cargo bench --bench local_copy`,
/// 4 MiB: 0.8 of memcpy with a share of 2 MiB, 1.0 with 4).
pub const COPY_INLINE_MAX_BYTES: usize = 4 << 20;

/// Groups of copies by GPUs that one shard's actor holds: a batch is one for each GPU.
pub const GPU_GROUPS_MAX: usize = 1024;

/// A local copy goes to one more shard for each of these.
pub const COPY_GROUP_BYTES: usize = 1 << 20;

/// Room in an event for its sender's name and the event's own fields.
pub const EVENT_NAME_MAX_BYTES: u64 = 1024;

/// Slices under way on one shard, sent or waiting; more are Busy. 16 of the largest batches, at
/// 100 bytes or so each.
pub const OUTSTANDING_MAX: usize = 16 * BATCH_SLICES_MAX;

/// Pause before a data connection is offered again to shards whose inboxes were full; they empty
/// them within microseconds.
pub const DATA_ACCEPT_PAUSE_MS: u64 = 1;

/// Lanes to one peer of the same host: as many as shards are started unasked. Each costs 96 KiB,
/// and copying scales no further than memory does.
pub const HOST_LANES_MAX: usize = SHARDS_DEFAULT_MAX;

/// Entries of one part on a lane. The ring holds four parts, so that one which is full has a whole
/// part in it, whose reply wakes the asker to send on.
pub const HOST_PART_COPIES: usize = 256;

/// Copies that a lane's server has taken from the ring: enough to keep it copying for a turn
/// (256 KiB) at 4 KiB each. The rest waits in the ring, where it costs nothing.
pub const HOST_COPIES_MAX: usize = 64;

/// Copies of one list on a lane: what one launch takes. It fills a quarter of the ring.
pub const HOST_LIST_COPIES: usize = kvrail_reactors::cuda::plan::LAUNCH_MAX_PAGES;

/// Copies on GPUs that a lane's server holds before it takes no more from the ring: a list that is
/// launched and one behind it.
pub const HOST_PAGES_MAX: usize = 2 * HOST_LIST_COPIES;

/// Replies that wait for room in a lane before its server takes no more requests.
pub const HOST_REPLIES_MAX: usize = 64;

/// Longest event that goes by a lane, 147 entries; longer ones go by TCP, since they would fill
/// the ring of [`HOST_PART_COPIES`] four times over.
pub const HOST_EVENT_MAX_BYTES: usize = 8 << 10;

/// Peers of this host that may be connected to an engine at a time; a descriptor and some
/// kilobytes each, apart from what they offer.
pub const HOST_SESSIONS_MAX: usize = 256;

/// Longest message between engines of one host, in JSON; the longest is a reason in words.
pub const HOST_MESSAGE_MAX_BYTES: usize = 4 << 10;

/// Time for a peer of this host to answer a step of the handshake. It answers at once, unless it
/// is stopped.
pub const HOST_ANSWER_MS: u64 = 2_000;

/// Questions to a peer of this host that wait for its answer.
pub const HOST_CALLS_MAX: usize = 1024;

/// Changes of regions that a session may not have told its peer yet; one that falls further
/// behind ends, and the peer connects anew.
pub const HOST_CHANGES_MAX: usize = 1024;

/// Questions about memory that one posting asks before the rest goes by TCP: a batch touches few
/// regions, and more questions mean that the peer refuses them.
pub const HOST_QUESTIONS_MAX: usize = 64;

/// Bytes of the copy by which a path's cost is estimated: past the caches of one core, and done in
/// a millisecond.
pub const CALIBRATION_BYTES: usize = 4 << 20;

/// Time for a peer to end a connection that it is asked to end and to say so. It needs a round
/// trip, unless it is stopped or out of reach; nobody waits longer for a receipt.
pub const FENCE_MS: u64 = 2_000;

/// When a shard goes on without the word of the control thread, which should have come.
pub const FENCE_PATIENCE_NS: u64 = 2 * FENCE_MS * 1_000_000;

/// Letters that wait for one peer; what is asked in them is asked again.
pub const LETTERS_MAX: usize = 1024;

/// A courier without letters goes home after so long: longer than any pause between two questions.
pub const LETTERS_IDLE_MS: u64 = 60_000;

/// Completions that a shard takes from one NIC in a turn; [`crate::limits::RDMA_LIST_MAX`].
pub const RDMA_COMPLETIONS_TURN: usize = 32;

/// Entries of a shard's completion queue on one NIC: those of 16 full endpoints at once, since only
/// one work request in [`RDMA_SIGNAL_EVERY`] completes by itself unless all are flushed.
pub const RDMA_COMPLETIONS: usize = 16 * 2 * RDMA_WINDOW_REQUESTS;

/// Work requests that a shard has under way on one NIC: they and what peers' endpoints need, a
/// marker or a window a queue pair, fit into [`RDMA_COMPLETIONS`] when all are flushed at once.
pub const RDMA_NIC_REQUESTS: usize = RDMA_COMPLETIONS / 2;

/// Receives that a shard has posted on one NIC: a notice needs one for the time until it is polled.
pub const RDMA_RECEIVES: usize = 1024;

/// A batch goes to one more shard for each of these.
pub const RDMA_GROUP_BYTES: usize = 4 << 20;

/// Processes that may have endpoints here, or ask for them: as many as there can be endpoints.
pub const RDMA_PEERS_MAX: usize = RDMA_ACCEPTED_MAX;

/// Time for a device to say that it has handed out the last word of a queue pair in error, once or
/// twice; most say so at once.
pub const RDMA_MARKER_NS: u64 = 500_000_000;

/// Time for peers to answer that they have fenced endpoints which carried nothing, when an engine
/// stops: some round trips. Who does not hear of it finds out by asking.
pub const RDMA_GOODBYE_NS: u64 = 200_000_000;

/// How often it is asked whether those are alive that have endpoints here. A NIC hears nothing of
/// a peer's death where it only serves.
pub const RDMA_VISIT_NS: u64 = 15_000_000_000;

/// Queue pairs of an RDMA endpoint. Mooncake's number (`MC_NUM_QP_PER_EP`), which its peers expect.
pub const RDMA_QUEUES: usize = 2;

/// Most queue pairs that a peer may ask for in one endpoint: eight times the default.
pub const RDMA_QUEUES_MAX: usize = 16;

/// Work requests under way on one queue pair: Mooncake's send queue (`MC_MAX_WR`).
pub const RDMA_WINDOW_REQUESTS: usize = 256;

/// Bytes under way on one endpoint: a 400 Gbit/s rail moves so much in 170 us, several round
/// trips, and giving a transfer up waits for no more than that.
pub const RDMA_WINDOW_BYTES: usize = 8 << 20;

/// Work requests of one list, which share a doorbell; UCX takes 16, and past some dozens the
/// doorbell costs nothing beside them.
pub const RDMA_LIST_MAX: usize = 32;

/// One work request in so many completes by itself; UCX's number. The send queue is four times as
/// long, so it never waits for a completion that nobody asked for.
pub const RDMA_SIGNAL_EVERY: usize = 64;

/// Pause before an endpoint is asked for again: the answer takes a round trip and two queue pairs,
/// 1-2 ms on soft-RoCE.
pub const RDMA_OPEN_RETRY_NS: u64 = 250_000_000;

/// Time for a peer to open an endpoint. Mooncake waits 10 s for its readiness.
pub const RDMA_OPEN_MAX_NS: u64 = 3_000_000_000;

/// A rail that completes nothing for so long while work is posted is silent. The device itself
/// gives up on a peer after 0.5 s (local ACK time-out 14, six times), a software one after seconds.
pub const RDMA_SILENCE_NS: u64 = 5_000_000_000;

/// A posted slice of a cancelled or expired transfer gets so long to end by itself before its
/// endpoint is given up for it: a full window takes 0.2 ms at 400 Gbit/s, 7 ms at 10.
pub const RDMA_GRACE_NS: u64 = 20_000_000;

/// Pause before a peer is asked again to fence an endpoint.
pub const RDMA_FENCE_RETRY_NS: u64 = 200_000_000;

/// Time for a peer to fence an endpoint; past it nothing is proven. A living peer needs
/// milliseconds, one that is stopped for a while gets two seconds, as a lane's does over TCP.
pub const RDMA_FENCE_MAX_NS: u64 = 2_000_000_000;

/// Time for our own queue pairs in error to flush; past it the NIC is silent, and the memory of
/// what was posted stays with us until it speaks.
pub const RDMA_DRAIN_MAX_NS: u64 = 2_000_000_000;

/// How long a rail rests after a failure, first; doubled for each further one.
pub const RDMA_PAUSE_NS: u64 = 100_000_000;

/// The longest rest of a rail: Mooncake's `MC_RDMA_RAIL_PAUSE_SECONDS`.
pub const RDMA_PAUSE_MAX_NS: u64 = 30_000_000_000;

/// A peer none of whose rails has done anything for so long is lost.
pub const RDMA_LOST_NS: u64 = 10_000_000_000;

/// Times one slice is posted: it goes to another rail twice, then the path is lost.
pub const RDMA_ATTEMPTS_MAX: u32 = 3;

/// RDMA devices of a peer's descriptor: the largest nodes have some twenty, with their virtual
/// functions a few hundred.
pub const RDMA_DEVICES_MAX: usize = 512;

/// Rails to one peer; the largest GPU nodes have eight NICs.
pub const RDMA_RAILS_MAX: usize = 8;

/// Endpoints that one shard accepts: 1,024 initiating shards of two rails. Two queue pairs and a
/// mailbox of 33 KiB each.
pub const RDMA_ACCEPTED_MAX: usize = 2048;

/// Initiators whose generations and events are remembered: those of [`RDMA_ACCEPTED_MAX`], and as
/// many that are gone.
pub const RDMA_INITIATORS_MAX: usize = 2 * RDMA_ACCEPTED_MAX;

/// Events of one initiator between the oldest that isn't over and the newest: what a receiver
/// remembers of it, 40 bytes each.
pub const RDMA_EVENTS_MAX: usize = 1024;

/// Notices in one queue's part of a mailbox: those that a receiver may have left unread.
pub const RDMA_NOTICES_MAX: usize = 256;

/// Windows that one endpoint has open or asked for; a device has 65,536 or more.
pub const RDMA_WINDOWS_MAX: usize = 1024;

/// Longest path of a NIC: a host name has 253 bytes at most, a port six and a device 63, and
/// Mooncake's servers are called whatever their users like.
pub const NIC_PATH_MAX_BYTES: usize = 1024;

/// How much is kept of a peer's reason to refuse a handshake. Mooncake's may quote four NIC paths.
pub const REPLY_MESSAGE_MAX_CHARS: usize = 512;

/// Time for the engine to answer a peer's handshake: milliseconds for queue pairs, and for an old
/// peer its descriptor must be fetched. Mooncake waits a minute.
pub const HANDSHAKE_MS: u64 = 10_000;

/// Endpoints that are accepted from Mooncake peers: 64 peers of eight NICs, each to eight of ours.
/// At the two queue pairs that Mooncake has in each they are a sixteenth of what a NIC can have.
pub const MOONCAKE_ACCEPTED_MAX: usize = 4096;

/// Requests that wait for one endpoint's queue pairs: its initiator asks once, and again if it
/// lost patience.
pub const MOONCAKE_WAITING_MAX: usize = 16;

/// Time for an initiator that knows the step to say that its queue pairs are ready: Mooncake's own
/// before it lets go of the endpoint.
pub const MOONCAKE_ACK_NS: u64 = 10_000_000_000;

/// Time for an endpoint at a Mooncake target to become ready. Its daemon serves one client after
/// the other, and each may hold it for 5 s.
pub const MOONCAKE_OPEN_MAX_NS: u64 = 10_000_000_000;

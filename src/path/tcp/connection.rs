//! One socket and what is under way on it: at most one send and one receive in the ring. Memory
//! that they touch is quiet when both have come back.

use std::collections::VecDeque;
use std::io;
use std::net::Shutdown;
use std::sync::Arc;

use kvrail_reactors::Reactor;
use kvrail_reactors::cuda::Landing;
use kvrail_reactors::region::Region;
use kvrail_reactors::stream::{Direction, Done, Socket, Streams, Work, is_fenced};
use kvrail_reactors::vector::Vector;

use super::client::{Broken, ClientStream, Request};
use super::gpu_loss::GpuLoss;
use super::server::ServerStream;
use super::shard::Guard;
use super::wire::LaneName;
use crate::auth::{PeerId, Seal};
use crate::canary::{self, Canary};
use crate::limits::{ENDING_GRACE_NS, LINGER_NS, PASS_NS};
use crate::path::served::Served;

/// Why a connection is over.
#[derive(Debug, Clone)]
pub(super) enum End {
    /// The peer closed it: it does not store anything from it any more.
    PeerClosed,
    /// The socket failed; for a client the peer is gone or has closed.
    Io(Arc<io::Error>),
    /// A GPU of ours did not give or take its bytes; the peer has nothing to do with it.
    Gpu(GpuLoss),
    /// The peer broke the protocol.
    Broken(Broken),
    /// The peer moved no byte for too long.
    Stalled,
    /// The peer owed an answer to a transfer that had ended, and for too long.
    GivenUp,
    /// We wanted it: the engine stops, or the memory it touches goes away.
    Ours,
}

/// Whose connection it is.
#[derive(Debug)]
pub(super) enum Role {
    Server(ServerStream),
    /// A lane to the peer with this key, made in this round of tries.
    Client {
        stream: ClientStream,
        peer: u64,
        round: u64,
    },
}

#[derive(Debug)]
pub(super) struct Connection {
    socket: Arc<Socket>,
    pub(super) role: Role,
    sending: Option<u64>,
    receiving: Option<u64>,
    /// First addresses of the regions that the send under way reads from.
    sending_from: Vec<u64>,
    /// The peer does not take bytes any more; its last answers may still be on their way.
    send_failed: bool,
    /// The peer refused a request and will close; what it sends until then means nothing.
    pub(super) rejected: bool,
    pub(super) end: Option<End>,
    since_ns: u64,
    /// When a byte last moved.
    pub(super) progress_ns: u64,
    /// The oldest answer that nobody waits for any more, by number, and since when.
    given_up: Option<(u64, u64)>,
    /// When a connection whose replies are out is closed, whether the peer has closed it or not.
    linger_until_ns: Option<u64>,
    /// Who waits for its end.
    guards: Vec<Guard>,
    /// Since when a send is under way from memory whose grant was taken back.
    cut_off_ns: Option<u64>,
    /// Vectors to use again.
    spare: Vec<Vector>,
}

impl Connection {
    pub(super) fn new(socket: Socket, role: Role, now_ns: u64) -> Self {
        Self {
            socket: Arc::new(socket),
            role,
            sending: None,
            receiving: None,
            sending_from: Vec::new(),
            send_failed: false,
            rejected: false,
            end: None,
            since_ns: now_ns,
            progress_ns: now_ns,
            given_up: None,
            linger_until_ns: None,
            guards: Vec::new(),
            cut_off_ns: None,
            spare: Vec::new(),
        }
    }

    /// Posts what can be posted. A client takes requests from `queue`, leaving out those that are
    /// `unwanted`, which it returns.
    pub(super) fn start(
        &mut self,
        tag: u64,
        now_ns: u64,
        ring: &mut Streams,
        queue: &mut VecDeque<Request>,
        unwanted: impl FnMut(&Request) -> bool,
        landing: &mut Landing,
    ) -> Vec<Request> {
        self.encrypt_if_due(ring);
        if self.end.is_some() {
            return Vec::new();
        }
        if !self.is_mid_request() {
            // Time in which the peer owed nothing does not count.
            self.progress_ns = now_ns;
        }
        if let Role::Server(stream) = &mut self.role
            && self.receiving.is_none()
        {
            stream.let_body_go(landing);
            stream.lend(landing);
        }
        let mut dropped = Vec::new();
        if self.sending.is_none() && !self.send_failed && !self.rejected {
            let mut vector = self.spare.pop().unwrap_or_default();
            match &mut self.role {
                Role::Server(stream) => stream.send_into(&mut vector),
                Role::Client { stream, .. } => {
                    dropped = stream.send_into(&mut vector, queue, unwanted);
                }
            }
            self.send(tag, ring, vector);
        }
        if self.receiving.is_none() {
            let mut vector = self.spare.pop().unwrap_or_default();
            match &mut self.role {
                Role::Server(stream) => stream.receive_into(&mut vector),
                Role::Client { stream, .. } => stream.receive_into(&mut vector),
            }
            self.receiving = self.post(tag, ring, Direction::Receive, vector);
        }
        self.finish_if_closing(now_ns, ring);
        dropped
    }

    /// Behind a pass that says so, before anything else is sent or received.
    fn encrypt_if_due(&mut self, ring: &mut Streams) {
        let Role::Server(stream) = &mut self.role else { return };
        let Some(seal) = stream.take_seal() else { return };
        if let Err(error) = encrypt(&self.socket, &seal) {
            tracing::warn!(%error, "a data connection can't be encrypted, and is closed");
            self.close(ring, End::Io(Arc::new(error)));
        }
    }

    fn send(&mut self, tag: u64, ring: &mut Streams, vector: Vector) {
        self.sending_from.clear();
        self.sending_from.extend(vector.memory().map(|slice| slice.region().addr()));
        self.sending_from.dedup();
        self.sending = self.post(tag, ring, Direction::Send, vector);
    }

    fn post(
        &mut self,
        tag: u64,
        ring: &mut Streams,
        direction: Direction,
        vector: Vector,
    ) -> Option<u64> {
        if vector.is_empty() {
            self.spare.push(vector);
            return None;
        }
        let work = Work { tag, socket: self.socket.clone(), direction, vector };
        match ring.submit(work) {
            Ok(name) => Some(name),
            Err(_) => {
                // The ring holds two operations for every connection that the limits allow.
                self.close(ring, End::Io(Arc::new(io::ErrorKind::OutOfMemory.into())));
                None
            }
        }
    }

    /// A send came back. The server may go on reading what it had put off.
    pub(super) fn sent(
        &mut self,
        tag: u64,
        mut done: Done,
        ring: &mut Streams,
        now_ns: u64,
        served: &mut impl Served,
    ) {
        self.sending = None;
        match done.result {
            Ok(count) if count < done.vector.len() => {
                self.progress_ns = now_ns;
                done.vector.advance(count);
                self.send(tag, ring, done.vector);
                return;
            }
            Ok(_) => self.progress_ns = now_ns,
            Err(error) => match end_of(error, Direction::Send, &done.vector) {
                // A client's peer may have answered before it closed: its receive will tell.
                End::Io(_) if matches!(self.role, Role::Client { .. }) => self.send_failed = true,
                end => self.close(ring, end),
            },
        }
        self.sending_from.clear();
        if let Role::Server(stream) = &mut self.role {
            stream.sent(served);
        }
        self.recycle(done.vector);
    }

    /// A receive came back; returns its vector and the bytes in it, or ends the connection.
    pub(super) fn received(
        &mut self,
        done: Done,
        ring: &mut Streams,
        now_ns: u64,
    ) -> Option<(Vector, usize)> {
        self.receiving = None;
        match done.result {
            Ok(0) => self.peer_closed(ring),
            Ok(count) => {
                self.progress_ns = now_ns;
                return Some((done.vector, count));
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::ConnectionReset) => {
                self.close(ring, End::PeerClosed);
            }
            // Nothing was received: the rest goes elsewhere.
            Err(error) if self.is_cut_off(&error) => {}
            Err(error) => self.close(ring, end_of(error, Direction::Receive, &done.vector)),
        }
        self.recycle_received(done.vector);
        None
    }

    fn recycle(&mut self, mut vector: Vector) {
        vector.clear();
        self.spare.push(vector);
    }

    /// The same for a receive's, unless it had more room than receives to come.
    pub(super) fn recycle_received(&mut self, vector: Vector) {
        let room_bytes = vector.scratch().len();
        match &self.role {
            Role::Server(stream) if !stream.has_use_for(room_bytes) => {}
            _ => self.recycle(vector),
        }
    }

    /// A server that was half-closed still answers; Mooncake's v1 initiator closes right behind
    /// its WRITE.
    fn peer_closed(&mut self, ring: &mut Streams) {
        let answers_left = match &mut self.role {
            Role::Server(stream) => {
                stream.close();
                stream.has_replies() || self.sending.is_some()
            }
            Role::Client { .. } => false,
        };
        if !answers_left {
            self.close(ring, End::PeerClosed);
        }
    }

    fn finish_if_closing(&mut self, now_ns: u64, ring: &mut Streams) {
        let Role::Server(stream) = &self.role else { return };
        if !stream.is_closing() || stream.has_replies() || self.sending.is_some() {
            return;
        }
        if !stream.is_lingering() {
            self.close(ring, End::Ours);
        } else if self.linger_until_ns.is_none() {
            self.linger_until_ns = Some(now_ns + LINGER_NS);
            // The peer reads the replies, then this end, and closes.
            let _ = self.socket.shutdown(Shutdown::Write);
        }
    }

    /// Whether it carries requests of somebody who is let in.
    pub(super) fn serves_somebody(&self) -> bool {
        matches!(&self.role, Role::Server(stream) if stream.is_let_in())
    }

    /// Whether it has begun to show a pass and drips: none is good for longer.
    pub(super) fn is_late_to_be_let_in(&self, now_ns: u64) -> bool {
        let is_kept_out = matches!(&self.role, Role::Server(stream) if !stream.is_let_in());
        is_kept_out && now_ns.saturating_sub(self.since_ns) > PASS_NS
    }

    /// Whether the peer has had its time to read our last replies.
    pub(super) fn has_lingered(&self, now_ns: u64) -> bool {
        self.linger_until_ns.is_some_and(|until_ns| until_ns <= now_ns)
    }

    /// Ends the connection; its memory is quiet once [`Connection::is_quiet`].
    pub(super) fn close(&mut self, ring: &mut Streams, end: End) {
        if self.end.is_some() {
            return;
        }
        self.end = Some(end);
        if canary::is_on(Canary::ReuseBeforeFence) {
            return;
        }
        // An error means that the socket is down already.
        let _ = self.socket.shutdown(Shutdown::Both);
        for name in [self.sending, self.receiving].into_iter().flatten() {
            ring.fence(name);
        }
    }

    /// Whether the peer calls it so.
    pub(super) fn is_called(&self, lane: LaneName) -> bool {
        matches!(&self.role, Role::Server(stream) if stream.name() == Some(lane))
    }

    /// Ends it for a peer that waits until it is quiet. For another than whose it is, it goes on,
    /// and that one waits for an end that comes by itself.
    pub(super) fn end_for(&mut self, peer: &PeerId, ring: &mut Streams, guard: Guard) {
        // Who has waited in vain is gone: however often somebody asks, few are kept.
        self.guards.retain(|waiting| !waiting.is_disconnected());
        self.guards.push(guard);
        if matches!(&self.role, Role::Server(stream) if stream.is_of(peer)) {
            self.close(ring, End::Ours);
        }
    }

    /// Has the kernel let go of memory whose grant was taken back. A receive is taken back at once.
    /// No kernel tells how far a send had come, so a peer that does not read soon is cut off.
    pub(super) fn cut_off(&mut self, ring: &mut Streams, now_ns: u64) {
        let Role::Server(stream) = &mut self.role else { return };
        stream.let_replies_go();
        if stream.stores_struck() {
            self.receiving.into_iter().for_each(|name| ring.fence(name));
        }
        if !stream.sends_struck() {
            self.cut_off_ns = None;
        } else if now_ns - *self.cut_off_ns.get_or_insert(now_ns) > ENDING_GRACE_NS {
            self.close(ring, End::Ours);
        }
    }

    /// Whether a receive ended because we took it back.
    fn is_cut_off(&self, error: &io::Error) -> bool {
        let stores = matches!(&self.role, Role::Server(stream) if stream.stores_struck());
        stores && self.end.is_none() && is_fenced(error)
    }

    /// Nothing is under way: neither the kernel nor a GPU touches memory for this connection.
    pub(super) fn is_quiet(&self) -> bool {
        self.sending.is_none() && self.receiving.is_none() && !self.is_landing()
    }

    /// Whether what has come is on its way to a GPU.
    pub(super) fn is_landing(&self) -> bool {
        matches!(&self.role, Role::Server(stream) if stream.is_landing())
    }

    /// Brings it to its place.
    pub(super) fn land(&mut self, landing: &mut Landing) {
        if let Role::Server(stream) = &mut self.role {
            stream.land(landing);
        }
    }

    /// It has ended and its memory is quiet.
    pub(super) fn is_over(&self) -> bool {
        self.end.is_some() && (self.is_quiet() || canary::is_on(Canary::ReuseBeforeFence))
    }

    /// Whether it may read from or write to `region`.
    pub(super) fn touches(&self, region: &Region) -> bool {
        let under_way = match &self.role {
            Role::Server(stream) => stream.touches(region),
            Role::Client { .. } => false,
        };
        under_way || self.sending_from.contains(&region.addr())
    }

    /// Since when the peer has owed an answer that nobody waits for any more, if it does.
    pub(super) fn given_up_ns(
        &mut self,
        now_ns: u64,
        is_given_up: impl Fn(&Request) -> bool,
    ) -> Option<u64> {
        let Role::Client { stream, .. } = &self.role else { return None };
        let oldest = stream.numbered().find(|(_, request)| is_given_up(request));
        self.given_up = oldest.map(|(number, _)| match self.given_up {
            Some((known, since_ns)) if known == number => (number, since_ns),
            _ => (number, now_ns),
        });
        self.given_up.map(|(_, since_ns)| since_ns)
    }

    /// Whether it may be closed to make room, and in which order: strangers first, then whoever
    /// has been idle for longest.
    pub(super) fn eviction_order(&self) -> Option<(bool, u64)> {
        let Role::Server(stream) = &self.role else { return None };
        let may_go = stream.is_stranger() || !self.is_mid_request();
        (may_go && self.end.is_none()).then_some((!stream.is_stranger(), self.progress_ns))
    }

    /// Whether the peer owes us progress: otherwise it is idle and may stay so for ever.
    pub(super) fn is_mid_request(&self) -> bool {
        self.rejected
            || match &self.role {
                Role::Server(stream) => stream.is_mid_request() || self.sending.is_some(),
                Role::Client { stream, .. } => stream.has_unanswered(),
            }
    }
}

/// Why a connection ends whose operation failed with this left of its vector.
fn end_of(error: io::Error, direction: Direction, vector: &Vector) -> End {
    match GpuLoss::of(&error, direction, vector) {
        Some(loss) => {
            tracing::warn!(failure = %loss.failure, "a GPU failed a data connection, which ends");
            End::Gpu(loss)
        }
        None => End::Io(Arc::new(error)),
    }
}

/// Both directions, from the side that lets the other in.
fn encrypt(socket: &Socket, seal: &Seal) -> io::Result<()> {
    socket.encrypt(Direction::Receive, seal.of_guest())?;
    socket.encrypt(Direction::Send, seal.of_host())
}

//! One process of the world: an engine on shards that nobody but the world drives.

use std::cell::Cell;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use kvrail_reactors::region::Region;
use kvrail_reactors::sim::Network;
use kvrail_reactors::stream::Socket;

use crate::Error;
use crate::config::TcpLimits;
use crate::control::{Address, Control, Host, Identity, Resolved};
use crate::engine::Engine;
use crate::exposed::{Exposed, Exposure};
use crate::links::Links;
use crate::memory::RegionsView;
use crate::memory::grant::Grants;
use crate::path::served::Service;
use crate::path::tcp::{Errands, LaneName};
use crate::path::{Carriers, CopyActor, TcpActor, tcp};
use crate::peer::{Peer, Route, RouteKind};
use crate::runtime::{Runtime, SendError, Shard, ShardPlacement, Step};
use crate::topology::CpuSet;

/// Shards of a node: two, so that work travels between them.
const SHARDS: usize = 2;

/// A peer that moves no byte for so long is gone: short, so that a seed sees it.
const PROGRESS_NS: u64 = 300_000_000;

/// What a node asks of the network: a connection for this shard to the peer with this key.
pub(super) struct Dialing {
    pub(super) node: usize,
    pub(super) incarnation: u64,
    pub(super) shard: usize,
    pub(super) key: u64,
    pub(super) host: String,
    pub(super) port: u16,
}

/// What a node asks of a peer's control plane: to end a lane of this shard's.
#[derive(Clone)]
pub(super) struct EndLane {
    pub(super) node: usize,
    pub(super) incarnation: u64,
    pub(super) shard: usize,
    pub(super) key: u64,
    /// Whose lane it is: a name, and the process that is meant.
    pub(super) peer: String,
    pub(super) to: u64,
    pub(super) lane: LaneName,
}

/// What nodes ask of others than their peers' shards.
pub(super) enum Asked {
    Dial(Dialing),
    EndLane(EndLane),
}

/// Where nodes leave what they ask.
pub(super) type Outbox = Arc<Mutex<Vec<Asked>>>;

/// A process.
pub(super) struct Node {
    pub(super) incarnation: u64,
    pub(super) engine: Engine,
    pub(super) port: u16,
    /// When the next of its grants ends by itself.
    pub(super) expiry_ns: Option<u64>,
    host: Arc<Exposed>,
    pub(super) shards: Vec<Seat>,
    pub(super) is_paused: bool,
    next_shard: usize,
    /// What went wrong inside a shard and was caught.
    panics: Arc<Mutex<Vec<String>>>,
}

/// A shard and what the world knows of its loop.
pub(super) struct Seat {
    shard: Shard,
    reactor: usize,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Awake,
    Parked { until_ns: Option<u64> },
    Over,
}

/// What a world's nodes have in common.
pub(super) struct Ground {
    pub(super) network: Network,
    pub(super) clock: quanta::Clock,
    pub(super) outbox: Outbox,
    /// For what engines detach; nobody drives it.
    pub(super) tasks: tokio::runtime::Runtime,
    /// Where the processes' memory is cut from.
    pub(super) arena: Arena,
    /// Operations that a reactor takes at a time.
    pub(super) capacity: usize,
    pub(super) connections_max: usize,
    pub(super) mailbox: usize,
    pub(super) old_node: Option<usize>,
    pub(super) is_rebuilt_alike: bool,
}

/// One piece after the other of each node's part.
pub(super) struct Arena {
    region: Arc<Region>,
    part_bytes: usize,
    used: Vec<Cell<usize>>,
}

impl Arena {
    pub(super) fn new(region: Arc<Region>, nodes: usize) -> Self {
        let part_bytes = region.len() / nodes;
        Self { region, part_bytes, used: vec![Cell::new(0); nodes] }
    }

    /// Fresh memory for a process of this node.
    pub(super) fn memory(&self, node: usize, len: usize) -> Region {
        let start = self.used[node].replace(self.used[node].get() + len);
        let region = Region::within(&self.region, node * self.part_bytes + start, len);
        region.expect("the arena holds what a seed asks for")
    }
}

impl Ground {
    /// Another process takes a node's name: at the addresses of the last one, or at fresh ones.
    pub(super) fn succeed(&self, node: usize) {
        if self.is_rebuilt_alike {
            self.arena.used[node].set(0);
        }
    }

    /// Where a process listens.
    pub(super) fn port_of(&self, incarnation: u64) -> u16 {
        if self.is_rebuilt_alike { 1 } else { incarnation as u16 }
    }
}

/// The name of a node, which it keeps when it is restarted.
pub(super) fn name_of(node: usize) -> String {
    format!("node-{node}")
}

impl Node {
    pub(super) fn start(ground: &Ground, number: usize, incarnation: u64) -> Self {
        let panics: Arc<Mutex<Vec<String>>> = Arc::default();
        let seen = panics.clone();
        let placement = ShardPlacement { cpus: CpuSet::default(), node: None };
        let (runtime, shards) = Runtime::builder()
            .mailbox(ground.mailbox)
            .on_panic(move |panic| {
                seen.lock().unwrap_or_else(PoisonError::into_inner).push(format!("{panic:?}"));
            })
            .detached(vec![placement; SHARDS], ground.clock.clone())
            .expect("a process has descriptors for its doorbells");
        let name = name_of(number);
        let port = ground.port_of(incarnation);
        let address = Address::new(name.clone(), port);
        let (control, data) = (address.clone(), address);
        let identity = Identity { name, control, data, speaks_rdma: false };
        let (regions, arrivals) = Default::default();
        let grants = Arc::new(Grants::new(None));
        let (gate, hub, rdma) = Default::default();
        let exposure = Exposure { incarnation, regions, grants, arrivals, gate, hub, rdma };
        let host = Arc::new(exposure.named(identity.clone()));
        let control = Control::detached(identity, host.clone(), ground.tasks.handle().clone());
        let mut carriers = Carriers::default();
        let mut seats = Vec::new();
        for (index, shard) in shards.into_iter().enumerate() {
            let (reactor, streams) = ground.network.reactor(ground.capacity);
            let regions = RegionsView::new(host.regions.clone());
            let (grants, arrivals) = (host.grants.clone(), host.arrivals.clone());
            let service = Service::new(regions, grants, arrivals, incarnation);
            let errands = errands(&ground.outbox, number, incarnation, index);
            let limits =
                TcpLimits { progress_ns: PROGRESS_NS, connections_max: ground.connections_max };
            let tcp = TcpActor::simulated(&runtime, index, service, streams, errands, limits);
            carriers.tcp.push(tcp.expect("a new shard takes commands"));
            let copies = CopyActor::spawn(&runtime, index, 1).expect("a new shard takes commands");
            carriers.copies.push(copies);
            seats.push(Seat { shard, reactor, state: State::Awake });
        }
        let is_old = ground.old_node == Some(number);
        let no_host = Err(Error::refused("nobody shares a host here"));
        let no_nics = Err(Error::refused("nobody has NICs here"));
        let links = Links::new(is_old, no_host, no_nics);
        let started = (runtime, carriers);
        let config = Engine::builder();
        let engine = Engine::assemble(started, Arc::new(control), host.clone(), links, &config);
        Self {
            incarnation,
            engine,
            port,
            expiry_ns: None,
            host,
            shards: seats,
            is_paused: false,
            next_shard: 0,
            panics,
        }
    }

    /// What the control plane would tell of it.
    pub(super) fn resolved(&self, number: usize) -> Resolved {
        let address = Address::new(name_of(number), self.port);
        Resolved::new(self.host.descriptor(), address)
    }

    /// It as a peer of `other`.
    pub(super) fn as_peer(&self, number: usize, other: &Engine) -> Peer {
        other.peer(&name_of(number), &self.resolved(number))
    }

    /// A connection arrives; gone where the inbox is full.
    pub(super) fn accept(&mut self, socket: Socket) {
        self.next_shard += 1;
        let shards = self.host.shards();
        // Refused, it closes.
        let _ = shards[self.next_shard % shards.len()].send(tcp::Message::Accepted(socket));
    }

    /// Tells a shard of what it asked for; gives it back where the inbox is full.
    pub(super) fn dialed(
        &self,
        shard: usize,
        message: tcp::Message,
    ) -> Result<(), SendError<tcp::Message>> {
        self.host.shards()[shard].send(message)
    }

    /// Ends grants whose time is over, as the control thread does.
    pub(super) fn keep_time(&mut self, now_ns: u64) {
        self.expiry_ns = self.host.grants.strike_expired(now_ns);
    }

    /// Grants that hold.
    pub(super) fn grants(&self) -> usize {
        self.host.grants.len()
    }

    /// Shards that would take a turn now.
    pub(super) fn wake(&mut self, network: &Network, now_ns: u64) {
        for seat in &mut self.shards {
            let State::Parked { until_ns } = seat.state else { continue };
            let is_due = until_ns.is_some_and(|until_ns| until_ns <= now_ns);
            if seat.shard.is_rung() || is_due || network.rings(seat.reactor, now_ns) {
                seat.state = State::Awake;
            }
        }
    }

    /// When a shard that sleeps wants to be woken.
    pub(super) fn wake_at_ns(&self) -> Option<u64> {
        let until = |seat: &Seat| match seat.state {
            State::Parked { until_ns } => until_ns,
            _ => None,
        };
        self.shards.iter().filter_map(until).min()
    }

    pub(super) fn awake(&self) -> impl Iterator<Item = usize> {
        let is_awake = |(_, seat): &(usize, &Seat)| seat.state == State::Awake;
        self.shards.iter().enumerate().filter(is_awake).map(|(index, _)| index)
    }

    /// One turn of a shard.
    pub(super) fn turn(&mut self, shard: usize, now_ns: u64) {
        let seat = &mut self.shards[shard];
        seat.state = match seat.shard.step(now_ns) {
            Step::Awake => State::Awake,
            Step::Over => State::Over,
            Step::Parked { nap } => State::Parked {
                until_ns: nap.map(|nap: Duration| now_ns.saturating_add(nap.as_nanos() as u64)),
            },
        };
    }

    /// Whether every shard has ended by itself.
    pub(super) fn is_over(&self) -> bool {
        self.shards.iter().all(|seat| seat.state == State::Over)
    }

    pub(super) fn pause(&mut self, network: &Network, is_paused: bool) {
        self.is_paused = is_paused;
        self.shards.iter().for_each(|seat| network.pause(seat.reactor, is_paused));
    }

    /// What its shards caught.
    pub(super) fn panic(&self) -> Option<String> {
        self.panics.lock().unwrap_or_else(PoisonError::into_inner).pop()
    }
}

fn errands(outbox: &Outbox, node: usize, incarnation: u64, shard: usize) -> Errands {
    let dial = Box::new(dial(outbox.clone(), node, incarnation, shard));
    let fence = Box::new(end_lane(outbox.clone(), node, incarnation, shard));
    Errands { own: name_of(node).into(), dial, fence }
}

fn dial(
    outbox: Outbox,
    node: usize,
    incarnation: u64,
    shard: usize,
) -> impl Fn(&Arc<Route>) + Send + 'static {
    move |route: &Arc<Route>| {
        let RouteKind::Tcp(tcp) = &route.kind else { return };
        let (key, host, port) = (route.key, tcp.host.clone(), tcp.port);
        let dialing = Dialing { node, incarnation, shard, key, host, port };
        leave(&outbox, Asked::Dial(dialing));
    }
}

fn end_lane(
    outbox: Outbox,
    node: usize,
    incarnation: u64,
    shard: usize,
) -> impl Fn(&Arc<Route>, LaneName) + Send + 'static {
    move |route: &Arc<Route>, lane| {
        let RouteKind::Tcp(tcp) = &route.kind else { return };
        let (key, peer, to) = (route.key, route.name.to_string(), tcp.incarnation.unwrap_or(0));
        let asked = EndLane { node, incarnation, shard, key, peer, to, lane };
        leave(&outbox, Asked::EndLane(asked));
    }
}

fn leave(outbox: &Outbox, asked: Asked) {
    outbox.lock().unwrap_or_else(PoisonError::into_inner).push(asked);
}

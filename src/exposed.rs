//! What peers reach of an engine through the control thread: its descriptor, its queue of
//! notifications, and its shards for their connections.

use std::future::ready;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use kvrail_reactors::host::process::permit_any_reader;
use kvrail_reactors::stream::Socket;

use crate::arrivals::Arrivals;
use crate::auth::{Admission, Entrance, Gate, PeerId};
use crate::config::{SameHost, Vram};
use crate::control::{
    Answering, Buffer, Descriptor, Ending, Extras, Guest, Handshake, Host, Identity, Letter,
};
use crate::engine::tell;
use crate::guests::Guests;
use crate::limits::GRANTS_MAX;
use crate::links::Links;
use crate::memory::grant::{GrantLedger, Grants};
use crate::memory::{Access, Region, Regions};
use crate::notification::Notification;
use crate::path::host::Hub;
use crate::path::tcp::{self, LaneName};
use crate::path::verbs::Rdma;
use crate::runtime::{PumpAddress, SendError};
use crate::{Error, Result};

/// What peers are to reach, and by what those of this host are met, or why they aren't.
pub(crate) fn expose(
    same_host: &SameHost,
    vram: &Vram,
    gate: Gate,
) -> Result<(Exposure, Result<Arc<Hub>>)> {
    let gate = Arc::new(gate);
    let since_epoch = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let now_ns = since_epoch.map_or(0, |time| time.as_nanos() as u64);
    let incarnation = next_incarnation(&LAST_INCARNATION, now_ns);
    let (regions, arrivals) = (Arc::new(Regions::default()), Arc::new(Arrivals::default()));
    if same_host.peers_may_trace
        && let Err(error) = permit_any_reader()
    {
        tracing::debug!(%error, "no Yama: peers may read without being permitted to");
    }
    // Without a ledger no peer of this host reads here: the hub says so.
    let ledger = same_host.is_on.then(|| GrantLedger::new(GRANTS_MAX).ok()).flatten();
    let grants = Arc::new(Grants::new(ledger));
    let hub = match same_host.is_on {
        false => Err(Error::refused("same_host(false): this engine keeps to the network")),
        true => {
            let (regions, grants, gate) = (regions.clone(), grants.clone(), gate.clone());
            let folder = same_host.folder.clone();
            let hub = Hub::new(incarnation, regions, grants, gate, folder);
            hub.map(|hub| Arc::new(hub.with_vram(vram)))
        }
    };
    if same_host.is_on && same_host.folder.is_some() {
        // A folder was asked for: that nobody listens there would be found out late.
        hub.as_ref().map_err(Error::clone)?;
    }
    let (hub_here, rdma) = (hub.clone().ok(), None);
    let exposure = Exposure { incarnation, regions, grants, arrivals, gate, hub: hub_here, rdma };
    Ok((exposure, hub))
}

/// The number of the engine before, in this process.
static LAST_INCARNATION: AtomicU64 = AtomicU64::new(0);

/// A number that no engine had before under the same name: the clock when it starts, or the next
/// number where the clock hasn't moved since another engine of this process began.
fn next_incarnation(last: &AtomicU64, now_ns: u64) -> u64 {
    let next = |last: u64| now_ns.max(last.saturating_add(1));
    let before = last.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |last| Some(next(last)));
    before.map_or(now_ns, next)
}

/// An engine as its peers see it.
pub(crate) struct Exposed {
    identity: Identity,
    pub(crate) incarnation: u64,
    pub(crate) regions: Arc<Regions>,
    pub(crate) grants: Arc<Grants>,
    pub(crate) arrivals: Arc<Arrivals>,
    pub(crate) gate: Arc<Gate>,
    /// Who uses what is exposed.
    pub(crate) guests: Guests,
    /// How peers of this host get in; none where they don't.
    pub(crate) hub: Option<Arc<Hub>>,
    /// By which NICs peers get in; none where they don't.
    rdma: Option<Arc<Rdma>>,
    sockets: Vec<String>,
    /// Filled in once the shards' actors run.
    tcp: OnceLock<Vec<PumpAddress<tcp::Message>>>,
    /// Where this engine is a guest itself; filled in with them.
    links: OnceLock<Arc<Links>>,
    next_shard: AtomicUsize,
}

/// What an engine exposes, before it has a name.
pub(crate) struct Exposure {
    pub(crate) incarnation: u64,
    pub(crate) regions: Arc<Regions>,
    pub(crate) grants: Arc<Grants>,
    pub(crate) arrivals: Arc<Arrivals>,
    pub(crate) gate: Arc<Gate>,
    pub(crate) hub: Option<Arc<Hub>>,
    pub(crate) rdma: Option<Arc<Rdma>>,
}

impl Exposure {
    pub(crate) fn with_rdma(self, rdma: Option<Arc<Rdma>>) -> Self {
        Self { rdma, ..self }
    }

    pub(crate) fn named(self, identity: Identity) -> Exposed {
        let Self { incarnation, regions, grants, arrivals, gate, hub, rdma } = self;
        let sockets = hub.as_ref().map(|hub| hub.names()).unwrap_or_default();
        let (tcp, links) = Default::default();
        Exposed {
            identity,
            incarnation,
            regions,
            grants,
            arrivals,
            gate,
            guests: Guests::default(),
            hub,
            rdma,
            sockets,
            tcp,
            links,
            next_shard: AtomicUsize::new(0),
        }
    }
}

impl Exposed {
    /// The shards' TCP actors run.
    pub(crate) fn start(&self, shards: Vec<PumpAddress<tcp::Message>>, links: Arc<Links>) {
        // Nobody else sets them.
        let _ = self.links.set(links);
        let _ = self.tcp.set(shards);
    }

    pub(crate) fn shards(&self) -> &[PumpAddress<tcp::Message>] {
        self.tcp.get().map_or(&[], Vec::as_slice)
    }
}

impl Exposed {
    /// The descriptor for somebody who has this access to regions.
    fn describe(&self, access: impl Fn(&Region) -> Access) -> Descriptor {
        let regions = self.regions.current();
        let is_his = |region: &&Region| access(region) != Access::LOCAL;
        let his: Vec<_> = regions.iter().filter(is_his).cloned().collect();
        let buffers = his.iter().map(buffer).collect();
        let extras = Extras {
            version: Extras::VERSION,
            incarnation: self.incarnation,
            sockets: self.sockets.clone(),
            kept: None,
        };
        let descriptor = self.identity.descriptor(buffers, Some(extras));
        let Some(rdma) = &self.rdma else { return descriptor };
        // A NIC's keys are good for all that a region permits: he who may do less gets none, and
        // goes by TCP or by a grant's window.
        // Not every NIC has a GPU's memory.
        let has_keys = |region: &Region| !region.is_on_gpu() || rdma.has(region.memory());
        let is_all_his = |region: &Region| access(region) == region.access() && has_keys(region);
        let (full, rest): (Vec<_>, Vec<_>) = his.into_iter().partition(is_all_his);
        let mut descriptor = rdma.describe(descriptor, &full);
        descriptor.buffers.extend(rest.iter().map(buffer));
        descriptor
    }
}

/// A region as it is published for TCP.
fn buffer(region: &Region) -> Buffer {
    Buffer {
        addr: region.addr(),
        length: region.len() as u64,
        name: region.location().to_string(),
        ..Buffer::default()
    }
}

impl Host for Exposed {
    fn incarnation(&self) -> Option<u64> {
        Some(self.incarnation)
    }

    fn descriptor(&self) -> Descriptor {
        self.describe(Region::access)
    }

    fn published(&self) -> Descriptor {
        match self.gate.public() {
            Some(peer) => self.descriptor_for(&peer),
            // Peers ask us for the rest, and say who they are.
            None => self.descriptor().without_memory(),
        }
    }

    fn descriptor_for(&self, peer: &PeerId) -> Descriptor {
        let visitor = self.gate.visitor(peer);
        self.describe(|region| visitor.access(region))
    }

    fn pass(&self, peer: &PeerId, lane: LaneName, entrance: Entrance) -> Result<Admission> {
        self.gate.pass(peer, lane, entrance)
    }

    fn encrypts_tcp(&self) -> bool {
        self.gate.encrypts_tcp()
    }

    fn serves(&self, peer: &PeerId) -> bool {
        self.gate.visitor(peer).may_something()
    }

    fn handshake(&self, request: Handshake) -> Answering {
        let knows_ack = request.ready_ack.is_some();
        let Some(rdma) = &self.rdma else { return Box::pin(ready(Handshake::default())) };
        let answer = rdma.handshake(request);
        Box::pin(async move {
            let nobody = || Handshake::refusal(knows_ack, "the engine is stopping");
            answer.recv_async().await.unwrap_or_else(|_| nobody())
        })
    }

    fn letter(&self, peer: &PeerId, letter: Letter) {
        match &self.rdma {
            Some(rdma) => rdma.letter(peer, letter),
            None => tracing::debug!(from = letter.from, "a letter for NICs that are not here"),
        }
    }

    fn arrived(&self, peer: &PeerId, guest: Guest) -> bool {
        self.guests.arrived(peer, guest)
    }

    fn leave(&self, incarnation: u64) -> Ending {
        // Before there are links nobody has opened a peer.
        let links = self.links.get().cloned();
        Box::pin(async move {
            if let Some(links) = links {
                links.leave(incarnation).await;
            }
        })
    }

    fn notified(&self, name: String, message: Vec<u8>) -> Result<()> {
        self.arrivals.notifications.push(Notification { from: name, bytes: message })
    }

    fn accepted(&self, stream: std::net::TcpStream) -> Result<(), std::net::TcpStream> {
        // Before the shards' actors run nobody knows our port.
        let Some(shards) = self.tcp.get() else { return Ok(()) };
        let shard = self.next_shard.fetch_add(1, Ordering::Relaxed) % shards.len();
        match shards[shard].send(tcp::Message::Accepted(stream.into())) {
            Err(SendError::Full(tcp::Message::Accepted(Socket::Tcp(tcp)))) => Err(tcp.into()),
            _ => Ok(()),
        }
    }

    fn end_lane(&self, peer: &PeerId, lane: LaneName) -> Ending {
        let (shards, peer) = (self.shards().to_vec(), peer.clone());
        Box::pin(async move {
            let (guard, quiet) = flume::bounded(0);
            for shard in &shards {
                let (peer, guard) = (peer.clone(), guard.clone());
                tell(shard, tcp::Message::EndLane { peer, lane, guard }).await;
            }
            drop(guard);
            // Nobody sends: the channel closes when the last shard has let go of its guard.
            let _ = quiet.recv_async().await;
        })
    }

    fn crowded(&self) {
        for shard in self.shards() {
            // A full inbox is asked again soon.
            let _ = shard.send(tcp::Message::Crowded);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU64;

    use super::next_incarnation;

    #[test]
    fn engines_that_start_within_one_tick_of_the_clock_are_told_apart() {
        let last = AtomicU64::new(0);
        let numbers = [100, 100, 95, 110].map(|now_ns| next_incarnation(&last, now_ns));
        assert_eq!(numbers, [100, 101, 102, 110]);
    }
}

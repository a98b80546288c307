//! RDMA as an engine has it: its NICs, registrations of its regions, and the shards whose rails
//! carry its transfers.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use kvrail_reactors::region::Region as Memory;
use kvrail_reactors::verbs::{RemoteAccess, RemoteKey, VerbsError};

use super::RdmaActor;
use super::devices::{self, LocalNic};
use super::letter::Body;
use super::reach::Reach;
use super::shard::Message;
use crate::arrivals::Arrivals;
use crate::auth::{Gate, PeerId, Visitor};
use crate::config::{OnRegistering, Protocol, RdmaSettings};
use crate::control::handshake::split_nic_path;
use crate::control::{Buffer, Control, Descriptor, Handshake, Letter, Offer, Resolved};
use crate::engine::tell;
use crate::exposed::Exposure;
use crate::limits::{NAME_MAX_BYTES, RDMA_PEERS_MAX, SHARDS_MAX};
use crate::memory::grant::{Grants, Key};
use crate::memory::{Region, Regions};
use crate::runtime::{PumpAddress, Runtime, SendError};
use crate::{Error, Result};

/// An engine's NICs.
pub(crate) struct Rdma {
    pub(super) nics: Vec<LocalNic>,
    pub(super) incarnation: u64,
    pub(super) grants: Arc<Grants>,
    pub(super) regions: Arc<Regions>,
    gate: Arc<Gate>,
    pub(super) arrivals: Arc<Arrivals>,
    on_registering: Option<OnRegistering>,
    /// That memory of a GPU's goes by TCP.
    has_said_tcp: AtomicBool,
    shards: OnceLock<Vec<Seat>>,
    strangers: Mutex<Strangers>,
}

/// A shard, from outside.
struct Seat {
    address: PumpAddress<Message>,
    struck: Arc<Struck>,
}

/// Grants whose windows a shard has still to close; any thread adds to them.
#[derive(Debug, Default)]
pub(super) struct Struck {
    keys: Mutex<Vec<Key>>,
    has_some: AtomicBool,
}

impl Struck {
    fn add(&self, key: Key) {
        lock(&self.keys).push(key);
        self.has_some.store(true, Ordering::SeqCst);
    }

    pub(super) fn is_empty(&self) -> bool {
        !self.has_some.load(Ordering::SeqCst)
    }

    pub(super) fn take(&self) -> Vec<Key> {
        if self.is_empty() {
            return Vec::new();
        }
        let mut keys = lock(&self.keys);
        self.has_some.store(false, Ordering::SeqCst);
        std::mem::take(&mut *keys)
    }
}

/// Processes that have written to us, by numbers that differ from those of our own links.
#[derive(Debug, Default)]
struct Strangers {
    by_name: HashMap<(PeerId, Arc<str>), Stranger>,
    next: u64,
}

/// A process that has endpoints here, or asks for them.
#[derive(Debug, Clone)]
pub(crate) struct Stranger {
    pub(super) number: u64,
    pub(super) name: Arc<str>,
    pub(super) incarnation: u64,
    /// What it may be let into.
    pub(super) visitor: Visitor,
}

/// The first number of a stranger; links' numbers count up from 1.
const STRANGERS_FROM: u64 = 1 << 63;

impl Rdma {
    /// Opens the NICs that the settings name.
    ///
    /// # Errors
    /// Refused: RDMA was not asked for, or one of them can't be used; why.
    pub(crate) fn open(settings: &RdmaSettings, exposure: &Exposure) -> Result<Arc<Self>> {
        if settings.protocol == Protocol::Tcp {
            return Err(Error::refused("protocol tcp: this engine uses no RDMA"));
        }
        let nics = devices::open(settings)?;
        if nics.is_empty() {
            return Err(Error::refused("this host has no RDMA device whose port carries traffic"));
        }
        Ok(Arc::new(Self {
            nics,
            incarnation: exposure.incarnation,
            grants: exposure.grants.clone(),
            regions: exposure.regions.clone(),
            gate: exposure.gate.clone(),
            arrivals: exposure.arrivals.clone(),
            on_registering: settings.on_registering.clone(),
            has_said_tcp: AtomicBool::new(false),
            shards: OnceLock::new(),
            strangers: Mutex::default(),
        }))
    }

    /// Starts an actor on every shard.
    ///
    /// # Errors
    /// Refused: a NIC gives a shard no queues.
    pub(crate) fn start(self: &Arc<Self>, runtime: &Runtime, control: &Arc<Control>) -> Result<()> {
        let seat = |shard: usize| {
            let struck = Arc::new(Struck::default());
            let (rdma, control) = (self.clone(), control.clone());
            let address = RdmaActor::spawn(runtime, shard, rdma, control, struck.clone())?;
            Ok(Seat { address, struck })
        };
        let seats: Result<Vec<_>> = (0..runtime.shards()).map(seat).collect();
        // Nobody else sets it.
        let _ = self.shards.set(seats?);
        let rdma = Arc::downgrade(self);
        self.grants.close_windows_by(move |key| {
            rdma.upgrade().into_iter().for_each(|rdma| rdma.strike(key));
        });
        Ok(())
    }

    fn seats(&self) -> &[Seat] {
        self.shards.get().map_or(&[], Vec::as_slice)
    }

    pub(crate) fn shards(&self) -> impl Iterator<Item = &PumpAddress<Message>> {
        self.seats().iter().map(|seat| &seat.address)
    }

    /// Has the shards close their windows to a grant. May be called anywhere; waits for nothing.
    fn strike(&self, key: Key) {
        for seat in self.seats() {
            seat.struck.add(key);
            seat.address.doorbell().ring();
        }
    }

    /// The names of the NICs.
    pub(crate) fn names(&self) -> Vec<&str> {
        self.nics.iter().map(LocalNic::name).collect()
    }

    /// What their ports carry together, in GB/s.
    pub(crate) fn gb_per_s(&self) -> f64 {
        let mbps: u64 = self.nics.iter().filter_map(|nic| nic.speed_mbps).sum();
        mbps as f64 / 8e3
    }

    pub(super) fn index_of(&self, device: &str) -> Option<u8> {
        self.nics.iter().position(|nic| nic.name() == device).map(|index| index as u8)
    }

    /// Makes a region reachable for every NIC, and by them for peers as its access says.
    ///
    /// # Errors
    /// Refused: a NIC does not take it; why. None has it then.
    pub(crate) fn register(&self, region: &Region) -> Result<()> {
        let access = access(region);
        for (at, nic) in self.nics.iter().enumerate() {
            let all = region.len() * self.nics.len();
            let tell = |done: usize, _| {
                // A GPU's may be refused after all, and takes no time.
                let told = self.on_registering.as_ref().filter(|_| !region.is_on_gpu());
                told.into_iter().for_each(|told| told.tell(at * region.len() + done, all));
            };
            if let Err(error) = nic.adapter.register_with(region.memory(), access, &tell) {
                self.nics[..at]
                    .iter()
                    .for_each(|nic| nic.adapter.deregister(region.memory(), access));
                return Err(not_registered(nic.name(), region, error));
            }
        }
        Ok(())
    }

    /// Whether every NIC reaches a region.
    pub(crate) fn has(&self, memory: &Memory) -> bool {
        self.nics.iter().all(|nic| nic.adapter.find(memory).is_some())
    }

    /// Says once that memory of a GPU's goes by TCP, and why.
    pub(crate) fn leaves_to_tcp(&self, why: &Error) {
        if !self.has_said_tcp.swap(true, Ordering::Relaxed) {
            tracing::info!(%why, "memory of GPUs goes by TCP: no NIC reaches it");
        }
    }

    /// Takes a region back; returns when no NIC reaches it any more.
    pub(crate) async fn deregister(&self, region: &Region) {
        let memory = region.memory();
        // Unpinning takes a while, which no shard is to spend: the last holders are these.
        let held: Vec<_> = self.nics.iter().filter_map(|nic| nic.adapter.find(memory)).collect();
        self.nics.iter().for_each(|nic| nic.adapter.deregister(memory, access(region)));
        // Shards remember what they have posted from.
        let (guard, over) = flume::bounded(0);
        for shard in self.shards() {
            tell(shard, Message::Refresh { guard: guard.clone() }).await;
        }
        drop(guard);
        // Nobody sends: the channel closes when the last shard has let go of its guard.
        let _: Result<(), _> = over.recv_async().await;
        let (done, unpinned) = flume::bounded(1);
        std::thread::spawn(move || {
            drop(held);
            let _ = done.send(());
        });
        let _ = unpinned.recv_async().await;
    }

    /// Says in a descriptor by which NICs these regions are reached.
    pub(crate) fn describe(&self, mut descriptor: Descriptor, regions: &[Region]) -> Descriptor {
        let own: Vec<_> = self.nics.iter().map(LocalNic::as_published).collect();
        let locations: Vec<_> =
            regions.iter().map(|region| region.location().to_string()).collect();
        let offer = Offer::new(&own, locations.iter().map(String::as_str));
        let nics = offer.in_order(&(0..self.nics.len()).collect::<Vec<_>>());
        descriptor.buffers =
            regions.iter().flat_map(|region| self.buffers(region, &nics)).collect();
        descriptor.offering(offer)
    }

    /// The buffers that a region is published as: one for each piece of it.
    fn buffers(&self, region: &Region, nics: &[usize]) -> Vec<Buffer> {
        let keys: Option<Vec<Vec<_>>> = nics
            .iter()
            .map(|nic| {
                let found = self.nics[*nic].adapter.find(region.memory())?;
                Some(found.keys().collect())
            })
            .collect();
        // A reader may refuse a document of which one buffer has no keys: it follows when it has.
        let Some(first) = keys.as_ref().and_then(|keys| keys.first()) else { return Vec::new() };
        let piece = |(at, &(offset, len, _)): (usize, &(usize, usize, RemoteKey))| {
            let of_nic = |keys: &Vec<(usize, usize, RemoteKey)>| keys.get(at).map(|key| key.2.0);
            let rkey: Vec<u32> = keys.iter().flatten().filter_map(of_nic).collect();
            Buffer {
                addr: region.addr() + offset as u64,
                length: len as u64,
                // Of no use to others, but they count them.
                lkey: rkey.clone(),
                rkey,
                name: region.location().to_string(),
            }
        };
        first.iter().enumerate().map(piece).collect()
    }

    /// What of a peer's memory is reached.
    ///
    /// # Errors
    /// Refused: it isn't by RDMA.
    pub(crate) fn meet(&self, name: &str, resolved: &Resolved) -> Result<Arc<Reach>> {
        Reach::new(name, resolved).map(Arc::new)
    }

    /// Nobody holds the peer with this number any more.
    pub(crate) fn forget(&self, peer: u64) {
        for shard in self.shards() {
            if shard.send(Message::Forget { peer }).is_err() {
                tracing::debug!(peer, "a shard keeps rails to a peer nobody uses");
            }
        }
    }

    /// Ends what is under way while peers can still be asked to fence it.
    pub(crate) async fn leave(&self) {
        let (guard, over) = flume::bounded(0);
        for shard in self.shards() {
            tell(shard, Message::Leave { guard: guard.clone() }).await;
        }
        drop(guard);
        // Nobody sends: the channel closes when the last shard has let go of its guard.
        let _: Result<(), _> = over.recv_async().await;
    }

    /// A letter for one of the shards. Nonsense is dropped: who meant something asks again.
    pub(crate) fn letter(&self, peer: &PeerId, letter: Letter) {
        let Letter { from, incarnation, to, body } = letter;
        let Ok(body) = serde_json::from_value::<Body>(body) else {
            return tracing::debug!(from, "an unreadable letter");
        };
        let shards = self.seats();
        if to != self.incarnation || shards.is_empty() || from.len() > NAME_MAX_BYTES {
            return;
        }
        let Some((stranger, gone)) = self.stranger(peer, &from, incarnation) else {
            return tracing::debug!(from, "too many peers write");
        };
        for (shard, gone) in shards.iter().flat_map(|shard| gone.map(|gone| (shard, gone))) {
            // A full inbox finds out later, by asking.
            let _ = shard.address.send(Message::Absent { peer: gone });
        }
        let shard = shard_of(&body, shards.len());
        let told = Message::Told { stranger, body: Box::new(body) };
        if let Err(SendError::Full(_)) = shards[shard].address.send(told) {
            tracing::debug!(from, "a letter is lost: the shard's inbox is full");
        }
    }

    /// A Mooncake peer's handshake; its answer comes by the receiver, or nobody answers.
    pub(crate) fn handshake(&self, request: Handshake) -> flume::Receiver<Handshake> {
        let (reply, answer) = flume::bounded(1);
        let shards = self.seats();
        if !shards.is_empty() {
            let server = split_nic_path(&request.local_nic_path).map_or("", |(server, _)| server);
            let shard = &shards[shard_of_server(server, shards.len())].address;
            // A full inbox drops the reply with the request, which the peer repeats.
            let _ = shard.send(Message::Handshake { request: Box::new(request), reply });
        }
        answer
    }

    /// Who writes, and who had that name before. Whoever has proven something else is somebody
    /// else, whatever it calls itself.
    fn stranger(
        &self,
        peer: &PeerId,
        name: &str,
        incarnation: u64,
    ) -> Option<(Stranger, Option<u64>)> {
        let mut strangers = lock(&self.strangers);
        let key = (peer.clone(), Arc::from(name));
        let known = strangers.by_name.get(&key).cloned();
        if let Some(known) = known.clone().filter(|known| known.incarnation == incarnation) {
            return Some((known, None));
        }
        if known.is_none() && strangers.by_name.len() >= RDMA_PEERS_MAX {
            strangers.forget_oldest();
        }
        let number = STRANGERS_FROM + strangers.next;
        strangers.next += 1;
        let mut visitor = self.gate.visitor(peer);
        visitor.says(name);
        let stranger = Stranger { number, name: name.into(), incarnation, visitor };
        strangers.by_name.insert(key, stranger.clone());
        Some((stranger, known.map(|known| known.number)))
    }
}

impl std::fmt::Debug for Rdma {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Rdma({})", self.names().join(", "))
    }
}

impl Strangers {
    fn forget_oldest(&mut self) {
        let oldest = self.by_name.iter().min_by_key(|(_, known)| known.number);
        if let Some(key) = oldest.map(|(key, _)| key.clone()) {
            self.by_name.remove(&key);
        }
    }
}

fn access(region: &Region) -> RemoteAccess {
    let access = region.access();
    RemoteAccess { read: access.read, write: access.write }
}

fn not_registered(nic: &str, region: &Region, error: VerbsError) -> Error {
    if region.is_on_gpu() {
        let first: &dyn std::error::Error = &error;
        let all = std::iter::successors(Some(first), |error| error.source());
        let why: Vec<_> = all.map(ToString::to_string).collect();
        return Error::refused(format!("{nic} takes no memory of the GPU: {}", why.join(": ")));
    }
    Error::refused(format!(
        "{nic} does not take {} bytes: raise the limit of locked memory (`ulimit -l`, \
         LimitMEMLOCK=, `docker run --ulimit memlock=-1`)",
        region.len()
    ))
    .with_source(error)
}

/// The shard that has all that concerns a Mooncake peer.
pub(super) fn shard_of_server(server: &str, shards: usize) -> usize {
    let sum = server.bytes().fold(0usize, |sum, byte| sum.wrapping_mul(31) + usize::from(byte));
    sum % shards
}

/// The shard that a letter is for: of the initiator's endpoints its own, whose number the name
/// ends with; of a target's the one that has all of that initiator's.
fn shard_of(body: &Body, shards: usize) -> usize {
    let initiator = body.name().initiator.0 as usize;
    match body.is_for_initiator() {
        true => initiator % SHARDS_MAX % shards,
        false => initiator / SHARDS_MAX % shards,
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

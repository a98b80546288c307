//! One shard's queues on its engine's NICs, and what each endpoint has there: queue pairs, memory
//! for its notices, and the address at its other end.

use std::collections::HashMap;
use std::sync::Arc;

use kvrail_reactors::Reactor;
use kvrail_reactors::region::{Region, Slice};
use kvrail_reactors::verbs::{
    Adapter, AsyncEvent, Completion, Counters, Depths, Nic, Post, QpAddress, QpNumber,
    RemoteAccess, RemoteKey, VerbsError,
};

use super::hub::Rdma;
use super::letter::Port;
use crate::control::handshake::PortAddress;
use crate::limits::{
    RDMA_COMPLETIONS, RDMA_NOTICES_MAX, RDMA_RECEIVES, RDMA_WINDOW_REQUESTS, RDMA_WINDOWS_MAX,
};
use crate::metrics;
use crate::path::rdma::{EndpointName, Mailbox, queue_bytes, scratch_bytes};
use crate::runtime::Doorbell;
use crate::{Error, Result};

/// A shard's queues, by NIC.
pub(crate) struct Endpoints {
    nics: Vec<Seat>,
    reads_reports: bool,
    known: HashMap<EndpointName, Known>,
    by_qp: HashMap<(u8, QpNumber), EndpointName>,
}

struct Seat {
    nic: Nic,
    adapter: Arc<Adapter>,
    node: Option<u32>,
    /// What it had done when that was last recorded.
    recorded: Counters,
    /// Found while arming, to be taken by the next poll.
    found: Vec<Completion>,
}

/// An endpoint, ours or a peer's.
#[derive(Default)]
struct Known {
    nic: u8,
    qps: Vec<QpNumber>,
    /// What it reads words into and sends notices from, or its mailbox.
    memory: Option<(Arc<Region>, RemoteAccess)>,
    /// The NIC at its other end.
    port: Option<Port>,
}

/// What peers do in a mailbox: read how many notices were taken, and write others.
const MAILBOX: RemoteAccess = RemoteAccess { read: true, write: true };

/// Nobody reaches scratch memory but we.
const SCRATCH: RemoteAccess = RemoteAccess { read: false, write: false };

impl Endpoints {
    /// A shard's queues on every NIC, whose completions end the wait of `doorbell`'s sleeper; and
    /// what the devices report, where it is this shard's to read.
    ///
    /// # Errors
    /// Refused: a device has too few of them, or the doorbell watches nothing.
    pub(super) fn new(rdma: &Rdma, doorbell: &Doorbell, reads_reports: bool) -> Result<Self> {
        let seat = |nic: &super::devices::LocalNic| -> Result<Seat> {
            let blame = |error| {
                let what = format!("{} gives a shard no queues", nic.name());
                Error::refused(what).with_source(error)
            };
            let limits = nic.adapter.device().limits();
            let depths = Depths {
                work_requests: (RDMA_WINDOW_REQUESTS + RDMA_WINDOWS_MAX) as u32,
                completions: (RDMA_COMPLETIONS as u32).min(limits.completions),
                receives: RDMA_RECEIVES as u32,
            };
            let adapter = nic.adapter.clone();
            let queues = Nic::new(adapter.clone(), depths).map_err(blame)?;
            let watched = doorbell.watch(queues.fd()).and_then(|()| match reads_reports {
                true => doorbell.watch(adapter.device().event_fd()),
                false => Ok(()),
            });
            watched.map_err(|error| {
                Error::refused("the shard can't wait for a NIC").with_source(error)
            })?;
            let (recorded, found) = (Counters::default(), Vec::new());
            Ok(Seat { nic: queues, adapter, node: nic.node, recorded, found })
        };
        let nics = rdma.nics.iter().map(seat).collect::<Result<_>>()?;
        Ok(Self { nics, reads_reports, known: HashMap::new(), by_qp: HashMap::new() })
    }

    fn seat(&mut self, nic: u8) -> Option<&mut Seat> {
        self.nics.get_mut(usize::from(nic))
    }

    /// Queue pairs and scratch memory for an endpoint of ours.
    pub(super) fn create(
        &mut self,
        name: EndpointName,
        nic: u8,
        queues: usize,
    ) -> Option<(Vec<QpAddress>, Slice)> {
        let bytes = queues * scratch_bytes(RDMA_NOTICES_MAX);
        let made = self.make(name, nic, queues, (bytes, SCRATCH));
        let made = made.inspect_err(|error| tracing::warn!(%error, "no RDMA endpoint")).ok()?;
        Some((made.0, made.1))
    }

    /// Connects them to the peer's.
    pub(super) fn connect(
        &mut self,
        name: EndpointName,
        nic: u8,
        pairs: &[(QpNumber, QpAddress)],
        rdma: &Rdma,
    ) -> bool {
        let Some(port) = self.known.get(&name).and_then(|known| known.port) else { return false };
        let way = rdma.nics[usize::from(nic)].way(&port);
        let Some(seat) = self.seat(nic) else { return false };
        pairs.iter().all(|(own, peer)| {
            let connected = seat.nic.connect(*own, *peer, &way);
            connected.inspect_err(|error| tracing::warn!(%error, "no RDMA connection")).is_ok()
        })
    }

    /// Queue pairs connected to a peer's, and a mailbox.
    pub(super) fn accept(
        &mut self,
        name: EndpointName,
        nic: u8,
        theirs: &[QpAddress],
        rdma: &Rdma,
    ) -> Option<(Vec<QpAddress>, Slice, Mailbox)> {
        let bytes = theirs.len() * queue_bytes(RDMA_NOTICES_MAX);
        let made = self.make(name, nic, theirs.len(), (bytes, MAILBOX));
        let made = made.inspect_err(|error| tracing::warn!(%error, "no RDMA endpoint")).ok()?;
        let (owns, memory, key) = made;
        let pairs: Vec<_> = owns.iter().map(|own| own.number).zip(theirs.iter().copied()).collect();
        if !self.connect(name, nic, &pairs, rdma) {
            for own in &owns {
                self.destroy(nic, own.number);
            }
            return None;
        }
        let mailbox = Mailbox { addr: memory.addr(), key, slots: RDMA_NOTICES_MAX as u32 };
        Some((owns, memory, mailbox))
    }

    fn make(
        &mut self,
        name: EndpointName,
        nic: u8,
        queues: usize,
        (bytes, access): (usize, RemoteAccess),
    ) -> Result<(Vec<QpAddress>, Slice, RemoteKey)> {
        let seat = self.seat(nic).ok_or_else(|| Error::refused("no such NIC"))?;
        let (region, key) = memory(seat, bytes, access)?;
        let mut owns = Vec::with_capacity(queues);
        for _ in 0..queues {
            match seat.nic.create_qp() {
                Ok(own) => owns.push(own),
                Err(error) => {
                    owns.iter().for_each(|own: &QpAddress| seat.nic.destroy(own.number));
                    seat.adapter.deregister(&region, access);
                    return Err(no_room(error));
                }
            }
        }
        let memory = Slice::new(region.clone(), 0, bytes)
            .map_err(|error| Error::refused(error.to_string()))?;
        self.by_qp.extend(owns.iter().map(|own| ((nic, own.number), name)));
        let known = self.known.entry(name).or_default();
        known.nic = nic;
        known.qps = owns.iter().map(|own| own.number).collect();
        known.memory = Some((region, access));
        Ok((owns, memory, key))
    }

    /// Queue pairs for an endpoint at a Mooncake peer.
    pub(super) fn create_plain(&mut self, nic: u8, queues: usize) -> Option<Vec<QpNumber>> {
        let seat = self.seat(nic)?;
        let mut owns = Vec::with_capacity(queues);
        for _ in 0..queues {
            // Mooncake has no word for the number of the first packet.
            match seat.nic.create_qp_from(0) {
                Ok(own) => owns.push(own.number),
                Err(error) => {
                    tracing::warn!(%error, "no RDMA endpoint");
                    owns.iter().for_each(|own| seat.nic.destroy(*own));
                    return None;
                }
            }
        }
        Some(owns)
    }

    /// Connects them.
    pub(super) fn connect_plain(
        &mut self,
        nic: u8,
        pairs: &[(QpNumber, QpNumber)],
        port: &PortAddress,
        rdma: &Rdma,
    ) -> bool {
        let way = rdma.nics[usize::from(nic)].way_to_mooncake(port);
        let Some(seat) = self.seat(nic) else { return false };
        pairs.iter().all(|&(own, number)| {
            let peer = QpAddress { number, first_packet: 0 };
            let connected = seat.nic.connect(own, peer, &way);
            connected.inspect_err(|error| tracing::warn!(%error, "no RDMA connection")).is_ok()
        })
    }

    /// As many, connected to a Mooncake peer's.
    pub(super) fn accept_plain(
        &mut self,
        nic: u8,
        theirs: &[QpNumber],
        port: &PortAddress,
        rdma: &Rdma,
    ) -> Option<Vec<QpNumber>> {
        let owns = self.create_plain(nic, theirs.len())?;
        let pairs: Vec<_> = owns.iter().copied().zip(theirs.iter().copied()).collect();
        if self.connect_plain(nic, &pairs, port, rdma) {
            return Some(owns);
        }
        let seat = self.seat(nic)?;
        owns.into_iter().for_each(|own| seat.nic.destroy(own));
        None
    }

    /// An endpoint of ours has these queue pairs, which are there; the memory that it needs.
    pub(super) fn take_in(
        &mut self,
        name: EndpointName,
        nic: u8,
        queues: &[QpNumber],
    ) -> Option<(Vec<QpAddress>, Slice)> {
        let bytes = queues.len() * scratch_bytes(RDMA_NOTICES_MAX);
        let seat = self.seat(nic)?;
        let memory = memory(seat, bytes, SCRATCH);
        let (region, _) =
            memory.inspect_err(|error| tracing::warn!(%error, "no RDMA endpoint")).ok()?;
        let slice = Slice::new(region.clone(), 0, bytes).ok()?;
        self.by_qp.extend(queues.iter().map(|own| ((nic, *own), name)));
        let known =
            Known { nic, qps: queues.to_vec(), memory: Some((region, SCRATCH)), port: None };
        self.known.insert(name, known);
        let address = |number: &QpNumber| QpAddress { number: *number, first_packet: 0 };
        Some((queues.iter().map(address).collect(), slice))
    }

    pub(super) fn set_error(&mut self, nic: u8, qp: QpNumber) {
        self.seat(nic).into_iter().for_each(|seat| seat.nic.set_error(qp));
    }

    /// Ends a queue pair; the name of its endpoint where that was the last one.
    pub(super) fn destroy(&mut self, nic: u8, qp: QpNumber) -> Option<EndpointName> {
        self.seat(nic)?.nic.destroy(qp);
        let name = self.by_qp.remove(&(nic, qp))?;
        let known = self.known.get_mut(&name)?;
        known.qps.retain(|own| *own != qp);
        if !known.qps.is_empty() {
            return None;
        }
        let known = self.known.remove(&name)?;
        if let (Some(seat), Some(memory)) = (self.seat(nic), known.memory) {
            let (memory, access) = memory;
            seat.adapter.deregister(&memory, access);
        }
        Some(name)
    }

    /// The NIC at an endpoint's other end is reached so.
    pub(super) fn is_reached_at(&mut self, name: EndpointName, port: Option<Port>) {
        if port.is_some() {
            self.known.entry(name).or_default().port = port;
        }
    }

    /// Forgets what was said of an endpoint that came to nothing.
    pub(super) fn forget_stray(&mut self, name: EndpointName) {
        if self.known.get(&name).is_some_and(|known| known.qps.is_empty()) {
            self.known.remove(&name);
        }
    }

    /// How the NIC at our end of an endpoint is reached.
    pub(super) fn port_of(&self, name: EndpointName, rdma: &Rdma) -> Option<Port> {
        let nic = self.known.get(&name)?.nic;
        rdma.nics.get(usize::from(nic)).map(|nic| nic.port)
    }

    /// The queue pairs of an endpoint at a Mooncake peer.
    pub(super) fn addresses(&self, name: EndpointName) -> Vec<QpAddress> {
        let qps = self.known.get(&name).map_or(&[][..], |known| &known.qps);
        qps.iter().map(|number| QpAddress { number: *number, first_packet: 0 }).collect()
    }

    /// The NIC of an endpoint, and how many queue pairs it has.
    pub(super) fn of(&self, name: EndpointName) -> Option<(u8, usize)> {
        self.known.get(&name).map(|known| (known.nic, known.qps.len()))
    }

    /// A key for a window on this NIC.
    pub(super) fn window(&mut self, nic: u8) -> Option<RemoteKey> {
        let key = self.seat(nic)?.nic.window();
        key.inspect_err(|error| tracing::warn!(%error, "no window")).ok()
    }

    pub(super) fn close_window(&mut self, nic: u8, key: RemoteKey) {
        self.seat(nic).into_iter().for_each(|seat| seat.nic.close_window(key));
    }

    /// The key of the registration that holds all of these bytes on a NIC, to open windows in.
    pub(super) fn key_of(&self, nic: u8, bytes: &Slice) -> Option<RemoteKey> {
        if bytes.region().device().is_some() {
            // The kernel gives a GPU's memory no windows.
            return None;
        }
        let registration = self.nics.get(usize::from(nic))?.adapter.find(bytes.region())?;
        let start = (bytes.addr() - bytes.region().addr()) as usize;
        let holds = |(offset, len, _): &(usize, usize, RemoteKey)| {
            *offset <= start && start + bytes.len() <= offset + len
        };
        registration.keys().find(holds).map(|(.., key)| key)
    }

    /// Whether a NIC is soft-RoCE, whose answers mean less than a real one's.
    pub(super) fn has_software(&self) -> bool {
        self.nics.iter().any(|seat| seat.adapter.device().is_software())
    }

    pub(super) fn submit(&mut self, nic: u8, post: Post) -> Result<(), Post> {
        match self.seat(nic) {
            Some(seat) => seat.nic.submit(post).map(drop),
            None => Err(post),
        }
    }

    /// Whether there is such a queue pair.
    pub(super) fn has(&self, nic: u8, qp: QpNumber) -> bool {
        self.nics.get(usize::from(nic)).is_some_and(|seat| seat.nic.has(qp))
    }

    pub(super) fn poll(&mut self, nic: u8, budget: usize, done: &mut Vec<Completion>) {
        let Some(seat) = self.seat(nic) else { return };
        done.append(&mut seat.found);
        seat.nic.poll(budget, done);
    }

    /// Before parking; what comes in between is kept for the next poll.
    pub(super) fn arm(&mut self) -> bool {
        self.nics.iter_mut().all(|seat| {
            // Completions that came before it was armed ring nothing.
            seat.found.is_empty() && seat.nic.arm() && seat.nic.poll(1, &mut seat.found) == 0
        })
    }

    /// What the devices have reported, where it is this shard's to read.
    pub(super) fn reports(&self) -> Vec<(u8, AsyncEvent)> {
        let nics = self.nics.iter().zip(0..).filter(|_| self.reads_reports);
        let events = |(seat, nic): (&Seat, u8)| {
            let events = seat.adapter.device().events();
            events.into_iter().map(move |event| (nic, event))
        };
        nics.flat_map(events).collect()
    }

    /// A NIC reports something.
    pub(super) fn told(&mut self, nic: u8, event: AsyncEvent) {
        self.seat(nic).into_iter().for_each(|seat| seat.nic.told(event));
    }

    /// Records what the NICs did since the last time.
    pub(super) fn record(&mut self) {
        for seat in &mut self.nics {
            let (now, before) = (seat.nic.counters(), seat.recorded);
            seat.recorded = now;
            metrics::nic(
                seat.adapter.device().name(),
                now.work_requests - before.work_requests,
                now.doorbells - before.doorbells,
                now.completions - before.completions,
            );
        }
    }

    /// Gives up waiting for a device's word on queue pairs that ended.
    pub(super) fn expire_markers(&mut self) {
        self.nics.iter_mut().for_each(|seat| seat.nic.expire_markers());
    }

    /// Lets go of registrations that were taken back.
    pub(super) fn refresh(&mut self) {
        self.nics.iter_mut().for_each(|seat| seat.nic.refresh());
    }
}

/// Memory for an endpoint, and its key.
fn memory(seat: &Seat, bytes: usize, access: RemoteAccess) -> Result<(Arc<Region>, RemoteKey)> {
    let near = Region::allocate(bytes, seat.node).or_else(|_| Region::allocate(bytes, None));
    let region = near.map_err(|error| Error::busy("no memory for an endpoint").with_source(error));
    let region = Arc::new(region?);
    let registration = seat.adapter.register(&region, access).map_err(no_room)?;
    let key = registration.keys().next().map(|(.., key)| key);
    Ok((region, key.ok_or_else(|| Error::busy("a registration without a key"))?))
}

fn no_room(error: VerbsError) -> Error {
    Error::busy("the NIC has no room").with_source(error)
}

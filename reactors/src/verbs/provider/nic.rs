//! A NIC as one shard uses it: its queue pairs, its completions and its receives, behind the
//! contract of every reactor.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::{BuildHasher, RandomState};
use std::os::fd::BorrowedFd;
use std::sync::{Arc, PoisonError, RwLock};

use super::completion::CompletionQueue;
use super::device::Device;
use super::domain::Domain;
use super::library::VerbsError;
use super::memory::Registration;
use super::queue::{QueuePair, Way};
use super::receives::Receives;
use super::send::{Opening, Sends};
use super::window::Window;
use super::{
    AsyncEvent, Completed, Completion, Operation, Post, QpAddress, QpNumber, QpState, RemoteAccess,
    RemoteKey, Status, WorkRequest,
};
use crate::Reactor;
use crate::region::Region;

/// Bits of a packet's number (IBTA 9.7.3).
const PACKET_NUMBER_MASK: u32 = 0xff_ffff;

/// An opened device with its domain and registrations, which all shards share.
#[derive(Debug)]
pub struct Adapter {
    domain: Arc<Domain>,
    registrations: RwLock<HashMap<u64, Arc<Registration>>>,
}

/// How large a shard's queues are.
#[derive(Debug, Clone, Copy)]
pub struct Depths {
    /// Work requests of one queue pair.
    pub work_requests: u32,
    /// Completions of all of them.
    pub completions: u32,
    /// Receives of all of them.
    pub receives: u32,
}

/// One shard's side of an adapter. Fields are dropped in their order: queue pairs before the
/// queues that they use.
#[derive(Debug)]
pub struct Nic {
    pairs: BTreeMap<QpNumber, QueuePair>,
    windows: HashMap<RemoteKey, Window>,
    completions: CompletionQueue,
    receives: Receives,
    adapter: Arc<Adapter>,
    depths: Depths,
    /// What never reached the device, and what became of it.
    failed: Vec<Completion>,
    /// Posted to mark the end of their queue pairs.
    markers: HashSet<(QpNumber, u64)>,
    /// Markers of queue pairs that have ended, until what came before them is handed out.
    ended: Vec<Completion>,
    random: RandomState,
    made: u64,
}

impl Adapter {
    /// Opens a device.
    ///
    /// # Errors
    /// As [`Device::open`].
    pub fn open(name: &str) -> Result<Arc<Self>, VerbsError> {
        let domain = Domain::new(Device::open(name)?)?;
        Ok(Arc::new(Self { domain, registrations: RwLock::default() }))
    }

    /// The device.
    pub fn device(&self) -> &Device {
        &self.domain.device
    }

    /// Makes a region reachable for the device, and for peers as `access` says.
    ///
    /// # Errors
    /// As [`Registration::new`].
    pub fn register(
        &self,
        region: &Arc<Region>,
        access: RemoteAccess,
    ) -> Result<Arc<Registration>, VerbsError> {
        let registration = Arc::new(Registration::new(&self.domain, region.clone(), access)?);
        let mut all = self.registrations.write().unwrap_or_else(PoisonError::into_inner);
        all.insert(region.id(), registration.clone());
        Ok(registration)
    }

    /// Takes a registration back; the device reaches nothing by it once its last holder is gone.
    pub fn deregister(&self, region: &Region) {
        let mut all = self.registrations.write().unwrap_or_else(PoisonError::into_inner);
        all.remove(&region.id());
    }

    fn registration(&self, region: &Region) -> Option<Arc<Registration>> {
        let all = self.registrations.read().unwrap_or_else(PoisonError::into_inner);
        all.get(&region.id()).cloned()
    }
}

impl Nic {
    /// A shard's queues.
    ///
    /// # Errors
    /// What the kernel says: more than the device takes.
    pub fn new(adapter: Arc<Adapter>, depths: Depths) -> Result<Self, VerbsError> {
        let completions = CompletionQueue::new(&adapter.domain.device, depths.completions)?;
        let receives = Receives::new(&adapter.domain, depths.receives)?;
        Ok(Self {
            pairs: BTreeMap::new(),
            windows: HashMap::new(),
            completions,
            receives,
            adapter,
            depths,
            failed: Vec::new(),
            markers: HashSet::new(),
            ended: Vec::new(),
            random: RandomState::new(),
            made: 0,
        })
    }

    /// A key for a window that [`Operation::Bind`] opens, once.
    ///
    /// # Errors
    /// What the kernel says: the device has no windows, or too few.
    pub fn window(&mut self) -> Result<RemoteKey, VerbsError> {
        let window = Window::new(&self.adapter.domain)?;
        let key = window.key();
        self.windows.insert(key, window);
        Ok(key)
    }

    /// Lets go of a window that was invalidated or never opened.
    pub fn close_window(&mut self, key: RemoteKey) {
        self.windows.remove(&key);
    }

    /// Makes a queue pair, and draws the number of its first packet.
    ///
    /// # Errors
    /// What the kernel says: too many, or too deep.
    pub fn create_qp(&mut self) -> Result<QpAddress, VerbsError> {
        self.made += 1;
        let first_packet = self.random.hash_one(self.made) as u32 & PACKET_NUMBER_MASK;
        let (domain, depth) = (&self.adapter.domain, self.depths.work_requests);
        let (completions, receives) = (&self.completions, &self.receives);
        let pair = QueuePair::new(domain, completions, receives, depth, first_packet)?;
        let address = pair.address();
        self.pairs.insert(address.number, pair);
        Ok(address)
    }

    /// Connects a new queue pair to a peer's.
    ///
    /// # Errors
    /// What the kernel says: it is connected, gone, or leads nowhere.
    pub fn connect(&mut self, qp: QpNumber, peer: QpAddress, way: &Way) -> Result<(), VerbsError> {
        match self.pairs.get_mut(&qp) {
            Some(pair) => pair.connect(peer, way),
            None => VerbsError::check("a queue pair that is gone", libc::EINVAL),
        }
    }

    /// To error: what is posted completes as flushed, and nothing more is sent or executed.
    pub fn set_error(&mut self, qp: QpNumber) {
        if let Some(pair) = self.pairs.get_mut(&qp) {
            // A device that says no to this is gone, and touches nothing.
            let _ = pair.set_error();
        }
    }

    /// Ends it. Its memory is held until here.
    pub fn destroy(&mut self, qp: QpNumber) {
        self.pairs.remove(&qp);
        self.markers.retain(|(marked, _)| *marked != qp);
    }

    /// Where it is in its life; none where there is no such queue pair.
    pub fn state(&self, qp: QpNumber) -> Option<QpState> {
        self.pairs.get(&qp)?.state()
    }

    /// Adds receives to the shared queue; returns how many it had room for.
    pub fn post_receives(&mut self, count: usize) -> usize {
        self.receives.post(count)
    }

    /// What the device has reported.
    pub fn events(&self) -> Vec<AsyncEvent> {
        self.adapter.device().events()
    }

    /// Readable when a completion comes after [`Reactor::arm`].
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.completions.fd()
    }

    /// A chain for the device; none where a request names memory that is not registered.
    fn chain(&self, requests: Vec<WorkRequest>) -> Option<Sends> {
        let mut sends = Sends::default();
        for request in requests {
            let found = match &request.local {
                Some(local) => Some(self.adapter.registration(local.region())?),
                None => None,
            };
            let opening = match (request.operation, &found) {
                (Operation::Bind { window, .. }, Some(registration)) => Some(Opening {
                    mw: self.windows.get(&window)?.mw,
                    mr: registration.piece(request.key)?,
                }),
                (Operation::Bind { .. }, None) => return None,
                _ => None,
            };
            let pieces: Vec<_> = match (&found, &request.local) {
                (Some(registration), Some(local)) => registration.local(local).collect(),
                _ => Vec::new(),
            };
            sends.push(request, pieces, opening);
        }
        Some(sends)
    }

    /// Lets go of the memory of what has completed. A flushed marker is held back and its queue
    /// pair destroyed: a flush of our own sends says nothing of what the device was storing for
    /// the peer (soft-RoCE: 1 of 80 tries), the end of the queue pair does.
    fn retire(&mut self, first: usize, done: &mut Vec<Completion>) {
        let completions = done.split_off(first);
        for completion in completions {
            let Completion { qp, id, what } = completion;
            let Completed::Sent(status) = what else {
                done.push(completion);
                continue;
            };
            if let Some(pair) = self.pairs.get_mut(&qp) {
                pair.retire(id);
            }
            let was_marker = self.markers.remove(&(qp, id));
            if was_marker && status == Status::Flushed {
                self.pairs.remove(&qp);
                self.ended.push(completion);
            } else {
                done.push(completion);
            }
        }
    }

    /// As a device answers what its keys don't cover: the first is at fault, the rest flushed.
    fn fail(&mut self, qp: QpNumber, ids: Vec<u64>) {
        let statuses =
            [Status::LocalProtection].into_iter().chain(std::iter::repeat(Status::Flushed));
        let failed = ids.into_iter().zip(statuses).map(|(id, status)| Completion {
            qp,
            id,
            what: Completed::Sent(status),
        });
        self.failed.extend(failed);
        self.set_error(qp);
    }
}

impl Reactor for Nic {
    type Work = Post;
    type Done = Completion;

    /// A post's name is its queue pair's number: fencing it ends all that is posted there.
    fn submit(&mut self, post: Post) -> Result<u64, Post> {
        let Post { qp, requests } = post;
        let has_room = self.pairs.get(&qp).is_some_and(|pair| pair.has_room(requests.len()));
        if !has_room {
            return Err(Post { qp, requests });
        }
        let ids: Vec<u64> = requests.iter().map(|request| request.id).collect();
        let marks = requests.iter().filter(|request| request.operation == Operation::Nothing);
        self.markers.extend(marks.map(|request| (qp, request.id)));
        let refused = match (self.chain(requests), self.pairs.get_mut(&qp)) {
            (Some(chain), Some(pair)) => pair.post(chain),
            _ => ids,
        };
        if !refused.is_empty() {
            self.fail(qp, refused);
        }
        Ok(u64::from(qp.0))
    }

    fn poll(&mut self, budget: usize, done: &mut Vec<Completion>) -> usize {
        let first = done.len();
        let own = self.failed.len().min(budget);
        done.extend(self.failed.drain(..own));
        let found = self.completions.poll(budget - own, done);
        // Where room is left the queue is empty: what came before these ends has been handed out.
        let room = self.ended.len().min(budget - own - found);
        let ended: Vec<_> = self.ended.drain(..room).collect();
        self.retire(first, done);
        done.extend(ended);
        done.len() - first
    }

    fn arm(&mut self) -> bool {
        let is_empty = self.failed.is_empty() && self.ended.is_empty();
        is_empty && self.completions.arm()
    }

    fn fence(&mut self, name: u64) {
        if let Ok(number) = u32::try_from(name) {
            self.set_error(QpNumber(number));
        }
    }
}

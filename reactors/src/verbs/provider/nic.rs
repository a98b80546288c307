//! A NIC as one shard uses it: its queue pairs, its completions and its receives, behind the
//! contract of every reactor.

mod ending;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::iter;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use super::adapter::{Adapter, Known};
use super::completion::CompletionQueue;
use super::library::VerbsError;
use super::markers::Markers;
use super::queue::QueuePair;
use super::receives::Receives;
use super::send::{Opening, Sends};
use super::way::Way;
use super::window::Window;
use super::{
    AsyncEvent, Completion, Operation, Post, QpAddress, QpNumber, QpState, RemoteKey, Status,
    WorkRequest,
};
use crate::Reactor;

/// Bits of a packet's number (IBTA 9.7.3).
const PACKET_NUMBER_MASK: u32 = 0xff_ffff;

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

/// What a NIC has done, all counted from its start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Work requests that the device took.
    pub work_requests: u64,
    /// Those of them that complete even if all goes well.
    pub signalled: u64,
    /// Lists that they were posted in: each rings a doorbell once.
    pub doorbells: u64,
    /// Their completions.
    pub completions: u64,
    /// Receives that peers have used up.
    pub receives: u64,
}

/// One shard's side of an adapter. Fields are dropped in their order: windows before the queue
/// pairs that they are open on, those before the queues that they use.
#[derive(Debug)]
pub struct Nic {
    windows: HashMap<RemoteKey, Window>,
    pairs: BTreeMap<QpNumber, QueuePair>,
    completions: CompletionQueue,
    receives: Receives,
    known: Known,
    depths: Depths,
    sends: Sends,
    /// What polls hand out before they look at the device.
    ready: VecDeque<Completion>,
    /// Taken from the device, to be looked at.
    found: Vec<Completion>,
    /// Queue pairs of whom something never got to the device and has not ended.
    broken: BTreeSet<QpNumber>,
    markers: Markers,
    /// Markers behind which nothing comes but what the queue of completions holds.
    ending: Vec<Completion>,
    /// The device, or a queue of this NIC, is gone for good.
    is_lost: bool,
    random: RandomState,
    made: u64,
    counters: Counters,
}

impl Nic {
    /// A shard's queues, with all receives posted.
    ///
    /// # Errors
    /// What the kernel says: more than the device takes.
    pub fn new(adapter: Arc<Adapter>, depths: Depths) -> Result<Self, VerbsError> {
        let completions = CompletionQueue::new(&adapter.domain.device, depths.completions)?;
        let receives = Receives::new(&adapter.domain, depths.receives)?;
        let markers = Markers::new(!adapter.device().is_software());
        Ok(Self {
            pairs: BTreeMap::new(),
            windows: HashMap::new(),
            completions,
            receives,
            known: Known::new(adapter),
            depths,
            sends: Sends::default(),
            ready: VecDeque::new(),
            found: Vec::new(),
            broken: BTreeSet::new(),
            markers,
            ending: Vec::new(),
            is_lost: false,
            random: RandomState::new(),
            made: 0,
            counters: Counters::default(),
        })
    }

    /// A key for a window that [`Operation::Bind`] opens, once.
    ///
    /// # Errors
    /// What the kernel says: the device has no windows, or too few.
    pub fn window(&mut self) -> Result<RemoteKey, VerbsError> {
        let window = Window::new(&self.known.adapter().domain)?;
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
    /// What the kernel says: too many, or too deep; the device is gone.
    pub fn create_qp(&mut self) -> Result<QpAddress, VerbsError> {
        self.made += 1;
        self.create_qp_from(self.random.hash_one(self.made) as u32)
    }

    /// Makes a queue pair that counts its packets from here, modulo 2^24. Mooncake's peers expect
    /// 0; others are safer with [`Nic::create_qp`].
    ///
    /// # Errors
    /// As [`Nic::create_qp`].
    pub fn create_qp_from(&mut self, first_packet: u32) -> Result<QpAddress, VerbsError> {
        if self.is_lost {
            VerbsError::check("a queue pair of a device that is gone", libc::ENODEV)?;
        }
        let (domain, depth) = (&self.known.adapter().domain, self.depths.work_requests);
        let (completions, receives) = (&self.completions, &self.receives);
        let first_packet = first_packet & PACKET_NUMBER_MASK;
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

    /// Ends it. Its memory is held until here, and of its completions none is handed out any more.
    pub fn destroy(&mut self, qp: QpNumber) {
        if self.has(qp) {
            self.remove(qp);
            self.ending.retain(|marker| marker.qp != qp);
            self.ready.retain(|completion| completion.qp != qp);
            self.end_pairs();
        }
    }

    /// Where it is in its life; none where there is no such queue pair.
    pub fn state(&self, qp: QpNumber) -> Option<QpState> {
        self.pairs.get(&qp)?.state()
    }

    /// Whether there is such a queue pair.
    pub fn has(&self, qp: QpNumber) -> bool {
        self.pairs.contains_key(&qp)
    }

    /// The device reports this ([`Device::events`](super::Device::events)), whosever it is. Where
    /// the device or one of the NIC's own queues is gone for good, so are the queue pairs: all that
    /// is posted comes out of the next polls as flushed, and its memory is quiet.
    pub fn told(&mut self, event: AsyncEvent) {
        match event {
            // A report may be older than the queue pair that has its number now.
            AsyncEvent::LastReceive(qp) if self.state(qp) == Some(QpState::Error) => {
                self.ending.extend(self.markers.last_receive(qp));
                self.end_pairs();
            }
            AsyncEvent::DeviceFatal => self.lose(),
            AsyncEvent::CompletionsFailed(number) if number == self.completions.number() => {
                // What it still holds is not to be relied on.
                self.is_lost = true;
                self.lose();
            }
            AsyncEvent::ReceivesFailed(number) if number == self.receives.number() => self.lose(),
            _ => {}
        }
    }

    /// Gives up waiting for [`AsyncEvent::LastReceive`] of those queue pairs whose markers waited
    /// already when this was last called, so a marker waits for one interval between two calls at
    /// least. The end of a queue pair proves its memory quiet all the same; what may be missing is
    /// a word that a device got and never told of.
    pub fn expire_markers(&mut self) {
        self.ending.append(&mut self.markers.expire());
        self.end_pairs();
    }

    /// Lets go of registrations that were taken back. Polling and submitting do so as well; a shard
    /// that sleeps is told to.
    pub fn refresh(&mut self) {
        self.known.refresh();
    }

    /// What the device has reported, to whoever asks first.
    pub fn events(&self) -> Vec<AsyncEvent> {
        self.known.adapter().device().events()
    }

    /// What was posted and has completed.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Readable when a completion comes after [`Reactor::arm`], and for good when the device is
    /// gone.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.completions.fd()
    }

    /// Hands a list over to the device, up to the first request that can't be.
    fn post(&mut self, qp: QpNumber, requests: Vec<WorkRequest>) {
        let Self { pairs, windows, known, sends, counters, .. } = self;
        let Some(pair) = pairs.get_mut(&qp) else { return };
        sends.clear();
        for request in requests {
            if pair.posted.is_broken() || !add((sends, known, windows), qp, &request) {
                pair.posted.refuse(&request, Status::LocalProtection);
            } else {
                pair.posted.push(request);
            }
        }
        if sends.len() > 0 {
            let (taken, fault) = pair.post(sends);
            pair.posted.take_back(sends.len() - taken, fault);
            counters.doorbells += 1;
            counters.work_requests += taken as u64;
            counters.signalled += sends.signalled(taken) as u64;
        }
        if pair.posted.is_broken() {
            self.set_error(qp);
            self.broken.insert(qp);
            self.end_refused();
        }
    }
}

/// Adds a request to a list; `false` where it names memory that is not registered, or a window that
/// there isn't.
fn add(
    (sends, known, windows): (&mut Sends, &mut Known, &mut HashMap<RemoteKey, Window>),
    qp: QpNumber,
    request: &WorkRequest,
) -> bool {
    let registered = request.local.as_ref().map_or(&[][..], |local| known.of(local.region()));
    let opening = match request.operation {
        Operation::Bind { window, .. } => {
            let mr = registered.iter().find_map(|registration| registration.piece(request.key));
            let Some((mr, window)) = mr.zip(windows.get_mut(&window)) else { return false };
            window.opened_on = Some(qp);
            Some(Opening { mw: window.mw, mr })
        }
        _ => None,
    };
    match (&request.local, registered) {
        (None, _) => sends.push(request, iter::empty(), opening),
        (Some(local), [first, ..]) => sends.push(request, first.local(local), opening),
        (Some(_), []) => return false,
    }
    true
}

impl Reactor for Nic {
    type Work = Post;
    type Done = Completion;

    /// A post's name is its queue pair's number: fencing it ends all that is posted there.
    fn submit(&mut self, post: Post) -> Result<u64, Post> {
        let Post { qp, requests } = post;
        let has_room = self.pairs.get(&qp).is_some_and(|pair| pair.posted.has_room(requests.len()));
        if !has_room {
            return Err(Post { qp, requests });
        }
        self.known.refresh();
        self.post(qp, requests);
        self.end_pairs();
        Ok(u64::from(qp.0))
    }

    fn poll(&mut self, budget: usize, done: &mut Vec<Completion>) -> usize {
        self.known.refresh();
        let (first, most) = (done.len(), done.len() + budget);
        self.hand_out(most, done);
        // What isn't for the shard makes room for more: nothing found means that nothing is there.
        while done.len() < most && !self.is_lost {
            let room = most - done.len();
            let taken = self.look(room, done);
            self.end_refused();
            self.end_pairs();
            self.hand_out(most, done);
            if taken < room {
                break;
            }
        }
        done.len() - first
    }

    fn arm(&mut self) -> bool {
        self.ready.is_empty() && (self.is_lost || self.completions.arm())
    }

    fn fence(&mut self, name: u64) {
        if let Ok(number) = u32::try_from(name) {
            self.set_error(QpNumber(number));
        }
    }
}

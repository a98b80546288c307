//! Our session with a peer of this host: which of its memory can be read here, which of ours it
//! reads, and the lanes by which it is asked. The session itself runs on the control thread.

use std::collections::{BTreeMap, HashMap};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock, Weak};

use kvrail_reactors::cuda::Gpus;
use kvrail_reactors::doorbell::Bell;
use kvrail_reactors::host::NotMappable;
use kvrail_reactors::host::lane;
use kvrail_reactors::host::ledger::LedgerView;
use kvrail_reactors::host::socket;
use kvrail_reactors::region;
use tokio::sync::{broadcast, mpsc, oneshot};
use tokio::time::{Duration, Instant, sleep_until};

use super::handed::{Borrowed, Lent};
use super::hub::{Change, Hub, tell};
use super::lane::Lane;
use super::message::{LEDGERS, ToAsker, ToResponder, VERSION};
use super::packets::Packets;
use super::readable::{Handle, Told, Visible, means, open_process};
use super::shard::Message;
use super::sources::{Known, PeerRegion, Readable};
use crate::auth::Pass;
use crate::limits::{GRANTS_MAX, HOST_ANSWER_MS, HOST_CALLS_MAX, HOST_LANES_MAX, REGIONS_MAX};
use crate::memory::Regions;
use crate::memory::grant::{Key, ROW};
use crate::path::tcp::LaneName;
use crate::{Error, Result};

/// A peer of this host, connected.
pub(crate) struct Neighbour {
    pub(crate) lanes: Vec<Arc<Lane>>,
    /// For each lane the NUMA node on which the peer copies.
    pub(crate) nodes: Vec<Option<u32>>,
    pub(crate) readable: Readable,
    /// What the peer said to our regions, by their numbers.
    offers: RwLock<HashMap<u64, Offer>>,
    questions: mpsc::Sender<Question>,
    is_over: AtomicBool,
    next_lane: AtomicUsize,
}

/// What a peer said when it was offered a region of ours to copy from.
#[derive(Debug, Clone)]
pub(crate) enum Offer {
    /// It reads it; by mapping it, or by `process_vm_readv` where it is foreign.
    Taken { is_mapped: bool },
    /// It can't, for a reason: another path must do.
    Refused(Arc<str>),
}

/// Something to be asked of a peer before a transfer can choose its path.
pub(crate) enum Asked {
    /// May these bytes of the peer's be read here? Under the grant of this key, if any.
    Map { addr: u64, len: u64, key: Option<Key> },
    /// Can the peer read this region?
    Offer(Arc<region::Region>),
}

struct Question {
    asked: Asked,
    answered: oneshot::Sender<()>,
}

/// A question that is put to the peer, until it answers.
struct Pending {
    asked: Asked,
    /// Whoever waits for the answer; nobody after a while.
    answered: Option<oneshot::Sender<()>>,
    patience: Instant,
}

impl Neighbour {
    /// Connects to the process of that incarnation which listens under one of `names`.
    ///
    /// # Errors
    /// Lost or Refused: why this path can't be taken.
    pub(crate) async fn connect(
        hub: Arc<Hub>,
        names: &[String],
        incarnation: u64,
        peer: Arc<str>,
        own: &str,
        (lane, pass): (LaneName, Option<Pass>),
    ) -> Result<Arc<Self>> {
        let candidates = hub.candidates(names);
        let mut found = Err(Error::refused("the peer names no Unix socket"));
        for name in &candidates {
            found = socket::connect(name).map_err(|error| {
                Error::lost(format!("no Unix socket of the peer's at {name}")).with_source(error)
            });
            if found.is_ok() {
                break;
            }
        }
        let (packets, credentials) = Packets::new(found?)?;
        let hello = ToResponder::Hello {
            version: VERSION,
            to: incarnation,
            name: peer.to_string(),
            from: own.to_owned(),
            token: hub.token.place(),
            label: lane.label(),
            pass: pass.map(|pass| (lane.to_string(), pass.to_string())),
        };
        let welcome = greet(&packets, incarnation, &hello).await?;
        let Welcome { ledger, grants, bells, nodes, token } = welcome;
        let lanes = bring_lanes(&hub, &packets, bells, (&peer, lane.label())).await?;
        let (questions, asked) = mpsc::channel(HOST_CALLS_MAX);
        let neighbour = Arc::new(Self {
            lanes,
            nodes,
            readable: Readable::new(Arc::new(ledger), Arc::new(grants)),
            offers: RwLock::default(),
            questions,
            is_over: AtomicBool::new(false),
            next_lane: AtomicUsize::new(0),
        });
        let session = Session {
            packets,
            process: open_process(credentials, token),
            gpus: hub.gpus.clone(),
            regions: hub.regions.clone(),
            lent: Lent::default(),
            borrowed: Borrowed::new(),
            neighbour: Arc::downgrade(&neighbour),
            asked,
            pending: BTreeMap::new(),
            next_call: 1,
        };
        tokio::spawn(session.run(hub.changes.subscribe(), hub.closing.subscribe()));
        Ok(neighbour)
    }

    /// Whether the session has ended: the peer must be connected to anew.
    pub(crate) fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Acquire) || self.lanes.iter().any(|lane| lane.is_lost())
    }

    /// Asks the peer; it is noted here what it says. `false` where it says nothing: at once if the
    /// session is over, else after [`HOST_ANSWER_MS`].
    pub(crate) async fn ask(&self, asked: Asked) -> bool {
        let (answered, answer) = oneshot::channel();
        self.questions.send(Question { asked, answered }).await.is_ok() && answer.await.is_ok()
    }

    /// What the peer said to a region of ours; none where it wasn't asked.
    pub(crate) fn offer(&self, id: u64) -> Option<Offer> {
        self.offers.read().unwrap_or_else(PoisonError::into_inner).get(&id).cloned()
    }

    /// Where the next batch starts among the lanes.
    pub(crate) fn next_lane(&self) -> usize {
        self.next_lane.fetch_add(1, Ordering::Relaxed)
    }

    fn note(&self, id: u64, offer: Offer) {
        let mut offers = self.offers.write().unwrap_or_else(PoisonError::into_inner);
        let is_taken = matches!(offers.get(&id), Some(Offer::Taken { .. }));
        // Offered twice at a time, it is refused the second time.
        if offers.len() < REGIONS_MAX && !is_taken {
            offers.insert(id, offer);
        }
    }

    fn forget(&self, id: u64) -> bool {
        let mut offers = self.offers.write().unwrap_or_else(PoisonError::into_inner);
        matches!(offers.remove(&id), Some(Offer::Taken { .. }))
    }

    fn end(&self, error: &Error) {
        self.is_over.store(true, Ordering::Release);
        self.lanes.iter().for_each(|lane| lane.lose(error));
        self.readable.clear();
    }
}

impl Drop for Neighbour {
    /// Nobody holds the peer any more, so nothing is out.
    fn drop(&mut self) {
        self.end(&Error::closed("the peer was closed"));
    }
}

/// What a responder brings: its ledgers, a bell for each of its lanes, and proof of its memory.
struct Welcome {
    ledger: LedgerView,
    grants: LedgerView<ROW>,
    bells: Vec<Bell>,
    nodes: Vec<Option<u32>>,
    token: (u64, u64),
}

async fn greet(packets: &Packets, incarnation: u64, hello: &ToResponder) -> Result<Welcome> {
    packets.send(hello, &[]).await?;
    let (welcome, mut fds) = packets.answer().await?;
    let ToAsker::Welcome { version: VERSION, incarnation: theirs, lanes, token } = welcome else {
        return Err(Error::refused("the peer does not welcome as this version does"));
    };
    if theirs != incarnation {
        return Err(Error::refused("another process listens at the peer's Unix socket"));
    }
    if !(1..=HOST_LANES_MAX).contains(&lanes.len()) || fds.len() != lanes.len() + LEDGERS {
        return Err(Error::refused("the peer welcomes with other descriptors than it says"));
    }
    let bells = fds.split_off(LEDGERS);
    let unfit = |error: NotMappable| Error::refused(format!("the peer's ledger: {error}"));
    let ledger = LedgerView::map(&fds[0], REGIONS_MAX).map_err(unfit)?;
    let grants = LedgerView::map(&fds[1], GRANTS_MAX).map_err(unfit)?;
    let bells = bells.into_iter().map(Bell::new).collect::<Result<_, _>>();
    let bells = bells.map_err(|error| Error::refused("the peer's bell").with_source(error))?;
    Ok(Welcome { ledger, grants, bells, nodes: lanes, token })
}

/// Makes the lanes, passes them to the peer, and has the shards look after them.
async fn bring_lanes(
    hub: &Arc<Hub>,
    packets: &Packets,
    bells: Vec<Bell>,
    (peer, label): (&Arc<str>, u64),
) -> Result<Vec<Arc<Lane>>> {
    let no_memory = |error| Error::refused("no memory for lanes").with_source(error);
    let (fd, rings) = lane::create(bells.len()).map_err(no_memory)?;
    let shards = hub.shards();
    let homes: Vec<_> = (0..bells.len()).map(|index| &shards[index % shards.len()]).collect();
    let mut fds = vec![fd.as_fd()];
    fds.extend(homes.iter().map(|shard| shard.doorbell().as_fd()));
    packets.send(&ToResponder::Lanes, &fds).await?;
    let (answer, _) = packets.answer::<ToAsker>().await?;
    if answer != ToAsker::Ready {
        return Err(Error::refused("the peer does not take the lanes"));
    }
    let mut lanes = Vec::new();
    for (index, ((ring, bell), shard)) in rings.into_iter().zip(bells).zip(homes).enumerate() {
        let label = label.wrapping_add(index as u64);
        let lane = Lane::new((peer.clone(), label), ring, bell, shard.doorbell().clone());
        let lane = Arc::new(lane);
        tell(shard, Message::Ask(lane.clone())).await;
        lanes.push(lane);
    }
    Ok(lanes)
}

/// The control thread's side of a neighbour.
struct Session {
    packets: Packets,
    process: Visible,
    gpus: Gpus,
    regions: Arc<Regions>,
    lent: Lent,
    borrowed: Borrowed,
    /// The session ends when nobody holds the peer.
    neighbour: Weak<Neighbour>,
    asked: mpsc::Receiver<Question>,
    pending: BTreeMap<u64, Pending>,
    next_call: u64,
}

impl Session {
    async fn run(
        mut self,
        changes: broadcast::Receiver<Change>,
        mut closing: tokio::sync::watch::Receiver<bool>,
    ) {
        let ended = tokio::select! {
            ended = self.talk(changes) => ended,
            _ = closing.wait_for(|closing| *closing) => Ok(()),
        };
        if let Some(neighbour) = self.neighbour.upgrade() {
            let error =
                ended.err().unwrap_or_else(|| Error::lost("the peer closed the connection"));
            tracing::debug!(%error, "a session with a peer of this host ended");
            neighbour.end(&error);
        }
        // The peer, which may free what we have open, takes the socket's end for that of all
        // copies.
        let Self { packets, borrowed, pending, lent, .. } = self;
        drop((pending, lent));
        borrowed.all_closed().await;
        drop(packets);
    }

    async fn talk(&mut self, mut changes: broadcast::Receiver<Change>) -> Result<()> {
        loop {
            let waiting = self.pending.values().find(|pending| pending.answered.is_some());
            let patience = waiting.map(|pending| pending.patience);
            tokio::select! {
                () = sleep_until(patience.unwrap_or_else(Instant::now)), if patience.is_some() => {
                    self.give_up();
                }
                message = self.packets.receive() => match message? {
                    Some((message, fds)) => self.hear(message, fds).await?,
                    None => return Err(Error::lost("the peer is gone")),
                },
                question = self.asked.recv() => match question {
                    Some(question) => self.put(question).await?,
                    None => return Ok(()),
                },
                change = changes.recv() => match change {
                    Ok(Change::Gone(id)) => self.withdraw(id).await?,
                    Ok(Change::Added) => {}
                    Err(_) => return Err(Error::lost("this engine's regions change too fast")),
                },
                call = self.borrowed.closed() => {
                    self.packets.send(&ToResponder::LetGo { call }, &[]).await?;
                }
            }
        }
    }

    async fn put(&mut self, question: Question) -> Result<()> {
        let Some(neighbour) = self.neighbour.upgrade() else { return Ok(()) };
        if self.pending.len() >= HOST_CALLS_MAX {
            return Err(Error::lost("the peer answers nothing"));
        }
        let call = self.next_call;
        self.next_call += 1;
        match &question.asked {
            // Two transfers may have had the same question.
            Asked::Map { addr, len, key } if neighbour.readable.is_known(*addr, *len, *key) => {
                return known(question);
            }
            Asked::Offer(region) if neighbour.offer(region.id()).is_some() => {
                return known(question);
            }
            Asked::Map { addr, len, key } => {
                let map = ToResponder::Map { call, addr: *addr, len: *len, key: *key };
                self.packets.send(&map, &[]).await?;
            }
            Asked::Offer(region) => {
                let handle = Handle::of(region);
                let handle = handle.and_then(|handle| self.lend(call, region, handle));
                let handle = match handle {
                    Ok(handle) => handle,
                    Err(why) => {
                        neighbour.note(region.id(), Offer::Refused(why));
                        return known(question);
                    }
                };
                let offer = ToResponder::Offer {
                    call,
                    id: region.id(),
                    addr: region.addr(),
                    len: region.len() as u64,
                    is_foreign: handle.is_foreign(),
                    gpu: handle.gpu(),
                };
                self.packets.send(&offer, handle.fd().as_slice()).await?;
            }
        }
        let Question { asked, answered } = question;
        let patience = Instant::now() + Duration::from_millis(HOST_ANSWER_MS);
        self.pending.insert(call, Pending { asked, answered: Some(answered), patience });
        Ok(())
    }

    fn is_registered(&self, memory: &Arc<region::Region>) -> bool {
        let regions = self.regions.current();
        let found = regions.find_own(memory.addr(), memory.len() as u64);
        found.is_ok_and(|(region, _)| Arc::ptr_eq(region.memory(), memory))
    }

    /// Counts the peer in as a visitor of a region that goes by a handle.
    fn lend<'a>(
        &mut self,
        call: u64,
        memory: &region::Region,
        handle: Handle<'a>,
    ) -> Result<Handle<'a>, Arc<str>> {
        if handle.is_lent() {
            let regions = self.regions.current();
            let found = regions.find_own(memory.addr(), memory.len() as u64);
            let lent = found.and_then(|(region, _)| self.lent.lend(call, region));
            lent.map_err(|error| Arc::from(error.to_string()))?;
        }
        Ok(handle)
    }

    /// Nobody waits any more for what the peer should have answered by now; it may still answer.
    fn give_up(&mut self) {
        let now = Instant::now();
        for pending in self.pending.values_mut().filter(|pending| pending.patience <= now) {
            pending.answered = None;
        }
    }

    async fn withdraw(&mut self, id: u64) -> Result<()> {
        match self.neighbour.upgrade().is_some_and(|neighbour| neighbour.forget(id)) {
            true => self.packets.send(&ToResponder::Withdraw { id }, &[]).await,
            false => Ok(()),
        }
    }

    async fn hear(&mut self, message: ToAsker, fds: Vec<OwnedFd>) -> Result<()> {
        let Some(neighbour) = self.neighbour.upgrade() else { return Ok(()) };
        match message {
            ToAsker::Mapped { call, id, slot, addr, len, is_foreign, gpu } => {
                let Some(question) = self.pending.remove(&call) else { return Err(unasked()) };
                let borrower = self.borrowed.borrower(call, gpu.as_ref());
                let told = Told { addr, len, is_foreign, gpu, fds, borrower };
                let known = match means(&self.process, &self.gpus, told).await {
                    Ok(means) => {
                        Known::Readable { region: PeerRegion { id, addr, len, means }, slot }
                    }
                    Err(why) => Known::Refused(why),
                };
                let is_granted = matches!(&question.asked, Asked::Map { key: Some(_), .. });
                neighbour.readable.insert(addr, len, is_granted, known);
                answered(question);
            }
            ToAsker::Taken { call } => {
                let question = self.pending.remove(&call).ok_or_else(unasked)?;
                if let Asked::Offer(region) = &question.asked {
                    let is_mapped = !region.is_foreign();
                    neighbour.note(region.id(), Offer::Taken { is_mapped });
                    if !self.is_registered(region) {
                        // It went while it was offered: nobody says so any more.
                        self.withdraw(region.id()).await?;
                    }
                }
                answered(question);
            }
            ToAsker::Refused { call, why } => {
                let question = self.pending.remove(&call).ok_or_else(unasked)?;
                match &question.asked {
                    Asked::Map { addr, len, key } => {
                        let refused = Known::Refused(why.into());
                        neighbour.readable.insert(*addr, *len, key.is_some(), refused);
                    }
                    Asked::Offer(region) => {
                        neighbour.note(region.id(), Offer::Refused(why.into()));
                    }
                }
                answered(question);
            }
            ToAsker::LetGo { call } => self.lent.let_go(call),
            ToAsker::Gone { id } => neighbour.readable.remove(id),
            ToAsker::Added => neighbour.readable.forget_refusals(),
            ToAsker::Welcome { .. } | ToAsker::Ready => return Err(unasked()),
        }
        Ok(())
    }
}

/// Another transfer has asked the same before.
fn known(question: Question) -> Result<()> {
    // Whoever asked may not wait any more.
    let _ = question.answered.send(());
    Ok(())
}

fn answered(question: Pending) {
    // Whoever asked may not wait any more.
    let _ = question.answered.map(|answered| answered.send(()));
}

fn unasked() -> Error {
    Error::lost("the peer answers what it was not asked")
}

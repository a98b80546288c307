//! Sessions that peers of this host opened: who they are, the lanes they may ask by, and the
//! memory that either side lets the other read. On the control thread; shards do the copying.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use kvrail_reactors::doorbell::Bell;
use kvrail_reactors::host::lane;
use kvrail_reactors::host::socket::Listener;
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::sync::broadcast;

use super::handed::{Borrowed, Lent};
use super::hub::{Change, Hub, tell};
use super::message::{ToAsker, ToResponder, VERSION};
use super::packets::Packets;
use super::pages::LanePages;
use super::readable::{Handle, Told, Visible, means, open_process};
use super::server::LaneServer;
use super::shard::Message;
use super::sources::{Offered, PeerRegion};
use crate::auth::Visitor;
use crate::limits::{CONTROL_ACCEPT_PAUSE_MS, HOST_LANES_MAX};
use crate::memory::grant::Key;
use crate::memory::{Operation, Region};
use crate::{Error, Result};

/// Serves every listener of the hub until it is closed.
pub(crate) fn serve(hub: &Arc<Hub>, spawn: impl Fn(Accepting)) {
    for listener in hub.take_listeners() {
        spawn(Box::pin(accept(hub.clone(), listener)));
    }
}

/// One listener's work.
pub(crate) type Accepting = std::pin::Pin<Box<dyn Future<Output = ()> + Send>>;

async fn accept(hub: Arc<Hub>, listener: Listener) {
    let mut closing = hub.closing.subscribe();
    // tokio's stream only tells when somebody connects.
    let clone = listener.as_fd().try_clone_to_owned();
    let Ok(ready) = clone.and_then(|fd| UnixStream::from_std(fd.into())) else {
        return tracing::warn!("no peer of this host can connect: raise `ulimit -n`");
    };
    loop {
        let accepted = tokio::select! {
            accepted = ready.async_io(Interest::READABLE, || listener.accept()) => accepted,
            _ = closing.wait_for(|closing| *closing) => return,
        };
        let Ok(socket) = accepted else {
            // Most likely there is no descriptor to be had.
            tokio::time::sleep(Duration::from_millis(CONTROL_ACCEPT_PAUSE_MS)).await;
            continue;
        };
        // Past the limit the socket is dropped: the peer goes by TCP.
        if let Ok(seat) = hub.seats.clone().try_acquire_owned() {
            let hub = hub.clone();
            tokio::spawn(async move {
                if let Err(error) = respond(&hub, socket).await {
                    tracing::debug!(%error, "a session with a peer of this host ended");
                }
                drop(seat);
            });
        }
    }
}

async fn respond(hub: &Arc<Hub>, socket: OwnedFd) -> Result<()> {
    let mut closing = hub.closing.subscribe();
    let (packets, peer) = Packets::new(socket)?;
    // Before the handshake, so that nothing is missed.
    let changes = hub.changes.subscribe();
    let id = hub.next_session();
    let mut borrowed = Borrowed::new();
    let session = async {
        let Greeted { token, offered, visitor } = greet(hub, &packets, id).await?;
        let process = open_process(peer, token);
        let (lent, borrowed) = (Lent::default(), &mut borrowed);
        let session = Session { hub, packets: &packets, process, offered, visitor, lent, borrowed };
        session.run(changes).await
    };
    let result = tokio::select! {
        ended = session => ended,
        _ = closing.wait_for(|closing| *closing) => Ok(()),
    };
    end_lanes(hub, id).await;
    // The peer, which may free what we have open, takes the socket's end for that of all copies.
    borrowed.all_closed().await;
    result
}

/// What a peer brings to a session.
struct Greeted {
    token: (u64, u64),
    offered: Arc<Offered>,
    visitor: Visitor,
}

/// The handshake, up to the lanes.
async fn greet(hub: &Arc<Hub>, packets: &Packets, id: u64) -> Result<Greeted> {
    let (hello, _) = packets.answer().await?;
    let ToResponder::Hello { version: VERSION, to, name, from, token, label, pass } = hello else {
        return Err(Error::refused("the peer does not greet as this version does"));
    };
    if to != hub.incarnation {
        return Err(Error::refused("the peer means another process").with_peer(name));
    }
    let visitor = visitor(hub, &from, pass)?;
    let shards = hub.shards();
    let lanes = shards.len().min(HOST_LANES_MAX);
    let nodes = hub.nodes()[..lanes].to_vec();
    let (incarnation, own) = (hub.incarnation, hub.token.place());
    let welcome = ToAsker::Welcome { version: VERSION, incarnation, lanes: nodes, token: own };
    let grants = hub.grants.ledger().ok_or_else(|| Error::refused("no memfd for grants"))?;
    let mut fds = vec![hub.roll.ledger.fd(), grants.fd()];
    fds.extend(shards[..lanes].iter().map(|shard| shard.doorbell().as_fd()));
    packets.send(&welcome, &fds).await?;
    let (answer, mut fds) = packets.answer().await?;
    if !matches!(answer, ToResponder::Lanes) || fds.len() != lanes + 1 {
        return Err(Error::refused("the peer brings no lanes"));
    }
    let bells = fds.split_off(1);
    let rings = fds.first().map(|fd| lane::open(fd, lanes)).transpose();
    let rings = rings.map_err(|error| Error::refused(error.to_string()))?.unwrap_or_default();
    let offered = Arc::new(Offered::default());
    let peer = &visitor;
    tracing::debug!(lane = %format_args!("{label:08x}"), lanes, %peer, "a neighbour opens lanes");
    for (index, ((ring, bell), shard)) in rings.into_iter().zip(bells).zip(shards).enumerate() {
        let bell = Bell::new(bell)
            .map_err(|error| Error::refused("the peer's bell is no eventfd").with_source(error))?;
        let pages = LanePages::new(shard.doorbell().clone(), hub.blocks);
        let (bell, offered) = (Arc::new(bell), offered.clone());
        let peer = (visitor.clone(), label.wrapping_add(index as u64));
        let server = Box::new(LaneServer::new(ring, bell, offered, peer, pages));
        tell(shard, Message::Serve { session: id, server }).await;
    }
    packets.send(&ToAsker::Ready, &[]).await?;
    Ok(Greeted { token, offered, visitor })
}

/// Who greets: by the pass that it shows, or by its word where that will do.
fn visitor(hub: &Hub, from: &str, pass: Option<(String, String)>) -> Result<Visitor> {
    let refused = || Error::refused("the peer shows no pass that is good").with_peer(from);
    let Some((lane, pass)) = pass else {
        let mut visitor = hub.gate.newcomer();
        return if visitor.says(from) { Ok(visitor) } else { Err(refused()) };
    };
    let (lane, pass) = lane.parse().ok().zip(pass.parse().ok()).ok_or_else(refused)?;
    hub.gate.admit(&pass, lane).ok_or_else(refused)
}

/// No shard answers the session's lanes any more when this returns.
async fn end_lanes(hub: &Arc<Hub>, session: u64) {
    let (guard, quiet) = flume::bounded(0);
    for shard in hub.shards() {
        tell(shard, Message::Close { session, guard: guard.clone() }).await;
    }
    drop(guard);
    // Nobody sends: the channel closes with the last guard.
    let _: Result<(), _> = quiet.recv_async().await;
}

struct Session<'a> {
    hub: &'a Arc<Hub>,
    packets: &'a Packets,
    process: Visible,
    offered: Arc<Offered>,
    visitor: Visitor,
    lent: Lent,
    borrowed: &'a mut Borrowed,
}

impl Session<'_> {
    async fn run(mut self, mut changes: broadcast::Receiver<Change>) -> Result<()> {
        loop {
            tokio::select! {
                message = self.packets.receive() => match message? {
                    Some((message, fds)) => self.answer(message, fds).await?,
                    None => return Ok(()),
                },
                change = changes.recv() => match change {
                    Ok(Change::Gone(id)) => self.say(&ToAsker::Gone { id }, &[]).await?,
                    Ok(Change::Added) => self.say(&ToAsker::Added, &[]).await?,
                    Err(_) => return Err(Error::lost("the peer fell behind what changes here")),
                },
                call = self.borrowed.closed() => self.say(&ToAsker::LetGo { call }, &[]).await?,
            }
        }
    }

    async fn say(&self, message: &ToAsker, fds: &[BorrowedFd<'_>]) -> Result<()> {
        self.packets.send(message, fds).await
    }

    async fn answer(&mut self, message: ToResponder, fds: Vec<OwnedFd>) -> Result<()> {
        match message {
            ToResponder::Map { call, addr, len, key } => self.map(call, addr, len, key).await,
            ToResponder::Offer { call, id, addr, len, is_foreign, gpu } => {
                let borrower = self.borrowed.borrower(call, gpu.as_ref());
                let told = Told { addr, len, is_foreign, gpu, fds, borrower };
                let region = means(&self.process, &self.hub.gpus, told).await;
                let taken = region.and_then(|means| {
                    let region = PeerRegion { id, addr, len, means };
                    self.offered.insert(region).map_err(|error| error.to_string().into())
                });
                let answer = match taken {
                    Ok(()) => ToAsker::Taken { call },
                    Err(why) => ToAsker::Refused { call, why: why.to_string() },
                };
                self.say(&answer, &[]).await
            }
            ToResponder::Withdraw { id } => {
                self.offered.remove(id);
                Ok(())
            }
            ToResponder::LetGo { call } => {
                self.lent.let_go(call);
                Ok(())
            }
            ToResponder::Hello { .. } | ToResponder::Lanes => {
                Err(Error::refused("the peer greets twice"))
            }
        }
    }

    async fn map(&mut self, call: u64, addr: u64, len: u64, key: Option<Key>) -> Result<()> {
        let found = self.readable(addr, len, key);
        let (region, slot) = match found {
            Ok(found) => found,
            Err(error) => {
                let why = error.to_string();
                return self.say(&ToAsker::Refused { call, why }, &[]).await;
            }
        };
        let memory = region.memory();
        let lent = |handle: &Handle<'_>, lent: &mut Lent| match handle.is_lent() {
            true => lent.lend(call, &region).map_err(|error| error.to_string().into()),
            false => Ok(()),
        };
        let handle = Handle::of(memory);
        let handle = match handle.and_then(|handle| lent(&handle, &mut self.lent).map(|()| handle))
        {
            Ok(handle) => handle,
            Err(why) => {
                let why = why.to_string();
                return self.say(&ToAsker::Refused { call, why }, &[]).await;
            }
        };
        let mapped = ToAsker::Mapped {
            call,
            id: memory.id(),
            slot,
            addr: region.addr(),
            len: region.len() as u64,
            is_foreign: handle.is_foreign(),
            gpu: handle.gpu(),
        };
        self.say(&mapped, handle.fd().as_slice()).await
    }

    /// The region of these bytes, if peers may read it, or this one may by a grant.
    fn readable(&self, addr: u64, len: u64, key: Option<Key>) -> Result<(Region, usize)> {
        let regions = self.hub.regions.current();
        match key {
            None => drop(regions.find_for(&self.visitor, addr, len, Operation::Read)?),
            Some(key) => {
                let (grants, read) = (&self.hub.grants, Operation::Read);
                let found = grants.find_for(&self.visitor, &regions, key, addr, len, read);
                found.map_err(|_| Error::refused("no grant that permits it"))?;
            }
        }
        let (region, _) = regions.find_own(addr, len)?;
        let slot = self.hub.roll.slot(region.memory().id());
        let slot = slot.ok_or_else(|| Error::closed("the region was unregistered"))?;
        Ok((region.clone(), slot))
    }
}

//! A peer as transfers see it: its name, where its data goes, and what it said it has.

use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::explain::Observed;
use crate::path::host::Neighbour;
use crate::path::verbs::Reach;
use crate::{Error, PathKind, Result};

/// A range of a peer's memory, as its descriptor listed it when it was opened or refreshed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemoteBuffer {
    /// The peer's label for it: a location such as `cpu:0`, or its segment name.
    pub name: String,
    /// The first byte's address at the peer.
    pub addr: u64,
    /// Length in bytes.
    pub len: u64,
}

impl RemoteBuffer {
    fn is_on_gpu(&self) -> bool {
        self.name.starts_with("cuda:")
    }
}

/// An opened peer. Clones are the same peer; its connections close with the last one.
#[derive(Debug, Clone)]
pub struct Peer {
    pub(crate) inner: Arc<PeerInner>,
}

#[derive(Debug)]
pub(crate) struct PeerInner {
    pub(crate) link: Arc<Link>,
    buffers: Vec<RemoteBuffer>,
}

impl Peer {
    pub(crate) fn new(link: Arc<Link>, buffers: Vec<RemoteBuffer>) -> Self {
        Self { inner: Arc::new(PeerInner { link, buffers }) }
    }

    /// Its segment name.
    pub fn name(&self) -> &str {
        &self.inner.link.route.name
    }

    /// How its transfers travel; those of memory that can't go by the same-host path still go by
    /// TCP ([`crate::Engine::explain`] says which and why).
    pub fn path(&self) -> PathKind {
        match self.inner.link.route.kind {
            RouteKind::Local => PathKind::Local,
            RouteKind::Tcp(_) if self.inner.link.neighbour().is_some() => PathKind::Host,
            RouteKind::Tcp(_) if self.inner.link.reach().is_some() => PathKind::Rdma,
            RouteKind::Tcp(_) => PathKind::Tcp,
        }
    }

    /// Whether batches to it may be posted: neither it nor this engine drains, and it was not
    /// closed.
    pub fn is_open(&self) -> bool {
        self.inner.link.phase() == Phase::Open
    }

    /// Whether the peer's range that holds this address is on a GPU.
    pub(crate) fn is_on_gpu(&self, addr: u64) -> bool {
        self.buffer(addr).is_some_and(RemoteBuffer::is_on_gpu)
    }

    /// Whether any range of the peer's is on a GPU.
    pub(crate) fn has_vram(&self) -> bool {
        self.buffers().iter().any(RemoteBuffer::is_on_gpu)
    }

    fn buffer(&self, addr: u64) -> Option<&RemoteBuffer> {
        let holds = |buffer: &&RemoteBuffer| {
            addr.checked_sub(buffer.addr).is_some_and(|offset| offset < buffer.len)
        };
        self.buffers().iter().find(holds)
    }

    /// The NUMA node, at the peer, of the range that holds this address; none where its descriptor
    /// doesn't bind it to one.
    pub(crate) fn node_of(&self, addr: u64) -> Option<u32> {
        self.buffer(addr)?.name.strip_prefix("cpu:")?.parse().ok()
    }

    /// The ranges that it had published when it was opened.
    pub fn buffers(&self) -> &[RemoteBuffer] {
        &self.inner.buffers
    }
}

/// Keeps the connections to a peer: they close when nobody holds it any more.
pub(crate) struct Link {
    pub(crate) route: Arc<Route>,
    vicinity: Mutex<Vicinity>,
    /// Its memory by RDMA, or why it isn't reached so.
    reach: Mutex<Result<Arc<Reach>, Arc<str>>>,
    /// Held while connecting, so that two openings connect once.
    pub(crate) meeting: tokio::sync::Mutex<()>,
    pub(crate) observed: Observed,
    traffic: Traffic,
    forget: Option<Box<dyn Fn(u64) + Send + Sync>>,
}

/// How many batches are under way, and whether more may be.
#[derive(Default)]
struct Traffic {
    aloft: AtomicUsize,
    /// A [`Phase`]; it only grows.
    phase: AtomicU8,
    /// The last one has landed behind the last take-off.
    is_over: Notify,
}

/// How far a link has come, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(crate) enum Phase {
    Open,
    /// The peer drains: what is under way ends well.
    PeerDrains,
    /// We do.
    WeDrain,
    /// What is under way ends early.
    Closed,
}

impl Phase {
    const ALL: [Self; 4] = [Self::Open, Self::PeerDrains, Self::WeDrain, Self::Closed];

    /// Why nothing may take off any more.
    fn error(self) -> Option<Error> {
        match self {
            Self::Open => None,
            Self::PeerDrains => Some(Error::draining(
                "the peer finishes what it has and then stops: go to another one",
            )),
            Self::WeDrain => Some(Error::draining("this engine finishes what it has, and stops")),
            Self::Closed => Some(Error::closed("the peer was closed: open it anew")),
        }
    }
}

/// Whether a peer is a process of this host.
#[derive(Clone)]
pub(crate) enum Vicinity {
    /// It is, and connected.
    Here(Arc<Neighbour>),
    /// It isn't, or it can't be told: why.
    Elsewhere(Arc<str>),
}

impl Link {
    pub(crate) fn new(route: Route, forget: impl Fn(u64) + Send + Sync + 'static) -> Arc<Self> {
        Self::make(route, Some(Box::new(forget)))
    }

    fn make(route: Route, forget: Option<Box<dyn Fn(u64) + Send + Sync>>) -> Arc<Self> {
        Arc::new(Self {
            route: Arc::new(route),
            vicinity: Mutex::new(Vicinity::Elsewhere("it was not looked for".into())),
            reach: Mutex::new(Err("it was not looked for".into())),
            meeting: tokio::sync::Mutex::new(()),
            observed: Observed::default(),
            traffic: Traffic::default(),
            forget,
        })
    }

    /// What is known of where the peer is.
    pub(crate) fn vicinity(&self) -> Vicinity {
        self.lock().clone()
    }

    pub(crate) fn set_vicinity(&self, vicinity: Vicinity) {
        *self.lock() = vicinity;
    }

    /// The peer's same-host session, while it lives.
    pub(crate) fn neighbour(&self) -> Option<Arc<Neighbour>> {
        match &*self.lock() {
            Vicinity::Here(neighbour) if !neighbour.is_over() => Some(neighbour.clone()),
            _ => None,
        }
    }

    /// The process that it is; none for Mooncake's and for the engine itself.
    pub(crate) fn incarnation(&self) -> Option<u64> {
        match &self.route.kind {
            RouteKind::Tcp(tcp) => tcp.incarnation,
            RouteKind::Local => None,
        }
    }

    /// Its memory as RDMA reaches it, where it does.
    pub(crate) fn reach(&self) -> Option<Arc<Reach>> {
        self.lock_reach().as_ref().ok().cloned()
    }

    /// Why RDMA doesn't reach it, if so.
    pub(crate) fn no_reach(&self) -> Option<Arc<str>> {
        self.lock_reach().as_ref().err().cloned()
    }

    pub(crate) fn set_reach(&self, reach: Result<Arc<Reach>, Arc<str>>) {
        *self.lock_reach() = reach;
    }

    fn lock_reach(&self) -> MutexGuard<'_, Result<Arc<Reach>, Arc<str>>> {
        self.reach.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A batch takes off. What has taken off lands.
    ///
    /// # Errors
    /// Draining, Closed: the link is.
    pub(crate) fn take_off(&self) -> Result<()> {
        // SeqCst pairs with `enter`: either this sees the phase, or that sees the batch.
        self.traffic.aloft.fetch_add(1, Ordering::SeqCst);
        let barred = self.phase().error();
        barred.map_or(Ok(()), |error| {
            self.landed();
            Err(error.with_peer(self.route.name.clone()))
        })
    }

    /// A batch has landed.
    pub(crate) fn landed(&self) {
        if self.traffic.aloft.fetch_sub(1, Ordering::SeqCst) == 1 && self.phase() > Phase::Open {
            self.traffic.is_over.notify_waiters();
        }
    }

    /// Nothing takes off any more, and what is under way ends early.
    pub(crate) fn close(&self) {
        self.enter(Phase::Closed);
    }

    /// Nothing takes off any more, for this reason. There is no way back.
    pub(crate) fn enter(&self, phase: Phase) {
        self.traffic.phase.fetch_max(phase as u8, Ordering::SeqCst);
    }

    fn phase(&self) -> Phase {
        Phase::ALL[usize::from(self.traffic.phase.load(Ordering::SeqCst))]
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.phase() == Phase::Closed
    }

    /// Waits until a link at which nothing takes off carries nothing.
    pub(crate) async fn over(&self) {
        loop {
            // Before looking, so that no landing is missed.
            let mut landed = std::pin::pin!(self.traffic.is_over.notified());
            landed.as_mut().enable();
            if self.traffic.aloft.load(Ordering::SeqCst) == 0 {
                return;
            }
            landed.await;
        }
    }

    /// Its connections close, here and at once.
    pub(crate) fn cut(&self) {
        self.set_vicinity(Vicinity::Elsewhere("it was closed".into()));
        if let Some(forget) = &self.forget {
            forget(self.route.key);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vicinity> {
        self.vicinity.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The link of an engine to itself.
    pub(crate) fn local(route: Route) -> Arc<Self> {
        Self::make(route, None)
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        if let Some(forget) = &self.forget {
            forget(self.route.key);
        }
    }
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.route.fmt(f)
    }
}

/// Where a peer's data goes.
#[derive(Debug)]
pub(crate) struct Route {
    /// Names the peer within this engine.
    pub(crate) key: u64,
    /// Its segment name.
    pub(crate) name: Arc<str>,
    pub(crate) kind: RouteKind,
}

impl Route {
    /// Whether it leads to this peer as it is now.
    pub(crate) fn is(&self, name: &str, tcp: &TcpRoute) -> bool {
        *self.name == *name && matches!(&self.kind, RouteKind::Tcp(own) if own == tcp)
    }
}

#[derive(Debug)]
pub(crate) enum RouteKind {
    /// This engine itself.
    Local,
    /// Another process.
    Tcp(TcpRoute),
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct TcpRoute {
    pub(crate) host: String,
    pub(crate) port: u16,
    /// Whether requests are sent as version 2.
    pub(crate) speaks_v2: bool,
    /// Which process of that name it is; none for Mooncake's, which know no events.
    pub(crate) incarnation: Option<u64>,
    /// Whether connections begin with their name, by which the peer can be asked to end them.
    pub(crate) names_lanes: bool,
}

impl TcpRoute {
    /// Whether it knows grants.
    pub(crate) fn takes_grants(&self) -> bool {
        self.names_lanes
    }

    /// Whether events may follow the data. Otherwise messages go by the control daemon.
    pub(crate) fn takes_events(&self) -> bool {
        self.speaks_v2 && self.incarnation.is_some()
    }
}

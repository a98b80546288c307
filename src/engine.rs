//! The engine: memory, peers and transfers behind one handle that any thread or executor may use.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use kvrail_reactors::host::process::permit_any_reader;
use kvrail_reactors::region;

use crate::arrivals::Arrivals;
use crate::config::{EngineBuilder, Metadata, SameHost};
use crate::control::{Buffer, Control, ControlConfig, Host, MetadataKind, Resolved};
use crate::counter::Counter;
use crate::explain::Explanation;
use crate::exposed::{Exposed, Exposure};
use crate::memory::{self, Access, Location, Region, Regions, RegionsView};
use crate::notification::Notification;
use crate::path::host::{Hub, Neighbour};
use crate::path::local::Copies;
use crate::path::served::Service;
use crate::path::{self, Carriers, tcp};
use crate::peer::{Link, Peer, RemoteBuffer, Route, RouteKind, TcpRoute, Vicinity};
use crate::request::Batch;
use crate::runtime::{Driver, Idle, PumpAddress, Runtime, SendError};
use crate::transfer::{Prepared, Transfer};
use crate::{Error, ErrorKind, Foreign, Result};

/// A transfer engine. Clones are the same engine; the last one's drop stops it.
#[derive(Clone)]
pub struct Engine {
    inner: Arc<Inner>,
}

pub(crate) struct Inner {
    runtime: Runtime,
    control: Arc<Control>,
    host: Arc<Exposed>,
    copies: Vec<PumpAddress<Copies>>,
    links: Mutex<Vec<Weak<Link>>>,
    next_route: AtomicU64,
    /// Where the next batch starts among the shards.
    cursor: AtomicUsize,
    own: Peer,
    tcp_v1: bool,
    /// Why no peer of this host is looked for, if none is.
    keeps_to_network: Option<Error>,
    /// Whether callers may look for a transfer's end themselves.
    watches: bool,
}

impl Engine {
    /// Settings to start an engine with.
    pub fn builder() -> EngineBuilder {
        EngineBuilder::default()
    }

    pub(crate) fn start(config: EngineBuilder) -> Result<Self> {
        let runtime = config.runtime(config.driver)?;
        let kind = match &config.metadata {
            Metadata::P2p => MetadataKind::P2p,
            Metadata::Http(url) => MetadataKind::Http(url.clone()),
        };
        let mut control_config = ControlConfig::new(&config.name, kind);
        control_config.cluster = config.cluster.clone();
        control_config.advertise = config.advertise.clone();
        if let Some(bind) = config.bind {
            control_config.bind = bind;
        }
        let (exposure, keeps_to_network) = expose(&config.same_host)?;
        let (give, take) = std::sync::mpsc::sync_channel(1);
        let control = Control::start(control_config, move |identity| {
            let host = Arc::new(exposure.named(identity.clone()));
            // The caller waits for it below.
            let _ = give.send(host.clone());
            host
        })?;
        let host = take.recv().map_err(|_| Error::closed("the control thread ended"))?;
        let control = Arc::new(control);
        let service =
            || Service::new(RegionsView::new(host.regions.clone()), host.arrivals.clone());
        let started = Carriers::start(&config, runtime, &service, &control)?;
        Self::assemble(started, control, host, keeps_to_network, &config)
    }

    fn assemble(
        (runtime, carriers): (Runtime, Carriers),
        control: Arc<Control>,
        host: Arc<Exposed>,
        keeps_to_network: Option<Error>,
        config: &EngineBuilder,
    ) -> Result<Self> {
        host.start(carriers.tcp);
        if let Some(hub) = &host.hub {
            hub.start(carriers.hosts);
            path::host::serve(hub, |accepting| control.detach(accepting));
        }
        let own = Route { key: 0, name: control.name().into(), kind: RouteKind::Local };
        let own = Peer::new(Link::local(own), Vec::new());
        let inner = Inner {
            runtime,
            control,
            host,
            copies: carriers.copies,
            links: Mutex::default(),
            next_route: AtomicU64::new(1),
            cursor: AtomicUsize::new(0),
            own,
            tcp_v1: config.tcp_v1,
            keeps_to_network,
            watches: config.idle != Idle::Event,
        };
        let engine = Self { inner: Arc::new(inner) };
        futures_lite::future::block_on(engine.publish())?;
        Ok(engine)
    }

    /// The segment name: what peers open.
    pub fn name(&self) -> &str {
        self.inner.control.name()
    }

    /// The runtime whose shards carry the transfers, for actors of the caller's own.
    pub fn runtime(&self) -> &Runtime {
        &self.inner.runtime
    }

    /// What the shards wait on: [`Driver::Uring`] or [`Driver::Epoll`].
    pub fn driver(&self) -> Driver {
        self.inner.runtime.driver()
    }

    /// Allocates and registers `len` bytes at `location`: page-aligned, faulted in, on huge pages
    /// where enough are free. Peers learn of it (with a metadata server, once
    /// [`Engine::publish`] has returned).
    ///
    /// # Errors
    /// Refused: no bytes, no such node, or no room, with the numbers. Busy: too many regions.
    pub fn allocate(&self, len: usize, location: Location, access: Access) -> Result<Region> {
        if len == 0 {
            return Err(Error::refused("a region of 0 bytes"));
        }
        memory::check_room(len, location)?;
        let Location::Cpu(node) = location;
        let memory = region::Region::allocate(len, node).map_err(|error| {
            Error::refused(format!("{len} bytes at {location} can't be had")).with_source(error)
        })?;
        self.insert(Region::new(memory, access, location))
    }

    /// Registers memory that the caller owns; it must stay until [`Engine::unregister`] returns.
    ///
    /// # Errors
    /// Refused: no bytes, or an overlap with another region, with the numbers. Busy: too many
    /// regions.
    pub fn register(&self, foreign: Foreign, access: Access) -> Result<Region> {
        let memory = region::Region::foreign(foreign);
        if memory.is_empty() {
            return Err(Error::refused("a region of 0 bytes"));
        }
        self.insert(Region::new(memory, access, Location::Cpu(None)))
    }

    fn insert(&self, region: Region) -> Result<Region> {
        self.inner.host.regions.insert(region.clone())?;
        // A descriptor that default peers can't read would take all other regions down with it.
        if let Err(error) = self.inner.host.descriptor().to_json() {
            self.inner.host.regions.remove(&region);
            return Err(error);
        }
        if let Some(hub) = &self.inner.host.hub {
            hub.added(&region);
        }
        self.publish_soon();
        Ok(region)
    }

    /// Takes a region back. New requests are refused from now on; those that peers have under way
    /// get 100 ms, then their connection is closed. Returns when nothing touches the memory any
    /// more, for which every lease must come back too.
    ///
    /// # Errors
    /// Refused: it isn't registered here.
    pub async fn unregister(&self, region: Region) -> Result<()> {
        if !self.inner.host.regions.remove(&region) {
            return Err(Error::refused("the region is not registered with this engine"));
        }
        region.close();
        let hub = self.inner.host.hub.as_ref();
        if let Some(hub) = hub {
            // What peers of this host are reading is no answer from here on.
            hub.struck(&region);
        }
        self.publish_soon();
        let (guard, quiet) = flume::bounded(0);
        for shard in self.inner.shards() {
            let (region, guard) = (region.memory().clone(), guard.clone());
            tell(shard, tcp::Message::Fence { region, guard }).await;
        }
        for shard in hub.into_iter().flat_map(|hub| hub.shards()) {
            let (region, guard) = (region.memory().clone(), guard.clone());
            tell(shard, path::host::Message::Fence { region, guard }).await;
        }
        drop(guard);
        // Nobody sends: the channel closes when the last shard has let go of its guard.
        let _ = quiet.recv_async().await;
        region.quiet().await;
        Ok(())
    }

    /// Waits until what this engine has now is at the metadata server; in P2P mode nothing is to
    /// be waited for.
    ///
    /// # Errors
    /// Lost: the metadata server does not answer.
    pub async fn publish(&self) -> Result<()> {
        self.inner.control.publish().await
    }

    fn publish_soon(&self) {
        let control = self.inner.control.clone();
        self.inner.control.detach(async move {
            if let Err(error) = control.publish().await {
                tracing::warn!(%error, "peers don't see a change of regions yet");
            }
        });
    }

    /// Opens a peer by its segment name, asking anew for what it has. The engine's own name opens
    /// the engine itself, whose transfers are copies.
    ///
    /// # Errors
    /// Lost: nobody answers. Refused: the name is unknown, or the peer speaks no TCP.
    pub async fn open(&self, name: &str) -> Result<Peer> {
        if name == self.name() {
            return Ok(self.local());
        }
        let resolved = self.inner.control.resolve(name, true).await?;
        let link = self.inner.link(name, &resolved);
        self.inner.meet(&link, &resolved).await;
        let buffers = resolved.descriptor.buffers.iter().map(remote_buffer).collect();
        Ok(Peer::new(link, buffers))
    }

    /// Says by which path transfers between `region` and `peer` go: every candidate, what speaks
    /// for and against it, what it should cost and what it has cost. Asks the peer what it can
    /// read, where that is not known yet.
    pub async fn explain(&self, peer: &Peer, region: &Region) -> Explanation {
        self.inner.explain(peer, region).await
    }

    /// This engine as its own peer.
    pub fn local(&self) -> Peer {
        let buffers = self.inner.host.descriptor().buffers.iter().map(remote_buffer).collect();
        Peer::new(self.inner.own.inner.link.clone(), buffers)
    }

    /// Carries a batch. The future may be awaited anywhere and dropped at any time: what is not
    /// under way then is not sent, and leases come back when nothing touches their memory.
    pub fn transfer(&self, batch: Batch) -> Transfer {
        Transfer::start(&self.inner, batch)
    }

    /// Checks and plans a batch once, to be posted any number of times.
    ///
    /// # Errors
    /// Refused: a request is wrong, with the numbers.
    pub fn prepare(&self, batch: Batch) -> Result<Prepared> {
        Prepared::new(&self.inner, batch)
    }

    /// Posts a prepared batch. One posting at a time: the next is Busy until this one has ended.
    pub fn post(&self, prepared: &Prepared) -> Transfer {
        Transfer::repeat(&self.inner, prepared)
    }

    /// Sends a message to a peer; Mooncake peers take text only.
    ///
    /// # Errors
    /// Busy: the peer's queue is full. Lost: the peer is gone.
    pub async fn notify(&self, peer: &Peer, message: impl Into<Vec<u8>>) -> Result<()> {
        let mut batch = Batch::new(peer);
        batch.notify(message);
        self.transfer(batch).await?;
        Ok(())
    }

    /// The next message from a peer.
    pub async fn notification(&self) -> Notification {
        self.inner.host.arrivals.notifications.next().await
    }

    /// The next message from a peer, if one is there.
    pub fn try_notification(&self) -> Option<Notification> {
        self.inner.host.arrivals.notifications.pop()
    }

    /// Opens the counter `id`, which peers may advance from now on.
    ///
    /// # Errors
    /// Busy: too many counters are open.
    pub fn counter(&self, id: u64) -> Result<Counter> {
        self.inner.host.arrivals.counters.open(id)
    }

    /// Asks a peer's control daemon for a sign of life.
    ///
    /// # Errors
    /// Lost: it does not answer.
    pub async fn probe(&self, peer: &Peer) -> Result<()> {
        match &peer.inner.link.route.kind {
            RouteKind::Local => Ok(()),
            RouteKind::Tcp(_) => self.inner.control.probe(peer.name()).await,
        }
    }

    /// Withdraws the engine from its peers, ends what is under way and stops the shards. Every
    /// clone is closed afterwards.
    pub async fn stop(&self) {
        if let Some(hub) = &self.inner.host.hub {
            hub.close().await;
        }
        self.inner.control.stop().await;
        let runtime = self.inner.runtime.clone();
        let (done, stopped) = flume::bounded(1);
        // Stopping joins threads, which an executor's thread must not wait for.
        std::thread::spawn(move || {
            runtime.stop();
            let _ = done.send(());
        });
        let _ = stopped.recv_async().await;
    }
}

impl Inner {
    pub(crate) fn shards(&self) -> &[PumpAddress<tcp::Message>] {
        self.host.shards()
    }

    pub(crate) fn copies(&self) -> &[PumpAddress<Copies>] {
        &self.copies
    }

    pub(crate) fn arrivals(&self) -> &Arc<Arrivals> {
        &self.host.arrivals
    }

    pub(crate) fn regions(&self) -> &Regions {
        &self.host.regions
    }

    pub(crate) fn control(&self) -> &Arc<Control> {
        &self.control
    }

    pub(crate) fn name(&self) -> &str {
        self.control.name()
    }

    pub(crate) fn watches(&self) -> bool {
        self.watches
    }

    pub(crate) fn now_ns(&self) -> u64 {
        self.runtime.now_ns()
    }

    /// Where a batch starts among the shards: one further each time.
    pub(crate) fn next_shard(&self) -> usize {
        self.cursor.fetch_add(1, Ordering::Relaxed)
    }

    /// The link to a peer: the living one where the peer is still where it was.
    fn link(&self, name: &str, resolved: &Resolved) -> Arc<Link> {
        let tcp = TcpRoute {
            host: resolved.data.host.clone(),
            port: resolved.data.port,
            speaks_v2: resolved.descriptor.tcp_proto_version >= 2 && !self.tcp_v1,
            incarnation: resolved.descriptor.kvrail.as_ref().map(|extras| extras.incarnation),
        };
        let mut links = lock(&self.links);
        links.retain(|link| link.strong_count() > 0);
        let alive = links.iter().filter_map(Weak::upgrade);
        if let Some(link) = alive.into_iter().find(|link| link.route.is(name, &tcp)) {
            return link;
        }
        let key = self.next_route.fetch_add(1, Ordering::Relaxed);
        let route = Route { key, name: name.into(), kind: RouteKind::Tcp(tcp) };
        let shards = self.shards().to_vec();
        let link = Link::new(route, move |key| {
            for shard in &shards {
                if shard.send(tcp::Message::Forget { peer: key }).is_err() {
                    tracing::debug!(key, "a shard keeps connections to a peer nobody uses");
                }
            }
        });
        links.push(Arc::downgrade(&link));
        link
    }
}

impl Inner {
    /// Finds out whether the peer is a process of this host, by connecting to it there; host names
    /// prove nothing.
    async fn meet(&self, link: &Arc<Link>, resolved: &Resolved) {
        let _met = link.meeting.lock().await;
        if link.neighbour().is_some() {
            return;
        }
        let vicinity = match self.find_neighbour(link, resolved).await {
            Ok(neighbour) => Vicinity::Here(neighbour),
            Err(error) => {
                tracing::debug!(peer = %link.route.name, %error, "by TCP");
                Vicinity::Elsewhere(error.to_string().into())
            }
        };
        link.set_vicinity(vicinity);
    }

    async fn find_neighbour(
        &self,
        link: &Arc<Link>,
        resolved: &Resolved,
    ) -> Result<Arc<Neighbour>> {
        if let Some(error) = &self.keeps_to_network {
            return Err(error.clone());
        }
        let hub = self.host.hub.clone().ok_or_else(|| Error::refused("there is no hub"))?;
        let extras = resolved.descriptor.kvrail.as_ref();
        let extras = extras.ok_or_else(|| Error::refused("the peer is not kvrail"))?;
        let (sockets, incarnation) = (extras.sockets.clone(), extras.incarnation);
        let peer = link.route.name.clone();
        self.control
            .run(async move { Neighbour::connect(hub, &sockets, incarnation, peer).await })
            .await
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.runtime.stop();
    }
}

/// What peers are to reach; and why those of this host are not to be looked for, if so.
fn expose(same_host: &SameHost) -> Result<(Exposure, Option<Error>)> {
    // Differs between processes that had the same name: the clock at the start.
    let since_epoch = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let incarnation = since_epoch.map_or(0, |time| time.as_nanos() as u64);
    let (regions, arrivals) = (Arc::new(Regions::default()), Arc::new(Arrivals::default()));
    let off = || Error::refused("same_host(false): this engine keeps to the network");
    let hub = match same_host.is_on {
        false => Err(off()),
        true => Hub::new(incarnation, regions.clone(), same_host.folder.clone()),
    };
    if same_host.peers_may_trace
        && let Err(error) = permit_any_reader()
    {
        tracing::debug!(%error, "no Yama: peers may read without being permitted to");
    }
    let (hub, why_not) = match hub {
        Ok(hub) => (Some(Arc::new(hub)), None),
        // A folder was asked for: not to listen there would be found out late.
        Err(error) if same_host.is_on && same_host.folder.is_some() => return Err(error),
        Err(error) => (None, Some(error)),
    };
    Ok((Exposure { incarnation, regions, arrivals, hub }, why_not))
}

/// Passes a message on to a shard whose inbox may be full.
async fn tell<M>(shard: &PumpAddress<M>, mut message: M) {
    while let Err(SendError::Full(back)) = shard.send(message) {
        message = back;
        futures_lite::future::yield_now().await;
    }
}

fn remote_buffer(buffer: &Buffer) -> RemoteBuffer {
    RemoteBuffer { name: buffer.name.clone(), addr: buffer.addr, len: buffer.length }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An error for a message that an actor did not take.
pub(crate) fn not_taken<M>(error: &SendError<M>) -> Error {
    match error {
        SendError::Full(_) => Error::busy("the shard's inbox is full"),
        SendError::Closed(_) => Error::new(ErrorKind::Closed, "the engine was stopped"),
    }
}

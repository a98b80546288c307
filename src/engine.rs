//! The engine: memory, peers and transfers behind one handle that any thread or executor may use.

mod drain;
mod grants;
mod nics;
mod regions;
#[cfg(test)]
mod tests;

pub use drain::Drained;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use kvrail_reactors::cuda::Gpus;

use crate::arrivals::Arrivals;
use crate::config::EngineBuilder;
use crate::control::{Buffer, Control, ControlConfig, Host, Resolved};
use crate::counter::Counter;
use crate::explain::Explanation;
use crate::exposed::{Exposed, expose};
use crate::links::Links;
use crate::memory::grant::Grants;
use crate::memory::{Region, Regions, RegionsView};
use crate::notification::Notification;
use crate::path::local;
use crate::path::served::Service;
use crate::path::verbs::Rdma;
use crate::path::{self, Carriers, tcp};
use crate::peer::{Link, Peer, RemoteBuffer, Route, RouteKind};
use crate::prepared::Prepared;
use crate::request::Batch;
use crate::runtime::{Driver, PumpAddress, Runtime, SendError};
use crate::transfer::Transfer;
use crate::{Error, ErrorKind, Result};

/// A transfer engine. Clones are the same engine; the last one's drop stops it.
#[derive(Clone)]
pub struct Engine {
    inner: Arc<Inner>,
}

pub(crate) struct Inner {
    runtime: Runtime,
    control: Arc<Control>,
    host: Arc<Exposed>,
    copies: Vec<PumpAddress<local::Message>>,
    links: Arc<Links>,
    /// Where the next batch starts among the shards.
    cursor: AtomicUsize,
    own: Peer,
    /// How long callers look for a transfer's end themselves.
    caller_spin: Duration,
    nodes: Vec<Option<u32>>,
    gpus: Gpus,
}

impl Engine {
    /// Settings to start an engine with.
    pub fn builder() -> EngineBuilder {
        EngineBuilder::default()
    }

    pub(crate) fn start(config: EngineBuilder) -> Result<Self> {
        let runtime = config.runtime(config.driver)?;
        let mut control_config = ControlConfig::new(&config.name, config.metadata.clone());
        control_config.limits.metadata_lease = config.metadata_lease;
        control_config.cluster = config.cluster.clone();
        control_config.advertise = config.advertise.clone();
        if let Some(bind) = config.bind {
            control_config.bind = bind;
        }
        control_config.authentication = config.auth.authentication.clone();
        control_config.admits_plain = config.auth.allow_mooncake;
        let (exposure, hub) = expose(&config.same_host, &config.vram, config.auth.gate()?)?;
        let rdma = Rdma::open(&config.rdma, &exposure);
        if config.rdma.is_demanded() {
            // It was asked for: that it is not to be had would be found out late.
            rdma.as_ref().map_err(Error::clone)?;
        }
        let exposure = exposure.with_rdma(rdma.as_ref().ok().cloned());
        control_config.speaks_rdma = rdma.is_ok();
        let links = Links::new(config.tcp_v1, hub, rdma);
        let (give, take) = std::sync::mpsc::sync_channel(1);
        let control = Control::start(control_config, move |identity| {
            let host = Arc::new(exposure.named(identity.clone()));
            // The caller waits for it below.
            let _ = give.send(host.clone());
            host
        })?;
        let host = take.recv().map_err(|_| Error::closed("the control thread ended"))?;
        let control = Arc::new(control);
        let service = || {
            let regions = RegionsView::new(host.regions.clone());
            let (grants, arrivals) = (host.grants.clone(), host.arrivals.clone());
            Service::new(regions, grants, arrivals, host.incarnation).behind(host.gate.clone())
        };
        let started = Carriers::start(&config, runtime, &service, &control)?;
        let engine = Self::assemble(started, control, host, links, &config);
        engine.start_rdma()?;
        futures_lite::future::block_on(engine.publish())?;
        Ok(engine)
    }

    /// An engine of parts that run.
    pub(crate) fn assemble(
        (runtime, carriers): (Runtime, Carriers),
        control: Arc<Control>,
        host: Arc<Exposed>,
        links: Links,
        config: &EngineBuilder,
    ) -> Self {
        let nodes: Vec<_> = runtime.placement().iter().map(|shard| shard.node).collect();
        let links = Arc::new(links);
        host.start(carriers.tcp, links.clone());
        if let Some(hub) = &host.hub {
            hub.start(carriers.hosts, nodes.clone());
            path::host::serve(hub, |accepting| control.detach(accepting));
        }
        let (grants, clock) = (host.grants.clone(), runtime.clock());
        control.detach(async move { grants.keep_time(|| clock.now_ns()).await });
        let own = Route { key: 0, name: control.name().into(), kind: RouteKind::Local };
        let own = Peer::new(Link::local(own), Vec::new());
        let inner = Inner {
            runtime,
            control,
            host,
            copies: carriers.copies,
            links,
            cursor: AtomicUsize::new(0),
            own,
            caller_spin: config.caller_spin(),
            nodes,
            gpus: config.vram.gpus.clone(),
        };
        Self { inner: Arc::new(inner) }
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
    /// Lost: nobody answers. Refused: the name is unknown, or the peer speaks no TCP. Draining: the
    /// peer is about to stop, or this engine is.
    pub async fn open(&self, name: &str) -> Result<Peer> {
        if name == self.name() {
            return Ok(self.local());
        }
        if self.is_draining() {
            return Err(Error::draining("this engine opens no peers any more"));
        }
        let resolved = self.inner.control.resolve(name, true).await?;
        let peer = self.peer(name, &resolved);
        self.arrive_at(&peer, &resolved).await?;
        let Inner { links, control, .. } = &*self.inner;
        links.meet(&peer.inner.link, &resolved, control).await;
        Ok(peer)
    }

    /// Closes a peer, all handles of it: what is under way to it ends as by a cancellation, with
    /// [`ErrorKind::Closed`] and its receipt, and nothing more takes off. Returns when nothing of
    /// it is under way any more. [`Engine::open`] opens the peer anew.
    ///
    /// # Errors
    /// Refused: the engine itself, which is not closed as a peer but stopped.
    pub async fn close(&self, peer: Peer) -> Result<()> {
        let link = &peer.inner.link;
        if matches!(link.route.kind, RouteKind::Local) {
            return Err(Error::refused("an engine is no peer to close: stop it"));
        }
        link.close();
        link.over().await;
        link.cut();
        Ok(())
    }

    /// A peer that was resolved.
    pub(crate) fn peer(&self, name: &str, resolved: &Resolved) -> Peer {
        let link = self.inner.links.to(name, resolved, self.inner.shards());
        let buffers = resolved.descriptor.buffers.iter().map(remote_buffer).collect();
        Peer::new(link, buffers)
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
        self.inner.host.grants.close();
        if let Some(hub) = &self.inner.host.hub {
            hub.close().await;
        }
        self.leave().await;
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

    /// Ends what is under way over TCP while peers can still be asked to say that they store
    /// nothing of it any more.
    async fn leave(&self) {
        let (guard, over) = flume::bounded(0);
        for shard in self.inner.shards() {
            tell(shard, tcp::Message::Leave { guard: guard.clone() }).await;
        }
        drop(guard);
        // Nobody sends: the channel closes when the last shard has let go of its guard.
        let _: Result<(), _> = over.recv_async().await;
        if let Some(rdma) = self.inner.rdma() {
            rdma.leave().await;
        }
    }
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Engine({})", self.name())
    }
}

impl Inner {
    pub(crate) fn shards(&self) -> &[PumpAddress<tcp::Message>] {
        self.host.shards()
    }

    /// The node of each shard.
    pub(crate) fn nodes(&self) -> &[Option<u32>] {
        &self.nodes
    }

    pub(crate) fn links(&self) -> &Links {
        &self.links
    }

    pub(crate) fn copies(&self) -> &[PumpAddress<local::Message>] {
        &self.copies
    }

    pub(crate) fn gpus(&self) -> &Gpus {
        &self.gpus
    }

    pub(crate) fn arrivals(&self) -> &Arc<Arrivals> {
        &self.host.arrivals
    }

    pub(crate) fn regions(&self) -> &Regions {
        &self.host.regions
    }

    pub(crate) fn grants(&self) -> &Grants {
        &self.host.grants
    }

    pub(crate) fn control(&self) -> &Arc<Control> {
        &self.control
    }

    pub(crate) fn name(&self) -> &str {
        self.control.name()
    }

    pub(crate) fn caller_spin(&self) -> Duration {
        self.caller_spin
    }

    pub(crate) fn now_ns(&self) -> u64 {
        self.runtime.now_ns()
    }

    /// Where a batch starts among the shards: one further each time.
    pub(crate) fn next_shard(&self) -> usize {
        self.cursor.fetch_add(1, Ordering::Relaxed)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.runtime.stop();
    }
}

/// Passes a message on to a shard whose inbox may be full.
pub(crate) async fn tell<M>(shard: &PumpAddress<M>, mut message: M) {
    while let Err(SendError::Full(back)) = shard.send(message) {
        message = back;
        futures_lite::future::yield_now().await;
    }
}

fn remote_buffer(buffer: &Buffer) -> RemoteBuffer {
    RemoteBuffer { name: buffer.name.clone(), addr: buffer.addr, len: buffer.length }
}

/// An error for a message that an actor did not take.
pub(crate) fn not_taken<M>(error: &SendError<M>) -> Error {
    match error {
        SendError::Full(_) => Error::busy("the shard's inbox is full"),
        SendError::Closed(_) => Error::new(ErrorKind::Closed, "the engine was stopped"),
    }
}

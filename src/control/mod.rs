//! The control plane: who is there, what they have, and messages between them.
//!
//! One thread with a tokio runtime of its own, because the libraries for this live there. It is
//! never on the data path: it hands finished facts (a descriptor, a connected socket) to whoever
//! asked, on any executor.

mod address;
mod channel;
mod client;
mod courier;
mod daemon;
mod descriptor;
mod directory;
#[cfg(any(fuzzing, test))]
pub mod fuzzing;
pub(crate) mod handshake;
mod keeper;
pub mod metadata;
mod seats;
mod settings;
mod visits;
mod wire;

#[cfg(test)]
mod tests;

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::Duration;

use tokio::runtime::{Builder, Handle, Runtime};
use tokio::sync::{Semaphore, watch};
use tokio::time::timeout;

#[cfg(any(test, feature = "sim"))]
use crate::auth::Authentication;
use crate::auth::{Admission, Entrance, PeerId};
use crate::error::{Error, ErrorKind, Landed, Result};
use crate::limits::{
    CONTROL_LOOKUP_THREADS, CONTROL_STOP_MS, DIRECTORY_MAX_BYTES, DIRECTORY_MAX_PEERS, FENCE_MS,
};
use crate::path::tcp::LaneName;
use crate::receipt::Fenced;
pub(crate) use address::Address;
use channel::Channels;
use client::{Callee, Client, Question};
use courier::Couriers;
pub(crate) use courier::Letter;
use daemon::Daemon;
pub(crate) use descriptor::{Buffer, Descriptor, Device, Extras, Offer, OwnDevice};
use directory::Directory;
pub(crate) use directory::Resolved;
pub(crate) use handshake::Handshake;
use keeper::Published;
use metadata::Metadata;
pub use metadata::{MetadataKind, RedisServer};
pub(crate) use settings::{ControlConfig, ControlLimits, Identity};
pub(crate) use visits::Guest;
use wire::{AnyObject, AskPass, EndLane, Notify, RequestId};

/// What the control plane asks of the engine. Called on the control thread: none may block.
///
/// The control plane keeps the host until it is stopped, so a host must not own the [`Control`].
pub(crate) trait Host: Send + Sync + 'static {
    /// All that peers may know now; [`Identity::descriptor`] builds it.
    fn descriptor(&self) -> Descriptor;
    /// Which process this is, where it says so.
    fn incarnation(&self) -> Option<u64> {
        self.descriptor().kvrail.map(|own| own.incarnation)
    }
    /// What is stored at a metadata server, where many can read it.
    fn published(&self) -> Descriptor {
        self.descriptor()
    }
    /// What this one may know of it.
    fn descriptor_for(&self, _peer: &PeerId) -> Descriptor {
        self.descriptor()
    }
    /// A notification arrived. An error (Busy: the bounded queue is full) tells the peer that it
    /// was rejected.
    fn notified(&self, name: String, message: Vec<u8>) -> Result<()>;
    /// A data connection arrived; nonblocking, with TCP_NODELAY.
    /// Gives it back where no shard has room now: it is offered again, and meanwhile the kernel's
    /// backlog keeps the next ones.
    fn accepted(&self, stream: std::net::TcpStream) -> Result<(), std::net::TcpStream>;
    /// A letter arrived from this peer.
    fn letter(&self, peer: &PeerId, letter: Letter);
    /// Ends the data connection that this peer calls so; over when nothing is stored from it.
    fn end_lane(&self, peer: &PeerId, lane: LaneName) -> Ending;
    /// A pass for the data connection that this peer calls so.
    fn pass(&self, _peer: &PeerId, _lane: LaneName, _entrance: Entrance) -> Result<Admission> {
        Err(Error::refused("data connections need no pass here"))
    }
    /// Whether TCP connections have to be encrypted.
    fn encrypts_tcp(&self) -> bool {
        false
    }
    /// A guest has come, which this peer is; whether this engine drains, and it should not have.
    fn arrived(&self, _peer: &PeerId, _guest: Guest) -> bool {
        false
    }
    /// The process of this incarnation drains: over when nothing of ours is under way there.
    fn leave(&self, _incarnation: u64) -> Ending {
        Box::pin(std::future::ready(()))
    }
    /// Whether there is anything that this one may reach.
    fn serves(&self, _peer: &PeerId) -> bool {
        true
    }
    /// A peer wants to connect queue pairs to ours, or says that its own are ready. Asked again if
    /// it got no answer. Without RDMA there are none to offer.
    fn handshake(&self, _request: Handshake) -> Answering {
        Box::pin(std::future::ready(Handshake::default()))
    }
    /// Accepting fails, most likely for want of descriptors: close some data connection that
    /// nobody misses. Called again while it fails.
    fn crowded(&self) {}
}

/// A connection on its way to its end.
pub(crate) type Ending = Pin<Box<dyn Future<Output = ()> + Send>>;

/// An answer to a handshake on its way.
pub(crate) type Answering = Pin<Box<dyn Future<Output = Handshake> + Send>>;

/// The running control plane. Dropping it stops it soon; [`Control::stop`] waits for that.
pub(crate) struct Control {
    shared: Arc<Shared>,
    runtime: Handle,
    calls: Arc<Semaphore>,
    stop: watch::Sender<bool>,
    ended: watch::Receiver<bool>,
}

struct Shared {
    identity: Identity,
    own_names: Vec<String>,
    host: Arc<dyn Host>,
    metadata: Metadata,
    client: Arc<Client>,
    directory: Mutex<Directory>,
    couriers: Couriers,
    published: tokio::sync::Mutex<Published>,
    /// No more publishing: what is withdrawn stays withdrawn.
    stopping: AtomicBool,
    /// Questions that got an identifier.
    requests: AtomicU64,
}

impl Control {
    /// Binds the listeners, asks for a host once the addresses are known, and serves.
    pub fn start<F>(config: ControlConfig, host: F) -> Result<Self>
    where
        F: FnOnce(&Identity) -> Arc<dyn Host> + Send + 'static,
    {
        let (stop, stopped) = watch::channel(false);
        let (end, ended) = watch::channel(false);
        let (ready, readiness) = mpsc::sync_channel(1);
        let calls = Arc::new(Semaphore::new(config.limits.calls));
        std::thread::Builder::new()
            .name("kvrail-control".to_owned())
            .spawn(move || {
                run(config, host, &ready, stopped);
                // The receivers may be gone: then nobody waits.
                let _ = end.send(true);
            })
            .map_err(|error| Error::busy("no thread for the control plane").with_source(error))?;
        let failed = || Error::closed("the control thread ended while starting");
        let (runtime, shared) = readiness.recv().map_err(|_| failed())??;
        Ok(Self { shared, runtime, calls, stop, ended })
    }

    /// A control plane that has no thread and hears nobody: the simulator carries its messages.
    /// What is detached from it waits on `runtime`.
    #[cfg(any(test, feature = "sim"))]
    pub fn detached(identity: Identity, host: Arc<dyn Host>, runtime: Handle) -> Self {
        let limits = ControlLimits::default();
        let (stop, _) = watch::channel(false);
        let (_, ended) = watch::channel(true);
        let channels = Channels::new(&Authentication::Off, false).expect("it reads no file");
        let calls = Arc::new(Semaphore::new(limits.calls));
        let shared = Shared {
            own_names: vec![identity.name.clone()],
            identity,
            host,
            metadata: Metadata::P2p,
            client: Arc::new(Client { channels, limits, words: visits::Words::default() }),
            directory: Mutex::new(Directory::new(DIRECTORY_MAX_PEERS, DIRECTORY_MAX_BYTES)),
            couriers: Couriers::default(),
            published: tokio::sync::Mutex::default(),
            stopping: AtomicBool::new(true),
            requests: AtomicU64::new(0),
        };
        Self { shared: Arc::new(shared), runtime, calls, stop, ended }
    }

    /// The name that peers open.
    pub fn name(&self) -> &str {
        &self.shared.identity.name
    }

    /// Name and addresses, as peers see them.
    #[cfg(test)]
    pub fn identity(&self) -> &Identity {
        &self.shared.identity
    }

    /// Publishes the host's current descriptor. Fails if peers could not read it; P2P publishes by
    /// answering whoever asks, so there it only checks.
    pub async fn publish(&self) -> Result<()> {
        self.call(|shared| async move { shared.publish().await }).await
    }

    /// What the engine called `name` publishes, as last seen, or as it is now if `refresh`.
    pub async fn resolve(&self, name: &str, refresh: bool) -> Result<Arc<Resolved>> {
        let name = name.to_owned();
        self.call(move |shared| async move { shared.resolve(&name, refresh).await }).await
    }

    /// Delivers a notification. Busy: the peer's queue is full.
    pub async fn notify(&self, name: &str, text: &str) -> Result<()> {
        let from = self.shared.identity.name.clone();
        self.ask(name, Notify { name: from, notify_msg: text.to_owned() }).await
    }

    /// Whether the engine called `name` is alive.
    pub async fn probe(&self, name: &str) -> Result<()> {
        self.ask(name, AnyObject {}).await
    }

    /// Asks the engine called `name` to connect its queue pairs to ours; its answer may be a
    /// refusal.
    pub async fn handshake(&self, name: &str, request: Handshake) -> Result<Handshake> {
        self.ask(name, request).await
    }

    /// A connection, nonblocking and with TCP_NODELAY, to the first of the host's addresses that
    /// takes it.
    pub async fn connect(&self, host: &str, port: u16) -> Result<std::net::TcpStream> {
        let address = Address::new(host, port);
        self.call(move |shared| async move {
            let stream = client::dial(&address, &shared.client.limits).await?;
            let broken = |error| Error::lost("the connection broke").with_source(error);
            stream.into_std().map_err(|error| broken(error).with_peer(address.to_string()))
        })
        .await
    }

    /// What a data connection to this process of a peer gets in by, under its name; nothing where
    /// no peer has to prove anything.
    pub async fn admission(
        &self,
        name: &str,
        to: Option<u64>,
        lane: LaneName,
        entrance: Entrance,
    ) -> Result<Option<Admission>> {
        let Some(incarnation) = to.filter(|_| self.shared.client.channels.is_authenticated())
        else {
            return Ok(None);
        };
        let lane = lane.to_string();
        self.ask(name, AskPass { incarnation, lane, entrance }).await.map(Some)
    }

    /// The names under which peers grant something to this engine.
    pub fn own_names(&self) -> &[String] {
        &self.shared.own_names
    }

    /// Withdraws what was published, closes the listeners and ends the thread. Bounded: twice the
    /// metadata timeout, and a second for name lookups that hang.
    pub async fn stop(&self) {
        self.shared.stopping.store(true, Ordering::Release);
        self.stop.send_replace(true);
        // An error means that the thread is gone, which is what we wait for.
        let _ = self.ended.clone().wait_for(|ended| *ended).await;
    }

    /// Runs `work` on the control thread, to its end even if the caller stops waiting.
    pub async fn run<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T> {
        self.call(|_| work).await
    }

    /// Has a peer end the data connection that we call `lane`: by whose word nothing is stored
    /// from it any more. Answers within [`FENCE_MS`].
    pub async fn end_lane(&self, name: &str, to: Option<u64>, lane: LaneName) -> Fenced {
        let Some(incarnation) = to else { return Fenced::Nobody };
        let request = self.shared.next_request();
        tracing::debug!(%request, peer = name, "it is asked to end a connection");
        let asked = self.ask(name, EndLane { incarnation, lane: lane.to_string(), request });
        match timeout(Duration::from_millis(FENCE_MS), asked).await {
            Ok(Ok(())) => Fenced::Lane,
            Ok(Err(error)) => {
                tracing::debug!(%error, "a connection's end is unproven");
                Fenced::Nobody
            }
            Err(_) => Fenced::Nobody,
        }
    }

    /// Sends a letter to the engine called `name`; it may get lost on the way.
    pub fn send(&self, name: &Arc<str>, letter: &Letter) {
        match letter.sealed() {
            Ok(letter) => self.shared.couriers.send(&self.shared, &self.runtime, name, letter),
            Err(error) => tracing::warn!(peer = %name, %error, "a letter is not sent"),
        }
    }

    /// Runs `work` on the control thread and tells nobody how it ended.
    pub fn detach(&self, work: impl Future<Output = ()> + Send + 'static) {
        drop(self.runtime.spawn(work));
    }

    async fn ask<Q: Question>(&self, name: &str, question: Q) -> Result<Q::Answer> {
        let name = name.to_owned();
        self.call(move |shared| async move { shared.ask(&name, &question).await }).await
    }

    /// Runs `work` on the control thread. It runs to its end even if the caller stops waiting.
    async fn call<T, W, F>(&self, work: W) -> Result<T>
    where
        T: Send + 'static,
        W: FnOnce(Arc<Shared>) -> F,
        F: Future<Output = Result<T>> + Send + 'static,
    {
        let permit = Arc::clone(&self.calls).try_acquire_owned().map_err(|_| {
            Error::busy("as many control calls as allowed are under way: try again later")
        })?;
        let work = work(Arc::clone(&self.shared));
        let task = self.runtime.spawn(async move {
            let _permit = permit;
            work.await
        });
        match task.await {
            Ok(result) => result,
            Err(error) => Err(Error::closed("the control plane was stopped").with_source(error)),
        }
    }
}

impl Shared {
    /// By which both sides' logs call the next question.
    fn next_request(&self) -> RequestId {
        let incarnation = self.host.incarnation().unwrap_or_default();
        RequestId::new(incarnation, self.requests.fetch_add(1, Ordering::Relaxed))
    }

    async fn resolve(&self, name: &str, refresh: bool) -> Result<Arc<Resolved>> {
        // Mooncake strips leading slashes too.
        let name = name.trim_start_matches('/');
        let known = self.directory().get(name);
        if let Some(known) = known.filter(|_| !refresh) {
            return Ok(known);
        }
        let resolved = self.look_up(name).await;
        let checked = resolved.and_then(|resolved| {
            let checked = resolved.descriptor.check_reach(self.identity.speaks_rdma);
            checked.map_err(|error| error.with_peer(name))?;
            Ok(Arc::new(resolved))
        });
        match &checked {
            Ok(resolved) => self.directory().insert(name, Arc::clone(resolved)),
            Err(error) if self.metadata.is_about_peer(error) => self.directory().forget(name),
            Err(_) => {}
        }
        checked
    }

    /// Where something has to be proven, only what the engine itself says counts.
    async fn look_up(&self, name: &str) -> Result<Resolved> {
        let ours = self.host.descriptor();
        if !self.client.channels.is_authenticated() {
            return self.metadata.resolve(name, &ours, &self.client).await;
        }
        let control = self.metadata.locate(name).await?;
        let callee = Callee { name, address: &control };
        let descriptor = self.client.fetch(callee, &ours.without_memory()).await?;
        Ok(Resolved::new(descriptor, control))
    }

    /// Asks where the engine was last seen; if nobody is there, where it is now.
    async fn ask<Q: Question>(&self, name: &str, question: &Q) -> Result<Q::Answer> {
        let name = name.trim_start_matches('/');
        let at = |address| Callee { name, address };
        let known = self.directory().get(name).map(|resolved| resolved.control.clone());
        let missed = match &known {
            None => None,
            Some(known) => match question.put_to(at(known), &self.client).await {
                Err(error) if error.kind() == ErrorKind::Lost && error.landed() == Landed::No => {
                    Some(error)
                }
                answered => return answered,
            },
        };
        let now = self.metadata.locate(name).await?;
        match missed {
            Some(error) if known.as_ref() == Some(&now) => Err(error),
            _ => question.put_to(at(&now), &self.client).await,
        }
    }

    fn directory(&self) -> MutexGuard<'_, Directory> {
        self.directory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

type Started = Result<(Handle, Arc<Shared>)>;

/// The control thread.
fn run<F>(
    config: ControlConfig,
    host: F,
    ready: &mpsc::SyncSender<Started>,
    mut stopped: watch::Receiver<bool>,
) where
    F: FnOnce(&Identity) -> Arc<dyn Host>,
{
    // The caller of `start` waits for `ready`, so sending to it cannot fail.
    let runtime = match build_runtime() {
        Ok(runtime) => runtime,
        Err(error) => return drop(ready.send(Err(error))),
    };
    runtime.block_on(async {
        let shared = match open(config, host).await {
            Ok(shared) => shared,
            Err(error) => return drop(ready.send(Err(error))),
        };
        drop(ready.send(Ok((Handle::current(), Arc::clone(&shared)))));
        if !matches!(shared.metadata, Metadata::P2p) {
            tokio::spawn(Arc::clone(&shared).keep());
        }
        // An error means that the last handle was dropped: stop too.
        let _ = stopped.wait_for(|stopped| *stopped).await;
        shared.stopping.store(true, Ordering::Release);
        let limit = shared.client.limits.metadata_request * 2;
        if !matches!(timeout(limit, shared.withdraw()).await, Ok(Ok(()))) {
            tracing::warn!(name = shared.identity.name, "stale keys stay at the metadata server");
        }
    });
    runtime.shutdown_timeout(Duration::from_millis(CONTROL_STOP_MS));
}

fn build_runtime() -> Result<Runtime> {
    Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(CONTROL_LOOKUP_THREADS)
        .thread_name("kvrail-lookup")
        .build()
        .map_err(|error| Error::busy("no tokio runtime for the control plane").with_source(error))
}

/// Binds both listeners and starts to serve them.
async fn open<F>(config: ControlConfig, host: F) -> Result<Arc<Shared>>
where
    F: FnOnce(&Identity) -> Arc<dyn Host>,
{
    let metadata = Metadata::new(&config.metadata, &config.cluster, &config.limits)?;
    let channels = Channels::new(&config.authentication, config.admits_plain)?;
    let (control, control_port) = address::listen(config.bind, &config.ports)?;
    let (data, data_port) = address::listen(config.bind, &config.ports)?;
    let identity = Identity::new(&config, control_port, data_port).await?;
    let host = host(&identity);
    let client =
        Arc::new(Client { channels, limits: config.limits, words: visits::Words::default() });
    let daemon = Daemon {
        host: Arc::clone(&host),
        address: identity.control.to_string(),
        client: Arc::clone(&client),
    };
    tokio::spawn(daemon::serve(control, Arc::new(daemon)));
    tokio::spawn(daemon::accept_data(data, Arc::clone(&host)));
    let own_names = match client.channels.own() {
        PeerId::Named(names) => names.to_vec(),
        _ => vec![identity.name.clone()],
    };
    Ok(Arc::new(Shared {
        identity,
        own_names,
        host,
        metadata,
        client,
        directory: Mutex::new(Directory::new(DIRECTORY_MAX_PEERS, DIRECTORY_MAX_BYTES)),
        couriers: Couriers::default(),
        published: tokio::sync::Mutex::default(),
        stopping: AtomicBool::new(false),
        requests: AtomicU64::new(0),
    }))
}

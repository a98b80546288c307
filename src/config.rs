//! How an engine is started: every choice with its default, in one typed builder.

#[cfg(feature = "config-file")]
pub(crate) mod file;

use std::io::ErrorKind;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use kvrail_reactors::cuda::{Gpus, SM_BUDGET};
use kvrail_reactors::probe::kernel_tls;
use serde::{Deserialize, Serialize};

use crate::auth::{Authentication, Gate, Policy};
use crate::control::MetadataKind as Metadata;
use crate::engine::Engine;
use crate::limits::{IDLE_BUDGET, METADATA_LEASE_MS, PROGRESS_DEADLINE_NS, SERVER_CONNECTIONS_MAX};
use crate::path::tcp::NO_KERNEL_TLS;
use crate::runtime::{Driver, Idle, Runtime, Shards};
use crate::{Error, Result};

/// By what peers elsewhere are reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Protocol {
    /// [`Protocol::Rdma`] over all of the host's NICs that carry traffic where there are any
    /// (software devices don't count), else [`Protocol::Tcp`].
    #[default]
    Auto,
    /// Mooncake's TCP protocol alone.
    Tcp,
    /// RDMA, or an error; peers that have none still come by TCP, if they are kvrail.
    Rdma,
}

/// Which NICs an engine uses, and how.
#[derive(Debug, Clone, Default)]
pub(crate) struct RdmaSettings {
    pub(crate) protocol: Protocol,
    /// Their names; all of the host's where there is none.
    pub(crate) devices: Vec<String>,
    /// Entry of the ports' tables of addresses, where it isn't chosen by the rules.
    pub(crate) gid_index: Option<u8>,
    /// Who is told how far the registration of a region is.
    pub(crate) on_registering: Option<OnRegistering>,
}

/// Bytes that are registered, and in all.
#[derive(Clone)]
pub(crate) struct OnRegistering(Arc<dyn Fn(usize, usize) + Send + Sync>);

impl OnRegistering {
    #[cfg(feature = "rdma")]
    pub(crate) fn tell(&self, done: usize, all: usize) {
        (self.0)(done, all);
    }
}

impl std::fmt::Debug for OnRegistering {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("OnRegistering")
    }
}

/// What a peer's data connections may cost us.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TcpLimits {
    /// A peer in mid-request that moves no byte for so long is gone.
    pub(crate) progress_ns: u64,
    /// Connections that peers may have open to one shard.
    pub(crate) connections_max: usize,
}

impl Default for TcpLimits {
    fn default() -> Self {
        Self { progress_ns: PROGRESS_DEADLINE_NS, connections_max: SERVER_CONNECTIONS_MAX }
    }
}

/// Settings of an [`Engine`]; made by [`Engine::builder`].
#[derive(Debug, Clone)]
#[must_use]
pub struct EngineBuilder {
    pub(crate) name: String,
    pub(crate) metadata: Metadata,
    pub(crate) metadata_lease: Duration,
    pub(crate) cluster: String,
    pub(crate) advertise: Option<String>,
    pub(crate) bind: Option<IpAddr>,
    pub(crate) shards: Shards,
    pub(crate) idle: Idle,
    pub(crate) driver: Driver,
    pub(crate) tcp_v1: bool,
    pub(crate) tcp: TcpLimits,
    pub(crate) same_host: SameHost,
    pub(crate) rdma: RdmaSettings,
    pub(crate) auth: AuthSettings,
    pub(crate) vram: Vram,
    caller_spin: Option<Duration>,
}

/// Who is let in, and to what.
#[derive(Debug, Clone, Default)]
pub(crate) struct AuthSettings {
    pub(crate) authentication: Authentication,
    pub(crate) policy: Policy,
    pub(crate) allow_mooncake: bool,
    pub(crate) encrypt_tcp: bool,
}

impl AuthSettings {
    /// # Errors
    /// Refused: there is a policy, or TCP is to be encrypted, where nobody proves who it is; or the
    /// kernel can't encrypt.
    pub(crate) fn gate(&self) -> Result<Gate> {
        let is_required = self.authentication != Authentication::Off;
        self.policy.check(is_required)?;
        if self.encrypt_tcp {
            can_encrypt(is_required)?;
        }
        let gate = Gate::new(is_required, self.allow_mooncake, self.policy.clone());
        Ok(gate.encrypting_tcp(self.encrypt_tcp))
    }
}

fn can_encrypt(is_authenticated: bool) -> Result<()> {
    if !is_authenticated {
        return Err(Error::refused(
            "encrypt_tcp without authentication: its keys go over authenticated control channels, \
             so it takes pre-shared keys or certificates",
        ));
    }
    kernel_tls().map_err(|error| {
        let what = match error.kind() {
            ErrorKind::NotFound | ErrorKind::InvalidInput => {
                format!("encrypt_tcp: {NO_KERNEL_TLS}")
            }
            _ => "encrypt_tcp: the kernel's TLS does not work for this process".to_owned(),
        };
        Error::refused(what).with_source(error)
    })
}

/// Whose GPUs an engine uses, and how much of them.
#[derive(Debug, Clone)]
pub(crate) struct Vram {
    pub(crate) gpus: Gpus,
    /// Multiprocessors that a launch takes at most.
    pub(crate) blocks: u32,
}

impl Default for Vram {
    fn default() -> Self {
        Self { gpus: Gpus::default(), blocks: SM_BUDGET }
    }
}

/// How engines of one host meet.
#[derive(Debug, Clone)]
pub(crate) struct SameHost {
    pub(crate) is_on: bool,
    pub(crate) folder: Option<PathBuf>,
    pub(crate) peers_may_trace: bool,
}

impl RdmaSettings {
    /// Whether an engine that gets no NIC is not what was asked for.
    pub(crate) fn is_demanded(&self) -> bool {
        match self.protocol {
            Protocol::Auto => !self.devices.is_empty(),
            Protocol::Tcp => false,
            Protocol::Rdma => true,
        }
    }
}

impl Default for SameHost {
    fn default() -> Self {
        Self { is_on: true, folder: None, peers_may_trace: false }
    }
}

impl Default for EngineBuilder {
    fn default() -> Self {
        Self {
            name: "127.0.0.1".to_owned(),
            metadata: Metadata::P2p,
            metadata_lease: Duration::from_millis(METADATA_LEASE_MS),
            cluster: String::new(),
            advertise: None,
            bind: None,
            shards: Shards::default(),
            idle: Idle::default(),
            driver: Driver::default(),
            tcp_v1: false,
            tcp: TcpLimits::default(),
            same_host: SameHost::default(),
            rdma: RdmaSettings::default(),
            auth: AuthSettings::default(),
            vram: Vram::default(),
            caller_spin: None,
        }
    }
}

impl EngineBuilder {
    /// P2P: the host under which peers reach this engine, `127.0.0.1` by default. Its segment
    /// name becomes `host:port` with a free port.
    pub fn host(self, host: impl Into<String>) -> Self {
        self.name(host)
    }

    /// With a metadata server: the segment name, as peers will open it.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// Where engines find each other; [`Metadata::P2p`] by default.
    pub fn metadata(mut self, metadata: Metadata) -> Self {
        self.metadata = metadata;
        self
    }

    /// How long a metadata service keeps this engine's entry after its last word; 15 s by default,
    /// from 1 s to a day. A killed engine is found for so long, and its name taken; the entry is
    /// renewed, and put again if it was lost, in every third part of it. Over HTTP nothing ends an
    /// entry, but another engine may take over a name that was not renewed for so long.
    pub fn metadata_lease(mut self, lease: Duration) -> Self {
        self.metadata_lease = lease;
        self
    }

    /// Prefix of all keys at a metadata server (Mooncake's `MC_METADATA_CLUSTER_ID`).
    pub fn cluster(mut self, cluster: impl Into<String>) -> Self {
        self.cluster = cluster.into();
        self
    }

    /// With a metadata server: the host to publish. By default the address in the name, else the
    /// one from which this host reaches the server.
    pub fn advertise(mut self, host: impl Into<String>) -> Self {
        self.advertise = Some(host.into());
        self
    }

    /// Address to listen on; all of them by default.
    pub fn bind(mut self, address: IpAddr) -> Self {
        self.bind = Some(address);
        self
    }

    /// How many shards, and where.
    pub fn shards(mut self, shards: Shards) -> Self {
        self.shards = shards;
        self
    }

    /// What an idle shard does.
    pub fn idle(mut self, idle: Idle) -> Self {
        self.idle = idle;
        self
    }

    /// What the shards wait on: io_uring where the kernel gives it, else epoll, unless told here.
    pub fn driver(mut self, driver: Driver) -> Self {
        self.driver = driver;
        self
    }

    /// Sends version 1 of the TCP protocol even to peers that know better (Mooncake's
    /// `MC_TCP_PROTO=1`), for peers behind a descriptor that claims too much.
    pub fn tcp_version_1(mut self, only: bool) -> Self {
        self.tcp_v1 = only;
        self
    }

    /// By what peers elsewhere are reached; [`Protocol::Auto`] by default. Needs a build with the
    /// feature `rdma` for more than TCP.
    pub fn protocol(mut self, protocol: Protocol) -> Self {
        self.rdma.protocol = protocol;
        self
    }

    /// The RDMA devices to use, by their names; several work as one. One that is named and can't be
    /// used is an error, unless the protocol is [`Protocol::Tcp`].
    pub fn devices<N: Into<String>>(mut self, names: impl IntoIterator<Item = N>) -> Self {
        self.rdma.devices = names.into_iter().map(Into::into).collect();
        self
    }

    /// The entry of the RDMA ports' address tables to use (Mooncake's `MC_GID_INDEX`). By default
    /// the best routable RoCE v2 or InfiniBand entry.
    pub fn gid_index(mut self, index: u8) -> Self {
        self.rdma.gid_index = Some(index);
        self
    }

    /// Has `tell` called while a region is registered with NICs, with the bytes that are done and
    /// those in all, each counted once a NIC: a large region takes seconds. It may be called on any
    /// thread, several at a time.
    pub fn on_registering(mut self, tell: impl Fn(usize, usize) + Send + Sync + 'static) -> Self {
        self.rdma.on_registering = Some(OnRegistering(Arc::new(tell)));
        self
    }

    /// How many multiprocessors of a GPU one launch of copies takes at most, by default 16: what is
    /// left is the model's. Large ranges take none, they go by the copy engines.
    pub fn sm_budget(mut self, multiprocessors: u32) -> Self {
        self.vram.blocks = multiprocessors.max(1);
        self
    }

    /// Whether memory of GPUs may be used; by default it is where there are some. Nothing of them
    /// is touched before VRAM is first asked for.
    pub fn vram(mut self, yes: bool) -> Self {
        self.vram.gpus = match yes {
            true => Gpus::default(),
            false => Gpus::off("vram(false): this engine keeps to host memory"),
        };
        self
    }

    /// Takes GPUs from this driver, for tests.
    #[doc(hidden)]
    pub fn gpus(mut self, gpus: Gpus) -> Self {
        self.vram.gpus = gpus;
        self
    }

    /// What peers have to prove, and this engine to them; nothing by default. From then on control
    /// traffic is encrypted, data connections are let in by passes given over it, and a peer that
    /// proves nothing, or that doesn't have this engine prove anything, is refused.
    pub fn authentication(mut self, authentication: Authentication) -> Self {
        self.auth.authentication = authentication;
        self
    }

    /// Which peers may reach which regions; by default whoever is let in may do what the regions
    /// permit. Takes authentication.
    pub fn policy(mut self, policy: Policy) -> Self {
        self.auth.policy = policy;
        self
    }

    /// With authentication: lets Mooncake's engines in, which can't prove who they are, and with
    /// them anyone who reaches the ports. They may do what a policy's rules for them permit
    /// ([`crate::Peers::Mooncake`]), and without such rules nothing.
    /// Off by default. This engine doesn't open them: it proves who it is to whomever it opens.
    pub fn allow_mooncake(mut self, yes: bool) -> Self {
        self.auth.allow_mooncake = yes;
        self
    }

    /// Encrypts what goes by TCP between this engine and its peers, requests, answers, counters and
    /// notifications, by TLS 1.3 records with ChaCha20-Poly1305, which the kernel makes (kernel
    /// TLS). Each connection has keys of its own, from its owner, over the control channel. Off by
    /// default; it takes [`EngineBuilder::authentication`]. Peers have to do the same: neither side
    /// sends in clear text what the other would have encrypted. Mooncake's engines can't, and get
    /// nothing over TCP, whatever [`EngineBuilder::allow_mooncake`] says. What goes by RDMA is not
    /// encrypted; what goes to peers of the same host leaves no memory that they share.
    pub fn encrypt_tcp(mut self, yes: bool) -> Self {
        self.auth.encrypt_tcp = yes;
        self
    }

    /// How long a peer that owes us bytes may move none before its connection is closed and what
    /// it carried is Lost; 30 s by default, Mooncake's status time-out. Idle connections stay.
    pub fn progress_deadline(mut self, after: Duration) -> Self {
        self.tcp.progress_ns = u64::try_from(after.as_nanos()).unwrap_or(u64::MAX);
        self
    }

    /// Whether transfers to kvrail processes of this host and user go by shared memory instead of
    /// the network; they do by default.
    pub fn same_host(mut self, on: bool) -> Self {
        self.same_host.is_on = on;
        self
    }

    /// How long the first poll of a transfer to a peer of this host looks for its end before it
    /// leaves the thread: small ones end within microseconds, and being woken costs many times
    /// that. By default as long as a shard polls when it is idle ([`crate::limits::IDLE_BUDGET`]),
    /// not at all with [`Idle::Event`]. Zero suits a caller that has something to compute while
    /// bytes move.
    pub fn spin_caller(mut self, at_most: Duration) -> Self {
        self.caller_spin = Some(at_most);
        self
    }

    pub(crate) fn caller_spin(&self) -> Duration {
        let idle = if self.idle == Idle::Event { Duration::ZERO } else { IDLE_BUDGET };
        self.caller_spin.unwrap_or(idle)
    }

    /// A folder for a Unix socket at which processes of this host find the engine, for containers
    /// that share a volume but no network namespace; in the others the abstract name does. The
    /// folder may be mounted elsewhere in the peer's container: it looks in its own, too.
    pub fn socket_folder(mut self, folder: impl Into<PathBuf>) -> Self {
        self.same_host.folder = Some(folder.into());
        self
    }

    /// Lets any process of this user read this process's memory at ptrace scope 1
    /// (`PR_SET_PTRACER_ANY`), as it may at scope 0. Peers of this host need it to reach *foreign*
    /// memory ([`Engine::register`]) without the network; memory from [`Engine::allocate`] needs
    /// nothing. Off by default.
    pub fn peers_may_trace(mut self, yes: bool) -> Self {
        self.same_host.peers_may_trace = yes;
        self
    }

    /// Starts the shards, the control thread and the listeners, and publishes the engine. Blocks
    /// for some milliseconds; with a metadata server, for up to its time-out.
    ///
    /// # Errors
    /// Refused: a setting is wrong, or with [`Driver::Uring`] there is no io_uring or too little
    /// locked memory, or the kernel can't encrypt what it should. Lost: the metadata server does
    /// not answer.
    pub fn start(self) -> Result<Engine> {
        Engine::start(self)
    }

    /// The shards, on this driver.
    pub(crate) fn runtime(&self, driver: Driver) -> Result<Runtime> {
        Runtime::builder().shards(self.shards.clone()).idle(self.idle).driver(driver).build()
    }
}

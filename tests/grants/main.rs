//! Grants between whole engines, through the public API alone, by every path: what is granted can
//! be reached and nothing else, and what was taken back never ends well.

mod endings;
mod meaning;
mod reuse;
mod stalled;

use std::sync::Arc;
use std::time::Duration;

use kvrail::runtime::Driver;
use kvrail::{
    Access, Batch, Engine, Error, ExclusiveLease, Landed, Lease, Location, PathKind, Peer,
    Reference, Region,
};
use kvrail_reactors::cuda::Gpus;
use kvrail_reactors::cuda::fake::Fake;

/// Memory of a GPU that isn't there.
const VRAM_BYTES: u64 = 256 << 20;

/// How long a revocation may take on a busy machine. It takes milliseconds; this only tells it from
/// waiting for a peer.
pub(crate) const SOON: Duration = Duration::from_secs(10);

/// How the holder reaches the owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    Local,
    Host,
    /// On what the shards choose, and on epoll.
    Tcp,
    Epoll,
    /// The same between GPUs (made of memfds, `Fake`).
    LocalVram,
    HostVram,
    TcpVram,
}

pub(crate) const WAYS: [Way; 7] =
    [Way::Local, Way::Host, Way::Tcp, Way::Epoll, Way::LocalVram, Way::HostVram, Way::TcpVram];

impl Way {
    fn engine(self) -> Engine {
        let gpus = match self.is_vram() {
            true => Gpus::given(Arc::new(Fake::new(1, VRAM_BYTES))),
            false => Gpus::off("this way is between host memory"),
        };
        let builder = Engine::builder().same_host(!self.is_tcp()).gpus(gpus);
        let driver = if self == Self::Epoll { Driver::Epoll } else { Driver::Auto };
        builder.driver(driver).start().expect("an engine")
    }

    pub(crate) fn is_tcp(self) -> bool {
        matches!(self, Self::Tcp | Self::Epoll | Self::TcpVram)
    }

    pub(crate) fn is_local(self) -> bool {
        matches!(self, Self::Local | Self::LocalVram)
    }

    fn is_vram(self) -> bool {
        matches!(self, Self::LocalVram | Self::HostVram | Self::TcpVram)
    }

    fn path(self) -> PathKind {
        match self {
            Self::Local | Self::LocalVram => PathKind::Local,
            Self::Host | Self::HostVram => PathKind::Host,
            Self::Tcp | Self::Epoll | Self::TcpVram => PathKind::Tcp,
        }
    }
}

/// An owner of memory and a peer of it.
pub(crate) struct Pair {
    pub(crate) owner: Engine,
    pub(crate) holder: Engine,
    /// The owner, as the holder sees it.
    pub(crate) peer: Peer,
    pub(crate) way: Way,
}

impl Pair {
    pub(crate) async fn new(way: Way) -> Self {
        let owner = way.engine();
        let holder = if way.is_local() { owner.clone() } else { way.engine() };
        let peer = holder.open(owner.name()).await.expect("the owner");
        assert_eq!(peer.path(), way.path());
        Self { owner, holder, peer, way }
    }

    /// Reads from the start of what was granted until the lease is full.
    pub(crate) async fn read(
        &self,
        into: ExclusiveLease,
        from: &Reference,
    ) -> (Result<(), Error>, ExclusiveLease) {
        let mut batch = Batch::new(&self.peer);
        batch.read_from(into, from, 0);
        let (status, mut leases) = ended(self.holder.transfer(batch).await);
        let lease = leases.pop().expect("the lease comes back");
        let may_be_mixed = status.as_ref().is_err_and(|error| error.landed() != Landed::No);
        assert_eq!(matches!(lease, Lease::Undefined(_)), may_be_mixed, "{status:?}");
        (status, lease.overwrite().expect("a read's"))
    }

    /// Writes the whole region to the start of what was granted.
    pub(crate) async fn write(&self, from: &Region, to: &Reference) -> Result<(), Error> {
        let mut batch = Batch::new(&self.peer);
        batch.write_to(&from.share(0..from.len()).unwrap(), to, 0);
        ended(self.holder.transfer(batch).await).0
    }
}

/// The status of the only request, and the leases.
fn ended(result: Result<kvrail::Outcome, kvrail::Failed>) -> (Result<(), Error>, Vec<Lease>) {
    let outcome = result.unwrap_or_else(kvrail::Failed::into_outcome);
    (outcome.statuses()[0].clone(), outcome.into_leases())
}

/// Memory of the engine's GPU, where the way gave it one.
pub(crate) fn region(engine: &Engine, len: usize) -> Region {
    let allocate = |location| engine.allocate(len, location, Access::LOCAL);
    allocate(Location::Cuda(0)).or_else(|_| allocate(Location::Cpu(None))).expect("a region")
}

/// Bytes that differ from place to place and from seed to seed.
pub(crate) fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        // xorshift64 (Marsaglia, 2003).
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

pub(crate) fn fill(region: &Region, bytes: &[u8]) {
    region.lease(0..bytes.len()).expect("a lease").copy_in(0, bytes).expect("room");
}

pub(crate) fn contents(region: &Region) -> Vec<u8> {
    let mut bytes = vec![0; region.len()];
    region.share(0..region.len()).expect("a lease").copy_out(0, &mut bytes).expect("room");
    bytes
}

/// Runs a test to its end on every way, and fails it rather than hang.
pub(crate) fn on_every_way<F: Future<Output = ()>>(test: impl Fn(Pair) -> F) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("tokio");
    let limit = Duration::from_secs(60);
    for way in WAYS {
        runtime.block_on(async {
            let test = async { test(Pair::new(way).await).await };
            tokio::time::timeout(limit, test).await.unwrap_or_else(|_| panic!("{way:?} hangs"));
        });
    }
}

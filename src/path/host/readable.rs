//! How memory that a peer names becomes readable here: a memfd and a GPU's allocation are mapped,
//! foreign memory is tried.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use kvrail_reactors::cuda::{DeviceMemory, Gpus};
use kvrail_reactors::host::process::Process;
use kvrail_reactors::host::socket::Credentials;
use kvrail_reactors::host::view::View;
use kvrail_reactors::region;

use super::sources::Means;

/// A peer's process, or why it can't be read.
pub(super) type Visible = Result<Arc<Process>, Arc<str>>;

/// The peer's process, to read its foreign memory; why not, if it can't be seen.
pub(super) fn open_process(peer: Credentials, token: (u64, u64)) -> Visible {
    let pid = peer.pid.ok_or("the peer's process can't be seen from this pid namespace")?;
    Process::new(pid, token).map(Arc::new).map_err(|error| error.to_string().into())
}

/// Checks that a peer's foreign memory can be read.
fn probe(process: &Visible, addr: u64) -> Result<Means, Arc<str>> {
    let process = process.clone()?;
    match process.probe(addr) {
        Ok(()) => Ok(Means::Process(process)),
        Err(error) => Err(format!(
            "process_vm_readv of the peer's foreign memory: {error}; at ptrace scope 1 start it \
             with EngineBuilder::peers_may_trace(true), or use Engine::allocate"
        )
        .into()),
    }
}

/// What is said of a region to a peer that is to read it, and the descriptor that goes along.
pub(super) enum Handle<'a> {
    Memfd(BorrowedFd<'a>),
    /// A GPU's allocation of so many bytes.
    Gpu(OwnedFd, u64),
    Foreign,
}

impl<'a> Handle<'a> {
    /// # Errors
    /// The GPU does not give it away: why.
    pub(super) fn of(region: &'a region::Region) -> Result<Self, Arc<str>> {
        if let Some(memory) = region.device() {
            let fd = memory.export().map_err(|failure| failure.to_string())?;
            return Ok(Self::Gpu(fd, memory.bytes() as u64));
        }
        Ok(region.memfd().map_or(Self::Foreign, Self::Memfd))
    }

    pub(super) fn fd(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Memfd(fd) => Some(*fd),
            Self::Gpu(fd, _) => Some(fd.as_fd()),
            Self::Foreign => None,
        }
    }

    pub(super) fn is_foreign(&self) -> bool {
        matches!(self, Self::Foreign)
    }

    pub(super) fn gpu_bytes(&self) -> Option<u64> {
        match self {
            Self::Gpu(_, bytes) => Some(*bytes),
            Self::Memfd(_) | Self::Foreign => None,
        }
    }
}

/// Memory of a peer, as it tells of it.
pub(super) struct Told {
    pub(super) addr: u64,
    pub(super) len: u64,
    pub(super) is_foreign: bool,
    pub(super) gpu_bytes: Option<u64>,
    pub(super) fds: Vec<OwnedFd>,
}

/// How memory of a peer is read: by a descriptor that came along, or out of its process.
pub(super) async fn means(process: &Visible, gpus: &Gpus, told: Told) -> Result<Means, Arc<str>> {
    let Told { addr, len, is_foreign, gpu_bytes, fds } = told;
    match gpu_bytes {
        Some(bytes) => vram(gpus.clone(), bytes, len, fds).await,
        None if is_foreign => probe(process, addr),
        None => view(len, fds).await,
    }
}

/// Maps a region that came as a memfd. Faulting it in takes a while, so not on the control thread.
async fn view(len: u64, fds: Vec<OwnedFd>) -> Result<Means, Arc<str>> {
    let fd = fds.into_iter().next().ok_or("no memfd came along")?;
    let len = usize::try_from(len).map_err(|_| "the region is longer than memory")?;
    aside(move || match View::map(fd, len) {
        Ok(view) => Ok(Means::Mapped(Arc::new(view))),
        Err(error) => Err(error.to_string().into()),
    })
    .await
}

/// Maps a region that came as a GPU's allocation. The first one may wake the driver, which takes a
/// second or two.
async fn vram(gpus: Gpus, bytes: u64, len: u64, fds: Vec<OwnedFd>) -> Result<Means, Arc<str>> {
    let fd = fds.into_iter().next().ok_or("no descriptor of the GPU's memory came along")?;
    let too_long = "the region is longer than memory";
    let bytes = usize::try_from(bytes).map_err(|_| too_long)?;
    let len = usize::try_from(len).map_err(|_| too_long)?;
    aside(move || {
        let why = |why: &dyn std::fmt::Display| Arc::from(format!("the peer's VRAM: {why}"));
        let driver = gpus.driver().map_err(|no| why(&no))?;
        let memory = DeviceMemory::import(driver, fd.as_fd(), bytes).map_err(|no| why(&no))?;
        let region = region::Region::on_device(memory, len);
        region
            .map(|region| Means::Gpu(Arc::new(region)))
            .ok_or_else(|| why(&"it has no such length"))
    })
    .await
}

/// On a thread that may wait.
async fn aside(
    work: impl FnOnce() -> Result<Means, Arc<str>> + Send + 'static,
) -> Result<Means, Arc<str>> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| Err(error.to_string().into()))
}

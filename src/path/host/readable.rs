//! How memory that a peer names becomes readable here: a memfd and a GPU's allocation are mapped,
//! foreign memory is tried.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use kvrail_reactors::cuda::driver::IpcHandle;
use kvrail_reactors::cuda::{DeviceMemory, Export, Gpus, Shared};
use kvrail_reactors::host::process::Process;
use kvrail_reactors::host::socket::Credentials;
use kvrail_reactors::host::view::View;
use kvrail_reactors::region;

use super::handed::Borrower;
use super::message::Vram;
use super::sources::Means;
use crate::memory::reach_peers;

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
    /// A GPU's.
    Gpu(Export),
    Foreign,
}

impl<'a> Handle<'a> {
    /// # Errors
    /// The GPU does not give it away: why.
    pub(super) fn of(region: &'a region::Region) -> Result<Self, Arc<str>> {
        if let Some(memory) = region.device() {
            let export = memory.export().map_err(|failure| failure.to_string())?;
            return Ok(Self::Gpu(export));
        }
        Ok(region.memfd().map_or(Self::Foreign, Self::Memfd))
    }

    pub(super) fn fd(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Memfd(fd) => Some(*fd),
            Self::Gpu(Export::Descriptor(fd, _)) => Some(fd.as_fd()),
            Self::Gpu(Export::Handle(_)) | Self::Foreign => None,
        }
    }

    pub(super) fn is_foreign(&self) -> bool {
        matches!(self, Self::Foreign)
    }

    /// Whether its owner must not free it before the peer has closed it.
    pub(super) fn is_lent(&self) -> bool {
        matches!(self, Self::Gpu(Export::Handle(_)))
    }

    pub(super) fn gpu(&self) -> Option<Vram> {
        match self {
            Self::Gpu(Export::Descriptor(_, bytes)) => {
                Some(Vram::Descriptor { bytes: *bytes as u64 })
            }
            Self::Gpu(Export::Handle(Shared { handle, offset, uuid, .. })) => Some(Vram::Handle {
                handle: digits(handle),
                offset: *offset as u64,
                uuid: digits(uuid),
            }),
            Self::Memfd(_) | Self::Foreign => None,
        }
    }
}

fn digits(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// As many bytes as these digits are of, and no other number.
fn bytes<const N: usize>(digits: &str) -> Option<[u8; N]> {
    let digits: Vec<u8> = digits
        .chars()
        .map(|digit| digit.to_digit(16).map(|digit| digit as u8))
        .collect::<Option<_>>()?;
    let (pairs, rest) = digits.as_chunks::<2>();
    let bytes: Vec<u8> = pairs.iter().map(|[high, low]| high << 4 | low).collect();
    bytes.try_into().ok().filter(|_| rest.is_empty())
}

/// Memory of a peer, as it tells of it.
pub(super) struct Told {
    pub(super) addr: u64,
    pub(super) len: u64,
    pub(super) is_foreign: bool,
    pub(super) gpu: Option<Vram>,
    pub(super) fds: Vec<OwnedFd>,
    /// Tells the peer when memory that came by a handle is closed again.
    pub(super) borrower: Option<Borrower>,
}

/// How memory of a peer is read: by a descriptor that came along, or out of its process.
pub(super) async fn means(process: &Visible, gpus: &Gpus, told: Told) -> Result<Means, Arc<str>> {
    let Told { addr, len, is_foreign, gpu, fds, borrower } = told;
    match gpu {
        Some(Vram::Descriptor { bytes }) => vram(gpus.clone(), bytes, len, fds).await,
        Some(Vram::Handle { handle, offset, uuid }) => {
            let shared = shared((&handle, &uuid), offset, len).ok_or("no handle of a GPU's")?;
            opened(gpus.clone(), shared, borrower).await
        }
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
        let driver = gpus.driver().map_err(|no| vrams(&no))?;
        let memory = DeviceMemory::import(driver, fd.as_fd(), bytes).map_err(|no| vrams(&no))?;
        on_device(memory, len)
    })
    .await
}

fn shared((handle, uuid): (&str, &str), offset: u64, len: u64) -> Option<Shared> {
    let handle: IpcHandle = bytes(handle)?;
    let (offset, bytes_of) = (usize::try_from(offset).ok()?, usize::try_from(len).ok()?);
    Some(Shared { handle, offset, bytes: bytes_of, uuid: bytes(uuid)? })
}

/// Opens a region that came as a GPU's handle.
async fn opened(gpus: Gpus, shared: Shared, borrower: Option<Borrower>) -> Result<Means, Arc<str>> {
    aside(move || {
        let driver = gpus.driver().map_err(|no| vrams(&no))?;
        let memory = DeviceMemory::open(driver, &shared, borrower).map_err(|no| vrams(&no))?;
        on_device(memory, shared.bytes)
    })
    .await
}

fn on_device(memory: DeviceMemory, len: usize) -> Result<Means, Arc<str>> {
    let region = region::Region::on_device(memory, len);
    let region = Arc::new(region.ok_or_else(|| vrams(&"it has no such length"))?);
    reach_peers(&region);
    Ok(Means::Gpu(region))
}

fn vrams(why: &dyn std::fmt::Display) -> Arc<str> {
    format!("the peer's VRAM: {why}").into()
}

/// On a thread that may wait.
async fn aside(
    work: impl FnOnce() -> Result<Means, Arc<str>> + Send + 'static,
) -> Result<Means, Arc<str>> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| Err(error.to_string().into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_are_read_as_they_are_written_and_nothing_else_is() {
        let handle: IpcHandle = std::array::from_fn(|k| (k * 5) as u8);
        assert_eq!(bytes(&digits(&handle)), Some(handle));
        for wrong in ["", "0", "00f", "0g", "+1", "éé", "000000"] {
            assert_eq!(bytes::<2>(wrong), None, "{wrong}");
        }
        assert!(shared(("00", "00"), 0, 1).is_none());
    }
}

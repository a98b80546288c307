//! How memory that a peer names becomes readable here: a memfd is mapped, foreign memory is tried.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use kvrail_reactors::host::process::Process;
use kvrail_reactors::host::socket::Credentials;
use kvrail_reactors::host::view::View;

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

/// How `len` bytes at `addr` of a peer are read: by a memfd that came along, or out of its process.
pub(super) async fn means(
    process: &Visible,
    is_foreign: bool,
    addr: u64,
    len: u64,
    fds: Vec<OwnedFd>,
) -> Result<Means, Arc<str>> {
    match is_foreign {
        true => probe(process, addr),
        false => view(len, fds).await,
    }
}

/// Maps a region that came as a memfd. Faulting it in takes a while, so not on the control thread.
async fn view(len: u64, fds: Vec<OwnedFd>) -> Result<Means, Arc<str>> {
    let fd = fds.into_iter().next().ok_or("no memfd came along")?;
    let len = usize::try_from(len).map_err(|_| "the region is longer than memory")?;
    let mapped = tokio::task::spawn_blocking(move || View::map(fd, len)).await;
    match mapped {
        Ok(Ok(view)) => Ok(Means::Mapped(Arc::new(view))),
        Ok(Err(error)) => Err(error.to_string().into()),
        Err(error) => Err(error.to_string().into()),
    }
}

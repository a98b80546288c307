//! What the kernel lets this process do, tried out: each probe does the thing once, in small, and
//! takes it back. What the answers mean is for the caller to say.

use std::fs::File;
use std::io::{self, Read};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;
use std::time::Duration;

pub use libc::{
    EACCES, EADDRNOTAVAIL, EINVAL, EMFILE, ENETUNREACH, ENFILE, ENOENT, ENOMEM, ENOSYS, EPERM,
};

use crate::numa::{self, NumaPolicy};
use crate::region::{PAGE_BYTES, Region};
use crate::stream::{Direction, SECRET_BYTES, Socket};

/// `F_SEAL_FUTURE_WRITE` (Linux 5.1): whoever maps the file from now on can't write it.
const F_SEAL_FUTURE_WRITE: libc::c_int = 0x0010;

/// A limit of `getrlimit(2)`; `None` is unlimited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit {
    /// What holds now.
    pub soft: Option<u64>,
    /// How far this process may raise it.
    pub hard: Option<u64>,
}

/// Bytes of memory that may be locked (`ulimit -l`).
///
/// # Errors
/// What getrlimit(2) gives.
pub fn memlock() -> io::Result<Limit> {
    // SAFETY: the call fills the rlimit it is given.
    limit(|limit| unsafe { libc::getrlimit(libc::RLIMIT_MEMLOCK, limit) })
}

/// Descriptors that may be open (`ulimit -n`).
///
/// # Errors
/// What getrlimit(2) gives.
pub fn open_files() -> io::Result<Limit> {
    // SAFETY: the call fills the rlimit it is given.
    limit(|limit| unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, limit) })
}

fn limit(get: impl FnOnce(*mut libc::rlimit) -> libc::c_int) -> io::Result<Limit> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    if get(&raw mut limit) != 0 {
        return Err(io::Error::last_os_error());
    }
    let finite = |bytes| (bytes != libc::RLIM_INFINITY).then_some(bytes);
    Ok(Limit { soft: finite(limit.rlim_cur), hard: finite(limit.rlim_max) })
}

/// Sets a policy on a page that was never touched: prefers `node` for it.
///
/// # Errors
/// EPERM where a seccomp profile forbids `mbind`, ENOSYS where the kernel has none.
pub fn mbind(node: u32) -> io::Result<()> {
    let page = Page::new()?;
    numa::apply(page.0, PAGE_BYTES, &NumaPolicy::Prefer(node))
}

/// A region on one page: a memfd, mapped, and sealed against a change of its size.
///
/// # Errors
/// ENOSYS, EPERM or EACCES where memfds or their seals are not to be had.
pub fn memfd() -> io::Result<()> {
    let policy = &NumaPolicy::Any;
    let pages = crate::region::Pages::Base;
    match Region::allocate_with(PAGE_BYTES, policy, pages, &mut |_| Ok(())) {
        Ok(_) => Ok(()),
        Err(crate::region::AllocateError::Policy(error))
        | Err(crate::region::AllocateError::Memory(error)) => Err(error),
    }
}

/// Seals a memfd against writers to come.
///
/// # Errors
/// EINVAL before Linux 5.1.
pub fn seal_future_write() -> io::Result<()> {
    let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
    // SAFETY: a plain system call with a static, NUL-terminated name.
    let fd = unsafe { libc::memfd_create(c"kvrail-probe".as_ptr(), flags) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and ours.
    let file = File::from(unsafe { OwnedFd::from_raw_fd(fd) });
    // SAFETY: a plain system call on our own descriptor.
    let rc = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, F_SEAL_FUTURE_WRITE) };
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Reads a byte of our own memory as if it were another process's, which ptrace rules never
/// forbid.
///
/// # Errors
/// EPERM where a seccomp profile forbids `process_vm_readv`, ENOSYS where the kernel has none.
pub fn process_vm_readv() -> io::Result<()> {
    let (from, mut into) = ([1u8], [0u8]);
    let vector = |base: *mut u8| libc::iovec { iov_base: base.cast(), iov_len: 1 };
    let (local, remote) = (vector(into.as_mut_ptr()), vector(from.as_ptr().cast_mut()));
    // SAFETY: both vectors name one byte of this frame; the call writes only the local one.
    let read = unsafe { libc::process_vm_readv(libc::getpid(), &local, 1, &remote, 1, 0) };
    if read == 1 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Sends a byte over a loopback connection that the kernel encrypts.
///
/// # Errors
/// ENOENT where the kernel has no TLS or lacks its cipher, or their modules are not loaded; EINVAL
/// where it is older than the cipher (Linux 5.11).
pub fn kernel_tls() -> io::Result<()> {
    let any = [(Ipv4Addr::LOCALHOST, 0).into(), (Ipv6Addr::LOCALHOST, 0).into()];
    let listener = TcpListener::bind::<&[SocketAddr]>(&any)?;
    let ours = TcpStream::connect_timeout(&listener.local_addr()?, LOOPBACK_PATIENCE)?;
    let (theirs, _) = listener.accept()?;
    theirs.set_read_timeout(Some(LOOPBACK_PATIENCE))?;
    let mut reading = theirs.try_clone()?;
    let (ours, theirs) = (Socket::from(ours), Socket::from(theirs));
    // Nothing that is secret goes over it.
    let secret = [0; SECRET_BYTES];
    theirs.encrypt(Direction::Receive, &secret)?;
    ours.encrypt(Direction::Send, &secret)?;
    ours.write_now(&[1])?;
    reading.read_exact(&mut [0])
}

/// A connection inside the kernel takes microseconds; a second is for a host that stands still.
const LOOPBACK_PATIENCE: Duration = Duration::from_secs(1);

/// An anonymous page that nobody touches.
struct Page(NonNull<u8>);

impl Page {
    fn new() -> io::Result<Self> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: a new private mapping at an address the kernel chooses.
        let base =
            unsafe { libc::mmap(std::ptr::null_mut(), PAGE_BYTES, libc::PROT_READ, flags, -1, 0) };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        NonNull::new(base.cast()).map(Self).ok_or_else(|| io::ErrorKind::OutOfMemory.into())
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `new`, which nobody else knows.
        unsafe { libc::munmap(self.0.as_ptr().cast(), PAGE_BYTES) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_this_machine_has_is_found() {
        memfd().unwrap();
        assert!(open_files().unwrap().soft.is_none_or(|files| files > 0));
        let limit = memlock().unwrap();
        assert!(limit.hard.is_none() || limit.soft <= limit.hard);
        // These depend on kernel and profile; they must answer and leave nothing behind.
        for answer in
            [seal_future_write(), process_vm_readv(), kernel_tls(), mbind(0), mbind(u32::MAX)]
        {
            let errno = answer.map_or_else(|error| error.raw_os_error(), |()| Some(0));
            assert!(errno.is_some());
        }
        assert_eq!(mbind(u32::MAX).unwrap_err().raw_os_error(), Some(EINVAL));
    }
}

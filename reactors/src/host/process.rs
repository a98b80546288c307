//! Memory of another process that isn't ours to map: read by `process_vm_readv`, where the kernel
//! permits it (same user, and what Yama's ptrace scope leaves).

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::region::Slice;

/// Another process of this host.
#[derive(Debug)]
pub struct Process {
    pid: Pid,
    /// Tells its death, so that a number that the kernel gave to the next process isn't mistaken
    /// for it.
    pidfd: OwnedFd,
}

impl Process {
    /// The process called `pid` now.
    ///
    /// # Errors
    /// What `pidfd_open(2)` gives: ESRCH where there is none, ENOSYS before Linux 5.3.
    pub fn open(pid: i32) -> io::Result<Self> {
        let pid = Pid::from_raw(pid).ok_or(io::ErrorKind::InvalidInput)?;
        Ok(Self { pid, pidfd: pidfd_open(pid, PidfdFlags::empty())? })
    }

    /// Whether it has not ended.
    pub fn is_alive(&self) -> bool {
        let mut ended = [PollFd::new(&self.pidfd, PollFlags::IN)];
        matches!(poll(&mut ended, Some(&rustix::time::Timespec::default())), Ok(0))
    }

    /// Whether its memory at `addr` can be read at all.
    ///
    /// # Errors
    /// As [`ProcessSlice::copy_to`].
    pub fn probe(&self, addr: u64) -> io::Result<()> {
        let mut byte = 0u8;
        // SAFETY: the local range is the one byte of `byte`.
        unsafe { self.read(addr, &raw mut byte, 1) }.map(drop)
    }

    /// # Safety
    /// `target` must have `len` bytes to write into.
    unsafe fn read(&self, addr: u64, target: *mut u8, len: usize) -> io::Result<usize> {
        let local = libc::iovec { iov_base: target.cast(), iov_len: len };
        let remote = libc::iovec { iov_base: addr as *mut libc::c_void, iov_len: len };
        let pid = self.pid.as_raw_nonzero().get();
        // SAFETY: the caller vouches for the local range; the remote one is an address for the
        // kernel to check in the other process.
        let read = unsafe { libc::process_vm_readv(pid, &local, 1, &remote, 1, 0) };
        usize::try_from(read).map_err(|_| io::Error::last_os_error())
    }
}

/// Lets any process of this user read our memory at ptrace scope 1 (`PR_SET_PTRACER_ANY`).
///
/// # Errors
/// What `prctl(2)` gives: EINVAL where the kernel has no Yama, and then none is needed.
pub fn permit_any_reader() -> io::Result<()> {
    Ok(rustix::process::set_ptracer(rustix::process::PTracer::Any)?)
}

/// A range of another process's memory.
#[derive(Debug, Clone)]
pub struct ProcessSlice {
    process: Arc<Process>,
    addr: u64,
    len: usize,
}

impl ProcessSlice {
    /// `len` bytes at `addr`, an address of that process.
    pub fn new(process: Arc<Process>, addr: u64, len: usize) -> Self {
        Self { process, addr, len }
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Drops the first `count` bytes (all of them where there are fewer).
    pub fn advance(&mut self, count: usize) {
        let count = count.min(self.len);
        self.addr = self.addr.wrapping_add(count as u64);
        self.len -= count;
    }

    /// Keeps the first `len` bytes (all of them where there are fewer).
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// Copies the first `min(len)` bytes onto those of `target`; returns how many, which is fewer
    /// where the other process's memory ends.
    ///
    /// # Errors
    /// What `process_vm_readv(2)` gives: EPERM where it isn't permitted, ESRCH behind its death,
    /// EFAULT where it has no such memory.
    pub fn copy_to(&self, target: &Slice) -> io::Result<usize> {
        let len = self.len.min(target.len());
        // SAFETY: the target's bytes lie inside its region, which the slice keeps mapped.
        unsafe { self.process.read(self.addr, target.ptr(), len) }
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::region::{Eternal, Region};

    fn target(len: usize) -> Slice {
        Slice::new(Arc::new(Region::allocate(len, None).unwrap()), 0, len).unwrap()
    }

    #[test]
    fn a_process_reads_itself_and_faults_are_errors() {
        let ourselves = Arc::new(Process::open(std::process::id() as i32).unwrap());
        let memory = Region::foreign(Eternal::new(100).foreign());
        let addr = memory.addr();
        Slice::new(Arc::new(memory), 0, 100).unwrap().write(50, b"foreign").unwrap();
        let target = target(7);
        let mut source = ProcessSlice::new(ourselves.clone(), addr, 100);
        source.advance(50);
        assert_eq!(source.copy_to(&target).unwrap(), 7);
        let mut out = [0; 7];
        target.read(0, &mut out).unwrap();
        assert_eq!(&out, b"foreign");
        let nowhere = ProcessSlice::new(ourselves, 8, 4);
        assert_eq!(nowhere.copy_to(&target).unwrap_err().raw_os_error(), Some(libc::EFAULT));
    }

    #[test]
    fn the_death_of_a_process_is_seen() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let process = Process::open(child.id() as i32).unwrap();
        assert!(process.is_alive());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!process.is_alive());
        assert!(Process::open(0).is_err());
    }
}

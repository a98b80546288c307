//! Memory of another process that isn't ours to map: read by `process_vm_readv`, where the kernel
//! permits it (same user, and what Yama's ptrace scope leaves).

use std::hash::{BuildHasher, RandomState};
use std::io;
use std::sync::Arc;

use rustix::process::Pid;

use crate::region::Slice;

/// Ranges that one call reads: past some dozens a longer list gains nothing at 4 KiB a piece, and
/// the kernel takes 1,024 (`UIO_MAXIOV`).
pub const READ_MAX_PARTS: usize = 64;

/// Bytes of the buffer by way of which a GPU's memory is filled: a turn's worth of copying.
const BUFFER_BYTES: usize = 256 << 10;

/// A word in this process's memory that proves to a reader whose memory it has read: it is read
/// along in every call, so that another process which was given the same number isn't mistaken
/// for this one.
#[derive(Debug)]
pub struct Token(Box<u64>);

impl Token {
    /// A word that nobody guesses.
    pub fn new() -> Self {
        // Its keys are random, and differ from process to process.
        Self(Box::new(RandomState::new().hash_one(std::process::id())))
    }

    /// Where it is in this process, and what it is.
    pub fn place(&self) -> (u64, u64) {
        ((&raw const *self.0) as u64, *self.0)
    }
}

impl Default for Token {
    fn default() -> Self {
        Self::new()
    }
}

/// Another process of this host.
#[derive(Debug)]
pub struct Process {
    pid: Pid,
    /// Where its [`Token`] is, and what it is.
    token: (u64, u64),
}

impl Process {
    /// The process called `pid` in which this token is.
    ///
    /// # Errors
    /// InvalidInput for a number that no process has.
    pub fn new(pid: i32, token: (u64, u64)) -> io::Result<Self> {
        let pid = Pid::from_raw(pid).ok_or(io::ErrorKind::InvalidInput)?;
        Ok(Self { pid, token })
    }

    /// Whether its memory at `addr` can be read.
    ///
    /// # Errors
    /// As [`ProcessSlice::copy_to`].
    pub fn probe(&self, addr: u64) -> io::Result<()> {
        let mut byte = 0u8;
        let local = iovec((&raw mut byte) as u64, 1);
        // SAFETY: the local range is the one byte of `byte`.
        unsafe { self.read(&mut vec![local], &mut vec![iovec(addr, 1)]) }
    }

    /// Reads all of the remote ranges into the local ones, which are as long, or fails; some bytes
    /// may have been stored then.
    ///
    /// # Safety
    /// The local ranges must be memory to write into.
    unsafe fn read(
        &self,
        local: &mut Vec<libc::iovec>,
        remote: &mut Vec<libc::iovec>,
    ) -> io::Result<()> {
        let wanted: usize = local.iter().map(|part| part.iov_len).sum();
        let mut token = 0u64;
        let (addr, expected) = self.token;
        // Last, so that it is read behind all the rest.
        local.push(iovec((&raw mut token) as u64, size_of::<u64>()));
        remote.push(iovec(addr, size_of::<u64>()));
        let pid = self.pid.as_raw_nonzero().get();
        let (locals, remotes) = (local.len() as libc::c_ulong, remote.len() as libc::c_ulong);
        // SAFETY: the caller vouches for the local ranges, and the last is `token`; the remote ones
        // are addresses for the kernel to check in the other process.
        let read = unsafe {
            libc::process_vm_readv(pid, local.as_ptr(), locals, remote.as_ptr(), remotes, 0)
        };
        let read = usize::try_from(read).map_err(|_| io::Error::last_os_error())?;
        match read == wanted + size_of::<u64>() {
            true if token == expected => Ok(()),
            // The number is another process's by now.
            true => Err(io::Error::from_raw_os_error(libc::ESRCH)),
            false => Err(io::Error::from_raw_os_error(libc::EFAULT)),
        }
    }
}

fn iovec(addr: u64, len: usize) -> libc::iovec {
    libc::iovec { iov_base: addr as *mut libc::c_void, iov_len: len }
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

    /// Whether it is of the same process as `other`.
    pub fn is_with(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.process, &other.process)
    }

    /// Copies the first `min(len)` bytes onto those of `target`; returns how many, which are fewer
    /// where a GPU holds them.
    ///
    /// # Errors
    /// What `process_vm_readv(2)` gives: EPERM where it isn't permitted, ESRCH behind the process's
    /// death, EFAULT where it has no such memory. Some bytes may have been stored.
    pub fn copy_to(&self, target: &Slice) -> io::Result<usize> {
        match target.device() {
            None => Self::copy_all(std::iter::once((self, target))),
            Some(_) => self.copy_to_device(target),
        }
    }

    /// By way of a buffer: the kernel does not know a GPU's addresses.
    fn copy_to_device(&self, target: &Slice) -> io::Result<usize> {
        let len = self.len.min(target.len()).min(BUFFER_BYTES);
        let mut buffer = vec![0u8; len];
        let mut local = vec![iovec(buffer.as_mut_ptr() as u64, len)];
        let mut remote = vec![iovec(self.addr, len)];
        // SAFETY: the buffer is this function's own.
        unsafe { self.process.read(&mut local, &mut remote)? };
        target.write(0, &buffer).map_err(io::Error::other)?;
        Ok(len)
    }

    /// The same for several ranges of one process with one call, at most [`READ_MAX_PARTS`].
    ///
    /// # Errors
    /// As [`ProcessSlice::copy_to`].
    pub fn copy_all<'a>(pairs: impl Iterator<Item = (&'a Self, &'a Slice)>) -> io::Result<usize> {
        // And one for the token.
        let room = pairs.size_hint().1.unwrap_or(READ_MAX_PARTS) + 1;
        let (mut local, mut remote) = (Vec::with_capacity(room), Vec::with_capacity(room));
        let (mut process, mut bytes) = (None, 0);
        for (source, target) in pairs {
            let len = source.len.min(target.len());
            local.push(iovec(target.ptr() as u64, len));
            remote.push(iovec(source.addr, len));
            process = Some(&source.process);
            bytes += len;
        }
        let Some(process) = process else { return Ok(0) };
        // SAFETY: each target's bytes lie inside its region, which the slice keeps mapped.
        unsafe { process.read(&mut local, &mut remote) }.map(|()| bytes)
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

    fn ourselves(token: &Token) -> Arc<Process> {
        Arc::new(Process::new(std::process::id() as i32, token.place()).unwrap())
    }

    #[test]
    fn a_process_reads_itself_and_faults_are_errors() {
        let token = Token::new();
        let memory = Region::foreign(Eternal::new(100).foreign());
        let addr = memory.addr();
        Slice::new(Arc::new(memory), 0, 100).unwrap().write(50, b"foreign").unwrap();
        let target = target(7);
        let mut source = ProcessSlice::new(ourselves(&token), addr, 100);
        source.advance(50);
        assert_eq!(source.copy_to(&target).unwrap(), 7);
        let mut out = [0; 7];
        target.read(0, &mut out).unwrap();
        assert_eq!(&out, b"foreign");
        let nowhere = ProcessSlice::new(ourselves(&token), 8, 4);
        assert_eq!(nowhere.copy_to(&target).unwrap_err().raw_os_error(), Some(libc::EFAULT));
    }

    #[test]
    fn many_ranges_are_read_by_one_call() {
        let token = Token::new();
        let memory = Region::foreign(Eternal::new(100).foreign());
        let addr = memory.addr();
        Slice::new(Arc::new(memory), 0, 100).unwrap().write(0, &[7; 100]).unwrap();
        let process = ourselves(&token);
        let all = target(100);
        let sources: Vec<_> =
            (0..10).map(|k| ProcessSlice::new(process.clone(), addr + 10 * k, 10)).collect();
        let targets: Vec<_> = (0..10).map(|k| all.part(10 * k, 10).unwrap()).collect();
        assert_eq!(ProcessSlice::copy_all(sources.iter().zip(&targets)).unwrap(), 100);
        let mut out = [0; 100];
        all.read(0, &mut out).unwrap();
        assert_eq!(out, [7; 100]);
    }

    #[test]
    fn another_process_of_the_same_number_is_not_mistaken_for_it() {
        let (token, target) = (Token::new(), target(8));
        let memory = Region::foreign(Eternal::new(8).foreign());
        let (addr, word) = token.place();
        let stranger = Process::new(std::process::id() as i32, (addr, word ^ 1)).unwrap();
        let source = ProcessSlice::new(Arc::new(stranger), memory.addr(), 8);
        assert_eq!(source.copy_to(&target).unwrap_err().raw_os_error(), Some(libc::ESRCH));
        let mut child = Command::new("true").spawn().unwrap();
        child.wait().unwrap();
        let dead = Process::new(child.id() as i32, token.place()).unwrap();
        assert_eq!(dead.probe(memory.addr()).unwrap_err().raw_os_error(), Some(libc::ESRCH));
        assert!(Process::new(0, (0, 0)).is_err());
    }
}

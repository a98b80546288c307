//! Limits of memory: memcpy between two mappings, and process_vm calls into another process.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;

use kvrail_reactors::region::Region;

use crate::{Limit, Shape};

/// Memory that a target serves, and the name under which an initiator finds it.
pub trait Served {
    fn segment(&self) -> String;
}

/// A memfd that initiators map.
pub fn shared(bytes: usize) -> io::Result<impl Served> {
    let region = Region::allocate(bytes, None)?;
    // Pages of zeros that nobody wrote may be faster than any other.
    fill(NonNull::new(region.addr() as *mut u8).ok_or(io::ErrorKind::OutOfMemory)?, bytes);
    Ok(region)
}

impl Served for Region {
    fn segment(&self) -> String {
        let fd = self.memfd().map_or(-1, |memfd| memfd.as_raw_fd());
        format!("{}/{fd}", std::process::id())
    }
}

/// Memory as any program has it, which nobody can map.
pub fn private(bytes: usize) -> impl Served {
    vec![1u8; bytes]
}

impl Served for Vec<u8> {
    fn segment(&self) -> String {
        format!("{}/{}", std::process::id(), self.as_ptr() as usize)
    }
}

/// `PID/NUMBER`, as targets print it.
fn pair<T: std::str::FromStr>(segment: &str) -> io::Result<(i32, T)> {
    let words = segment
        .split_once('/')
        .and_then(|(pid, number)| Some((pid.parse().ok()?, number.parse().ok()?)));
    words.ok_or_else(|| io::Error::other("a segment is PID/NUMBER"))
}

/// One thread's memcpy between two mappings. It pulls for writes too: regions are sealed against
/// other processes' writes, and which of two like mappings is read makes no difference.
pub struct Copies {
    near: NonNull<u8>,
    far: NonNull<u8>,
    /// What the addresses above point into; the far side's is a mapping that stays to the end.
    _regions: Vec<Region>,
}

impl Copies {
    /// Between two regions of this process.
    pub fn within(bytes: usize) -> io::Result<Self> {
        let regions = vec![Region::allocate(bytes, None)?, Region::allocate(bytes, None)?];
        let base = |region: &Region| NonNull::new(region.addr() as *mut u8);
        let [near, far] = [base(&regions[0]), base(&regions[1])];
        let (near, far) = near.zip(far).ok_or(io::ErrorKind::OutOfMemory)?;
        fill(near, bytes);
        fill(far, bytes);
        Ok(Self { near, far, _regions: regions })
    }

    /// Between a region of this process and one of the target's.
    pub fn to(segment: &str, bytes: usize) -> io::Result<Self> {
        let (pid, fd) = pair::<i32>(segment)?;
        let far = map(&format!("/proc/{pid}/fd/{fd}"), bytes)?;
        let region = Region::allocate(bytes, None)?;
        let near = NonNull::new(region.addr() as *mut u8).ok_or(io::ErrorKind::OutOfMemory)?;
        fill(near, bytes);
        Ok(Self { near, far, _regions: vec![region] })
    }
}

impl Limit for Copies {
    const IDLE: &'static str = "never";

    fn carry(&mut self, shape: Shape, start: usize) -> io::Result<()> {
        for at in (start..start + shape.bytes()).step_by(shape.block) {
            // SAFETY: the caller checked that all batches fit into both mappings, which are two
            // and stay mapped while `self` lives.
            unsafe { self.far.add(at).copy_to_nonoverlapping(self.near.add(at), shape.block) };
        }
        Ok(())
    }
}

/// Maps a file for reading, to the end of the process, every page of it.
fn map(path: &str, bytes: usize) -> io::Result<NonNull<u8>> {
    let file = File::open(path)?;
    if file.metadata()?.len() < bytes as u64 {
        return Err(io::Error::other("the target serves fewer bytes"));
    }
    let (address, access) = (std::ptr::null_mut(), libc::PROT_READ);
    let flags = libc::MAP_SHARED | libc::MAP_POPULATE;
    // SAFETY: a new mapping at an address that the kernel chooses, of a file that is sealed
    // against shrinking.
    let base = unsafe { libc::mmap(address, bytes, access, flags, file.as_raw_fd(), 0) };
    if base == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    NonNull::new(base.cast()).ok_or_else(|| io::ErrorKind::OutOfMemory.into())
}

/// Touches every page, so that faults are no part of what is measured.
fn fill(base: NonNull<u8>, bytes: usize) {
    // SAFETY: all callers pass a whole mapping of so many bytes, of which nobody has a reference.
    unsafe { base.write_bytes(1, bytes) };
}

/// A bare process_vm_readv or process_vm_writev a batch.
pub struct Calls {
    near: Vec<u8>,
    pid: i32,
    far: usize,
}

impl Calls {
    /// Into the memory of the target, which has so many bytes too.
    pub fn to(segment: &str, bytes: usize) -> io::Result<Self> {
        let (pid, far) = pair(segment)?;
        Ok(Self { near: vec![1; bytes], pid, far })
    }

    /// Moves the blocks from `start` to `end`, or as many of them as one call takes; answers where
    /// it has come to.
    fn call(&mut self, shape: Shape, start: usize, end: usize) -> io::Result<usize> {
        let end = end.min(start + shape.block * libc::UIO_MAXIOV as usize);
        let blocks = |base: *mut u8| {
            let blocks = (start..end).step_by(shape.block).map(move |at| libc::iovec {
                iov_base: base.wrapping_add(at).cast(),
                iov_len: shape.block,
            });
            blocks.collect::<Vec<_>>()
        };
        let near = blocks(self.near.as_mut_ptr());
        let far = blocks(std::ptr::without_provenance_mut(self.far));
        let count = near.len() as libc::c_ulong;
        let (near, far) = (near.as_ptr(), far.as_ptr());
        // SAFETY: the near blocks lie inside `self.near`, to which `self` is the only way; the
        // kernel checks the far ones. Both lists live until the call returns.
        let moved = unsafe {
            match shape.is_write {
                true => libc::process_vm_writev(self.pid, near, count, far, count, 0),
                false => libc::process_vm_readv(self.pid, near, count, far, count, 0),
            }
        };
        match usize::try_from(moved) {
            Ok(moved) if moved == end - start => Ok(end),
            Ok(_) => Err(io::ErrorKind::WriteZero.into()),
            Err(_) => Err(io::Error::last_os_error()),
        }
    }
}

impl Limit for Calls {
    const IDLE: &'static str = "never";

    fn carry(&mut self, shape: Shape, mut start: usize) -> io::Result<()> {
        let end = start + shape.bytes();
        while start < end {
            start = self.call(shape, start, end)?;
        }
        Ok(())
    }
}

//! Some memory under keys of its own: host memory as this process maps it, a GPU's as a dma-buf.
//! Work requests name either by its address, and nothing else knows how it came to its keys.

use std::ffi::{c_int, c_uint, c_void};
use std::os::fd::AsRawFd;
use std::ptr::NonNull;
use std::sync::Arc;

use rdma_sys::{ibv_access_flags, ibv_mr, ibv_pd};

use super::RemoteAccess;
use super::library::{Library, RegisterDmaBuf, RegisterHost, VerbsError};
use crate::cuda::DmaBuf;
use crate::region::Region;

/// What of libibverbs registers memory, and takes that back.
#[derive(Debug, Clone, Copy)]
pub(super) struct Calls {
    host: RegisterHost,
    dma_buf: Option<RegisterDmaBuf>,
    end: unsafe extern "C" fn(*mut ibv_mr) -> c_int,
}

impl Calls {
    pub(super) fn of(library: &Library) -> Self {
        let (host, dma_buf) = (library.ibv_reg_mr_iova2, library.ibv_reg_dmabuf_mr);
        Self { host, dma_buf, end: library.ibv_dereg_mr }
    }
}

/// A region as a device is told of it.
#[derive(Debug)]
pub(super) struct Source {
    region: Arc<Region>,
    calls: Calls,
    /// Of all of it, where it is a GPU's.
    dma_buf: Option<(RegisterDmaBuf, DmaBuf)>,
}

/// A part of a region that a device has pinned.
#[derive(Debug)]
pub(super) struct Pinned {
    mr: NonNull<ibv_mr>,
    end: unsafe extern "C" fn(*mut ibv_mr) -> c_int,
    region: Arc<Region>,
}

// SAFETY: a registration is a handle that any thread may use.
unsafe impl Send for Pinned {}
// SAFETY: as above.
unsafe impl Sync for Pinned {}

impl Source {
    /// # Errors
    /// It is a GPU's, and the library is too old for that, or the GPU's driver refuses.
    pub(super) fn new(calls: Calls, region: Arc<Region>) -> Result<Self, VerbsError> {
        let dma_buf = match region.device() {
            None => None,
            Some(memory) => {
                let register = calls.dma_buf.ok_or(VerbsError::TooOld("ibv_reg_dmabuf_mr"))?;
                Some((register, memory.dma_buf().map_err(VerbsError::Vram)?))
            }
        };
        Ok(Self { region, calls, dma_buf })
    }

    /// Has `len` bytes from `offset` on pinned.
    ///
    /// # Errors
    /// What the kernel says: too little locked memory, too many registrations, or the device
    /// reaches no other's memory.
    ///
    /// # Safety
    /// The domain is one of the library's that is alive, and outlives what is made; the range is
    /// inside the region.
    pub(super) unsafe fn pin(
        &self,
        domain: *mut ibv_pd,
        (offset, len): (usize, usize),
        access: RemoteAccess,
    ) -> Result<Pinned, VerbsError> {
        let Self { region, calls, dma_buf } = self;
        let (addr, access) = (region.addr() + offset as u64, flags(access, dma_buf.is_some()));
        let (what, mr) = match dma_buf {
            None => {
                // SAFETY: the domain is the caller's promise; the region keeps its pages mapped,
                // and is held for longer than the registration.
                let mr = unsafe { (calls.host)(domain, addr as *mut c_void, len, addr, access) };
                ("ibv_reg_mr", mr)
            }
            Some((register, DmaBuf { fd, offset: begins })) => {
                let (at, fd) = (begins + offset as u64, fd.as_raw_fd());
                // SAFETY: as above; the descriptor is open, and the kernel takes a hold of its own
                // on what it names.
                let mr = unsafe { register(domain, at, len, addr, fd, access as c_int) };
                ("ibv_reg_dmabuf_mr", mr)
            }
        };
        let mr = NonNull::new(mr).ok_or_else(|| VerbsError::last(what))?;
        Ok(Pinned { mr, end: calls.end, region: region.clone() })
    }
}

impl Pinned {
    /// The registration, as the library knows it.
    pub(super) fn mr(&self) -> NonNull<ibv_mr> {
        self.mr
    }

    /// The keys: our own requests', and the peers'.
    pub(super) fn keys(&self) -> (u32, u32) {
        // SAFETY: the registration lives as long as this.
        let mr = unsafe { self.mr.as_ref() };
        (mr.lkey, mr.rkey)
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // SAFETY: it was registered once; work that names it holds its region, and fails from here
        // on. The device reaches nothing by it when the call returns 0.
        let code = unsafe { (self.end)(self.mr.as_ptr()) };
        if code != 0 {
            // A window is open in it: what the device still reaches is nobody else's, ever.
            std::mem::forget(self.region.clone());
        }
    }
}

/// Windows open in host memory alone: the kernel takes no dma-buf that asks for them
/// (`UVERBS_METHOD_REG_DMABUF_MR`, drivers/infiniband/core/uverbs_std_types_mr.c).
fn flags(access: RemoteAccess, is_dma_buf: bool) -> c_uint {
    let RemoteAccess { read, write } = access;
    let always = ibv_access_flags::IBV_ACCESS_LOCAL_WRITE.0
        | ibv_access_flags::IBV_ACCESS_RELAXED_ORDERING.0;
    let bind = if is_dma_buf { 0 } else { ibv_access_flags::IBV_ACCESS_MW_BIND.0 };
    let read = if read { ibv_access_flags::IBV_ACCESS_REMOTE_READ.0 } else { 0 };
    let write = if write { ibv_access_flags::IBV_ACCESS_REMOTE_WRITE.0 } else { 0 };
    always | bind | read | write
}

#[cfg(all(test, feature = "sim"))]
mod tests;

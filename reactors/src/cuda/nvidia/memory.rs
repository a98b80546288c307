//! Device memory by the driver's virtual memory management: allocations that a descriptor names in
//! other processes, mapped for every device that reaches them.

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use cudarc::driver::sys::{
    self, CUGPUDirectRDMAWritesOrdering, CUdevice_attribute, CUmemAccess_flags, CUmemAccessDesc,
    CUmemAllocationGranularity_flags, CUmemAllocationHandleType, CUmemAllocationProp,
    CUmemAllocationType, CUmemLocation, CUmemLocationType, CUmemRangeHandleType,
};

use CUdevice_attribute as Attribute;

use super::call::call;
use crate::cuda::driver::{Allocation, DeviceFacts, Failure};

/// What gives memory to other devices.
const DMA_BUF: &str = "cuMemGetHandleForAddressRange";

pub(super) fn location(device: u32) -> CUmemLocation {
    CUmemLocation { type_: CUmemLocationType::CU_MEM_LOCATION_TYPE_DEVICE, id: device as i32 }
}

fn properties(device: u32) -> CUmemAllocationProp {
    // SAFETY: a C struct of integers and a pointer, for which zero means "none".
    let mut properties: CUmemAllocationProp = unsafe { std::mem::zeroed() };
    properties.type_ = CUmemAllocationType::CU_MEM_ALLOCATION_TYPE_PINNED;
    properties.requestedHandleTypes =
        CUmemAllocationHandleType::CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR;
    properties.location = location(device);
    properties
}

pub(super) fn allocate(device: &DeviceFacts, len: usize) -> Result<Allocation, Failure> {
    let mut properties = properties(device.ordinal);
    // NICs may come later. A device that can't would refuse what asks for it.
    let with_nics = Attribute::CU_DEVICE_ATTRIBUTE_GPU_DIRECT_RDMA_WITH_CUDA_VMM_SUPPORTED;
    let takes_nics = attribute(device.ordinal, with_nics).is_ok_and(|takes| takes != 0);
    properties.allocFlags.gpuDirectRDMACapable = takes_nics.into();
    let mut page = 0;
    let least = CUmemAllocationGranularity_flags::CU_MEM_ALLOC_GRANULARITY_MINIMUM;
    call!(cuMemGetAllocationGranularity(&raw mut page, &raw const properties, least))?;
    let too_long = || Failure::refused("cuMemCreate", format!("{len} bytes are no length"));
    let bytes = len.checked_next_multiple_of(page.max(1)).filter(|bytes| *bytes > 0);
    let bytes = bytes.ok_or_else(too_long)?;
    let mut handle = 0;
    call!(cuMemCreate(&raw mut handle, bytes, &raw const properties, 0))?;
    map(device, handle, bytes)
}

pub(super) fn export(allocation: &Allocation) -> Result<OwnedFd, Failure> {
    let mut fd: i32 = -1;
    let posix = CUmemAllocationHandleType::CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR;
    call!(cuMemExportToShareableHandle((&raw mut fd).cast(), allocation.handle, posix, 0))?;
    // SAFETY: the descriptor is new and ours.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A dma-buf of a range in the current context.
pub(super) fn dma_buf(device: &DeviceFacts, addr: u64, len: usize) -> Result<OwnedFd, Failure> {
    // A driver that is too old for the call below does not know this either.
    let supported = attribute(device.ordinal, Attribute::CU_DEVICE_ATTRIBUTE_DMA_BUF_SUPPORTED);
    if !supported.is_ok_and(|supported| supported != 0) {
        let why = "it has no dma-bufs: they take NVIDIA's open kernel modules, 515 or later, and \
                   Linux 5.12";
        return Err(Failure::refused(DMA_BUF, why));
    }
    let ordering = Attribute::CU_DEVICE_ATTRIBUTE_GPU_DIRECT_RDMA_WRITES_ORDERING;
    check_order(attribute(device.ordinal, ordering)?, &device.reaches)?;
    let mut fd: i32 = -1;
    let kind = CUmemRangeHandleType::CU_MEM_RANGE_HANDLE_TYPE_DMA_BUF_FD;
    call!(cuMemGetHandleForAddressRange((&raw mut fd).cast(), addr, len, kind, 0))?;
    // SAFETY: the descriptor is new and ours.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Whether what NICs have written is seen by all GPUs here that may read it once its completion is:
/// nobody flushes such writes.
fn check_order(ordering: i32, reached_by: &[u32]) -> Result<(), Failure> {
    use CUGPUDirectRDMAWritesOrdering as Order;
    let owner = Order::CU_GPU_DIRECT_RDMA_WRITES_ORDERING_OWNER as i32;
    if ordering < owner {
        let why = "this GPU does not see what NICs write in its order";
        return Err(Failure::refused(DMA_BUF, why));
    }
    match ordering < Order::CU_GPU_DIRECT_RDMA_WRITES_ORDERING_ALL_DEVICES as i32 {
        true if !reached_by.is_empty() => Err(Failure::refused(
            DMA_BUF,
            "only its own GPU sees what NICs write in its order, and this process has others that \
             reach it: show it one GPU (CUDA_VISIBLE_DEVICES)",
        )),
        _ => Ok(()),
    }
}

fn attribute(device: u32, asked: CUdevice_attribute) -> Result<i32, Failure> {
    let mut answer = 0;
    // A device's handle is its number.
    call!(cuDeviceGetAttribute(&raw mut answer, asked, device as i32))?;
    Ok(answer)
}

pub(super) fn import(
    devices: &[DeviceFacts],
    fd: BorrowedFd<'_>,
    bytes: usize,
) -> Result<Allocation, Failure> {
    let mut handle = 0;
    let posix = CUmemAllocationHandleType::CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR;
    // For this type the driver takes the descriptor's number in place of a pointer.
    let named = fd.as_raw_fd() as usize as *mut std::ffi::c_void;
    call!(cuMemImportFromShareableHandle(&raw mut handle, named, posix))?;
    let device = owner(devices, handle).inspect_err(|_| release(handle))?;
    map(device, handle, bytes)
}

/// The device that holds an allocation.
fn owner(devices: &[DeviceFacts], handle: u64) -> Result<&DeviceFacts, Failure> {
    let mut properties = properties(0);
    call!(cuMemGetAllocationPropertiesFromHandle(&raw mut properties, handle))?;
    let ordinal = u32::try_from(properties.location.id).ok();
    let device = ordinal.and_then(|ordinal| devices.get(ordinal as usize));
    let elsewhere = "it is on a GPU that this process does not see: look at CUDA_VISIBLE_DEVICES";
    device.ok_or_else(|| Failure::refused("cuMemImportFromShareableHandle", elsewhere))
}

fn release(handle: u64) {
    // Of what goes wrong on the way out nobody could do more.
    let _: Result<(), Failure> = call!(cuMemRelease(handle));
}

/// Maps an allocation, whose handle is let go of on errors.
fn map(device: &DeviceFacts, handle: u64, bytes: usize) -> Result<Allocation, Failure> {
    let mut addr = 0;
    call!(cuMemAddressReserve(&raw mut addr, bytes, 0, 0, 0)).inspect_err(|_| release(handle))?;
    let back = |_: &Failure| {
        let _: Result<(), Failure> = call!(cuMemAddressFree(addr, bytes));
        release(handle);
    };
    call!(cuMemMap(addr, bytes, 0, handle, 0)).inspect_err(back)?;
    open(device, addr, bytes).inspect_err(|failure| {
        let _: Result<(), Failure> = call!(cuMemUnmap(addr, bytes));
        back(failure);
    })?;
    Ok(Allocation { device: device.ordinal, addr, bytes, handle })
}

/// Lets every device that can reach it.
fn open(device: &DeviceFacts, addr: u64, bytes: usize) -> Result<(), Failure> {
    let devices: Vec<u32> =
        std::iter::once(&device.ordinal).chain(&device.reaches).copied().collect();
    open_to(&devices, addr, bytes)
}

/// Lets these devices reach it.
pub(super) fn open_to(devices: &[u32], addr: u64, bytes: usize) -> Result<(), Failure> {
    let access: Vec<_> = devices
        .iter()
        .map(|device| CUmemAccessDesc {
            location: location(*device),
            flags: CUmemAccess_flags::CU_MEM_ACCESS_FLAGS_PROT_READWRITE,
        })
        .collect();
    call!(cuMemSetAccess(addr, bytes, access.as_ptr(), access.len()))
}

/// # Safety
/// As [`crate::cuda::Driver::free`].
pub(super) unsafe fn free(allocation: &Allocation) -> Result<(), Failure> {
    let Allocation { addr, bytes, handle, .. } = *allocation;
    // Nobody touches it any more, by the caller's promise.
    call!(cuMemUnmap(addr, bytes))?;
    call!(cuMemAddressFree(addr, bytes))?;
    call!(cuMemRelease(handle))
}

/// # Safety
/// As [`crate::cuda::Driver::pin`].
pub(super) unsafe fn pin(addr: u64, len: usize, is_read_only: bool) -> Result<(), Failure> {
    let flags = if is_read_only { sys::CU_MEMHOSTREGISTER_READ_ONLY } else { 0 };
    // The range is mapped until it is unpinned, by the caller's promise.
    call!(cuMemHostRegister_v2(addr as *mut std::ffi::c_void, len, flags))
}

pub(super) fn unpin(addr: u64) {
    let _: Result<(), Failure> = call!(cuMemHostUnregister(addr as *mut std::ffi::c_void));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nics_get_memory_only_where_all_who_read_it_see_their_writes_in_order() {
        use CUGPUDirectRDMAWritesOrdering as Order;
        let none = Order::CU_GPU_DIRECT_RDMA_WRITES_ORDERING_NONE as i32;
        let owner = Order::CU_GPU_DIRECT_RDMA_WRITES_ORDERING_OWNER as i32;
        let all = Order::CU_GPU_DIRECT_RDMA_WRITES_ORDERING_ALL_DEVICES as i32;
        let is_good = |ordering, reached_by: &[u32]| check_order(ordering, reached_by).is_ok();
        assert!(!is_good(none, &[]) && !is_good(none, &[1]));
        assert!(is_good(owner, &[]) && !is_good(owner, &[1]));
        assert!(is_good(all, &[]) && is_good(all, &[1, 2]));
    }
}

//! Device memory by the driver's virtual memory management: allocations that a descriptor names in
//! other processes, mapped for every device that reaches them.

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use cudarc::driver::sys::{
    self, CUmemAccess_flags, CUmemAccessDesc, CUmemAllocationGranularity_flags,
    CUmemAllocationHandleType, CUmemAllocationProp, CUmemAllocationType, CUmemLocation,
    CUmemLocationType,
};

use super::call::call;
use crate::cuda::driver::{Allocation, DeviceFacts, Failure};

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
    let properties = properties(device.ordinal);
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

//! Memory that others of the process allocated, by whatever means of the driver's, and the handles
//! by which processes open each other's (CUDA's legacy IPC).

use std::ffi::c_void;

use cudarc::driver::sys::{
    self, CUipcMem_flags, CUipcMemHandle, CUmemorytype, CUpointer_attribute,
};

use super::call::call;
use crate::cuda::driver::{Allocation, Failure, Holding, IpcHandle};

/// What is asked of an address, one answer of four bytes.
fn attribute(addr: u64, asked: CUpointer_attribute) -> Result<u32, Failure> {
    // Some answers are one byte: the rest stays zero.
    let mut answer = 0u32;
    call!(cuPointerGetAttribute((&raw mut answer).cast::<c_void>(), asked, addr))?;
    Ok(answer)
}

/// The device whose memory this address names.
pub(super) fn device(addr: u64) -> Result<u32, Failure> {
    use CUpointer_attribute as Attribute;
    let refused = |why| Failure::refused("cuPointerGetAttribute", why);
    let kind = attribute(addr, Attribute::CU_POINTER_ATTRIBUTE_MEMORY_TYPE).map_err(|failure| {
        match &*failure.name {
            "CUDA_ERROR_INVALID_VALUE" => refused("no memory of a GPU's"),
            _ => failure,
        }
    })?;
    if kind != CUmemorytype::CU_MEMORYTYPE_DEVICE as u32 {
        return Err(refused("host memory: register that as such"));
    }
    if attribute(addr, Attribute::CU_POINTER_ATTRIBUTE_IS_MANAGED)? != 0 {
        return Err(refused("managed memory, which moves: allocate it by cuMemAlloc instead"));
    }
    attribute(addr, Attribute::CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL)
}

/// The allocation that holds an address of this device's, whose context is the current one.
pub(super) fn holding(device: u32, addr: u64) -> Result<Holding, Failure> {
    let (mut base, mut bytes) = (0, 0);
    call!(cuMemGetAddressRange_v2(&raw mut base, &raw mut bytes, addr))?;
    let asked = CUpointer_attribute::CU_POINTER_ATTRIBUTE_IS_LEGACY_CUDA_IPC_CAPABLE;
    let is_shareable = attribute(addr, asked)? != 0;
    Ok(Holding { device, addr: base, bytes, is_shareable })
}

pub(super) fn share(holding: &Holding) -> Result<IpcHandle, Failure> {
    let mut handle = CUipcMemHandle { reserved: [0; 64] };
    call!(cuIpcGetMemHandle(&raw mut handle, holding.addr))?;
    Ok(handle.reserved.map(|byte| byte as u8))
}

/// Opens a handle in the current context, which is to be that of the device that holds it.
pub(super) fn open(device: u32, handle: &IpcHandle) -> Result<Allocation, Failure> {
    let handle = CUipcMemHandle { reserved: handle.map(|byte| byte as std::ffi::c_char) };
    let flags = CUipcMem_flags::CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS as u32;
    let mut addr = 0;
    call!(cuIpcOpenMemHandle_v2(&raw mut addr, handle, flags))?;
    let allocation = |(base, bytes): (u64, usize)| {
        // What is asked of it is counted from `addr`.
        let bytes = bytes.saturating_sub((addr - base) as usize);
        Allocation { device, addr, bytes, handle: 0 }
    };
    let (mut base, mut bytes) = (0, 0);
    let range = call!(cuMemGetAddressRange_v2(&raw mut base, &raw mut bytes, addr));
    range.map(|()| allocation((base, bytes))).inspect_err(|_| close(addr))
}

pub(super) fn close(addr: u64) {
    // Whatever is left of a device that is lost goes with the process.
    let _: Result<(), Failure> = call!(cuIpcCloseMemHandle(addr));
}

/// Lets kernels of the current context reach what others allocate in the context of a device that
/// it reaches. What this library allocates needs no such leave.
pub(super) fn reach(context: sys::CUcontext) -> Result<(), Failure> {
    match call!(cuCtxEnablePeerAccess(context, 0)) {
        // By PyTorch, say.
        Err(failure) if &*failure.name == "CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED" => Ok(()),
        result => result,
    }
}

//! What the caller's own code does with NVIDIA's GPUs, for tests and examples.

use cudarc::driver::sys::{
    CUevent, CUevent_flags, CUmemAllocationGranularity_flags, CUmemAllocationProp,
    CUmemAllocationType,
};

use super::Nvidia;
use super::call::call;
use super::memory;
use crate::cuda::driver::{Event, Failure};
use crate::cuda::outside::Outside;

impl Outside for Nvidia {
    fn allocate(&self, device: u32, len: usize, is_shareable: bool) -> Result<u64, Failure> {
        let _current = self.context(device)?.enter()?;
        if is_shareable {
            let mut addr = 0;
            call!(cuMemAlloc_v2(&raw mut addr, len))?;
            return Ok(addr);
        }
        segments(device, len)
    }

    fn event(&self, device: u32) -> Result<Event, Failure> {
        let _current = self.context(device)?.enter()?;
        let mut event = std::ptr::null_mut();
        let flags = CUevent_flags::CU_EVENT_DISABLE_TIMING as u32;
        call!(cuEventCreate(&raw mut event, flags))?;
        Ok(Event { device, handle: event as u64 })
    }

    fn is_complete(&self, event: &Event) -> bool {
        let current = self.context(event.device).and_then(super::Context::enter);
        current.is_ok_and(|_current| call!(cuEventQuery(event.handle as CUevent)).is_ok())
    }

    unsafe fn free(&self, device: u32, addr: u64) {
        if let Ok(_current) = self.context(device).and_then(super::Context::enter) {
            // Nobody touches it, by the caller's promise. What is mapped in segments stays.
            let _: Result<(), Failure> = call!(cuMemFree_v2(addr));
        }
    }
}

/// Memory as PyTorch's expandable segments are: one range of addresses, mapped piece by piece.
fn segments(device: u32, len: usize) -> Result<u64, Failure> {
    // SAFETY: a C struct of integers and a pointer, for which zero means "none".
    let mut properties: CUmemAllocationProp = unsafe { std::mem::zeroed() };
    properties.type_ = CUmemAllocationType::CU_MEM_ALLOCATION_TYPE_PINNED;
    properties.location = memory::location(device);
    let mut page = 0;
    let least = CUmemAllocationGranularity_flags::CU_MEM_ALLOC_GRANULARITY_MINIMUM;
    call!(cuMemGetAllocationGranularity(&raw mut page, &raw const properties, least))?;
    let bytes = len.next_multiple_of(page.max(1));
    let mut addr = 0;
    call!(cuMemAddressReserve(&raw mut addr, bytes, 0, 0, 0))?;
    for at in (0..bytes).step_by(page.max(1)) {
        let mut handle = 0;
        call!(cuMemCreate(&raw mut handle, page, &raw const properties, 0))?;
        call!(cuMemMap(addr + at as u64, page, 0, handle, 0))?;
        // The mapping keeps it.
        call!(cuMemRelease(handle))?;
    }
    memory::open_to(&[device], addr, bytes)?;
    Ok(addr)
}

//! Allocating a region on a GPU: is there room, and what its driver says to it.

use kvrail_reactors::cuda::driver::FailureKind;
use kvrail_reactors::cuda::{DeviceMemory, Failure, Gpus};
use kvrail_reactors::region::Region;

use crate::topology::Size;
use crate::{Error, ErrorKind, Result};

/// Allocates `len` bytes on a GPU.
///
/// # Errors
/// Refused: there is no such GPU, or it does not have so much free, with the numbers. Lost: it does
/// not answer.
pub(crate) fn allocate_on(gpus: &Gpus, device: u32, len: usize) -> Result<Region> {
    if len == 0 {
        return Err(Error::refused("a region of 0 bytes"));
    }
    let driver = gpus.driver().map_err(|why| Error::refused(format!("no VRAM: {why}")))?;
    let what = || format!("a region of {} on cuda:{device}", Size(len as u64));
    let free = driver.free_bytes(device).map_err(|failure| gpu_error(&failure))?;
    if free < len as u64 {
        return Err(Error::refused(format!(
            "{}: it has {} free; name another GPU, or free some there",
            what(),
            Size(free)
        )));
    }
    let memory =
        DeviceMemory::allocate(driver, device, len).map_err(|failure| gpu_error(&failure))?;
    Region::on_device(memory, len).ok_or_else(|| Error::refused("the driver gave no memory"))
}

/// What a GPU's refusal means for whoever asked.
pub(crate) fn gpu_error(failure: &Failure) -> Error {
    match failure.kind {
        FailureKind::NoMemory => Error::busy("the GPU has no memory left"),
        FailureKind::Refused => Error::refused("the GPU does not do it"),
        FailureKind::Lost => Error::lost("the GPU is lost: restart this process"),
        FailureKind::Fenced => Error::new(ErrorKind::Closed, "the memory was taken back"),
    }
    .with_source(failure.clone())
}

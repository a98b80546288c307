//! Regions on a GPU: allocated, if there is room, or made of memory that the caller has there.

use std::sync::Arc;

use kvrail_reactors::cuda::calibrate;
use kvrail_reactors::cuda::crossover::{Crossover, Measured};
use kvrail_reactors::cuda::driver::FailureKind;
use kvrail_reactors::cuda::{DeviceMemory, Driver, Failure, Gpus};
use kvrail_reactors::region::{self, ForeignVram, Region};

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
    let driver = driver(gpus)?;
    // Before, since it takes memory for a while.
    log_measured(calibrate::use_vram(&driver, device));
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

/// A region of memory that the caller vouched for.
///
/// # Errors
/// Refused: it is no memory of that GPU, or its allocation ends earlier: why, in the source. Lost:
/// the GPU does not answer.
pub(crate) fn foreign_on(gpus: &Gpus, foreign: &ForeignVram) -> Result<Region> {
    let (len, device) = (foreign.len(), foreign.device());
    if foreign.is_empty() {
        return Err(Error::refused("a region of 0 bytes"));
    }
    let driver = driver(gpus)?;
    let memory = DeviceMemory::foreign(driver.clone(), foreign).map_err(|failure| {
        let error = gpu_error(&failure);
        match failure.kind {
            FailureKind::Refused => Error::refused(format!(
                "{} that are no memory of cuda:{device}: register a range of one allocation of \
                 that GPU's, as cuMemAlloc, cudaMalloc or PyTorch gave it",
                Size(len as u64)
            ))
            .with_source(failure),
            _ => error,
        }
    })?;
    log_measured(calibrate::use_vram(&driver, device));
    if let Err(why) = memory.check_shareable() {
        tracing::info!(%why, device, bytes = len, "VRAM that peers of this host reach by TCP only");
    }
    Region::on_device(memory, len).ok_or_else(|| Error::refused("a region at address 0"))
}

/// A peer's memory is mapped here: by which way it is reached is measured, once. Takes 20 ms, then.
pub(crate) fn reach_peers(source: &Arc<region::Region>) {
    log_measured(calibrate::reach_vram(source));
}

fn log_measured(measured: Vec<Measured>) {
    for Measured { device, way, found } in measured {
        match found {
            Ok(Crossover { engine_min_bytes, engine_max_ranges }) => tracing::info!(
                device,
                %way,
                engine_min_bytes,
                engine_max_ranges,
                "copies by a GPU were timed: from so many bytes on they are the copy engine's"
            ),
            Err(why) => tracing::debug!(%why, device, %way, "copies by a GPU were not timed"),
        }
    }
}

fn driver(gpus: &Gpus) -> Result<Arc<dyn Driver>> {
    gpus.driver().map_err(|why| Error::refused(format!("no VRAM: {why}")))
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

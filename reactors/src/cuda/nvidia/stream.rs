//! A line of launches on one device, with marks that say how far it is.

use std::collections::VecDeque;
use std::ffi::c_void;
use std::sync::Arc;

use cudarc::driver::sys::{
    self, CUevent, CUevent_flags, CUevent_wait_flags, CUfunction, CUresult, CUstream,
};

use super::arguments::Arguments;
use super::call::{call, checked};
use super::context::{Context, Form, stream};
use crate::cuda::driver::{Event, Failure, Stream};
use crate::cuda::plan::{Launch, Range};
use crate::doorbell::Doorbell;

#[derive(Debug)]
pub(super) struct NvidiaStream {
    context: Context,
    stream: CUstream,
    /// Marks that have not passed, oldest first, each with its event.
    marks: VecDeque<CUevent>,
    spare: Vec<CUevent>,
    last_mark: u64,
    arguments: Arguments,
}

// SAFETY: handles of the driver's, which any thread may use; the stream has one owner at a time.
unsafe impl Send for NvidiaStream {}

impl NvidiaStream {
    pub(super) fn new(context: Context) -> Result<Self, Failure> {
        let current = context.enter()?;
        let stream = stream()?;
        drop(current);
        let (marks, spare, arguments) = Default::default();
        Ok(Self { context, stream, marks, spare, last_mark: 0, arguments })
    }

    fn event(&mut self) -> Result<CUevent, Failure> {
        if let Some(event) = self.spare.pop() {
            return Ok(event);
        }
        let mut event = std::ptr::null_mut();
        let flags = CUevent_flags::CU_EVENT_DISABLE_TIMING as u32;
        call!(cuEventCreate(&raw mut event, flags))?;
        Ok(event)
    }

    /// Starts the kernel that the arguments are of.
    ///
    /// # Safety
    /// As [`Stream::enqueue`].
    unsafe fn launch(&mut self, kernel: CUfunction, blocks: u32) -> Result<(), Failure> {
        let threads = self.arguments.threads(blocks);
        let mut arguments = [self.arguments.words().as_mut_ptr().cast::<c_void>()];
        // The arguments are laid out as the kernel's parameter, which the driver copies before it
        // returns; the ranges live, by the caller's promise.
        call!(cuLaunchKernel(
            kernel,
            blocks,
            1,
            1,
            threads,
            1,
            1,
            0,
            self.stream,
            arguments.as_mut_ptr(),
            std::ptr::null_mut(),
        ))
    }
}

fn raw(event: &Event) -> CUevent {
    event.handle as CUevent
}

impl Stream for NvidiaStream {
    fn wait(&mut self, event: &Event) -> Result<(), Failure> {
        let _current = self.context.enter()?;
        let flags = CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT as u32;
        // Whoever named the event vouched for it; it may be another device's.
        call!(cuStreamWaitEvent(self.stream, raw(event), flags))
    }

    fn record(&mut self, event: &Event) -> Result<(), Failure> {
        let _current = self.context.enter()?;
        // As above; of another device's the driver says so.
        call!(cuEventRecord(raw(event), self.stream))
    }

    unsafe fn enqueue(&mut self, launch: &Launch, blocks: u32) -> Result<(), Failure> {
        let _current = self.context.enter()?;
        match launch {
            // The range lives, by the caller's promise.
            Launch::Copy(Range { from, to, len }) => {
                call!(cuMemcpyAsync(*to, *from, *len, self.stream))
            }
            Launch::Pages(pages) => {
                let kernel = self.context.kernel(Form::Pages, pages.len())?;
                self.arguments.pages(pages, kernel.pages);
                // SAFETY: the caller's promise.
                unsafe { self.launch(kernel.function, blocks) }
            }
            Launch::Even(pages) => {
                let kernel = self.context.kernel(Form::Even, pages.at.len())?;
                self.arguments.even(pages, kernel.pages);
                // SAFETY: as above.
                unsafe { self.launch(kernel.function, blocks) }
            }
        }
    }

    fn mark(&mut self) -> Result<u64, Failure> {
        let _current = self.context.enter()?;
        let event = self.event()?;
        if let Err(failure) = call!(cuEventRecord(event, self.stream)) {
            self.spare.push(event);
            return Err(failure);
        }
        self.marks.push_back(event);
        self.last_mark += 1;
        Ok(self.last_mark)
    }

    fn passed(&mut self) -> Result<u64, Failure> {
        let _current = self.context.enter()?;
        while let Some(event) = self.marks.front().copied() {
            // SAFETY: an event of this stream's.
            match unsafe { sys::cuEventQuery(event) } {
                CUresult::CUDA_ERROR_NOT_READY => break,
                result => checked("cuEventQuery", result)?,
            }
            self.marks.pop_front();
            self.spare.push(event);
        }
        Ok(self.last_mark - self.marks.len() as u64)
    }

    fn ring_behind(&mut self, doorbell: &Arc<Doorbell>) -> Result<(), Failure> {
        unsafe extern "C" fn ring(doorbell: *mut c_void) {
            // SAFETY: the count that `ring_behind` gave up; the driver calls once.
            unsafe { Arc::from_raw(doorbell.cast::<Doorbell>().cast_const()) }.ring();
        }
        let _current = self.context.enter()?;
        let counted = Arc::into_raw(doorbell.clone()).cast_mut().cast::<c_void>();
        call!(cuLaunchHostFunc(self.stream, Some(ring), counted)).inspect_err(|_| {
            // SAFETY: the driver refused the call, so nobody else takes the count back.
            drop(unsafe { Arc::from_raw(counted.cast::<Doorbell>().cast_const()) });
        })
    }

    fn drain(&mut self) -> Result<(), Failure> {
        let _current = self.context.enter()?;
        call!(cuStreamSynchronize(self.stream))
    }
}

impl Drop for NvidiaStream {
    fn drop(&mut self) {
        let Ok(_current) = self.context.enter() else { return };
        // Of what goes wrong on the way out nobody could do more.
        for event in self.marks.drain(..).chain(self.spare.drain(..)) {
            let _: Result<(), Failure> = call!(cuEventDestroy_v2(event));
        }
        let _: Result<(), Failure> = call!(cuStreamDestroy_v2(self.stream));
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_kernel_is_made_from_the_source_beside_it() {
        let (source, made) = (include_bytes!("../pages.cu"), include_str!("../pages.ptx"));
        // FNV-1a, as `cargo xtask ptx` writes it down.
        let digest = source.iter().fold(0xcbf2_9ce4_8422_2325u64, |digest, byte| {
            (digest ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
        });
        let first = made.lines().next().unwrap_or_default();
        assert!(first.ends_with(&format!("{digest:016x}")), "run `cargo xtask ptx`: {first}");
    }
}

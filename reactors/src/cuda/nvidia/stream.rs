//! A line of launches on one device, with marks that say how far it is.

use std::collections::VecDeque;
use std::ffi::c_void;
use std::sync::Arc;

use cudarc::driver::sys::{self, CUevent, CUevent_flags, CUevent_wait_flags, CUresult, CUstream};

use super::call::{call, checked};
use super::context::{Context, stream};
use crate::cuda::driver::{Event, Failure, Stream};
use crate::cuda::plan::{Launch, Range};
use crate::doorbell::Doorbell;

/// Threads of a block, as `pages.cu` is compiled for.
const THREADS: u32 = 512;

/// Bytes that a warp moves at a time, as in `pages.cu`.
const CHUNK_BYTES: usize = 4096;

#[derive(Debug)]
pub(super) struct NvidiaStream {
    context: Context,
    stream: CUstream,
    /// Marks that have not passed, oldest first, each with its event.
    marks: VecDeque<CUevent>,
    spare: Vec<CUevent>,
    last_mark: u64,
    arguments: Vec<u64>,
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

    /// # Safety
    /// As [`Stream::enqueue`].
    unsafe fn launch(&mut self, pages: &[Range], blocks: u32) -> Result<(), Failure> {
        let missing = || Failure::refused("cuLaunchKernel", "more pages than one launch takes");
        let kernel = self.context.kernel(pages.len()).ok_or_else(missing)?;
        fill(&mut self.arguments, pages, kernel.pages);
        let mut arguments = [self.arguments.as_mut_ptr().cast::<c_void>()];
        // The arguments are laid out as the kernel's parameter, which the driver copies before it
        // returns; the ranges live, by the caller's promise.
        call!(cuLaunchKernel(
            kernel.function,
            blocks,
            1,
            1,
            THREADS,
            1,
            1,
            0,
            self.stream,
            arguments.as_mut_ptr(),
            std::ptr::null_mut(),
        ))
    }
}

/// Lays out the kernel's parameter for `max` pages: how many there are and the chunks of the
/// longest in one word, then sources, targets, and lengths, two a word.
fn fill(words: &mut Vec<u64>, pages: &[Range], max: usize) {
    let longest = pages.iter().map(|page| page.len).max().unwrap_or(0);
    let chunks = longest.div_ceil(CHUNK_BYTES) as u64;
    words.resize(1 + 2 * max + max / 2, 0);
    words[0] = pages.len() as u64 | chunks << 32;
    let (from, rest) = words[1..].split_at_mut(max);
    let (to, lens) = rest.split_at_mut(max);
    for (k, page) in pages.iter().enumerate() {
        (from[k], to[k]) = (page.from, page.to);
    }
    for (word, pair) in lens.iter_mut().zip(pages.chunks(2)) {
        let second = pair.get(1).map_or(0, |page| page.len as u64);
        *word = pair[0].len as u64 | second << 32;
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
            // SAFETY: the caller's promise.
            Launch::Pages(pages) => unsafe { self.launch(pages, blocks) },
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
    use super::*;

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

    #[test]
    fn the_kernel_s_parameter_is_laid_out_as_its_source_says() {
        let page = |k: u64| Range { from: k, to: 100 + k, len: 5000 + k as usize };
        let mut words = Vec::new();
        fill(&mut words, &[page(1), page(2), page(3)], 64);
        // u32 count, chunks; u64 from[64], to[64]; u32 bytes[64].
        assert_eq!(words.len() * 8, 8 + 64 * 8 + 64 * 8 + 64 * 4);
        assert_eq!((words[0] as u32, words[0] >> 32), (3, 2));
        assert_eq!((words[1], words[3], words[65], words[67]), (1, 3, 101, 103));
        assert_eq!((words[129], words[130]), (5001 | 5002 << 32, 5003));
    }
}

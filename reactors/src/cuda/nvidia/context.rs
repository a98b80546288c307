//! A device in use: its primary context, which other libraries of the process share, the kernels,
//! and a stream for copies that are waited for.

use std::ffi::CString;
use std::sync::{Arc, Mutex, PoisonError};

use cudarc::driver::sys::{
    self, CUcontext, CUfunction, CUstream, CUstream_flags, CUstreamCaptureMode,
};

use super::call::call;
use crate::cuda::driver::{DeviceFacts, Failure};

/// The kernels of either form, by how many pages each takes, as `pages.cu` names them.
const KERNELS: [usize; 4] = [64, 256, 1024, 1600];

/// In what form a kernel is told of its pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// As ranges.
    Pages,
    /// As distances, of one length.
    Even,
}

/// A device in use.
#[derive(Debug, Clone)]
pub(super) struct Context {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    context: CUcontext,
    kernels: Vec<Kernel>,
    /// For copies that are waited for, one at a time.
    copies: Mutex<CUstream>,
}

/// A kernel that takes at most so many pages.
#[derive(Debug, Clone, Copy)]
pub(super) struct Kernel {
    form: Form,
    pub(super) pages: usize,
    pub(super) function: CUfunction,
}

// SAFETY: handles of the driver's, which any thread may use; the stream is used under its lock.
unsafe impl Send for Inner {}
// SAFETY: as above.
unsafe impl Sync for Inner {}

/// The context is the thread's current one for as long as this lives; what was before comes back.
pub(super) struct Current {
    /// What another thread's capture of a graph forbade this one before.
    capture: CUstreamCaptureMode,
}

impl Context {
    pub(super) fn new(facts: &DeviceFacts) -> Result<Self, Failure> {
        let mut context = std::ptr::null_mut();
        call!(cuDevicePrimaryCtxRetain(&raw mut context, facts.ordinal as i32))?;
        let _current = enter(context)?;
        let kernels = kernels()?;
        let copies = Mutex::new(stream()?);
        Ok(Self { inner: Arc::new(Inner { context, kernels, copies }) })
    }

    /// Makes it the thread's current context. The one before may be somebody else's.
    pub(super) fn enter(&self) -> Result<Current, Failure> {
        enter(self.inner.context)
    }

    /// The driver's own handle, for calls that name another context than the current one.
    pub(super) fn raw(&self) -> CUcontext {
        self.inner.context
    }

    /// The smallest kernel that takes so many pages in this form.
    pub(super) fn kernel(&self, form: Form, pages: usize) -> Result<Kernel, Failure> {
        let takes = |kernel: &&Kernel| kernel.form == form && kernel.pages >= pages;
        let missing = || Failure::refused("cuLaunchKernel", "more pages than one launch takes");
        self.inner.kernels.iter().find(takes).copied().ok_or_else(missing)
    }

    /// Copies, and waits for the end.
    ///
    /// # Safety
    /// As [`crate::cuda::Driver::copy`].
    pub(super) unsafe fn copy(&self, from: u64, to: u64, len: usize) -> Result<(), Failure> {
        let _current = self.enter()?;
        let stream = self.inner.copies.lock().unwrap_or_else(PoisonError::into_inner);
        // Both ranges are alive, by the caller's promise, and waited for here.
        call!(cuMemcpyAsync(to, from, len, *stream))?;
        call!(cuStreamSynchronize(*stream))
    }
}

fn enter(context: CUcontext) -> Result<Current, Failure> {
    call!(cuCtxPushCurrent_v2(context))?;
    let mut current = Current { capture: CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED };
    current.exchange()?;
    Ok(current)
}

impl Current {
    /// While any thread captures a graph, calls as ours are refused to all that aren't relaxed, and
    /// spoil its graph. Ours touch no stream that is captured.
    fn exchange(&mut self) -> Result<(), Failure> {
        call!(cuThreadExchangeStreamCaptureMode(&raw mut self.capture))
    }
}

impl Drop for Current {
    fn drop(&mut self) {
        // Both can fail only where nothing was exchanged or pushed.
        let _: Result<(), Failure> = self.exchange();
        let mut context = std::ptr::null_mut();
        let _: Result<(), Failure> = call!(cuCtxPopCurrent_v2(&raw mut context));
    }
}

/// A stream of the current context that waits for no other.
pub(super) fn stream() -> Result<CUstream, Failure> {
    let mut stream = std::ptr::null_mut();
    call!(cuStreamCreate(&raw mut stream, CUstream_flags::CU_STREAM_NON_BLOCKING as u32))?;
    Ok(stream)
}

/// Loads the kernels into the current context, which compiles them for its device.
fn kernels() -> Result<Vec<Kernel>, Failure> {
    let text = CString::new(include_str!("../pages.ptx"))
        .map_err(|_| Failure::refused("cuModuleLoadData", "the kernel's text has a NUL"))?;
    let mut module = std::ptr::null_mut();
    // A NUL-terminated text, which the driver only reads.
    call!(cuModuleLoadData(&raw mut module, text.as_ptr().cast()))?;
    let forms = [Form::Pages, Form::Even].into_iter();
    let kernels = forms.flat_map(|form| KERNELS.map(|pages| (form, pages)));
    kernels.map(|(form, pages)| kernel(module, form, pages)).collect()
}

fn kernel(module: sys::CUmodule, form: Form, pages: usize) -> Result<Kernel, Failure> {
    let form_name = match form {
        Form::Pages => "pages",
        Form::Even => "even",
    };
    let name = CString::new(format!("{form_name}_{pages}")).unwrap_or_default();
    let mut function = std::ptr::null_mut();
    call!(cuModuleGetFunction(&raw mut function, module, name.as_ptr()))?;
    Ok(Kernel { form, pages, function })
}

//! Calls of the driver, whose answers become results.

use std::ffi::CStr;
use std::os::raw::c_char;
use std::sync::Arc;

use cudarc::driver::sys::{self, CUresult};

use crate::cuda::driver::{Failure, FailureKind};

/// Calls a function of the driver by its name.
macro_rules! call {
    ($function:ident ( $($argument:expr),* $(,)? )) => {{
        // SAFETY: the arguments are of the types that the driver's header gives; pointers are to
        // locals that outlive the call, and handles came from the driver and are alive. Where a
        // call asks for more, it stands beside it.
        let result = unsafe { cudarc::driver::sys::$function($($argument),*) };
        crate::cuda::nvidia::call::checked(stringify!($function), result)
    }};
}
pub(super) use call;

pub(super) fn checked(call: &'static str, result: CUresult) -> Result<(), Failure> {
    match result {
        CUresult::CUDA_SUCCESS => Ok(()),
        result => Err(Failure { call, name: name(result), kind: kind(result) }),
    }
}

fn kind(result: CUresult) -> FailureKind {
    use CUresult as R;
    match result {
        R::CUDA_ERROR_OUT_OF_MEMORY => FailureKind::NoMemory,
        // After one of these the context answers nothing else, and everything of it has ended.
        R::CUDA_ERROR_ILLEGAL_ADDRESS
        | R::CUDA_ERROR_LAUNCH_FAILED
        | R::CUDA_ERROR_LAUNCH_TIMEOUT
        | R::CUDA_ERROR_MISALIGNED_ADDRESS
        | R::CUDA_ERROR_INVALID_ADDRESS_SPACE
        | R::CUDA_ERROR_ECC_UNCORRECTABLE
        | R::CUDA_ERROR_HARDWARE_STACK_ERROR
        | R::CUDA_ERROR_NVLINK_UNCORRECTABLE
        | R::CUDA_ERROR_INVALID_CONTEXT
        | R::CUDA_ERROR_CONTEXT_IS_DESTROYED
        | R::CUDA_ERROR_DEINITIALIZED
        | R::CUDA_ERROR_UNKNOWN => FailureKind::Lost,
        _ => FailureKind::Refused,
    }
}

fn name(result: CUresult) -> Arc<str> {
    let mut name = std::ptr::null();
    // SAFETY: the driver points `name` at a static text, or leaves it.
    let known = unsafe { sys::cuGetErrorName(result, &raw mut name) };
    match known {
        CUresult::CUDA_SUCCESS if !name.is_null() => {
            // SAFETY: a NUL-terminated text of the driver's own that is never freed.
            unsafe { CStr::from_ptr(name) }.to_string_lossy().into()
        }
        _ => format!("error {result:?}").into(),
    }
}

/// The text before the first NUL.
pub(super) fn text(chars: &[c_char]) -> String {
    let bytes: Vec<u8> =
        chars.iter().take_while(|char| **char != 0).map(|char| *char as u8).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

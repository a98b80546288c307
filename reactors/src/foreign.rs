//! Memory that its owner lends to a region: vouched for, never unmapped here.

use std::ptr::NonNull;

/// Memory that the caller owns and wants to register.
#[derive(Debug)]
pub struct Foreign {
    pub(crate) base: NonNull<u8>,
    pub(crate) len: usize,
}

impl Foreign {
    /// Vouches for `len` bytes at `base`.
    ///
    /// # Safety
    /// The bytes must be readable and writable, and stay so until the region made from them is
    /// gone: until `unregister` has returned, or the engine has stopped. Meanwhile no Rust
    /// reference to them may be in use, since peers may write them at any time.
    pub unsafe fn new(base: NonNull<u8>, len: usize) -> Self {
        Self { base, len }
    }
}

// SAFETY: `Foreign` is an address and a length; `new` made the caller vouch for the bytes
// wherever they are used from.
unsafe impl Send for Foreign {}

/// Foreign memory that is never freed, so that registering it takes no promise: for tests, and
/// for callers whose memory lives as long as their process.
#[derive(Debug, Clone, Copy)]
pub struct Eternal {
    base: NonNull<u8>,
    len: usize,
}

impl Eternal {
    /// Leaks `len` bytes, zeroed.
    pub fn new(len: usize) -> Self {
        let bytes = Box::leak(vec![0u8; len].into_boxed_slice());
        Self { base: NonNull::from_mut(bytes).cast(), len }
    }

    /// The memory, to be registered.
    pub fn foreign(&self) -> Foreign {
        // SAFETY: the bytes are never freed, and `new` gave its only reference to them up.
        unsafe { Foreign::new(self.base, self.len) }
    }

    /// Copies all bytes out, as they are now.
    pub fn contents(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.len];
        // SAFETY: the source is `len` bytes that are never freed; peers may change them meanwhile,
        // which mixes bytes and breaks nothing.
        unsafe {
            std::ptr::copy_nonoverlapping(self.base.as_ptr(), bytes.as_mut_ptr(), self.len);
        }
        bytes
    }
}

// SAFETY: an address and a length of memory that is never freed and only ever copied.
unsafe impl Send for Eternal {}
// SAFETY: as above.
unsafe impl Sync for Eternal {}

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

/// Memory of a GPU that the caller owns and wants to register: a range of what `cuMemAlloc`,
/// `cudaMalloc` or PyTorch's allocator gave.
#[derive(Debug)]
pub struct ForeignVram {
    pub(crate) device: u32,
    pub(crate) addr: u64,
    pub(crate) len: usize,
}

impl ForeignVram {
    /// Vouches for `len` bytes at the device pointer `addr` on the GPU of this number in this
    /// process (`cuda:N`).
    ///
    /// # Safety
    /// The range must stay allocated until `unregister` has returned for the region made from it;
    /// that the engine stopped is not enough, since peers of this host may have it open still.
    /// Meanwhile peers may write it at any time, so nobody may count on what it holds but by leases
    /// and events.
    pub unsafe fn new(device: u32, addr: u64, len: usize) -> Self {
        Self { device, addr, len }
    }

    /// The GPU's number in this process.
    pub fn device(&self) -> u32 {
        self.device
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
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

//! A protection domain: keys work only inside of theirs, so all shards share one a device.

use std::ptr::NonNull;
use std::sync::Arc;

use rdma_sys::ibv_pd;

use super::device::Device;
use super::library::VerbsError;

/// A protection domain of a device.
#[derive(Debug)]
pub struct Domain {
    pub(super) pd: NonNull<ibv_pd>,
    pub(super) device: Arc<Device>,
}

// SAFETY: a domain is a handle that any thread may use.
unsafe impl Send for Domain {}
// SAFETY: as above.
unsafe impl Sync for Domain {}

impl Domain {
    /// Another domain of `device`.
    ///
    /// # Errors
    /// What the kernel says: there are too many.
    pub fn new(device: Arc<Device>) -> Result<Arc<Self>, VerbsError> {
        // SAFETY: the device is open.
        let pd = NonNull::new(unsafe { (device.library.ibv_alloc_pd)(device.context.as_ptr()) });
        let pd = pd.ok_or_else(|| VerbsError::last("ibv_alloc_pd"))?;
        Ok(Arc::new(Self { pd, device }))
    }
}

impl Drop for Domain {
    fn drop(&mut self) {
        // SAFETY: whatever was made in it held it, and is gone.
        unsafe { (self.device.library.ibv_dealloc_pd)(self.pd.as_ptr()) };
    }
}

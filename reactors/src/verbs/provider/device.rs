//! An RDMA device that was opened: its ports, its addresses and what it reports by itself.

use std::ffi::{CStr, c_int};
use std::os::fd::BorrowedFd;
use std::ptr::{self, NonNull};
use std::sync::Arc;

use rdma_sys::{ibv_context, ibv_device, ibv_device_attr, ibv_event_type, ibv_gid, ibv_port_attr};

use super::library::{Library, VerbsError, library};
use super::{AsyncEvent, QpNumber};

/// The one port that a device of RoCE has.
pub(super) const PORT: u8 = 1;

/// A device's context. Whatever is made in it holds it.
pub struct Device {
    pub(super) context: NonNull<ibv_context>,
    pub(super) library: &'static Library,
    name: String,
    limits: Limits,
}

/// What a device can take.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Bytes of one registration.
    pub registration_bytes: u64,
    /// Work requests of one queue pair.
    pub work_requests: u32,
    /// Entries of one completion queue.
    pub completions: u32,
    /// READs under way that one queue pair serves, and that it asks for.
    pub reads: u8,
}

/// A port as it is now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortState {
    /// Whether it carries traffic.
    pub is_up: bool,
    /// Bytes of a packet's payload, as the enumeration of <infiniband/verbs.h> (3: 1024, 5: 4096).
    pub mtu: u32,
    /// Its address in an InfiniBand subnet; 0 on Ethernet.
    pub lid: u16,
    /// Entries of its table of GIDs.
    pub gids: u32,
}

/// An address of a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Gid(pub [u8; 16]);

// SAFETY: a context may be used by any thread (ibv_open_device(3): the library is thread-safe).
unsafe impl Send for Device {}
// SAFETY: as above.
unsafe impl Sync for Device {}

/// The devices of this host, as long as somebody looks at them.
struct List {
    library: &'static Library,
    first: *mut *mut ibv_device,
    len: usize,
}

impl List {
    fn new() -> Result<Self, VerbsError> {
        let library = library()?;
        let mut len: c_int = 0;
        // SAFETY: the library writes the length.
        let first = unsafe { (library.ibv_get_device_list)(&mut len) };
        match first.is_null() {
            true => Err(VerbsError::last("ibv_get_device_list")),
            false => Ok(Self { library, first, len: usize::try_from(len).unwrap_or(0) }),
        }
    }

    fn iter(&self) -> impl Iterator<Item = (String, *mut ibv_device)> {
        (0..self.len).map(|index| {
            // SAFETY: the list has so many entries, each a device with a name for as long as the
            // list lives.
            unsafe {
                let device = *self.first.add(index);
                let name = CStr::from_ptr((self.library.ibv_get_device_name)(device));
                (name.to_string_lossy().into_owned(), device)
            }
        })
    }
}

impl Drop for List {
    fn drop(&mut self) {
        // SAFETY: it came from ibv_get_device_list, once. Devices that were opened stay open.
        unsafe { (self.library.ibv_free_device_list)(self.first) };
    }
}

impl Device {
    /// The names of this host's devices.
    ///
    /// # Errors
    /// Unavailable without libibverbs or kernel support.
    pub fn names() -> Result<Vec<String>, VerbsError> {
        Ok(List::new()?.iter().map(|(name, _)| name).collect())
    }

    /// Opens the device of this name.
    ///
    /// # Errors
    /// Unavailable without libibverbs or kernel support; NoDevice; what the kernel says.
    pub fn open(name: &str) -> Result<Arc<Self>, VerbsError> {
        let list = List::new()?;
        let found = list.iter().find(|(found, _)| found == name);
        let (_, device) = found.ok_or_else(|| VerbsError::NoDevice(name.into()))?;
        let library = list.library;
        // SAFETY: the list, and with it the device, lives until the end of this function.
        let context = NonNull::new(unsafe { (library.ibv_open_device)(device) });
        let context = context.ok_or_else(|| VerbsError::last("ibv_open_device"))?;
        let limits = limits(library, context);
        let device = Self { context, library, name: name.into(), limits: limits? };
        // SAFETY: the context is open, and its descriptor with it.
        let fd = unsafe { BorrowedFd::borrow_raw(context.as_ref().async_fd) };
        set_nonblocking(fd)?;
        Ok(Arc::new(device))
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it can take.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Its port as it is now.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn port(&self) -> Result<PortState, VerbsError> {
        // SAFETY: plain numbers, for all of which zero is a value.
        let mut port: ibv_port_attr = unsafe { std::mem::zeroed() };
        // SAFETY: the context is open; the function fills in a prefix of the structure.
        let code = unsafe { (self.library.ibv_query_port)(self.context.as_ptr(), PORT, &mut port) };
        VerbsError::check("ibv_query_port", code)?;
        Ok(PortState {
            is_up: port.state == rdma_sys::ibv_port_state::IBV_PORT_ACTIVE,
            mtu: port.active_mtu,
            lid: port.lid,
            gids: u32::try_from(port.gid_tbl_len).unwrap_or(0),
        })
    }

    /// One entry of its port's table of addresses.
    ///
    /// # Errors
    /// What the kernel says: there is no such entry.
    pub fn gid(&self, index: u8) -> Result<Gid, VerbsError> {
        let mut gid = ibv_gid { raw: [0; 16] };
        let (context, index) = (self.context.as_ptr(), c_int::from(index));
        // SAFETY: the context is open; the function writes 16 bytes.
        let code = unsafe { (self.library.ibv_query_gid)(context, PORT, index, &mut gid) };
        VerbsError::check("ibv_query_gid", code)?;
        // SAFETY: either view of the union is 16 plain bytes.
        Ok(Gid(unsafe { gid.raw }))
    }

    /// Readable when [`Device::events`] has something to tell.
    pub fn event_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the context, and its descriptor with it, is open for as long as the device lives.
        unsafe { BorrowedFd::borrow_raw(self.context.as_ref().async_fd) }
    }

    /// What it has reported since the last look.
    pub fn events(&self) -> Vec<AsyncEvent> {
        std::iter::from_fn(|| self.next_event()).flatten().collect()
    }

    /// The next report; an inner none for one that means nothing here.
    fn next_event(&self) -> Option<Option<AsyncEvent>> {
        // SAFETY: a pointer and a number, for both of which zero is a value.
        let mut event: rdma_sys::ibv_async_event = unsafe { std::mem::zeroed() };
        // SAFETY: the context is open and its descriptor doesn't block.
        if unsafe { (self.library.ibv_get_async_event)(self.context.as_ptr(), &mut event) } != 0 {
            return None;
        }
        let known = match event.event_type {
            ibv_event_type::IBV_EVENT_PORT_ACTIVE => Some(AsyncEvent::PortUp),
            ibv_event_type::IBV_EVENT_PORT_ERR | ibv_event_type::IBV_EVENT_DEVICE_FATAL => {
                Some(AsyncEvent::PortDown)
            }
            ibv_event_type::IBV_EVENT_QP_ACCESS_ERR
            | ibv_event_type::IBV_EVENT_QP_REQ_ERR
            | ibv_event_type::IBV_EVENT_QP_FATAL => {
                // SAFETY: reports of these kinds name a queue pair, which is not destroyed before
                // its reports are acknowledged (ibv_destroy_qp(3) waits for that).
                let number = unsafe { (*event.element.qp).qp_num };
                Some(AsyncEvent::AccessViolated(QpNumber(number)))
            }
            _ => None,
        };
        // SAFETY: it came from ibv_get_async_event, and is acknowledged once.
        unsafe { (self.library.ibv_ack_async_event)(&mut event) };
        Some(known)
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        // SAFETY: whatever was made in it held it, and is gone.
        unsafe { (self.library.ibv_close_device)(self.context.as_ptr()) };
    }
}

impl std::fmt::Debug for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Device({})", self.name)
    }
}

/// A number that isn't negative, capped.
fn count(value: c_int, most: u32) -> u32 {
    u32::try_from(value).unwrap_or(0).min(most)
}

fn limits(library: &Library, context: NonNull<ibv_context>) -> Result<Limits, VerbsError> {
    // SAFETY: plain numbers and bytes, for all of which zero is a value.
    let mut found: ibv_device_attr = unsafe { std::mem::zeroed() };
    // SAFETY: the context is open; the function fills in the structure.
    let code = unsafe { (library.ibv_query_device)(context.as_ptr(), ptr::from_mut(&mut found)) };
    VerbsError::check("ibv_query_device", code)?;
    Ok(Limits {
        registration_bytes: found.max_mr_size,
        work_requests: count(found.max_qp_wr, u32::MAX),
        completions: count(found.max_cqe, u32::MAX),
        reads: count(found.max_qp_rd_atom, u32::from(u8::MAX)) as u8,
    })
}

/// Reading from it never waits.
pub(super) fn set_nonblocking(fd: BorrowedFd<'_>) -> Result<(), VerbsError> {
    rustix::io::ioctl_fionbio(fd, true)
        .map_err(|error| VerbsError::System { what: "FIONBIO", source: error.into() })
}

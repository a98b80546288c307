//! An RDMA device that was opened: its ports, its addresses and what it reports by itself.

use std::ffi::{CStr, c_int};
use std::os::fd::BorrowedFd;
use std::ptr::{self, NonNull};
use std::sync::Arc;

use rdma_sys::{ibv_context, ibv_device, ibv_device_attr, ibv_gid, ibv_port_attr};

use super::AsyncEvent;
use super::events::next_event;
use super::library::{Library, VerbsError, library};

/// The one port that a device of RoCE has.
pub(super) const PORT: u8 = 1;

/// A device's context. Whatever is made in it holds it.
pub struct Device {
    pub(super) context: NonNull<ibv_context>,
    pub(super) library: &'static Library,
    name: String,
    vendor: u32,
    part: u32,
    limits: Limits,
}

/// Vendors of NICs that are made of software: soft-RoCE's is the highest OUI
/// (`RXE_VENDOR_ID`, drivers/infiniband/sw/rxe/rxe_param.h), soft-iWARP's three letters of its
/// author's (`SIW_VENDOR_ID`, drivers/infiniband/sw/siw/siw.h).
const SOFTWARE_VENDORS: [u32; 2] = [0xff_ffff, 0x62_6d74];

/// What a device can take.
#[derive(Debug, Clone, Copy, Default)]
pub struct Limits {
    /// Bytes of one registration.
    pub registration_bytes: u64,
    /// Work requests of one queue pair.
    pub work_requests: u32,
    /// Entries of one completion queue.
    pub completions: u32,
    /// READs under way that one queue pair asks for, and that it serves: the smaller of both.
    pub reads: u8,
    /// Queue pairs of all processes together.
    pub queue_pairs: u32,
    /// Receives of one shared queue; 0 where it has no such queues.
    pub shared_receives: u32,
    /// Pieces of memory of one work request.
    pub pieces: u32,
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
    /// Bytes of one work request.
    pub message_bytes: u32,
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
        let mut device = Self {
            context,
            library,
            name: name.into(),
            vendor: 0,
            part: 0,
            limits: Limits::default(),
        };
        device.learn()?;
        // SAFETY: the context is open, and its descriptor with it.
        let fd = unsafe { BorrowedFd::borrow_raw(context.as_ref().async_fd) };
        set_nonblocking(fd)?;
        Ok(Arc::new(device))
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Who made it, as the registry of OUIs names them.
    pub fn vendor(&self) -> u32 {
        self.vendor
    }

    /// Which of its vendor's devices it is.
    pub fn part(&self) -> u32 {
        self.part
    }

    /// Whether it is made of software. This decides two things. Behind an invalidated window such a
    /// device may still be storing the packet that it had looked the window up for (measured on
    /// soft-RoCE: 1 time in 1,200), so there only the end of the queue pair takes a permission
    /// back. And it is slower than TCP, so nobody gets one who doesn't name it.
    pub fn is_software(&self) -> bool {
        SOFTWARE_VENDORS.contains(&self.vendor)
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
            message_bytes: port.max_msg_sz,
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

    /// What it has reported since the last look. Each report comes once, whoever asks, and concerns
    /// all shards: so one watcher asks, and tells every shard's [`Nic`](super::Nic::told). Behind
    /// [`AsyncEvent::DeviceFatal`] nothing more comes, and [`Device::event_fd`] stays readable.
    pub fn events(&self) -> Vec<AsyncEvent> {
        std::iter::from_fn(|| next_event(self)).flatten().collect()
    }

    /// Asks for what never changes.
    fn learn(&mut self) -> Result<(), VerbsError> {
        // SAFETY: plain numbers and bytes, for all of which zero is a value.
        let mut found: ibv_device_attr = unsafe { std::mem::zeroed() };
        let (query, context) = (self.library.ibv_query_device, self.context.as_ptr());
        // SAFETY: the context is open; the function fills in the structure.
        let code = unsafe { query(context, ptr::from_mut(&mut found)) };
        VerbsError::check("ibv_query_device", code)?;
        (self.vendor, self.part) = (found.vendor_id, found.vendor_part_id);
        let reads = found.max_qp_rd_atom.min(found.max_qp_init_rd_atom);
        self.limits = Limits {
            registration_bytes: found.max_mr_size,
            work_requests: count(found.max_qp_wr),
            completions: count(found.max_cqe),
            reads: u8::try_from(count(reads)).unwrap_or(u8::MAX),
            queue_pairs: count(found.max_qp),
            shared_receives: count(found.max_srq_wr),
            pieces: count(found.max_sge),
        };
        Ok(())
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

/// A number that isn't negative.
fn count(value: c_int) -> u32 {
    u32::try_from(value).unwrap_or(0)
}

/// Reading from it never waits.
pub(super) fn set_nonblocking(fd: BorrowedFd<'_>) -> Result<(), VerbsError> {
    rustix::io::ioctl_fionbio(fd, true)
        .map_err(|error| VerbsError::System { what: "FIONBIO", source: error.into() })
}

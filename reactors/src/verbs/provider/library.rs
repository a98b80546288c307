//! libibverbs, looked up when RDMA is first asked for, so that one binary runs with and without
//! it. Types and inline operations come from rdma-sys; its exported functions would have to be
//! linked, and are resolved here.

use std::ffi::{c_char, c_int, c_uint, c_void};
use std::io;
use std::sync::OnceLock;

use rdma_sys::{
    ibv_async_event, ibv_comp_channel, ibv_context, ibv_cq, ibv_device, ibv_device_attr, ibv_gid,
    ibv_mr, ibv_pd, ibv_port_attr, ibv_qp, ibv_qp_attr, ibv_qp_init_attr, ibv_srq,
    ibv_srq_init_attr,
};

use crate::cuda::Failure;

/// Its name since 2006.
const SONAME: &str = "libibverbs.so.1";

/// Why something of verbs did not work.
#[derive(Debug, thiserror::Error)]
pub enum VerbsError {
    /// There is no RDMA here.
    #[error("no RDMA: {0}")]
    Unavailable(String),
    /// No device has this name.
    #[error("no RDMA device {0}; `ls /sys/class/infiniband` names them")]
    NoDevice(String),
    /// The library is older than registering a GPU's memory.
    #[error("libibverbs has no {0}: install that of rdma-core 34 or later")]
    TooOld(&'static str),
    /// The GPU's driver gives this memory to no other device.
    #[error("the GPU's driver gives it to no NIC: {0}")]
    Vram(Failure),
    /// The library, or the kernel behind it, said no.
    #[error("{what}")]
    System {
        /// What was asked.
        what: &'static str,
        /// What it said.
        #[source]
        source: io::Error,
    },
}

impl VerbsError {
    /// What the last call has left in `errno`.
    pub(super) fn last(what: &'static str) -> Self {
        Self::System { what, source: io::Error::last_os_error() }
    }

    /// From what a call returned: 0 or an error number.
    pub(super) fn check(what: &'static str, code: c_int) -> Result<(), Self> {
        match code {
            0 => Ok(()),
            code => Err(Self::System { what, source: io::Error::from_raw_os_error(code.abs()) }),
        }
    }
}

/// Registers memory of this process: its address, its length, the address that work requests name
/// it by, and who may do what.
pub(super) type RegisterHost =
    unsafe extern "C" fn(*mut ibv_pd, *mut c_void, usize, u64, c_uint) -> *mut ibv_mr;

/// Registers memory of another device: its offset in a descriptor, its length, the address that
/// work requests name it by, the descriptor, and who may do what.
pub(super) type RegisterDmaBuf =
    unsafe extern "C" fn(*mut ibv_pd, u64, usize, u64, c_int, c_int) -> *mut ibv_mr;

macro_rules! library {
    ($($(#[$doc:meta])* $name:ident: fn($($arg:ty),*) $(-> $ret:ty)?;)*) => {
        /// The functions that are called here.
        pub(super) struct Library {
            $($(#[$doc])* pub(super) $name: unsafe extern "C" fn($($arg),*) $(-> $ret)?,)*
            /// Since rdma-core 34 (symbol version IBVERBS_1.12).
            pub(super) ibv_reg_dmabuf_mr: Option<RegisterDmaBuf>,
            _handle: libloading::Library,
        }

        impl Library {
            fn load() -> Result<Self, libloading::Error> {
                // SAFETY: its initializer reads configuration and registers providers; it is
                // loaded once, and never unloaded, since the result is kept for ever.
                let handle = unsafe { libloading::Library::new(SONAME) }?;
                Ok(Self {
                    $(
                        // SAFETY: the signatures are those of <infiniband/verbs.h>, whose ABI the
                        // library has kept since its symbol version IBVERBS_1.1.
                        $name: *unsafe { handle.get(concat!(stringify!($name), "\0").as_bytes()) }?,
                    )*
                    // SAFETY: as above; what was loaded stays for ever.
                    ibv_reg_dmabuf_mr: unsafe { handle.get(b"ibv_reg_dmabuf_mr\0") }
                        .ok()
                        .map(|found| *found),
                    _handle: handle,
                })
            }
        }
    };
}

library! {
    ibv_get_device_list: fn(*mut c_int) -> *mut *mut ibv_device;
    ibv_free_device_list: fn(*mut *mut ibv_device);
    ibv_get_device_name: fn(*mut ibv_device) -> *const c_char;
    ibv_open_device: fn(*mut ibv_device) -> *mut ibv_context;
    ibv_close_device: fn(*mut ibv_context) -> c_int;
    ibv_query_device: fn(*mut ibv_context, *mut ibv_device_attr) -> c_int;
    /// Fills in the first fields only, up to `link_layer`.
    ibv_query_port: fn(*mut ibv_context, u8, *mut ibv_port_attr) -> c_int;
    ibv_query_gid: fn(*mut ibv_context, u8, c_int, *mut ibv_gid) -> c_int;
    ibv_get_async_event: fn(*mut ibv_context, *mut ibv_async_event) -> c_int;
    ibv_ack_async_event: fn(*mut ibv_async_event);
    ibv_alloc_pd: fn(*mut ibv_context) -> *mut ibv_pd;
    ibv_dealloc_pd: fn(*mut ibv_pd) -> c_int;
    ibv_reg_mr_iova2: fn(*mut ibv_pd, *mut c_void, usize, u64, c_uint) -> *mut ibv_mr;
    ibv_dereg_mr: fn(*mut ibv_mr) -> c_int;
    ibv_create_comp_channel: fn(*mut ibv_context) -> *mut ibv_comp_channel;
    ibv_destroy_comp_channel: fn(*mut ibv_comp_channel) -> c_int;
    ibv_create_cq:
        fn(*mut ibv_context, c_int, *mut c_void, *mut ibv_comp_channel, c_int) -> *mut ibv_cq;
    ibv_destroy_cq: fn(*mut ibv_cq) -> c_int;
    ibv_get_cq_event: fn(*mut ibv_comp_channel, *mut *mut ibv_cq, *mut *mut c_void) -> c_int;
    ibv_ack_cq_events: fn(*mut ibv_cq, c_uint);
    ibv_create_srq: fn(*mut ibv_pd, *mut ibv_srq_init_attr) -> *mut ibv_srq;
    ibv_destroy_srq: fn(*mut ibv_srq) -> c_int;
    ibv_create_qp: fn(*mut ibv_pd, *mut ibv_qp_init_attr) -> *mut ibv_qp;
    ibv_modify_qp: fn(*mut ibv_qp, *mut ibv_qp_attr, c_int) -> c_int;
    ibv_query_qp: fn(*mut ibv_qp, *mut ibv_qp_attr, c_int, *mut ibv_qp_init_attr) -> c_int;
    ibv_destroy_qp: fn(*mut ibv_qp) -> c_int;
}

/// The library.
///
/// # Errors
/// Unavailable, with what is missing and the Debian packages that bring it.
pub(super) fn library() -> Result<&'static Library, VerbsError> {
    static LIBRARY: OnceLock<Result<Library, String>> = OnceLock::new();
    let loaded = LIBRARY.get_or_init(|| Library::load().map_err(|error| error.to_string()));
    loaded.as_ref().map_err(|error| {
        VerbsError::Unavailable(format!("{error}; install libibverbs1 and ibverbs-providers"))
    })
}

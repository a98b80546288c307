//! GPUs: memory that lives on them, and the reactor that copies into, out of and between it.
//!
//! One binary starts with and without a GPU: the driver's library is looked up when VRAM is first
//! asked for, and [`Gpus::driver`] says why there is none. Nothing is initialised before that,
//! since a context costs hundreds of megabytes of the GPU's memory.
//!
//! - [`driver`]: what a GPU's driver is asked for, in a dozen functions
//! - `nvidia`: the real one (feature `cuda`); `fake`: one that keeps "VRAM" in memfds, with faults
//! - `memory`: an allocation, freed when nobody holds it; `opened`: those of other processes that
//!   are open here; `outside`: what the caller's own code does with a GPU, for tests and examples
//! - `landing`: what sockets bring, brought to its places
//! - `plan`: pure, ranges → launches; `even`: pages of one length, in short; `crossover`: what of
//!   them is the copy engine's; `calibrate`: measures that
//! - `pages`: launches and their memory; `reactor`, `line`: launches under way
//!
//! A device's address is never read or written by this process: host copies of VRAM go through its
//! driver, and a system call that is given one fails with `EFAULT`.

pub mod calibrate;
pub mod crossover;
pub mod driver;
mod even;
#[cfg(feature = "sim")]
pub mod fake;
mod landing;
mod line;
mod memory;
#[cfg(feature = "cuda")]
mod nvidia;
#[cfg(any(test, feature = "cuda", feature = "sim"))]
mod opened;
#[cfg(feature = "sim")]
pub mod outside;
mod pages;
pub mod plan;
mod reactor;

use std::fmt;
use std::sync::{Arc, OnceLock};

pub use self::driver::{DeviceFacts, Driver, Event, Failure};
pub use self::even::Places;
pub use self::landing::Landing;
pub(crate) use self::memory::Pin;
pub use self::memory::{DeviceMemory, DmaBuf, Export, Shared};
pub use self::pages::{PageList, Pages};
pub use self::reactor::{Cuda, Group, GroupDone, Order, Recorded, SM_BUDGET};

/// Why this process has no VRAM.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct NoGpus(Arc<str>);

impl NoGpus {
    #[cfg_attr(not(feature = "cuda"), expect(dead_code, reason = "only a real driver fails so"))]
    pub(crate) fn new(why: impl Into<Arc<str>>) -> Self {
        Self(why.into())
    }
}

/// Where a process gets its GPUs' driver from, once it needs it.
#[derive(Clone, Default)]
pub struct Gpus(Kind);

#[derive(Clone, Default)]
enum Kind {
    /// The system's, one for the process.
    #[default]
    System,
    /// None, for a reason.
    Off(Arc<str>),
    /// This one.
    Given(Arc<dyn Driver>),
}

impl Gpus {
    /// No VRAM, for a reason.
    pub fn off(why: impl Into<Arc<str>>) -> Self {
        Self(Kind::Off(why.into()))
    }

    /// This driver's, for tests.
    pub fn given(driver: Arc<dyn Driver>) -> Self {
        Self(Kind::Given(driver))
    }

    /// The driver. The first call for the system's loads and initialises it, which takes a while.
    ///
    /// # Errors
    /// Why there is none.
    pub fn driver(&self) -> Result<Arc<dyn Driver>, NoGpus> {
        match &self.0 {
            Kind::System => system().clone(),
            Kind::Off(why) => Err(NoGpus(why.clone())),
            Kind::Given(driver) => Ok(driver.clone()),
        }
    }
}

impl fmt::Debug for Gpus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            Kind::System => "Gpus(system)",
            Kind::Off(_) => "Gpus(off)",
            Kind::Given(_) => "Gpus(given)",
        })
    }
}

fn system() -> &'static Result<Arc<dyn Driver>, NoGpus> {
    static SYSTEM: OnceLock<Result<Arc<dyn Driver>, NoGpus>> = OnceLock::new();
    SYSTEM.get_or_init(open)
}

#[cfg(feature = "cuda")]
fn open() -> Result<Arc<dyn Driver>, NoGpus> {
    Ok(Arc::new(nvidia::Nvidia::open()?))
}

#[cfg(not(feature = "cuda"))]
fn open() -> Result<Arc<dyn Driver>, NoGpus> {
    Err(NoGpus(Arc::from("this build has no VRAM: build it with the feature `cuda`")))
}

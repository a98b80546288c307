//! The driver of NVIDIA's GPUs, looked up at run time: devices, memory that other processes can
//! map, and copies that are waited for. Streams of launches are in `stream`, others' memory in
//! `foreign`.

mod arguments;
mod call;
mod context;
mod foreign;
mod memory;
#[cfg(feature = "sim")]
mod outside;
mod stream;

use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use cudarc::driver::sys::{self, CUdevice_attribute};

use self::call::{call, text};
use self::context::Context;
use self::stream::NvidiaStream;
use super::NoGpus;
use super::crossover::Crossovers;
use super::driver::{Allocation, DeviceFacts, Driver, Failure, Holding, IpcHandle, Stream};
use super::opened::Opened;

/// NVIDIA's driver, initialised.
#[derive(Debug)]
pub(super) struct Nvidia {
    devices: Vec<DeviceFacts>,
    /// Each made when its device is first used: it costs some 500 MB there.
    contexts: Vec<OnceLock<Context>>,
    opened: Opened,
    /// Memory that this library did not allocate is used: contexts let each other in.
    has_foreign: AtomicBool,
    crossovers: Crossovers,
}

impl Nvidia {
    /// Finds the driver and its devices.
    ///
    /// # Errors
    /// There is none, or it has no devices: why.
    pub(super) fn open() -> Result<Self, NoGpus> {
        // SAFETY: loading the driver's library runs its initialisers, as any program that is linked
        // against it does.
        if !unsafe { sys::is_culib_present() } {
            return Err(NoGpus::new(
                "no libcuda.so.1 here: install NVIDIA's driver, or in a \
                                    container use its runtime (`--gpus all`)",
            ));
        }
        // SAFETY: the first call, as it asks for.
        call!(cuInit(0)).map_err(|failure| no_gpus(&failure))?;
        let count = count().map_err(|failure| no_gpus(&failure))?;
        let facts = |ordinal| facts(ordinal, count).map_err(|failure| no_gpus(&failure));
        let devices: Vec<_> = (0..count).map(facts).collect::<Result<_, _>>()?;
        if devices.is_empty() {
            return Err(NoGpus::new(
                "the driver has no GPU for this process: look at \
                                    CUDA_VISIBLE_DEVICES",
            ));
        }
        let contexts = devices.iter().map(|_| OnceLock::new()).collect();
        let (opened, has_foreign) = (Opened::default(), AtomicBool::new(false));
        let crossovers = Crossovers::new(devices.len());
        Ok(Self { devices, contexts, opened, has_foreign, crossovers })
    }

    fn context(&self, device: u32) -> Result<&Context, Failure> {
        let missing = || {
            let of = self.devices.len();
            Failure::refused("cuDeviceGet", format!("there is no GPU {device}, only {of}"))
        };
        let (context, facts) = self
            .contexts
            .get(device as usize)
            .zip(self.devices.get(device as usize))
            .ok_or_else(missing)?;
        // One that did not fit may fit later.
        if context.get().is_none() {
            let made = Context::new(facts)?;
            let made = context.get_or_init(|| made);
            // SeqCst pairs with `meet_foreign`: one of the two sees the other's store.
            if self.has_foreign.load(Ordering::SeqCst) {
                self.let_in()?;
            }
            return Ok(made);
        }
        context.get().ok_or_else(missing)
    }

    /// Memory that this library did not allocate is about to be used.
    fn meet_foreign(&self) -> Result<(), Failure> {
        match self.has_foreign.swap(true, Ordering::SeqCst) {
            true => Ok(()),
            false => self.let_in(),
        }
    }

    /// Lets each context that was made reach what others allocate in those that its device reaches.
    fn let_in(&self) -> Result<(), Failure> {
        let made = || self.devices.iter().zip(self.contexts.iter().map(OnceLock::get));
        for (facts, context) in made() {
            let Some(context) = context else { continue };
            let _current = context.enter()?;
            for (far, there) in made() {
                if let Some(there) = there.filter(|_| facts.reaches.contains(&far.ordinal)) {
                    foreign::reach(there.raw())?;
                }
            }
        }
        Ok(())
    }

    /// A context that exists already, else that of the first device that has one.
    fn any_context(&self) -> Result<&Context, Failure> {
        if let Some(made) = self.contexts.iter().find_map(OnceLock::get) {
            return Ok(made);
        }
        let rest = (1..self.devices.len()).map(|device| device as u32);
        rest.fold(self.context(0), |found, device| found.or_else(|_| self.context(device)))
    }
}

impl Driver for Nvidia {
    fn devices(&self) -> &[DeviceFacts] {
        &self.devices
    }

    fn crossovers(&self) -> &Crossovers {
        &self.crossovers
    }

    fn free_bytes(&self, device: u32) -> Result<u64, Failure> {
        let _current = self.context(device)?.enter()?;
        let (mut free, mut all) = (0, 0);
        call!(cuMemGetInfo_v2(&raw mut free, &raw mut all))?;
        Ok(free as u64)
    }

    fn allocate(&self, device: u32, len: usize) -> Result<Allocation, Failure> {
        let _current = self.context(device)?.enter()?;
        memory::allocate(&self.devices[device as usize], len)
    }

    fn export(&self, allocation: &Allocation) -> Result<OwnedFd, Failure> {
        let _current = self.any_context()?.enter()?;
        memory::export(allocation)
    }

    fn dma_buf(&self, device: u32, addr: u64, len: usize) -> Result<OwnedFd, Failure> {
        let _current = self.context(device)?.enter()?;
        memory::dma_buf(&self.devices[device as usize], addr, len)
    }

    fn import(&self, fd: BorrowedFd<'_>, bytes: usize) -> Result<Allocation, Failure> {
        let _current = self.any_context()?.enter()?;
        memory::import(&self.devices, fd, bytes)
    }

    unsafe fn free(&self, allocation: &Allocation) {
        let current = self.any_context().and_then(Context::enter);
        // SAFETY: the caller's promise.
        let freed = current.and_then(|_current| unsafe { memory::free(allocation) });
        // Whatever is left of a device that is lost goes with the process.
        let _: Result<(), Failure> = freed;
    }

    fn holding(&self, device: u32, addr: u64) -> Result<Holding, Failure> {
        // No other device's context, which would cost memory there.
        let _current = self.context(device)?.enter()?;
        match foreign::device(addr)? {
            held if held == device => {
                self.meet_foreign()?;
                foreign::holding(device, addr)
            }
            elsewhere => Ok(Holding { device: elsewhere, addr, bytes: 0, is_shareable: false }),
        }
    }

    fn share(&self, holding: &Holding) -> Result<IpcHandle, Failure> {
        let _current = self.context(holding.device)?.enter()?;
        foreign::share(holding)
    }

    fn open(&self, device: u32, handle: &IpcHandle) -> Result<Allocation, Failure> {
        let _current = self.context(device)?.enter()?;
        self.meet_foreign()?;
        self.opened.open(handle, || foreign::open(device, handle))
    }

    unsafe fn close(&self, handle: &IpcHandle) {
        self.opened.close(handle, |allocation| {
            // In the context that opened it. Whatever is left of a device that is lost goes with
            // the process.
            if let Ok(_current) = self.context(allocation.device).and_then(Context::enter) {
                foreign::close(allocation.addr);
            }
        });
    }

    #[cfg(feature = "sim")]
    fn outside(&self) -> &dyn super::outside::Outside {
        self
    }

    unsafe fn copy(&self, device: u32, from: u64, to: u64, len: usize) -> Result<(), Failure> {
        let context = self.context(device)?;
        // SAFETY: the caller's promise.
        unsafe { context.copy(from, to, len) }
    }

    unsafe fn pin(&self, addr: u64, len: usize, is_read_only: bool) -> Result<(), Failure> {
        let _current = self.any_context()?.enter()?;
        // SAFETY: the caller's promise.
        unsafe { memory::pin(addr, len, is_read_only) }
    }

    fn unpin(&self, addr: u64) {
        if let Ok(_current) = self.any_context().and_then(Context::enter) {
            memory::unpin(addr);
        }
    }

    fn stream(&self, device: u32) -> Result<Box<dyn Stream>, Failure> {
        Ok(Box::new(NvidiaStream::new(self.context(device)?.clone())?))
    }
}

fn no_gpus(failure: &Failure) -> NoGpus {
    NoGpus::new(format!("NVIDIA's driver does not work here ({failure}): does `nvidia-smi`?"))
}

fn count() -> Result<u32, Failure> {
    let mut count = 0;
    call!(cuDeviceGetCount(&raw mut count))?;
    Ok(u32::try_from(count).unwrap_or(0))
}

fn facts(ordinal: u32, count: u32) -> Result<DeviceFacts, Failure> {
    let mut device = 0;
    call!(cuDeviceGet(&raw mut device, ordinal as i32))?;
    // The driver's longest names are under 100 bytes; its own samples use 256.
    let (mut name, mut pci) = ([0; 256], [0; 16]);
    call!(cuDeviceGetName(name.as_mut_ptr(), name.len() as i32, device))?;
    call!(cuDeviceGetPCIBusId(pci.as_mut_ptr(), pci.len() as i32, device))?;
    let mut memory_bytes = 0;
    call!(cuDeviceTotalMem_v2(&raw mut memory_bytes, device))?;
    let mut uuid = MaybeUninit::<sys::CUuuid>::zeroed();
    call!(cuDeviceGetUuid_v2(uuid.as_mut_ptr(), device))?;
    // SAFETY: 16 bytes, for which any are good.
    let uuid = unsafe { uuid.assume_init() }.bytes.map(|byte| byte as u8);
    let mut multiprocessors = 0;
    let asked = CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT;
    call!(cuDeviceGetAttribute(&raw mut multiprocessors, asked, device))?;
    let others = (0..count).filter(|other| *other != ordinal);
    let reaches = others.filter(|other| reaches(device, *other)).collect();
    Ok(DeviceFacts {
        ordinal,
        name: text(&name),
        uuid,
        pci: text(&pci).to_lowercase(),
        memory_bytes: memory_bytes as u64,
        multiprocessors: u32::try_from(multiprocessors).unwrap_or(1),
        reaches,
    })
}

fn reaches(device: i32, other: u32) -> bool {
    let mut can = 0;
    let asked = call!(cuDeviceCanAccessPeer(&raw mut can, device, other as i32));
    asked.is_ok() && can != 0
}

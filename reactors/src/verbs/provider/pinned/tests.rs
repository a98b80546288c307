//! What the library is asked to register: of host memory, and of a GPU's that is made of a memfd.
//! The library is one of ours that writes down what it is told.

use std::cell::{Cell, RefCell};
use std::ptr;

use super::*;
use crate::cuda::fake::Fake;
use crate::cuda::outside::EternalVram;
use crate::cuda::{DeviceMemory, Export};

const BOTH: RemoteAccess = RemoteAccess { read: true, write: true };

#[derive(Debug, Clone, PartialEq, Eq)]
enum Asked {
    Host { addr: u64, len: usize, named: u64, access: u32 },
    DmaBuf { offset: u64, len: usize, named: u64, file: String, access: u32 },
    End(usize),
}

thread_local! {
    static ASKED: RefCell<Vec<Asked>> = const { RefCell::new(Vec::new()) };
    /// What errno says of the next registration, if it fails.
    static FAILS_WITH: Cell<Option<i32>> = const { Cell::new(None) };
}

fn asked() -> Vec<Asked> {
    ASKED.take()
}

/// A registration whose keys are its number.
fn answer(asked: Asked) -> *mut ibv_mr {
    let key = ASKED.with_borrow_mut(|all| {
        all.push(asked);
        all.len() as u32
    });
    if let Some(errno) = FAILS_WITH.get() {
        // SAFETY: errno is the thread's own.
        unsafe { *libc::__errno_location() = errno };
        return ptr::null_mut();
    }
    // SAFETY: pointers and numbers, for all of which zero is a value.
    let mr = ibv_mr { lkey: key, rkey: key + 100, ..unsafe { std::mem::zeroed() } };
    Box::into_raw(Box::new(mr))
}

unsafe extern "C" fn host(
    _: *mut ibv_pd,
    addr: *mut c_void,
    len: usize,
    named: u64,
    access: c_uint,
) -> *mut ibv_mr {
    answer(Asked::Host { addr: addr as u64, len, named, access })
}

unsafe extern "C" fn dma_buf(
    _: *mut ibv_pd,
    offset: u64,
    len: usize,
    named: u64,
    fd: c_int,
    access: c_int,
) -> *mut ibv_mr {
    let file = std::fs::read_link(format!("/proc/self/fd/{fd}")).unwrap();
    let (file, access) = (file.to_str().unwrap().to_owned(), access as u32);
    answer(Asked::DmaBuf { offset, len, named, file, access })
}

unsafe extern "C" fn end(mr: *mut ibv_mr) -> c_int {
    // SAFETY: one of `answer`'s, ended once.
    let mr = unsafe { Box::from_raw(mr) };
    ASKED.with_borrow_mut(|all| all.push(Asked::End(mr.lkey as usize)));
    0
}

const CALLS: Calls = Calls { host, dma_buf: Some(dma_buf), end };

fn gpus() -> Arc<Fake> {
    Arc::new(Fake::new(2, 1 << 20))
}

fn vram(fake: &Arc<Fake>, len: usize) -> Arc<Region> {
    let memory = DeviceMemory::allocate(fake.clone(), 1, len).unwrap();
    Arc::new(Region::on_device(memory, len).unwrap())
}

fn pin(source: &Source, range: (usize, usize), access: RemoteAccess) -> Result<Pinned, VerbsError> {
    // SAFETY: our library looks at no domain.
    unsafe { source.pin(ptr::null_mut(), range, access) }
}

fn bits(flags: &[ibv_access_flags]) -> u32 {
    flags.iter().fold(0, |all, flag| all | flag.0)
}

/// Of a device's memory, with leave for peers to do both.
fn of_device() -> u32 {
    bits(&[
        ibv_access_flags::IBV_ACCESS_LOCAL_WRITE,
        ibv_access_flags::IBV_ACCESS_REMOTE_WRITE,
        ibv_access_flags::IBV_ACCESS_REMOTE_READ,
        ibv_access_flags::IBV_ACCESS_RELAXED_ORDERING,
    ])
}

#[test]
fn host_memory_is_registered_at_its_address_and_taken_back_once() {
    let region = Arc::new(Region::allocate(8192, None).unwrap());
    let source = Source::new(CALLS, region.clone()).unwrap();
    let pinned = pin(&source, (4096, 100), BOTH).unwrap();
    let (addr, windows) = (region.addr() + 4096, bits(&[ibv_access_flags::IBV_ACCESS_MW_BIND]));
    let expected = Asked::Host { addr, len: 100, named: addr, access: of_device() | windows };
    assert_eq!(asked(), [expected]);
    assert_eq!(pinned.keys(), (1, 101));
    drop((source, region));
    assert_eq!(asked(), [], "it is held");
    drop(pinned);
    assert_eq!(asked(), [Asked::End(1)]);
}

#[test]
fn a_gpus_memory_is_registered_by_its_descriptor_under_its_own_address() {
    let fake = gpus();
    let region = vram(&fake, 100_000);
    let source = Source::new(CALLS, region.clone()).unwrap();
    let whole = fake.allocations();
    let reads = RemoteAccess { read: true, write: false };
    let pieces = [pin(&source, (0, 65_536), BOTH), pin(&source, (65_536, 34_464), reads)];
    let pieces = pieces.map(|piece| piece.unwrap());
    let file = "/memfd:kvrail-fake-gpu-1 (deleted)".to_owned();
    let no_writes = of_device() & !bits(&[ibv_access_flags::IBV_ACCESS_REMOTE_WRITE]);
    let piece = |offset: u64, len, access| {
        let (named, file) = (region.addr() + offset, file.clone());
        Asked::DmaBuf { offset, len, named, file, access }
    };
    assert_eq!(asked(), [piece(0, 65_536, of_device()), piece(65_536, 34_464, no_writes)]);
    // The fake's pages are 64 KiB; the region is named once for all of its pieces.
    assert_eq!(fake.dma_bufs(), [(region.addr(), 131_072)]);
    drop((source, region));
    assert_eq!(fake.allocations(), whole, "registered memory stays");
    drop(pieces);
    assert_eq!(asked(), [Asked::End(1), Asked::End(2)]);
    assert_eq!(fake.allocations(), 0);
}

#[test]
fn memory_of_others_is_named_by_the_pages_that_cover_it() {
    let fake = gpus();
    let theirs = EternalVram::new(fake.clone(), 1, 65_536, true).unwrap();
    let part = theirs.part(5_000, 6_000);
    let memory = DeviceMemory::foreign(fake.clone(), &part).unwrap();
    let region = Arc::new(Region::on_device(memory, 6_000).unwrap());
    let source = Source::new(CALLS, region.clone()).unwrap();
    let _pinned = pin(&source, (1_000, 2_000), BOTH).unwrap();
    assert_eq!(fake.dma_bufs(), [(theirs.addr() + 4_096, 8_192)]);
    let [Asked::DmaBuf { offset, len, named, .. }] = asked()[..] else { panic!("a dma-buf") };
    // The kernel wants both to lie alike in their pages.
    assert_eq!((offset, len, named), (1_904, 2_000, region.addr() + 1_000));
    assert_eq!(named % 4_096, offset % 4_096);
}

#[test]
fn another_processs_memory_is_not_ours_to_register() {
    let (owner, user) = (gpus(), gpus());
    let theirs = EternalVram::new(owner.clone(), 0, 65_536, true).unwrap();
    let memory = DeviceMemory::foreign(owner, &theirs.foreign()).unwrap();
    let Export::Handle(shared) = memory.export().unwrap() else { panic!("it has a handle") };
    let opened = DeviceMemory::open(user.clone(), &shared, ()).unwrap();
    let region = Arc::new(Region::on_device(opened, 65_536).unwrap());
    assert!(matches!(Source::new(CALLS, region), Err(VerbsError::Vram(_))));
    assert_eq!((asked(), user.dma_bufs()), (vec![], vec![]));
}

#[test]
fn a_library_without_the_call_says_which_has_it_and_keeps_host_memory() {
    let old = Calls { dma_buf: None, ..CALLS };
    let fake = gpus();
    let refused = Source::new(old, vram(&fake, 4096)).unwrap_err();
    assert!(matches!(refused, VerbsError::TooOld("ibv_reg_dmabuf_mr")), "{refused}");
    assert!(refused.to_string().contains("rdma-core 34"), "{refused}");
    assert_eq!((asked(), fake.dma_bufs(), fake.allocations()), (vec![], vec![], 0));
    let host = Source::new(old, Arc::new(Region::allocate(4096, None).unwrap())).unwrap();
    drop(pin(&host, (0, 4096), BOTH).unwrap());
    assert_eq!(asked().len(), 2);
}

#[test]
fn a_driver_or_a_nic_that_refuses_leaves_nothing_registered() {
    let fake = gpus();
    let region = vram(&fake, 4096);
    fake.break_with(|faults| faults.no_dma_buf = true);
    let refused = Source::new(CALLS, region.clone()).unwrap_err();
    assert!(matches!(refused, VerbsError::Vram(_)), "{refused}");
    assert!(refused.to_string().ends_with("it was asked to fail"), "{refused}");
    assert_eq!(asked(), []);
    fake.break_with(|faults| faults.no_dma_buf = false);
    let source = Source::new(CALLS, region).unwrap();
    FAILS_WITH.set(Some(libc::EOPNOTSUPP));
    let refused = pin(&source, (0, 4096), BOTH).unwrap_err();
    FAILS_WITH.set(None);
    let VerbsError::System { what: "ibv_reg_dmabuf_mr", source: why } = &refused else {
        panic!("{refused}")
    };
    assert_eq!(why.raw_os_error(), Some(libc::EOPNOTSUPP));
    drop(source);
    assert_eq!(asked().len(), 1, "what was not made is not taken back");
    assert_eq!(fake.allocations(), 0);
}

//! A thousand openings of memory between two engines leave nothing behind on either side: no memory
//! of a GPU's, no mapping, no pin and no descriptor. A test counts its process's, so it is alone in
//! that: by nextest, or in one thread.

use std::cell::RefCell;
use std::sync::Arc;
use std::time::Duration;

use kvrail::{Access, Engine, Location, PathKind, Peer, Region, RemoteBuffer};
use kvrail_reactors::cuda::Driver;
use kvrail_reactors::cuda::fake::Fake;
use kvrail_reactors::cuda::outside::EternalVram;

use super::child::{Child, Means};
use super::{
    buffer, contents, engine_on, fake, fill, is_real, pages, pattern, read, region, run, write,
};

/// Half of them in sessions of their own, half in one that stays.
const CYCLES: usize = 1_000;

/// The first ones start what stays: threads for mapping, queues that keep their room, a real
/// driver's own descriptors and memory.
const WARM_UP: usize = 20;

/// What a real driver may keep for itself, whose pages are of 2 MiB: one cycle in thirty that
/// leaked would be more.
const KEPT_BYTES: u64 = 64 << 20;

const LEN: usize = 64 << 10;
const PAGES: usize = 16;
const GPU: Location = Location::Cuda(0);

/// GPUs, and the fake if they aren't there.
fn gpus() -> (Arc<dyn Driver>, Option<Arc<Fake>>) {
    if is_real() {
        return (super::driver(), None);
    }
    let fake = fake();
    (fake.clone(), Some(fake))
}

/// What a process holds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Held {
    pub(crate) fds: usize,
    /// Of GPU 0, mapped memory of others' on a fake one too.
    pub(crate) used_bytes: u64,
}

impl Held {
    pub(crate) fn now(driver: &Arc<dyn Driver>) -> Self {
        let fds = std::fs::read_dir("/proc/self/fd").expect("proc").count();
        let free_bytes = driver.free_bytes(0).expect("a GPU");
        Self { fds, used_bytes: driver.devices()[0].memory_bytes - free_bytes }
    }

    fn is_within(&self, before: &Self) -> bool {
        let kept_bytes = if is_real() { KEPT_BYTES } else { 0 };
        self.fds <= before.fds && self.used_bytes <= before.used_bytes + kept_bytes
    }
}

/// Holds what was held before, as soon as what closes in the background had time to.
async fn leave_nothing<const SIDES: usize>(
    before: [Held; SIDES],
    mut now: impl FnMut() -> [Held; SIDES],
) {
    let mut held = now();
    for _ in 0..500 {
        if held.iter().zip(&before).all(|(now, before)| now.is_within(before)) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
        held = now();
    }
    panic!("{before:?} -> {held:?}");
}

/// Maps the far memory and shows the near one, by a read and a write.
async fn exchange(engine: &Engine, peer: &Peer, near: &Region, far: &RemoteBuffer) {
    let (bytes, pages) = (pattern(near.addr(), LEN), pages(PAGES, LEN / PAGES));
    fill(near, &bytes);
    engine.transfer(write(peer, near, far, &pages)).await.expect("a write");
    fill(near, &[0; LEN]);
    engine.transfer(read(peer, near, far, &pages)).await.expect("a read");
    assert!(contents(near) == bytes);
}

/// Cycles of an engine's with one of this name, each with a peer; then it holds what it did before.
async fn cycles<const SIDES: usize>(
    (engine, name): (&Engine, &str),
    mut held: impl FnMut() -> [Held; SIDES],
    mut cycle: impl AsyncFnMut(&Peer),
) {
    let kept = engine.open(name).await.expect("a peer");
    assert_eq!(kept.path(), PathKind::Host);
    for _ in 0..WARM_UP {
        cycle(&kept).await;
    }
    engine.close(kept).await.expect("closed");
    tokio::time::sleep(Duration::from_millis(200)).await;
    let before = held();
    for _ in 0..CYCLES / 2 {
        let peer = engine.open(name).await.expect("a peer");
        cycle(&peer).await;
        engine.close(peer).await.expect("closed");
    }
    leave_nothing(before, &mut held).await;
    let kept = engine.open(name).await.expect("a peer");
    cycle(&kept).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    let before = held();
    for _ in 0..CYCLES / 2 {
        cycle(&kept).await;
    }
    leave_nothing(before, held).await;
}

#[test]
fn a_thousand_openings_by_descriptors_leave_nothing_behind() {
    run(async {
        let ((ours, our_fake), (theirs, their_fake)) = (gpus(), gpus());
        let (a, b) = (engine_on(&ours, |builder| builder), engine_on(&theirs, |builder| builder));
        let held = || [Held::now(&ours), Held::now(&theirs)];
        cycles((&a, b.name()), held, async |peer| {
            let (near, far) = (region(&a, LEN, GPU), region(&b, LEN, GPU));
            exchange(&a, peer, &near, &buffer(&far)).await;
            b.unregister(far).await.expect("quiet");
            a.unregister(near).await.expect("quiet");
        })
        .await;
        for fake in our_fake.iter().chain(&their_fake) {
            assert_eq!((fake.allocations(), fake.opened(), fake.pins()), (0, 0, 0));
        }
    });
}

/// A process can't open its own handle, so the other side is another one.
#[test]
fn a_thousand_openings_by_handles_leave_nothing_behind() {
    run(async {
        let ((driver, fake), child) = (gpus(), RefCell::new(Child::start()));
        let engine = engine_on(&driver, |builder| builder);
        let memory = EternalVram::new(driver.clone(), 0, LEN, true).expect("memory");
        let name = child.borrow().name.clone();
        let far = child.borrow_mut().shown(Means::Handle);
        let held = || [Held::now(&driver), child.borrow_mut().held()];
        cycles((&engine, &name), held, async |peer| {
            let near = engine.register_vram(memory.foreign(), Access::READ_WRITE);
            let near = near.expect("a region");
            exchange(&engine, peer, &near, &far).await;
            child.borrow_mut().take_back();
            engine.unregister(near).await.expect("quiet");
        })
        .await;
        if let Some(fake) = fake {
            assert_eq!((fake.allocations(), fake.opened(), fake.pins()), (0, 0, 0));
        }
    });
}

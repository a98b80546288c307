//! Copies are timed when memory is first taken or reached, so that what is the copy engine's and
//! what the kernel's is told from this machine.

use std::sync::Arc;

use kvrail::{Access, Engine, Location, PathKind, Region};
use kvrail_reactors::cuda::Driver;
use kvrail_reactors::cuda::crossover::Way;
use kvrail_reactors::cuda::fake::Fake;
use kvrail_reactors::cuda::outside::EternalVram;

use super::{
    VRAM_BYTES, buffer, contents, driver, engine_on, fill, is_real, open, pages, pattern, read,
    region, run,
};

/// As much as a way is timed by.
const LEN: usize = 16 << 20;

/// GPUs of the machine, or ones that aren't there and are timed as if they were.
fn timed() -> Arc<dyn Driver> {
    match is_real() {
        true => driver(),
        false => Arc::new(Fake::new(2, VRAM_BYTES).measured()),
    }
}

#[test]
fn memory_that_is_taken_has_its_ways_timed() {
    run(async {
        let driver = timed();
        let engine = engine_on(&driver, |builder| builder);
        let found = |device, way| driver.crossovers().found(device, way);
        drop(region(&engine, LEN, Location::Cuda(0)));
        let memory = EternalVram::new(driver.clone(), 1, LEN, true).expect("memory");
        let registered = engine.register_vram(memory.foreign(), Access::READ_WRITE);
        let registered = registered.expect("a region");
        for device in [0, 1] {
            for way in [Way::SameGpu, Way::OtherGpu, Way::Host] {
                // What `--nocapture` shows of a real machine.
                println!("cuda:{device} {way}: {:?}", found(device, way));
                assert!(found(device, way).is_some(), "cuda:{device} {way}");
            }
        }
        engine.unregister(registered).await.expect("quiet");
        engine.stop().await;
    });
}

/// Reads a page out of a peer's memory, once that was mapped.
async fn reads(a: &Engine, b: &Engine, near: &Region, far: &Region) {
    let peer = open(a, b, PathKind::Host).await;
    let bytes = pattern(5, LEN);
    fill(far, &bytes);
    let whole = pages(1, LEN);
    a.transfer(read(&peer, near, &buffer(far), &whole)).await.expect("a read");
    assert!(contents(near) == bytes && contents(far) == bytes);
}

#[test]
fn a_peer_s_memory_has_its_way_timed() {
    // Of a real driver's there is one in a process, which knows the way already.
    if is_real() {
        return;
    }
    run(async {
        // By a descriptor it is there for all GPUs, so the target's copies; by a handle for its
        // own alone.
        for (copier, is_foreign) in [(0, false), (1, true)] {
            let (ours, theirs) = (timed(), timed());
            let (a, b) =
                (engine_on(&ours, |builder| builder), engine_on(&theirs, |builder| builder));
            let near = region(&a, LEN, Location::Cuda(0));
            let memory = EternalVram::new(theirs.clone(), 1, LEN, true).expect("memory");
            let far = match is_foreign {
                true => b.register_vram(memory.foreign(), Access::READ_WRITE).expect("a region"),
                false => region(&b, LEN, Location::Cuda(1)),
            };
            let found = || [0, 1].map(|copier| ours.crossovers().found(copier, Way::OtherGpu));
            assert_eq!(found(), [None, None]);
            reads(&a, &b, &near, &far).await;
            assert!(found()[copier].is_some() && found()[1 - copier].is_none());
            a.stop().await;
            b.stop().await;
        }
    });
}

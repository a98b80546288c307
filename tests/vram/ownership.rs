//! Memory in flight has an owner on a GPU, too: cancelled copies, regions that go. What is granted
//! and taken back is in the suite `grants`, which runs on GPUs as well.

use std::time::Duration;

use kvrail::{ErrorKind, Location, PathKind, Proof};
use kvrail_reactors::cuda::DeviceMemory;
use kvrail_reactors::cuda::driver::FailureKind;
use kvrail_reactors::cuda::outside::EternalVram;

use super::{
    buffer, driver, engine_with, fake, is_real, open, pages, read, region, run, shared, write,
};

const GPU: Location = Location::Cuda(0);

#[test]
fn a_cancelled_transfer_keeps_its_memory_until_the_gpu_is_done() {
    run(async {
        let fake = fake();
        let engine = engine_with(&fake);
        let (near, far) = (region(&engine, 1 << 20, GPU), region(&engine, 1 << 20, GPU));
        fake.break_with(|faults| faults.is_stalled = true);
        let batch = write(&engine.local(), &near, &buffer(&far), &pages(256, 4096));
        let transfer = engine.transfer(batch);
        tokio::time::sleep(Duration::from_millis(20)).await;
        let mut cancelled = std::pin::pin!(transfer.cancel());
        let early = tokio::time::timeout(Duration::from_millis(100), &mut cancelled).await;
        assert!(early.is_err(), "a GPU may still read and write");
        assert!(near.is_leased(0..1 << 20));
        fake.break_with(|faults| faults.is_stalled = false);
        let outcome = cancelled.await;
        assert_eq!(outcome.receipt().local(), Proof::Quiet);
        assert!(outcome.into_leases().into_iter().all(shared));
        assert!(!near.is_leased(0..1 << 20));
    });
}

#[test]
fn a_region_goes_when_the_gpu_is_done_with_it() {
    run(async {
        let (ours, theirs) = (fake(), fake());
        let (a, b) = (engine_with(&ours), engine_with(&theirs));
        let peer = open(&a, &b, PathKind::Host).await;
        let (near, far) = (region(&a, 1 << 20, GPU), region(&b, 1 << 20, GPU));
        let pages = pages(256, 4096);
        a.transfer(write(&peer, &near, &buffer(&far), &pages)).await.expect("a write");
        a.transfer(read(&peer, &near, &buffer(&far), &pages)).await.expect("a read");
        // What a GPU of the peer's is reading is no answer any more; nobody waits for it.
        ours.break_with(|faults| faults.is_stalled = true);
        let reading = a.transfer(read(&peer, &near, &buffer(&far), &pages));
        tokio::time::sleep(Duration::from_millis(20)).await;
        b.unregister(far.clone()).await.expect("quiet");
        ours.break_with(|faults| faults.is_stalled = false);
        let stale = reading.await.expect_err("it was taken back");
        assert_eq!(stale.error().kind(), ErrorKind::Stale);
        let near = region(&a, 1 << 20, GPU);
        let late = a.transfer(write(&peer, &near, &buffer(&far), &pages)).await;
        assert!(late.is_err());
    });
}

/// A GPU of several whose NICs' writes the others may read too early refuses, and says why.
#[test]
fn nics_get_our_own_memory_and_the_callers_as_it_lies_in_its_pages() {
    let driver = driver();
    let ours = DeviceMemory::allocate(driver.clone(), 0, 100_000).expect("memory");
    let theirs = EternalVram::new(driver.clone(), 0, 1 << 20, true).expect("memory");
    let part = DeviceMemory::foreign(driver.clone(), &theirs.part(5_000, 6_000)).expect("memory");
    for (memory, offset) in [(ours, 0), (part, 5_000 % 4_096)] {
        match memory.dma_buf() {
            Ok(given) => assert_eq!(given.offset, offset),
            Err(failure) => {
                assert!(is_real() && failure.kind == FailureKind::Refused, "{failure}");
                println!("{failure}");
            }
        }
    }
}

//! Memory of GPUs that the caller allocated, as PyTorch does: by every path, with and without an
//! IPC handle, and what is said where it is none.

use std::sync::Arc;
use std::time::Duration;

use kvrail::{Access, Engine, ErrorKind, Location, PathKind, Peer, Region};
use kvrail_reactors::cuda::fake::Fake;
use kvrail_reactors::cuda::outside::EternalVram;

use super::{
    buffer, contents, driver, engine_on, engine_with, fake, fill, open, pages, pattern, read, run,
    scattered, write,
};

const LEN: usize = 1 << 20;

/// Registers memory of a GPU's that somebody else allocated.
fn foreign(engine: &Engine, memory: &EternalVram) -> Region {
    engine.register_vram(memory.foreign(), Access::READ_WRITE).expect("a region")
}

fn vram(fake: &Arc<Fake>, device: u32, is_shareable: bool) -> EternalVram {
    EternalVram::new(fake.clone(), device, LEN, is_shareable).expect("memory")
}

/// Writes the near region's pages to the far one and reads them back.
async fn round(engine: &Engine, peer: &Peer, (near, far): (&Region, &Region)) {
    let (bytes, pages) = (pattern(1, LEN), pages(256, LEN / 256));
    fill(near, &bytes);
    engine.transfer(write(peer, near, &buffer(far), &pages)).await.expect("a write");
    assert!(contents(far) == scattered(&bytes, &pages));
    fill(near, &vec![0; LEN]);
    engine.transfer(read(peer, near, &buffer(far), &pages)).await.expect("a read");
    assert!(contents(near) == bytes);
}

#[test]
fn inside_one_engine_it_is_memory_as_any_other() {
    run(async {
        let driver = driver();
        let engine = engine_on(&driver, |builder| builder);
        for (is_shareable, far) in [(true, Location::Cuda(1)), (false, Location::Cuda(0))] {
            let memory = EternalVram::new(driver.clone(), 0, LEN, is_shareable).expect("memory");
            let near = foreign(&engine, &memory);
            assert_eq!((near.location(), near.len()), (Location::Cuda(0), LEN));
            for far in [far, Location::Cpu(None)] {
                let far = super::region(&engine, LEN, far);
                round(&engine, &engine.local(), (&near, &far)).await;
            }
            engine.unregister(near).await.expect("quiet");
        }
    });
}

#[test]
fn by_tcp_it_is_memory_as_any_other() {
    run(async {
        let (ours, theirs) = (driver(), driver());
        let tcp = |builder: kvrail::EngineBuilder| builder.same_host(false);
        let (a, b) = (engine_on(&ours, tcp), engine_on(&theirs, tcp));
        let peer = open(&a, &b, PathKind::Tcp).await;
        for is_shareable in [true, false] {
            let memory = [&ours, &theirs].map(|driver| {
                EternalVram::new(driver.clone(), 0, LEN, is_shareable).expect("memory")
            });
            let (near, far) = (foreign(&a, &memory[0]), foreign(&b, &memory[1]));
            round(&a, &peer, (&near, &far)).await;
            a.unregister(near).await.expect("quiet");
            b.unregister(far).await.expect("quiet");
        }
    });
}

/// Many regions of one allocation, as a pool's tensors are: it is opened once.
#[test]
fn peers_of_the_host_open_an_allocation_once_and_close_it_before_it_goes() {
    run(async {
        let (ours, theirs) = (fake(), fake());
        let (a, b) = (engine_with(&ours), engine_with(&theirs));
        let peer = open(&a, &b, PathKind::Host).await;
        let memory = [vram(&ours, 0, true), vram(&theirs, 1, true)];
        let halves = |engine: &Engine, memory: &EternalVram| {
            [0, LEN / 2].map(|at| {
                let half = memory.part(at, LEN / 2);
                engine.register_vram(half, Access::READ_WRITE).expect("a region")
            })
        };
        let (near, far) = (halves(&a, &memory[0]), halves(&b, &memory[1]));
        let (bytes, pages) = (pattern(2, LEN / 2), pages(128, LEN / 256));
        for (near, far) in near.iter().zip(&far) {
            fill(near, &bytes);
            a.transfer(write(&peer, near, &buffer(far), &pages)).await.expect("a write");
            assert!(contents(far) == scattered(&bytes, &pages));
            a.transfer(read(&peer, near, &buffer(far), &pages)).await.expect("a read");
        }
        assert_eq!((ours.opened(), theirs.opened()), (1, 1));
        let explained = a.explain(&peer, &near[0]).await;
        assert_eq!(explained.write_path().expect("a path").path, PathKind::Host, "{explained}");
        // The caller may free it behind this: nobody has it open.
        for (near, far) in near.into_iter().zip(far) {
            a.unregister(near).await.expect("quiet");
            b.unregister(far).await.expect("quiet");
        }
        assert_eq!((ours.opened(), theirs.opened()), (0, 0));
    });
}

#[test]
fn memory_is_not_given_back_while_a_peer_s_gpu_reads_it() {
    run(async {
        let (ours, theirs) = (fake(), fake());
        let (a, b) = (engine_with(&ours), engine_with(&theirs));
        let peer = open(&a, &b, PathKind::Host).await;
        let memory = vram(&theirs, 0, true);
        let (near, far) = (super::region(&a, LEN, Location::Cuda(0)), foreign(&b, &memory));
        let pages = pages(256, LEN / 256);
        a.transfer(read(&peer, &near, &buffer(&far), &pages)).await.expect("a read");
        ours.break_with(|faults| faults.is_stalled = true);
        let reading = a.transfer(read(&peer, &near, &buffer(&far), &pages));
        let mut unregistered = std::pin::pin!(b.unregister(far.clone()));
        let early = tokio::time::timeout(Duration::from_millis(100), &mut unregistered).await;
        assert!(early.is_err() && ours.opened() == 1, "a GPU may still read");
        ours.break_with(|faults| faults.is_stalled = false);
        let stale = reading.await.expect_err("it was taken back");
        assert_eq!(stale.error().kind(), ErrorKind::Stale);
        unregistered.await.expect("quiet");
        assert_eq!(ours.opened(), 0);
    });
}

/// A prepared batch holds nothing of its peer's between its postings.
#[test]
fn a_prepared_batch_keeps_no_peer_from_its_memory() {
    run(async {
        let (ours, theirs) = (fake(), fake());
        let (a, b) = (engine_with(&ours), engine_with(&theirs));
        let peer = open(&a, &b, PathKind::Host).await;
        let memory = vram(&theirs, 0, true);
        let (near, far) = (super::region(&a, LEN, Location::Cuda(0)), foreign(&b, &memory));
        let batch = read(&peer, &near, &buffer(&far), &pages(256, LEN / 256));
        let prepared = a.prepare(batch).expect("a batch");
        for _ in 0..3 {
            a.post(&prepared).await.expect("a read");
        }
        b.unregister(far).await.expect("quiet");
    });
}

#[test]
fn a_peer_that_goes_away_lets_go() {
    run(async {
        let (ours, theirs) = (fake(), fake());
        let (a, b) = (engine_with(&ours), engine_with(&theirs));
        let peer = open(&a, &b, PathKind::Host).await;
        let memory = [vram(&ours, 0, true), vram(&theirs, 0, true)];
        let (near, far) = (foreign(&a, &memory[0]), foreign(&b, &memory[1]));
        round(&a, &peer, (&near, &far)).await;
        a.stop().await;
        b.unregister(far).await.expect("quiet");
        a.unregister(near).await.expect("quiet");
    });
}

#[test]
fn without_a_handle_peers_of_the_host_go_by_tcp_and_are_told_why() {
    run(async {
        let (ours, theirs) = (fake(), fake());
        let (a, b) = (engine_with(&ours), engine_with(&theirs));
        let peer = open(&a, &b, PathKind::Host).await;
        let pairs = |is_shareable| {
            let near = foreign(&a, &vram(&ours, 0, is_shareable));
            (near, foreign(&b, &vram(&theirs, 0, is_shareable)))
        };
        // It has none; it has one that is not given; it has one that nobody can open.
        for why in ["expandable_segments", "cuIpcGetMemHandle", "cuIpcOpenMemHandle"] {
            let is_shareable = why != "expandable_segments";
            for fake in [&ours, &theirs] {
                fake.break_with(|faults| {
                    faults.no_share = why == "cuIpcGetMemHandle";
                    faults.no_import = why == "cuIpcOpenMemHandle";
                });
            }
            let (near, far) = pairs(is_shareable);
            round(&a, &peer, (&near, &far)).await;
            let explained = a.explain(&peer, &near).await;
            assert_eq!(explained.write_path().expect("a path").path, PathKind::Tcp, "{explained}");
            assert!(explained.to_string().contains(why), "{explained}");
            a.unregister(near).await.expect("quiet");
            b.unregister(far).await.expect("quiet");
        }
        assert_eq!((ours.opened(), theirs.opened()), (0, 0));
    });
}

#[test]
fn what_is_no_memory_of_that_gpu_is_refused() {
    run(async {
        let fake = fake();
        let engine = engine_with(&fake);
        let refused = |memory| {
            let error = engine.register_vram(memory, Access::READ).expect_err("refused");
            assert_eq!(error.kind(), ErrorKind::Refused, "{error}");
            format!("{error}: {}", std::error::Error::source(&error).expect("a source"))
        };
        let of_gpu_1 = vram(&fake, 1, true).addr();
        let elsewhere = EternalVram::claim(fake.clone(), 0, of_gpu_1, LEN);
        assert!(refused(elsewhere.foreign()).contains("memory of cuda:1"));
        let memory = vram(&fake, 0, true);
        let longer = EternalVram::claim(fake.clone(), 0, memory.addr(), 2 * LEN);
        assert!(refused(longer.foreign()).contains("allocation ends"));
        let nobodys = EternalVram::claim(fake.clone(), 0, 4096, LEN);
        assert!(refused(nobodys.foreign()).contains("no memory of a GPU's"));
        fake.break_with(|faults| faults.no_holding = true);
        assert!(refused(memory.foreign()).contains("asked to fail"));
        fake.break_with(|faults| faults.no_holding = false);
        let region = foreign(&engine, &memory);
        let twice = engine.register_vram(memory.foreign(), Access::READ).expect_err("twice");
        assert_eq!(twice.kind(), ErrorKind::Refused);
        engine.unregister(region).await.expect("quiet");
        foreign(&engine, &memory);
    });
}

//! What transfers mean where paths could differ: events of any length, batches of any length,
//! memory of either kind, regions that come and go under an open peer, ends before the end.

use std::time::Duration;

use kvrail::{Access, Batch, Engine, ErrorKind, Eternal, Pages, Peer, Region};

use super::{contents, engine, fill, pair, pattern, region, run};

const PAGE: usize = 512;

/// Foreign memory, registered.
fn foreign(engine: &Engine, len: usize, access: Access) -> Region {
    engine.register(Eternal::new(len).foreign(), access).unwrap()
}

/// Every page of `theirs`, backwards; the pages of ours forwards.
fn backwards(theirs: &Region) -> Pages {
    let count = theirs.len() / PAGE;
    let page = |at: usize| (at * PAGE) as u64;
    Pages {
        page_bytes: PAGE,
        local: (0..count).map(page).collect(),
        remote: (0..count).rev().map(|at| theirs.addr() + page(at)).collect(),
    }
}

fn reversed(bytes: &[u8]) -> Vec<u8> {
    bytes.chunks(PAGE).rev().flatten().copied().collect()
}

#[test]
fn batches_longer_than_any_queue_arrive_whole() {
    run(async {
        let (ours, theirs, peer) = pair().await;
        for count in [1_025, 12_000] {
            let len = count * PAGE;
            let memory = region(&theirs, len, Access::READ_WRITE);
            let source = region(&ours, len, Access::LOCAL);
            let bytes = pattern(count as u64, len);
            fill(&source, &bytes);
            let mut batch = Batch::new(&peer);
            batch.write_pages(&source.share(0..len).unwrap(), backwards(&memory));
            ours.transfer(batch).await.unwrap();
            assert!(contents(&memory) == reversed(&bytes), "{count} pages written");
            let target = region(&ours, len, Access::LOCAL);
            let mut batch = Batch::new(&peer);
            batch.read_pages(target.lease(0..len).unwrap(), backwards(&memory));
            ours.transfer(batch).await.unwrap();
            assert!(contents(&target) == bytes, "{count} pages read");
        }
    });
}

#[test]
fn events_of_any_length_follow_their_data() {
    run(async {
        let (ours, theirs, peer) = pair().await;
        let counter = theirs.counter(1).unwrap();
        for len in [0, 1, 55, 56, 57, 8_000, 8_192, 8_300, 100_000] {
            let message = pattern(len as u64, len);
            let mut batch = Batch::new(&peer);
            batch.notify(message.clone()).count(1, 1);
            ours.transfer(batch).await.unwrap();
            assert!(theirs.notification().await.bytes == message, "{len} bytes differ");
        }
        assert_eq!(counter.value(), 9);
        assert!(theirs.try_notification().is_none());
    });
}

#[test]
fn a_full_queue_of_notifications_is_busy_until_it_is_read() {
    run(async {
        let (ours, theirs, peer) = pair().await;
        let mut sent = 0;
        let error = loop {
            match ours.notify(&peer, "x").await {
                Ok(()) => sent += 1,
                Err(error) => break error,
            }
        };
        assert_eq!(error.kind(), ErrorKind::Busy, "{error}");
        for _ in 0..sent {
            assert_eq!(theirs.notification().await.bytes, b"x");
        }
        ours.notify(&peer, "y").await.unwrap();
        assert_eq!(theirs.notification().await.bytes, b"y");
    });
}

/// Writes a pattern there and reads it back.
async fn there_and_back(ours: &Engine, peer: &Peer, near: &Region, far: &Region, seed: u64) {
    let bytes = pattern(seed, near.len());
    fill(near, &bytes);
    let mut batch = Batch::new(peer);
    batch.write(&near.share(0..near.len()).unwrap(), far.addr());
    ours.transfer(batch).await.unwrap();
    assert!(contents(far) == bytes, "what was written");
    fill(near, &pattern(seed + 1, near.len()));
    let mut batch = Batch::new(peer);
    batch.read(near.lease(0..near.len()).unwrap(), far.addr());
    ours.transfer(batch).await.unwrap();
    assert!(contents(near) == bytes, "what was read");
}

#[test]
fn foreign_memory_is_as_good_as_any_on_either_side() {
    run(async {
        let (ours, theirs, peer) = pair().await;
        for (seed, len) in [(10, 1), (20, 4096), (30, 5 << 20)] {
            let own = |engine: &Engine| region(engine, len, Access::READ_WRITE);
            let lent = |engine: &Engine| foreign(engine, len, Access::READ_WRITE);
            there_and_back(&ours, &peer, &lent(&ours), &own(&theirs), seed).await;
            there_and_back(&ours, &peer, &own(&ours), &lent(&theirs), seed + 2).await;
            there_and_back(&ours, &peer, &lent(&ours), &lent(&theirs), seed + 4).await;
        }
    });
}

#[test]
fn one_batch_mixes_kinds_of_memory_and_directions() {
    run(async {
        let (ours, theirs, peer) = pair().await;
        const LEN: usize = 300_000;
        let near = [region(&ours, LEN, Access::LOCAL), foreign(&ours, LEN, Access::LOCAL)];
        let far = |access| [region(&theirs, LEN, access), foreign(&theirs, LEN, access)];
        let (written, read) = (far(Access::WRITE), far(Access::READ));
        let into = [region(&ours, LEN, Access::LOCAL), foreign(&ours, LEN, Access::LOCAL)];
        let counter = theirs.counter(3).unwrap();
        let mut batch = Batch::new(&peer);
        for (k, region) in near.iter().enumerate() {
            fill(region, &pattern(k as u64, LEN));
            fill(&read[k], &pattern(10 + k as u64, LEN));
            batch.write(&region.share(0..LEN).unwrap(), written[k].addr());
            batch.read(into[k].lease(0..LEN).unwrap(), read[k].addr());
        }
        batch.count(3, 5);
        let outcome = ours.transfer(batch).await.unwrap();
        assert_eq!(outcome.statuses().len(), 4);
        drop(outcome);
        for k in 0..2 {
            assert!(contents(&written[k]) == pattern(k as u64, LEN), "write {k}");
            assert!(contents(&into[k]) == pattern(10 + k as u64, LEN), "read {k}");
        }
        assert_eq!(counter.value(), 5);
    });
}

#[test]
fn regions_come_and_go_under_an_open_peer() {
    run(async {
        let (ours, theirs, peer) = pair().await;
        let near = region(&ours, 8192, Access::LOCAL);
        // Asked for before it is there: what was refused is asked again.
        let memory = Eternal::new(8192);
        let early = theirs.register(memory.foreign(), Access::LOCAL).unwrap();
        let mut batch = Batch::new(&peer);
        batch.read(near.lease(0..8192).unwrap(), early.addr());
        let failed = ours.transfer(batch).await.unwrap_err();
        assert_eq!(failed.error().kind(), ErrorKind::Refused, "{failed}");
        drop(failed);
        theirs.unregister(early).await.unwrap();
        for round in 0..20 {
            let again = theirs.register(memory.foreign(), Access::READ_WRITE).unwrap();
            let fresh = region(&theirs, 8192, Access::READ_WRITE);
            there_and_back(&ours, &peer, &near, &again, 100 * round).await;
            there_and_back(&ours, &peer, &near, &fresh, 100 * round + 50).await;
            let gone = [again.addr(), fresh.addr()];
            theirs.unregister(again).await.unwrap();
            theirs.unregister(fresh).await.unwrap();
            for addr in gone {
                let mut batch = Batch::new(&peer);
                batch.write(&near.share(0..8192).unwrap(), addr);
                let failed = ours.transfer(batch).await.unwrap_err();
                assert_eq!(failed.error().kind(), ErrorKind::Refused, "{failed}");
                drop(failed);
                let mut batch = Batch::new(&peer);
                batch.read(near.lease(0..8192).unwrap(), addr);
                let kind = ours.transfer(batch).await.unwrap_err().error().kind();
                assert!([ErrorKind::Refused, ErrorKind::Stale].contains(&kind), "{kind:?}");
            }
        }
    });
}

#[test]
fn own_regions_come_and_go_as_sources() {
    run(async {
        let (ours, theirs, peer) = pair().await;
        let far = region(&theirs, 8192, Access::READ_WRITE);
        for round in 0..20 {
            let near = region(&ours, 8192, Access::LOCAL);
            let lent = foreign(&ours, 8192, Access::LOCAL);
            there_and_back(&ours, &peer, &near, &far, 100 * round).await;
            there_and_back(&ours, &peer, &lent, &far, 100 * round + 50).await;
            ours.unregister(near).await.unwrap();
            ours.unregister(lent).await.unwrap();
        }
    });
}

#[test]
fn two_engines_write_to_each_other_at_once() {
    run(async {
        let (ours, theirs, peer) = pair().await;
        let back = theirs.open(ours.name()).await.unwrap();
        const LEN: usize = 3 << 20;
        let side = |from: Engine, to: &Engine, peer: Peer, seed: u64| {
            let (source, target) =
                (region(&from, LEN, Access::LOCAL), region(to, LEN, Access::READ_WRITE));
            fill(&source, &pattern(seed, LEN));
            tokio::spawn(async move {
                for _ in 0..30 {
                    let mut batch = Batch::new(&peer);
                    batch.write(&source.share(0..LEN).unwrap(), target.addr());
                    batch.deadline(Duration::from_secs(30));
                    from.transfer(batch).await.unwrap();
                }
                assert!(contents(&target) == pattern(seed, LEN));
            })
        };
        let there = side(ours.clone(), &theirs, peer, 1);
        let here = side(theirs.clone(), &ours, back, 2);
        there.await.unwrap();
        here.await.unwrap();
    });
}

/// A batch of many small pages that takes a while, with its memory.
fn long(ours: &Engine, theirs: &Engine, peer: &Peer) -> (Batch, Region, Region) {
    let len = 50_000 * PAGE;
    let far = region(theirs, len, Access::READ_WRITE);
    let near = region(ours, len, Access::LOCAL);
    let mut batch = Batch::new(peer);
    batch.write_pages(&near.share(0..len).unwrap(), backwards(&far));
    (batch, near, far)
}

#[test]
fn deadlines_and_dropped_futures_hurt_no_later_transfer() {
    run(async {
        let (ours, theirs, peer) = pair().await;
        let (path, good) = (peer.path(), region(&theirs, 4096, Access::READ_WRITE));
        let near = region(&ours, 4096, Access::LOCAL);
        for round in 0..6 {
            let (mut batch, source, _far) = long(&ours, &theirs, &peer);
            if round % 2 == 0 {
                batch.deadline(Duration::from_micros(200 << round));
                if let Err(failed) = ours.transfer(batch).await {
                    assert_eq!(failed.error().kind(), ErrorKind::Expired, "{failed}");
                }
            } else {
                let transfer = ours.transfer(batch);
                tokio::time::sleep(Duration::from_millis(round)).await;
                drop(transfer);
            }
            there_and_back(&ours, &peer, &near, &good, round).await;
            while source.is_leased(0..source.len()) {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        }
        // A peer that is honest has stopped all of it, so it is no stranger now.
        tokio::time::sleep(Duration::from_millis(2_500)).await;
        assert_eq!(peer.path(), path);
        there_and_back(&ours, &peer, &near, &good, 99).await;
    });
}

#[test]
fn a_stopped_engine_leaves_no_transfer_waiting() {
    run(async {
        let (ours, theirs, peer) = pair().await;
        let batches: Vec<_> = (0..8).map(|_| long(&ours, &theirs, &peer)).collect();
        let (transfers, memory): (Vec<_>, Vec<_>) = batches
            .into_iter()
            .map(|(batch, near, far)| (ours.transfer(batch), (near, far)))
            .unzip();
        theirs.stop().await;
        for transfer in transfers {
            if let Err(failed) = transfer.await {
                let kind = failed.error().kind();
                assert!([ErrorKind::Lost, ErrorKind::Closed].contains(&kind), "{failed}");
            }
        }
        drop(memory);
        let fresh = engine();
        let peer = ours.open(fresh.name()).await.unwrap();
        let far = region(&fresh, 4096, Access::READ_WRITE);
        there_and_back(&ours, &peer, &region(&ours, 4096, Access::LOCAL), &far, 5).await;
    });
}

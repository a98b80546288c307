//! Bytes arrive where they should, in every shape, with what follows them.

use std::time::Duration;

use kvrail::{Access, Batch, Engine, ErrorKind, Lease, Pages, Peer, Region, Strided};

use super::{builder, contents, engine, fill, pair, pattern, region, run};

const MIB: usize = 1 << 20;

/// Writes ours to theirs and reads it back into another place.
async fn there_and_back(ours: &Engine, peer: &Peer, theirs: &Region, len: usize) {
    let (source, target) = (region(ours, len, Access::LOCAL), region(ours, len, Access::LOCAL));
    let bytes = pattern(len as u64, len);
    fill(&source, &bytes);
    let mut batch = Batch::new(peer);
    batch.write(&source.share(0..len).unwrap(), theirs.addr());
    ours.transfer(batch).await.unwrap();
    assert_eq!(contents(theirs)[..len], bytes);
    let mut batch = Batch::new(peer);
    batch.read(target.lease(0..len).unwrap(), theirs.addr());
    let outcome = ours.transfer(batch).await.unwrap();
    let lease = outcome.into_leases().pop().and_then(Lease::into_exclusive).unwrap();
    let mut got = vec![0; len];
    lease.copy_out(0, &mut got).unwrap();
    assert!(got == bytes, "{len} bytes differ");
}

#[test]
fn bytes_of_any_length_go_there_and_back() {
    run(async {
        let (ours, theirs, peer) = pair().await;
        let memory = region(&theirs, 16 * MIB, Access::READ_WRITE);
        for len in [1, 23, 4096, 65_536, 65_537, MIB, 3 * MIB + 7, 16 * MIB] {
            there_and_back(&ours, &peer, &memory, len).await;
        }
    });
}

#[test]
fn version_1_is_spoken_where_it_is_asked_for() {
    run(async {
        let theirs = engine();
        let ours = builder().tcp_version_1(true).start().unwrap();
        let memory = region(&theirs, 16 * MIB, Access::READ_WRITE);
        let peer = ours.open(theirs.name()).await.unwrap();
        for len in [1, 4096, 65_537, 16 * MIB] {
            there_and_back(&ours, &peer, &memory, len).await;
        }
    });
}

#[test]
fn an_engine_is_its_own_peer() {
    run(async {
        let ours = engine();
        let memory = region(&ours, 64 * MIB, Access::LOCAL);
        let peer = ours.open(ours.name()).await.unwrap();
        for len in [1, 4096, MIB, 64 * MIB] {
            there_and_back(&ours, &peer, &memory, len).await;
        }
    });
}

/// Pages land in their own order, and everything between them stays.
async fn paged(ours: &Engine, peer: &Peer, theirs: &Region) {
    const PAGE: usize = 12_288;
    const COUNT: usize = 40;
    let source = region(ours, PAGE * COUNT, Access::LOCAL);
    let bytes = pattern(1, PAGE * COUNT);
    fill(&source, &bytes);
    let before = contents(theirs);
    let far = |page: usize| (7 * page + 3) % (2 * COUNT) * PAGE;
    let pages = Pages {
        page_bytes: PAGE,
        local: (0..COUNT).map(|page| (page * PAGE) as u64).collect(),
        remote: (0..COUNT).map(|page| theirs.addr() + far(page) as u64).collect(),
    };
    let mut batch = Batch::new(peer);
    batch.write_pages(&source.share(0..source.len()).unwrap(), pages.clone());
    ours.transfer(batch).await.unwrap();
    let mut expected = before;
    for page in 0..COUNT {
        expected[far(page)..][..PAGE].copy_from_slice(&bytes[page * PAGE..][..PAGE]);
    }
    assert!(contents(theirs) == expected);

    let target = region(ours, PAGE * COUNT, Access::LOCAL);
    let mut batch = Batch::new(peer);
    batch.read_pages(target.lease(0..target.len()).unwrap(), pages);
    ours.transfer(batch).await.unwrap();
    assert!(contents(&target) == bytes);
}

#[test]
fn pages_find_their_places() {
    run(async {
        let (ours, theirs, peer) = pair().await;
        let memory = region(&theirs, 80 * 12_288, Access::READ_WRITE);
        paged(&ours, &peer, &memory).await;
        let own = region(&ours, 80 * 12_288, Access::LOCAL);
        paged(&ours, &ours.local(), &own).await;
    });
}

#[test]
fn rows_of_one_head_go_into_longer_rows() {
    run(async {
        let (ours, theirs, peer) = pair().await;
        let memory = region(&theirs, 64 * 1024, Access::READ_WRITE);
        let source = region(&ours, 64 * 256, Access::LOCAL);
        let bytes = pattern(9, source.len());
        fill(&source, &bytes);
        let mut batch = Batch::new(&peer);
        batch.write_strided(
            &source.share(0..source.len()).unwrap(),
            Strided {
                rows: 64,
                row_bytes: 256,
                local_stride: 256,
                remote: memory.addr() + 512,
                remote_stride: 1024,
            },
        );
        ours.transfer(batch).await.unwrap();
        for (row, got) in contents(&memory).chunks(1024).enumerate() {
            assert_eq!(got[512..768], bytes[row * 256..][..256]);
            assert!(got[..512].iter().chain(&got[768..]).all(|&byte| byte == 0));
        }
    });
}

#[test]
fn a_prepared_batch_is_posted_again_and_one_at_a_time() {
    run(async {
        let (ours, theirs, peer) = pair().await;
        let memory = region(&theirs, 8 * MIB, Access::READ_WRITE);
        let source = region(&ours, 8 * MIB, Access::LOCAL);
        let mut batch = Batch::new(&peer);
        batch.write(&source.share(0..source.len()).unwrap(), memory.addr());
        let prepared = ours.prepare(batch).unwrap();
        assert_eq!(prepared.bytes(), 8 * MIB);
        let mut refused = 0;
        for _ in 0..100 {
            let first = ours.post(&prepared);
            // On a busy machine the first may have ended before we come to post the second.
            if let Err(failed) = ours.post(&prepared).await {
                assert_eq!(failed.error().kind(), ErrorKind::Busy);
                refused += 1;
            }
            first.await.unwrap();
            if refused == 3 {
                break;
            }
        }
        assert_eq!(refused, 3, "two postings were under way at once");
        let (leases, error) = (prepared.into_leases(), "the batch has landed");
        assert_eq!(leases.map_err(|(error, _)| error).expect(error).len(), 1);
    });
}

#[test]
fn leases_are_back_the_moment_a_transfer_has_ended() {
    run(async {
        let (ours, theirs, peer) = pair().await;
        let memory = region(&theirs, MIB, Access::READ_WRITE);
        let source = region(&ours, MIB, Access::LOCAL);
        for _ in 0..300 {
            let mut batch = Batch::new(&peer);
            batch.write(&source.share(0..MIB).unwrap(), memory.addr());
            let prepared = ours.prepare(batch).unwrap();
            ours.post(&prepared).await.unwrap();
            drop(prepared);
            let mut batch = Batch::new(&peer);
            batch.read(source.lease(0..MIB).unwrap(), memory.addr());
            drop(ours.transfer(batch).await.unwrap());
            assert!(!source.is_leased(0..MIB));
        }
    });
}

#[test]
fn counters_and_messages_follow_the_data() {
    run(async {
        let (ours, theirs, peer) = pair().await;
        let memory = region(&theirs, 4 * MIB, Access::READ_WRITE);
        let source = region(&ours, 4 * MIB, Access::LOCAL);
        let counter = theirs.counter(7).unwrap();
        for layer in 1..=8u64 {
            let bytes = pattern(layer, source.len());
            fill(&source, &bytes);
            let mut batch = Batch::new(&peer);
            batch.write(&source.share(0..source.len()).unwrap(), memory.addr());
            batch.count(7, 1).notify(format!("layer {layer}"));
            let sending = ours.transfer(batch);
            assert_eq!(counter.reached(layer).await, layer);
            assert!(contents(&memory) == bytes, "the data was there first");
            let message = theirs.notification().await;
            assert_eq!(message.bytes, format!("layer {layer}").as_bytes());
            assert_eq!(message.from, ours.name());
            sending.await.unwrap();
        }
        ours.notify(&peer, b"\xff bytes").await.unwrap();
        assert_eq!(theirs.notification().await.bytes, b"\xff bytes");
        let mut batch = Batch::new(&peer);
        batch.count(8, 1);
        let error = ours.transfer(batch).await.unwrap_err();
        assert_eq!(error.error().kind(), ErrorKind::Refused, "nobody opened counter 8");
        assert!(error.to_string().contains("opened this counter"), "{error}");
        ours.notify(&ours.local(), "to myself").await.unwrap();
        assert_eq!(ours.notification().await.bytes, b"to myself");
    });
}

#[test]
fn many_callers_at_once_all_get_their_bytes() {
    run(async {
        let (ours, theirs, peer) = pair().await;
        const CALLERS: usize = 16;
        let memory = region(&theirs, CALLERS * 65_536, Access::READ_WRITE);
        let source = region(&ours, CALLERS * 65_536, Access::LOCAL);
        let bytes = pattern(5, source.len());
        fill(&source, &bytes);
        let callers = (0..CALLERS).map(|caller| {
            let (ours, peer, at) = (ours.clone(), peer.clone(), caller * 65_536);
            let lease = source.share(at..at + 65_536).unwrap();
            let addr = memory.addr() + at as u64;
            tokio::spawn(async move {
                for _ in 0..50 {
                    let mut batch = Batch::new(&peer);
                    batch.write(&lease, addr).deadline(Duration::from_secs(30));
                    ours.transfer(batch).await.unwrap();
                }
            })
        });
        for caller in callers.collect::<Vec<_>>() {
            caller.await.unwrap();
        }
        assert!(contents(&memory) == bytes);
    });
}

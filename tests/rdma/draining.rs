//! An engine that goes while its peers write and read over RDMA: what they had posted ends well,
//! and what they post later is refused before anything is sent.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use kvrail::{ErrorKind, Landed};

use super::*;

/// Who posts at a time, on each NIC.
const CALLERS: usize = 3;

/// Bytes of a batch: some slices, so that a drain comes in the middle of them.
const LEN: usize = 2 * MIB;

/// Writes and reads what it has written until it is refused, and not sooner; the last round whose
/// bytes are there.
async fn work(engine: Engine, peer: Peer, addr: u64, busy: Arc<AtomicUsize>) -> usize {
    let near = engine.allocate(LEN, Location::Cpu(None), Access::LOCAL).unwrap();
    for round in 1.. {
        fill(&near, round);
        let mut writing = Batch::new(&peer);
        writing.write(&near.share(0..LEN).unwrap(), addr);
        let written = engine.transfer(writing).await.map(drop);
        let last = if written.is_ok() { round } else { round - 1 };
        let ended = match written {
            Ok(()) => {
                let mut reading = Batch::new(&peer);
                reading.read(near.lease(0..LEN).unwrap(), addr);
                engine.transfer(reading).await.map(drop)
            }
            failed => failed,
        };
        if let Err(failed) = ended {
            let (error, receipt) = (failed.error(), failed.receipt());
            let end = (error.kind(), error.landed(), receipt.landed());
            assert_eq!(end, (ErrorKind::Draining, Landed::No, Landed::No), "{error}");
            return last;
        }
        assert_eq!(first_wrong(&near, 0..LEN, round), None, "round {round}");
        busy.fetch_add(usize::from(round == 1), Ordering::Relaxed);
    }
    unreachable!("it works until it is refused")
}

#[test]
#[ignore = "needs soft-RoCE NICs: cargo xtask test --only rdma"]
fn under_load_no_transfer_fails() {
    let host = engine(&THEIRS);
    let guests = OURS.map(|nic| engine(&[nic]));
    let all = guests.len() * CALLERS;
    let far = host.allocate(all * LEN, Location::Cpu(None), Access::READ_WRITE).unwrap();
    let busy = Arc::new(AtomicUsize::new(0));
    let lasts = run(async {
        let mut callers = Vec::new();
        for guest in &guests {
            let peer = guest.open(host.name()).await.unwrap();
            assert_eq!(peer.path(), PathKind::Rdma);
            for _ in 0..CALLERS {
                let addr = far.addr() + (callers.len() * LEN) as u64;
                let caller = work(guest.clone(), peer.clone(), addr, busy.clone());
                callers.push(tokio::spawn(caller));
            }
        }
        while busy.load(Ordering::Relaxed) < all {
            assert!(!callers.iter().any(|caller| caller.is_finished()), "one has failed");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let drained = host.drain(PATIENCE).await;
        assert!(drained.is_complete(), "{drained:?}");
        let mut lasts = Vec::new();
        for caller in callers {
            lasts.push(caller.await.unwrap());
        }
        lasts
    });
    // What was acknowledged is there, and nothing of what was refused.
    let bytes = bytes(&far);
    for (caller, last) in lasts.into_iter().enumerate() {
        let own = &bytes[caller * LEN..][..LEN];
        let wrong = own.iter().enumerate().find(|(at, byte)| **byte != pattern(*at, last));
        assert_eq!(wrong, None, "caller {caller}, round {last}");
    }
    guests.into_iter().for_each(|guest| run(guest.stop()));
}

//! Alone in its process, so that the counts are its own: a thousand connections between two
//! engines of one host leave no descriptor, no mapping and no thread behind, on either side.

use std::time::Duration;

use futures_lite::future::block_on;
use kvrail::{Access, Batch, Engine, Location, PathKind};

const CONNECTIONS: usize = 1_000;

/// Descriptors, mappings of memfds, and threads of this process: both engines' together.
fn held() -> [usize; 3] {
    let entries = |folder| std::fs::read_dir(folder).unwrap().count();
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let memfds = maps.lines().filter(|line| line.contains("memfd:")).count();
    [entries("/proc/self/fd"), memfds, entries("/proc/self/task")]
}

/// What is held once what closes in the background had time to.
fn settled(at_most: [usize; 3]) -> [usize; 3] {
    for _ in 0..1_000 {
        if held().iter().zip(&at_most).all(|(now, limit)| now <= limit) {
            break;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    held()
}

#[test]
fn a_thousand_connections_leave_nothing_behind() {
    let [ours, theirs] = [(); 2].map(|()| Engine::builder().start().unwrap());
    let far = theirs.allocate(8192, Location::Cpu(None), Access::READ_WRITE).unwrap();
    let near = ours.allocate(8192, Location::Cpu(None), Access::LOCAL).unwrap();
    let connect = |round: usize| {
        let peer = block_on(ours.open(theirs.name())).unwrap();
        assert_eq!(peer.path(), PathKind::Host, "round {round}");
        // Now and then some memory is mapped, by either side.
        if round.is_multiple_of(10) {
            let mut batch = Batch::new(&peer);
            batch.write(&near.share(0..4096).unwrap(), far.addr());
            batch.read(near.lease(4096..8192).unwrap(), far.addr());
            block_on(ours.transfer(batch)).unwrap();
        }
    };
    // The first ones start what stays: threads for mapping, queues that keep their room.
    (0..20).for_each(connect);
    std::thread::sleep(Duration::from_millis(200));
    let before = held();
    assert!(before[1] >= 6, "two regions and four ledgers are mapped: {before:?}");
    (0..CONNECTIONS).for_each(connect);
    let after = settled(before);
    assert!(after.iter().zip(&before).all(|(now, then)| now <= then), "{before:?} -> {after:?}");
}

//! Alone in its process, so that the counts are its own: runtimes come and go without a trace.

use std::time::Duration;

use kvrail::runtime::{Runtime, Shards};

fn entries(directory: &str) -> usize {
    std::fs::read_dir(directory).unwrap().count()
}

/// Descriptors and threads, once helper threads that outlive their executor had time to end.
fn settled(at_most: (usize, usize)) -> (usize, usize) {
    let count = || (entries("/proc/self/fd"), entries("/proc/self/task"));
    for _ in 0..400 {
        let (fds, threads) = count();
        if fds <= at_most.0 && threads <= at_most.1 {
            break;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    count()
}

#[test]
fn fifty_runtimes_leave_no_descriptor_and_no_thread() {
    let live = || {
        let runtime = Runtime::builder().shards(Shards::Count(2)).build().unwrap();
        let join = runtime.spawn_on(1, || async { 1 }).unwrap();
        assert_eq!(futures_lite::future::block_on(join), Ok(1));
    };
    live(); // what the process keeps for good, it has now
    let before = settled((0, 0));
    (0..50).for_each(|_| live());
    let after = settled(before);
    assert!(after.0 <= before.0 && after.1 <= before.1, "{before:?} before, {after:?} after");
}

//! Stops: drained, bounded, from anywhere; nobody hangs, nothing leaks.

use std::sync::mpsc;

use kvrail::ErrorKind;
use kvrail::runtime::{ActorError, Exit};

use super::*;

#[test]
fn a_stop_handles_what_is_queued() {
    let runtime = runtime();
    let adder = runtime.spawn_actor(0, Adder::default()).unwrap();
    let replies: Vec<_> = (0..200).map(|_| adder.ask(Ask::Add(1)).ok().unwrap()).collect();
    assert!(runtime.stop());
    let sums: Vec<_> = replies.into_iter().map(|reply| block_on(reply).unwrap()[0]).collect();
    assert_eq!(sums, (1..=200).collect::<Vec<_>>());
    assert_eq!(block_on(adder.call(Ask::Seen)), Err(ActorError::Closed));
    assert_eq!(block_on(adder.closed()), Exit::Stopped);
}

#[test]
fn an_address_stops_after_what_is_queued() {
    let runtime = runtime();
    let adder = runtime.spawn_actor(0, Adder::default()).unwrap();
    let replies: Vec<_> = (0..50).map(|_| adder.ask(Ask::Add(1)).ok().unwrap()).collect();
    adder.stop();
    let waiter = adder.clone();
    assert_eq!(soon(async move { waiter.closed().await }), Exit::Stopped);
    assert!(replies.into_iter().all(|reply| block_on(reply).is_ok()));
    assert_eq!(block_on(adder.call(Ask::Seen)), Err(ActorError::Closed));
}

#[test]
fn a_drop_while_calls_wait_closes_them() {
    let runtime = builder().drain(Duration::from_millis(50)).build().unwrap();
    let adder = runtime.spawn_actor(0, Adder::default()).unwrap();
    let (_gate, gated) = tokio::sync::oneshot::channel();
    let held = adder.ask(Ask::Gate(gated)).ok().unwrap();
    let waiting = adder.ask(Ask::Add(1)).ok().unwrap();
    let future = runtime.spawn_on(1, std::future::pending::<()>).unwrap();
    drop(runtime);
    assert_eq!(soon(held), Err(ActorError::Closed));
    assert_eq!(soon(waiting), Err(ActorError::Closed));
    assert_eq!(soon(future), Err(ActorError::Closed));
    assert_eq!(soon(async move { adder.closed().await }), Exit::Killed);
}

#[test]
fn after_a_stop_nothing_starts() {
    let runtime = runtime();
    assert!(runtime.stop());
    assert!(runtime.stop(), "again is the same");
    assert_eq!(runtime.spawn_actor(0, Adder::default()).unwrap_err().kind(), ErrorKind::Closed);
    assert_eq!(runtime.spawn_on(0, || async {}).unwrap_err().kind(), ErrorKind::Closed);
}

#[test]
fn a_blocked_shard_is_abandoned_not_waited_for() {
    let runtime = builder().drain(Duration::from_millis(10)).build().unwrap();
    let (open, gate) = mpsc::channel::<()>();
    let held = runtime.spawn_on(0, move || async move { gate.recv().is_ok() }).unwrap();
    assert!(!runtime.stop());
    drop(open);
    assert_eq!(soon(held), Ok(false));
    assert!(runtime.stop(), "it ended at last");
}

#[test]
fn a_shard_may_ask_its_own_runtime_to_stop() {
    let runtime = runtime();
    let inside = runtime.clone();
    let asked = runtime.spawn_on(0, move || async move { inside.stop() }).unwrap();
    assert_eq!(soon(asked), Ok(false), "asked, not waited for");
    assert!(runtime.stop());
    let last = builder().build().unwrap();
    let moved = last.clone();
    let dropped = last.spawn_on(0, move || async move { drop(moved) }).unwrap();
    drop(last);
    let _ = soon(dropped); // done or closed, never hanging
}

#[tokio::test]
async fn a_stop_inside_tokio_is_no_panic() {
    let runtime = runtime();
    let adder = runtime.spawn_actor(0, Adder::default()).unwrap();
    adder.call(Ask::Add(1)).await.unwrap();
    let clone = runtime.clone();
    assert!(tokio::task::spawn_blocking(move || clone.stop()).await.unwrap());
    drop(runtime);
}

#[test]
fn two_runtimes_live_side_by_side() {
    let (left, right) = (runtime(), runtime());
    let adder = right.spawn_actor(0, Adder::default()).unwrap();
    let asks = adder.clone();
    let across = left.spawn_on(0, move || async move { asks.call(Ask::Add(3)).await }).unwrap();
    assert_eq!(soon(across), Ok(Ok(vec![3])));
    let inside = right.clone();
    let stopped = left.spawn_on(1, move || async move { inside.stop() }).unwrap();
    assert_eq!(soon(stopped), Ok(true), "one runtime's shard may wait for another runtime");
    assert_eq!(block_on(adder.call(Ask::Seen)), Err(ActorError::Closed));
    assert!(left.stop());
}

#[test]
fn placements_are_told_and_kept() {
    let runtime = builder().shards(Shards::PerCore).build().unwrap();
    assert_eq!(runtime.placement().len(), runtime.shards());
    for (shard, place) in runtime.placement().iter().enumerate() {
        let allowed = || async { std::fs::read_to_string("/proc/thread-self/status").unwrap() };
        let status = soon(runtime.spawn_on(shard, allowed).unwrap()).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
        assert_eq!(line.unwrap().trim(), place.cpus.to_string());
    }
}

//! Services that crash, forget and hang: transfers go on, and what was lost is published again.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use kvrail::{Access, Batch, ErrorKind, Location};
use rustix::process::Signal;

use crate::{
    Kind, LENGTH, Service, engine, eventually, holds, keys, named, on_every_service, reads, region,
    wait,
};

on_every_service!(
    a_service_that_restarts_loses_nothing,
    a_service_that_forgot_is_told_again,
    a_hung_service_is_an_error_in_time_and_stops_no_transfer,
    a_change_during_an_outage_gets_through_after_it,
    a_service_that_is_not_there_is_an_error_in_time,
);

/// The longest that anything here may wait for a service: some requests of 3 s each, on a machine
/// that is busy.
pub(crate) const IN_TIME: Duration = Duration::from_secs(30);

fn a_service_that_restarts_loses_nothing(kind: Kind) {
    let mut service = Service::start(kind);
    let far = engine("far", &service);
    let _memory = region(&far, 3);
    under_load(&service.url(), || service.restart());
    // Over HTTP a restart forgets: there the next renewal tells it again.
    eventually("it is found", || keys("far").iter().all(|key| service.get(key).is_some()));
    reads(&engine("near", &service), "far", 3);
}

fn a_service_that_forgot_is_told_again(kind: Kind) {
    let mut service = Service::start(kind);
    let far = engine("far", &service);
    let _memory = region(&far, 4);
    service.restart_empty();
    for key in keys("far") {
        eventually("it is published again", || service.get(&key).is_some());
    }
    reads(&engine("near", &service), "far", 4);
    wait(far.stop());
    assert_eq!(keys("far").map(|key| service.get(&key)), [None, None]);
}

fn a_hung_service_is_an_error_in_time_and_stops_no_transfer(kind: Kind) {
    let service = Service::start(kind);
    let (lone, _known) = (engine("lone", &service), engine("known", &service));
    let _memory = region(&lone, 5);
    let peer = wait(lone.open("known")).expect("the peer");
    under_load(&service.url(), || {
        service.signal(Signal::STOP);
        let start = Instant::now();
        let error = wait(lone.publish()).expect_err("the service hangs");
        assert_eq!(error.kind(), ErrorKind::Expired, "{error}");
        let error = wait(lone.open("known")).expect_err("the service hangs");
        assert_eq!(error.kind(), ErrorKind::Expired, "{error}");
        wait(lone.probe(&peer)).expect("who was known is reached");
        let error = named("late", &service.url()).start().expect_err("the service hangs");
        assert_eq!(error.kind(), ErrorKind::Expired, "{error}");
        assert!(start.elapsed() < IN_TIME, "{:?}", start.elapsed());
    });
    service.signal(Signal::CONT);
    eventually("it is there again", || wait(lone.publish()).is_ok());
    reads(&engine("near", &service), "lone", 5);
}

fn a_change_during_an_outage_gets_through_after_it(kind: Kind) {
    let mut service = Service::start(kind);
    let far = engine("far", &service);
    service.kill();
    let memory = far.allocate(LENGTH, Location::Cpu(None), Access::READ).expect("memory");
    let error = wait(far.publish()).expect_err("the service is dead");
    assert_eq!(error.kind(), ErrorKind::Lost, "{error}");
    service.restart();
    let address = memory.addr().to_string();
    eventually("the region is published", || {
        service.get(&keys("far")[1]).is_some_and(|text| text.contains(&address))
    });
}

fn a_service_that_is_not_there_is_an_error_in_time(kind: Kind) {
    let mut service = Service::start(kind);
    service.kill();
    let start = Instant::now();
    let error = named("engine", &service.url()).start().expect_err("there is no service");
    assert_eq!(error.kind(), ErrorKind::Lost, "{error}");
    assert!(start.elapsed() < IN_TIME, "{:?}", start.elapsed());
}

/// While two engines that have met at the service move data, `trouble` happens; every transfer
/// succeeds, some of them begun during the trouble.
pub(crate) fn under_load(url: &str, trouble: impl FnOnce()) {
    let [source, target] = ["source", "target"].map(|name| named(name, url).start());
    let (source, target) = (source.expect("an engine"), target.expect("an engine"));
    let (near, far) = (region(&source, 6), region(&target, 0));
    let peer = wait(source.open("target")).expect("the peer");
    let write = || {
        let mut batch = Batch::new(&peer);
        batch.write(&near.share(0..LENGTH).expect("nobody writes"), far.addr());
        wait(async { source.transfer(batch).await }).expect("a write");
    };
    let (done, is_over) = (AtomicUsize::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                write();
                done.fetch_add(1, Ordering::Relaxed);
            }
        });
        // However `trouble` ends, so does the load.
        let _end = OnDrop(|| is_over.store(true, Ordering::Relaxed));
        eventually("the load is under way", || done.load(Ordering::Relaxed) > 0);
        trouble();
        let before = done.load(Ordering::Relaxed);
        eventually("transfers go on", || done.load(Ordering::Relaxed) > before + 1);
    });
    assert!(holds(&far, 6), "the bytes arrived");
}

struct OnDrop<F: Fn()>(F);

impl<F: Fn()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

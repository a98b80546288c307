//! How long is a caller's way to a shard and back? With both ends polling, beside one word that two
//! threads hand to each other; and with both asleep, beside two bare wakes by eventfd.
//!
//! `cargo bench --bench round_trip`

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, criterion_group, criterion_main};
use futures_lite::future::{block_on, poll_once};
use kvrail::runtime::{Actor, Context, Idle, Pump, PumpContext, Runtime, Shards};
use rustix::event::{EventfdFlags, eventfd};

const ONE: [u8; 8] = 1u64.to_ne_bytes();

/// How an answer comes back from a pump.
enum Answer {
    Polled(Arc<AtomicU64>),
    Rung(Arc<OwnedFd>),
}

/// Answers every message.
struct Echo;

impl Pump for Echo {
    type Message = Answer;

    fn handle(&mut self, answer: Answer) {
        match answer {
            Answer::Polled(count) => drop(count.fetch_add(1, Ordering::Release)),
            Answer::Rung(bell) => ring(&bell),
        }
    }

    fn poll(&mut self, _: u64) -> usize {
        0
    }

    fn arm(&mut self, _: u64) -> bool {
        true
    }

    fn stopping(&mut self, _: u64) -> bool {
        true
    }
}

impl Actor for Echo {
    type Message = u64;
    type Reply = u64;

    async fn handle(&mut self, number: u64, _: &Context<Self>) -> u64 {
        number
    }
}

fn bell() -> Arc<OwnedFd> {
    Arc::new(eventfd(0, EventfdFlags::CLOEXEC).expect("an eventfd"))
}

fn ring(bell: &OwnedFd) {
    rustix::io::write(bell, &ONE).expect("an eventfd takes a word");
}

fn wait(bell: &OwnedFd) {
    rustix::io::read(bell, &mut [0; 8]).expect("an eventfd gives a word");
}

fn runtime(idle: Idle) -> Runtime {
    Runtime::builder().shards(Shards::Count(1)).idle(idle).build().expect("a shard")
}

fn round_trips(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("round trip");
    words(&mut group);
    polling(&mut group);
    wakes(&mut group);
    asleep(&mut group);
    group.finish();
}

/// Two threads that look at one word each.
fn words(group: &mut BenchmarkGroup<'_, WallTime>) {
    let (asked, answered, is_over) = (AtomicU64::new(0), AtomicU64::new(0), AtomicBool::new(false));
    thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                answered.store(asked.load(Ordering::Acquire), Ordering::Release);
                std::hint::spin_loop();
            }
        });
        let mut number = 0;
        group.bench_function("polling/limit, two words", |bencher| {
            bencher.iter(|| {
                number += 1;
                asked.store(number, Ordering::Release);
                while answered.load(Ordering::Acquire) != number {
                    std::hint::spin_loop();
                }
            });
        });
        is_over.store(true, Ordering::Relaxed);
    });
}

fn polling(group: &mut BenchmarkGroup<'_, WallTime>) {
    let runtime = runtime(Idle::Spin);
    let pump = runtime.spawn_pump(0, |_: PumpContext<Answer>| Echo).expect("a pump");
    let count = Arc::new(AtomicU64::new(0));
    group.bench_function("polling/pump", |bencher| {
        bencher.iter(|| {
            let before = count.load(Ordering::Acquire);
            pump.send(Answer::Polled(count.clone())).ok().expect("there is room");
            while count.load(Ordering::Acquire) == before {
                std::hint::spin_loop();
            }
        });
    });
    let actor = runtime.spawn_actor(0, Echo).expect("an actor");
    group.bench_function("polling/actor", |bencher| {
        bencher.iter(|| {
            block_on(async {
                let mut call = std::pin::pin!(actor.call(1));
                loop {
                    if let Some(answer) = poll_once(&mut call).await {
                        break answer.expect("it lives");
                    }
                    std::hint::spin_loop();
                }
            })
        });
    });
}

/// Two threads that wake each other.
fn wakes(group: &mut BenchmarkGroup<'_, WallTime>) {
    let ([there, back], is_over) = ([bell(), bell()], AtomicBool::new(false));
    thread::scope(|scope| {
        scope.spawn(|| {
            loop {
                wait(&there);
                if is_over.load(Ordering::Relaxed) {
                    return;
                }
                ring(&back);
            }
        });
        group.bench_function("asleep/limit, two eventfds", |bencher| {
            bencher.iter(|| {
                ring(&there);
                wait(&back);
            });
        });
        is_over.store(true, Ordering::Relaxed);
        ring(&there);
    });
}

fn asleep(group: &mut BenchmarkGroup<'_, WallTime>) {
    let runtime = runtime(Idle::Event);
    let pump = runtime.spawn_pump(0, |_: PumpContext<Answer>| Echo).expect("a pump");
    let back = bell();
    group.bench_function("asleep/pump, back by eventfd", |bencher| {
        bencher.iter(|| {
            pump.send(Answer::Rung(back.clone())).ok().expect("there is room");
            wait(&back);
        });
    });
    let actor = runtime.spawn_actor(0, Echo).expect("an actor");
    group.bench_function("asleep/actor, back by a waker", |bencher| {
        bencher.iter(|| block_on(actor.call(1)).expect("it lives"));
    });
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(4))
        .sample_size(50);
    targets = round_trips
}
criterion_main!(benches);

//! What a message to a shard costs and back: to a pump (polled) and to an actor (woken), from an
//! outside thread and from shard to shard, with shards that spin, spin for a while, or park.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use futures_lite::future::block_on;
use kvrail::runtime::{
    Actor, Address, Context, Idle, Pump, PumpAddress, PumpContext, Runtime, Shards,
};

const IDLES: [(&str, Idle); 3] = [
    ("spinning", Idle::Spin),
    ("hybrid", Idle::Hybrid { budget: Duration::from_micros(50) }),
    ("parked", Idle::Event),
];

fn runtime(shards: usize, idle: Idle) -> Runtime {
    Runtime::builder().shards(Shards::Count(shards)).idle(idle).build().unwrap()
}

/// Answers by counting up.
struct Echo(Arc<AtomicU64>);

/// Plays a ball to its partner until the count is down, then tells.
struct Player {
    partner: Option<PumpAddress<Ball>>,
}

enum Ball {
    Partner(PumpAddress<Ball>),
    Play { left: u64, done: mpsc::Sender<()> },
}

impl Pump for Echo {
    type Message = ();

    fn handle(&mut self, _: ()) {
        self.0.fetch_add(1, Ordering::Release);
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

impl Pump for Player {
    type Message = Ball;

    fn handle(&mut self, ball: Ball) {
        match (ball, &self.partner) {
            (Ball::Partner(partner), _) => self.partner = Some(partner),
            (Ball::Play { left: 0, done }, _) => done.send(()).unwrap(),
            (Ball::Play { left, done }, Some(partner)) => {
                partner.send(Ball::Play { left: left - 1, done }).ok().unwrap();
            }
            (Ball::Play { .. }, None) => unreachable!("the partner is the first message"),
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

struct Answer;

impl Actor for Answer {
    type Message = u64;
    type Reply = u64;

    async fn handle(&mut self, number: u64, _: &Context<Self>) -> u64 {
        number + 1
    }
}

/// A thread that spins on the answer.
fn outside_to_pump(rounds: u64, pump: &PumpAddress<()>, count: &AtomicU64) {
    for _ in 0..rounds {
        let before = count.load(Ordering::Acquire);
        pump.send(()).unwrap();
        while count.load(Ordering::Acquire) == before {
            std::hint::spin_loop();
        }
    }
}

async fn calls(rounds: u64, answer: Address<Answer>) -> Duration {
    let start = Instant::now();
    for number in 0..rounds {
        answer.call(number).await.unwrap();
    }
    start.elapsed()
}

fn hops(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("round_trip");
    for (name, idle) in IDLES {
        let one = runtime(1, idle);
        let count = Arc::new(AtomicU64::new(0));
        let echo = Echo(count.clone());
        let pump = one.spawn_pump(0, |_: PumpContext<()>| echo).unwrap();
        group.bench_function(BenchmarkId::new("outside_pump", name), |bencher| {
            bencher.iter(|| outside_to_pump(1, &pump, &count));
        });
        let answer = one.spawn_actor(0, Answer).unwrap();
        group.bench_function(BenchmarkId::new("outside_actor", name), |bencher| {
            bencher.iter_custom(|rounds| block_on(calls(rounds, answer.clone())));
        });
        drop(one);

        let two = runtime(2, idle);
        let players = [0, 1].map(|shard| {
            two.spawn_pump(shard, |_: PumpContext<Ball>| Player { partner: None }).unwrap()
        });
        players[0].send(Ball::Partner(players[1].clone())).ok().unwrap();
        players[1].send(Ball::Partner(players[0].clone())).ok().unwrap();
        group.bench_function(BenchmarkId::new("shard_pump", name), |bencher| {
            bencher.iter_custom(|rounds| {
                let (done, over) = mpsc::channel();
                let start = Instant::now();
                players[0].send(Ball::Play { left: rounds * 2, done }).ok().unwrap();
                over.recv().unwrap();
                start.elapsed()
            });
        });
        let answer = two.spawn_actor(1, Answer).unwrap();
        group.bench_function(BenchmarkId::new("shard_actor", name), |bencher| {
            bencher.iter_custom(|rounds| {
                let answer = answer.clone();
                let timed = two.spawn_on(0, move || calls(rounds, answer));
                block_on(timed.unwrap()).unwrap()
            });
        });
    }
    // What an actor's call costs without any hop: caller and actor on the same shard.
    let one = runtime(1, Idle::Spin);
    let answer = one.spawn_actor(0, Answer).unwrap();
    group.bench_function(BenchmarkId::new("same_shard_actor", "spinning"), |bencher| {
        bencher.iter_custom(|rounds| {
            let answer = answer.clone();
            let timed = one.spawn_on(0, move || calls(rounds, answer));
            block_on(timed.unwrap()).unwrap()
        });
    });
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(2))
        .sample_size(30);
    targets = hops
}
criterion_main!(benches);

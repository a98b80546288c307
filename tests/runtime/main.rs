//! A whole runtime from outside, on what it chooses by itself and on epoll: actors, futures and
//! pumps, called from tokio, plain threads and other shards; panics, full mailboxes, stops.
#![expect(clippy::duplicate_mod, reason = "one suite for two drivers")]

mod auto;
mod epoll;

use std::time::Duration;

use futures_lite::future::block_on;
use kvrail::runtime::{Actor, Context, Driver, Idle, Runtime, RuntimeBuilder, Shards};

/// Two shards that park at once.
fn builder_on(driver: Driver) -> RuntimeBuilder {
    Runtime::builder().shards(Shards::Count(2)).idle(Idle::Event).name("test").driver(driver)
}

/// Adds numbers; panics when told; waits for a gate when told.
#[derive(Default)]
struct Adder {
    sum: u64,
    seen: Vec<u64>,
}

enum Ask {
    Add(u64),
    Seen,
    PanicInFuture,
    Gate(tokio::sync::oneshot::Receiver<()>),
}

impl Actor for Adder {
    type Message = Ask;
    type Reply = Vec<u64>;

    async fn handle(&mut self, message: Ask, _: &Context<Self>) -> Vec<u64> {
        match message {
            Ask::Add(number) => {
                self.sum += number;
                self.seen.push(number);
                vec![self.sum]
            }
            Ask::Seen => self.seen.clone(),
            Ask::PanicInFuture => {
                futures_lite::future::yield_now().await;
                panic!("told to, after {}", self.sum)
            }
            Ask::Gate(gate) => {
                let _ = gate.await;
                vec![]
            }
        }
    }
}

/// Waits for something that has no waker of its own; a bound against hanging, not a measurement.
fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..2000 {
        if holds() {
            return;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    panic!("not in 10 s: {what}");
}

/// `future`'s result, or a panic instead of a hang.
fn soon<T: Send + 'static>(future: impl Future<Output = T> + Send + 'static) -> T {
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || sender.send(block_on(future)));
    receiver.recv_timeout(Duration::from_secs(20)).expect("hung, or panicked")
}

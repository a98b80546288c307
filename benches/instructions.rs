//! How many instructions does each hot function take? This is the program that
//! `cargo xtask instructions` counts by callgrind: it calls each function so many times and then
//! twice as often, in phases that begin with [`begin_phase`], so the difference is what the calls
//! cost. One thread, no wakes, no device: a count is the same whenever it is taken.

use std::hint::black_box;
use std::sync::Arc;

use futures_lite::future::block_on;
use kvrail::hot::{Hot, functions};
use kvrail::runtime::{Driver, Idle, Shards};
use kvrail::{Access, Batch, Engine, Location};
use kvrail_reactors::Reactor;
use kvrail_reactors::copy::{Copy, CopyWork};
use kvrail_reactors::host::lane;
use kvrail_reactors::region::{Region, Slice};
use kvrail_reactors::ticket::Table;

/// Calls before it counts: queues have their size then.
const WARM_UP: usize = 3;

/// Requests of a batch.
const MANY: usize = 16;

/// Bytes of a copy: few, since libc copies with other instructions on another CPU.
const BYTES: usize = 64;

fn main() {
    let count = std::env::args().nth(1).and_then(|word| word.parse().ok()).unwrap_or(1);
    let own = functions().into_iter().chain([tickets(), copies(), lanes()]);
    own.for_each(|hot| phases(hot, count));
    begin_phase("an engine starts");
    // Its threads sleep, and not by io_uring, which valgrind does not know.
    let engine = Engine::builder().shards(Shards::Count(1)).driver(Driver::Epoll);
    let engine = engine.idle(Idle::Event).start().expect("an engine");
    batches(&engine).into_iter().for_each(|hot| phases(hot, count));
    begin_phase("end");
}

/// One phase that warms up and two that count: `name 10`, `name 20`.
fn phases((name, mut call): Hot, count: usize) {
    begin_phase("warm up");
    (0..WARM_UP).for_each(|_| call());
    for count in [count, 2 * count] {
        begin_phase(&format!("{name} {count}"));
        (0..count).for_each(|_| call());
    }
}

/// Called where a phase begins; the counter knows it by its name.
#[inline(never)]
fn begin_phase(name: &str) {
    println!("{}", black_box(name));
}

fn tickets() -> Hot {
    let mut table = Table::default();
    table.insert(1);
    let call = move || {
        let ticket = table.insert(black_box(7));
        black_box(table.get_mut(black_box(ticket)));
        black_box(table.remove(ticket));
    };
    ("table: insert, get, remove", Box::new(call))
}

fn copies() -> Hot {
    let slice = || {
        let region = Arc::new(Region::allocate(BYTES, None).expect("memory"));
        Slice::new(region, 0, BYTES).expect("all of it")
    };
    let (mut copy, mut done, source, target) = (Copy::new(MANY), Vec::new(), slice(), slice());
    let call = move || {
        let work = CopyWork { tag: 1, source: source.clone().into(), target: target.clone() };
        copy.submit(work).expect("there is room");
        copy.poll(MANY, &mut done);
        assert_eq!(done.drain(..).count(), 1);
    };
    ("copy 64 bytes: submit and poll", Box::new(call))
}

fn lanes() -> Hot {
    let (fd, mut asking) = lane::create(1).expect("memory");
    let mut answering = lane::open(fd, 1).expect("the same memory");
    let (mut asks, mut answers) = (asking.remove(0), answering.remove(0));
    let call = move || {
        asks.send([black_box([1; lane::REQUEST_WORDS])].iter()).expect("an honest peer");
        let asked = answers.receive().expect("an honest peer").expect("one was sent");
        answers.room().expect("an honest peer");
        answers.send(&[asked[0]; lane::REPLY_WORDS]);
        black_box(asks.receive().expect("an honest peer"));
    };
    ("lane: a request there, a reply back", Box::new(call))
}

/// What a batch inside of one process costs its caller, who copies it himself.
fn batches(engine: &Engine) -> [Hot; 2] {
    let region = || {
        let len = MANY * BYTES;
        engine.allocate(len, Location::Cpu(None), Access::READ_WRITE).expect("a region")
    };
    let (source, target, own) = (region(), region(), engine.clone());
    let prepare = move || {
        let mut batch = Batch::new(&own.local());
        for at in (0..MANY).map(|number| number * BYTES) {
            let lease = source.share(at..at + BYTES).expect("a lease");
            batch.write(&lease, target.addr() + at as u64);
        }
        own.prepare(batch).expect("a good batch")
    };
    let (prepared, engine) = (prepare(), engine.clone());
    let post = move || drop(black_box(block_on(engine.post(&prepared)).expect("it is copied")));
    [
        ("prepare a batch of 16, and drop it", Box::new(move || drop(black_box(prepare())))),
        ("post a batch of 16 inside the process", Box::new(post)),
    ]
}

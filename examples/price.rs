//! The program whose instructions `cargo xtask price` counts: engines of one process that move
//! 4 KiB blocks by every path, in phases that begin with a call of [`begin_phase`].
//!
//! The counter dumps and starts anew at each such call. Every shape is posted a number of times and
//! then twice as often, so the difference of the two phases is its cost, with nothing of the start
//! and of the dumps in it. Nobody polls while idle (`Idle::Event`): polling would be counted, and
//! its length is a matter of time. Both ends of a transfer are in this process; both are counted.

use std::hint::black_box;
use std::ops::Range;

use futures_lite::future::block_on;
use kvrail::runtime::{Driver, Idle, Shards};
use kvrail::{
    Access, Batch, Engine, EngineBuilder, Eternal, Location, Peer, Prepared, Region, Result,
};

const BLOCK: usize = 4096;
const BATCHES: [usize; 2] = [1, 16];
const BYTES: usize = BLOCK * 16;
/// Posted before it counts: connections are made, peers asked, queues have their size.
const WARM_UP: usize = 100;

/// A path, and the two ends that take it.
struct Ends {
    path: &'static str,
    near: Engine,
    peer: Peer,
    memory: Region,
    far: u64,
    _far: Option<Engine>,
}

#[derive(Clone, Copy)]
enum Operation {
    Write,
    Read,
}

/// Called where a phase begins; the counter knows it by its name.
#[inline(never)]
fn begin_phase(name: &str) {
    println!("{}", black_box(name));
}

fn main() -> Result<()> {
    let count = std::env::args().nth(1).and_then(|word| word.parse().ok()).unwrap_or(500);
    for start in [local, host, process_vm, tcp] {
        start()?.price(count)?;
    }
    Ok(())
}

fn local() -> Result<Ends> {
    let near = engine(true)?;
    let [memory, far] = [allocate(&near)?, allocate(&near)?];
    let peer = near.local();
    Ok(Ends { path: "local", near, peer, memory, far: far.addr(), _far: None })
}

fn host() -> Result<Ends> {
    between("host", true, allocate)
}

fn process_vm() -> Result<Ends> {
    between("process_vm", true, |engine| {
        engine.register(Eternal::new(BYTES).foreign(), Access::READ_WRITE)
    })
}

fn tcp() -> Result<Ends> {
    between("tcp", false, allocate)
}

fn between(
    path: &'static str,
    same_host: bool,
    memory: impl Fn(&Engine) -> Result<Region>,
) -> Result<Ends> {
    let (near, far) = (engine(same_host)?, engine(same_host)?);
    let peer = block_on(near.open(far.name()))?;
    let target = memory(&far)?.addr();
    Ok(Ends { path, peer, memory: memory(&near)?, far: target, near, _far: Some(far) })
}

fn engine(same_host: bool) -> Result<Engine> {
    let builder: EngineBuilder = Engine::builder().shards(Shards::Count(1)).driver(Driver::Epoll);
    builder.idle(Idle::Event).same_host(same_host).start()
}

fn allocate(engine: &Engine) -> Result<Region> {
    engine.allocate(BYTES, Location::Cpu(None), Access::READ_WRITE)
}

impl Ends {
    fn price(&self, count: usize) -> Result<()> {
        for (word, operation) in [("write", Operation::Write), ("read", Operation::Read)] {
            for blocks in BATCHES {
                let name = |way| format!("{} {word} {blocks} {way}", self.path);
                let prepared = self.prepare(operation, blocks)?;
                phases(&name("prepared"), count, || self.post(&prepared))?;
                drop(prepared);
                phases(&name("fresh"), count, || self.transfer(operation, blocks))?;
            }
        }
        begin_phase("end");
        Ok(())
    }

    fn batch(&self, operation: Operation, blocks: usize) -> Result<Batch> {
        let mut batch = Batch::new(&self.peer);
        for range in (0..blocks).map(block) {
            let far = self.far + range.start as u64;
            match operation {
                Operation::Write => batch.write(&self.memory.share(range)?, far),
                Operation::Read => batch.read(self.memory.lease(range)?, far),
            };
        }
        Ok(batch)
    }

    fn prepare(&self, operation: Operation, blocks: usize) -> Result<Prepared> {
        self.near.prepare(self.batch(operation, blocks)?)
    }

    fn post(&self, prepared: &Prepared) -> Result<()> {
        block_on(self.near.post(prepared))?;
        Ok(())
    }

    /// With all that a batch costs which is used once: leases, checks, the plan.
    fn transfer(&self, operation: Operation, blocks: usize) -> Result<()> {
        block_on(self.near.transfer(self.batch(operation, blocks)?))?;
        Ok(())
    }
}

fn block(number: usize) -> Range<usize> {
    number * BLOCK..(number + 1) * BLOCK
}

/// One phase that warms up and two that count: `name 500`, `name 1000`.
fn phases(name: &str, count: usize, work: impl Fn() -> Result<()>) -> Result<()> {
    begin_phase("warm up");
    (0..WARM_UP).try_for_each(|_| work())?;
    for count in [count, 2 * count] {
        begin_phase(&format!("{name} {count}"));
        (0..count).try_for_each(|_| work())?;
    }
    Ok(())
}

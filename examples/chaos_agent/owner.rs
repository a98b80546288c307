//! Memory for peers. Regions are published or granted block by block, with small blocks and with
//! large ones; every block is filled anew before it changes hands, and checked before that.

use std::collections::VecDeque;
use std::fs::File;
use std::hash::{DefaultHasher, Hasher};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kvrail::{Access, Block, BlockPool, Counter, Engine, Location, Region};
use serde_json::{Value, json};

use crate::orders::{Content, Fault, Revoke, Settled, Verdict};
use crate::pattern::Author;
use crate::tenancy::Tenure;

/// A kind of region: how its blocks are reached, how many there are, and their size in bytes.
struct Kind {
    is_granted: bool,
    blocks: usize,
    block_bytes: usize,
}

/// Large blocks take several slices and some milliseconds, small ones make many requests.
const KINDS: [Kind; 4] = [
    Kind { is_granted: false, blocks: 32, block_bytes: 64 << 10 },
    Kind { is_granted: true, blocks: 32, block_bytes: 64 << 10 },
    Kind { is_granted: false, blocks: 4, block_bytes: 2 << 20 },
    Kind { is_granted: true, blocks: 4, block_bytes: 2 << 20 },
];
/// Regions that were unregistered and are still watched.
const RETIRED_MAX: usize = 8;
/// Counters that peers may advance, one for each stream of their transfers.
const COUNTERS: u64 = 16;

pub struct Owner {
    engine: Engine,
    author: Author,
    plots: Vec<Mutex<Arc<Plot>>>,
    retired: Mutex<VecDeque<Retired>>,
    counters: Vec<Counter>,
}

/// A region of one kind, from its registration until it is unregistered.
struct Plot {
    epoch: u64,
    /// It is being unregistered: what is asked of it may fail.
    is_going: AtomicBool,
    kind: &'static Kind,
    region: Region,
    pool: BlockPool,
    tenures: Vec<Mutex<Tenure>>,
}

impl Owner {
    pub fn new(engine: &Engine, author: Author) -> Verdict<Self> {
        let plot =
            |at| Plot::new(engine, author, at, (0, 0)).map(|plot| Mutex::new(Arc::new(plot)));
        let plots = (0..KINDS.len()).map(plot).collect::<Verdict<_>>()?;
        let counters = (0..COUNTERS).map(|id| engine.counter(id)).collect::<Result<_, _>>()?;
        let (engine, retired) = (engine.clone(), Mutex::default());
        Ok(Self { engine, author, plots, retired, counters })
    }

    /// What peers may be offered.
    pub fn regions(&self) -> Value {
        let kinds = KINDS.iter().map(|kind| {
            json!({ "granted": kind.is_granted, "blocks": kind.blocks, "bytes": kind.block_bytes })
        });
        kinds.collect()
    }

    /// Gives up to `count` blocks away; fewer where the others are out.
    pub fn offer(&self, region: usize, count: usize, write: bool) -> Verdict {
        let plot = self.plot(region)?;
        let mut offered = Vec::new();
        while offered.len() < count {
            let Ok(block) = plot.pool.take() else { break };
            match plot.offer(&self.engine, block, write) {
                Ok(block) => offered.push(block),
                Err(fault) => return plot.unless_going(fault),
            }
        }
        Ok(json!({ "epoch": plot.epoch, "blocks": offered }))
    }

    /// Takes blocks back: what is quiet is checked, filled and watched; what is not stays out.
    pub async fn settle(
        &self,
        region: usize,
        epoch: u64,
        blocks: &[Settled],
        revoke: Revoke,
    ) -> Verdict {
        let plot = self.plot(region)?;
        if plot.epoch != epoch {
            return Ok(json!({}));
        }
        let settled = plot.settle(blocks, revoke).await;
        settled.or_else(|fault| plot.unless_going(fault))
    }

    /// Unregisters a region under whatever is under way, and puts another in its place.
    pub async fn renew(&self, region: usize) -> Verdict {
        let old = self.plot(region)?;
        if old.is_going.swap(true, Ordering::Relaxed) {
            return Ok(Value::Null);
        }
        self.engine.unregister(old.region.clone()).await?;
        self.retire(Retired::new(&old)?)?;
        let generation = old.tenures.iter().map(|tenure| lock(tenure).generation()).max();
        let first = (old.epoch + 1, generation.unwrap_or(0) + 1);
        let new = Plot::new(&self.engine, self.author, region, first)?;
        *lock(&self.plots[region]) = Arc::new(new);
        Ok(Value::Null)
    }

    fn retire(&self, retired: Retired) -> Verdict<()> {
        let mut all = lock(&self.retired);
        all.push_back(retired);
        let oldest = (all.len() > RETIRED_MAX).then(|| all.pop_front()).flatten();
        drop(all);
        oldest.map_or(Ok(()), |oldest| oldest.check())
    }

    /// Looks a last time at the regions that are gone.
    pub fn bury(&self) -> Verdict {
        let all = std::mem::take(&mut *lock(&self.retired));
        all.iter().try_for_each(Retired::check)?;
        Ok(Value::Null)
    }

    pub fn blocks(&self) -> usize {
        KINDS.iter().map(|kind| kind.blocks).sum()
    }

    /// Looks at one of all blocks.
    pub fn check(&self, mut block: usize) -> Verdict<()> {
        for (region, kind) in KINDS.iter().enumerate() {
            match block.checked_sub(kind.blocks) {
                None => return self.plot(region)?.check(block),
                Some(rest) => block = rest,
            }
        }
        Ok(())
    }

    pub fn check_all(&self) -> Verdict {
        (0..self.blocks()).try_for_each(|block| self.check(block))?;
        Ok(Value::Null)
    }

    /// Blocks that the pools don't hand out.
    pub fn in_flight(&self) -> usize {
        let missing = |plot: &Mutex<Arc<Plot>>| missing(&lock(plot).pool);
        self.plots.iter().map(missing).sum()
    }

    pub fn counters(&self) -> Vec<u64> {
        self.counters.iter().map(Counter::value).collect()
    }

    fn plot(&self, region: usize) -> Verdict<Arc<Plot>> {
        let plot = self.plots.get(region).map(|plot| lock(plot).clone());
        plot.ok_or_else(|| Fault::Other(format!("there is no region {region}")))
    }
}

/// Blocks of a pool that can't be taken.
pub fn missing(pool: &BlockPool) -> usize {
    let taken: Vec<_> = std::iter::from_fn(|| pool.take().ok()).collect();
    pool.len() - taken.len()
}

impl Plot {
    /// The `epoch`-th region of a kind; its blocks' tenancies begin with `generation`.
    fn new(
        engine: &Engine,
        author: Author,
        at: usize,
        (epoch, generation): (u64, u32),
    ) -> Verdict<Self> {
        let kind = &KINDS[at];
        let access = if kind.is_granted { Access::LOCAL } else { Access::READ_WRITE };
        let memory = kind.blocks * kind.block_bytes;
        let region = engine.allocate(memory, Location::Cpu(None), access)?;
        let pool = BlockPool::new(region.clone(), kind.block_bytes)?;
        let first = KINDS[..at].iter().map(|kind| kind.blocks).sum::<usize>();
        let tenure = |block| Mutex::new(Tenure::new(author, first + block, generation));
        let tenures = (0..kind.blocks).map(tenure).collect();
        let is_going = AtomicBool::new(false);
        let plot = Self { epoch, is_going, kind, region, pool, tenures };
        (0..kind.blocks).try_for_each(|block| {
            let (mut tenure, mut bytes) = (lock(&plot.tenures[block]), plot.room());
            tenure.refill(&plot.region, &mut bytes, plot.range(block).start)
        })?;
        Ok(plot)
    }

    fn offer(&self, engine: &Engine, block: Block, write: bool) -> Verdict {
        let index = block.index();
        self.settle_content(index, None)?;
        let mut tenure = lock(&self.tenures[index]);
        let mut offered = tenure.offer(engine, block, self.kind.is_granted, write)?;
        offered["block"] = index.into();
        offered["bytes"] = self.kind.block_bytes.into();
        Ok(offered)
    }

    async fn settle(&self, blocks: &[Settled], revoke: Revoke) -> Verdict {
        let (mut doubtful, mut revoked_us) = (0, Vec::new());
        for settled in blocks {
            let index = settled.block;
            if self.kind.is_granted && revoke == Revoke::Drop {
                self.let_go(index, settled.content);
                continue;
            }
            if let Some(grant) = self.tenure(index).and_then(|mut tenure| tenure.take_grant()) {
                revoked_us.push(grant.revoke().await.as_micros() as u64);
            }
            match self.kind.is_granted || settled.quiet {
                true => self.reuse(index, settled.content)?,
                false => doubtful += 1,
            }
        }
        Ok(json!({ "doubtful": doubtful, "revoked_us": revoked_us }))
    }

    /// What fails while the region goes is no fault, unless bytes are wrong.
    fn unless_going(&self, fault: Fault) -> Verdict {
        match fault {
            Fault::Other(_) if self.is_going.load(Ordering::Relaxed) => Ok(json!({})),
            fault => Err(fault),
        }
    }

    /// Nobody stores into the block any more: it must be as it is said to be, and is used again.
    fn reuse(&self, index: usize, content: Content) -> Verdict<()> {
        self.settle_content(index, Some(content))?;
        lock(&self.tenures[index]).give_back();
        Ok(())
    }

    /// Checks a block; fills it anew after a tenancy of which the end is told now, or was not.
    fn settle_content(&self, index: usize, content: Option<Content>) -> Verdict<()> {
        let (mut tenure, mut bytes, at) =
            (lock(&self.tenures[index]), self.room(), self.range(index).start);
        content.into_iter().for_each(|content| tenure.narrow(content));
        tenure.check(&self.region, &mut bytes, at)?;
        match content.is_some() || !tenure.rests() {
            true => tenure.refill(&self.region, &mut bytes, at),
            false => Ok(()),
        }
    }

    /// The pool says when it may be used again.
    fn let_go(&self, index: usize, content: Content) {
        let mut tenure = lock(&self.tenures[index]);
        tenure.narrow(content);
        tenure.give_back();
    }

    fn check(&self, block: usize) -> Verdict<()> {
        lock(&self.tenures[block]).check(&self.region, &mut self.room(), self.range(block).start)
    }

    fn tenure(&self, block: usize) -> Option<MutexGuard<'_, Tenure>> {
        self.tenures.get(block).map(lock)
    }

    fn range(&self, block: usize) -> Range<usize> {
        block * self.kind.block_bytes..(block + 1) * self.kind.block_bytes
    }

    fn room(&self) -> Vec<u8> {
        vec![0; self.kind.block_bytes]
    }
}

/// A region that was unregistered: not a byte of it may change. No lease can be had of it, so it
/// is read as the kernel shows it.
struct Retired {
    region: Region,
    hash: u64,
}

impl Retired {
    fn new(plot: &Plot) -> Verdict<Self> {
        let bytes = read(&plot.region)?;
        for (tenure, bytes) in plot.tenures.iter().zip(bytes.chunks(plot.kind.block_bytes)) {
            lock(tenure).expected.check(bytes)?;
        }
        Ok(Self { region: plot.region.clone(), hash: hash(&bytes) })
    }

    fn check(&self) -> Verdict<()> {
        match hash(&read(&self.region)?) == self.hash {
            true => Ok(()),
            false => Err(Fault::Wrong("a region changed after it was unregistered".into())),
        }
    }
}

fn read(region: &Region) -> Verdict<Vec<u8>> {
    let mut bytes = vec![0; region.len()];
    File::open("/proc/self/mem")?.read_exact_at(&mut bytes, region.addr())?;
    Ok(bytes)
}

fn hash(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(bytes);
    hasher.finish()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

//! Reaching into the memory of peers. What is sent says whose it shall be; what a read brought is
//! checked if it ended well; and memory that came back is used again at once and watched.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use kvrail::{
    Access, Batch, Block, BlockPool, Engine, Error, ExclusiveLease, Lease, Location, Outcome, Peer,
};
use serde_json::json;

use crate::ending::{Over, end, receipt, status};
use crate::orders::{Ending, Fault, Target, Transfer, Verdict};
use crate::owner::missing;
use crate::pattern::{Author, Tenancy};

/// Bytes and number of the blocks that are sent from and received into, as owners have them.
const POOLS: [(usize, usize); 2] = [(64 << 10, 64), (2 << 20, 8)];
/// The numbers of our blocks, above those that owners give away.
const OWN_BLOCKS: usize = 512;
/// How long a lease may stay out after its transfer was dropped, and a pool may be empty.
const PATIENCE: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(1);
/// How long memory that a failed read gave back is watched.
const WATCH: Duration = Duration::from_millis(5);

pub struct Requester {
    engine: Engine,
    author: Author,
    pools: Vec<BlockPool>,
    peers: Mutex<HashMap<String, (u8, Peer)>>,
    generation: AtomicU32,
}

impl Requester {
    pub fn new(engine: &Engine, author: Author) -> Verdict<Self> {
        let pool = |(bytes, count)| {
            let region = engine.allocate(bytes * count, Location::Cpu(None), Access::LOCAL)?;
            BlockPool::new(region, bytes)
        };
        let pools = POOLS.into_iter().map(pool).collect::<Result<_, _>>()?;
        let (engine, peers) = (engine.clone(), Mutex::default());
        Ok(Self { engine, author, pools, peers, generation: AtomicU32::new(0) })
    }

    /// Lets go of all peers.
    pub fn forget(&self) {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Blocks that are still in flight.
    pub fn in_flight(&self) -> usize {
        self.pools.iter().map(missing).sum()
    }

    /// Carries out a transfer; answers how it ended.
    pub async fn transfer(&self, transfer: Transfer) -> Verdict {
        let peer = match self.peer(&transfer.peer, transfer.incarnation).await {
            Ok(peer) => peer,
            Err(error) => {
                let end = status(&Err(error));
                return Ok(json!({ "ends": vec![end; transfer.targets.len()] }));
            }
        };
        let mut blocks = Vec::new();
        for target in &transfer.targets {
            blocks.push(self.block(target.bytes).await?);
        }
        let batch = self.batch(&peer, &transfer, &blocks)?;
        let path = peer.path().label();
        match end(self.engine.transfer(batch), transfer.ending).await {
            Some(Over { outcome, is_complete }) => {
                let ends: Vec<_> = outcome.statuses().iter().map(status).collect();
                let receipt = receipt(&outcome);
                self.check(&transfer, &blocks, outcome).await?;
                Ok(json!({
                    "ends": ends,
                    "receipt": receipt,
                    "path": path,
                    "complete": is_complete,
                }))
            }
            None => {
                let dropped = Instant::now();
                for block in &blocks {
                    self.reuse(block, back(block).await?).await?;
                }
                let back_us = dropped.elapsed().as_micros() as u64;
                Ok(json!({ "back_us": back_us, "path": path }))
            }
        }
    }

    async fn peer(&self, name: &str, incarnation: u8) -> Result<Peer, Error> {
        let known = self.peers.lock().unwrap_or_else(PoisonError::into_inner).get(name).cloned();
        if let Some((_, peer)) = known.filter(|(known, _)| *known == incarnation) {
            return Ok(peer);
        }
        let peer = self.engine.open(name).await?;
        let mut peers = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
        peers.insert(name.to_owned(), (incarnation, peer.clone()));
        Ok(peer)
    }

    fn batch(&self, peer: &Peer, transfer: &Transfer, blocks: &[Block]) -> Verdict<Batch> {
        let mut batch = Batch::new(peer);
        for (target, block) in transfer.targets.iter().zip(blocks) {
            let mut lease = block.lease()?;
            match transfer.write {
                true => fill(&mut lease, Tenancy::from_word(target.word))?,
                false => fill(&mut lease, self.scratch(block))?,
            }
            add(&mut batch, transfer.write, lease, target);
        }
        if transfer.write {
            batch.count(transfer.counter, 1);
        }
        if let Ending::Deadline { after_us } = transfer.ending {
            batch.deadline(Duration::from_micros(after_us));
        }
        Ok(batch)
    }

    /// A block of this size that nothing touches.
    async fn block(&self, bytes: usize) -> Verdict<Block> {
        let pool = self.pools.iter().find(|pool| pool.block_bytes() == bytes);
        let pool = pool.ok_or_else(|| Fault::Other(format!("no blocks of {bytes} bytes")))?;
        let start = Instant::now();
        loop {
            match pool.take() {
                Ok(block) => return Ok(block),
                Err(error) if start.elapsed() > PATIENCE => {
                    return Err(Fault::Wrong(format!("leases don't come back: {error}")));
                }
                Err(_) => tokio::time::sleep(PAUSE).await,
            }
        }
    }

    /// What a read brought must be what was offered, if it ended well; otherwise nothing comes
    /// any more.
    async fn check(&self, transfer: &Transfer, blocks: &[Block], outcome: Outcome) -> Verdict<()> {
        let ended_well: Vec<_> = outcome.statuses().iter().map(Result::is_ok).collect();
        let leases = outcome.into_leases().into_iter();
        let all = leases.zip(ended_well).zip(blocks.iter().zip(&transfer.targets));
        for ((lease, ended_well), (block, target)) in all {
            if transfer.write {
                drop(lease);
                fill(&mut block.lease()?, self.scratch(block))?;
            } else if ended_well {
                let whole = Lease::into_exclusive(lease);
                let whole = whole.ok_or_else(|| Fault::Wrong("a read without its lease".into()))?;
                read_well(&whole, target)?;
            } else if let Some(lease) = Lease::overwrite(lease) {
                self.reuse(block, lease).await?;
            }
        }
        Ok(())
    }

    /// Uses memory that came back at once, and watches it.
    async fn reuse(&self, block: &Block, mut lease: ExclusiveLease) -> Verdict<()> {
        let scratch = self.scratch(block);
        fill(&mut lease, scratch)?;
        tokio::time::sleep(WATCH).await;
        match scratch.find_foreign(&bytes(&lease)?) {
            None => Ok(()),
            Some(foreign) => {
                Err(Fault::Wrong(format!("a lease that came back was written: {foreign}")))
            }
        }
    }

    /// A tenancy of a block of our own.
    fn scratch(&self, block: &Block) -> Tenancy {
        let generation = self.generation.fetch_add(1, Ordering::Relaxed);
        self.author.tenancy(OWN_BLOCKS + block.index(), generation)
    }
}

fn add(batch: &mut Batch, write: bool, lease: ExclusiveLease, target: &Target) {
    match (write, &target.reference) {
        (true, Some(reference)) => batch.write_to(&lease.downgrade(), reference, 0),
        (true, None) => batch.write(&lease.downgrade(), target.addr),
        (false, Some(reference)) => batch.read_from(lease, reference, 0),
        (false, None) => batch.read(lease, target.addr),
    };
}

/// The lease of a block whose transfer was dropped, once nothing touches it any more.
async fn back(block: &Block) -> Verdict<ExclusiveLease> {
    let start = Instant::now();
    loop {
        match block.lease() {
            Ok(lease) => return Ok(lease),
            Err(error) if start.elapsed() > PATIENCE => {
                return Err(Fault::Wrong(format!("a dropped lease doesn't come back: {error}")));
            }
            Err(_) => tokio::time::sleep(PAUSE).await,
        }
    }
}

fn read_well(lease: &ExclusiveLease, target: &Target) -> Verdict<()> {
    match Tenancy::from_word(target.word).find_foreign(&bytes(lease)?) {
        None => Ok(()),
        Some(foreign) => Err(Fault::Wrong(format!("a read ended well with a {foreign}"))),
    }
}

fn fill(lease: &mut ExclusiveLease, tenancy: Tenancy) -> Verdict<()> {
    let mut bytes = vec![0; lease.len()];
    tenancy.fill(&mut bytes);
    Ok(lease.copy_in(0, &bytes)?)
}

fn bytes(lease: &ExclusiveLease) -> Verdict<Vec<u8>> {
    let mut bytes = vec![0; lease.len()];
    lease.copy_out(0, &mut bytes)?;
    Ok(bytes)
}

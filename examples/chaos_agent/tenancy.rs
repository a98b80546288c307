//! One block of an owner: what must be in it now, who is told of it, and using it again.

use kvrail::{Access, Block, Engine, Grant, GrantOptions, Region};
use serde_json::json;

use crate::orders::{Content, Fault, Verdict};
use crate::pattern::{Author, Tenancy};

/// What must be in a block.
#[derive(Clone, Copy)]
pub enum Expected {
    Exactly(Tenancy),
    /// It is being written: any byte may be the old or the new one.
    Either(Tenancy, Tenancy),
}

impl Expected {
    pub fn check(self, bytes: &[u8]) -> Verdict<()> {
        let foreign = match self {
            Self::Exactly(one) => one.find_foreign(bytes),
            Self::Either(one, other) => one.find_foreign_or(other, bytes),
        };
        foreign.map_or(Ok(()), |foreign| Err(Fault::Wrong(format!("a wrong byte: {foreign}"))))
    }

    /// What it is once more is known.
    fn narrowed(self, content: Content) -> Self {
        match (self, content) {
            (Self::Either(old, _), Content::Old) => Self::Exactly(old),
            (Self::Either(_, new), Content::New) => Self::Exactly(new),
            _ => self,
        }
    }
}

/// A block in its present tenancy.
pub struct Tenure {
    author: Author,
    number: usize,
    generation: u32,
    pub expected: Expected,
    /// While it is offered, or nobody knows whether something still stores into it.
    block: Option<Block>,
    grant: Option<Grant>,
}

impl Tenure {
    /// The block's first: it is empty yet.
    pub fn new(author: Author, number: usize, generation: u32) -> Self {
        let expected = Expected::Exactly(author.tenancy(number, generation));
        Self { author, number, generation, expected, block: None, grant: None }
    }

    /// Which tenancy it is, counted from 0.
    pub fn generation(&self) -> u32 {
        self.generation
    }

    /// Whether it is known to the byte what is in it.
    pub fn rests(&self) -> bool {
        matches!(self.expected, Expected::Exactly(_))
    }

    fn next(&mut self) -> Tenancy {
        self.generation += 1;
        self.author.tenancy(self.number, self.generation)
    }

    /// Looks at the bytes; a region that is gone has none.
    pub fn check(&self, region: &Region, bytes: &mut [u8], at: usize) -> Verdict<()> {
        let Ok(lease) = region.share(at..at + bytes.len()) else { return Ok(()) };
        lease.copy_out(0, bytes)?;
        self.expected.check(bytes)
    }

    /// Fills the block for another tenancy.
    pub fn refill(&mut self, region: &Region, bytes: &mut [u8], at: usize) -> Verdict<()> {
        let tenancy = self.next();
        tenancy.fill(bytes);
        region.lease(at..at + bytes.len())?.copy_in(0, bytes)?;
        self.expected = Expected::Exactly(tenancy);
        Ok(())
    }

    /// Gives a block that rests away; answers what a requester needs.
    pub fn offer(&mut self, engine: &Engine, block: Block, grants: bool, write: bool) -> Verdict {
        let Expected::Exactly(old) = self.expected else {
            return Err(Fault::Wrong("a block was handed out in mid-tenancy".into()));
        };
        let (access, tenancy) = match write {
            true => (Access::WRITE, self.next()),
            false => (Access::READ, old),
        };
        if write {
            self.expected = Expected::Either(old, tenancy);
        }
        let grant = grants.then(|| engine.grant_block(&block, access, GrantOptions::default()));
        self.grant = grant.transpose()?;
        let reference = self.grant.as_ref().map(Grant::reference);
        let (word, addr) = (tenancy.word(), block.addr());
        self.block = Some(block);
        Ok(json!({ "word": word, "addr": addr, "reference": reference }))
    }

    /// What is known now of its content.
    pub fn narrow(&mut self, content: Content) {
        self.expected = self.expected.narrowed(content);
    }

    pub fn take_grant(&mut self) -> Option<Grant> {
        self.grant.take()
    }

    /// Back to the pool; a grant that still holds ends with it.
    pub fn give_back(&mut self) {
        self.block = None;
        self.grant = None;
    }
}

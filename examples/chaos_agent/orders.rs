//! What an agent is told, what it answers, and the times that it keeps.

use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;

/// A peer that owes bytes and moves none for so long is gone. Some stops are longer, most shorter.
pub const PROGRESS: Duration = Duration::from_millis(1500);
/// Between two looks at memory that should rest.
pub const GLANCE: Duration = Duration::from_millis(2);

/// An order, with the number that its answer bears.
#[derive(Deserialize)]
pub struct Job {
    pub id: u64,
    #[serde(flatten)]
    pub order: Order,
}

#[derive(Deserialize)]
#[serde(tag = "do", rename_all = "snake_case")]
pub enum Order {
    /// Gives some blocks of a region away, to be written or read
    Offer { region: usize, count: usize, write: bool },
    /// Takes them back, and uses those again that are quiet
    Settle { region: usize, epoch: u64, blocks: Vec<Settled>, revoke: Revoke },
    /// Unregisters a region, whatever is under way, and registers another in its place
    Renew { region: usize },
    /// Writes or reads blocks of a peer
    Transfer(Transfer),
    /// Lets go of all peers, and of regions that were renewed
    Forget,
    /// Looks at every block
    Check,
    /// Says what the process holds
    Usage,
    /// Stops the engine
    Stop,
}

/// What became of a block, as far as the requester knows.
#[derive(Deserialize)]
pub struct Settled {
    pub block: usize,
    pub content: Content,
    /// Nobody stores into it any more.
    pub quiet: bool,
}

#[derive(Deserialize, Clone, Copy, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum Content {
    Old,
    New,
    /// Any byte may be the old or the new one.
    Either,
}

/// How an owner takes granted blocks back.
#[derive(Deserialize, Clone, Copy, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum Revoke {
    /// Waits for the revocation and uses the block again at once
    Await,
    /// Drops the block: the pool says when it may be used again
    Drop,
}

#[derive(Deserialize)]
pub struct Transfer {
    pub write: bool,
    pub peer: String,
    /// Which process of that name it is: another one is opened anew.
    pub incarnation: u8,
    pub targets: Vec<Target>,
    pub ending: Ending,
    /// The counter to advance behind a write.
    pub counter: u64,
}

/// A block that a peer has offered.
#[derive(Deserialize, Clone)]
pub struct Target {
    /// The word at its start, by the owner's pattern: of what a read finds, or a write leaves.
    pub word: u64,
    pub bytes: usize,
    pub addr: u64,
    pub reference: Option<kvrail::Reference>,
}

#[derive(Deserialize, Clone, Copy)]
#[serde(tag = "how", rename_all = "snake_case")]
pub enum Ending {
    Wait,
    Deadline { after_us: u64 },
    Cancel { after_us: u64 },
    Drop { after_us: u64 },
}

/// What is wrong.
#[derive(Debug)]
pub enum Fault {
    /// A promise was broken.
    Wrong(String),
    /// The order could not be carried out.
    Other(String),
}

pub type Verdict<T = Value> = Result<T, Fault>;

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Wrong(what) | Self::Other(what) => f.write_str(what),
        }
    }
}

impl<E: std::error::Error> From<E> for Fault {
    fn from(error: E) -> Self {
        Self::Other(error.to_string())
    }
}

//! What the processes say to each other: orders and reports between the parent and its
//! children as lines of JSON, and between decode and prefill as notifications of kvrail.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// From the parent to the decode process.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Order {
    /// The segment name of the prefill process.
    Open(String),
    /// Answer this prompt.
    Ask(Ask),
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Ask {
    pub tokens: Vec<u32>,
    pub max_tokens: usize,
}

/// From a child to the parent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Report {
    /// The model is loaded and the engine runs under this segment name.
    Ready(String),
    /// A token of the answer.
    Token(u32),
    /// The answer is complete.
    Answered { logit_hash: u64 },
    /// The prefill's part is done and all blocks have arrived.
    Shipped(Shipped),
    /// It is over.
    Failed(String),
}

/// What it took to bring the KV cache over.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Shipped {
    /// Label of the path that was used.
    pub path: String,
    /// Why that one, in words.
    pub why: String,
    pub bytes: usize,
    /// Time in which at least one transfer was under way.
    pub transfer: Duration,
    /// The part of it in which the prefill was computing.
    pub hidden: Duration,
}

/// From decode to prefill: compute this prompt and write its KV cache to these places.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Request {
    pub tokens: Vec<u32>,
    /// The block table: the address of each block that the prompt needs.
    pub blocks: Vec<u64>,
    /// For each piece of a block the counter to advance by the blocks whose piece has arrived.
    pub counters: Vec<u64>,
}

/// From prefill to decode: the whole prompt is computed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FirstToken {
    pub token: u32,
    /// Where it will stand: the prompt's length.
    pub position: usize,
}

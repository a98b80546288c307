//! What the processes say to each other: orders and reports between the parent and its
//! children as lines of JSON, and between decode and prefill as notifications of kvrail.

use std::time::Duration;

use kvrail::Reference;
use serde::{Deserialize, Serialize};

/// From the parent to the decode process.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Order {
    /// The segment name of the prefill process.
    Open(String),
    /// Answer this prompt.
    Ask(Ask),
    /// Have this prompt computed, and take its memory back when so many layers have arrived.
    Abort(Ask, usize),
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Ask {
    pub tokens: Vec<u32>,
    pub max_tokens: usize,
}

impl Ask {
    /// Another question, which needs as many blocks and fills them with something else.
    pub fn backwards(&self) -> Self {
        let tokens = self.tokens.iter().rev().copied().collect();
        Self { tokens, max_tokens: self.max_tokens }
    }
}

/// From a child to the parent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Report {
    /// The model is loaded and the engine runs under this segment name.
    Ready(String),
    /// A token of the answer.
    Token(u32),
    /// The answer is complete.
    Answered { logit_hash: u64, cache_hash: u64 },
    /// The request was aborted in mid-transfer, and its memory is free.
    Aborted(Aborted),
    /// The prefill's part is done and all blocks have arrived.
    Shipped(Shipped),
    /// The prefill has found its request aborted, and nothing of it is under way any more.
    Dropped(Dropped),
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

/// What it took to take an aborted request's memory back.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Aborted {
    /// Layers that had arrived by then.
    pub layers: usize,
    /// Blocks that were taken back.
    pub blocks: usize,
    /// From the abort until nobody could reach them any more.
    pub took: Duration,
}

/// What the prefill knows of a request that was aborted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Dropped {
    /// What the decode's engine said.
    pub why: String,
    /// Layers that had been sent by then, in whole or in part.
    pub layers: usize,
}

/// From decode to prefill: compute this prompt and write its KV cache to these places.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Request {
    /// No two requests of a decode process have the same.
    pub id: u64,
    pub tokens: Vec<u32>,
    /// The block table: a grant for each block that the prompt needs.
    pub blocks: Vec<Reference>,
    /// For each piece of a block the counter to advance by the blocks whose piece has arrived.
    pub counters: Vec<u64>,
}

/// From prefill to decode: the whole prompt is computed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FirstToken {
    pub request: u64,
    pub token: u32,
    /// Where it will stand: the prompt's length.
    pub position: usize,
}

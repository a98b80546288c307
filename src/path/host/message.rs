//! What engines of one host say to each other by their socket: JSON, one message a packet, with
//! descriptors beside some of them.
//!
//! ```text
//! asker                                        responder
//! Hello                            →
//!                                  ←           Welcome  [its ledgers, a bell for each lane]
//! Lanes  [lane memory, our bells]  →
//!                                  ←           Ready
//! Map / Offer [memfd] / Withdraw   →
//!                                  ←           Mapped [memfd] / Taken / Refused / Gone
//! LetGo                            ↔           LetGo
//! ```
//!
//! Whoever has opened memory by a GPU's handle says so when it is closed again: its owner frees it
//! no earlier.

use serde::{Deserialize, Serialize};

use crate::memory::grant::Key;

/// Version of the steps above and of a lane's words.
pub(crate) const VERSION: u32 = 4;

/// Ledgers that come with a welcome: of regions, and of grants.
pub(super) const LEDGERS: usize = 2;

/// By what memory of a GPU's is mapped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "by", rename_all = "snake_case")]
pub(crate) enum Vram {
    /// The descriptor that comes along, of an allocation of so many bytes.
    Descriptor { bytes: u64 },
    /// A handle of the driver's, in hexadecimal digits: of an allocation in which the region begins
    /// at `offset`, on the GPU of this number.
    Handle { handle: String, offset: u64, uuid: String },
}

/// From the engine that connected.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(crate) enum ToResponder {
    Hello {
        version: u32,
        /// The incarnation that is meant: another process may have got the name.
        to: u64,
        /// The name by which the responder was found.
        name: String,
        /// The asker's own name: what it may use of what is granted to one peer.
        from: String,
        /// Where a word is in the asker's memory, and which: proof of what is read from there.
        token: (u64, u64),
        /// By which both sides' logs call the session's first lane; the others follow it.
        #[serde(default)]
        label: u64,
        /// Where peers have to prove who they are: a lane's name and the pass given for it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pass: Option<(String, String)>,
    },
    /// As many lanes as were welcomed.
    Lanes,
    /// Which region holds these bytes, and may they be read? Under the grant of this key, if any.
    Map {
        call: u64,
        addr: u64,
        len: u64,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        key: Option<Key>,
    },
    /// Memory to copy from; its descriptor comes along, unless it is foreign memory.
    Offer {
        call: u64,
        id: u64,
        addr: u64,
        len: u64,
        is_foreign: bool,
        /// It is a GPU's.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        gpu: Option<Vram>,
    },
    /// The offered region is gone.
    Withdraw { id: u64 },
    /// What came by a handle with the answer to this call is closed again.
    LetGo { call: u64 },
}

/// From the engine that listens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(crate) enum ToAsker {
    Welcome {
        version: u32,
        incarnation: u64,
        /// For each lane the NUMA node of the shard that will answer it.
        lanes: Vec<Option<u32>>,
        /// As in `Hello`, of the responder.
        token: (u64, u64),
    },
    Ready,
    /// The region; its descriptor comes along, unless it is foreign memory.
    Mapped {
        call: u64,
        id: u64,
        slot: usize,
        addr: u64,
        len: u64,
        is_foreign: bool,
        /// As in `Offer`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        gpu: Option<Vram>,
    },
    /// The offer is taken.
    Taken {
        call: u64,
    },
    /// The memory can't go by this path; it may by another.
    Refused {
        call: u64,
        why: String,
    },
    /// What came by a handle with the offer of this call is closed again.
    LetGo {
        call: u64,
    },
    /// The region is gone.
    Gone {
        id: u64,
    },
    /// Regions came: what was refused may be asked again.
    Added,
}

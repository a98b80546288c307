//! The handshake of RDMA queue pairs, message type 0, as JSON text. No queue pair enters this room.
//!
//! Strict in what we write: Mooncake ends its process over a type that it did not expect. Tolerant
//! in what we read: unknown keys pass, and what peers before 0.3.11 leave out is none.

use std::fmt;

use serde::de::{Error, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use crate::limits::{NIC_PATH_MAX_BYTES, RDMA_QUEUES_MAX, REPLY_MESSAGE_MAX_CHARS};

/// Queue pair numbers have 24 bits.
const QP_NUMBERS: u32 = 1 << 24;

/// Sixteen pairs of digits, and the colons between them.
const GID_TEXT_BYTES: usize = 16 * 3 - 1;

/// Where a device's port is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct PortAddress {
    /// Its global identifier.
    pub gid: [u8; 16],
    /// Its local one; 0 on Ethernet.
    pub lid: u16,
}

/// A request, its answer, or the word that an endpoint is ready. An engine without RDMA answers
/// with the default one, which is empty, as Mooncake's does.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(into = "Text", try_from = "Text")]
pub(crate) struct Handshake {
    /// The sender's port; none from old peers, who publish it in their descriptor alone.
    pub port: Option<PortAddress>,
    /// The sender's NIC, see [`nic_path`].
    pub local_nic_path: String,
    /// The NIC that the sender wants to reach.
    pub peer_nic_path: String,
    /// The sender's queue pairs, 24 bits each, in the order in which they are connected. Of more
    /// than [`RDMA_QUEUES_MAX`], which are too many, one more is kept.
    pub qp_num: Vec<u32>,
    /// Present: the sender knows this step. True: it is taken, the sender's queue pairs are ready.
    pub ready_ack: Option<bool>,
    /// Not empty: refused, and why.
    pub reply_msg: String,
}

impl Handshake {
    /// Whether this is the second message of an initiator, that its queue pairs are ready.
    pub fn is_ack(&self) -> bool {
        self.ready_ack == Some(true)
    }

    /// An answer that refuses, to a request that has the key `ready_ack` or not.
    pub fn refusal(knows_ack: bool, why: impl Into<String>) -> Self {
        let ready_ack = knows_ack.then_some(false);
        Self { ready_ack, reply_msg: why.into(), ..Self::default() }
    }
}

/// `server@device`; none unless [`split_nic_path`] would give both back.
pub(crate) fn nic_path(server: &str, device: &str) -> Option<String> {
    let path = format!("{server}@{device}");
    let is_split = split_nic_path(&path) == Some((server, device));
    (is_split && path.len() <= NIC_PATH_MAX_BYTES).then_some(path)
}

/// The server and the device in a NIC's path: they meet at the first `@`.
pub(crate) fn split_nic_path(path: &str) -> Option<(&str, &str)> {
    path.split_once('@').filter(|(server, device)| !server.is_empty() && !device.is_empty())
}

/// As it stands in the frame; fields in the order in which Mooncake writes them.
#[derive(Serialize, Deserialize)]
struct Text {
    #[serde(default)]
    local_gid: String,
    #[serde(default, deserialize_with = "lid_or_zero")]
    local_lid: u16,
    #[serde(default)]
    local_nic_path: String,
    /// Unused by RDMA.
    #[serde(skip_deserializing)]
    payload: String,
    #[serde(default)]
    peer_nic_path: String,
    #[serde(default, deserialize_with = "numbers")]
    qp_num: Vec<u32>,
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    ready_ack: Option<bool>,
    #[serde(default)]
    reply_msg: String,
}

impl From<Handshake> for Text {
    fn from(message: Handshake) -> Self {
        Self {
            local_gid: message.port.map(|port| gid_text(port.gid)).unwrap_or_default(),
            local_lid: message.port.map_or(0, |port| port.lid),
            local_nic_path: message.local_nic_path,
            payload: String::new(),
            peer_nic_path: message.peer_nic_path,
            qp_num: message.qp_num,
            ready_ack: message.ready_ack,
            reply_msg: message.reply_msg,
        }
    }
}

/// What is wrong with a handshake whose types are right.
#[derive(Debug, thiserror::Error)]
enum Malformed {
    #[error("local_gid is not 16 pairs of hexadecimal digits, joined by colons")]
    Gid,
    #[error("a NIC path is longer than {NIC_PATH_MAX_BYTES} bytes")]
    Path,
}

impl TryFrom<Text> for Handshake {
    type Error = Malformed;

    fn try_from(text: Text) -> Result<Self, Malformed> {
        let lid = text.local_lid;
        let port = match text.local_gid.as_str() {
            "" => None,
            gid => Some(PortAddress { gid: parse_gid(gid).ok_or(Malformed::Gid)?, lid }),
        };
        if text.local_nic_path.len().max(text.peer_nic_path.len()) > NIC_PATH_MAX_BYTES {
            return Err(Malformed::Path);
        }
        Ok(Self {
            port,
            local_nic_path: text.local_nic_path,
            peer_nic_path: text.peer_nic_path,
            qp_num: text.qp_num,
            ready_ack: text.ready_ack,
            reply_msg: text.reply_msg.chars().take(REPLY_MESSAGE_MAX_CHARS).collect(),
        })
    }
}

/// A frame has room for half a million; a connection that waits for us must not hold them.
fn numbers<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u32>, D::Error> {
    deserializer.deserialize_seq(Numbers)
}

struct Numbers;

impl<'de> Visitor<'de> for Numbers {
    type Value = Vec<u32>;

    fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str("a list of queue pair numbers")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Vec<u32>, A::Error> {
        let mut numbers = Vec::new();
        while let Some(number) = items.next_element()? {
            if number >= QP_NUMBERS {
                return Err(A::Error::custom("a queue pair's number has 24 bits"));
            }
            if numbers.len() <= RDMA_QUEUES_MAX {
                numbers.push(number);
            }
        }
        Ok(numbers)
    }
}

/// Mooncake takes whatever is no such number for 0.
fn lid_or_zero<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u16, D::Error> {
    let value = Value::deserialize(deserializer)?;
    Ok(value.as_u64().and_then(|lid| u16::try_from(lid).ok()).unwrap_or(0))
}

/// The key says something by being there, whatever its value.
fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<bool>, D::Error> {
    let value = Value::deserialize(deserializer)?;
    Ok(Some(value.as_bool().unwrap_or(false)))
}

fn gid_text(gid: [u8; 16]) -> String {
    gid.map(|byte| format!("{byte:02x}")).join(":")
}

fn parse_gid(text: &str) -> Option<[u8; 16]> {
    let pairs: Vec<_> = text.split(':').take(GID_TEXT_BYTES).map(parse_pair).collect();
    pairs.into_iter().collect::<Option<Vec<u8>>>()?.try_into().ok()
}

fn parse_pair(pair: &str) -> Option<u8> {
    // A sign would pass as a digit.
    let is_pair = pair.len() == 2 && pair.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_pair.then(|| u8::from_str_radix(pair, 16).ok())?
}

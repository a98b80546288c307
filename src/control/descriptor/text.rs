//! A descriptor's text as it may arrive: what every protocol shares, and what one has of its own.

use serde::{Deserialize, Deserializer};

use super::{Buffer, Device, Extras, PROTOCOL_RDMA, PROTOCOL_TCP, PriorityMatrix};
use crate::control::wire::{FrameError, parse_object};

/// Protocols besides rdma whose buffers have a name, an address and a length. The keys of some have
/// 64 bits; nobody here uses them.
const ADDRESSED: [&str; 4] = [PROTOCOL_TCP, "barex", "efa", "cxi"];

/// The fields that all protocols share.
#[derive(Deserialize)]
pub struct Common {
    #[serde(default)]
    pub name: String,
    pub protocol: Protocol,
    #[serde(default)]
    pub rdma_server_name: Option<String>,
    #[serde(default)]
    pub tcp_data_host: Option<String>,
    #[serde(default)]
    pub tcp_data_port: u16,
    #[serde(default = "first_version")]
    pub tcp_proto_version: u32,
    #[serde(default)]
    pub timestamp: Option<String>,
    #[serde(default, deserialize_with = "extras_or_none")]
    pub kvrail: Option<Extras>,
}

/// The fields of the one protocol.
#[derive(Default, Deserialize)]
pub struct Parts {
    #[serde(default)]
    pub buffers: Vec<Buffer>,
    #[serde(default)]
    pub devices: Vec<Device>,
    #[serde(default, deserialize_with = "matrix_or_none")]
    pub priority_matrix: PriorityMatrix,
}

impl Parts {
    /// Those of `protocol`; none if we don't know it.
    pub fn read(protocol: &str, json: &[u8]) -> Result<Self, FrameError> {
        match protocol {
            PROTOCOL_RDMA => parse_object(json),
            name if ADDRESSED.contains(&name) => {
                let Plain { buffers } = parse_object(json)?;
                let buffers = buffers.into_iter().map(PlainBuffer::without_keys).collect();
                Ok(Self { buffers, ..Self::default() })
            }
            _ => Ok(Self::default()),
        }
    }
}

#[derive(Deserialize)]
struct Plain {
    #[serde(default)]
    buffers: Vec<PlainBuffer>,
}

#[derive(Deserialize)]
struct PlainBuffer {
    addr: u64,
    length: u64,
    name: String,
}

impl PlainBuffer {
    fn without_keys(self) -> Buffer {
        let Self { addr, length, name } = self;
        Buffer { addr, length, name, ..Buffer::default() }
    }
}

/// One protocol, or the array of a multi-protocol build.
#[derive(Deserialize)]
#[serde(untagged)]
pub enum Protocol {
    One(String),
    Many(Vec<String>),
}

impl Protocol {
    pub fn into_name(self) -> String {
        match self {
            Self::One(name) => name,
            Self::Many(names) => names.join("+"),
        }
    }
}

/// Descriptors without the key come from before version 2.
fn first_version() -> u32 {
    1
}

/// Extras in a form we don't know come from a later kvrail: it is still a Mooncake peer.
fn extras_or_none<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Extras>, D::Error> {
    let value = serde_json::Value::deserialize(deserializer)?;
    Ok(value.is_object().then(|| serde_json::from_value(value).ok()).flatten())
}

/// As with Mooncake's readers: a matrix that can't be read costs the choice of a device, and not
/// the descriptor.
fn matrix_or_none<'de, D: Deserializer<'de>>(deserializer: D) -> Result<PriorityMatrix, D::Error> {
    let value = serde_json::Value::deserialize(deserializer)?;
    if value.is_null() {
        return Ok(PriorityMatrix::default());
    }
    Ok(serde_json::from_value(value).unwrap_or_else(|error| {
        tracing::warn!(%error, "a peer's priority matrix is unreadable: its devices are not used");
        PriorityMatrix::default()
    }))
}

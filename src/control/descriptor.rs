//! The segment descriptor: what an engine tells its peers about itself, as JSON.
//!
//! Strict in what we write: exact types, keys in Mooncake's order, no buffer that a reader would
//! reject. Tolerant in what we read: unknown keys and protocols pass, missing optional keys have
//! Mooncake's defaults. What we add stands under the one key `kvrail`, which Mooncake ignores.

use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Deserializer, Serialize};

use super::wire;
use crate::error::{Error, Result};
use crate::limits::CONTROL_FRAME_MAX_BYTES;

/// The protocol string of segments reached over TCP.
pub const PROTOCOL_TCP: &str = "tcp";

/// The TCP protocol version we publish: 2 = status frames on request (see `tcp_proto_version`).
pub const TCP_PROTO_VERSION: u32 = 2;

/// Longest descriptor text: a control frame less its type byte and the final line feed.
const JSON_MAX_BYTES: usize = CONTROL_FRAME_MAX_BYTES - 2;

/// Protocols whose buffers have a name, an address and a length.
const ADDRESSED: [&str; 4] = ["rdma", "barex", "efa", "cxi"];

/// What an engine tells its peers. Fields stand in the order in which Mooncake writes them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Descriptor {
    /// Memory that peers may name.
    pub buffers: Vec<Buffer>,
    /// Present if the peer is kvrail.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kvrail: Option<Extras>,
    /// Segment name.
    pub name: String,
    /// `tcp`, `rdma`, …; several joined by `+` if a multi-protocol build wrote them.
    pub protocol: String,
    /// Name used in NIC paths; empty for TCP.
    pub rdma_server_name: String,
    /// Host of the data listener; absent: the control host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tcp_data_host: Option<String>,
    /// Port of the data listener; 0 if there is none.
    pub tcp_data_port: u16,
    /// 1: no status frames; 2: status frames on request.
    pub tcp_proto_version: u32,
    /// When it was written, `YYYY-MM-DD HH:MM:SS.uuuuuu`; readers ignore it.
    pub timestamp: String,
}

/// A range of memory, by the address its owner gave it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Buffer {
    /// First address.
    pub addr: u64,
    /// Bytes.
    pub length: u64,
    /// Location or segment name; never empty.
    pub name: String,
}

impl Buffer {
    fn is_valid(&self) -> bool {
        !self.name.is_empty()
            && self.addr != 0
            && self.length != 0
            && self.addr.checked_add(self.length).is_some()
    }
}

/// What only kvrail says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extras {
    /// Version of the steps that only kvrail peers take.
    pub version: u32,
    /// Differs between two processes that had the same name one after the other.
    #[serde(default)]
    pub incarnation: u64,
    /// Unix sockets at which processes of the same host and user may share memory with it; an
    /// abstract name begins with `@`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sockets: Vec<String>,
}

impl Extras {
    /// Version of the steps that we know: 2 has connections with names, which are ended on demand.
    pub const VERSION: u32 = 2;

    /// Whether its connections are to be named.
    pub fn has_named_lanes(&self) -> bool {
        self.version >= 2
    }
}

impl Descriptor {
    /// Reads a descriptor of any protocol. A TCP descriptor with a buffer that has no name, no
    /// address or no length is refused whole, as Mooncake does.
    pub fn parse(json: &[u8]) -> Result<Self> {
        let text: Text = wire::parse_object(json).map_err(unreadable)?;
        let protocol = text.protocol.into_name();
        let buffers = match protocol.as_str() {
            PROTOCOL_TCP => wire::parse_object::<Buffers>(json).map_err(unreadable)?.buffers,
            name if ADDRESSED.contains(&name) => {
                wire::parse_object::<Buffers>(json).map_err(unreadable)?.buffers
            }
            _ => Vec::new(),
        };
        let descriptor = Self {
            buffers,
            kvrail: text.kvrail,
            name: text.name,
            protocol,
            rdma_server_name: text.rdma_server_name.unwrap_or_default(),
            tcp_data_host: text.tcp_data_host.filter(|host| !host.is_empty()),
            tcp_data_port: text.tcp_data_port,
            tcp_proto_version: text.tcp_proto_version,
            timestamp: text.timestamp.unwrap_or_default(),
        };
        descriptor.check_buffers()?;
        Ok(descriptor)
    }

    /// The text to publish. If it would exceed what default peers read (1 MiB), adjacent buffers
    /// are published as one; if that is not enough, the error says by how much.
    pub fn to_json(&self) -> Result<Vec<u8>> {
        self.check_buffers()?;
        let json = self.write();
        if json.len() <= JSON_MAX_BYTES {
            return Ok(json);
        }
        let merged = Self { buffers: merge_adjacent(&self.buffers), ..self.clone() };
        let json = merged.write();
        match json.len() <= JSON_MAX_BYTES {
            true => Ok(json),
            false => Err(too_long(json.len(), merged.buffers.len())),
        }
    }

    /// Fails unless the segment can be reached over TCP.
    pub fn check_tcp(&self) -> Result<()> {
        if self.protocol != PROTOCOL_TCP {
            return Err(Error::refused(format!(
                "the peer serves {:?} only, this engine speaks tcp: start the peer with tcp \
                 (Mooncake: MC_FORCE_TCP=1)",
                shortened(&self.protocol)
            )));
        }
        if self.tcp_data_port == 0 {
            return Err(Error::refused(
                "the peer publishes no tcp_data_port: it needs Mooncake 0.3.5 or later",
            ));
        }
        Ok(())
    }

    fn write(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("a struct of strings and numbers is always JSON")
    }

    fn check_buffers(&self) -> Result<()> {
        if self.protocol != PROTOCOL_TCP {
            return Ok(());
        }
        match self.buffers.iter().find(|buffer| !buffer.is_valid()) {
            None => Ok(()),
            Some(Buffer { addr, length, name }) => Err(Error::refused(format!(
                "buffer {:?} at {addr:#x} of {length} bytes: name, address and length must not be \
                 empty, and it must end within 64 bits",
                shortened(name)
            ))),
        }
    }
}

/// Sorted by address, and neighbours of one name joined.
fn merge_adjacent(buffers: &[Buffer]) -> Vec<Buffer> {
    let mut sorted = buffers.to_vec();
    sorted.sort_by_key(|buffer| buffer.addr);
    sorted.dedup_by(|next, last| {
        let touching = last.addr.checked_add(last.length) == Some(next.addr);
        match last.length.checked_add(next.length) {
            Some(length) if touching && last.name == next.name => last.length = length,
            _ => return false,
        }
        true
    });
    sorted
}

fn too_long(bytes: usize, buffers: usize) -> Error {
    Error::refused(format!(
        "the segment descriptor would be {bytes} bytes long with {buffers} buffers, but peers read \
         at most {JSON_MAX_BYTES}: register fewer and larger regions"
    ))
}

fn unreadable(error: wire::FrameError) -> Error {
    Error::refused("the segment descriptor is unreadable").with_source(error)
}

fn shortened(text: &str) -> String {
    text.chars().take(100).collect()
}

/// The fields that all protocols share, as they may arrive.
#[derive(Deserialize)]
struct Text {
    #[serde(default)]
    name: String,
    protocol: Protocol,
    #[serde(default)]
    rdma_server_name: Option<String>,
    #[serde(default)]
    tcp_data_host: Option<String>,
    #[serde(default)]
    tcp_data_port: u16,
    #[serde(default = "first_version")]
    tcp_proto_version: u32,
    #[serde(default)]
    timestamp: Option<String>,
    #[serde(default, deserialize_with = "extras_or_none")]
    kvrail: Option<Extras>,
}

#[derive(Deserialize)]
struct Buffers {
    #[serde(default)]
    buffers: Vec<Buffer>,
}

/// One protocol, or the array of a multi-protocol build.
#[derive(Deserialize)]
#[serde(untagged)]
enum Protocol {
    One(String),
    Many(Vec<String>),
}

impl Protocol {
    fn into_name(self) -> String {
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

/// Where a named engine's control daemon listens: the document `rpc_meta/<name>`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RpcMeta {
    /// Host of the daemon.
    pub ip_or_host_name: String,
    /// Its port.
    pub rpc_port: u16,
}

impl RpcMeta {
    /// Reads the document.
    pub fn parse(json: &[u8]) -> Result<Self> {
        wire::parse_object(json)
            .map_err(|error| Error::refused("the rpc_meta entry is unreadable").with_source(error))
    }

    /// The document's text.
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("a string and a number are always JSON")
    }
}

/// `now` as `YYYY-MM-DD HH:MM:SS.uuuuuu` in UTC. Mooncake writes local time; nobody reads it.
pub fn timestamp(now: SystemTime) -> String {
    let since = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (days, second) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    let (year, month, day) = civil_from_days(days);
    format!(
        "{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02}.{:06}",
        second / 3600,
        second / 60 % 60,
        second % 60,
        since.subsec_micros()
    )
}

/// Days since 1970-01-01 as year, month and day: Howard Hinnant's `civil_from_days`
/// (howardhinnant.github.io/date_algorithms.html), for dates from 1970 on.
fn civil_from_days(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    (year_of_era + era * 400 + u64::from(month <= 2), month, day)
}

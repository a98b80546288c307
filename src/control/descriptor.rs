//! The segment descriptor: what an engine tells its peers about itself, as JSON.
//!
//! Strict in what we write: exact types, keys in Mooncake's order, no buffer that a reader would
//! reject. Tolerant in what we read: unknown keys and protocols pass, missing optional keys have
//! Mooncake's defaults. What we add stands under the one key `kvrail`, which Mooncake ignores.
//!
//! Below it: `text` (as documents arrive), `gid` (a device's address in text), `matrix` (which
//! devices are near to which memory), `kept` (a document's age), `order` (how Mooncake's readers
//! number devices), `offer` (what we publish of our devices), `choice` (which of a peer's devices
//! reach its memory).

mod choice;
mod gid;
mod kept;
mod matrix;
mod offer;
mod order;
mod text;

use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

pub use self::kept::Kept;
pub use self::matrix::PriorityMatrix;
pub use self::offer::{Offer, OwnDevice};
use self::text::{Common, Parts};
use super::wire;
use crate::error::{Error, Result};
use crate::limits::{CONTROL_FRAME_MAX_BYTES, RDMA_DEVICES_MAX};

/// The protocol string of segments reached over TCP.
pub const PROTOCOL_TCP: &str = "tcp";

/// The protocol string of segments reached over RDMA.
pub const PROTOCOL_RDMA: &str = "rdma";

/// The TCP protocol version we publish: 2 = status frames on request (see `tcp_proto_version`).
pub const TCP_PROTO_VERSION: u32 = 2;

/// Longest descriptor text: a control frame less its type byte and the final line feed.
const JSON_MAX_BYTES: usize = CONTROL_FRAME_MAX_BYTES - 2;

/// What an engine tells its peers. Fields stand in the order in which Mooncake writes them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Descriptor {
    /// Memory that peers may name.
    pub buffers: Vec<Buffer>,
    /// RDMA devices, in the order of every buffer's keys.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub devices: Vec<Device>,
    /// Present if the peer is kvrail.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kvrail: Option<Extras>,
    /// Segment name.
    pub name: String,
    /// Which devices are near to which memory.
    #[serde(skip_serializing_if = "PriorityMatrix::is_empty")]
    pub priority_matrix: PriorityMatrix,
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
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Buffer {
    /// First address.
    pub addr: u64,
    /// Bytes.
    pub length: u64,
    /// Its owner's keys for local work, one a device; of no use to others, yet counted by them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lkey: Vec<u32>,
    /// Location or segment name; never empty.
    pub name: String,
    /// Keys by which peers reach it, one a device; empty where it isn't reached over RDMA.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rkey: Vec<u32>,
}

/// An RDMA device, as peers know it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// The address of its port, in Mooncake's text: 16 pairs of hexadecimal digits.
    #[serde(with = "gid")]
    pub gid: [u8; 16],
    /// The port's number within its InfiniBand subnet; 0 over Ethernet.
    #[serde(default)]
    pub lid: u16,
    /// Its name on its host; never empty.
    pub name: String,
}

impl Buffer {
    fn is_valid(&self) -> bool {
        !self.name.is_empty()
            && self.addr != 0
            && self.length != 0
            && self.addr.checked_add(self.length).is_some()
    }

    fn has_keys(&self) -> bool {
        !self.rkey.is_empty() || !self.lkey.is_empty()
    }

    /// Every device has a key, or none has.
    fn has_keys_for(&self, devices: usize) -> bool {
        self.rkey.is_empty() || (self.rkey.len() == devices && self.lkey.len() == devices)
    }

    fn check(&self) -> Result<()> {
        if self.is_valid() {
            return Ok(());
        }
        let Self { addr, length, name, .. } = self;
        Err(Error::refused(format!(
            "buffer {:?} at {addr:#x} of {length} bytes: name, address and length must not be \
             empty, and it must end within 64 bits",
            shortened(name)
        )))
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
    /// How old the document is, where the service that keeps it can't say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kept: Option<Kept>,
}

impl Extras {
    /// Version of the steps that we know: 2 has connections with names, which are ended on demand;
    /// 3 has RDMA endpoints of kvrail's own, with fences, windows and notices; 4 takes note of its
    /// guests, and asks them to leave before it stops.
    pub const VERSION: u32 = 4;

    /// Whether its connections are to be named.
    pub fn has_named_lanes(&self) -> bool {
        self.version >= 2
    }

    /// Whether it is to be told who opens it.
    pub fn has_guests(&self) -> bool {
        self.version >= 4
    }

    /// Whether its RDMA endpoints, where it has any, are kvrail's own and not Mooncake's.
    pub fn has_rdma_endpoints(&self) -> bool {
        self.version >= 3
    }
}

impl Descriptor {
    /// Reads a descriptor of any protocol. One of tcp or rdma is refused whole where Mooncake does
    /// so: for a buffer without a name, an address or a length; for a device without a name or a
    /// readable GID; for keys that are not one a device.
    pub fn parse(json: &[u8]) -> Result<Self> {
        let common: Common = wire::parse_object(json).map_err(unreadable)?;
        let protocol = common.protocol.into_name();
        let Parts { buffers, devices, priority_matrix } =
            Parts::read(&protocol, json).map_err(unreadable)?;
        let descriptor = Self {
            buffers,
            devices,
            kvrail: common.kvrail,
            name: common.name,
            priority_matrix,
            protocol,
            rdma_server_name: common.rdma_server_name.unwrap_or_default(),
            tcp_data_host: common.tcp_data_host.filter(|host| !host.is_empty()),
            tcp_data_port: common.tcp_data_port,
            tcp_proto_version: common.tcp_proto_version,
            timestamp: common.timestamp.unwrap_or_default(),
        };
        descriptor.check()?;
        Ok(descriptor)
    }

    /// The text to publish. If it would exceed what default peers read (1 MiB), adjacent buffers
    /// are published as one; if that is not enough, the error says by how much.
    pub fn to_json(&self) -> Result<Vec<u8>> {
        self.check()?;
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

    /// The same without what reaches memory: no addresses, no keys, no ports of NICs.
    pub fn without_memory(self) -> Self {
        let priority_matrix = PriorityMatrix::default();
        Self { buffers: Vec::new(), devices: Vec::new(), priority_matrix, ..self }
    }

    /// Whether its memory is reached over TCP: every kvrail peer with a data listener serves it,
    /// whatever else it serves.
    pub fn reaches_tcp(&self) -> bool {
        (self.protocol == PROTOCOL_TCP || self.kvrail.is_some()) && self.tcp_data_port != 0
    }

    /// The devices through which its memory is reached over RDMA, if it is.
    pub fn rdma(&self) -> Option<&[Device]> {
        let serves = self.protocol == PROTOCOL_RDMA && !self.devices.is_empty();
        serves.then_some(&self.devices)
    }

    /// Fails unless the segment can be reached by what this engine speaks: TCP, and RDMA where
    /// `speaks_rdma`.
    pub fn check_reach(&self, speaks_rdma: bool) -> Result<()> {
        if self.reaches_tcp() || (speaks_rdma && self.rdma().is_some()) {
            return Ok(());
        }
        Err(Error::refused(match self.protocol.as_str() {
            PROTOCOL_TCP => {
                "the peer publishes no tcp_data_port: it needs Mooncake 0.3.5 or later".to_owned()
            }
            PROTOCOL_RDMA if speaks_rdma => "the peer serves rdma, but names no device: its NICs \
                are down, or not allowed to it"
                .to_owned(),
            other => format!(
                "the peer serves {:?} only, this engine speaks {}: start the peer with tcp \
                 (Mooncake: MC_FORCE_TCP=1)",
                shortened(other),
                if speaks_rdma { "tcp and rdma" } else { "tcp" }
            ),
        }))
    }

    fn write(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("a struct of strings and numbers is always JSON")
    }

    fn check(&self) -> Result<()> {
        let is_rdma = self.protocol == PROTOCOL_RDMA;
        if self.protocol == PROTOCOL_TCP || is_rdma {
            self.buffers.iter().try_for_each(Buffer::check)?;
        }
        if is_rdma { self.check_devices() } else { Ok(()) }
    }

    fn check_devices(&self) -> Result<()> {
        if self.devices.iter().any(|device| device.name.is_empty()) {
            return Err(Error::refused("an RDMA device of the descriptor has no name"));
        }
        let count = self.devices.len();
        if count > RDMA_DEVICES_MAX {
            return Err(Error::refused(format!(
                "the descriptor has {count} RDMA devices, of which {RDMA_DEVICES_MAX} are the most"
            )));
        }
        match self.buffers.iter().find(|buffer| !buffer.has_keys_for(count)) {
            None => Ok(()),
            Some(Buffer { addr, lkey, rkey, .. }) => Err(Error::refused(format!(
                "the buffer at {addr:#x} has {} rkeys and {} lkeys for {count} devices: each needs \
                 one a device",
                rkey.len(),
                lkey.len(),
            ))),
        }
    }
}

/// Sorted by address, and neighbours of one name joined; a key is good for its own buffer alone.
fn merge_adjacent(buffers: &[Buffer]) -> Vec<Buffer> {
    let mut sorted = buffers.to_vec();
    sorted.sort_by_key(|buffer| buffer.addr);
    sorted.dedup_by(|next, last| {
        let touching = last.addr.checked_add(last.length) == Some(next.addr);
        let has_keys = last.has_keys() || next.has_keys();
        match last.length.checked_add(next.length) {
            Some(length) if touching && last.name == next.name && !has_keys => {
                last.length = length;
            }
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

//! What the control plane is started with, and who it then is to others.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::ops::RangeInclusive;
use std::time::{Duration, SystemTime};

use tokio::net::lookup_host;
use tokio::time::timeout;

use super::address::Address;
use super::descriptor::{self, Buffer, Descriptor, Extras, PriorityMatrix};
use super::metadata::MetadataKind;
use crate::auth::Authentication;
use crate::error::{Error, Result};
use crate::limits::*;

/// How to start.
#[derive(Debug, Clone)]
pub(crate) struct ControlConfig {
    /// P2P: the host that peers reach us at (a port is ignored). Otherwise the segment's name.
    pub name: String,
    /// Where descriptors are found.
    pub metadata: MetadataKind,
    /// Prefix of all keys at a metadata server (Mooncake's `MC_METADATA_CLUSTER_ID`), or none.
    pub cluster: String,
    /// With a metadata server: the host to publish. By default the IP address in `name`, else the
    /// address from which this host reaches the server.
    pub advertise: Option<String>,
    /// Address to listen on.
    pub bind: IpAddr,
    /// Ports to choose from before any free one is taken.
    pub ports: RangeInclusive<u16>,
    /// Whether peers are reached over RDMA too.
    pub speaks_rdma: bool,
    /// What peers have to prove, and this engine to them.
    pub authentication: Authentication,
    /// Lets in those, too, who prove nothing.
    pub admits_plain: bool,
    /// Bounds and times.
    pub limits: ControlLimits,
}

impl ControlConfig {
    /// The defaults, for an engine of this name.
    pub fn new(name: impl Into<String>, metadata: MetadataKind) -> Self {
        Self {
            name: name.into(),
            metadata,
            cluster: String::new(),
            advertise: None,
            bind: Ipv6Addr::UNSPECIFIED.into(),
            ports: CONTROL_PORTS,
            speaks_rdma: false,
            authentication: Authentication::Off,
            admits_plain: false,
            limits: ControlLimits::default(),
        }
    }
}

/// Bounds and times of the control plane; the defaults and their reasons are in [`crate::limits`].
#[derive(Debug, Clone)]
pub(crate) struct ControlLimits {
    /// Control connections served at once.
    pub connections: usize,
    /// Bytes they hold together.
    pub buffered_bytes: usize,
    /// For a handshake; and for a client to send its request, and to take our answer.
    pub request: Duration,
    /// For a client to close after the answer.
    pub linger: Duration,
    /// For one connect.
    pub connect: Duration,
    /// For name resolution and all connects.
    pub connect_all: Duration,
    /// For a peer's answer.
    pub answer: Duration,
    /// For the engine's answer to a handshake.
    pub handshake: Duration,
    /// Calls under way at once.
    pub calls: usize,
    /// For one request to a metadata server.
    pub metadata_request: Duration,
    /// For connecting to it.
    pub metadata_connect: Duration,
    /// How long it keeps our documents without a word from us.
    pub metadata_lease: Duration,
}

impl Default for ControlLimits {
    fn default() -> Self {
        Self {
            connections: CONTROL_CONNECTIONS_MAX,
            buffered_bytes: CONTROL_BUFFERED_MAX_BYTES,
            request: Duration::from_millis(CONTROL_REQUEST_MS),
            linger: Duration::from_millis(CONTROL_LINGER_MS),
            connect: Duration::from_millis(CONTROL_CONNECT_MS),
            connect_all: Duration::from_millis(CONTROL_CONNECT_ALL_MS),
            answer: Duration::from_millis(CONTROL_ANSWER_MS),
            handshake: Duration::from_millis(HANDSHAKE_MS),
            calls: CONTROL_CALLS_MAX,
            metadata_request: Duration::from_millis(METADATA_REQUEST_MS),
            metadata_connect: Duration::from_millis(METADATA_CONNECT_MS),
            metadata_lease: Duration::from_millis(METADATA_LEASE_MS),
        }
    }
}

/// Who we are to others, known once the listeners stand.
#[derive(Debug, Clone)]
pub(crate) struct Identity {
    /// The name that peers open.
    pub name: String,
    /// The control daemon.
    pub control: Address,
    /// The data listener.
    pub data: Address,
    /// Whether peers are reached over RDMA too.
    pub speaks_rdma: bool,
}

impl Identity {
    /// A descriptor of this engine as of now.
    pub fn descriptor(&self, buffers: Vec<Buffer>, kvrail: Option<Extras>) -> Descriptor {
        Descriptor {
            buffers,
            devices: Vec::new(),
            kvrail,
            name: self.name.clone(),
            priority_matrix: PriorityMatrix::default(),
            protocol: descriptor::PROTOCOL_TCP.to_owned(),
            rdma_server_name: String::new(),
            tcp_data_host: Some(self.data.host.clone()),
            tcp_data_port: self.data.port,
            tcp_proto_version: descriptor::TCP_PROTO_VERSION,
            timestamp: descriptor::timestamp(SystemTime::now()),
        }
    }
}

impl Identity {
    /// Who an engine with these listeners is.
    pub(super) async fn new(
        config: &ControlConfig,
        control_port: u16,
        data_port: u16,
    ) -> Result<Self> {
        let host = published_host(config).await?;
        if let Some(why) = unreachable(&host, is_ours) {
            return Err(Error::refused(why));
        }
        let control = Address::new(&host, control_port);
        let name = match config.metadata {
            MetadataKind::P2p => control.to_string(),
            _ => checked_name(&config.name)?,
        };
        let data = Address::new(host, data_port);
        Ok(Self { name, control, data, speaks_rdma: config.speaks_rdma })
    }
}

/// `errno(3)`: the kernel has no such address family.
const EAFNOSUPPORT: i32 = 97;

/// Whether this host has the address; only the system's word that it hasn't counts, not a lack of
/// descriptors to ask with.
fn is_ours(ip: IpAddr) -> bool {
    let bound = UdpSocket::bind((ip, 0));
    !bound.is_err_and(|error| {
        error.kind() == io::ErrorKind::AddrNotAvailable
            || error.raw_os_error() == Some(EAFNOSUPPORT)
    })
}

/// Why peers can't connect to `host`, if that is certain; `is_ours` tells whether this host has an
/// address. Others than loopback addresses may be ours by way of a translating router.
fn unreachable(host: &str, is_ours: impl Fn(IpAddr) -> bool) -> Option<String> {
    let ip: IpAddr = host.parse().ok()?;
    if ip.is_unspecified() {
        return Some(format!("peers cannot connect to {host}: name an address of this host"));
    }
    if !ip.is_loopback() || is_ours(ip) {
        return None;
    }
    let loopbacks = [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()];
    let remedy = match loopbacks.into_iter().find(|other| is_ours(*other)) {
        Some(other) => format!("name the host {other}, or another address that it has"),
        None => "switch its loopback on (`ip link set lo up`), or name another address".to_owned(),
    };
    Some(format!("peers cannot connect to {host}, which this host doesn't have: {remedy}"))
}

fn checked_name(name: &str) -> Result<String> {
    let printable = !name.chars().any(|c| c.is_control() || c.is_whitespace());
    match printable && !name.is_empty() && !name.starts_with('/') && name.len() <= NAME_MAX_BYTES {
        true => Ok(name.to_owned()),
        false => Err(Error::refused(format!(
            "an engine's name has 1 to {NAME_MAX_BYTES} printable characters and no leading `/`"
        ))),
    }
}

/// The host under which peers reach us.
async fn published_host(config: &ControlConfig) -> Result<String> {
    if let Some(host) = &config.advertise {
        return Ok(host.clone());
    }
    let named = Address::parse(&config.name);
    match &config.metadata {
        MetadataKind::P2p => Ok(named?.host),
        service => match named.ok().filter(|address| address.ip().is_some()) {
            Some(address) => Ok(address.host),
            None => route_to(service).await,
        },
    }
}

/// The address from which this host reaches the metadata service: where it is, the peers are too.
async fn route_to(service: &MetadataKind) -> Result<String> {
    for server in service.addresses()? {
        if let Some(host) = route_from(&server).await {
            return Ok(host);
        }
    }
    let why = "no route to the metadata server tells this host's address: set it explicitly";
    Err(Error::lost(why).with_peer(service.url()))
}

/// Connecting a UDP socket only asks the routing table.
async fn route_from(server: &Address) -> Option<String> {
    let limit = Duration::from_millis(METADATA_REQUEST_MS);
    let lookup = timeout(limit, lookup_host((server.host.as_str(), server.port))).await;
    let server: SocketAddr = lookup.ok()?.ok()?.next()?;
    let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0))
        .or_else(|_| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)))
        .ok()?;
    socket.connect(server).ok()?;
    Some(socket.local_addr().ok()?.ip().to_canonical().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_without_the_named_loopback_is_told_which_one_it_has() {
        let v6_only = |ip: IpAddr| ip.is_ipv6();
        let why = unreachable("127.0.0.1", v6_only).unwrap();
        assert!(why.contains("127.0.0.1") && why.contains("name the host ::1"), "{why}");
        assert_eq!(unreachable("::1", v6_only), None);
        let why = unreachable("::1", |_| false).unwrap();
        assert!(why.contains("ip link set lo up"), "{why}");
        // Names, and addresses that a router may translate, are for peers to try.
        for host in ["localhost", "10.1.2.3", "fd00::1"] {
            assert_eq!(unreachable(host, |_| false), None, "{host}");
        }
    }

    #[test]
    fn the_wildcard_is_no_address_to_connect_to() {
        for host in ["0.0.0.0", "::"] {
            assert!(unreachable(host, |_| true).unwrap().contains("name an address"), "{host}");
        }
    }
}

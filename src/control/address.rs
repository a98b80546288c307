//! Names of hosts and ports: how a segment name splits, and which addresses we listen on.

use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;

use tokio::net::{TcpListener, TcpSocket};

use crate::error::{Error, Result};
use crate::limits::{CONTROL_BACKLOG, CONTROL_DEFAULT_PORT, CONTROL_PORT_TRIES};

/// A host (a name or an IP address without brackets) and a port.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Address {
    /// Name or IP address; IPv6 without brackets.
    pub host: String,
    /// TCP port.
    pub port: u16,
}

impl Address {
    pub fn new(host: impl Into<String>, port: u16) -> Self {
        Self { host: host.into(), port }
    }

    /// `host:port`, `[v6]:port`, `v6%scope:port`, a bare host or a bare IPv6 address; without a
    /// port Mooncake's default holds.
    pub fn parse(name: &str) -> Result<Self> {
        Self::parse_or(name, CONTROL_DEFAULT_PORT)
    }

    /// The same; without a port `default` is meant.
    pub fn parse_or(name: &str, default: u16) -> Result<Self> {
        let (host, port) = split(name, default).ok_or_else(|| malformed(name))?;
        if host.is_empty() || host.contains(['/', '[', ']']) || host.contains(char::is_whitespace) {
            return Err(malformed(name));
        }
        Ok(Self::new(host, port))
    }

    /// The host as an IP address, if it is one.
    pub fn ip(&self) -> Option<IpAddr> {
        self.host.parse().ok()
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "[{}]:{}", self.host, self.port),
            false => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

fn malformed(name: &str) -> Error {
    let shown: String = name.chars().take(100).collect();
    Error::refused(format!("{shown:?} is no host:port (IPv6 is written [address]:port)"))
}

fn split(name: &str, default: u16) -> Option<(&str, u16)> {
    if let Some(rest) = name.strip_prefix('[') {
        let (host, tail) = rest.split_once(']')?;
        host.split('%').next()?.parse::<Ipv6Addr>().ok()?;
        return match tail.strip_prefix(':') {
            Some(port) => Some((host, port.parse().ok()?)),
            None => tail.is_empty().then_some((host, default)),
        };
    }
    if name.parse::<Ipv6Addr>().is_ok() {
        return Some((name, default));
    }
    match name.rsplit_once(':') {
        Some((host, port)) if !host.contains(':') || host.contains('%') => {
            Some((host, port.parse().ok()?))
        }
        Some(_) => None,
        None => Some((name, default)),
    }
}

/// A listener on `bind`, and its port: a random one of `ports`, or any free one if they are taken.
/// Call it inside a tokio runtime.
pub(crate) fn listen(bind: IpAddr, ports: &RangeInclusive<u16>) -> Result<(TcpListener, u16)> {
    let bind = reachable(bind);
    let span = u64::from(ports.end().saturating_sub(*ports.start())) + 1;
    for attempt in 0..CONTROL_PORT_TRIES {
        let offset = RandomState::new().hash_one(attempt) % span;
        let port = ports.start().saturating_add(offset as u16);
        if let Ok(listening) = listen_at(SocketAddr::new(bind, port)) {
            return Ok(listening);
        }
    }
    listen_at(SocketAddr::new(bind, 0)).map_err(|error| {
        Error::refused(format!("cannot listen on {bind}: choose an address of this host"))
            .with_source(error)
    })
}

fn listen_at(address: SocketAddr) -> std::io::Result<(TcpListener, u16)> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    socket.bind(address)?;
    let listener = socket.listen(CONTROL_BACKLOG)?;
    let port = listener.local_addr()?.port();
    Ok((listener, port))
}

/// `::` serves both families unless the host has no IPv6 or keeps the families apart; then the
/// IPv4 wildcard serves more peers.
fn reachable(bind: IpAddr) -> IpAddr {
    let dual_stack = std::fs::read_to_string("/proc/sys/net/ipv6/bindv6only")
        .is_ok_and(|text| text.trim() == "0")
        && std::net::UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)).is_ok();
    match bind {
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) if !dual_stack => Ipv4Addr::UNSPECIFIED.into(),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_split_like_mooncakes() {
        let cases = [
            ("10.0.0.7:16001", "10.0.0.7", 16001),
            ("node-a", "node-a", 12001),
            ("[::1]:16001", "::1", 16001),
            ("[fe80::1%eth0]:7", "fe80::1%eth0", 7),
            ("fe80::1%eth0:7", "fe80::1%eth0", 7),
            ("::1", "::1", 12001),
            ("[::1]", "::1", 12001),
        ];
        for (name, host, port) in cases {
            assert_eq!(Address::parse(name).unwrap(), Address::new(host, port), "{name}");
        }
    }

    #[test]
    fn malformed_names_are_refused() {
        for name in ["", ":1", "a:", "a:70000", "a:b", "[::1", "[::1]x", "[a]:1", "a/b:1", "a b:1"]
        {
            assert!(Address::parse(name).is_err(), "{name:?}");
        }
    }

    #[test]
    fn ipv6_is_bracketed_when_shown() {
        assert_eq!(Address::new("::1", 5).to_string(), "[::1]:5");
        assert_eq!(Address::new("h", 5).to_string(), "h:5");
    }
}

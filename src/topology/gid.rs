//! Which address of a port its queue pairs are to use: Mooncake's ranking, and what each failure to
//! find one means. Pure.
//!
//! A port's table names every address of every interface over it, in every version of RoCE, in the
//! order in which they came up. What comes first is seldom what can be reached.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, Ipv6Addr};

use super::{Gid, RdmaPort};
use crate::{Error, Result};

/// How far an address of a port is likely to reach, best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum GidRank {
    /// Of an interface here, in a network of its own kind.
    Routable,
    /// The same, of an interface that isn't seen from here.
    RoutableElsewhere,
    /// A private IPv4 address of an interface here: it may be the cluster's, or a bridge's.
    Private,
    /// Link-local, or of an interface that containers or tunnels made: one link's at best.
    Degraded,
    /// A private IPv4 address of an interface that isn't seen from here.
    PrivateElsewhere,
    /// Link-local, of an interface that isn't seen from here.
    DegradedElsewhere,
    /// The kernel doesn't say which version of RoCE it is for.
    Unknown,
}

impl fmt::Display for GidRank {
    /// A word for people and for scripts: `routable`, `private`, `local`, `unknown`; `elsewhere`
    /// beside it where the interface isn't seen from here.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Routable => "routable",
            Self::RoutableElsewhere => "routable elsewhere",
            Self::Private => "private",
            Self::Degraded => "local",
            Self::PrivateElsewhere => "private elsewhere",
            Self::DegradedElsewhere => "local elsewhere",
            Self::Unknown => "unknown",
        })
    }
}

/// Interfaces that containers and tunnels make: their addresses lead nowhere else.
const OVERLAYS: [&str; 6] = ["flannel", "cni", "calico", "vxlan", "docker", "tunl0"];

/// The kernel's word for addresses of RoCE version 2; everything else is InfiniBand's or version 1.
const ROCE_V2: &str = "RoCE v2";

impl Gid {
    /// The address, where the kernel wrote one.
    pub fn address(&self) -> Option<Ipv6Addr> {
        self.gid.parse().ok()
    }

    /// What is behind it in the IP network; an IPv4 address is mapped into a GID.
    fn ip(&self) -> Option<IpAddr> {
        Some(self.address()?.to_canonical())
    }
}

impl RdmaPort {
    /// Whether its link is up.
    pub fn is_up(&self) -> bool {
        self.state == "ACTIVE"
    }

    /// Whether its addresses are InfiniBand's own, not those of an IP network.
    pub fn is_infiniband(&self) -> bool {
        self.link_layer == "InfiniBand"
    }

    /// How far `gid`, one of this port's, is likely to reach; `None` for what we don't speak.
    pub fn rank(&self, gid: &Gid) -> Option<GidRank> {
        let is_v2 = gid.kind == ROCE_V2;
        let ip = gid.ip()?;
        if gid.kind.is_empty() && !self.is_infiniband() {
            return Some(GidRank::Unknown);
        }
        if !is_v2 && !self.is_infiniband() {
            return None;
        }
        let netdev = gid.netdev.as_deref();
        let is_overlay = netdev.is_some_and(|name| OVERLAYS.iter().any(|o| name.contains(o)));
        let is_degraded = is_v2 && (is_overlay || is_link_local(ip));
        Some(match (netdev, is_degraded, is_v2 && is_private(ip)) {
            (Some(_), true, _) => GidRank::Degraded,
            (Some(_), false, true) => GidRank::Private,
            (Some(_), false, false) => GidRank::Routable,
            (None, true, _) => GidRank::DegradedElsewhere,
            (None, false, true) => GidRank::PrivateElsewhere,
            (None, false, false) => GidRank::RoutableElsewhere,
        })
    }

    /// The address for queue pairs of this port: the one at `forced` if given, else the one that
    /// reaches farthest and that an interface of this host has. `own` are the addresses of this
    /// host's interfaces ([`super::Devices::addresses`]); where they aren't known nothing is
    /// checked against them.
    ///
    /// # Errors
    /// Refused: the port has no such address, with what it has and what to do.
    pub fn choose_gid(
        &self,
        forced: Option<usize>,
        own: Option<&BTreeSet<IpAddr>>,
    ) -> Result<&Gid> {
        if let Some(index) = forced {
            return self.gids.iter().find(|gid| gid.index == index).ok_or_else(|| {
                Error::refused(format!(
                    "GID {index} is not set: {}",
                    choose_among(&listed(&self.gids, |gid| &gid.gid))
                ))
            });
        }
        let ranked = self.gids.iter().filter_map(|gid| Some((self.rank(gid)?, gid.index, gid)));
        let mut ranked: Vec<_> = ranked.collect();
        ranked.sort_by_key(|(rank, index, _)| (*rank, *index));
        if ranked.is_empty() {
            return Err(self.has_none());
        }
        let is_ours = |gid: &Gid| {
            self.is_infiniband()
                || own.is_none_or(|own| gid.ip().is_some_and(|ip| own.contains(&ip)))
        };
        let found = ranked.iter().map(|(_, _, gid)| *gid).find(|gid| is_ours(gid));
        found.ok_or_else(|| none_is_ours(ranked.iter().map(|(_, _, gid)| *gid)))
    }

    fn has_none(&self) -> Error {
        if self.gids.is_empty() {
            return Error::refused(
                "it has no GID: bring its link up, give its interface an address",
            );
        }
        Error::refused(format!(
            "it has no GID of RoCE v2: {}; give its interface an IP address, or let the device \
             speak RoCE v2",
            listed(&self.gids, |gid| &gid.kind)
        ))
    }
}

fn none_is_ours<'a>(gids: impl Iterator<Item = &'a Gid>) -> Error {
    Error::refused(format!(
        "no interface here has the address of a GID ({}): give one to the device's interface, or \
         run in the network namespace that has it",
        listed(gids, |gid| &gid.gid)
    ))
}

fn choose_among(listed: &str) -> String {
    match listed {
        "" => "none is; bring the link up and give the interface an address".to_owned(),
        listed => format!("choose among {listed}"),
    }
}

/// Indices, each with a word about it.
fn listed<'a>(gids: impl IntoIterator<Item = &'a Gid>, word: impl Fn(&Gid) -> &str) -> String {
    let words = gids.into_iter().map(|gid| format!("{}: {}", gid.index, word(gid)));
    words.collect::<Vec<_>>().join(", ")
}

fn is_link_local(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V6(v6) if v6.is_unicast_link_local())
}

/// 10/8, 172.16/12 and 100.64/10: the networks that overlays take for themselves.
fn is_private(ip: IpAddr) -> bool {
    let IpAddr::V4(v4) = ip else { return false };
    match v4.octets() {
        [10, ..] => true,
        [172, second, ..] => second & 0xf0 == 16,
        [100, second, ..] => second & 0xc0 == 64,
        _ => false,
    }
}

#[cfg(test)]
mod tests;

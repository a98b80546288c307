//! What of a peer's memory can be reached by RDMA, by which of its NICs and under which keys, as
//! its descriptor said. Pure.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kvrail_reactors::verbs::RemoteKey;

use super::hub::shard_of_server;
use super::letter::Port;
use crate::control::{Buffer, Descriptor, Device, Resolved};
use crate::limits::{COUNTERS_MAX, RDMA_RAILS_MAX};
use crate::path::rdma::Ends;
use crate::{Error, Result};

/// A peer as RDMA reaches it.
#[derive(Debug)]
pub(crate) struct Reach {
    pub(super) name: Arc<str>,
    /// Which process it was when it was asked; none for Mooncake's.
    pub(super) incarnation: Option<u64>,
    /// The name in its NICs' paths.
    pub(super) server: Arc<str>,
    pub(super) nics: Vec<PeerNic>,
    /// By address.
    ranges: Vec<Reachable>,
    /// Counters that the peer is known to have opened.
    counters: Mutex<HashSet<u64>>,
}

/// A NIC of a peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PeerNic {
    pub(crate) name: String,
    pub(crate) port: Port,
}

#[derive(Debug)]
struct Reachable {
    addr: u64,
    len: u64,
    /// On each NIC.
    keys: Arc<[RemoteKey]>,
    /// The NICs that are near to it, a bit each.
    near: u64,
}

/// Some bytes of a peer's.
#[derive(Debug, Clone)]
pub(crate) struct Piece {
    pub(crate) range: Range<u64>,
    /// The keys to them, on each NIC.
    pub(crate) keys: Arc<[RemoteKey]>,
    /// The NICs that are near to them, a bit each.
    pub(crate) near: u64,
}

impl Reach {
    /// What a descriptor says.
    ///
    /// # Errors
    /// Refused: it isn't reached by RDMA, or no NIC of it has an address.
    pub(crate) fn new(name: &str, resolved: &Resolved) -> Result<Self> {
        let descriptor = &resolved.descriptor;
        let devices = descriptor.rdma().ok_or_else(|| {
            Error::refused(format!("the peer serves {:?}, not rdma", descriptor.protocol))
        })?;
        let extras = descriptor.kvrail.as_ref().filter(|extras| extras.has_rdma_endpoints());
        let reachable = |buffer| reachable(descriptor, buffer);
        let mut ranges: Vec<_> = descriptor.buffers.iter().filter_map(reachable).collect();
        ranges.sort_by_key(|range| range.addr);
        let server = match descriptor.rdma_server_name.as_str() {
            "" => descriptor.name.as_str(),
            server => server,
        };
        Ok(Self {
            name: name.into(),
            incarnation: extras.map(|extras| extras.incarnation),
            server: server.into(),
            nics: devices.iter().map(nic).collect(),
            ranges,
            counters: Mutex::default(),
        })
    }

    /// The one of so many shards that carries all to it, where it has to be one: Mooncake knows one
    /// endpoint for each pair of NICs.
    pub(crate) fn only_shard(&self, shards: usize) -> Option<usize> {
        (!self.is_kvrail()).then(|| shard_of_server(&self.server, shards))
    }

    /// Whether it knows fences, windows and notices.
    pub(crate) fn is_kvrail(&self) -> bool {
        self.incarnation.is_some()
    }

    /// Whether the peer is known to have opened this counter.
    pub(crate) fn has_counter(&self, counter: u64) -> bool {
        self.counters().contains(&counter)
    }

    /// The peer has answered that it counts this.
    pub(crate) fn counts(&self, counter: u64) {
        let mut counters = self.counters();
        if counters.len() < COUNTERS_MAX {
            counters.insert(counter);
        }
    }

    fn counters(&self) -> MutexGuard<'_, HashSet<u64>> {
        self.counters.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The pieces that make up a range, each under keys of its own; none where some of it is not
    /// known to be reachable.
    pub(crate) fn find(&self, addr: u64, len: u64) -> Option<Vec<Piece>> {
        let end = addr.checked_add(len)?;
        let (mut at, mut pieces) = (addr, Vec::with_capacity(1));
        while at < end {
            let after = self.ranges.partition_point(|range| range.addr <= at);
            let range = &self.ranges[after.checked_sub(1)?];
            let stop = range.addr.saturating_add(range.len).min(end);
            if stop <= at {
                return None;
            }
            let (keys, near) = (range.keys.clone(), range.near);
            pieces.push(Piece { range: at..stop, keys, near });
            at = stop;
        }
        Some(pieces)
    }
}

fn nic(device: &Device) -> PeerNic {
    // Descriptors don't tell the MTU: both sides take what their ports have.
    let port = Port { gid: device.gid, lid: device.lid, mtu: u8::MAX };
    PeerNic { name: device.name.clone(), port }
}

fn reachable(descriptor: &Descriptor, buffer: &Buffer) -> Option<Reachable> {
    let keys: Arc<[_]> = buffer.rkey.iter().copied().map(RemoteKey).collect();
    // By name: the matrix's own order is not that of the keys in all of Mooncake's versions.
    let candidates = descriptor.devices_for(buffer.addr, buffer.length).unwrap_or_default();
    let at = |name: &str| descriptor.devices.iter().position(|device| device.name == name);
    let preferred = candidates.iter().filter(|candidate| candidate.is_preferred);
    let bits = preferred.filter_map(|candidate| at(&candidate.device.name));
    let near = bits.filter(|at| *at < 64).fold(0, |near, at| near | 1 << at);
    let range = Reachable { addr: buffer.addr, len: buffer.length, keys, near };
    (!range.keys.is_empty() && range.len > 0).then_some(range)
}

/// A NIC of ours, as rails are made of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct OwnNic<'a> {
    pub(crate) index: u8,
    pub(crate) name: &'a str,
    pub(crate) node: Option<u32>,
}

/// The rails between NICs of ours and a peer's: each NIC of the longer side has one, to the NIC of
/// its name where there is one (fabrics that keep rails apart name both ends alike), else to its
/// counterpart in turn.
pub(crate) fn pair(ours: &[OwnNic<'_>], theirs: &[String]) -> Vec<Ends> {
    if ours.is_empty() || theirs.is_empty() {
        return Vec::new();
    }
    let of_name = |name: &str| theirs.iter().position(|other| other == name);
    let is_named = ours.len() == theirs.len() && ours.iter().all(|nic| of_name(nic.name).is_some());
    let rails = (0..ours.len().max(theirs.len()).min(RDMA_RAILS_MAX)).map(|rail| {
        let nic = &ours[rail % ours.len()];
        let peer = of_name(nic.name).filter(|_| is_named).unwrap_or(rail % theirs.len());
        Ends { nic: nic.index, theirs: peer as u8, node: nic.node }
    });
    rails.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own(index: u8, name: &str) -> OwnNic<'_> {
        OwnNic { index, name, node: None }
    }

    fn ends(ours: &[OwnNic<'_>], theirs: &[&str]) -> Vec<(u8, u8)> {
        let theirs: Vec<_> = theirs.iter().map(|name| (*name).to_owned()).collect();
        pair(ours, &theirs).into_iter().map(|ends| (ends.nic, ends.theirs)).collect()
    }

    #[test]
    fn rails_lead_to_the_nic_of_the_same_name_or_in_turn() {
        let two = [own(0, "a"), own(3, "b")];
        assert_eq!(ends(&two, &["b", "a"]), [(0, 1), (3, 0)]);
        assert_eq!(ends(&two, &["x", "y"]), [(0, 0), (3, 1)]);
        assert_eq!(ends(&two, &["x"]), [(0, 0), (3, 0)]);
        assert_eq!(ends(&two[..1], &["x", "y", "z"]), [(0, 0), (0, 1), (0, 2)]);
        assert_eq!(ends(&two, &[]), []);
    }

    #[test]
    fn a_range_is_cut_where_the_peer_has_cut_its_region() {
        let range =
            |addr, len, key| Reachable { addr, len, keys: [RemoteKey(key)].into(), near: 0 };
        let reach = Reach {
            name: "peer".into(),
            incarnation: None,
            server: "peer".into(),
            nics: Vec::new(),
            counters: Mutex::default(),
            ranges: vec![range(100, 50, 1), range(150, 50, 2), range(300, 10, 3)],
        };
        let find = |addr, len| {
            let found = reach.find(addr, len)?;
            Some(found.into_iter().map(|piece| (piece.range, piece.keys[0].0)).collect::<Vec<_>>())
        };
        assert_eq!(find(100, 100), Some(vec![(100..150, 1), (150..200, 2)]));
        assert_eq!(find(120, 10), Some(vec![(120..130, 1)]));
        assert_eq!(find(190, 20), None, "a gap");
        assert_eq!(find(99, 2), None);
        assert_eq!(find(305, 6), None);
        assert_eq!(find(u64::MAX, 2), None);
    }
}

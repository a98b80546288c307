//! How a queue pair is connected: what both ends know of each other, and what each decides alone.

use super::device::{Gid, PortState};

/// 4.096 us * 2^14 = 67 ms until a packet is sent again (IBTA 9.7.6.1.3): Mooncake's, UCX's and
/// NCCL's order.
pub(super) const TIMEOUT: u8 = 14;

/// Six times: half a second until a peer is given up. The field holds one more, which is Mooncake's
/// and which soft-RoCE takes for without end.
pub(super) const RETRIES: u8 = 6;

/// Without end (IBTA 9.7.5.2.8): a peer that has no receive for a word yet is alive.
pub(super) const RECEIVER_RETRIES: u8 = 7;

/// 0.64 ms until a peer without a receive is asked again (IBTA table 45), without end. Mooncake's
/// too.
pub(super) const RECEIVER_TIMER: u8 = 12;

/// READs under way of one queue pair, either way. Nobody tells the other what its device serves,
/// so both take what every RDMA NIC has, as Mooncake does.
pub(super) const READS_MAX: u8 = 16;

/// Hops that a packet of RoCEv2 may take between kvrail's peers: the usual time to live of IPv4.
const HOPS: u8 = 64;

/// The same for Mooncake's.
const MOONCAKE_HOPS: u8 = 16;

/// Mooncake's packets carry at most 4,096 bytes (`MC_MTU`); here as in [`PortState::mtu`].
const MOONCAKE_MTU: u32 = 5;

/// What a connection is made of beside the two addresses.
#[derive(Debug, Clone, Copy)]
pub struct Way {
    /// Which of our port's addresses is used.
    pub gid_index: u8,
    /// The peer's.
    pub peer: Gid,
    /// The peer's address in an InfiniBand subnet; 0 on Ethernet.
    pub lid: u16,
    /// The smaller MTU of both ports, as the enumeration of [`PortState::mtu`].
    pub mtu: u32,
    /// Routers that a packet may pass.
    pub hops: u8,
    /// Whether the peer may ask for atomic operations, as far as keys permit them.
    pub atomics: bool,
}

impl Way {
    /// Over RoCE, between a port in this state and a kvrail peer whose MTU is no smaller.
    pub fn roce(port: &PortState, gid_index: u8, peer: Gid) -> Self {
        Self { gid_index, peer, lid: 0, mtu: port.mtu, hops: HOPS, atomics: false }
    }

    /// To a Mooncake peer, which takes its own port's MTU for the other's as well. Both ends count
    /// their packets from 0: see [`Nic::create_qp_from`](super::Nic::create_qp_from).
    pub fn mooncake(port: &PortState, gid_index: u8, peer: Gid, lid: u16) -> Self {
        let mtu = port.mtu.min(MOONCAKE_MTU);
        Self { gid_index, peer, lid, mtu, hops: MOONCAKE_HOPS, atomics: true }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mooncake_gets_what_its_own_endpoints_say() {
        let port = PortState { is_up: true, mtu: 3, lid: 0, gids: 2, message_bytes: 1 << 30 };
        let way = Way::mooncake(&port, 1, Gid([7; 16]), 9);
        assert_eq!((way.mtu, way.hops, way.lid, way.atomics), (3, 16, 9, true));
        let jumbo = PortState { mtu: 6, ..port };
        assert_eq!(Way::mooncake(&jumbo, 1, Gid([7; 16]), 0).mtu, 5, "4,096 bytes at most");
        assert!(!Way::roce(&port, 1, Gid([7; 16])).atomics);
    }
}

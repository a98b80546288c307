//! The soft-RoCE NICs of a guest that has two or more, as xtask/vm/init makes them.

/// One of them.
pub struct Nic {
    pub device: &'static str,
    pub address: &'static str,
}

/// The first two: by convention a target is at the first, its initiator at the second.
pub const NICS: [Nic; 2] =
    [Nic { device: "rxe0", address: "10.9.0.1" }, Nic { device: "rxe1", address: "10.9.0.2" }];

/// The entry of their address tables that IPv4 goes by, as RoCE v2.
pub const GID_INDEX: &str = "1";

/// The payload of a full RDMA packet between them.
pub const MTU_BYTES: u64 = 4096;

/// How many packets a NIC has received. A transfer that leaves it as it was went another way.
///
/// # Errors
/// There is no such NIC here.
pub fn packets_received(nic: &Nic) -> Result<u64, String> {
    let file = format!("/sys/class/infiniband/{}/ports/1/hw_counters/rcvd_pkts", nic.device);
    let text = std::fs::read_to_string(&file).map_err(|error| format!("{file}: {error}"))?;
    text.trim().parse().map_err(|error| format!("{file}: {error}"))
}

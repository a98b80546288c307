//! NICs and RDMA devices, with the NUMA node each hangs on.

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use super::addresses;
use crate::limits::GIDS_MAX;

/// Network and RDMA devices in the order of their names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Devices {
    /// Network interfaces, loopback left out.
    pub nics: Vec<Nic>,
    /// RDMA devices.
    pub rdma: Vec<RdmaDevice>,
    /// IP addresses that the interfaces have, loopback's too; `None` where the kernel doesn't say.
    pub addresses: Option<BTreeSet<IpAddr>>,
}

/// A network interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nic {
    /// The interface's name.
    pub name: String,
    /// The node of the hardware beneath; `None` is "no binding".
    pub node: Option<u32>,
    /// Whether there is no hardware beneath: bridges, veths, tunnels.
    pub is_virtual: bool,
    /// The kernel's word for its state: `up`, `down`, `unknown`.
    pub state: String,
    /// Speed of the link in Mbit/s, where the driver tells.
    pub speed_mbps: Option<u64>,
}

/// An RDMA device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RdmaDevice {
    /// The device's name.
    pub name: String,
    /// The node of the hardware beneath, or of the NIC it runs over (`rxe`).
    pub node: Option<u32>,
    /// The NIC that a software device runs over.
    pub over: Option<String>,
    /// Its ports in ascending order.
    pub ports: Vec<RdmaPort>,
}

/// A port of an RDMA device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RdmaPort {
    /// The kernel's number for it, from 1.
    pub number: u32,
    /// The kernel's word for its state: `ACTIVE`, `DOWN`.
    pub state: String,
    /// `Ethernet` or `InfiniBand`.
    pub link_layer: String,
    /// Speed of the link in Mbit/s, where the driver tells.
    pub speed_mbps: Option<u64>,
    /// The addresses that are set, by index.
    pub gids: Vec<Gid>,
}

/// An address of a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gid {
    /// Its place in the port's table.
    pub index: usize,
    /// Eight groups of hexadecimal digits.
    pub gid: String,
    /// `RoCE v2`, `IB/RoCE v1`; empty where the kernel doesn't say.
    pub kind: String,
    /// The interface it is an address of, where this network namespace has it.
    pub netdev: Option<String>,
}

impl Devices {
    /// The devices of the machine this process runs on, those in its network namespace.
    pub fn here() -> Self {
        Self::read(Path::new("/"))
    }

    /// The devices of the machine whose `sys` and `proc` lie under `root`.
    pub fn read(root: &Path) -> Self {
        let net = root.join("sys/class/net");
        let nics = entries(&net).filter(|path| name_of(path) != "lo").filter_map(|path| nic(&path));
        let rdma = entries(&root.join("sys/class/infiniband")).map(|path| rdma(&path, &net));
        let addresses = addresses::read(root);
        Self { nics: nics.collect(), rdma: rdma.collect(), addresses }
    }
}

/// The node a device hangs on, from its directory under `/sys` or the nearest one above it that
/// knows. `None` is "no binding": the kernel writes -1 for it, which never means node 0.
pub fn device_node(device: &Path) -> Option<u32> {
    // Class directories are full of links; the way up is that of the hardware.
    let device = fs::canonicalize(device).ok()?;
    let text = device.ancestors().find_map(|path| word(&path.join("numa_node")))?;
    text.parse().ok()
}

fn nic(path: &Path) -> Option<Nic> {
    // Some drivers put files there that are no interfaces, `bonding_masters` for one.
    let is_virtual = path.is_dir().then(|| !path.join("device").exists())?;
    Some(Nic {
        name: name_of(path),
        node: device_node(&path.join("device")),
        is_virtual,
        state: word(&path.join("operstate")).unwrap_or_else(|| "unknown".to_owned()),
        // Unknown is -1 with some drivers, an error with others.
        speed_mbps: word(&path.join("speed")).and_then(|text| text.parse().ok()),
    })
}

fn rdma(path: &Path, net: &Path) -> RdmaDevice {
    let over = word(&path.join("parent"));
    let nic = over.as_ref().map(|name| net.join(name).join("device"));
    let node = device_node(&path.join("device"));
    let mut ports: Vec<_> =
        entries(&path.join("ports")).filter_map(|port| rdma_port(&port)).collect();
    ports.sort_by_key(|port| port.number);
    RdmaDevice { name: name_of(path), node: node.or_else(|| device_node(&nic?)), over, ports }
}

fn rdma_port(path: &Path) -> Option<RdmaPort> {
    // "4: ACTIVE"
    let state = word(&path.join("state")).unwrap_or_default();
    Some(RdmaPort {
        number: name_of(path).parse().ok()?,
        state: state.split_once(": ").map_or(state.as_str(), |(_, word)| word).to_owned(),
        link_layer: word(&path.join("link_layer")).unwrap_or_default(),
        speed_mbps: word(&path.join("rate")).and_then(|rate| mbps(&rate)),
        gids: (0..GIDS_MAX).map_while(|index| gid(path, index)).flatten().collect(),
    })
}

/// "2.5 Gb/sec (1X SDR)"
fn mbps(rate: &str) -> Option<u64> {
    let gbit: f64 = rate.split_once(" Gb/sec")?.0.trim().parse().ok()?;
    Some((gbit * 1e3) as u64)
}

/// An entry of the table; the inner `None` for one that isn't set, the outer past the end.
fn gid(port: &Path, index: usize) -> Option<Option<Gid>> {
    let gid = word(&port.join("gids").join(index.to_string()))?;
    let is_set = gid.chars().any(|c| c != '0' && c != ':');
    // Reading fails where there is none.
    let attribute = |name: &str| word(&port.join("gid_attrs").join(name).join(index.to_string()));
    let kind = attribute("types").unwrap_or_default();
    Some(is_set.then(|| Gid { index, gid, kind, netdev: attribute("ndevs") }))
}

fn entries(folder: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    let mut paths: Vec<_> =
        fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    paths.sort();
    paths.into_iter()
}

fn name_of(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn word(path: &Path) -> Option<String> {
    Some(fs::read_to_string(path).ok()?.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::super::tests::tree;
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn minus_one_is_no_binding_and_the_nearest_above_knows() {
        let root = tree(&[
            ("pci/a/numa_node", "-1\n"),
            ("pci/b/numa_node", "1\n"),
            ("pci/b/virtio0/net", ""),
            ("pci/numa_node", "3\n"),
        ]);
        let node = |path: &str| device_node(&root.path().join(path));
        assert_eq!(node("pci/a"), None);
        assert_eq!(node("pci/b"), Some(1));
        assert_eq!(node("pci/b/virtio0"), Some(1));
        assert_eq!(node("absent"), None);
    }

    #[test]
    fn nics_have_nodes_and_virtual_ones_have_none() {
        let root = tree(&[
            ("sys/devices/pci/0000:01/numa_node", "1\n"),
            ("sys/devices/pci/0000:01/virtio0/driver", ""),
            ("sys/class/net/eth0/operstate", "up\n"),
            ("sys/class/net/eth0/speed", "100000\n"),
            ("sys/class/net/veth1/speed", "-1\n"),
            ("sys/class/net/lo/operstate", "unknown\n"),
            ("sys/class/net/bonding_masters", "\n"),
        ]);
        let at = |path: &str| root.path().join(path);
        symlink(at("sys/devices/pci/0000:01/virtio0"), at("sys/class/net/eth0/device")).unwrap();
        let devices = Devices::read(root.path());
        let eth0 = Nic {
            name: "eth0".into(),
            node: Some(1),
            is_virtual: false,
            state: "up".into(),
            speed_mbps: Some(100_000),
        };
        let veth1 = Nic {
            name: "veth1".into(),
            node: None,
            is_virtual: true,
            state: "unknown".into(),
            speed_mbps: None,
        };
        assert_eq!(devices.nics, [eth0, veth1]);
        assert!(devices.rdma.is_empty());
    }

    #[test]
    fn a_software_device_has_the_node_of_the_nic_it_runs_over() {
        let root = tree(&[
            ("sys/class/net/eth0/device/numa_node", "2\n"),
            ("sys/class/infiniband/mlx5_0/device/numa_node", "5\n"),
            ("sys/class/infiniband/rxe0/parent", "eth0\n"),
            ("sys/class/infiniband/rxe0/ports/1/state", "4: ACTIVE\n"),
            ("sys/class/infiniband/rxe0/ports/1/link_layer", "Ethernet\n"),
            ("sys/class/infiniband/rxe0/ports/1/rate", "2.5 Gb/sec (1X SDR)\n"),
            (
                "sys/class/infiniband/rxe0/ports/1/gids/0",
                "0000:0000:0000:0000:0000:0000:0000:0000\n",
            ),
            (
                "sys/class/infiniband/rxe0/ports/1/gids/1",
                "0000:0000:0000:0000:0000:ffff:0a09:0001\n",
            ),
            ("sys/class/infiniband/rxe0/ports/1/gid_attrs/types/1", "RoCE v2\n"),
            ("sys/class/infiniband/rxe0/ports/1/gid_attrs/ndevs/1", "eth0\n"),
        ]);
        let devices = Devices::read(root.path());
        let [mlx, rxe] = &devices.rdma[..] else { panic!("{devices:?}") };
        assert_eq!((mlx.node, mlx.over.as_deref()), (Some(5), None));
        assert_eq!((rxe.node, rxe.over.as_deref()), (Some(2), Some("eth0")));
        let port = &rxe.ports[0];
        assert_eq!((port.state.as_str(), port.link_layer.as_str()), ("ACTIVE", "Ethernet"));
        assert_eq!(port.speed_mbps, Some(2_500));
        assert_eq!((port.gids[0].index, port.gids[0].kind.as_str()), (1, "RoCE v2"));
        assert_eq!(port.gids[0].netdev.as_deref(), Some("eth0"));
    }
}

//! What the machine is: NUMA nodes, their CPUs and memory, NICs and RDMA devices, and what of it
//! this process may use. Facts only, read from the kernel's text files under a root, so that tests
//! bring their own tree. What to make of them is policy, and stands elsewhere: shards in
//! [`crate::runtime`], regions in [`Memory::fit`].

mod addresses;
mod devices;
mod gid;
mod gpus;
mod group;
mod memory;
mod set;
mod size;

use std::fs;
use std::path::Path;

use kvrail_reactors::affinity;

pub use self::devices::{Devices, Gid, Nic, RdmaDevice, RdmaPort, device_node};
pub use self::gid::GidRank;
pub use self::gpus::{Gpu, Gpus};
pub use self::memory::{Binding, Memory, NodeMemory};
pub use self::set::{CpuSet, NodeSet};
pub use self::size::Size;
use crate::{Error, Result};

/// The machine as this process sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Topology {
    /// NUMA nodes in ascending order; empty where the kernel shows none.
    pub nodes: Vec<Node>,
    /// CPUs this process may use: its affinity and its cpuset together.
    pub allowed: CpuSet,
}

/// A NUMA node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// The kernel's number for it.
    pub id: u32,
    /// Every online CPU of the node, also those this process may not use.
    pub cpus: CpuSet,
    /// Memory of the node in bytes.
    pub memory_total_bytes: u64,
    /// Unused memory of the node in bytes, at the time of reading; page cache is not counted.
    pub memory_free_bytes: u64,
}

impl Topology {
    /// The machine this process runs on, with the affinity of the calling thread.
    ///
    /// # Errors
    /// Refused when the affinity can't be read, or no CPU is left to use.
    pub fn here() -> Result<Self> {
        let cores = match core_affinity::get_core_ids() {
            Some(cores) => cores.into_iter().map(|core| core.id).collect(),
            // That one stops at glibc's 1024 CPUs.
            None => affinity::allowed()
                .map_err(|error| {
                    Error::refused("sched_getaffinity failed: allow it in the seccomp profile")
                        .with_source(error)
                })?
                .into_iter()
                .collect(),
        };
        Self::read(Path::new("/"), &cores)
    }

    /// The machine whose `sys` and `proc` lie under `root`, for a thread allowed on `affinity`.
    ///
    /// # Errors
    /// Refused when affinity and cpuset have no CPU in common.
    pub fn read(root: &Path, affinity: &CpuSet) -> Result<Self> {
        let allowed = match cpuset(root) {
            Some(cpuset) => affinity.intersection(&cpuset),
            None => affinity.clone(),
        };
        if allowed.is_empty() {
            return Err(Error::refused(format!(
                "no CPU to run on: the affinity is {affinity}, the cpuset cgroup has none of these"
            )));
        }
        Ok(Self { nodes: nodes(root), allowed })
    }

    /// The node that `cpu` belongs to, where the kernel shows one.
    pub fn node_of(&self, cpu: usize) -> Option<u32> {
        self.nodes.iter().find(|node| node.cpus.contains(cpu)).map(|node| node.id)
    }
}

/// The nodes of the machine under `root`, ascending.
fn nodes(root: &Path) -> Vec<Node> {
    let Ok(entries) = fs::read_dir(root.join("sys/devices/system/node")) else {
        return Vec::new();
    };
    let mut nodes: Vec<Node> = entries.flatten().filter_map(|entry| node(&entry.path())).collect();
    nodes.sort_by_key(|node| node.id);
    nodes
}

fn node(path: &Path) -> Option<Node> {
    let id = path.file_name()?.to_str()?.strip_prefix("node")?.parse().ok()?;
    let cpus = fs::read_to_string(path.join("cpulist")).ok()?.parse().ok()?;
    let memory = fs::read_to_string(path.join("meminfo")).unwrap_or_default();
    Some(Node {
        id,
        cpus,
        memory_total_bytes: meminfo_bytes(&memory, "MemTotal:"),
        memory_free_bytes: meminfo_bytes(&memory, "MemFree:"),
    })
}

/// A line reads `Node 0 MemTotal:  16318400 kB`; "kB" is 1024 bytes.
fn meminfo_bytes(text: &str, field: &str) -> u64 {
    let line = text.lines().find_map(|line| line.split_once(field));
    let kib = line.and_then(|(_, value)| value.trim().strip_suffix("kB")?.trim().parse().ok());
    kib.unwrap_or(0u64).saturating_mul(1024)
}

/// The CPUs of this process's cpuset cgroup; `None` where there is no such controller.
fn cpuset(root: &Path) -> Option<CpuSet> {
    let files = ["cpuset.cpus.effective", "cpuset.effective_cpus", "cpuset.cpus"];
    group::groups(root, "cpuset").iter().find_map(|group| {
        files.iter().find_map(|file| {
            let text = fs::read_to_string(group.join(file)).ok()?;
            text.parse().ok().filter(|cpus: &CpuSet| !cpus.is_empty())
        })
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        root
    }

    fn cpus(text: &str) -> CpuSet {
        text.parse().unwrap()
    }

    const TWO_NODES: [(&str, &str); 4] = [
        ("sys/devices/system/node/node0/cpulist", "0-3\n"),
        (
            "sys/devices/system/node/node0/meminfo",
            "Node 0 MemTotal:       16318400 kB\nNode 0 MemFree:         1024 kB\n",
        ),
        ("sys/devices/system/node/node1/cpulist", "4-7\n"),
        ("sys/devices/system/node/has_cpu", "0-1\n"),
    ];

    #[test]
    fn nodes_have_cpus_and_memory() {
        let root = tree(&TWO_NODES);
        let facts = Topology::read(root.path(), &cpus("0-7")).unwrap();
        assert_eq!(facts.nodes.len(), 2);
        assert_eq!(facts.nodes[0].memory_total_bytes, 16_318_400 * 1024);
        assert_eq!(facts.nodes[0].memory_free_bytes, 1 << 20);
        assert_eq!(facts.nodes[1].memory_total_bytes, 0, "no meminfo there");
        assert_eq!(facts.node_of(5), Some(1));
        assert_eq!(facts.node_of(8), None);
    }

    #[test]
    fn allowed_is_affinity_and_cpuset_together() {
        let v2 = tree(&[
            ("proc/self/cgroup", "0::/pod/kvrail\n"),
            ("sys/fs/cgroup/pod/kvrail/cpuset.cpus.effective", "2-5\n"),
        ]);
        assert_eq!(Topology::read(v2.path(), &cpus("0-3")).unwrap().allowed, cpus("2-3"));
        let v1 = tree(&[
            ("proc/self/cgroup", "4:memory:/x\n3:cpuset,cpu:/docker/abc\n"),
            ("sys/fs/cgroup/cpuset/docker/abc/cpuset.cpus", "1\n"),
        ]);
        assert_eq!(Topology::read(v1.path(), &cpus("0-3")).unwrap().allowed, cpus("1"));
    }

    #[test]
    fn a_cgroup_path_of_the_host_falls_back_to_what_is_mounted() {
        let root = tree(&[
            ("proc/self/cgroup", "0::/../../kubepods/abc\n"),
            ("sys/fs/cgroup/cpuset.cpus.effective", "0-1\n"),
        ]);
        assert_eq!(Topology::read(root.path(), &cpus("0-7")).unwrap().allowed, cpus("0-1"));
    }

    #[test]
    fn a_bare_tree_is_the_affinity_and_no_nodes() {
        let root = tree(&[]);
        let facts = Topology::read(root.path(), &cpus("3,5")).unwrap();
        assert_eq!(facts, Topology { nodes: vec![], allowed: cpus("3,5") });
    }

    #[test]
    fn disjoint_affinity_and_cpuset_are_refused() {
        let root = tree(&[
            ("proc/self/cgroup", "0::/\n"),
            ("sys/fs/cgroup/cpuset.cpus.effective", "4-7\n"),
        ]);
        let error = Topology::read(root.path(), &cpus("0-3")).unwrap_err();
        assert_eq!(error.kind(), crate::ErrorKind::Refused);
        assert!(error.to_string().contains("0-3"), "{error}");
    }

    #[test]
    fn this_machine_has_somewhere_to_run() {
        assert!(!Topology::here().unwrap().allowed.is_empty());
    }
}

//! The GPUs that this process may use, as their driver tells, and where they hang, as sysfs does.

use std::fs;
use std::path::Path;

use kvrail_reactors::cuda::{self, DeviceFacts};

/// A GPU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gpu {
    /// Its number in this process: `N` of the location `cuda:N`.
    pub ordinal: u32,
    /// The product's name.
    pub name: String,
    /// Its address on the PCI bus.
    pub pci: String,
    /// The NUMA node that it hangs on, where the kernel says so.
    pub node: Option<u32>,
    /// Memory in all.
    pub memory_bytes: u64,
    /// Multiprocessors, of which a launch of copies takes 16 at most unless told otherwise.
    pub multiprocessors: u32,
    /// GPUs whose memory it reaches, by their numbers.
    pub reaches: Vec<u32>,
}

/// The GPUs, or why there are none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gpus {
    /// By their numbers.
    pub found: Result<Vec<Gpu>, String>,
    /// Whether NVIDIA's driver is loaded into the kernel, whoever may use it.
    pub has_driver: bool,
}

impl Gpus {
    /// Those of this process. The first call loads the driver, which takes a while.
    pub fn here() -> Self {
        let root = Path::new("/");
        let driver = cuda::Gpus::default().driver();
        let gpu = |facts: &DeviceFacts| Gpu::new(facts, root);
        Self {
            found: driver
                .map(|driver| driver.devices().iter().map(gpu).collect())
                .map_err(|why| why.to_string()),
            has_driver: root.join("dev/nvidiactl").exists(),
        }
    }
}

impl Gpu {
    fn new(facts: &DeviceFacts, root: &Path) -> Self {
        let DeviceFacts { ordinal, name, pci, memory_bytes, multiprocessors, reaches, .. } =
            facts.clone();
        let node = node(root, &pci);
        Self { ordinal, name, pci, node, memory_bytes, multiprocessors, reaches }
    }
}

/// The node of a device on the PCI bus; the kernel's -1 means that it knows none.
fn node(root: &Path, pci: &str) -> Option<u32> {
    let file = root.join("sys/bus/pci/devices").join(pci).join("numa_node");
    fs::read_to_string(file).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::tests::tree;

    #[test]
    fn a_gpu_hangs_where_sysfs_says() {
        let file = |pci: &str| format!("sys/bus/pci/devices/{pci}/numa_node");
        let (near, lost) = (file("0000:1b:00.0"), file("0000:1c:00.0"));
        let root = tree(&[(&near, "1\n"), (&lost, "-1\n")]);
        assert_eq!(node(root.path(), "0000:1b:00.0"), Some(1));
        assert_eq!(node(root.path(), "0000:1c:00.0"), None);
        assert_eq!(node(root.path(), "0000:1d:00.0"), None);
    }
}

//! How much memory could be had now, and from where: of the host, each node, the control groups,
//! and the pools of huge pages. Facts only; what fits is decided in `memory/fit.rs`.

use std::fs;
use std::path::Path;

use kvrail_reactors::region::PAGE_BYTES;
use kvrail_reactors::{numa, probe};

use super::{NodeSet, group, nodes};
use crate::memory::fit;
use crate::{Misfit, NumaPolicy};

/// Memory that could be had at the time of reading, in bytes. Room is what can be taken without
/// the kernel killing somebody for it: page cache that is not in use counts, reserves do not.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Memory {
    /// Nodes in ascending order, those without memory too; empty where the kernel shows none.
    pub nodes: Vec<NodeMemory>,
    /// Nodes that this process may take memory from; `None` where the kernel limits none.
    pub allowed_nodes: Option<NodeSet>,
    /// Nodes that this thread's own policy binds it to, as `numactl --membind` does; regions with
    /// a policy of theirs are not held by it.
    pub bound_nodes: Option<NodeSet>,
    /// Room on the host; `None` where the kernel doesn't say.
    pub host_room_bytes: Option<u64>,
    /// Room that the tightest of our control groups leaves; `None` without a limit.
    pub group_room_bytes: Option<u64>,
    /// Huge pages of 2 MiB that nobody has or was promised, in bytes, on all nodes together.
    pub huge_room_bytes: u64,
    /// Whether this process may set a policy.
    pub binding: Binding,
    /// Largest file that this process may make (`ulimit -f`), memfds among them; `None` is any.
    pub file_limit_bytes: Option<u64>,
}

/// Whether policies can be set, which `mbind(2)` does.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Binding {
    /// They can, or nobody has tried.
    #[default]
    Permitted,
    /// A seccomp profile forbids it.
    Forbidden,
    /// The kernel has none.
    Unsupported,
}

/// Memory of one node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeMemory {
    /// The kernel's number for the node.
    pub id: u32,
    /// All its memory; 0 on a node that has only CPUs.
    pub total_bytes: u64,
    /// Its room in base pages.
    pub room_bytes: u64,
    /// The part of its room that is free already, without page cache being dropped.
    pub free_bytes: u64,
    /// Its free huge pages of 2 MiB.
    pub huge_room_bytes: u64,
}

/// Of a node's memory, one part in so many goes for what describes the rest: page tables (8 bytes
/// a page of 4 KiB) and the file's own index (576 bytes for 64 pages), together 0.42 %, doubled.
const OVERHEAD_PARTS: u64 = 120;

impl Memory {
    /// The memory of the machine this process runs on.
    pub fn here() -> Self {
        let mut memory = Self::read(Path::new("/"));
        let first = memory.usable().next();
        memory.binding = first.map_or(Binding::Unsupported, |node| Binding::tried(node.id));
        // Where it can't be asked, it can't have been set either.
        let bound = numa::own_binding().unwrap_or_default();
        memory.bound_nodes = bound.map(|nodes| nodes.into_iter().map(|id| id as usize).collect());
        memory
    }

    /// The memory of the machine whose `sys` and `proc` lie under `root`.
    pub fn read(root: &Path) -> Self {
        let zones = fs::read_to_string(root.join("proc/zoneinfo")).unwrap_or_default();
        let node = |id| node_memory(root, id, reserve_bytes(&zones, id));
        let host = fs::read_to_string(root.join("proc/meminfo")).unwrap_or_default();
        Self {
            nodes: nodes(root).iter().map(|found| node(found.id)).collect(),
            allowed_nodes: allowed_nodes(root),
            host_room_bytes: line_bytes(&host, "MemAvailable").map(less_overhead),
            group_room_bytes: group_room(root).map(less_overhead),
            huge_room_bytes: huge_room(root),
            file_limit_bytes: file_limit(root),
            binding: Binding::default(),
            bound_nodes: None,
        }
    }

    /// Whether this process may take memory from `node`.
    pub fn is_allowed(&self, node: u32) -> bool {
        self.allowed_nodes.as_ref().is_none_or(|allowed| allowed.contains(node as usize))
    }

    /// Whether a region of `len` bytes fits now under a policy, and if not, why.
    ///
    /// # Errors
    /// The reason, with the numbers.
    pub fn fit(&self, len: u64, policy: &NumaPolicy) -> Result<(), Misfit> {
        fit::fit(self, len, policy).map(drop)
    }

    /// The policies under which a region of `len` bytes fits now: each node alone, those with most
    /// room first; then nodes together; then none.
    pub fn fitting(&self, len: u64) -> Vec<NumaPolicy> {
        fit::fitting(self, len)
    }

    /// Nodes that have memory which this process may take.
    pub fn usable(&self) -> impl Iterator<Item = &NodeMemory> {
        self.nodes.iter().filter(|node| node.total_bytes > 0 && self.is_allowed(node.id))
    }
}

impl Binding {
    fn tried(node: u32) -> Self {
        match probe::mbind(node).map_err(|error| error.raw_os_error()) {
            Err(Some(probe::EPERM)) => Self::Forbidden,
            Err(Some(probe::ENOSYS)) => Self::Unsupported,
            // What else fails has to do with the node, and is said when it is bound to.
            _ => Self::Permitted,
        }
    }
}

fn less_overhead(bytes: u64) -> u64 {
    bytes - bytes / OVERHEAD_PARTS
}

fn node_memory(root: &Path, id: u32, reserve_bytes: u64) -> NodeMemory {
    let folder = root.join(format!("sys/devices/system/node/node{id}"));
    let text = fs::read_to_string(folder.join("meminfo")).unwrap_or_default();
    let bytes = |key| line_bytes(&text, key).unwrap_or(0);
    let room = |bytes: u64| less_overhead(bytes.saturating_sub(reserve_bytes));
    let free = bytes("MemFree");
    NodeMemory {
        id,
        total_bytes: bytes("MemTotal"),
        // Page cache that is not in use can be dropped for us.
        room_bytes: room(free + bytes("Inactive(file)")),
        free_bytes: room(free),
        huge_room_bytes: number(&folder.join(HUGE_PAGES).join("free_hugepages")).unwrap_or(0)
            * HUGE_PAGE_BYTES,
    }
}

/// The folder of one size of huge pages, of a node or under `kernel/mm`.
const HUGE_PAGES: &str = "hugepages/hugepages-2048kB";
const HUGE_PAGE_BYTES: u64 = kvrail_reactors::region::HUGE_PAGE_BYTES as u64;

/// Free huge pages less those that mappings were promised and have not touched.
fn huge_room(root: &Path) -> u64 {
    let folder = root.join("sys/kernel/mm").join(HUGE_PAGES);
    let pages = |name: &str| number(&folder.join(name)).unwrap_or(0);
    pages("free_hugepages").saturating_sub(pages("resv_hugepages")) * HUGE_PAGE_BYTES
}

/// A line of a `meminfo`, in bytes: `MemFree: 12 kB`, or `Node 0 MemFree: 12 kB`.
fn line_bytes(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        let found = name.split_whitespace().last()? == key;
        let kib: u64 = value.split_whitespace().next()?.parse().ok()?;
        found.then_some(kib.saturating_mul(1024))
    })
}

/// What the kernel keeps of a node's memory for itself and for allocations that can't go
/// elsewhere: of each zone its high watermark and its protection (as the kernel's own
/// `calculate_totalreserve_pages` adds them up).
fn reserve_bytes(zoneinfo: &str, node: u32) -> u64 {
    let head = format!("Node {node}, zone");
    let mut pages = 0;
    let mut zone = None::<Zone>;
    for line in zoneinfo.lines() {
        if line.starts_with("Node ") {
            pages += zone.take().map_or(0, |zone| zone.reserve());
            zone = line.starts_with(&head).then(Zone::default);
        } else if let Some(zone) = &mut zone {
            zone.read(line);
        }
    }
    (pages + zone.map_or(0, |zone| zone.reserve())) * PAGE_BYTES as u64
}

/// Pages of a zone.
#[derive(Default)]
struct Zone {
    high: u64,
    managed: u64,
    protection: u64,
}

impl Zone {
    fn read(&mut self, line: &str) {
        let mut words = line.split_whitespace();
        let first = words.next();
        let mut number = || words.next().and_then(|word| word.parse().ok()).unwrap_or(0);
        match first {
            Some("high") => self.high = number(),
            Some("managed") => self.managed = number(),
            Some("protection:") => {
                let numbers = line.split(|c: char| !c.is_ascii_digit());
                self.protection = numbers.filter_map(|word| word.parse().ok()).max().unwrap_or(0);
            }
            _ => {}
        }
    }

    fn reserve(&self) -> u64 {
        (self.high + self.protection).min(self.managed)
    }
}

fn allowed_nodes(root: &Path) -> Option<NodeSet> {
    let status = fs::read_to_string(root.join("proc/self/status")).ok()?;
    let list = status.lines().find_map(|line| line.strip_prefix("Mems_allowed_list:"))?;
    list.parse().ok().filter(|nodes: &NodeSet| !nodes.is_empty())
}

/// The soft limit of a line `Max file size   unlimited   unlimited   bytes`.
fn file_limit(root: &Path) -> Option<u64> {
    let limits = fs::read_to_string(root.join("proc/self/limits")).ok()?;
    let line = limits.lines().find_map(|line| line.strip_prefix("Max file size"))?;
    line.split_whitespace().next()?.parse().ok()
}

/// More than any machine has.
const NO_LIMIT_BYTES: u64 = 1 << 60;

fn group_room(root: &Path) -> Option<u64> {
    group::groups(root, "memory").iter().filter_map(|group| room_of_group(group)).min()
}

/// A group's limit less what it uses, page cache that is not in use left out. Past `memory.high`
/// processes are not killed but slowed down until they stand still.
fn room_of_group(group: &Path) -> Option<u64> {
    let read = |name: &str| number(&group.join(name));
    let limits = ["memory.max", "memory.high", "memory.limit_in_bytes"];
    let limit = limits.iter().filter_map(|name| read(name)).min()?;
    // Version 1 writes "no limit" as the largest number of pages.
    let limit = (limit < NO_LIMIT_BYTES).then_some(limit)?;
    let used = read("memory.current").or_else(|| read("memory.usage_in_bytes"))?;
    let stat = fs::read_to_string(group.join("memory.stat")).unwrap_or_default();
    let cache = ["total_inactive_file ", "inactive_file "].iter().find_map(|key| {
        let value = stat.lines().find_map(|line| line.strip_prefix(key))?;
        value.trim().parse::<u64>().ok()
    });
    Some(limit.saturating_sub(used.saturating_sub(cache.unwrap_or(0))))
}

/// The number in a file; `None` where there is none, `max` among others.
fn number(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::super::tests::tree;
    use super::*;

    const ZONES: &str = "\
Node 0, zone      DMA
  per-node stats
      nr_inactive_anon 1
  pages free     3840
        high     21
        managed  3840
        protection: (0, 3018, 16842, 16842)
  pagesets
    cpu: 0
              high:     9999
Node 0, zone    Normal
  pages free     9
        high     100
        managed  100000
        protection: (0, 0, 0, 0)
Node 1, zone   Normal
        high     7
        managed  100000
Node 10, zone   Normal
        high     1000
        managed  100000
";

    #[test]
    fn reserves_are_watermarks_and_protection_up_to_what_a_zone_has() {
        assert_eq!(reserve_bytes(ZONES, 0), (3840 + 100) * 4096);
        assert_eq!(reserve_bytes(ZONES, 1), 7 * 4096);
        assert_eq!(reserve_bytes(ZONES, 10), 1000 * 4096);
        assert_eq!(reserve_bytes("", 0), 0);
    }

    #[test]
    fn nodes_have_room_and_huge_pages() {
        let node = "sys/devices/system/node/node1";
        let meminfo = "Node 1 MemTotal: 400 kB\nNode 1 MemFree: 120 kB\n\
                       Node 1 Active(file): 7 kB\nNode 1 Inactive(file): 120 kB\n";
        let root = tree(&[
            (&format!("{node}/cpulist"), "\n"),
            (&format!("{node}/meminfo"), meminfo),
            (&format!("{node}/{HUGE_PAGES}/free_hugepages"), "3\n"),
            ("sys/devices/system/node/node0/cpulist", "0\n"),
            (&format!("sys/kernel/mm/{HUGE_PAGES}/free_hugepages"), "3\n"),
            (&format!("sys/kernel/mm/{HUGE_PAGES}/resv_hugepages"), "1\n"),
            ("proc/self/status", "Name:\tx\nMems_allowed_list:\t1,3\n"),
            ("proc/self/limits", "Limit\nMax file size   4096   unlimited   bytes\n"),
            ("proc/meminfo", "MemAvailable: 1200 kB\n"),
        ]);
        let memory = Memory::read(root.path());
        let node = NodeMemory {
            id: 1,
            total_bytes: 400 << 10,
            room_bytes: (240 << 10) - (2 << 10),
            free_bytes: (120 << 10) - (1 << 10),
            huge_room_bytes: 6 << 20,
        };
        assert_eq!(memory.nodes, [NodeMemory::default(), node]);
        assert_eq!(memory.huge_room_bytes, 4 << 20);
        assert_eq!(memory.host_room_bytes, Some(1190 << 10));
        assert_eq!(memory.file_limit_bytes, Some(4096));
        assert!(memory.is_allowed(3) && !memory.is_allowed(0));
        assert_eq!(memory.usable().map(|node| node.id).collect::<Vec<_>>(), [1]);
    }

    #[test]
    fn the_tightest_group_counts_and_idle_page_cache_is_room() {
        let v2 = tree(&[
            ("proc/self/cgroup", "0::/pod/main\n"),
            ("sys/fs/cgroup/pod/main/memory.max", "max\n"),
            ("sys/fs/cgroup/pod/main/memory.current", "120\n"),
            ("sys/fs/cgroup/pod/memory.max", "2000\n"),
            ("sys/fs/cgroup/pod/memory.high", "1200\n"),
            ("sys/fs/cgroup/pod/memory.current", "500\n"),
            ("sys/fs/cgroup/pod/memory.stat", "active_file 300\ninactive_file 400\n"),
        ]);
        assert_eq!(group_room(v2.path()), Some(1100));
        let v1 = tree(&[
            ("proc/self/cgroup", "4:memory:/x\n0::/\n"),
            ("sys/fs/cgroup/memory/x/memory.limit_in_bytes", "1000\n"),
            ("sys/fs/cgroup/memory/x/memory.usage_in_bytes", "900\n"),
            ("sys/fs/cgroup/memory/x/memory.stat", "inactive_file 1\ntotal_inactive_file 50\n"),
        ]);
        assert_eq!(group_room(v1.path()), Some(150));
        let free = tree(&[
            ("proc/self/cgroup", "4:memory:/\n"),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n"),
            ("sys/fs/cgroup/memory/memory.usage_in_bytes", "900\n"),
        ]);
        assert_eq!(group_room(free.path()), None);
        assert_eq!(group_room(tree(&[]).path()), None);
    }

    #[test]
    fn a_bare_tree_tells_nothing_and_this_machine_has_memory() {
        assert_eq!(Memory::read(tree(&[]).path()), Memory::default());
        let here = Memory::here();
        assert!(here.host_room_bytes.is_some_and(|bytes| bytes > 0));
        assert!(here.nodes.is_empty() || here.usable().next().is_some());
    }
}

//! Where memory and shards are on machines with several NUMA nodes. Each test reads what machine it
//! is on, asks for what it needs, and looks at where the kernel put the pages; guests with such
//! machines are started by `cargo xtask vm`.

use std::collections::BTreeMap;
use std::fs;
use std::process::{Command, Stdio};

use futures_lite::future::block_on;
use kvrail::runtime::Shards;
use kvrail::topology::{CpuSet, Memory, NodeMemory, Topology};
use kvrail::{Access, Batch, Engine, ErrorKind, Location, NumaPolicy, Region};

const MIB: usize = 1 << 20;
const PAGE_BYTES: usize = 4096;

#[test]
#[ignore = "needs a guest with several NUMA nodes: cargo xtask test --only vm"]
fn two_nodes() {
    let engine = engine();
    let [first, second] = usable()[..] else { panic!("two nodes with memory: {:?}", usable()) };
    for node in [first, second] {
        let bound = engine.allocate(8 * MIB, Location::Cpu(Some(node)), Access::READ).unwrap();
        assert_eq!(pages_on(&bound), [(node, 8 * MIB / PAGE_BYTES)].into());
        assert_eq!((bound.node(), bound.location()), (Some(node), Location::Cpu(Some(node))));
        let preferred = allocate(&engine, 8 * MIB, &NumaPolicy::Prefer(node));
        assert_eq!(pages_on(&preferred), [(node, 8 * MIB / PAGE_BYTES)].into());
    }
    let interleaved = allocate(&engine, 8 * MIB, &NumaPolicy::Interleave(vec![first, second]));
    let half = 4 * MIB / PAGE_BYTES;
    assert_eq!(pages_on(&interleaved), [(first, half), (second, half)].into());
    assert_eq!((interleaved.node(), interleaved.location()), (None, Location::Cpu(None)));
    let both = allocate(&engine, 8 * MIB, &NumaPolicy::Bind(vec![first, second]));
    assert_eq!(pages_on(&both).values().sum::<usize>(), 8 * MIB / PAGE_BYTES);
    shards_cover_the_nodes_of_our_cpus(&engine);
    copies_between_nodes_are_whole(&engine, [first, second]);
    huge_pages_are_taken_where_they_are(&engine, [first, second]);
    all_the_room_there_is_can_be_had(&engine, second);
    a_full_cgroup_refuses_before_it_kills(&engine);
}

#[test]
#[ignore = "needs a guest with several NUMA nodes: cargo xtask test --only vm"]
fn eight_uneven_nodes() {
    let engine = engine();
    let memory = Memory::here();
    assert_eq!(memory.nodes.len(), 8, "{memory:?}");
    let len = between(&memory);
    let (mut had, mut refused) = (0, 0);
    for node in memory.usable() {
        let policy = NumaPolicy::Bind(vec![node.id]);
        match engine.allocate_with(len, &policy, Access::READ) {
            Ok(region) => {
                had += 1;
                assert!(node.room_bytes >= len as u64, "{node:?}");
                assert_eq!(pages_on(&region), [(node.id, len / PAGE_BYTES)].into());
                block_on(engine.unregister(region)).unwrap();
            }
            Err(error) => {
                refused += 1;
                assert_eq!(error.kind(), ErrorKind::Refused);
                let text = error.to_string();
                let free = number_between(&text, &format!("node {} has ", node.id), " bytes free");
                assert!(free < len as u64 && text.contains(&format!("{len} bytes")), "{text}");
                assert!(text.contains("what fits now: bind to node"), "{text}");
            }
        }
    }
    assert!(had > 0 && refused > 0, "{had} nodes had room for {len} bytes, {refused} had not");
    advice_is_true(&engine, len);
    page_cache_gives_way_to_interleaved_pages(&engine);
    let all = memory.usable().map(|node| node.room_bytes).sum::<u64>() as usize;
    // More than any node has, less than all of them: only together.
    advice_is_true(&engine, all / 3 / PAGE_BYTES * PAGE_BYTES);
}

#[test]
#[ignore = "needs a guest with several NUMA nodes: cargo xtask test --only vm"]
fn memory_only_node() {
    let engine = engine();
    let facts = Topology::here().unwrap();
    let memory = Memory::here();
    let is_cpuless = |node: &&NodeMemory| {
        facts.nodes.iter().any(|known| known.id == node.id && known.cpus.is_empty())
    };
    let node = memory.usable().find(is_cpuless).expect("a node with memory and no CPU").id;
    let bound = engine.allocate(8 * MIB, Location::Cpu(Some(node)), Access::READ_WRITE).unwrap();
    assert_eq!(pages_on(&bound), [(node, 8 * MIB / PAGE_BYTES)].into());
    for shards in [Shards::Auto, Shards::PerCore, Shards::PerNode, Shards::Count(8)] {
        let placed = shards.place(&facts).unwrap();
        assert!(placed.iter().all(|place| place.node != Some(node) && !place.cpus.is_empty()));
    }
    // Copies into it have no shard at home there and run on others.
    let other = usable().into_iter().find(|other| *other != node).expect("a node with CPUs");
    copies_between_nodes_are_whole(&engine, [other, node]);
}

#[test]
#[ignore = "needs a guest with several NUMA nodes: cargo xtask test --only vm"]
fn node_without_memory() {
    let engine = engine();
    let memory = Memory::here();
    let node =
        memory.nodes.iter().find(|node| node.total_bytes == 0).expect("a node with no memory");
    let (node, other) = (node.id, usable()[0]);
    for policy in [
        NumaPolicy::Bind(vec![node]),
        NumaPolicy::Bind(vec![other, node]),
        NumaPolicy::Prefer(node),
        NumaPolicy::Interleave(vec![other, node]),
    ] {
        let error = engine.allocate_with(MIB, &policy, Access::READ).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Refused);
        let words = format!("node {node} has CPUs and no memory");
        assert!(error.to_string().contains(&words), "{error}");
    }
    for len in [1, MIB, 64 * MIB] {
        let fitting = memory.fitting(len as u64);
        assert!(fitting.iter().all(|policy| !policy.nodes().contains(&node)), "{fitting:?}");
    }
    // Its CPUs are as good as others'.
    let facts = Topology::here().unwrap();
    let placed = Shards::PerNode.place(&facts).unwrap();
    assert!(placed.iter().any(|place| place.node == Some(node)), "{placed:?}");
    let any = allocate(&engine, 8 * MIB, &NumaPolicy::Any);
    assert_eq!(pages_on(&any).values().sum::<usize>(), 8 * MIB / PAGE_BYTES);
}

#[test]
#[ignore = "needs a guest with several NUMA nodes: cargo xtask test --only vm"]
fn cpuset_of_two_cpus() {
    let facts = Topology::here().unwrap();
    let roomy =
        |node: &&kvrail::topology::Node| node.cpus.len() >= 2 && node.memory_total_bytes > 0;
    let node = facts.nodes.iter().rfind(roomy).expect("a node with two CPUs and memory");
    let cpus: CpuSet = node.cpus.iter().take(2).collect();
    enter_cpuset(&cpus, node.id);
    let inside = Topology::here().unwrap();
    assert_eq!(inside.allowed, cpus);
    let engine = engine();
    for place in engine.runtime().placement() {
        assert!(place.cpus.is_subset(&cpus), "{place:?}");
        assert_eq!(place.node, Some(node.id));
    }
    let any = allocate(&engine, 8 * MIB, &NumaPolicy::Any);
    assert_eq!(pages_on(&any), [(node.id, 8 * MIB / PAGE_BYTES)].into());
    let bound = allocate(&engine, 8 * MIB, &NumaPolicy::Bind(vec![node.id]));
    assert_eq!(bound.node(), Some(node.id));
    for other in facts.nodes.iter().filter(|other| other.id != node.id) {
        let policy = NumaPolicy::Bind(vec![other.id]);
        let error = engine.allocate_with(MIB, &policy, Access::READ).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Refused);
        assert!(error.to_string().contains("cpuset keeps this process"), "{error}");
    }
    nothing_is_warned_of();
}

fn engine() -> Engine {
    Engine::builder().start().expect("an engine")
}

fn allocate(engine: &Engine, len: usize, policy: &NumaPolicy) -> Region {
    engine.allocate_with(len, policy, Access::READ_WRITE).expect("a region")
}

/// Nodes with memory that this process may use.
fn usable() -> Vec<u32> {
    Memory::here().usable().map(|node| node.id).collect()
}

/// Where the kernel says the pages of a region are: pages by node.
fn pages_on(region: &Region) -> BTreeMap<u32, usize> {
    let maps = fs::read_to_string("/proc/self/numa_maps").expect("a kernel with NUMA");
    let start = format!("{:x} ", region.addr());
    let line = maps.lines().find(|line| line.starts_with(&start)).expect("the region is mapped");
    line.split_whitespace()
        .filter_map(|word| {
            let (node, pages) = word.strip_prefix('N')?.split_once('=')?;
            Some((node.parse().ok()?, pages.parse().ok()?))
        })
        .collect()
}

/// Fills a node with page cache and asks it for more than is free beside that.
fn page_cache_gives_way_to_interleaved_pages(engine: &Engine) {
    let facts = Topology::here().unwrap();
    let (full, other) = (facts.nodes.last().expect("a node"), usable()[0]);
    let cpu = full.cpus.iter().next().expect("a CPU");
    let mut read = Command::new("taskset");
    let read = read
        .args(["-c", &cpu.to_string(), "cat"])
        .arg(env!("CARGO_BIN_EXE_kvrail"))
        .stdout(Stdio::null())
        .status();
    assert!(read.expect("taskset, of util-linux").success());
    let memory = Memory::here();
    let node = memory.nodes.iter().find(|node| node.id == full.id).expect("it has memory");
    let cache = (node.room_bytes - node.free_bytes) as usize;
    assert!(cache > 4 * MIB, "page cache of node {}: {memory:?}", node.id);
    let share = (node.free_bytes as usize + cache / 2) / PAGE_BYTES;
    let policy = NumaPolicy::Interleave(vec![other, node.id]);
    let region = allocate(engine, 2 * share * PAGE_BYTES, &policy);
    assert_eq!(pages_on(&region), [(other, share), (node.id, share)].into());
    block_on(engine.unregister(region)).unwrap();
}

/// A length that some nodes have room for and others have not: the middle of the widest gap.
fn between(memory: &Memory) -> usize {
    let mut rooms: Vec<_> = memory.usable().map(|node| node.room_bytes as usize).collect();
    rooms.sort_unstable();
    let gaps = rooms.windows(2).map(|pair| (pair[1] - pair[0], pair[0]));
    let (gap, room) = gaps.max().expect("two nodes");
    assert!(gap > 8 * MIB, "the nodes are uneven: {rooms:?}");
    (room + gap / 2) / PAGE_BYTES * PAGE_BYTES
}

fn number_between(text: &str, before: &str, after: &str) -> u64 {
    let rest = text.split_once(before).unwrap_or_else(|| panic!("{before:?} is in: {text}")).1;
    let digits = rest.split_once(after).unwrap_or_else(|| panic!("{after:?} is in: {text}")).0;
    digits.parse().unwrap_or_else(|_| panic!("{digits:?} is a number"))
}

/// Allocates under a policy that was said to fit; none where it isn't any more: a node's room
/// moves by some pages from one moment to the next.
fn as_advised(engine: &Engine, len: usize, policy: &NumaPolicy) -> Option<Region> {
    for _ in 0..5 {
        let error = match engine.allocate_with(len, policy, Access::READ) {
            Ok(region) => return Some(region),
            Err(error) => error,
        };
        if !Memory::here().fitting(len as u64).contains(policy) {
            return None;
        }
        println!("{policy} is said to fit: {error}");
    }
    panic!("{policy} is said to fit five times, and never does");
}

/// Every policy that is said to fit does, and puts the pages where it says.
fn advice_is_true(engine: &Engine, len: usize) {
    let fitting = Memory::here().fitting(len as u64);
    assert!(fitting.len() > 1, "{fitting:?}");
    let mut had = 0;
    for policy in fitting {
        let Some(region) = as_advised(engine, len, &policy) else { continue };
        had += 1;
        let pages = pages_on(&region);
        assert_eq!(pages.values().sum::<usize>(), len / PAGE_BYTES, "{policy}");
        if matches!(policy, NumaPolicy::Bind(_) | NumaPolicy::Interleave(_)) {
            assert!(pages.keys().all(|node| policy.nodes().contains(node)), "{policy}: {pages:?}");
        }
        block_on(engine.unregister(region)).unwrap();
    }
    assert!(had > 1, "hardly anything fits that was said to");
}

fn shards_cover_the_nodes_of_our_cpus(engine: &Engine) {
    let facts = Topology::here().unwrap();
    for place in engine.runtime().placement() {
        assert!(place.cpus.is_subset(&facts.allowed), "{place:?}");
        assert!(place.cpus.iter().all(|cpu| facts.node_of(cpu) == place.node), "{place:?}");
    }
    let nodes = Shards::PerNode.place(&facts).unwrap();
    let with_cpus = facts.nodes.iter().filter(|node| !node.cpus.is_empty());
    assert_eq!(nodes.len(), with_cpus.count());
}

/// A copy large enough for the shards, from one node to the other.
fn copies_between_nodes_are_whole(engine: &Engine, [from, to]: [u32; 2]) {
    let len = 24 * MIB;
    let source = allocate(engine, len, &NumaPolicy::Bind(vec![from]));
    let target = allocate(engine, len, &NumaPolicy::Bind(vec![to]));
    let bytes: Vec<u8> = (0..len).map(|at| (at ^ at >> 8 ^ at >> 16) as u8).collect();
    source.lease(0..len).unwrap().copy_in(0, &bytes).unwrap();
    let mut batch = Batch::new(&engine.local());
    batch.write(&source.share(0..len).unwrap(), target.addr());
    block_on(engine.transfer(batch)).unwrap();
    let mut copied = vec![0; len];
    target.share(0..len).unwrap().copy_out(0, &mut copied).unwrap();
    assert!(copied == bytes);
    assert_eq!(pages_on(&target), [(to, len / PAGE_BYTES)].into(), "the pages stay there");
}

/// Huge pages of one node serve regions of that node; others get base pages, and no signal.
fn huge_pages_are_taken_where_they_are(engine: &Engine, [without, with]: [u32; 2]) {
    let pool = |node: u32, pages: &str| {
        let node = format!("/sys/devices/system/node/node{node}");
        let path = format!("{node}/hugepages/hugepages-2048kB/nr_hugepages");
        fs::write(&path, pages).expect("huge pages: run as root");
        fs::read_to_string(&path).unwrap().trim().to_owned()
    };
    assert_eq!(pool(with, "4"), "4");
    let bind = |node| NumaPolicy::Bind(vec![node]);
    let huge = allocate(engine, 8 * MIB, &bind(with));
    assert_eq!(pages_on(&huge), [(with, 4)].into(), "pages of 2 MiB");
    let base = |node| {
        let region = allocate(engine, 8 * MIB, &bind(node));
        assert_eq!(pages_on(&region), [(node, 8 * MIB / PAGE_BYTES)].into());
        block_on(engine.unregister(region)).unwrap();
    };
    base(with); // the pool is used up
    block_on(engine.unregister(huge)).unwrap();
    base(without); // the kernel promises pages that this node doesn't have
    pool(with, "0");
}

/// The last page that is said to fit does not cost a process its life.
fn all_the_room_there_is_can_be_had(engine: &Engine, node: u32) {
    let room = |memory: &Memory| {
        memory.nodes.iter().find(|known| known.id == node).expect("the node").room_bytes as usize
    };
    let len = room(&Memory::here()) / PAGE_BYTES * PAGE_BYTES;
    let bind = NumaPolicy::Bind(vec![node]);
    match engine.allocate_with(len, &bind, Access::READ) {
        Ok(region) => {
            assert_eq!(pages_on(&region), [(node, len / PAGE_BYTES)].into());
            let error = engine.allocate_with(len, &bind, Access::READ).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Refused, "{error}");
            block_on(engine.unregister(region)).unwrap();
        }
        // Somebody else took a page meanwhile, and that is all that happened.
        Err(error) => assert!(matches!(error.kind(), ErrorKind::Refused | ErrorKind::Busy)),
    }
    let most = room(&Memory::here()) / 10 * 9 / PAGE_BYTES * PAGE_BYTES;
    block_on(engine.unregister(allocate(engine, most, &bind))).unwrap();
}

/// A limit of 64 MiB above what is used: as much as is said to fit is had, twice as much is not.
fn a_full_cgroup_refuses_before_it_kills(engine: &Engine) {
    let group = new_group("memory");
    fs::write(format!("{group}/cgroup.procs"), std::process::id().to_string()).unwrap();
    fs::write(format!("{group}/memory.max"), (64 * MIB).to_string()).unwrap();
    let room = Memory::here().group_room_bytes.expect("a limit") as usize;
    assert!(room > 8 * MIB && room <= 64 * MIB, "{room}");
    let error = engine.allocate_with(2 * room, &NumaPolicy::Any, Access::READ).unwrap_err();
    assert!(error.to_string().contains("the memory cgroup has"), "{error}");
    let len = room / 10 * 9;
    block_on(engine.unregister(allocate(engine, len, &NumaPolicy::Any))).unwrap();
}

/// A control group (version 2, as root) with one controller, named after it.
fn new_group(controller: &str) -> String {
    let root = "/sys/fs/cgroup";
    let group = format!("{root}/kvrail-{controller}");
    fs::create_dir_all(&group).expect("a cgroup: run as root with version 2 mounted");
    fs::write(format!("{root}/cgroup.subtree_control"), format!("+{controller}")).unwrap();
    group
}

/// Moves this process into a cpuset of its own (cgroup version 2, as root).
fn enter_cpuset(cpus: &CpuSet, node: u32) {
    let group = new_group("cpuset");
    let write = |path: String, text: String| {
        fs::write(&path, text).unwrap_or_else(|error| panic!("{path}: {error}"));
    };
    write(format!("{group}/cpuset.cpus"), cpus.to_string());
    write(format!("{group}/cpuset.mems"), node.to_string());
    write(format!("{group}/cgroup.procs"), std::process::id().to_string());
}

/// A whole engine, as a process of its own in the same cpuset, says nothing about it.
fn nothing_is_warned_of() {
    let arguments = ["bench", "--mode", "initiator", "--path", "local", "--duration", "1"];
    let shape = ["--buffer-size", "16M", "--threads", "1", "--batch-size", "4", "--json"];
    let bench = Command::new(env!("CARGO_BIN_EXE_kvrail")).args(arguments).args(shape).output();
    let bench = bench.expect("it runs");
    let said = String::from_utf8_lossy(&bench.stderr);
    assert!(bench.status.success() && said.is_empty(), "{said}");
    let doctor = Command::new(env!("CARGO_BIN_EXE_kvrail")).args(["doctor", "--json"]).output();
    let found: serde_json::Value =
        serde_json::from_slice(&doctor.expect("it runs").stdout).unwrap();
    let checks = found["checks"].as_array().expect("checks");
    for name in ["cpus", "numa"] {
        let check = checks.iter().find(|check| check["name"] == name).expect("the check");
        assert_eq!(check["verdict"], "ok", "{check}");
    }
}

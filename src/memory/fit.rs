//! Pure: which region fits where. Facts about memory, a length and a policy in; a verdict with its
//! numbers out, and the policies that would fit instead.

use std::fmt;

use kvrail_reactors::numa::NumaPolicy;
use kvrail_reactors::region::{HUGE_PAGE_BYTES, PAGE_BYTES, Pages};

use crate::topology::{Binding, Memory, NodeMemory, NodeSet, Size};

/// How many nodes a sentence names singly: those with most room.
const ADVISED_NODES: usize = 3;

/// Why a region does not fit. Sizes are in bytes; `asked` is what the policy asks of the place
/// named, `room` what is there.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Misfit {
    /// The policy names no node.
    NoNodes,
    /// The kernel shows no NUMA nodes at all.
    NoNuma,
    /// This process may set no policy: `mbind` is forbidden to it.
    Forbidden,
    /// This kernel knows no policies.
    Unsupported,
    /// There is no such node; these there are.
    NoSuchNode {
        /// The node asked for.
        node: u32,
        /// The nodes with memory that this process may use.
        usable: Vec<u32>,
    },
    /// The node has no memory, only CPUs.
    Memoryless {
        /// The node asked for.
        node: u32,
    },
    /// The cpuset keeps this process from the node's memory.
    NotAllowed {
        /// The node asked for.
        node: u32,
        /// The nodes with memory that this process may use.
        usable: Vec<u32>,
    },
    /// A node lacks room for its share.
    Node {
        /// The node.
        node: u32,
        /// Its share of the region.
        asked: u64,
        /// Its room.
        room: u64,
    },
    /// The nodes together lack room.
    Nodes {
        /// The region.
        asked: u64,
        /// Their room.
        room: u64,
    },
    /// This thread is bound to nodes, by `numactl --membind` or the like, that lack room.
    Bound {
        /// These nodes.
        nodes: NodeSet,
        /// The region.
        asked: u64,
        /// Their room.
        room: u64,
    },
    /// The host lacks room.
    Host {
        /// The region.
        asked: u64,
        /// Its room.
        room: u64,
    },
    /// The limit of a memory cgroup leaves too little room.
    Group {
        /// The region.
        asked: u64,
        /// Its room.
        room: u64,
    },
    /// Regions are files in memory, and this process may make none so large.
    FileLimit {
        /// The region.
        asked: u64,
        /// The limit.
        limit: u64,
    },
}

impl fmt::Display for Misfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lacks = |f: &mut fmt::Formatter<'_>, whose: &str, asked: u64, room: u64| {
            write!(f, "{} asked, but {whose} {room} bytes free ({})", Size(asked), Size(room))
        };
        match self {
            Self::NoNodes => write!(f, "the policy names no node"),
            Self::NoNuma => write!(f, "the kernel shows no NUMA nodes; leave the node open"),
            Self::Forbidden => write!(
                f,
                "a seccomp profile forbids mbind, as Docker's does by default: run the container \
                 with `--cap-add SYS_NICE` or a profile that allows mbind, or give it one node by \
                 `--cpuset-mems` and leave the node open"
            ),
            Self::Unsupported => {
                write!(f, "this kernel has no NUMA policies: leave the node open")
            }
            Self::NoSuchNode { node, usable } => {
                write!(f, "there is no NUMA node {node}: there is {}", List(usable))
            }
            Self::Memoryless { node } => {
                write!(f, "node {node} has CPUs and no memory: name another node or none")
            }
            Self::NotAllowed { node, usable } => write!(
                f,
                "the cpuset keeps this process from the memory of node {node}: name one of {}, \
                 or widen cpuset.mems",
                List(usable)
            ),
            Self::Node { node, asked, room } => {
                lacks(f, &format!("node {node} has"), *asked, *room)
            }
            Self::Nodes { asked, room } => lacks(f, "these nodes have", *asked, *room),
            Self::Bound { nodes, asked, room } => {
                let whose = format!("this process is bound (numactl) to nodes {nodes} with");
                lacks(f, &whose, *asked, *room)
            }
            Self::Host { asked, room } => lacks(f, "the host has", *asked, *room),
            Self::Group { asked, room } => lacks(f, "the memory cgroup has", *asked, *room),
            Self::FileLimit { asked, limit } => write!(
                f,
                "{} asked, but this process may make files of {} at most: raise `ulimit -f`",
                Size(*asked),
                Size(*limit)
            ),
        }
    }
}

/// Whether a region fits, and on which pages it may be tried without anybody being killed for it.
pub(crate) fn fit(facts: &Memory, len: u64, policy: &NumaPolicy) -> Result<Pages, Misfit> {
    known(facts, policy)?;
    if let Some(limit) = facts.file_limit_bytes.filter(|limit| len > *limit) {
        return Err(Misfit::FileLimit { asked: len, limit });
    }
    let base = base_fits(facts, len, policy);
    match (huge_fits(facts, len, policy), base) {
        (true, Err(_)) => Ok(Pages::Huge),
        (_, Ok(())) if len.is_multiple_of(HUGE_PAGE_BYTES as u64) => Ok(Pages::Any),
        (_, base) => base.map(|()| Pages::Base),
    }
}

/// The policies under which a region fits now: each node singly, those with most room first; then
/// nodes together; then any.
pub(crate) fn fitting(facts: &Memory, len: u64) -> Vec<NumaPolicy> {
    let mut nodes: Vec<&NodeMemory> = facts.usable().collect();
    nodes.sort_by_key(|node| (std::cmp::Reverse(node.room_bytes), node.id));
    let first = |count: usize| {
        let mut ids: Vec<u32> = nodes[..count].iter().map(|node| node.id).collect();
        ids.sort_unstable();
        ids
    };
    let fits = |policy: &NumaPolicy| fit(facts, len, policy).is_ok();
    // The widest of each kind: the more nodes, the more bandwidth.
    let widest = |kind: fn(Vec<u32>) -> NumaPolicy| {
        (2..=nodes.len()).rev().map(|count| kind(first(count))).find(|policy| fits(policy))
    };
    let single = nodes.iter().map(|node| NumaPolicy::Bind(vec![node.id]));
    let prefer = nodes.first().filter(|_| nodes.len() > 1).map(|node| NumaPolicy::Prefer(node.id));
    single
        .filter(|policy| fits(policy))
        .chain(widest(NumaPolicy::Interleave))
        .chain(widest(NumaPolicy::Bind))
        .chain(prefer.into_iter().chain([NumaPolicy::Any]).filter(|policy| fits(policy)))
        .collect()
}

/// What fits now, as the end of a sentence.
pub(crate) fn advice(facts: &Memory, len: u64) -> String {
    let fitting = fitting(facts, len);
    if fitting.is_empty() {
        return "nothing of this size fits here now: ask for less, or free memory".to_owned();
    }
    let is_single = |policy: &&NumaPolicy| matches!(policy, NumaPolicy::Bind(on) if on.len() == 1);
    let singles = fitting.iter().filter(is_single).take(ADVISED_NODES);
    let others = fitting.iter().filter(|policy| !is_single(policy));
    let named: Vec<_> = singles.chain(others).map(|policy| advised(facts, len, policy)).collect();
    format!("what fits now: {}", named.join(", "))
}

fn advised(facts: &Memory, len: u64, policy: &NumaPolicy) -> String {
    let room =
        |id: &u32| facts.nodes.iter().find(|node| node.id == *id).map(|node| node.room_bytes);
    let note = match policy {
        NumaPolicy::Bind(nodes) if !nodes.is_empty() => {
            format!("{} free", Size(nodes.iter().filter_map(room).sum()))
        }
        NumaPolicy::Interleave(nodes) => format!("{} each", Size(share(len, nodes.len()))),
        _ => return policy.to_string(),
    };
    format!("{policy} ({note})")
}

/// Every node of the policy exists, has memory and is ours to use, and so is the policy.
fn known(facts: &Memory, policy: &NumaPolicy) -> Result<(), Misfit> {
    if *policy == NumaPolicy::Any {
        return Ok(());
    }
    if policy.nodes().is_empty() {
        return Err(Misfit::NoNodes);
    }
    if facts.nodes.is_empty() {
        return Err(Misfit::NoNuma);
    }
    let usable = || facts.usable().map(|node| node.id).collect();
    policy.nodes().iter().try_for_each(|&id| {
        match facts.nodes.iter().find(|node| node.id == id) {
            None => Err(Misfit::NoSuchNode { node: id, usable: usable() }),
            Some(node) if node.total_bytes == 0 => Err(Misfit::Memoryless { node: id }),
            Some(_) if !facts.is_allowed(id) => {
                Err(Misfit::NotAllowed { node: id, usable: usable() })
            }
            Some(_) => Ok(()),
        }
    })?;
    match facts.binding {
        _ if effective(facts, policy) == NumaPolicy::Any => Ok(()),
        Binding::Permitted => Ok(()),
        Binding::Forbidden => Err(Misfit::Forbidden),
        Binding::Unsupported => Err(Misfit::Unsupported),
    }
}

/// Whether the region fits on base pages; the policy's nodes are known to be usable.
pub(crate) fn base_fits(facts: &Memory, len: u64, policy: &NumaPolicy) -> Result<(), Misfit> {
    let room_of = |node: &NodeMemory| node.room_bytes;
    nodes_fit(facts, len, policy, room_of)?;
    own_fit(facts, len, policy, room_of)?;
    if let Some(room) = facts.group_room_bytes.filter(|room| len > *room) {
        return Err(Misfit::Group { asked: len, room });
    }
    match host_room(facts) {
        Some(room) if len > room => Err(Misfit::Host { asked: len, room }),
        _ => Ok(()),
    }
}

/// Huge pages were set aside: what is free of them is free for us, whatever else is full.
fn huge_fits(facts: &Memory, len: u64, policy: &NumaPolicy) -> bool {
    let room_of = |node: &NodeMemory| node.huge_room_bytes;
    let on_allowed = || facts.usable().map(room_of).sum::<u64>();
    len.is_multiple_of(HUGE_PAGE_BYTES as u64)
        && len <= facts.huge_room_bytes
        && (facts.nodes.is_empty() || len <= on_allowed())
        && nodes_fit(facts, len, policy, room_of).is_ok()
        && own_fit(facts, len, policy, room_of).is_ok()
}

/// Whether each node named has room for what the policy asks of it.
fn nodes_fit(
    facts: &Memory,
    len: u64,
    policy: &NumaPolicy,
    room_of: impl Fn(&NodeMemory) -> u64,
) -> Result<(), Misfit> {
    let mut ids = policy.nodes().to_vec();
    ids.sort_unstable();
    ids.dedup();
    let nodes: Vec<_> = facts.nodes.iter().filter(|node| ids.contains(&node.id)).collect();
    match policy {
        // Others stand in for a preferred node.
        NumaPolicy::Any | NumaPolicy::Prefer(_) => Ok(()),
        NumaPolicy::Bind(_) if nodes.len() > 1 => {
            let room = nodes.iter().map(|node| room_of(node)).sum();
            if len > room { Err(Misfit::Nodes { asked: len, room }) } else { Ok(()) }
        }
        NumaPolicy::Bind(_) | NumaPolicy::Interleave(_) => {
            let asked = share(len, nodes.len());
            nodes.iter().try_for_each(|node| match room_of(node) {
                room if asked > room => Err(Misfit::Node { node: node.id, asked, room }),
                _ => Ok(()),
            })
        }
    }
}

/// Nodes that can give their share of an interleaved region only when they drop page cache, and
/// that share. The kernel goes on to another node rather than drop it.
pub(crate) fn short_of_free(facts: &Memory, len: u64, policy: &NumaPolicy) -> Vec<(u32, u64)> {
    let NumaPolicy::Interleave(ids) = policy else { return Vec::new() };
    let nodes: Vec<_> = facts.nodes.iter().filter(|node| ids.contains(&node.id)).collect();
    let share = share(len, nodes.len());
    let short = nodes.iter().filter(|node| node.free_bytes < share);
    short.map(|node| (node.id, share)).collect()
}

/// Without a policy of its own, a region has the thread's.
fn own_fit(
    facts: &Memory,
    len: u64,
    policy: &NumaPolicy,
    room_of: impl Fn(&NodeMemory) -> u64,
) -> Result<(), Misfit> {
    let Some(nodes) = facts.bound_nodes.as_ref().filter(|_| *policy == NumaPolicy::Any) else {
        return Ok(());
    };
    let bound = facts.usable().filter(|node| nodes.contains(node.id as usize));
    let room = bound.map(room_of).sum();
    if len > room { Err(Misfit::Bound { nodes: nodes.clone(), asked: len, room }) } else { Ok(()) }
}

/// What one of `nodes` nodes gives to an interleaved region: whole pages in turn.
fn share(len: u64, nodes: usize) -> u64 {
    let pages = len.div_ceil(PAGE_BYTES as u64).div_ceil(nodes.max(1) as u64);
    pages.saturating_mul(PAGE_BYTES as u64)
}

/// The host's room; where a cpuset keeps us from some nodes, no more than the others have.
fn host_room(facts: &Memory) -> Option<u64> {
    let with_memory = facts.nodes.iter().filter(|node| node.total_bytes > 0);
    let is_limited = with_memory.clone().any(|node| !facts.is_allowed(node.id));
    let allowed = is_limited.then(|| facts.usable().map(|node| node.room_bytes).sum());
    [facts.host_room_bytes, allowed].into_iter().flatten().min()
}

/// The policy to ask the kernel for: none where the one that the caller names could not change
/// anything, as there is but one node to take memory from. Then it works without `mbind` too.
pub(crate) fn effective(facts: &Memory, policy: &NumaPolicy) -> NumaPolicy {
    let mut usable = facts.usable();
    match (usable.next(), usable.next()) {
        (Some(only), None) if policy.nodes().contains(&only.id) => NumaPolicy::Any,
        _ => policy.clone(),
    }
}

struct List<'a>(&'a [u32]);

impl fmt::Display for List<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ids: Vec<String> = self.0.iter().map(u32::to_string).collect();
        f.write_str(&ids.join(","))
    }
}

#[cfg(test)]
mod tests;

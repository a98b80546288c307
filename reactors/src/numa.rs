//! Where memory lies: a mapping's policy (`mbind(2)`) and the nodes that its pages are on
//! (`move_pages(2)`). What to ask for is decided elsewhere; here it is asked.

use std::fmt;
use std::io;
use std::ptr::NonNull;

use crate::region::{PAGE_BYTES, Region};

/// Node numbers per word of the kernel's mask.
const WORD_BITS: usize = u64::BITS as usize;

/// Highest node number plus one: the largest `CONFIG_NODES_SHIFT` of any architecture is 10.
pub const NODES_MAX: usize = 1 << 10;

/// Pages of a region that are asked where they are: enough to see an interleaved region as such,
/// few enough for one short system call.
const SAMPLES: usize = 16;

/// Where a region's pages come from.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub enum NumaPolicy {
    /// No binding: the kernel takes the node of the thread that allocates, others when it is full.
    #[default]
    Any,
    /// From these nodes and no other (`MPOL_BIND`).
    Bind(Vec<u32>),
    /// From this node while it has room, then from others (`MPOL_PREFERRED`).
    Prefer(u32),
    /// From these nodes in turn, page by page (`MPOL_INTERLEAVE`).
    Interleave(Vec<u32>),
}

impl NumaPolicy {
    /// The nodes it names; none for no binding.
    pub fn nodes(&self) -> &[u32] {
        match self {
            Self::Any => &[],
            Self::Bind(nodes) | Self::Interleave(nodes) => nodes,
            Self::Prefer(node) => std::slice::from_ref(node),
        }
    }

    /// The mode's number in `mbind(2)`.
    fn mode(&self) -> libc::c_int {
        match self {
            Self::Any => libc::MPOL_DEFAULT,
            Self::Prefer(_) => libc::MPOL_PREFERRED,
            Self::Bind(_) => libc::MPOL_BIND,
            Self::Interleave(_) => libc::MPOL_INTERLEAVE,
        }
    }
}

impl fmt::Display for NumaPolicy {
    /// What to do: `bind to node 1`, `interleave over nodes 0,1`, `no binding`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self {
            Self::Any => return f.write_str("no binding"),
            Self::Bind(_) => "bind to",
            Self::Prefer(_) => "prefer",
            Self::Interleave(_) => "interleave over",
        };
        let plural = if self.nodes().len() == 1 { "" } else { "s" };
        let nodes: Vec<String> = self.nodes().iter().map(u32::to_string).collect();
        write!(f, "{what} node{plural} {}", nodes.join(","))
    }
}

/// Sets the policy of a fresh mapping, before its pages are there. No binding takes no system
/// call, so it works where `mbind` is forbidden.
pub(crate) fn apply(base: NonNull<u8>, len: usize, policy: &NumaPolicy) -> io::Result<()> {
    if *policy == NumaPolicy::Any {
        return Ok(());
    }
    let mask = mask(policy.nodes())?;
    // The kernel takes one bit less than it is told (`mbind(2)`, maxnode).
    let max_node = mask.len() * WORD_BITS + 1;
    // SAFETY: the range is the caller's own fresh mapping; the mask outlives the call.
    let rc = unsafe {
        libc::syscall(
            libc::SYS_mbind,
            base.as_ptr(),
            len,
            policy.mode(),
            mask.as_ptr(),
            max_node,
            libc::c_uint::default(),
        )
    };
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The nodes that the calling thread's own policy binds it to, as `numactl --membind` does for a
/// whole process; `None` for every other policy, as these take from all nodes in the end. It holds
/// for regions without a policy of their own.
///
/// # Errors
/// EPERM or ENOSYS where a seccomp profile or the kernel has no `get_mempolicy`.
pub fn own_binding() -> io::Result<Option<Vec<u32>>> {
    let mut mode: libc::c_int = 0;
    let mut mask = [0u64; NODES_MAX / WORD_BITS];
    // SAFETY: the kernel stores the mode and at most `NODES_MAX` bits into what it is given.
    let rc = unsafe {
        libc::syscall(
            libc::SYS_get_mempolicy,
            &raw mut mode,
            mask.as_mut_ptr(),
            // One bit more than there are, as for `mbind`.
            NODES_MAX + 1,
            std::ptr::null::<libc::c_void>(),
            0,
        )
    };
    if rc != 0 {
        return Err(io::Error::last_os_error());
    }
    // A mode may carry these beside its number.
    let flags =
        libc::MPOL_F_STATIC_NODES | libc::MPOL_F_RELATIVE_NODES | libc::MPOL_F_NUMA_BALANCING;
    let is_set = |node: &u32| mask[*node as usize / WORD_BITS] >> (node % u64::BITS) & 1 == 1;
    let is_bound = mode & !flags == libc::MPOL_BIND;
    Ok(is_bound.then(|| (0..NODES_MAX as u32).filter(is_set).collect()))
}

fn mask(nodes: &[u32]) -> io::Result<Vec<u64>> {
    let highest = nodes.iter().max().map_or(0, |node| *node as usize);
    if nodes.is_empty() || highest >= NODES_MAX {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    let mut mask = vec![0u64; highest / WORD_BITS + 1];
    for &node in nodes {
        mask[node as usize / WORD_BITS] |= 1 << (node as usize % WORD_BITS);
    }
    Ok(mask)
}

/// The node of every page named by an address in it; `None` for a page that isn't there, or that
/// the kernel says nothing of.
///
/// # Errors
/// EPERM or ENOSYS where a seccomp profile or the kernel has no `move_pages`.
pub fn nodes_of(addrs: &[u64]) -> io::Result<Vec<Option<u32>>> {
    let mut status = vec![-libc::ENOENT; addrs.len()];
    // SAFETY: without target nodes nothing moves; the kernel reads `addrs.len()` addresses, which
    // it does not follow unless they are this process's, and stores as many statuses.
    let rc = unsafe {
        libc::syscall(
            libc::SYS_move_pages,
            0,
            addrs.len(),
            addrs.as_ptr(),
            std::ptr::null::<libc::c_int>(),
            status.as_mut_ptr(),
            0,
        )
    };
    if rc < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(status.into_iter().map(|node| u32::try_from(node).ok()).collect())
}

/// The one node that holds a region, as far as a sample of its pages tells.
pub(crate) fn node_of(region: &Region) -> Option<u32> {
    let pages = region.len().div_ceil(PAGE_BYTES);
    let samples = pages.min(SAMPLES);
    // The odd step keeps samples of an interleaved region from all falling on one node.
    let page = |k: usize| (pages * k / samples) | (k & 1);
    let addr = |k: usize| region.addr() + (page(k).min(pages - 1) * PAGE_BYTES) as u64;
    let nodes = nodes_of(&(0..samples).map(addr).collect::<Vec<_>>()).ok()?;
    let first = *nodes.first()?;
    first.filter(|_| nodes.iter().all(|node| *node == first))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_name_nodes_and_absurd_ones_are_refused() {
        assert_eq!(mask(&[0, 2, 65]).unwrap(), [0b101, 0b10]);
        for nodes in [&[][..], &[NODES_MAX as u32], &[u32::MAX]] {
            assert_eq!(mask(nodes).unwrap_err().raw_os_error(), Some(libc::EINVAL), "{nodes:?}");
        }
    }

    #[test]
    fn a_thread_that_nobody_bound_is_bound_to_nothing() {
        // Under `numactl --membind` this test has something else to find.
        let bound = own_binding().unwrap_or_default();
        assert!(bound.is_none_or(|nodes| !nodes.is_empty()));
    }

    #[test]
    fn a_policy_says_what_to_do() {
        for (policy, text) in [
            (NumaPolicy::Any, "no binding"),
            (NumaPolicy::Bind(vec![1]), "bind to node 1"),
            (NumaPolicy::Prefer(0), "prefer node 0"),
            (NumaPolicy::Interleave(vec![0, 1]), "interleave over nodes 0,1"),
        ] {
            assert_eq!(policy.to_string(), text);
        }
    }

    #[test]
    fn pages_that_are_there_have_a_node_and_others_none() {
        let region = Region::allocate(8 * PAGE_BYTES, None).unwrap();
        // Some kernels and profiles know no `move_pages`: then there is nothing to tell.
        let Ok(nodes) = nodes_of(&[region.addr(), 0]) else { return };
        assert!(nodes[0].is_some(), "{nodes:?}");
        assert_eq!(nodes[1], None);
        assert_eq!(region.node(), nodes[0]);
    }
}

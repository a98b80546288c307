//! Is there room? The kernel kills a process rather than refuse it a page, so the question is
//! asked before a region is allocated, of the host, the node and the control group.

use std::fs;
use std::path::Path;

use super::Location;
use crate::{Error, Result};

/// Refuses a region that does not fit into the memory that is free now.
pub(crate) fn check_room(len: usize, location: Location) -> Result<()> {
    let Location::Cpu(node) = location;
    let host = available("/proc/meminfo", &["MemAvailable"]);
    let node_room = node.and_then(|node| {
        // Page cache that is not in use can be dropped for us.
        available(&format!("/sys/devices/system/node/node{node}/meminfo"), NODE_KEYS)
    });
    if node.is_some() && node_room.is_none() {
        return Err(Error::refused(format!("there is no NUMA {location}; leave the node open")));
    }
    let group = group_room(Path::new("/sys/fs/cgroup"));
    for (room, whose) in [(host, "the host"), (node_room, "the node"), (group, "the cgroup")] {
        if let Some(room) = room.filter(|&room| (len as u64) > room) {
            return Err(Error::refused(format!(
                "a region of {len} bytes at {location}, but {whose} has {room} bytes free"
            )));
        }
    }
    Ok(())
}

const NODE_KEYS: &[&str] = &["MemFree", "Inactive(file)"];

fn available(path: &str, keys: &[&str]) -> Option<u64> {
    Some(sum_of(&fs::read_to_string(path).ok()?, keys))
}

/// Adds up the lines of a `meminfo` that carry these keys, in bytes.
fn sum_of(meminfo: &str, keys: &[&str]) -> u64 {
    meminfo
        .lines()
        .filter_map(|line| {
            let (name, value) = line.split_once(':')?;
            let key = name.split_whitespace().last()?;
            let kib: u64 = value.split_whitespace().next()?.parse().ok()?;
            keys.contains(&key).then_some(kib * 1024)
        })
        .sum()
}

/// The room that the tightest of our control groups (version 2) leaves.
fn group_room(root: &Path) -> Option<u64> {
    let text = fs::read_to_string("/proc/self/cgroup").ok()?;
    let own = text.lines().find_map(|line| line.strip_prefix("0::/"))?;
    root.join(own)
        .ancestors()
        .take_while(|group| group.starts_with(root))
        .filter_map(|group| {
            let number = |name| -> Option<u64> {
                fs::read_to_string(group.join(name)).ok()?.trim().parse().ok()
            };
            Some(number("memory.max")?.saturating_sub(number("memory.current")?))
        })
        .min()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;

    #[test]
    fn a_region_larger_than_memory_is_refused_with_both_numbers() {
        let error = check_room(1 << 50, Location::Cpu(None)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Refused);
        assert!(error.to_string().contains("1125899906842624 bytes at *, but the host has"));
        assert!(check_room(1 << 20, Location::Cpu(None)).is_ok());
        assert!(check_room(1, Location::Cpu(Some(4000))).is_err(), "no such node");
    }

    #[test]
    fn meminfo_lines_are_added_up() {
        let text = "Node 0 MemFree:   10 kB\nNode 0 Inactive(file): 2 kB\nNode 0 MemUsed: 7 kB\n";
        assert_eq!(sum_of(text, NODE_KEYS), 12 * 1024);
    }
}

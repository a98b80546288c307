//! A NUMA layout as people write it, `512:0-1,256:,0:2-3`, and as QEMU wants it. Pure.

use std::collections::BTreeSet;
use std::str::FromStr;

/// More nodes than any layout here needs; Debian's kernel would take 1024.
const NODES_MAX: usize = 16;
/// QEMU's q35 takes 288; guests on two cores are slow long before.
const CPUS_MAX: u32 = 64;

/// The nodes of a guest, by number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Numa {
    nodes: Vec<Node>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Node {
    memory_mib: u32,
    /// First and last CPU.
    cpus: Option<(u32, u32)>,
}

impl FromStr for Numa {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let nodes = text.split(',').map(str::parse).collect::<Result<Vec<Node>, _>>()?;
        if nodes.len() > NODES_MAX {
            return Err(format!("{} nodes: at most {NODES_MAX}", nodes.len()));
        }
        if nodes.iter().all(|node| node.memory_mib == 0) {
            return Err("no node has memory".to_owned());
        }
        let cpus: Vec<u32> = nodes.iter().flat_map(Node::cpus).collect();
        let distinct: BTreeSet<u32> = cpus.iter().copied().collect();
        let whole = distinct.iter().copied().eq(0..cpus.len() as u32);
        match whole && !cpus.is_empty() && distinct.len() == cpus.len() {
            true => Ok(Self { nodes }),
            false => Err("each CPU from 0 to the last is in exactly one node".to_owned()),
        }
    }
}

impl FromStr for Node {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let malformed =
            || format!("{text:?} is no node: write MIB:CPUS, such as 512:0-1, 256: or 0:4");
        let (memory, cpus) = text.split_once(':').ok_or_else(malformed)?;
        let memory_mib = memory.parse().map_err(|_| malformed())?;
        if cpus.is_empty() {
            return Ok(Self { memory_mib, cpus: None });
        }
        let (first, last) = cpus.split_once('-').unwrap_or((cpus, cpus));
        let first: u32 = first.parse().map_err(|_| malformed())?;
        let last: u32 = last.parse().map_err(|_| malformed())?;
        match first <= last && last < CPUS_MAX {
            true => Ok(Self { memory_mib, cpus: Some((first, last)) }),
            false => Err(malformed()),
        }
    }
}

impl Node {
    fn cpus(&self) -> impl Iterator<Item = u32> {
        self.cpus.into_iter().flat_map(|(first, last)| first..=last)
    }

    fn arguments(&self, number: usize) -> Vec<String> {
        let mut node = format!("node,nodeid={number}");
        let mut arguments = Vec::new();
        if self.memory_mib > 0 {
            let size = self.memory_mib;
            let object = format!("memory-backend-ram,id=m{number},size={size}M");
            arguments.extend(["-object".to_owned(), object]);
            node += &format!(",memdev=m{number}");
        }
        if let Some((first, last)) = self.cpus {
            node += &format!(",cpus={first}-{last}");
        }
        arguments.extend(["-numa".to_owned(), node]);
        arguments
    }
}

impl Numa {
    /// CPUs of all nodes together.
    pub fn smp(&self) -> u32 {
        self.nodes.iter().map(|node| node.cpus().count() as u32).sum()
    }

    /// Memory of all nodes together.
    pub fn memory_mib(&self) -> u32 {
        self.nodes.iter().map(|node| node.memory_mib).sum()
    }

    /// What QEMU is told.
    pub fn arguments(&self) -> Vec<String> {
        let numbered = self.nodes.iter().enumerate();
        numbered.flat_map(|(number, node)| node.arguments(number)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layout_becomes_qemus_arguments() {
        let numa: Numa = "512:0-1,256:,0:2".parse().unwrap();
        assert_eq!((numa.smp(), numa.memory_mib()), (3, 768));
        let expected = [
            "-object",
            "memory-backend-ram,id=m0,size=512M",
            "-numa",
            "node,nodeid=0,memdev=m0,cpus=0-1",
            "-object",
            "memory-backend-ram,id=m1,size=256M",
            "-numa",
            "node,nodeid=1,memdev=m1",
            "-numa",
            "node,nodeid=2,cpus=2-2",
        ];
        assert_eq!(numa.arguments(), expected);
    }

    #[test]
    fn what_qemu_would_misread_is_refused() {
        for (text, word) in [
            ("", "is no node"),
            ("512", "is no node"),
            ("512:1-0", "is no node"),
            ("512:0-64", "is no node"),
            ("x:0", "is no node"),
            ("0:0-1", "no node has memory"),
            ("512:", "exactly one"),
            ("512:1-2", "exactly one"),
            ("512:0-1,512:1-2", "exactly one"),
            ("512:0,512:2", "exactly one"),
        ] {
            let error = text.parse::<Numa>().unwrap_err();
            assert!(error.contains(word), "{text:?} says {error}");
        }
        let many = vec!["1:"; NODES_MAX + 1].join(",");
        assert!(many.parse::<Numa>().unwrap_err().contains("at most"));
    }
}

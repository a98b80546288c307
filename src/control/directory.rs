//! Who has what: the descriptors of peers by name, as last seen. A pure map; it asks nobody.
//!
//! Peers keep ports and addresses for the life of their process, so an entry stays good until a
//! transfer finds it stale; whoever finds that asks again. The least recently used goes first.

use std::collections::HashMap;
use std::sync::Arc;

use super::address::Address;
use super::descriptor::{Buffer, Descriptor};

/// A peer as resolved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Resolved {
    /// What it publishes.
    pub descriptor: Descriptor,
    /// Its control daemon.
    pub control: Address,
    /// Its data listener.
    pub data: Address,
}

impl Resolved {
    /// The data listener is where the descriptor says, on the control host if it does not.
    pub fn new(descriptor: Descriptor, control: Address) -> Self {
        let host = descriptor.tcp_data_host.clone().unwrap_or_else(|| control.host.clone());
        let data = Address::new(host, descriptor.tcp_data_port);
        Self { descriptor, control, data }
    }

    /// Heap and inline bytes, about.
    fn weight_bytes(&self) -> usize {
        let descriptor = &self.descriptor;
        let keys = |b: &Buffer| (b.lkey.len() + b.rkey.len()) * size_of::<u32>();
        let buffers = descriptor.buffers.iter();
        let buffers: usize = buffers.map(|b| size_of_val(b) + b.name.len() + keys(b)).sum();
        let devices = descriptor.devices.iter().map(|d| size_of_val(d) + d.name.len());
        let matrix = descriptor.priority_matrix.weight_bytes();
        size_of::<Self>() + buffers + devices.sum::<usize>() + matrix
    }
}

#[derive(Debug)]
pub(crate) struct Directory {
    entries: HashMap<String, Entry>,
    max_peers: usize,
    max_bytes: usize,
    bytes: usize,
    /// Counts uses; orders entries by their last one.
    tick: u64,
}

#[derive(Debug)]
struct Entry {
    resolved: Arc<Resolved>,
    bytes: usize,
    used: u64,
}

impl Directory {
    pub fn new(max_peers: usize, max_bytes: usize) -> Self {
        Self { entries: HashMap::new(), max_peers, max_bytes, bytes: 0, tick: 0 }
    }

    /// The peer as last seen.
    pub fn get(&mut self, name: &str) -> Option<Arc<Resolved>> {
        self.tick += 1;
        let entry = self.entries.get_mut(name)?;
        entry.used = self.tick;
        Some(Arc::clone(&entry.resolved))
    }

    /// Remembers the peer as seen now. An entry too large for the directory is not kept.
    pub fn insert(&mut self, name: &str, resolved: Arc<Resolved>) {
        self.forget(name);
        let bytes = name.len() + resolved.weight_bytes();
        if bytes > self.max_bytes || self.max_peers == 0 {
            return;
        }
        while self.entries.len() >= self.max_peers || self.bytes + bytes > self.max_bytes {
            self.forget_least_used();
        }
        self.tick += 1;
        self.bytes += bytes;
        self.entries.insert(name.to_owned(), Entry { resolved, bytes, used: self.tick });
    }

    /// The peer is gone.
    pub fn forget(&mut self, name: &str) {
        if let Some(entry) = self.entries.remove(name) {
            self.bytes -= entry.bytes;
        }
    }

    fn forget_least_used(&mut self) {
        let oldest = self.entries.iter().min_by_key(|(_, entry)| entry.used);
        if let Some(name) = oldest.map(|(name, _)| name.clone()) {
            self.forget(&name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(buffers: usize, data_host: Option<&str>) -> Arc<Resolved> {
        let json = br#"{"name":"n","protocol":"tcp","tcp_data_port":7}"#;
        let mut descriptor = Descriptor::parse(json).unwrap();
        let buffer = Buffer { addr: 1, length: 1, name: "n".to_owned(), ..Buffer::default() };
        descriptor.buffers = vec![buffer; buffers];
        descriptor.tcp_data_host = data_host.map(str::to_owned);
        Arc::new(Resolved::new(descriptor, Address::new("control", 1)))
    }

    #[test]
    fn the_data_host_falls_back_to_the_control_host() {
        assert_eq!(peer(0, None).data, Address::new("control", 7));
        assert_eq!(peer(0, Some("data")).data, Address::new("data", 7));
    }

    #[test]
    fn a_refresh_replaces() {
        let mut directory = Directory::new(2, 1 << 20);
        directory.insert("a", peer(1, None));
        directory.insert("a", peer(2, None));
        assert_eq!(directory.get("a").unwrap().descriptor.buffers.len(), 2);
        directory.forget("a");
        assert!(directory.get("a").is_none());
        assert_eq!(directory.bytes, 0);
    }

    #[test]
    fn the_least_recently_used_is_forgotten_first() {
        let mut directory = Directory::new(2, 1 << 20);
        directory.insert("a", peer(0, None));
        directory.insert("b", peer(0, None));
        directory.get("a");
        directory.insert("c", peer(0, None));
        assert!(directory.get("a").is_some());
        assert!(directory.get("b").is_none());
        assert!(directory.get("c").is_some());
    }

    #[test]
    fn keys_devices_and_the_matrix_weigh_too() {
        let json = include_bytes!("../../fuzz/corpus/descriptor/mooncake_rdma");
        let mut descriptor = Descriptor::parse(json).unwrap();
        let weight_bytes = |descriptor: &Descriptor| {
            Resolved::new(descriptor.clone(), Address::new("control", 1)).weight_bytes()
        };
        let whole = weight_bytes(&descriptor);
        descriptor.priority_matrix = Default::default();
        let without_matrix = weight_bytes(&descriptor);
        descriptor.devices.clear();
        let without_devices = weight_bytes(&descriptor);
        (descriptor.buffers[0].lkey, descriptor.buffers[0].rkey) = (Vec::new(), Vec::new());
        let without_keys = weight_bytes(&descriptor);
        assert_eq!(without_keys, without_devices - 4 * size_of::<u32>());
        assert!(without_devices < without_matrix && without_matrix < whole);
    }

    #[test]
    fn bytes_are_bounded() {
        let weight = peer(100, None).weight_bytes();
        let mut directory = Directory::new(100, 3 * weight);
        for name in ["a", "b", "c", "d", "e"] {
            directory.insert(name, peer(100, None));
            assert!(directory.bytes <= 3 * weight);
        }
        assert_eq!(directory.entries.len(), 2);
        directory.insert("giant", peer(1000, None));
        assert!(directory.get("giant").is_none());
        assert!(directory.get("e").is_some());
    }
}

//! `kvrail topology`: the machine as this process sees it, and what fits where.

mod fit;
mod gpus;
mod rdma;

use clap::Args;
use comfy_table::Table;
use kvrail::Result;
use kvrail::runtime::{ShardPlacement, Shards};
use kvrail::topology::{Devices, Gpus, Memory, Nic, Node, NodeMemory, Size, Topology};
use serde_json::{Value, json};

use crate::{size, table};

#[derive(Args)]
pub struct Options {
    /// Says on which nodes and under which policy a region of this size fits now; exits with 1
    /// when nowhere.
    #[arg(long, value_name = "SIZE", value_parser = size::parse)]
    fit: Option<usize>,
    /// Shards to place; by default half of the CPUs, 8 at most.
    #[arg(long)]
    shards: Option<usize>,
    /// Prints one line of JSON.
    #[arg(long)]
    json: bool,
}

/// Whether what was asked to fit does.
pub fn run(options: &Options) -> Result<bool> {
    let memory = Memory::here();
    if let Some(len) = options.fit {
        return Ok(fit::show(&memory, len as u64, options.json));
    }
    let shards = options.shards.map_or_else(Shards::default, Shards::Count);
    let topology = Topology::here()?;
    let machine = Machine {
        shards: shards.place(&topology)?,
        devices: Devices::here(),
        gpus: Gpus::here(),
        topology,
        memory,
    };
    if options.json {
        println!("{}", machine.json())
    } else {
        machine.print()
    }
    Ok(true)
}

struct Machine {
    topology: Topology,
    memory: Memory,
    devices: Devices,
    gpus: Gpus,
    shards: Vec<ShardPlacement>,
}

impl Machine {
    fn print(&self) {
        let allowed = &self.topology.allowed;
        println!("This process may use {} CPUs: {allowed}\n", allowed.len());
        if let Some(nodes) = &self.memory.bound_nodes {
            println!("Its memory is bound (numactl) to nodes {nodes}\n");
        }
        match self.topology.nodes.is_empty() {
            true => println!("NUMA nodes: the kernel shows none\n"),
            false => println!("NUMA nodes\n{}\n", self.nodes().trim_fmt()),
        }
        println!("Shards\n{}\n", self.shards().trim_fmt());
        match self.devices.nics.is_empty() {
            true => println!("NICs: none here\n"),
            false => println!("NICs\n{}\n", self.nics().trim_fmt()),
        }
        match self.devices.rdma.is_empty() {
            true => println!("RDMA devices: none here"),
            false => println!("RDMA devices\n{}", rdma::table(&self.devices).trim_fmt()),
        }
        match &self.gpus.found {
            Err(why) => println!("\nGPUs: none for this process\n {why}"),
            Ok(gpus) => println!("\nGPUs\n{}", gpus::table(gpus).trim_fmt()),
        }
        if let Some(room) = self.memory.group_room_bytes {
            println!("\nThe memory cgroup leaves {}", Size(room));
        }
    }

    fn nodes(&self) -> Table {
        let mut nodes =
            table::new(&["node", "CPUs", "yours", "memory", "free", "room", "huge pages"]);
        for node in &self.topology.nodes {
            let cpus = node.cpus.intersection(&self.topology.allowed);
            let memory = self.memory_of(node);
            nodes.add_row([
                node.id.to_string(),
                or_none(&node.cpus.to_string()),
                or_none(&cpus.to_string()),
                sized(node.memory_total_bytes),
                sized(node.memory_free_bytes),
                self.room(memory),
                sized(memory.map_or(0, |memory| memory.huge_room_bytes)),
            ]);
        }
        nodes
    }

    /// How large a region fits on the node, page cache counted, or why none does.
    fn room(&self, memory: Option<&NodeMemory>) -> String {
        match memory {
            Some(memory) if memory.total_bytes == 0 => "no memory".to_owned(),
            Some(memory) if !self.memory.is_allowed(memory.id) => "not in the cpuset".to_owned(),
            memory => sized(memory.map_or(0, |memory| memory.room_bytes)),
        }
    }

    fn memory_of(&self, node: &Node) -> Option<&NodeMemory> {
        self.memory.nodes.iter().find(|memory| memory.id == node.id)
    }

    fn shards(&self) -> Table {
        let mut shards = table::new(&["shard", "node", "CPUs"]);
        for (index, place) in self.shards.iter().enumerate() {
            shards.add_row([index.to_string(), node(place.node), place.cpus.to_string()]);
        }
        shards
    }

    fn nics(&self) -> Table {
        let mut nics = table::new(&["NIC", "node", "state", "speed", ""]);
        for nic in &self.devices.nics {
            let kind = if nic.is_virtual { "virtual" } else { "" };
            nics.add_row([
                nic.name.clone(),
                node(nic.node),
                nic.state.clone(),
                nic.speed_mbps.map_or_else(|| "-".to_owned(), speed),
                kind.to_owned(),
            ]);
        }
        nics
    }

    fn json(&self) -> Value {
        let shards = self.shards.iter().enumerate().map(|(index, place)| {
            json!({ "shard": index, "node": place.node, "cpus": place.cpus.to_string() })
        });
        let nodes = self.topology.nodes.iter().map(|node| self.node_json(node));
        json!({
            "allowed_cpus": self.topology.allowed.to_string(),
            "allowed_nodes": self.memory.allowed_nodes.as_ref().map(ToString::to_string),
            "bound_nodes": self.memory.bound_nodes.as_ref().map(ToString::to_string),
            "nodes": nodes.collect::<Vec<_>>(),
            "shards": shards.collect::<Vec<_>>(),
            "nics": self.devices.nics.iter().map(nic_json).collect::<Vec<_>>(),
            "rdma": rdma::json(&self.devices),
            "gpus": self.gpus.found.as_deref().map(gpus::json).unwrap_or_default(),
            "host_room_bytes": self.memory.host_room_bytes,
            "cgroup_room_bytes": self.memory.group_room_bytes,
        })
    }

    fn node_json(&self, node: &Node) -> Value {
        let memory = self.memory_of(node);
        json!({
            "node": node.id,
            "cpus": node.cpus.to_string(),
            "allowed_cpus": node.cpus.intersection(&self.topology.allowed).to_string(),
            "memory_total_bytes": node.memory_total_bytes,
            "memory_free_bytes": node.memory_free_bytes,
            "memory_allowed": self.memory.is_allowed(node.id),
            "room_bytes": memory.map(|memory| memory.room_bytes),
            "huge_page_bytes": memory.map(|memory| memory.huge_room_bytes),
        })
    }
}

fn nic_json(nic: &Nic) -> Value {
    json!({
        "name": nic.name,
        "node": nic.node,
        "virtual": nic.is_virtual,
        "state": nic.state,
        "speed_mbps": nic.speed_mbps,
    })
}

fn node(node: Option<u32>) -> String {
    node.map_or_else(|| "-".to_owned(), |node| node.to_string())
}

fn or_none(text: &str) -> String {
    if text.is_empty() { "-".to_owned() } else { text.to_owned() }
}

fn sized(bytes: u64) -> String {
    if bytes == 0 { "-".to_owned() } else { Size(bytes).to_string() }
}

fn speed(mbps: u64) -> String {
    if mbps >= 1000 { format!("{} Gbit/s", mbps as f64 / 1000.0) } else { format!("{mbps} Mbit/s") }
}

//! `kvrail topology`'s view of GPUs: where each hangs, and whose memory it reaches.

use comfy_table::Table;
use kvrail::topology::{Gpu, Size};
use serde_json::{Value, json};

use super::node;
use crate::table;

pub fn table(gpus: &[Gpu]) -> Table {
    let mut shown =
        table::new(&["location", "GPU", "PCI", "node", "memory", "multiprocessors", "reaches"]);
    for gpu in gpus {
        let reaches: Vec<_> = gpu.reaches.iter().map(|other| format!("cuda:{other}")).collect();
        shown.add_row([
            format!("cuda:{}", gpu.ordinal),
            gpu.name.clone(),
            gpu.pci.clone(),
            node(gpu.node),
            Size(gpu.memory_bytes).to_string(),
            gpu.multiprocessors.to_string(),
            if reaches.is_empty() { "-".to_owned() } else { reaches.join(" ") },
        ]);
    }
    shown
}

pub fn json(gpus: &[Gpu]) -> Value {
    let one = |gpu: &Gpu| {
        json!({
            "location": format!("cuda:{}", gpu.ordinal),
            "name": gpu.name,
            "pci": gpu.pci,
            "node": gpu.node,
            "memory_bytes": gpu.memory_bytes,
            "multiprocessors": gpu.multiprocessors,
            "reaches": gpu.reaches,
        })
    };
    gpus.iter().map(one).collect()
}

//! What VRAM needs: a driver that this process may use. A host without GPUs lacks nothing.

use super::{ok, warn};
use crate::doctor::Finding;
use crate::topology::{Gpu, Gpus};

pub(in crate::doctor) fn gpus(gpus: &Gpus) -> Finding {
    let name = "gpus";
    match &gpus.found {
        Ok(found) => {
            let told: Vec<_> = found.iter().map(told).collect();
            ok(name, format!("VRAM of {} GPUs can be used: {}", found.len(), told.join("; ")))
        }
        Err(_) if !gpus.has_driver => ok(name, "none here"),
        Err(why) => warn(
            name,
            format!("this host has GPUs, and this process none: {why}"),
            "until then memory is the host's alone",
        ),
    }
}

fn told(gpu: &Gpu) -> String {
    let Gpu { ordinal, name, node, reaches, .. } = gpu;
    let node = node.map_or_else(String::new, |node| format!(" on node {node}"));
    let others: Vec<_> = reaches.iter().map(|other| format!("cuda:{other}")).collect();
    match others.is_empty() {
        true => format!("cuda:{ordinal} {name}{node}"),
        false => format!("cuda:{ordinal} {name}{node}, reaches {}", others.join(" ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Verdict;

    #[test]
    fn gpus_that_can_t_be_used_are_a_warning_and_none_are_not() {
        let none = |has_driver| Gpus { found: Err("no libcuda.so.1".into()), has_driver };
        assert_eq!(gpus(&none(false)).verdict, Verdict::Ok);
        let warned = gpus(&none(true));
        assert!(warned.verdict == Verdict::Warn && warned.what.contains("libcuda"));
        let gpu = Gpu {
            ordinal: 0,
            name: "H200".into(),
            pci: String::new(),
            node: Some(1),
            memory_bytes: 1 << 37,
            multiprocessors: 132,
            reaches: vec![1, 2],
        };
        let found = gpus(&Gpus { found: Ok(vec![gpu]), has_driver: true });
        assert!(found.what.ends_with("cuda:0 H200 on node 1, reaches cuda:1 cuda:2"), "{found:?}");
    }
}

//! `kvrail topology --fit`: every policy worth a look, whether the region fits, and why not.

use kvrail::topology::{Memory, Size};
use kvrail::{Misfit, NumaPolicy};
use serde_json::{Value, json};

use crate::table;

/// Prints the verdicts; whether there is one that fits.
pub fn show(memory: &Memory, len: u64, as_json: bool) -> bool {
    let verdicts = verdicts(memory, len);
    let fits = verdicts.iter().any(|verdict| verdict.fits());
    if as_json {
        let policies: Vec<_> = verdicts.iter().map(Verdict::json).collect();
        println!("{}", json!({ "bytes": len, "fits": fits, "policies": policies }));
        return fits;
    }
    let answer = if fits { "fits" } else { "does not fit now: ask for less, or free memory" };
    println!("A region of {} ({len} bytes) {answer}", Size(len));
    let mut shown = table::new(&["policy", "fits", "why"]);
    let (bindable, barred): (Vec<_>, Vec<_>) =
        verdicts.iter().partition(|verdict| !verdict.is_barred);
    for verdict in bindable {
        let (policy, why) = (verdict.policy.to_string(), verdict.why.clone());
        let fits = if verdict.fits() { "yes" } else { "no" };
        shown.add_row([policy, fits.to_owned(), why.unwrap_or_else(|room| room)]);
    }
    println!("{}", shown.trim_fmt());
    // One reason for every policy: said once.
    if let Some(Err(why)) = barred.first().map(|verdict| &verdict.why) {
        println!("\nOther policies are not to be had: {why}");
    }
    fits
}

struct Verdict {
    policy: NumaPolicy,
    /// The room, where it fits; else the reason why not.
    why: Result<String, String>,
    /// Whether it is the policy as such that this process may not set.
    is_barred: bool,
}

impl Verdict {
    fn fits(&self) -> bool {
        self.why.is_ok()
    }

    fn json(&self) -> Value {
        let kind = match self.policy {
            NumaPolicy::Any => "any",
            NumaPolicy::Bind(_) => "bind",
            NumaPolicy::Prefer(_) => "prefer",
            NumaPolicy::Interleave(_) => "interleave",
        };
        let (Ok(why) | Err(why)) = &self.why;
        json!({ "policy": kind, "nodes": self.policy.nodes(), "fits": self.fits(), "why": why })
    }
}

fn verdicts(memory: &Memory, len: u64) -> Vec<Verdict> {
    let verdict = |policy: NumaPolicy| {
        let fit = memory.fit(len, &policy);
        let is_barred = matches!(fit, Err(Misfit::Forbidden | Misfit::Unsupported));
        let why = fit.map(|()| room(memory, len, &policy)).map_err(|misfit| misfit.to_string());
        Verdict { policy, why, is_barred }
    };
    policies(memory, len).into_iter().map(verdict).collect()
}

/// Every node alone, all usable ones together, and what else fits.
fn policies(memory: &Memory, len: u64) -> Vec<NumaPolicy> {
    let usable: Vec<u32> = memory.usable().map(|node| node.id).collect();
    let mut policies: Vec<_> =
        memory.nodes.iter().map(|node| NumaPolicy::Bind(vec![node.id])).collect();
    if usable.len() > 1 {
        policies.push(NumaPolicy::Interleave(usable.clone()));
        policies.push(NumaPolicy::Bind(usable));
    }
    for policy in memory.fitting(len) {
        if !policies.contains(&policy) {
            policies.push(policy);
        }
    }
    if !policies.contains(&NumaPolicy::Any) {
        policies.push(NumaPolicy::Any);
    }
    policies
}

fn room(memory: &Memory, len: u64, policy: &NumaPolicy) -> String {
    let named = || memory.nodes.iter().filter(|node| policy.nodes().contains(&node.id));
    let free = Size(named().map(|node| node.room_bytes).sum());
    match policy {
        NumaPolicy::Interleave(nodes) => {
            format!("{} each", Size(len.div_ceil(nodes.len().max(1) as u64)))
        }
        NumaPolicy::Bind(_) => format!("{free} free"),
        NumaPolicy::Prefer(_) => format!("{free} free there, others stand in"),
        NumaPolicy::Any => memory
            .host_room_bytes
            .map_or_else(String::new, |room| format!("{} free on the host", Size(room))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvrail::topology::NodeMemory;

    const GIB: u64 = 1 << 30;

    fn memory(rooms_gib: &[u64]) -> Memory {
        let node = |(id, room): (u32, &u64)| NodeMemory {
            id,
            total_bytes: room * GIB,
            room_bytes: room * GIB,
            free_bytes: room * GIB,
            ..NodeMemory::default()
        };
        let host = rooms_gib.iter().sum::<u64>() * GIB;
        Memory {
            nodes: (0..).zip(rooms_gib).map(node).collect(),
            host_room_bytes: Some(host),
            ..Memory::default()
        }
    }

    fn fitting(memory: &Memory, len: u64) -> Vec<String> {
        let fits = verdicts(memory, len).into_iter().filter(Verdict::fits);
        fits.map(|verdict| verdict.policy.to_string()).collect()
    }

    #[test]
    fn every_node_is_listed_with_its_reason() {
        let memory = memory(&[2, 12, 0, 9]);
        let all = verdicts(&memory, 8 * GIB);
        let reason = |at: usize| all[at].why.clone().unwrap_or_else(|why| why);
        assert!(reason(0).contains("node 0 has 2147483648 bytes free"), "{}", reason(0));
        assert_eq!(reason(1), "12.0 GiB free");
        assert!(reason(2).contains("no memory"), "{}", reason(2));
        assert_eq!(
            fitting(&memory, 8 * GIB),
            [
                "bind to node 1",
                "bind to node 3",
                "bind to nodes 0,1,3",
                "interleave over nodes 1,3",
                "prefer node 1",
                "no binding"
            ]
        );
        assert!(fitting(&memory, 64 * GIB).is_empty());
    }

    #[test]
    fn a_host_without_nodes_has_one_answer() {
        let memory = Memory { host_room_bytes: Some(GIB), ..Memory::default() };
        assert_eq!(fitting(&memory, GIB), ["no binding"]);
        assert_eq!(verdicts(&memory, 2 * GIB).len(), 1);
    }
}

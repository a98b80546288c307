//! tests/numa.rs in guests: one boot for each layout of nodes, and the tests that want it.

use super::{Job, Machine, prepare};
use crate::proof;
use crate::shell::Shell;
use crate::steps::Outcome;

struct Layout {
    nodes: &'static str,
    tests: &'static [&'static str],
}

/// Node 0 holds the kernel and the page cache, which come and go: where sizes matter, the largest
/// node is another.
const LAYOUTS: [Layout; 4] = [
    Layout { nodes: "512:0-1,512:2-3", tests: &["two_nodes", "cpuset_of_two_cpus"] },
    Layout { nodes: "384:0,512:1,128:2,112:3,96:4,80:5,72:6,64:7", tests: &["eight_uneven_nodes"] },
    Layout { nodes: "512:0-1,256:", tests: &["memory_only_node"] },
    Layout { nodes: "512:0-1,0:2-3", tests: &["node_without_memory"] },
];

/// Ten times what the slowest layout takes on a machine with two busy cores.
const LIMIT_S: u64 = 180;

/// Every layout, in turn.
pub fn all(shell: &Shell) -> Outcome {
    let binary = proof::built(shell, "numa")?;
    let boot = prepare(shell, None)?;
    for layout in &LAYOUTS {
        println!("a guest with nodes {}", layout.nodes);
        let numa = Some(layout.nodes.parse()?);
        let machine = Machine { numa, ..Machine::default() };
        let command = proof::script(&binary, layout.tests);
        let ended = boot.run(&machine, &Job { command, limit_s: LIMIT_S, keep: true })?;
        let missed = layout.tests.iter().find(|test| !proof::passed(&ended.output, test));
        match (missed, ended.code) {
            (None, 0) => {}
            (Some(test), code) => return Err(format!("{test} did not pass (exit code {code})")),
            (None, code) => return Err(format!("nodes {}: exit code {code}", layout.nodes)),
        }
    }
    let tests = LAYOUTS.iter().map(|layout| layout.tests.len()).sum::<usize>();
    Ok(format!("{tests} tests on {} layouts", LAYOUTS.len()))
}

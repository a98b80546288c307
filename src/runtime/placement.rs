//! Pure: the machine's facts and a policy in, the CPUs of each shard out.

use crate::limits::{SHARDS_DEFAULT_MAX, SHARDS_MAX};
use crate::topology::{CpuSet, Topology};
use crate::{Error, Result};

/// How many shards to run, and where.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Shards {
    /// Half of the CPUs this process may use, at least one and at most
    /// [`SHARDS_DEFAULT_MAX`]; each floats inside a NUMA node, and the rest stays the service's.
    #[default]
    Auto,
    /// One shard pinned to each CPU this process may use.
    PerCore,
    /// One shard for each NUMA node, floating over the CPUs of the node that it may use.
    PerNode,
    /// So many shards, spread over the nodes by their number of allowed CPUs, floating inside one.
    Count(usize),
    /// One shard for each set, floating inside it.
    Cpus(Vec<CpuSet>),
}

impl Shards {
    /// Where shards would run on a machine, by their index.
    ///
    /// # Errors
    /// Refused for no shards, more than [`SHARDS_MAX`], or CPUs that this process may not use.
    pub fn place(&self, facts: &Topology) -> Result<Vec<ShardPlacement>> {
        place(facts, self)
    }
}

/// Where a shard runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardPlacement {
    /// CPUs its thread may run on.
    pub cpus: CpuSet,
    /// The NUMA node of all these CPUs; `None` when they span nodes or the kernel shows none.
    pub node: Option<u32>,
}

/// The placement of every shard, by its index.
///
/// # Errors
/// Refused for no shards, more than [`SHARDS_MAX`], or CPUs that this process may not use.
pub(crate) fn place(facts: &Topology, shards: &Shards) -> Result<Vec<ShardPlacement>> {
    let placements = match shards {
        Shards::Auto => spread(facts, (facts.allowed.len() / 2).clamp(1, SHARDS_DEFAULT_MAX)),
        Shards::PerCore => {
            facts.allowed.iter().map(|cpu| on(facts, [cpu].into_iter().collect())).collect()
        }
        Shards::PerNode => homes(facts),
        Shards::Count(count) if *count > SHARDS_MAX => return Err(outside(*count)),
        Shards::Count(count) => spread(facts, *count),
        Shards::Cpus(sets) => explicit(facts, sets)?,
    };
    if placements.is_empty() || placements.len() > SHARDS_MAX {
        return Err(outside(placements.len()));
    }
    Ok(placements)
}

fn outside(count: usize) -> Error {
    Error::refused(format!("{count} shards: ask for 1 to {SHARDS_MAX}"))
}

/// The places where a shard can float: each node's allowed CPUs, and those of no node.
/// A node of which this process may use no CPU is none.
fn homes(facts: &Topology) -> Vec<ShardPlacement> {
    let of_nodes = facts.nodes.iter().map(|node| ShardPlacement {
        cpus: node.cpus.intersection(&facts.allowed),
        node: Some(node.id),
    });
    let stray = facts.allowed.iter().filter(|cpu| facts.node_of(*cpu).is_none());
    let homeless = ShardPlacement { cpus: stray.collect(), node: None };
    of_nodes.chain([homeless]).filter(|home| !home.cpus.is_empty()).collect()
}

/// Each shard goes where the most allowed CPUs per shard are left; ties to the lowest node.
fn spread(facts: &Topology, count: usize) -> Vec<ShardPlacement> {
    let homes = homes(facts);
    let mut taken = vec![0; homes.len()];
    let mut next = || {
        let share = |home: &usize| {
            let (cpus, shards) = (homes[*home].cpus.len(), taken[*home] + 1);
            // The fraction cpus/shards as an integer; CPUS_MAX and SHARDS_MAX leave room.
            ((cpus << 20) / shards, std::cmp::Reverse(*home))
        };
        let home = (0..homes.len()).max_by_key(share)?;
        taken[home] += 1;
        Some(homes[home].clone())
    };
    let mut placements: Vec<_> = (0..count).map_while(|_| next()).collect();
    placements.sort_by_key(|placement| placement.node);
    placements
}

fn explicit(facts: &Topology, sets: &[CpuSet]) -> Result<Vec<ShardPlacement>> {
    let place = |set: &CpuSet| {
        if set.is_empty() {
            return Err(Error::refused("a shard needs at least one CPU: a set is empty"));
        }
        if !set.is_subset(&facts.allowed) {
            return Err(Error::refused(format!(
                "CPUs {set} were asked for, but this process may use only {}: \
                 ask for some of these, or widen its affinity or cpuset",
                facts.allowed
            )));
        }
        Ok(on(facts, set.clone()))
    };
    sets.iter().map(place).collect()
}

fn on(facts: &Topology, cpus: CpuSet) -> ShardPlacement {
    let first = cpus.iter().next().and_then(|cpu| facts.node_of(cpu));
    let node = first.filter(|_| cpus.iter().all(|cpu| facts.node_of(cpu) == first));
    ShardPlacement { cpus, node }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::Node;
    use proptest::prelude::*;

    fn facts(nodes: &[&str], allowed: &str) -> Topology {
        let node = |(id, cpus): (usize, &&str)| Node {
            id: id as u32,
            cpus: cpus.parse().unwrap(),
            memory_total_bytes: 0,
            memory_free_bytes: 0,
        };
        Topology {
            nodes: nodes.iter().enumerate().map(node).collect(),
            allowed: allowed.parse().unwrap(),
        }
    }

    fn brief(placements: Vec<ShardPlacement>) -> Vec<(String, Option<u32>)> {
        placements.into_iter().map(|place| (place.cpus.to_string(), place.node)).collect()
    }

    fn placed(facts: &Topology, shards: Shards) -> Vec<(String, Option<u32>)> {
        brief(place(facts, &shards).unwrap())
    }

    #[test]
    fn two_cores_of_one_node_make_one_shard_by_default() {
        let container = facts(&["0-31", "32-63"], "40-41");
        assert_eq!(placed(&container, Shards::Auto), [("40-41".into(), Some(1))]);
        assert_eq!(
            placed(&container, Shards::PerCore),
            [("40".into(), Some(1)), ("41".into(), Some(1))]
        );
        assert_eq!(placed(&container, Shards::PerNode), [("40-41".into(), Some(1))]);
    }

    #[test]
    fn shards_spread_by_the_allowed_cpus_of_each_node() {
        let lopsided = facts(&["0-3", "4-7"], "0-3,4-5");
        let nodes: Vec<_> =
            placed(&lopsided, Shards::Count(3)).into_iter().map(|(_, node)| node).collect();
        assert_eq!(nodes, [Some(0), Some(0), Some(1)]);
    }

    #[test]
    fn the_default_leaves_half_and_stops_at_its_cap() {
        assert_eq!(placed(&facts(&["0-63"], "0-63"), Shards::Auto).len(), SHARDS_DEFAULT_MAX);
        assert_eq!(placed(&facts(&["0-3"], "0-3"), Shards::Auto).len(), 2);
        assert_eq!(placed(&facts(&[], "7"), Shards::Auto), [("7".into(), None)]);
    }

    #[test]
    fn cpus_that_are_not_ours_are_refused_with_both_sets() {
        let sets = vec!["0-1".parse().unwrap(), "6-9".parse().unwrap()];
        let error = place(&facts(&["0-7"], "0-3"), &Shards::Cpus(sets)).unwrap_err();
        assert_eq!(error.kind(), crate::ErrorKind::Refused);
        let text = error.to_string();
        assert!(text.contains("6-9") && text.contains("0-3"), "{text}");
    }

    #[test]
    fn a_set_across_nodes_has_no_node() {
        let sets = vec!["3-4".parse().unwrap(), "5".parse().unwrap()];
        assert_eq!(
            placed(&facts(&["0-3", "4-7"], "0-7"), Shards::Cpus(sets)),
            [("3-4".into(), None), ("5".into(), Some(1))]
        );
    }

    #[test]
    fn no_shards_or_absurdly_many_are_refused() {
        let facts = facts(&["0-3"], "0-3");
        for shards in [
            Shards::Count(0),
            Shards::Count(usize::MAX),
            Shards::Cpus(vec![]),
            Shards::Cpus(vec![CpuSet::default()]),
        ] {
            assert!(place(&facts, &shards).is_err(), "{shards:?}");
        }
    }

    prop_compose! {
        fn any_facts()(
            owners in prop::collection::vec(prop::option::of(0..4u32), 1..64),
            pick in prop::collection::vec(any::<bool>(), 64),
        ) -> Topology {
            let node = |id: u32| Node {
                id,
                cpus: (0..owners.len()).filter(|cpu| owners[*cpu] == Some(id)).collect(),
                memory_total_bytes: 0,
                memory_free_bytes: 0,
            };
            let mut allowed: CpuSet = (0..owners.len()).filter(|cpu| pick[*cpu]).collect();
            if allowed.is_empty() {
                allowed = [0].into_iter().collect();
            }
            Topology { nodes: (0..4).map(node).collect(), allowed }
        }
    }

    proptest! {
        #[test]
        fn every_shard_runs_on_allowed_cpus_of_its_node(
            facts in any_facts(),
            shards in prop_oneof![
                Just(Shards::Auto), Just(Shards::PerCore), Just(Shards::PerNode),
                (1..SHARDS_MAX).prop_map(Shards::Count)
            ],
        ) {
            let placements = place(&facts, &shards).unwrap();
            for place in &placements {
                prop_assert!(!place.cpus.is_empty() && place.cpus.is_subset(&facts.allowed));
                prop_assert!(place.cpus.iter().all(|cpu| facts.node_of(cpu) == place.node));
            }
            match shards {
                Shards::Count(count) => prop_assert_eq!(placements.len(), count),
                Shards::PerCore => prop_assert_eq!(placements.len(), facts.allowed.len()),
                _ => {}
            }
        }

        #[test]
        fn a_spread_is_even(facts in any_facts(), count in 1..64usize) {
            let placements = place(&facts, &Shards::Count(count)).unwrap();
            let homes = homes(&facts);
            for home in &homes {
                let shards = placements.iter().filter(|place| place.node == home.node).count();
                let fair = count * home.cpus.len() / facts.allowed.len();
                prop_assert!(shards <= fair + homes.len() && shards + homes.len() >= fair);
            }
        }
    }
}

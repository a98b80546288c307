//! What fits, against machines made up for it and against an allocator that hands out pages one by
//! one as the kernel would.

use proptest::prelude::*;

use super::*;

const PAGE: u64 = PAGE_BYTES as u64;
const GIB: u64 = 1 << 30;

fn node(id: u32, room_bytes: u64) -> NodeMemory {
    let total_bytes = room_bytes + PAGE;
    NodeMemory { id, total_bytes, room_bytes, free_bytes: room_bytes, huge_room_bytes: 0 }
}

/// A host with these nodes and no other limit.
fn host(nodes: Vec<NodeMemory>) -> Memory {
    let room = nodes.iter().map(|node| node.room_bytes).sum();
    Memory { nodes, host_room_bytes: Some(room), ..Memory::default() }
}

fn bind(nodes: &[u32]) -> NumaPolicy {
    NumaPolicy::Bind(nodes.to_vec())
}

fn interleave(nodes: &[u32]) -> NumaPolicy {
    NumaPolicy::Interleave(nodes.to_vec())
}

#[test]
fn a_full_node_is_refused_with_both_numbers_and_true_advice() {
    let facts = host(vec![node(0, 2 * GIB), node(1, 12 * GIB), node(2, 9 * GIB)]);
    let misfit = fit(&facts, 8 * GIB, &bind(&[0])).unwrap_err();
    assert_eq!(misfit, Misfit::Node { node: 0, asked: 8 * GIB, room: 2 * GIB });
    assert_eq!(misfit.to_string(), "8.0 GiB asked, but node 0 has 2147483648 bytes free (2.0 GiB)");
    assert_eq!(
        fitting(&facts, 8 * GIB),
        [
            bind(&[1]),
            bind(&[2]),
            interleave(&[1, 2]),
            bind(&[0, 1, 2]),
            NumaPolicy::Prefer(1),
            NumaPolicy::Any
        ]
    );
    assert_eq!(
        advice(&facts, 8 * GIB),
        "what fits now: bind to node 1 (12.0 GiB free), bind to node 2 (9.0 GiB free), \
         interleave over nodes 1,2 (4.0 GiB each), bind to nodes 0,1,2 (23.0 GiB free), \
         prefer node 1, no binding"
    );
}

#[test]
fn what_no_node_has_alone_several_have_together() {
    let facts = host(vec![node(0, 5 * GIB), node(1, 5 * GIB)]);
    assert_eq!(
        fitting(&facts, 9 * GIB),
        [interleave(&[0, 1]), bind(&[0, 1]), NumaPolicy::Prefer(0), NumaPolicy::Any]
    );
    assert!(fitting(&facts, 11 * GIB).is_empty());
    assert!(advice(&facts, 11 * GIB).contains("ask for less"));
}

#[test]
fn nodes_without_memory_and_outside_of_the_cpuset_are_refused_and_never_offered() {
    let memoryless = NodeMemory { id: 1, ..NodeMemory::default() };
    let mut facts = host(vec![node(0, GIB), memoryless, node(2, GIB), node(3, GIB)]);
    facts.allowed_nodes = Some("0-2".parse().unwrap());
    for (policy, words) in [
        (bind(&[1]), "node 1 has CPUs and no memory"),
        (interleave(&[0, 1]), "node 1 has CPUs and no memory"),
        (NumaPolicy::Prefer(3), "keeps this process from the memory of node 3: name one of 0,2"),
        (bind(&[7]), "there is no NUMA node 7: there is 0,2"),
        (bind(&[]), "names no node"),
    ] {
        let misfit = fit(&facts, PAGE, &policy).unwrap_err();
        assert!(misfit.to_string().contains(words), "{misfit}");
    }
    let offered = fitting(&facts, PAGE);
    assert!(offered.iter().flat_map(NumaPolicy::nodes).all(|node| [0, 2].contains(node)));
    // The third node's memory is not ours.
    let misfit = fit(&facts, 2 * GIB + PAGE, &NumaPolicy::Any).unwrap_err();
    assert_eq!(misfit, Misfit::Host { asked: 2 * GIB + PAGE, room: 2 * GIB });
}

#[test]
fn a_kernel_without_nodes_takes_no_binding_and_nothing_else() {
    let facts = Memory { host_room_bytes: Some(GIB), ..Memory::default() };
    assert_eq!(fit(&facts, PAGE, &NumaPolicy::Any), Ok(Pages::Base));
    assert_eq!(fit(&facts, PAGE, &bind(&[0])), Err(Misfit::NoNuma));
    assert_eq!(fitting(&facts, PAGE), [NumaPolicy::Any]);
    assert_eq!(fit(&Memory::default(), PAGE, &NumaPolicy::Any), Ok(Pages::Base), "nothing known");
}

#[test]
fn groups_and_file_limits_bind_every_policy() {
    let mut facts = host(vec![node(0, 4 * GIB)]);
    facts.group_room_bytes = Some(GIB);
    let misfit = fit(&facts, 2 * GIB, &bind(&[0])).unwrap_err();
    assert_eq!(misfit, Misfit::Group { asked: 2 * GIB, room: GIB });
    facts.file_limit_bytes = Some(PAGE);
    let misfit = fit(&facts, 2 * PAGE, &NumaPolicy::Any).unwrap_err();
    assert!(misfit.to_string().contains("ulimit -f"), "{misfit}");
    assert!(fitting(&facts, 2 * PAGE).is_empty());
}

#[test]
fn huge_pages_that_were_set_aside_are_room_of_their_own() {
    let mut facts = host(vec![node(0, PAGE), node(1, 8 * GIB)]);
    facts.huge_room_bytes = 6 * GIB;
    facts.nodes[0].huge_room_bytes = 4 * GIB;
    facts.nodes[1].huge_room_bytes = 2 * GIB;
    // Base pages would not fit there: nothing else may be tried.
    assert_eq!(fit(&facts, 3 * GIB, &bind(&[0])), Ok(Pages::Huge));
    assert_eq!(fit(&facts, 3 * GIB, &bind(&[1])), Ok(Pages::Any));
    assert!(fit(&facts, 3 * GIB + PAGE, &bind(&[0])).is_err(), "not whole huge pages");
    assert!(fit(&facts, 5 * GIB, &bind(&[0])).is_err());
    assert_eq!(fit(&facts, 4 * GIB, &interleave(&[0, 1])), Ok(Pages::Huge));
    facts.bound_nodes = Some("1".parse().unwrap());
    facts.nodes[1].room_bytes = PAGE;
    assert!(fit(&facts, 3 * GIB, &NumaPolicy::Any).is_err(), "we are bound to the other node");
    assert_eq!(fit(&facts, 2 * GIB, &NumaPolicy::Any), Ok(Pages::Huge));
    // Promised to others.
    facts.huge_room_bytes = GIB;
    assert!(fit(&facts, 3 * GIB, &bind(&[0])).is_err());
}

#[test]
fn the_only_node_needs_no_policy() {
    let memoryless = NodeMemory { id: 1, ..NodeMemory::default() };
    let one = host(vec![node(0, GIB), memoryless]);
    assert_eq!(effective(&one, &bind(&[0])), NumaPolicy::Any);
    let two = host(vec![node(0, GIB), node(1, GIB)]);
    assert_eq!(effective(&two, &bind(&[0])), bind(&[0]));
    assert_eq!(effective(&Memory::default(), &bind(&[0])), bind(&[0]));
}

#[test]
fn a_bound_process_has_its_nodes_unless_the_region_names_others() {
    let mut facts = host(vec![node(0, 8 * GIB), node(1, GIB)]);
    facts.bound_nodes = Some("1".parse().unwrap());
    let misfit = fit(&facts, 2 * GIB, &NumaPolicy::Any).unwrap_err();
    assert!(misfit.to_string().contains("bound (numactl) to nodes 1"), "{misfit}");
    assert!(fit(&facts, 2 * GIB, &bind(&[0])).is_ok());
    assert!(!fitting(&facts, 2 * GIB).contains(&NumaPolicy::Any));
}

#[test]
fn only_interleaving_needs_page_cache_dropped_first() {
    let mut facts = host(vec![node(0, 8 * GIB), node(1, 8 * GIB), node(2, 8 * GIB)]);
    facts.nodes[1].free_bytes = GIB;
    assert_eq!(short_of_free(&facts, 4 * GIB, &interleave(&[0, 1])), [(1, 2 * GIB)]);
    assert_eq!(short_of_free(&facts, 2 * GIB, &interleave(&[0, 1])), []);
    assert_eq!(short_of_free(&facts, 4 * GIB, &interleave(&[0, 2, 2])), []);
    for policy in [bind(&[0, 1]), NumaPolicy::Prefer(1), NumaPolicy::Any] {
        assert_eq!(short_of_free(&facts, 4 * GIB, &policy), [], "{policy}");
    }
}

#[test]
fn where_policies_are_forbidden_only_what_needs_none_is_offered() {
    let mut facts = host(vec![node(0, GIB), node(1, GIB)]);
    facts.binding = Binding::Forbidden;
    let misfit = fit(&facts, PAGE, &bind(&[0])).unwrap_err();
    assert!(misfit.to_string().contains("--cap-add SYS_NICE"), "{misfit}");
    assert_eq!(fitting(&facts, PAGE), [NumaPolicy::Any]);
    facts.nodes.pop();
    assert!(fit(&facts, PAGE, &bind(&[0])).is_ok(), "the only node needs no policy");
    facts.nodes.push(node(1, GIB));
    facts.binding = Binding::Unsupported;
    assert_eq!(fit(&facts, PAGE, &NumaPolicy::Prefer(1)), Err(Misfit::Unsupported));
}

/// Whether the pages are there: handed out one by one, as the kernel does under the policy.
fn is_had(facts: &Memory, len: u64, policy: &NumaPolicy) -> bool {
    let mut rooms: Vec<(u32, u64)> =
        facts.usable().map(|node| (node.id, node.room_bytes / PAGE)).collect();
    let limits = [facts.group_room_bytes, facts.host_room_bytes];
    let mut left = limits.into_iter().flatten().map(|bytes| bytes / PAGE).min().unwrap_or(u64::MAX);
    (0..len.div_ceil(PAGE)).all(|page| {
        let named = policy.nodes();
        let turn = |k: u64| named[k as usize % named.len()];
        let found = rooms.iter_mut().find(|(id, room)| match policy {
            NumaPolicy::Interleave(_) => *room > 0 && *id == turn(page),
            NumaPolicy::Bind(_) => *room > 0 && named.contains(id),
            NumaPolicy::Any => {
                let bound = facts.bound_nodes.as_ref();
                *room > 0 && bound.is_none_or(|nodes| nodes.contains(*id as usize))
            }
            NumaPolicy::Prefer(_) => *room > 0,
        });
        let is_left = left > 0;
        left = left.saturating_sub(1);
        found.map(|(_, room)| *room -= 1).is_some() && is_left
    })
}

prop_compose! {
    fn any_node()(room in 0..40u64, is_memoryless in prop::bool::weighted(0.2)) -> NodeMemory {
        let room_bytes = if is_memoryless { 0 } else { room * PAGE };
        let total_bytes = if is_memoryless { 0 } else { 64 * PAGE };
        NodeMemory { id: 0, total_bytes, room_bytes, free_bytes: room_bytes, huge_room_bytes: 0 }
    }
}

prop_compose! {
    fn any_host()(
        mut nodes in prop::collection::vec(any_node(), 1..6),
        allowed in prop::option::of(prop::collection::btree_set(0..6usize, 1..6)),
        bound in prop::option::of(prop::collection::btree_set(0..6usize, 1..6)),
        group in prop::option::of(0..120u64),
        host_room in 0..200u64,
    ) -> Memory {
        for (id, node) in (0..).zip(&mut nodes) {
            node.id = id;
        }
        // The host's figure is the cautious one of the two.
        let all: u64 = nodes.iter().map(|node| node.room_bytes).sum();
        Memory {
            nodes,
            allowed_nodes: allowed.map(|nodes| nodes.into_iter().collect()),
            bound_nodes: bound.map(|nodes| nodes.into_iter().collect()),
            group_room_bytes: group.map(|pages| pages * PAGE),
            host_room_bytes: Some(all.min(host_room * PAGE)),
            ..Memory::default()
        }
    }
}

fn any_policy() -> impl Strategy<Value = NumaPolicy> {
    let nodes =
        || prop::collection::btree_set(0..6u32, 1..4).prop_map(|set| set.into_iter().collect());
    prop_oneof![
        Just(NumaPolicy::Any),
        (0..6u32).prop_map(NumaPolicy::Prefer),
        nodes().prop_map(NumaPolicy::Bind),
        nodes().prop_map(NumaPolicy::Interleave),
    ]
}

proptest! {
    #[test]
    fn what_fits_is_had_page_by_page(
        facts in any_host(), len in 1..(150 * PAGE), policy in any_policy(),
    ) {
        match fit(&facts, len, &policy) {
            Ok(pages) => {
                prop_assert_eq!(pages, Pages::Base);
                prop_assert!(is_had(&facts, len, &policy));
            }
            // Interleaving asks whole shares of every node, which may be a page too many.
            Err(Misfit::Node { node, asked, room }) => {
                prop_assert!(asked > room && policy.nodes().contains(&node));
            }
            Err(Misfit::Nodes { asked, room }
                | Misfit::Bound { asked, room, .. }
                | Misfit::Host { asked, room }
                | Misfit::Group { asked, room }) => {
                prop_assert!(asked == len && asked > room);
                prop_assert!(!is_had(&facts, len, &policy));
            }
            Err(_) => {
                let usable: Vec<_> = facts.usable().map(|node| node.id).collect();
                prop_assert!(policy.nodes().iter().any(|node| !usable.contains(node)));
            }
        }
    }

    #[test]
    fn all_that_is_offered_is_had_and_no_single_node_is_left_out(
        facts in any_host(), len in 1..(150 * PAGE),
    ) {
        let offered = fitting(&facts, len);
        for policy in &offered {
            prop_assert!(is_had(&facts, len, policy), "{policy}");
        }
        for node in &facts.nodes {
            let policy = bind(&[node.id]);
            prop_assert_eq!(fit(&facts, len, &policy).is_ok(), offered.contains(&policy));
        }
    }
}

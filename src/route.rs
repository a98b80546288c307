//! Pure: which shard works for which piece of memory. A copy runs where its destination is: a store
//! that misses the caches is the dearer half, and the destination is read next.

/// The shard for each group of work, given the nodes of the shards and of each group's destination:
/// the shards of that node in turn, all shards in turn where it is unknown or has none. `first`
/// says where the turn begins, and should differ from call to call.
pub(crate) fn near(
    nodes: &[Option<u32>],
    destinations: &[Option<u32>],
    first: usize,
) -> Vec<usize> {
    let shard_of = |(position, node): (usize, &Option<u32>)| {
        let on_node = on(nodes, *node);
        // Groups for the same node go to different shards, whatever lies between them.
        let turn = destinations[..position].iter().filter(|earlier| *earlier == node).count();
        on_node[first.wrapping_add(turn) % on_node.len()]
    };
    destinations.iter().enumerate().map(shard_of).collect()
}

fn on(nodes: &[Option<u32>], node: Option<u32>) -> Vec<usize> {
    let all = 0..nodes.len();
    let is_there = |shard: &usize| node.is_some() && nodes[*shard] == node;
    let there: Vec<_> = all.clone().filter(is_there).collect();
    if there.is_empty() { all.collect() } else { there }
}

/// The node that most of the bytes go to, given the node and length of each piece; `None` where
/// most have none. The earlier one of equals.
pub(crate) fn home(pieces: impl Iterator<Item = (Option<u32>, usize)>) -> Option<u32> {
    let mut nodes: Vec<(Option<u32>, usize)> = Vec::new();
    for (node, bytes) in pieces {
        match nodes.iter_mut().find(|(known, _)| *known == node) {
            Some((_, sum)) => *sum += bytes,
            None => nodes.push((node, bytes)),
        }
    }
    nodes.into_iter().rev().max_by_key(|(_, bytes)| *bytes)?.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn work_goes_to_the_shards_of_its_node_in_turn() {
        let shards = [Some(0), Some(1), Some(0), Some(1), None];
        assert_eq!(near(&shards, &[Some(1); 3], 0), [1, 3, 1]);
        assert_eq!(near(&shards, &[Some(1); 3], 1), [3, 1, 3]);
        assert_eq!(near(&shards, &[Some(0), Some(1), Some(0), Some(1)], 0), [0, 1, 2, 3]);
    }

    #[test]
    fn a_node_without_shards_and_no_node_take_all_shards() {
        let shards = [Some(0), None, Some(0)];
        assert_eq!(near(&shards, &[Some(7); 4], 2), [2, 0, 1, 2]);
        assert_eq!(near(&shards, &[None; 3], 0), [0, 1, 2]);
    }

    #[test]
    fn a_group_is_at_home_where_most_of_it_goes() {
        assert_eq!(home([(Some(0), 5), (Some(1), 4), (Some(1), 3)].into_iter()), Some(1));
        assert_eq!(home([(Some(2), 5), (None, 5)].into_iter()), Some(2));
        assert_eq!(home([(Some(2), 5), (None, 6)].into_iter()), None);
        assert_eq!(home([].into_iter()), None);
    }

    proptest! {
        #[test]
        fn no_shard_has_two_groups_of_a_node_more_than_another(
            nodes in prop::collection::vec(prop::option::of(0..4u32), 1..10),
            destinations in prop::collection::vec(prop::option::of(0..4u32), 0..40),
            first: usize,
        ) {
            let shards = near(&nodes, &destinations, first);
            prop_assert_eq!(shards.len(), destinations.len());
            for node in destinations.iter().filter(|node| nodes.contains(node) && node.is_some()) {
                let of_node = |at: &usize| nodes[*at] == *node;
                let counts: Vec<_> = (0..nodes.len())
                    .filter(of_node)
                    .map(|shard| {
                        let took = shards.iter().zip(&destinations);
                        took.filter(|(took, to)| **took == shard && *to == node).count()
                    })
                    .collect();
                let total: usize = counts.iter().sum();
                let wanted = destinations.iter().filter(|to| *to == node).count();
                prop_assert_eq!(total, wanted, "all of them stay on the node");
                let (least, most) = (counts.iter().min().unwrap(), counts.iter().max().unwrap());
                prop_assert!(most - least <= 1, "{counts:?}");
            }
        }
    }
}

//! Walks taken down from g++ 12, and what holds for every set of keys.

use proptest::prelude::*;

use super::*;

/// One walk a line, as a program printed it that inserted the sorted keys into an `unordered_map`:
/// the sets of the usual hosts, of names of every length modulo eight, and of 13, 14, 17, 30, 32
/// and 64 keys, at and past the places where the map grows.
const WALKS: &str = include_str!("walks.txt");

#[test]
fn the_walk_is_that_of_gpp() {
    for line in WALKS.lines() {
        let walk: Vec<&str> = line.split(' ').collect();
        let mut keys = walk.clone();
        keys.sort_unstable();
        assert_eq!(walked(keys), walk);
    }
    assert!(WALKS.lines().any(|line| line.split(' ').count() > 29));
}

#[test]
fn names_stand_where_they_first_appear() {
    assert_eq!(first_appearances(["b", "a", "b", "c", "a"]), ["b", "a", "c"]);
}

proptest! {
    #[test]
    fn a_walk_has_every_key_once(keys in prop::collection::btree_set(".{0,20}", 0..200)) {
        let walk = walked(keys.iter().map(String::as_str));
        prop_assert_eq!(walk.len(), keys.len());
        prop_assert_eq!(walk.into_iter().map(str::to_owned).collect::<BTreeSet<_>>(), keys);
    }
}

#[test]
fn past_the_last_growth_nothing_is_lost() {
    let keys: Vec<String> = (0..3000).map(|n| format!("cpu:{n}")).collect();
    assert_eq!(walked(keys.iter().map(String::as_str)).len(), keys.len());
}

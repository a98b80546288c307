//! In which order Mooncake's readers number our devices.
//!
//! They don't look a device up by its name: they number devices as they first meet them, walking a
//! C++ `unordered_map` that was filled with the priority matrix in the order of its keys, and use
//! that number for `devices[]` and for every buffer's keys. So the order of a published `devices[]`
//! follows from the matrix's keys and from how libstdc++ (64 bits, little-endian) lays such a map
//! out. What is written here was checked against g++ 12, key set by key set.

use std::collections::BTreeSet;

/// libstdc++'s bucket counts, each the first prime of its list past twice the one before. A host
/// with more locations than the last has yet to be built; past it the order may differ.
const BUCKETS: [u64; 8] = [13, 29, 59, 127, 257, 541, 1109, 2357];

/// The seed of libstdc++'s `std::hash<std::string>`.
const SEED: u64 = 0xc70f_6907;

/// The multiplier of 64-bit MurmurHash.
const MULTIPLIER: u64 = 0xc6a4_a793_5bd1_e995;

/// The keys as a reader walks them that inserted them in the order given.
pub fn walked<'a>(keys: impl IntoIterator<Item = &'a str>) -> Vec<&'a str> {
    let mut list: Vec<(u64, &str)> = Vec::new();
    let mut growing = BUCKETS.into_iter();
    let mut buckets = 0;
    for key in keys {
        if list.len() as u64 == buckets {
            buckets = growing.next().unwrap_or(buckets);
            let grown = Vec::with_capacity(list.len() + 1);
            for node in std::mem::replace(&mut list, grown) {
                place(&mut list, node, buckets);
            }
        }
        place(&mut list, (hash(key.as_bytes()), key), buckets);
    }
    list.into_iter().map(|(_, key)| key).collect()
}

/// Each once, where it first appears.
pub fn first_appearances<'a>(names: impl IntoIterator<Item = &'a str>) -> Vec<&'a str> {
    let mut seen = BTreeSet::new();
    names.into_iter().filter(|name| seen.insert(*name)).collect()
}

/// A node goes before the first of its bucket, or to the head of the list where it is the first.
fn place<'a>(list: &mut Vec<(u64, &'a str)>, node: (u64, &'a str), buckets: u64) {
    let bucket = node.0 % buckets;
    let first = list.iter().position(|(hash, _)| hash % buckets == bucket);
    list.insert(first.unwrap_or(0), node);
}

/// libstdc++'s `_Hash_bytes` for 64 bits, a MurmurHash of its own.
fn hash(bytes: &[u8]) -> u64 {
    let mut hash = SEED ^ (bytes.len() as u64).wrapping_mul(MULTIPLIER);
    let (words, tail) = bytes.as_chunks::<8>();
    for word in words {
        let mixed = shift_mix(u64::from_le_bytes(*word).wrapping_mul(MULTIPLIER));
        hash = (hash ^ mixed.wrapping_mul(MULTIPLIER)).wrapping_mul(MULTIPLIER);
    }
    if !tail.is_empty() {
        let mut word = [0; 8];
        word[..tail.len()].copy_from_slice(tail);
        hash = (hash ^ u64::from_le_bytes(word)).wrapping_mul(MULTIPLIER);
    }
    shift_mix(shift_mix(hash).wrapping_mul(MULTIPLIER))
}

fn shift_mix(value: u64) -> u64 {
    value ^ (value >> 47)
}

#[cfg(test)]
mod tests;

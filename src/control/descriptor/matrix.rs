//! The priority matrix: for each location of memory the devices that are near, and the others.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::{OwnDevice, order};

/// The location of memory on no known node, for which all devices are alike.
pub const ANYWHERE: &str = "*";

/// Names of devices by location: keys are sorted by bytes, as Mooncake's writer and reader do.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PriorityMatrix(BTreeMap<String, Ranked>);

/// Two lists of device names: the preferred ones, and those to use when none of these works.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ranked(pub Vec<String>, pub Vec<String>);

impl PriorityMatrix {
    /// The matrix of an engine with these devices and memory at these locations: for memory on a
    /// node the devices of that node are preferred, and all of them where there are none or where
    /// the node isn't known.
    pub fn new<'a>(own: &[OwnDevice], locations: impl IntoIterator<Item = &'a str>) -> Self {
        let ranked = |location: &str| (location.to_owned(), Ranked::of(own, node_of(location)));
        let mut matrix: BTreeMap<_, _> = locations.into_iter().map(ranked).collect();
        if matrix.is_empty() {
            // A reader knows no device that the matrix doesn't name.
            matrix.extend([ranked(ANYWHERE)]);
        }
        Self(matrix)
    }

    /// Whether no location has devices.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The devices of memory at `location`.
    pub fn get(&self, location: &str) -> Option<&Ranked> {
        self.0.get(location)
    }

    /// The devices in the order in which Mooncake's readers number them: `devices[]` and every
    /// buffer's keys are to be published in it.
    pub fn device_order(&self) -> Vec<&str> {
        let walked = order::walked(self.0.keys().map(String::as_str));
        order::first_appearances(walked.into_iter().flat_map(|key| self.0[key].names()))
    }

    /// Every device that a location has.
    pub fn names(&self) -> BTreeSet<&str> {
        self.0.values().flat_map(Ranked::names).collect()
    }

    /// Heap bytes, about.
    pub fn weight_bytes(&self) -> usize {
        let entries = self.0.iter().map(|(key, ranked)| size_of_val(ranked) + key.len());
        let names = self.0.values().flat_map(Ranked::names);
        let names = names.map(|name| name.len() + size_of::<String>());
        entries.sum::<usize>() + names.sum::<usize>()
    }
}

impl Ranked {
    fn of(own: &[OwnDevice], node: Option<u32>) -> Self {
        let is_near = |own: &&OwnDevice| node.is_some() && own.node == node;
        let (near, far): (Vec<_>, Vec<_>) = own.iter().partition(is_near);
        let named = |devices: Vec<&OwnDevice>| -> Vec<_> {
            devices.into_iter().map(|own| own.device.name.clone()).collect()
        };
        match near.is_empty() {
            true => Self(named(far), Vec::new()),
            false => Self(named(near), named(far)),
        }
    }

    /// Preferred ones first.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().chain(&self.1).map(String::as_str)
    }
}

fn node_of(location: &str) -> Option<u32> {
    location.strip_prefix("cpu:")?.parse().ok()
}

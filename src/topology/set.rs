//! Sets of CPU or node numbers, in the kernel's own list format.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use crate::limits::CPUS_MAX;
use crate::{Error, Result};

/// A set of CPU numbers (or node numbers, as [`NodeSet`]); reads and writes itself as the kernel
/// does: `0-3,8`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct CpuSet(BTreeSet<usize>);

/// A set of NUMA node numbers.
pub type NodeSet = CpuSet;

impl CpuSet {
    /// Whether `cpu` is a member.
    pub fn contains(&self, cpu: usize) -> bool {
        self.0.contains(&cpu)
    }

    /// The members of both sets.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Self {
        self.0.intersection(&other.0).copied().collect()
    }

    /// Whether every member is one of `other`.
    pub fn is_subset(&self, other: &Self) -> bool {
        self.0.is_subset(&other.0)
    }

    /// The members, ascending.
    pub fn iter(&self) -> impl Iterator<Item = usize> + '_ {
        self.0.iter().copied()
    }

    /// How many CPUs.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is no CPU.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl FromIterator<usize> for CpuSet {
    fn from_iter<I: IntoIterator<Item = usize>>(cpus: I) -> Self {
        Self(cpus.into_iter().collect())
    }
}

impl FromStr for CpuSet {
    type Err = Error;

    /// Reads the kernel's list format. Refused when it is anything else.
    fn from_str(text: &str) -> Result<Self> {
        let ranges = text.trim().split(',').map(str::trim).filter(|range| !range.is_empty());
        ranges.map(range).collect::<Option<Vec<_>>>().map_or_else(
            || Err(Error::refused(format!("not a CPU list like 0-3,8: {text:?}"))),
            |ranges| Ok(ranges.into_iter().flatten().collect()),
        )
    }
}

fn range(text: &str) -> Option<std::ops::RangeInclusive<usize>> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (first.parse().ok()?, last.parse().ok()?);
    (first <= last && last < CPUS_MAX).then_some(first..=last)
}

impl fmt::Display for CpuSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut cpus = self.iter().peekable();
        let mut separator = "";
        while let Some(first) = cpus.next() {
            let mut last = first;
            while let Some(next) = cpus.next_if_eq(&(last + 1)) {
                last = next;
            }
            write!(f, "{separator}{first}")?;
            if last > first {
                write!(f, "-{last}")?;
            }
            separator = ",";
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_no_cpu_list_is_refused() {
        for text in ["a", "3-1", "1-", "-1", "0-99999999999", "1;2"] {
            assert!(text.parse::<CpuSet>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn cpu_lists_read_what_they_write(
            members in prop::collection::btree_set(0..300usize, 0..40),
        ) {
            let set: CpuSet = members.into_iter().collect();
            prop_assert_eq!(set.to_string().parse::<CpuSet>().unwrap(), set);
        }
    }
}

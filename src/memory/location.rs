//! Where memory lives, and its name as peers know it.

use std::fmt;
use std::str::FromStr;

use kvrail_reactors::numa::NumaPolicy;

use crate::{Error, Result};

/// Where memory lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Location {
    /// Host memory, bound to a NUMA node where one is given.
    Cpu(Option<u32>),
    /// The memory of a GPU, by its number in this process.
    Cuda(u32),
}

impl fmt::Display for Location {
    /// Mooncake's location names: `cpu:0`, `cuda:0`; `*` where no node is named.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu(Some(node)) => write!(f, "cpu:{node}"),
            Self::Cpu(None) => write!(f, "*"),
            Self::Cuda(device) => write!(f, "cuda:{device}"),
        }
    }
}

impl FromStr for Location {
    type Err = Error;

    /// # Errors
    /// Refused: it is no location.
    fn from_str(text: &str) -> Result<Self> {
        let number = |prefix| text.strip_prefix(prefix).and_then(|number| number.parse().ok());
        match (text, number("cpu:"), number("cuda:")) {
            ("*" | "cpu", ..) => Ok(Self::Cpu(None)),
            (_, Some(node), _) => Ok(Self::Cpu(Some(node))),
            (_, _, Some(device)) => Ok(Self::Cuda(device)),
            _ => Err(Error::refused(format!(
                "{text:?} is no location: write cpu, cpu:0 (a NUMA node) or cuda:0 (a GPU)"
            ))),
        }
    }
}

impl From<&NumaPolicy> for Location {
    /// The one node that the policy names; several can't be told in one name.
    fn from(policy: &NumaPolicy) -> Self {
        match *policy {
            NumaPolicy::Prefer(node) => Self::Cpu(Some(node)),
            NumaPolicy::Bind(ref nodes) if nodes.len() == 1 => Self::Cpu(Some(nodes[0])),
            _ => Self::Cpu(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locations_are_read_as_they_are_written() {
        for location in [Location::Cpu(None), Location::Cpu(Some(3)), Location::Cuda(7)] {
            assert_eq!(location.to_string().parse::<Location>().unwrap(), location);
        }
        for text in ["", "cuda", "cuda:", "cuda:-1", "gpu:0", "cpu:x"] {
            assert!(text.parse::<Location>().is_err(), "{text}");
        }
    }
}

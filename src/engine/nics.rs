//! What an engine reaches peers by: NICs, where it uses any, and TCP, encrypted or not.

use std::sync::Arc;

use super::{Engine, Inner};
use crate::memory::Region;
use crate::path::verbs::Rdma;
use crate::{Error, Result};

impl Engine {
    /// Says once which way peers elsewhere are reached.
    pub(super) fn start_rdma(&self) -> Result<()> {
        let Inner { runtime, control, links, .. } = &*self.inner;
        match links.rdma() {
            Ok(rdma) => {
                rdma.start(runtime, control)?;
                tracing::info!(devices = ?rdma.names(), "RDMA is on");
            }
            Err(error) => tracing::info!(why = %error, "RDMA is off"),
        }
        Ok(())
    }

    /// Makes a region reachable for the NICs, where there are any. Memory of a GPU's that they
    /// don't take goes by TCP.
    pub(super) fn register_with_nics(&self, region: &Region) -> Result<()> {
        let Some(rdma) = self.inner.rdma() else { return Ok(()) };
        let refused = settled(region.is_on_gpu(), rdma.register(region))?;
        refused.iter().for_each(|why| rdma.leaves_to_tcp(why));
        Ok(())
    }
}

impl Inner {
    /// The NICs, where there are any.
    pub(crate) fn rdma(&self) -> Option<&Arc<Rdma>> {
        self.links.rdma().ok()
    }

    /// Whether its TCP connections are encrypted.
    pub(crate) fn encrypts_tcp(&self) -> bool {
        self.host.gate.encrypts_tcp()
    }

    /// What the NICs' ports carry together, in GB/s.
    pub(crate) fn rdma_gb_per_s(&self) -> f64 {
        self.rdma().map_or(0.0, |rdma| rdma.gb_per_s())
    }
}

/// What comes of asking the NICs for a region: host memory has to be theirs; a GPU's needs not be,
/// and why it isn't is left.
fn settled(is_on_gpu: bool, asked: Result<()>) -> Result<Option<Error>> {
    match asked {
        Ok(()) => Ok(None),
        Err(why) if is_on_gpu => Ok(Some(why)),
        Err(why) => Err(why),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_gpus_memory_may_be_refused_by_nics() {
        let no = || Err(Error::refused("no"));
        assert!(matches!(settled(true, Ok(())), Ok(None)));
        assert!(matches!(settled(false, Ok(())), Ok(None)));
        assert_eq!(settled(true, no()).unwrap().unwrap().to_string(), "refused: no");
        assert!(settled(false, no()).is_err());
    }
}

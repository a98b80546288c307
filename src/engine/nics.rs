//! What an engine reaches peers by: NICs, where it uses any, and TCP, encrypted or not.

use std::sync::Arc;

use super::{Engine, Inner};
use crate::Result;
use crate::memory::Region;
use crate::path::verbs::Rdma;

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

    /// Makes a region reachable for the NICs, where there are any.
    pub(super) fn register_with_nics(&self, region: &Region) -> Result<()> {
        match self.inner.rdma() {
            Some(rdma) if !region.is_on_gpu() => rdma.register(region),
            _ => Ok(()),
        }
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

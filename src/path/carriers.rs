//! The actors that carry transfers, one of each kind on every shard, and how they are started.

use std::sync::Arc;

use super::local::Copies;
use super::{CopyActor, TcpActor, tcp};
use crate::Result;
use crate::arrivals::Arrivals;
use crate::config::EngineBuilder;
use crate::control::Control;
use crate::memory::{Regions, RegionsView};
use crate::runtime::{Driver, PumpAddress, Runtime};

/// Where each shard's actors are reached, by the shard's index.
#[derive(Default)]
pub(crate) struct Carriers {
    pub(crate) tcp: Vec<PumpAddress<tcp::Message>>,
    pub(crate) copies: Vec<PumpAddress<Copies>>,
}

impl Carriers {
    /// Starts the actors on `runtime`. Where io_uring runs the shards but has no more rings for
    /// them, and the driver may be chosen, another runtime on epoll takes its place.
    pub(crate) fn start(
        config: &EngineBuilder,
        runtime: Runtime,
        regions: Arc<Regions>,
        arrivals: Arc<Arrivals>,
        control: &Arc<Control>,
    ) -> Result<(Runtime, Self)> {
        let error = match Self::spawn(config, &runtime, &regions, &arrivals, control) {
            Ok(carriers) => return Ok((runtime, carriers)),
            Err(error) => error,
        };
        if (config.driver, runtime.driver()) != (Driver::Auto, Driver::Uring) {
            return Err(error);
        }
        tracing::warn!(%error, "io_uring is not used after all");
        runtime.stop();
        let runtime = config.runtime(Driver::Epoll)?;
        let carriers = Self::spawn(config, &runtime, &regions, &arrivals, control)?;
        Ok((runtime, carriers))
    }

    fn spawn(
        config: &EngineBuilder,
        runtime: &Runtime,
        regions: &Arc<Regions>,
        arrivals: &Arc<Arrivals>,
        control: &Arc<Control>,
    ) -> Result<Self> {
        let mut carriers = Self::default();
        for shard in 0..runtime.shards() {
            let regions = RegionsView::new(regions.clone());
            let (arrivals, control) = (arrivals.clone(), control.clone());
            let tcp = TcpActor::spawn(runtime, shard, regions, arrivals, control, config.tcp)?;
            carriers.tcp.push(tcp);
            carriers.copies.push(CopyActor::spawn(runtime, shard)?);
        }
        Ok(carriers)
    }
}

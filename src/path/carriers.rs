//! The actors that carry transfers, one of each kind on every shard, and how they are started.

use std::sync::Arc;

use super::host::{self, HostShard};
use super::local;
use super::served::Service;
use super::{CopyActor, HostActor, TcpActor, tcp};
use crate::Result;
use crate::config::EngineBuilder;
use crate::control::Control;
use crate::runtime::{Driver, PumpAddress, Runtime};

/// Where each shard's actors are reached, by the shard's index.
#[derive(Default)]
pub(crate) struct Carriers {
    pub(crate) tcp: Vec<PumpAddress<tcp::Message>>,
    pub(crate) copies: Vec<PumpAddress<local::Message>>,
    pub(crate) hosts: Vec<PumpAddress<host::Message>>,
}

impl Carriers {
    /// Starts the actors on `runtime`. Where io_uring runs the shards but has no more rings for
    /// them, and the driver may be chosen, another runtime on epoll takes its place.
    pub(crate) fn start(
        config: &EngineBuilder,
        runtime: Runtime,
        service: &impl Fn() -> Service,
        control: &Arc<Control>,
    ) -> Result<(Runtime, Self)> {
        let error = match Self::spawn(config, &runtime, service, control) {
            Ok(carriers) => return Ok((runtime, carriers)),
            Err(error) => error,
        };
        if (config.driver, runtime.driver()) != (Driver::Auto, Driver::Uring) {
            return Err(error);
        }
        tracing::warn!(%error, "io_uring is not used after all");
        runtime.stop();
        let runtime = config.runtime(Driver::Epoll)?;
        let carriers = Self::spawn(config, &runtime, service, control)?;
        Ok((runtime, carriers))
    }

    fn spawn(
        config: &EngineBuilder,
        runtime: &Runtime,
        service: &impl Fn() -> Service,
        control: &Arc<Control>,
    ) -> Result<Self> {
        let mut carriers = Self::default();
        for shard in 0..runtime.shards() {
            let (control, blocks) = (control.clone(), config.vram.blocks);
            let tcp = TcpActor::spawn(runtime, shard, service(), control, config.tcp, blocks)?;
            carriers.tcp.push(tcp);
            carriers.copies.push(CopyActor::spawn(runtime, shard, blocks)?);
            let host = HostShard::new(service(), config.tcp.progress_ns);
            carriers.hosts.push(HostActor::spawn(runtime, shard, host)?);
        }
        Ok(carriers)
    }
}

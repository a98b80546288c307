//! The NICs that an engine uses: which of the host's, opened, each with the address that it is
//! known by.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use kvrail_reactors::verbs::{Adapter, Device, Gid, PortState, Way};

use super::letter::Port;
use super::reach::OwnNic;
use crate::config::RdmaSettings;
use crate::control::handshake::PortAddress;
use crate::control::{self, OwnDevice};
use crate::topology::{Devices, RdmaDevice};
use crate::{Error, Result};

/// A NIC of this engine's.
#[derive(Debug)]
pub(crate) struct LocalNic {
    pub(super) adapter: Arc<Adapter>,
    pub(super) node: Option<u32>,
    pub(super) port: Port,
    state: PortState,
    /// Speed of its port, where the driver tells.
    pub(super) speed_mbps: Option<u64>,
    gid_index: u8,
}

impl LocalNic {
    pub(super) fn name(&self) -> &str {
        self.adapter.device().name()
    }

    /// How it is connected to a NIC that is reached so. A peer that doesn't say has our MTU.
    pub(super) fn way(&self, peer: &Port) -> Way {
        let mtu = u32::from(self.port.mtu.min(peer.mtu));
        Way { lid: peer.lid, mtu, ..Way::roce(&self.state, self.gid_index, peer.gid()) }
    }

    /// How it is connected to a Mooncake peer's.
    pub(super) fn way_to_mooncake(&self, peer: &PortAddress) -> Way {
        Way::mooncake(&self.state, self.gid_index, Gid(peer.gid), peer.lid)
    }

    pub(super) fn as_published(&self) -> OwnDevice {
        let Port { gid, lid, .. } = self.port;
        OwnDevice {
            device: control::Device { gid, lid, name: self.name().to_owned() },
            node: self.node,
        }
    }

    pub(super) fn as_own(&self, index: usize) -> OwnNic<'_> {
        OwnNic { index: index as u8, name: self.name(), node: self.node }
    }

    fn open(
        found: &RdmaDevice,
        addresses: Option<&BTreeSet<IpAddr>>,
        settings: &RdmaSettings,
    ) -> Result<Self> {
        let blame = |error| unusable(&found.name, error);
        let facts = found.ports.first().ok_or_else(|| no_port(&found.name))?;
        let forced = settings.gid_index.map(usize::from);
        let gid = facts.choose_gid(forced, addresses)?;
        let gid_index = u8::try_from(gid.index).map_err(|_| no_port(&found.name))?;
        let adapter = Adapter::open(&found.name).map_err(blame)?;
        let device = adapter.device();
        let state = device.port().map_err(blame)?;
        if !state.is_up {
            return Err(Error::refused(format!(
                "the port of {} carries no traffic: bring its link up",
                found.name
            )));
        }
        let gid = device.gid(gid_index).map_err(blame)?.0;
        let port = Port { gid, lid: state.lid, mtu: u8::try_from(state.mtu).unwrap_or(u8::MAX) };
        let (node, speed_mbps) = (found.node, facts.speed_mbps);
        Ok(Self { node, port, state, speed_mbps, gid_index, adapter })
    }
}

fn no_port(name: &str) -> Error {
    Error::refused(format!("the RDMA device {name} has no port"))
}

fn unusable(name: &str, error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::refused(format!("the RDMA device {name} can't be used")).with_source(error)
}

/// Opens the NICs that the settings name, or else every one whose port carries traffic, software
/// devices left out: those are slower than TCP.
///
/// # Errors
/// Refused: one that was named can't be used, or none is to be had; why.
pub(super) fn open(settings: &RdmaSettings) -> Result<Vec<LocalNic>> {
    let known = Device::names().map_err(|error| {
        Error::refused(
            "RDMA needs libibverbs and a kernel with it: install libibverbs1 and your \
                        NIC's provider (rdma-core, ibverbs-providers)",
        )
        .with_source(error)
    })?;
    let facts = Devices::here();
    if settings.devices.is_empty() {
        return Ok(all(&facts, &known, settings));
    }
    let of_name = |name: &String| {
        let found = facts.rdma.iter().find(|device| device.name == *name && known.contains(name));
        let found = found.ok_or_else(|| {
            let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
            Error::refused(format!("there is no RDMA device {name}: this host has {known}"))
        })?;
        LocalNic::open(found, facts.addresses.as_ref(), settings)
    };
    settings.devices.iter().map(of_name).collect()
}

fn all(facts: &Devices, known: &[String], settings: &RdmaSettings) -> Vec<LocalNic> {
    let is_known = |device: &&RdmaDevice| known.contains(&device.name);
    let opened = facts.rdma.iter().filter(is_known).filter_map(|found| {
        let nic = LocalNic::open(found, facts.addresses.as_ref(), settings);
        nic.inspect_err(|error| tracing::info!(device = found.name, %error, "not used")).ok()
    });
    opened.filter(|nic| !nic.adapter.device().is_software()).collect()
}

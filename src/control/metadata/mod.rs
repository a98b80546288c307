//! How engines find each other: by address alone, or through a metadata service.
//!
//! A service keeps two documents for each engine: `ram/<name>`, its descriptor, and
//! `rpc_meta/<name>`, where its control daemon listens. They are put when the engine starts,
//! again whenever its memory changes, kept while it runs, and deleted on a clean stop.
//!
//! Below it: `kind` (connection strings), `registry` (names and documents), `store` (what every
//! service is asked), `http`, `etcd` and `redis` (the services), `p2p` (none), `server` (our own).

#[cfg(feature = "etcd")]
mod etcd;
mod http;
mod kind;
mod p2p;
#[cfg(feature = "redis")]
mod redis;
mod registry;
pub mod server;
mod store;

use super::ControlLimits;
use super::address::Address;
use super::client::Client;
use super::descriptor::Descriptor;
use super::directory::Resolved;
use crate::error::{Error, Result};
pub use kind::{MetadataKind, RedisServer};
use registry::Registry;
use store::Store;

/// The chosen way, ready to use.
pub(super) enum Metadata {
    P2p,
    Registry(Box<Registry>),
}

impl Metadata {
    pub fn new(kind: &MetadataKind, cluster: &str, limits: &ControlLimits) -> Result<Self> {
        let Some(store) = Store::new(kind, limits)? else { return Ok(Self::P2p) };
        let registry = Registry::new(store, cluster, kind.url(), limits.metadata_lease);
        Ok(Self::Registry(Box::new(registry)))
    }

    /// Publishes `descriptor`, and where the daemon listens. Fails if peers could not read it.
    pub async fn publish(
        &self,
        descriptor: &Descriptor,
        control: &Address,
        limits: &ControlLimits,
    ) -> Result<()> {
        match self {
            Self::P2p => descriptor.to_json().map(drop),
            Self::Registry(registry) => registry.publish(descriptor, control, limits).await,
        }
    }

    /// Keeps what was published, or publishes it again where the service lost it: false then.
    pub async fn renew(
        &self,
        descriptor: &Descriptor,
        control: &Address,
        limits: &ControlLimits,
    ) -> Result<bool> {
        match self {
            Self::P2p => Ok(true),
            Self::Registry(registry) => registry.renew(descriptor, control, limits).await,
        }
    }

    /// Deletes what was published under `name`.
    pub async fn withdraw(&self, name: &str, control: &Address) -> Result<()> {
        match self {
            Self::P2p => Ok(()),
            Self::Registry(registry) => registry.withdraw(name, control).await,
        }
    }

    /// What the engine called `name` publishes, and where it listens.
    pub async fn resolve(
        &self,
        name: &str,
        ours: &Descriptor,
        client: &Client,
    ) -> Result<Resolved> {
        match self {
            Self::P2p => p2p::resolve(name, ours, client).await,
            Self::Registry(registry) => registry.resolve(name).await,
        }
    }

    /// Whether an error of [`Metadata::resolve`] is about the peer: that a service is silent or
    /// gone says nothing about those whom it told us of.
    pub fn is_about_peer(&self, error: &Error) -> bool {
        match self {
            Self::P2p => true,
            Self::Registry(registry) => error.peer() != Some(registry.url()),
        }
    }

    /// Where the control daemon of `name` listens.
    pub async fn locate(&self, name: &str) -> Result<Address> {
        match self {
            Self::P2p => p2p::locate(name),
            Self::Registry(registry) => registry.locate(name).await,
        }
    }
}

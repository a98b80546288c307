//! How engines find each other: by address alone, or through a metadata server.
//!
//! A server keeps two documents for each engine: `ram/<name>`, its descriptor, and
//! `rpc_meta/<name>`, where its control daemon listens. They are put when the engine starts,
//! the descriptor again whenever its memory changes, and deleted on a clean stop.

mod http;
mod p2p;
pub mod server;

use tokio::time::timeout;

use super::ControlLimits;
use super::address::Address;
use super::client::{self, Client};
use super::descriptor::{Descriptor, RpcMeta};
use super::directory::Resolved;
use crate::error::{Error, ErrorKind, Result};
pub(super) use http::server_of;
use http::{HttpStore, Put};

/// Where descriptors are found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MetadataKind {
    /// No server: a segment's name is `host:port` of its engine's control daemon.
    P2p,
    /// A metadata server; the whole URL, as in `http://10.0.0.1:8080/metadata`.
    Http(String),
}

/// The chosen way, ready to use.
pub(super) enum Metadata {
    P2p,
    Registry(Registry),
}

impl Metadata {
    pub fn new(kind: &MetadataKind, cluster: &str, limits: &ControlLimits) -> Result<Self> {
        match kind {
            MetadataKind::P2p => Ok(Self::P2p),
            MetadataKind::Http(url) => {
                let store = HttpStore::new(url, limits)?;
                Ok(Self::Registry(Registry { store, keys: Keys::new(cluster) }))
            }
        }
    }

    /// Publishes `descriptor`; the first time also where the daemon listens.
    pub async fn publish(
        &self,
        descriptor: &Descriptor,
        control: &Address,
        first: bool,
        limits: &ControlLimits,
    ) -> Result<()> {
        let json = descriptor.to_json()?;
        match self {
            Self::P2p => Ok(()),
            Self::Registry(registry) if first => {
                registry.register(&descriptor.name, control, json, limits).await
            }
            Self::Registry(registry) => registry.put_descriptor(&descriptor.name, json).await,
        }
    }

    /// Deletes what was published under `name`.
    pub async fn withdraw(&self, name: &str) -> Result<()> {
        match self {
            Self::P2p => Ok(()),
            Self::Registry(registry) => registry.deregister(name).await,
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

    /// Where the control daemon of `name` listens.
    pub async fn locate(&self, name: &str) -> Result<Address> {
        match self {
            Self::P2p => p2p::locate(name),
            Self::Registry(registry) => registry.locate(name).await,
        }
    }
}

/// The documents of a metadata server.
pub(super) struct Registry {
    store: HttpStore,
    keys: Keys,
}

impl Registry {
    /// Mooncake's order: where we listen, then what is there, then our descriptor.
    async fn register(
        &self,
        name: &str,
        control: &Address,
        json: Vec<u8>,
        limits: &ControlLimits,
    ) -> Result<()> {
        self.claim(name, control, limits).await?;
        if self.store.get(&self.keys.ram(name)).await?.is_some() {
            tracing::info!(name, "replacing the descriptor that an earlier engine left behind");
        }
        self.put_descriptor(name, json).await
    }

    /// Takes the name, unless another engine has it. Not every server refuses to give a name away
    /// twice, and peers that then reach the wrong engine write into the wrong memory: look first.
    async fn claim(&self, name: &str, control: &Address, limits: &ControlLimits) -> Result<()> {
        let ours = RpcMeta { ip_or_host_name: control.host.clone(), rpc_port: control.port };
        let key = self.keys.rpc(name);
        match self.store.get(&key).await?.map(|json| RpcMeta::parse(&json)).transpose()? {
            None => {}
            Some(theirs) if theirs == ours => return Ok(()),
            Some(theirs) if is_abandoned(&theirs, &ours, limits).await => {
                self.store.delete(&key).await?;
            }
            Some(theirs) => return Err(self.name_taken(name, Some(theirs))),
        }
        match self.store.put(&key, ours.to_json()).await? {
            Put::Stored => Ok(()),
            Put::Duplicate => Err(self.name_taken(name, None)),
        }
    }

    async fn put_descriptor(&self, name: &str, json: Vec<u8>) -> Result<()> {
        match self.store.put(&self.keys.ram(name), json).await? {
            Put::Stored => Ok(()),
            Put::Duplicate => Err(self.name_taken(name, None)),
        }
    }

    /// Both documents go even if one of them fails to.
    async fn deregister(&self, name: &str) -> Result<()> {
        let rpc = self.store.delete(&self.keys.rpc(name)).await;
        let ram = self.store.delete(&self.keys.ram(name)).await;
        rpc.and(ram)
    }

    async fn resolve(&self, name: &str) -> Result<Resolved> {
        let json = self.store.get(&self.keys.ram(name)).await?;
        let json = json.ok_or_else(|| self.unknown(name))?;
        let descriptor = Descriptor::parse(&json).map_err(|error| error.with_peer(name))?;
        let control = self.locate(name).await?;
        Ok(Resolved::new(descriptor, control))
    }

    async fn locate(&self, name: &str) -> Result<Address> {
        let json = self.store.get(&self.keys.rpc(name)).await?;
        let json = json.ok_or_else(|| self.unknown(name))?;
        let meta = RpcMeta::parse(&json).map_err(|error| error.with_peer(name))?;
        Ok(Address::new(meta.ip_or_host_name, meta.rpc_port))
    }

    fn unknown(&self, name: &str) -> Error {
        Error::lost(format!(
            "no such segment at {}: check the name, and that its engine is running",
            self.store.url()
        ))
        .with_peer(name)
    }

    fn name_taken(&self, name: &str, owner: Option<RpcMeta>) -> Error {
        let owner = owner.map(|meta| Address::new(meta.ip_or_host_name, meta.rpc_port).to_string());
        Error::refused(format!(
            "the name {name:?} is taken at {} by {}: choose another, or delete the key {:?} if \
             its engine is dead",
            self.store.url(),
            owner.as_deref().unwrap_or("another engine"),
            self.keys.rpc(name)
        ))
    }
}

/// Whether a killed engine left `theirs` behind. Only on our own host can we tell: there a refused
/// connection proves that nobody listens. Silence is no proof.
async fn is_abandoned(theirs: &RpcMeta, ours: &RpcMeta, limits: &ControlLimits) -> bool {
    if theirs.ip_or_host_name != ours.ip_or_host_name {
        return false;
    }
    let owner = Address::new(&theirs.ip_or_host_name, theirs.rpc_port);
    match timeout(limits.metadata_connect, client::dial(&owner, limits)).await {
        Ok(Err(error)) => error.kind() == ErrorKind::Lost,
        _ => false,
    }
}

/// Names of documents.
struct Keys {
    prefix: String,
}

impl Keys {
    /// `cluster` sets engines apart that share a server; usually empty.
    fn new(cluster: &str) -> Self {
        let prefix = match cluster.is_empty() {
            true => "mooncake/".to_owned(),
            false => format!("mooncake/{cluster}/"),
        };
        Self { prefix }
    }

    /// A name with a slash names its kind of segment itself.
    fn ram(&self, name: &str) -> String {
        match name.contains('/') {
            true => format!("{}{name}", self.prefix),
            false => format!("{}ram/{name}", self.prefix),
        }
    }

    fn rpc(&self, name: &str) -> String {
        format!("{}rpc_meta/{name}", self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_mooncakes() {
        let plain = Keys::new("");
        assert_eq!(plain.ram("node-a:1"), "mooncake/ram/node-a:1");
        assert_eq!(plain.ram("nvmeof/x"), "mooncake/nvmeof/x");
        assert_eq!(plain.rpc("node-a"), "mooncake/rpc_meta/node-a");
        assert_eq!(Keys::new("blue").rpc("n"), "mooncake/blue/rpc_meta/n");
    }
}

//! The documents of a metadata service: who has which name, what they publish, and what is done
//! when a service forgets or another engine has the name.

use std::time::{Duration, SystemTime};

use tokio::time::timeout;

use super::store::{Document, Entry, Put, Store};
use crate::control::address::Address;
use crate::control::descriptor::{Descriptor, Kept, RpcMeta};
use crate::control::directory::Resolved;
use crate::control::{ControlLimits, client};
use crate::error::{Error, ErrorKind, Result};
use crate::limits::METADATA_PUT_TRIES;

/// The documents of a metadata service.
pub(in crate::control) struct Registry {
    store: Store,
    keys: Keys,
    /// As users know the service.
    url: String,
    lease: Duration,
}

impl Registry {
    pub(super) fn new(store: Store, cluster: &str, url: String, lease: Duration) -> Self {
        Self { store, keys: Keys::new(cluster), url, lease }
    }

    /// The service, which errors of its own name as their peer.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Takes the name, unless another engine has it, and stores both documents. Peers that reach
    /// the wrong engine write into the wrong memory: look first, and have the service compare.
    pub async fn publish(
        &self,
        descriptor: &Descriptor,
        control: &Address,
        limits: &ControlLimits,
    ) -> Result<()> {
        let entry = self.entry(descriptor, control)?;
        let name = &descriptor.name;
        let ours = meta(control);
        for _ in 0..METADATA_PUT_TRIES {
            let before = self.store.get(&entry.rpc.key).await?;
            let owner = before.as_deref().map(RpcMeta::parse).transpose()?;
            if let Some(theirs) = owner.filter(|theirs| *theirs != ours) {
                if !self.is_abandoned(&theirs, &ours, &entry, limits).await? {
                    return Err(self.name_taken(name, Some(theirs)));
                }
                tracing::info!(name, "replacing what an engine that is gone left behind");
            }
            match self.store.put(&entry, before.as_deref()).await? {
                Put::Stored => return Ok(()),
                // By another engine, which is then found; or our own lease ran out in between.
                Put::Taken => {}
            }
        }
        Err(self.name_taken(name, None))
    }

    /// Keeps what was published, and publishes it again if it isn't there: false then.
    pub async fn renew(
        &self,
        descriptor: &Descriptor,
        control: &Address,
        limits: &ControlLimits,
    ) -> Result<bool> {
        if self.store.renew(&self.entry(descriptor, control)?).await? {
            return Ok(true);
        }
        self.publish(descriptor, control, limits).await?;
        Ok(false)
    }

    /// Deletes what was published.
    pub async fn withdraw(&self, name: &str, control: &Address) -> Result<()> {
        self.store.delete(&self.documents(name, control, Vec::new())).await
    }

    pub async fn resolve(&self, name: &str) -> Result<Resolved> {
        let json = self.store.get(&self.keys.ram(name)).await?;
        let json = json.ok_or_else(|| self.unknown(name))?;
        let descriptor = Descriptor::parse(&json).map_err(|error| error.with_peer(name))?;
        let control = self.locate(name).await?;
        Ok(Resolved::new(descriptor, control))
    }

    pub async fn locate(&self, name: &str) -> Result<Address> {
        let json = self.store.get(&self.keys.rpc(name)).await?;
        let json = json.ok_or_else(|| self.unknown(name))?;
        let meta = RpcMeta::parse(&json).map_err(|error| error.with_peer(name))?;
        Ok(Address::new(meta.ip_or_host_name, meta.rpc_port))
    }

    /// What we publish; where no lease speaks for its age, it does so itself.
    fn entry(&self, descriptor: &Descriptor, control: &Address) -> Result<Entry> {
        let mut descriptor = descriptor.clone();
        if let (false, Some(extras)) = (self.store.has_leases(), &mut descriptor.kvrail) {
            extras.kept = Some(Kept::from(SystemTime::now(), self.lease));
        }
        Ok(self.documents(&descriptor.name, control, descriptor.to_json()?))
    }

    fn documents(&self, name: &str, control: &Address, json: Vec<u8>) -> Entry {
        let document =
            |key, json: Vec<u8>| Document { key, text: [&json, self.store.line_end()].concat() };
        Entry {
            rpc: document(self.keys.rpc(name), meta(control).to_json()),
            ram: document(self.keys.ram(name), json),
        }
    }

    /// Whether a killed engine left `theirs` behind. Silence alone is no proof: on our own host a
    /// refused connection is one, and elsewhere that nobody kept the entry as was promised.
    async fn is_abandoned(
        &self,
        theirs: &RpcMeta,
        ours: &RpcMeta,
        entry: &Entry,
        limits: &ControlLimits,
    ) -> Result<bool> {
        let owner = Address::new(&theirs.ip_or_host_name, theirs.rpc_port);
        let is_refused = match timeout(limits.metadata_connect, client::dial(&owner, limits)).await
        {
            Ok(Ok(_)) => return Ok(false),
            Ok(Err(error)) => error.kind() == ErrorKind::Lost,
            Err(_) => false,
        };
        if is_refused && theirs.ip_or_host_name == ours.ip_or_host_name {
            return Ok(true);
        }
        let json = self.store.get(&entry.ram.key).await?;
        let descriptor = json.and_then(|json| Descriptor::parse(&json).ok());
        let kept = descriptor.and_then(|descriptor| descriptor.kvrail?.kept);
        Ok(kept.is_some_and(|kept| kept.is_over(SystemTime::now())))
    }

    fn unknown(&self, name: &str) -> Error {
        Error::lost(format!(
            "no such segment at {}: check the name, and that its engine is running",
            self.url
        ))
        .with_peer(name)
    }

    fn name_taken(&self, name: &str, owner: Option<RpcMeta>) -> Error {
        let owner = owner.map(|meta| Address::new(meta.ip_or_host_name, meta.rpc_port).to_string());
        Error::refused(format!(
            "the name {name:?} is taken at {} by {}: choose another, or delete the key {:?} if \
             its engine is dead",
            self.url,
            owner.as_deref().unwrap_or("another engine"),
            self.keys.rpc(name)
        ))
    }
}

fn meta(control: &Address) -> RpcMeta {
    RpcMeta { ip_or_host_name: control.host.clone(), rpc_port: control.port }
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

//! Without a metadata server: a segment's name is the address of its control daemon, and the
//! daemon itself is asked for the descriptor.

use crate::control::address::Address;
use crate::control::client::{Callee, Client};
use crate::control::descriptor::Descriptor;
use crate::control::directory::Resolved;
use crate::error::Result;

/// Where the daemon of `name` listens.
pub(super) fn locate(name: &str) -> Result<Address> {
    Address::parse(name)
}

/// Asks the daemon.
pub(super) async fn resolve(name: &str, ours: &Descriptor, client: &Client) -> Result<Resolved> {
    let control = locate(name)?;
    let descriptor = client.fetch(Callee { name, address: &control }, ours).await?;
    Ok(Resolved::new(descriptor, control))
}

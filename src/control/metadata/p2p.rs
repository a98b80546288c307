//! Without a metadata server: a segment's name is the address of its control daemon, and the
//! daemon itself is asked for the descriptor.

use crate::control::address::Address;
use crate::control::descriptor::Descriptor;
use crate::control::directory::Resolved;
use crate::control::{ControlLimits, client};
use crate::error::Result;

/// Where the daemon of `name` listens.
pub(super) fn locate(name: &str) -> Result<Address> {
    Address::parse(name)
}

/// Asks the daemon.
pub(super) async fn resolve(
    name: &str,
    ours: &Descriptor,
    limits: &ControlLimits,
) -> Result<Resolved> {
    let control = locate(name)?;
    let descriptor = client::fetch(&control, ours, limits).await?;
    Ok(Resolved::new(descriptor, control))
}

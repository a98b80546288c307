//! The TCP path: Mooncake's classic protocol, both versions, both sides.

mod client;
mod connection;
mod dialed;
#[cfg(any(fuzzing, test))]
pub(crate) mod fuzzing;
mod gpu_loss;
mod granted;
mod landings;
mod peers;
mod read_ahead;
mod server;
mod shard;
mod steps;
mod storing;
mod sweep;
#[cfg(test)]
mod tests;
mod wire;

pub(crate) use self::client::{Action, Request};
pub(crate) use self::dialed::{Dialed, NO_KERNEL_TLS};
pub(crate) use self::shard::{Errands, Guard, Message, TcpShard};
pub(crate) use self::wire::{Event, LaneName, Status};
#[cfg(test)]
pub(crate) use self::wire::{HEADER_BYTES, STATUS_BYTES};
#[cfg(any(test, feature = "sim"))]
pub(crate) use self::wire::{Header, Verb, Version};

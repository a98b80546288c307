//! The suite on epoll.

use super::*;

#[path = "actors.rs"]
mod actors;
#[path = "pumps.rs"]
mod pumps;
#[path = "stops.rs"]
mod stops;

fn builder() -> RuntimeBuilder {
    builder_on(Driver::Epoll)
}

fn runtime() -> Runtime {
    builder().build().unwrap()
}

//! The suite on io_uring where the kernel gives it, else epoll.

use super::*;

#[path = "actors.rs"]
mod actors;
#[path = "pumps.rs"]
mod pumps;
#[path = "stops.rs"]
mod stops;

fn builder() -> RuntimeBuilder {
    builder_on(Driver::Auto)
}

fn runtime() -> Runtime {
    builder().build().unwrap()
}

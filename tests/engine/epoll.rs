//! The suite on epoll.

use super::*;

#[path = "endings.rs"]
mod endings;
#[path = "memory.rs"]
mod memory;
#[path = "transfers.rs"]
mod transfers;

fn builder() -> EngineBuilder {
    Engine::builder().driver(Driver::Epoll)
}

fn engine() -> Engine {
    builder().start().expect("an engine")
}

/// Two engines that reach each other over TCP: ours and a peer of it.
async fn pair() -> (Engine, Engine, Peer) {
    let (ours, theirs) = (engine(), engine());
    let peer = ours.open(theirs.name()).await.expect("the peer");
    (ours, theirs, peer)
}

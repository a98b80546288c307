//! The suite between engines that keep to the network.

use super::*;

#[path = "endings.rs"]
mod endings;
#[path = "meaning.rs"]
mod meaning;
#[path = "memory.rs"]
mod memory;
#[path = "transfers.rs"]
mod transfers;

fn builder() -> EngineBuilder {
    Engine::builder().same_host(false)
}

fn engine() -> Engine {
    builder().start().expect("an engine")
}

/// Two engines, ours and a peer of it.
async fn pair() -> (Engine, Engine, Peer) {
    let (ours, theirs) = (engine(), engine());
    let peer = ours.open(theirs.name()).await.expect("the peer");
    assert_eq!(peer.path(), PathKind::Tcp, "the path of this suite");
    (ours, theirs, peer)
}

//! Engines that are killed: what a service keeps of them, and how they are found again.

use kvrail::ErrorKind;

use crate::peer::Peer;
use crate::{
    Kind, LEASE, Service, engine, eventually, keys, on_every_service, on_services_with_leases,
    reads, wait,
};

on_every_service!(a_restarted_peer_is_found_again);
on_services_with_leases!(a_killed_peers_documents_end_with_its_lease);

fn a_killed_peers_documents_end_with_its_lease(kind: Kind) {
    let service = Service::start(kind);
    let (near, alive) = (engine("near", &service), Peer::start("alive", &service, 1));
    let dead = Peer::start("dead", &service, 2);
    reads(&near, "dead", 2);
    dead.kill();
    for key in keys("dead") {
        // None where it has ended already. A lease that is too long would be seen here: the wait
        // below is for machines that are slow.
        let left = service.left(&key);
        let is_short = left.is_some_and(|left| left <= LEASE);
        assert!(is_short || service.get(&key).is_none(), "{key} is kept for {left:?}");
        eventually("the documents end", || service.get(&key).is_none());
    }
    let gone = wait(near.open("dead")).expect_err("nobody is there");
    assert_eq!(gone.kind(), ErrorKind::Lost, "{gone}");
    // As many renewals later, those of the living are still there.
    reads(&near, "alive", 1);
    drop(alive);
}

/// At once, too: that nobody listens at its old address is proof enough on one host.
fn a_restarted_peer_is_found_again(kind: Kind) {
    let service = Service::start(kind);
    let near = engine("near", &service);
    for byte in 1..=3 {
        let peer = Peer::start("peer", &service, byte);
        reads(&near, "peer", byte);
        peer.kill();
    }
}

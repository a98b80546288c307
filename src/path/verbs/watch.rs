//! What shards have the control thread ask: whether peers are alive that have endpoints here, of
//! whose death a NIC that only serves hears nothing; and Mooncake's peers about endpoints.

use std::sync::{Arc, Weak};

use super::hub::{Rdma, Stranger};
use super::shard::Message;
use crate::control::handshake::{PortAddress, split_nic_path};
use crate::control::{Control, Handshake};
use crate::engine::tell;
use crate::path::rdma::EndpointName;
use crate::path::rdma::mooncake::EndpointId;

/// Asks whether a peer is still the process that it was, and tells the shard where it isn't. One
/// question may get lost, two in a row say that nobody is there.
pub(super) fn visit(rdma: &Arc<Rdma>, control: &Arc<Control>, shard: usize, stranger: Stranger) {
    let (rdma, asker) = (Arc::downgrade(rdma), control.clone());
    control.detach(async move {
        for _ in 0..2 {
            if is_there(&asker, &stranger).await {
                return;
            }
        }
        tracing::info!(peer = %stranger.name, "gone: its endpoints end");
        answer_to(&rdma, shard, Message::Absent { peer: stranger.number }).await;
    });
}

async fn is_there(control: &Control, stranger: &Stranger) -> bool {
    let resolved = control.resolve(&stranger.name, true).await;
    let extras = resolved.as_ref().ok().and_then(|found| found.descriptor.kvrail.as_ref());
    extras.is_some_and(|extras| extras.incarnation == stranger.incarnation)
}

/// Puts a handshake to a Mooncake peer.
pub(super) fn shake(
    rdma: &Arc<Rdma>,
    control: &Arc<Control>,
    shard: usize,
    (name, peer, request): (EndpointName, Arc<str>, Handshake),
) {
    let (rdma, asker) = (Arc::downgrade(rdma), control.clone());
    control.detach(async move {
        let answer = asker.handshake(&peer, request).await.map(Box::new);
        answer_to(&rdma, shard, Message::Answered { name, answer }).await;
    });
}

/// Finds the port of a NIC in the descriptor of the Mooncake peer that has it.
pub(super) fn locate(
    rdma: &Arc<Rdma>,
    control: &Arc<Control>,
    shard: usize,
    (id, path): (EndpointId, String),
) {
    let (rdma, asker) = (Arc::downgrade(rdma), control.clone());
    control.detach(async move {
        let port = find_port(&asker, &path).await;
        answer_to(&rdma, shard, Message::Located { id, port }).await;
    });
}

async fn find_port(control: &Control, path: &str) -> Option<PortAddress> {
    let (server, name) = split_nic_path(path)?;
    let resolved = control.resolve(server, true).await.ok()?;
    let device = resolved.descriptor.devices.iter().find(|device| device.name == name)?;
    Some(PortAddress { gid: device.gid, lid: device.lid })
}

async fn answer_to(rdma: &Weak<Rdma>, shard: usize, message: Message) {
    let Some(rdma) = rdma.upgrade() else { return };
    if let Some(shard) = rdma.shards().nth(shard) {
        tell(shard, message).await;
    }
}

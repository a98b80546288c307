//! What a shard's endpoints and their other ends write each other.

use super::super::hub::Stranger;
use super::super::letter::Body;
use super::RdmaShard;
use crate::control::Letter;
use crate::path::rdma::{Message as Told, Refusal};

impl RdmaShard {
    pub(super) fn told(&mut self, stranger: Stranger, mut body: Body) {
        let name = body.name();
        let (port, device) = (body.port.take(), body.device.take());
        let nic = device.and_then(|device| self.rdma.index_of(&device)).unwrap_or(u8::MAX);
        let is_answer = body.is_for_initiator();
        let Some(message) = body.message(stranger.incarnation, nic) else { return };
        let (peer, letter) = (&*stranger.name, message.kind());
        tracing::debug!(endpoint = %name, peer, letter, "a letter has come");
        self.endpoints.is_reached_at(name, port);
        if is_answer {
            self.initiator.told(message, self.now_ns);
        } else {
            let (number, is_served) = (stranger.number, stranger.visitor.may_something());
            self.strangers.insert(number, stranger);
            match message {
                // Who may reach nothing gets no queue pair, by which it could count.
                Told::Open { name, .. } if !is_served => {
                    self.tell(number, &Told::Refused { name, why: Refusal::Shape });
                }
                message => self.target.told(number, message),
            }
        }
        self.act();
        self.endpoints.forget_stray(name);
    }

    pub(super) fn tell(&mut self, peer: u64, message: &Told) {
        let name = message.name();
        let port = self
            .endpoints
            .port_of(name, &self.rdma)
            .filter(|_| matches!(message, Told::Open { .. } | Told::Opened { .. }));
        let (to, incarnation, device) = match message {
            Told::Open { .. } | Told::Fence { .. } | Told::Bind { .. } => {
                let Some(reach) = self.peers.get(&peer) else { return };
                let theirs = match message {
                    Told::Open { theirs, .. } => reach.nics.get(usize::from(*theirs)),
                    _ => None,
                };
                (reach.name.clone(), reach.incarnation, theirs.map(|nic| nic.name.clone()))
            }
            _ => {
                let Some(stranger) = self.strangers.get(&peer) else { return };
                (stranger.name.clone(), Some(stranger.incarnation), None)
            }
        };
        let Some(incarnation) = incarnation else { return };
        let (peer, letter) = (&*to, message.kind());
        tracing::debug!(endpoint = %name, peer, letter, "a letter goes out");
        let body = serde_json::to_value(Body::new(message, port, device));
        let letter = Letter {
            from: self.control.name().to_owned(),
            incarnation: self.rdma.incarnation,
            to: incarnation,
            body: body.expect("numbers, strings and lists are JSON"),
        };
        self.control.send(&to, &letter);
    }
}

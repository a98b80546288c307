//! Mooncake's handshake, rule by rule, and both sides against each other.

mod opening;
mod pair;
mod properties;
mod target;

use kvrail_reactors::verbs::QpNumber;

use super::fuzzing::{PORT, nic};
use super::*;

const PEER: &str = "peer@d0";

/// A port that is not ours.
const ELSEWHERE: PortAddress = PortAddress { gid: [9; 16], lid: 0 };

/// What a peer says that knows the step `ready_ack`.
fn request(queues: &[u32]) -> Handshake {
    Handshake {
        port: Some(ELSEWHERE),
        local_nic_path: PEER.to_owned(),
        peer_nic_path: "kv@d0".to_owned(),
        qp_num: queues.to_vec(),
        ready_ack: Some(false),
        reply_msg: String::new(),
    }
}

fn ack(queues: &[u32]) -> Handshake {
    Handshake { ready_ack: Some(true), ..request(queues) }
}

/// What one says that doesn't know it, nor its own port.
fn old_request(queues: &[u32]) -> Handshake {
    Handshake { port: None, ready_ack: None, ..request(queues) }
}

fn qps(numbers: impl IntoIterator<Item = u32>) -> Vec<QpNumber> {
    numbers.into_iter().map(QpNumber).collect()
}

#[test]
fn a_nic_has_a_path_that_can_be_taken_apart() {
    assert_eq!(nic(1).path(), "kv@d1");
    for (server, device) in [("", "d"), ("s", ""), ("a@b", "d"), (&"s".repeat(2000), "d")] {
        let error = Nic::new(0, server, device, PORT).unwrap_err();
        assert_eq!(error.kind(), crate::error::ErrorKind::Refused);
    }
    Nic::new(0, "s", "d@1", PORT).unwrap();
}

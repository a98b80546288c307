//! A peer with three devices, found by name: whichever order it published them in.

use super::*;
use crate::control::descriptor::PriorityMatrix;
use crate::error::ErrorKind;

fn device(name: &str, last: u8) -> Device {
    let mut gid = [0; 16];
    gid[15] = last;
    Device { gid, lid: 0, name: name.into() }
}

fn keyed(addr: u64, length: u64, name: &str, rkey: [u32; 3]) -> Buffer {
    Buffer { addr, length, name: name.into(), lkey: vec![9; 3], rkey: rkey.into() }
}

/// As an engine of Mooncake would: its third device has failed, stays in the list with keys 0, and
/// is gone from the matrix.
fn peer(matrix: &str) -> Descriptor {
    let json = format!(
        r#"{{"name":"n","protocol":"rdma","priority_matrix":{matrix},"devices":[
            {{"name":"a","lid":0,"gid":"00:00:00:00:00:00:00:00:00:00:00:00:00:00:00:01"}}]}}"#
    );
    let mut peer = Descriptor::parse(json.as_bytes()).unwrap();
    peer.devices = vec![device("a", 1), device("b", 2), device("dead", 3)];
    peer.buffers = vec![
        keyed(0x1000, 0x1000, "cpu:0", [11, 12, 0]),
        keyed(0x2000, 0x1000, "cpu:1", [21, 22, 0]),
        keyed(0x3000, 0x1000, "*", [31, 32, 0]),
        keyed(0x4000, 0x1001, "segments:4096:0,1", [41, 42, 0]),
        keyed(0x6000, 0x1000, "cpu:7", [71, 72, 0]),
        Buffer { addr: 0x8000, length: 16, name: "cpu:0".into(), ..Buffer::default() },
    ];
    peer
}

const MATRIX: &str = r#"{"cpu:0":[["a"],["b"]],"cpu:1":[["b"],["a","b"]]}"#;

fn chosen(peer: &Descriptor, addr: u64, len: u64) -> Vec<(&str, u32, bool)> {
    let candidates = peer.devices_for(addr, len).unwrap();
    candidates.into_iter().map(|c| (c.device.name.as_str(), c.rkey, c.is_preferred)).collect()
}

#[test]
fn the_near_device_comes_first_and_each_has_its_key() {
    let peer = peer(MATRIX);
    assert_eq!(chosen(&peer, 0x1000, 0x1000), [("a", 11, true), ("b", 12, false)]);
    assert_eq!(chosen(&peer, 0x2fff, 1), [("b", 22, true), ("a", 21, false)]);
    assert_eq!(peer.rkey(&peer.buffers[1], "b"), Some(22));
    assert_eq!(peer.rkey(&peer.buffers[1], "c"), None);
    assert_eq!(peer.rkey(&peer.buffers[5], "a"), None);
}

#[test]
fn memory_anywhere_is_reached_by_all_that_work() {
    let peer = peer(MATRIX);
    assert_eq!(chosen(&peer, 0x3000, 1), [("a", 31, true), ("b", 32, true)]);
    let unlisted = chosen(&peer, 0x6000, 1);
    assert_eq!(unlisted, [("a", 71, true), ("b", 72, true)], "as of a node nobody listed");
}

#[test]
fn a_buffer_on_several_nodes_is_resolved_by_offset() {
    let mut peer = peer(MATRIX);
    assert_eq!(chosen(&peer, 0x4000, 4)[0].0, "a");
    assert_eq!(chosen(&peer, 0x47ff, 4)[0].0, "a");
    assert_eq!(chosen(&peer, 0x4800, 4)[0].0, "b");
    assert_eq!(chosen(&peer, 0x5000, 1)[0].0, "b", "the last part has the rest");
    for nonsense in ["segments:", "segments:4096", "segments:4096:", "segments:x:,,"] {
        peer.buffers[3].name = nonsense.into();
        assert_eq!(chosen(&peer, 0x4800, 4).len(), 2, "{nonsense}");
    }
    peer.buffers[3] = keyed(0x4000, 1, "segments:4096:0,1", [1, 2, 0]);
    assert_eq!(chosen(&peer, 0x4000, 1)[0].0, "a", "less than a byte a part");
}

#[test]
fn what_cannot_be_reached_says_why() {
    let reached = peer(MATRIX);
    for (addr, len, words) in [
        (0x1fff, 2, "no buffer of the peer has all of 2 bytes at 0x1fff"),
        (0x0fff, 1, "no buffer"),
        (0x1000, u64::MAX, "no buffer"),
        (u64::MAX, 1, "no buffer"),
        (0x8000, 16, "no keys"),
    ] {
        let error = reached.devices_for(addr, len).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Refused);
        assert!(error.to_string().contains(words), "{error}");
    }
    let malformed = [
        r#"{"cpu:0":[["a"]]}"#,
        r#"{"cpu:0":[["a"],["b"],[]]}"#,
        r#"{"cpu:0":[["a"],[7]]}"#,
        r#"{"cpu:0":["a","b"]}"#,
        r#"{"cpu:0":[["a"],["b"]],"cpu:1":{}}"#,
        r#"[["a"],["b"]]"#,
        r#""{\"cpu:0\":[[\"a\"],[\"b\"]]}""#,
        "null",
        "{}",
        r#"{"cpu:0":[["elsewhere"],[]]}"#,
    ];
    for matrix in malformed {
        let error = peer(matrix).devices_for(0x1000, 1).unwrap_err();
        assert!(error.to_string().contains("priority matrix"), "{matrix}: {error}");
    }
}

#[test]
fn a_list_that_never_ends_is_cut() {
    let mut peer = peer("{}");
    peer.devices = (0..RDMA_DEVICES_MAX).map(|n| device(&n.to_string(), 0)).collect();
    peer.buffers[0].rkey = vec![1; RDMA_DEVICES_MAX];
    let names: Vec<_> = (0..RDMA_DEVICES_MAX * 100).map(|n| n.to_string()).collect();
    let json = serde_json::json!({ "cpu:0": [["x"], names] });
    peer.priority_matrix = serde_json::from_value::<PriorityMatrix>(json).unwrap();
    assert_eq!(peer.devices_for(0x1000, 1).unwrap().len(), RDMA_DEVICES_MAX - 1);
}

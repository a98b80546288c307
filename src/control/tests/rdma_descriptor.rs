//! Descriptors of segments reached over RDMA: what Mooncake's readers refuse, what ours publish,
//! and who reaches whom.

use proptest::prelude::*;

use super::super::descriptor::*;
use super::{ControlConfig, config, probe_raw, start, start_with, wait};
use crate::control::fuzzing;
use crate::error::{Error, ErrorKind, Result};
use crate::limits::RDMA_DEVICES_MAX;

const MOONCAKE: &[u8] = include_bytes!("../../../fuzz/corpus/descriptor/mooncake_rdma");

fn mooncake() -> Descriptor {
    Descriptor::parse(MOONCAKE).unwrap()
}

/// Mooncake's document with something in it replaced.
fn with(old: &str, new: &str) -> Result<Descriptor> {
    let text = std::str::from_utf8(MOONCAKE).unwrap();
    assert!(text.contains(old), "{old} is in the document");
    Descriptor::parse(text.replacen(old, new, 1).as_bytes())
}

#[track_caller]
fn is_refused(read: Result<Descriptor>, words: &str) {
    let error: Error = read.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused);
    let text = format!("{error} {:?}", std::error::Error::source(&error).map(ToString::to_string));
    assert!(text.contains(words), "{text}");
}

fn own(name: &str, node: Option<u32>) -> OwnDevice {
    let mut gid = [0; 16];
    gid[15] = name.len() as u8;
    OwnDevice { device: Device { gid, lid: 0, name: name.into() }, node }
}

fn names(descriptor: &Descriptor) -> Vec<&str> {
    descriptor.devices.iter().map(|device| device.name.as_str()).collect()
}

#[test]
fn without_memory_nothing_is_left_by_which_a_nic_reaches_it() {
    let bare = mooncake().without_memory();
    assert!(bare.rdma().is_none());
    let document: serde_json::Value = serde_json::from_slice(&bare.to_json().unwrap()).unwrap();
    let is_empty =
        |key: &str| document.get(key).is_none_or(|value| value == &serde_json::json!([]));
    for key in ["devices", "buffers", "priority_matrix"] {
        assert!(is_empty(key), "{key}: {document}");
    }
    let text = document.to_string();
    for word in ["key", "addr", "gid", "qp"] {
        assert!(
            !text.contains(&format!("\"{word}")) && !text.contains(&format!("{word}\"")),
            "{text}"
        );
    }
}

#[test]
fn mooncakes_document_is_read_and_written_to_the_byte() {
    let read = mooncake();
    assert_eq!(names(&read), ["mlx5_0", "mlx5_1"]);
    assert_eq!((read.devices[1].gid[0], read.devices[1].gid[15]), (0xfe, 2));
    assert_eq!(read.buffers[0].rkey, [3, 4]);
    assert_eq!(read.rdma().unwrap().len(), 2);
    assert!(!read.reaches_tcp());
    assert_eq!(read.to_json().unwrap(), MOONCAKE);
}

#[test]
fn what_mooncake_refuses_is_refused() {
    is_refused(with(r#""name":"mlx5_0""#, r#""name":"""#), "no name");
    is_refused(with(r#","name":"mlx5_0""#, ""), "missing field `name`");
    is_refused(with(r#""fe:80:00"#, r#""fe:80"#), "16 pairs");
    is_refused(with(r#""fe:80:00"#, r#""fe:80:00:00"#), "16 pairs");
    is_refused(with(r#""gid":"fe:80"#, r#""guid":"fe:80"#), "missing field `gid`");
    is_refused(with(r#""lid":0"#, r#""lid":65536"#), "65536");
    is_refused(with(r#""rkey":[3,4]"#, r#""rkey":[3]"#), "1 rkeys and 2 lkeys for 2 devices");
    is_refused(with(r#""lkey":[1,2]"#, r#""lkey":[1,2,3]"#), "3 lkeys");
    is_refused(with(r#""rkey":[3,4]"#, r#""rkey":[3,4294967296]"#), "4294967296");
    is_refused(with(r#""length":1048576"#, r#""length":0"#), "must not be empty");
    assert!(with(r#""lid":0,"#, "").is_ok(), "0 is what Mooncake reads there");
    let local = with(r#""rkey":[3,4]"#, r#""rkey":[]"#).unwrap();
    assert!(local.devices_for(local.buffers[0].addr, 1).is_err(), "memory that isn't served");
}

#[test]
fn more_devices_than_any_host_has_are_refused() {
    let mut descriptor = mooncake();
    descriptor.buffers.clear();
    descriptor.devices = vec![descriptor.devices[0].clone(); RDMA_DEVICES_MAX];
    let json = descriptor.to_json().unwrap();
    assert!(Descriptor::parse(&json).is_ok());
    descriptor.devices.push(descriptor.devices[0].clone());
    is_refused(descriptor.to_json().map(|_| mooncake()), "513 RDMA devices");
}

#[test]
fn an_unreadable_matrix_costs_the_choice_and_not_the_document() {
    let matrix = r#"{"cpu:0":[["mlx5_0"],["mlx5_1"]]}"#;
    let read = with(matrix, r#"{"cpu:0":[["mlx5_0"]]}"#).unwrap();
    assert!(read.priority_matrix.is_empty());
    assert!(read.devices_for(read.buffers[0].addr, 1).is_err());
    assert_eq!(Descriptor::parse(&read.to_json().unwrap()).unwrap(), read);
}

#[test]
fn keys_of_64_bits_are_not_ours_to_read() {
    let read = with(r#""protocol":"rdma""#, r#""protocol":"efa""#).unwrap();
    assert_eq!((read.buffers[0].rkey.len(), read.devices.len()), (0, 0));
    let text = String::from_utf8(MOONCAKE.to_vec()).unwrap();
    let text = text.replace("[3,4]", "[18446744073709551615,4]").replace("\"rdma\"", "\"efa\"");
    assert!(Descriptor::parse(text.as_bytes()).is_ok());
}

#[test]
fn memory_on_a_node_prefers_its_devices() {
    let devices = [own("rxe0", Some(0)), own("rxe1", Some(1)), own("rxe22", None)];
    let matrix = PriorityMatrix::new(&devices, ["cpu:1", "cpu:0", "*", "cpu:5"]);
    let json = serde_json::to_string(&matrix).unwrap();
    let expected = concat!(
        r#"{"*":[["rxe0","rxe1","rxe22"],[]],"cpu:0":[["rxe0"],["rxe1","rxe22"]],"#,
        r#""cpu:1":[["rxe1"],["rxe0","rxe22"]],"cpu:5":[["rxe0","rxe1","rxe22"],[]]}"#
    );
    assert_eq!(json, expected);
    let bare = serde_json::to_string(&PriorityMatrix::new(&devices, [])).unwrap();
    assert_eq!(bare, r#"{"*":[["rxe0","rxe1","rxe22"],[]]}"#, "or readers would know no device");
}

#[test]
fn devices_and_keys_are_published_in_the_order_of_the_walk() {
    let devices = [own("rxe0", Some(0)), own("rxe1", Some(1))];
    let offer = Offer::new(&devices, ["cpu:0", "cpu:1"]);
    let mut descriptor = mooncake();
    descriptor.buffers[0].rkey = offer.in_order(&[70, 71]);
    descriptor.buffers[0].lkey = offer.in_order(&[80, 81]);
    let descriptor = descriptor.offering(offer);
    assert_eq!(names(&descriptor), ["rxe1", "rxe0"], "readers meet cpu:1 first");
    assert_eq!(descriptor.buffers[0].rkey, [71, 70]);
    assert_eq!(descriptor.buffers[0].lkey, [81, 80]);
    assert_eq!(descriptor.priority_matrix.device_order(), names(&descriptor));
    let buffer = &descriptor.buffers[0];
    let near = descriptor.devices_for(buffer.addr, 1).unwrap()[0];
    assert_eq!((near.device.name.as_str(), near.rkey), ("rxe0", 70));
}

#[test]
fn buffers_with_keys_are_never_joined() {
    let mut descriptor = mooncake();
    let template = Buffer { length: 4096, ..descriptor.buffers[0].clone() };
    let at = |n: u64| Buffer { addr: n << 12, ..template.clone() };
    descriptor.buffers = (1..40_000).map(at).collect();
    is_refused(descriptor.to_json().map(|_| mooncake()), "39999 buffers");
    // Memory without keys is joined, up to the neighbour that has some.
    for buffer in &mut descriptor.buffers[1..] {
        (buffer.rkey, buffer.lkey) = (Vec::new(), Vec::new());
    }
    let read = Descriptor::parse(&descriptor.to_json().unwrap()).unwrap();
    let lengths: Vec<_> = read.buffers.iter().map(|buffer| buffer.length >> 12).collect();
    assert_eq!(lengths, [1, 39_998]);
    // A key for local work is a key too.
    descriptor.buffers = (1..3).map(at).collect();
    descriptor.buffers[0].rkey.clear();
    descriptor.buffers[1].rkey.clear();
    assert_eq!(Descriptor::parse(&descriptor.to_json().unwrap()).unwrap().buffers.len(), 2);
}

#[test]
fn segments_are_reached_by_what_both_speak() {
    let theirs = mooncake();
    theirs.check_reach(true).unwrap();
    is_refused(theirs.check_reach(false).map(|()| mooncake()), "MC_FORCE_TCP=1");
    let mut ours = mooncake();
    (ours.kvrail, ours.tcp_data_port) = (
        Some(Extras { version: Extras::VERSION, incarnation: 1, sockets: Vec::new(), kept: None }),
        7,
    );
    assert!(ours.reaches_tcp() && ours.rdma().is_some());
    ours.check_reach(false).unwrap();
    assert!(ours.kvrail.as_ref().unwrap().has_rdma_endpoints());
    ours.kvrail.as_mut().unwrap().version = 2;
    assert!(!ours.kvrail.as_ref().unwrap().has_rdma_endpoints());
    (ours.devices, ours.tcp_data_port) = (Vec::new(), 0);
    is_refused(ours.check_reach(true).map(|()| mooncake()), "names no device");
    let with_port = Descriptor { tcp_data_port: 7, ..mooncake() };
    assert!(!with_port.reaches_tcp(), "a number that Mooncake writes and nobody listens on");
}

#[test]
fn an_engine_opens_what_it_speaks() {
    let serve = |engine: &mut super::Engine| {
        let buffer = &mut engine.buffers.lock().unwrap()[0];
        (buffer.rkey, buffer.lkey) = (vec![1], vec![2]);
        engine.rdma = Some(vec![own("rxe0", None)]);
    };
    let (target, _engine) = start_with(config("127.0.0.1"), serve);
    assert!(!probe_raw(&target).is_empty());
    let (plain, _host) = start(config("127.0.0.1"));
    let refused = wait(plain.resolve(target.name(), false)).unwrap_err();
    assert!(refused.to_string().contains("speaks tcp:"), "{refused}");
    let (rdma, _host) = start(ControlConfig { speaks_rdma: true, ..config("127.0.0.1") });
    let resolved = wait(rdma.resolve(target.name(), false)).unwrap();
    assert_eq!(names(&resolved.descriptor), ["rxe0"]);
}

prop_compose! {
    fn offered()(
        nodes in prop::collection::vec(prop::option::of(0_u32..4), 1..9),
        locations in prop::collection::btree_set("(cpu:[0-9]{1,2}|cuda:[0-9]|\\*)", 0..40),
        keys: u32,
    ) -> (Vec<OwnDevice>, Descriptor) {
        let devices: Vec<_> =
            nodes.iter().enumerate().map(|(n, node)| own(&format!("nic{n}"), *node)).collect();
        let offer = Offer::new(&devices, locations.iter().map(String::as_str));
        let of_own: Vec<u32> = (0..devices.len() as u32).map(|n| keys.wrapping_add(n)).collect();
        let mut descriptor = mooncake();
        descriptor.buffers = locations.iter().enumerate().map(|(n, name)| Buffer {
            addr: (n as u64 + 1) << 12, length: 4096, name: name.clone(),
            lkey: offer.in_order(&of_own), rkey: offer.in_order(&of_own),
        }).collect();
        (devices, descriptor.offering(offer))
    }
}

proptest! {
    #[test]
    fn an_offer_has_every_device_once_with_its_own_key((devices, published) in offered()) {
        let read = Descriptor::parse(&published.to_json().unwrap()).unwrap();
        prop_assert_eq!(&read, &published);
        prop_assert_eq!(read.priority_matrix.device_order(), names(&read));
        let mut sorted: Vec<_> = read.devices.clone();
        sorted.sort_by(|a, b| a.name.cmp(&b.name));
        prop_assert_eq!(sorted, devices.iter().map(|d| d.device.clone()).collect::<Vec<_>>());
        for buffer in &read.buffers {
            let first = read.rkey(buffer, "nic0").unwrap();
            for (n, device) in devices.iter().enumerate() {
                let key = read.rkey(buffer, &device.device.name);
                prop_assert_eq!(key, Some(first.wrapping_add(n as u32)));
            }
            let candidates = read.devices_for(buffer.addr, buffer.length).unwrap();
            prop_assert_eq!(candidates.len(), devices.len());
        }
    }

    #[test]
    fn mutilated_text_keeps_the_property(at in 0..MOONCAKE.len(), byte: u8, cut: bool) {
        let mut text = MOONCAKE.to_vec();
        text[at] = byte;
        text.truncate(if cut { at } else { MOONCAKE.len() });
        fuzzing::descriptor(&text);
    }
}

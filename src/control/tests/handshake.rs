//! Handshakes: text that is strictly written and tolerantly read, and their way between engines.

use proptest::prelude::*;

use super::super::handshake::*;
use super::*;
use crate::error::ErrorKind;
use crate::limits::{NIC_PATH_MAX_BYTES, RDMA_QUEUES_MAX, REPLY_MESSAGE_MAX_CHARS};

const GID: &str = "00:00:00:00:00:00:00:00:00:00:ff:ff:0a:09:00:01";

fn port() -> PortAddress {
    PortAddress { gid: [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 255, 255, 10, 9, 0, 1], lid: 3 }
}

fn message() -> Handshake {
    Handshake {
        port: Some(port()),
        local_nic_path: "10.9.0.1:15001@rxe0".to_owned(),
        peer_nic_path: "10.9.0.2:15002@rxe1".to_owned(),
        qp_num: vec![17, 0xff_ffff],
        ready_ack: Some(false),
        reply_msg: String::new(),
    }
}

fn read(text: &str) -> std::result::Result<Handshake, String> {
    serde_json::from_str(text).map_err(|error| error.to_string())
}

fn written(message: &Handshake) -> String {
    serde_json::to_string(message).unwrap()
}

#[test]
fn text_is_written_to_the_byte() {
    let expected = format!(
        concat!(
            r#"{{"local_gid":"{}","local_lid":3,"local_nic_path":"10.9.0.1:15001@rxe0","#,
            r#""payload":"","peer_nic_path":"10.9.0.2:15002@rxe1","qp_num":[17,16777215],"#,
            r#""ready_ack":false,"reply_msg":""}}"#
        ),
        GID
    );
    assert_eq!(written(&message()), expected);
    assert_eq!(read(&expected).unwrap(), message());
}

#[test]
fn an_engine_without_rdma_says_what_mooncakes_does() {
    let expected = concat!(
        r#"{"local_gid":"","local_lid":0,"local_nic_path":"","payload":"","#,
        r#""peer_nic_path":"","qp_num":[],"reply_msg":""}"#
    );
    assert_eq!(written(&Handshake::default()), expected);
    assert_eq!(read(expected).unwrap(), Handshake::default());
}

#[test]
fn what_old_peers_leave_out_is_none() {
    let old = r#"{"local_nic_path":"a@x","peer_nic_path":"b@y","qp_num":[1],"reply_msg":""}"#;
    let old = read(old).unwrap();
    assert_eq!((old.port, old.ready_ack, &old.qp_num[..]), (None, None, &[1][..]));
    assert_eq!(read("{}").unwrap(), Handshake::default());
    // Without its GID a LID says nothing.
    assert_eq!(read(r#"{"local_lid":7}"#).unwrap().port, None);
    let alone = read(&format!(r#"{{"local_gid":"{GID}"}}"#)).unwrap();
    assert_eq!(alone.port, Some(PortAddress { lid: 0, ..port() }));
}

#[test]
fn what_newer_peers_add_passes() {
    let text =
        r#"{"notify_qp_num":9,"ctrl_channel":true,"payload":[{}],"qp_num":[1],"efa_addr":{}}"#;
    assert_eq!(read(text).unwrap().qp_num, [1]);
}

#[test]
fn a_lid_that_is_none_is_zero() {
    for lid in ["-1", "65536", "1.5", "\"3\"", "null", "[]"] {
        let text = format!(r#"{{"local_gid":"{GID}","local_lid":{lid}}}"#);
        assert_eq!(read(&text).unwrap().port.unwrap().lid, 0, "{lid}");
    }
}

#[test]
fn readiness_is_there_whatever_its_value() {
    for (value, expected) in [("true", true), ("false", false), ("1", false), ("null", false)] {
        let message = read(&format!(r#"{{"ready_ack":{value}}}"#)).unwrap();
        assert_eq!(message.ready_ack, Some(expected), "{value}");
        assert_eq!(message.is_ack(), expected);
    }
    assert!(!written(&Handshake::default()).contains("ready_ack"));
}

#[test]
fn queue_pair_numbers_have_24_bits() {
    for item in ["16777216", "-1", "1.5", "\"1\"", "null", "[1]"] {
        read(&format!(r#"{{"qp_num":[1,{item}]}}"#)).unwrap_err();
    }
    for list in ["1", "null", "\"\"", "{}"] {
        read(&format!(r#"{{"qp_num":{list}}}"#)).unwrap_err();
    }
}

#[test]
fn of_too_many_queue_pairs_enough_is_kept_to_see_it() {
    for count in [RDMA_QUEUES_MAX, RDMA_QUEUES_MAX + 1, 100_000] {
        let list = vec!["7"; count].join(",");
        let message = read(&format!(r#"{{"qp_num":[{list}]}}"#)).unwrap();
        assert_eq!(message.qp_num, vec![7; count.min(RDMA_QUEUES_MAX + 1)]);
        assert!(message.qp_num.capacity() <= 2 * (RDMA_QUEUES_MAX + 1));
    }
}

#[test]
fn texts_are_bounded() {
    for key in ["local_nic_path", "peer_nic_path"] {
        let of = |bytes: usize| format!(r#"{{"{key}":"{}"}}"#, "x".repeat(bytes));
        read(&of(NIC_PATH_MAX_BYTES)).unwrap();
        let error = read(&of(NIC_PATH_MAX_BYTES + 1)).unwrap_err();
        assert!(error.contains("longer than"), "{error}");
    }
    let long = format!(r#"{{"reply_msg":"{}"}}"#, "é".repeat(100_000));
    assert_eq!(read(&long).unwrap().reply_msg, "é".repeat(REPLY_MESSAGE_MAX_CHARS));
}

#[test]
fn a_gid_is_sixteen_pairs() {
    assert_eq!(read(&written(&message()).to_uppercase().to_lowercase()).unwrap(), message());
    let upper = format!(r#"{{"local_gid":"{}"}}"#, GID.to_uppercase());
    assert_eq!(read(&upper).unwrap().port.unwrap().gid, port().gid);
    let bad = [
        "fe80::1",
        &GID[3..],
        &format!("{GID}:00"),
        &format!("{GID}\u{0}"),
        &GID.replace(':', "-"),
        &GID.replacen("00", "0", 1),
        &GID.replacen("00", "+1", 1),
        &GID.replacen("00", "0g", 1),
        &":".repeat(100_000),
    ];
    for gid in bad {
        read(&serde_json::json!({ "local_gid": gid }).to_string()).unwrap_err();
    }
}

#[test]
fn nic_paths_are_split_at_the_first_at_sign() {
    assert_eq!(split_nic_path("host:1@mlx5_0"), Some(("host:1", "mlx5_0")));
    assert_eq!(split_nic_path("a@b@c"), Some(("a", "b@c")));
    for bad in ["", "a", "@", "a@", "@b"] {
        assert_eq!(split_nic_path(bad), None, "{bad}");
    }
    assert_eq!(nic_path("a", "b@c").as_deref(), Some("a@b@c"));
    for (server, device) in [("a@b", "c"), ("", "c"), ("a", "")] {
        assert_eq!(nic_path(server, device), None);
    }
    assert_eq!(nic_path("a", &"x".repeat(NIC_PATH_MAX_BYTES - 2)).unwrap().len(), 1024);
    assert_eq!(nic_path("a", &"x".repeat(NIC_PATH_MAX_BYTES - 1)), None);
}

proptest! {
    #[test]
    fn what_is_written_is_read(
        ports in prop::option::of((any::<[u8; 16]>(), any::<u16>())),
        local_nic_path in ".{0,40}",
        peer_nic_path in ".{0,40}",
        qp_num in prop::collection::vec(0_u32..1 << 24, 0..=RDMA_QUEUES_MAX),
        ready_ack: Option<bool>,
        reply_msg in ".{0,40}",
    ) {
        let port = ports.map(|(gid, lid)| PortAddress { gid, lid });
        let message =
            Handshake { port, local_nic_path, peer_nic_path, qp_num, ready_ack, reply_msg };
        prop_assert_eq!(read(&written(&message)).unwrap(), message);
    }
}

/// An engine with RDMA that answers like a mirror.
fn mirror(request: Handshake) -> Answering {
    Box::pin(async move {
        tokio::task::yield_now().await;
        Handshake {
            local_nic_path: request.peer_nic_path,
            peer_nic_path: request.local_nic_path,
            ..request
        }
    })
}

#[test]
fn a_handshake_reaches_the_engine_and_its_answer_comes_back() {
    let (near, _) = start(config("127.0.0.1"));
    let (far, _) = start_with(config("127.0.0.1"), |engine| engine.shakes = Some(mirror));
    let reply = wait(near.handshake(far.name(), message())).unwrap();
    let expected = Handshake {
        local_nic_path: message().peer_nic_path,
        peer_nic_path: message().local_nic_path,
        ..message()
    };
    assert_eq!(reply, expected);
    assert_eq!(wait(far.handshake(near.name(), message())).unwrap(), Handshake::default());
}

#[test]
fn legacy_text_reaches_the_engine_too() {
    let (far, _) = start_with(config("127.0.0.1"), |engine| engine.shakes = Some(mirror));
    let request = br#"{"local_nic_path":"a@x","peer_nic_path":"b@y","qp_num":[1,2]}"#;
    let reply = Raw::connect(&far).send(&frame(request)).receive();
    let reply: Handshake = serde_json::from_slice(&reply[8..]).unwrap();
    assert_eq!((&reply.local_nic_path[..], &reply.qp_num[..]), ("b@y", &[1, 2][..]));
    assert_eq!(reply.ready_ack, None);
}

#[test]
fn an_engine_that_does_not_answer_refuses() {
    let mut config = config("127.0.0.1");
    config.limits.handshake = Duration::from_millis(20);
    let never = |engine: &mut Engine| engine.shakes = Some(|_| Box::pin(std::future::pending()));
    let (far, _) = start_with(config, never);
    let (near, _) = start(super::config("127.0.0.1"));
    let reply = wait(near.handshake(far.name(), message())).unwrap();
    assert!(reply.reply_msg.contains("try again"), "{reply:?}");
    assert_eq!((reply.ready_ack, reply.qp_num.len()), (Some(false), 0));
}

#[test]
fn malformed_handshakes_cost_one_connection() {
    let (far, _) = start_with(config("127.0.0.1"), |engine| engine.shakes = Some(mirror));
    for body in [&b"[]"[..], b"{\"qp_num\":[\"1\"]}", b"{\"qp_num\":[16777216]}", b"{"] {
        assert_eq!(Raw::connect(&far).send(&frame(&[b"\0", body].concat())).receive(), b"");
    }
    assert_eq!(probe_raw(&far)[8], 3);
}

#[test]
fn nobody_at_home_is_an_error() {
    let (near, _) = start(config("127.0.0.1"));
    let (far, _) = start(config("127.0.0.1"));
    wait(far.stop());
    let error = wait(near.handshake(far.name(), message())).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Lost);
}

//! Descriptors: the golden one to the byte, what is tolerated, what is not, and round trips.

use std::time::{Duration, UNIX_EPOCH};

use proptest::prelude::*;

use super::super::descriptor::*;
use super::buffer;
use crate::control::fuzzing;
use crate::error::{ErrorKind, Result};
use crate::limits::CONTROL_FRAME_MAX_BYTES;

/// As Mooncake 0.3.13 sent it.
const GOLDEN: &str = concat!(
    r#"{"buffers":[{"addr":140163643203600,"length":1048576,"name":"127.0.0.1:16930"}],"#,
    r#""name":"127.0.0.1:16930","protocol":"tcp","rdma_server_name":"","#,
    r#""tcp_data_host":"127.0.0.1","tcp_data_port":15690,"tcp_proto_version":2,"#,
    r#""timestamp":"2026-11-22 07:06:57.869222"}"#
);

fn parse(json: &str) -> Result<Descriptor> {
    Descriptor::parse(json.as_bytes())
}

/// A TCP descriptor with these further keys.
fn with(keys: &str) -> Result<Descriptor> {
    parse(&format!("{{\"name\":\"n\",\"protocol\":\"tcp\",\"tcp_data_port\":1{keys}}}"))
}

#[test]
fn the_golden_descriptor_is_read_and_written_to_the_byte() {
    let descriptor = parse(&format!("{GOLDEN}\n")).unwrap();
    assert_eq!(descriptor.buffers[0].addr, 140_163_643_203_600);
    assert_eq!(descriptor.tcp_data_host.as_deref(), Some("127.0.0.1"));
    assert_eq!(descriptor.kvrail, None);
    assert_eq!(String::from_utf8(descriptor.to_json().unwrap()).unwrap(), GOLDEN);
    assert!(descriptor.reaches_tcp());
    descriptor.check_reach(false).unwrap();
}

#[test]
fn missing_keys_have_mooncakes_defaults() {
    let descriptor = with("").unwrap();
    assert_eq!(descriptor.tcp_proto_version, 1);
    assert_eq!(descriptor.tcp_data_host, None);
    assert_eq!(descriptor.rdma_server_name, "");
    assert_eq!(descriptor.buffers, []);
}

#[test]
fn what_we_do_not_know_is_ignored() {
    let keys = r#","later":{"a":[1,{}]},"tcp_data_host":null,"timestamp":null,"buffers":[
        {"name":"n","addr":18446744073709551614,"length":1,"flags":[1]}]"#;
    assert_eq!(
        with(keys).unwrap().buffers,
        [Buffer { name: "n".into(), addr: u64::MAX - 1, length: 1, ..Buffer::default() }]
    );
    for later in ["7", "null", "[1,2]", r#"{"version":"two"}"#, "{}"] {
        assert_eq!(with(&format!(",\"kvrail\":{later}")).unwrap().kvrail, None, "{later}");
    }
    let extras = with(r#","kvrail":{"version":3,"later":[]}"#).unwrap().kvrail;
    assert_eq!(
        extras,
        Some(Extras { version: 3, incarnation: 0, sockets: Vec::new(), kept: None })
    );
}

#[test]
fn one_bad_buffer_refuses_a_tcp_descriptor_whole() {
    for bad in [
        r#"{"name":"","addr":1,"length":1}"#,
        r#"{"name":"n","addr":0,"length":1}"#,
        r#"{"name":"n","addr":1,"length":0}"#,
        r#"{"name":"n","addr":18446744073709551615,"length":2}"#,
        r#"{"name":"n","addr":-1,"length":1}"#,
        r#"{"name":"n","addr":"1","length":1}"#,
        r#"{"name":"n","length":1}"#,
        r#"{"name":7,"addr":1,"length":1}"#,
    ] {
        let error = with(&format!(",\"buffers\":[{bad}]")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Refused, "{bad}");
    }
}

#[test]
fn wrong_types_are_refused() {
    for json in ["", "null", "[]", "{}", "{\"protocol\":7}", "{\"protocol\":{}}"] {
        assert_eq!(parse(json).unwrap_err().kind(), ErrorKind::Refused, "{json}");
    }
    for keys in [",\"tcp_proto_version\":\"2\"", ",\"tcp_proto_version\":-1", ",\"buffers\":7"] {
        assert_eq!(with(keys).unwrap_err().kind(), ErrorKind::Refused, "{keys}");
    }
    let port = parse(r#"{"name":"n","protocol":"tcp","tcp_data_port":70000}"#);
    assert_eq!(port.unwrap_err().kind(), ErrorKind::Refused);
    let deep = format!("{{\"protocol\":{}", "[".repeat(100_000));
    assert_eq!(parse(&deep).unwrap_err().kind(), ErrorKind::Refused);
}

#[test]
fn other_protocols_are_read_but_not_opened() {
    let rdma = include_bytes!("../../../fuzz/corpus/descriptor/mooncake_rdma");
    let rdma = Descriptor::parse(rdma).unwrap();
    assert_eq!((rdma.buffers.len(), rdma.rdma_server_name.as_str()), (1, "node-a-rdma"));
    let many = include_bytes!("../../../fuzz/corpus/descriptor/multi_protocol");
    let many = Descriptor::parse(many).unwrap();
    assert_eq!(many.protocol, "rdma+tcp");
    let files = include_bytes!("../../../fuzz/corpus/descriptor/nvmeof");
    let files = Descriptor::parse(files).unwrap();
    for descriptor in [rdma, many, files] {
        let error = descriptor.check_reach(false).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Refused);
        assert!(error.to_string().contains(&descriptor.protocol), "{error}");
    }
    let silent = parse(r#"{"name":"n","protocol":"tcp"}"#).unwrap();
    assert_eq!(silent.check_reach(true).unwrap_err().kind(), ErrorKind::Refused);
}

#[test]
fn adjacent_buffers_are_joined_only_if_the_text_were_too_long() {
    let mut descriptor = parse(GOLDEN).unwrap();
    descriptor.buffers = vec![buffer(0x2000, 0x1000), buffer(0x1000, 0x1000)];
    let read = Descriptor::parse(&descriptor.to_json().unwrap()).unwrap();
    assert_eq!(read.buffers, descriptor.buffers);

    // Two chains of neighbours with a gap between them, published in no order.
    descriptor.buffers = (1..40_000).rev().map(|n| buffer(n << 12, 4096)).collect();
    descriptor.buffers.extend((50_000..60_000).map(|n| buffer(n << 12, 4096)));
    let read = Descriptor::parse(&descriptor.to_json().unwrap()).unwrap();
    let joined = [buffer(1 << 12, 39_999 << 12), buffer(50_000 << 12, 10_000 << 12)];
    assert_eq!(read.buffers, joined);
}

#[test]
fn a_descriptor_that_peers_cannot_read_is_refused_with_the_numbers() {
    let mut descriptor = parse(GOLDEN).unwrap();
    descriptor.buffers = (1..40_000).map(|n| buffer(n << 13, 4096)).collect();
    let error = descriptor.to_json().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused);
    let text = error.to_string();
    assert!(text.contains("39999 buffers"), "{text}");
    assert!(text.contains(&(CONTROL_FRAME_MAX_BYTES - 2).to_string()), "{text}");
}

#[test]
fn a_buffer_that_peers_would_reject_is_not_written() {
    let mut descriptor = parse(GOLDEN).unwrap();
    descriptor.buffers = vec![buffer(0x1000, 0)];
    assert_eq!(descriptor.to_json().unwrap_err().kind(), ErrorKind::Refused);
}

#[test]
fn timestamps_are_dates() {
    let at = |seconds, micros| {
        timestamp(UNIX_EPOCH + Duration::from_secs(seconds) + Duration::from_micros(micros))
    };
    assert_eq!(at(0, 0), "1970-01-01 00:00:00.000000");
    assert_eq!(at(951_782_400, 7), "2000-02-29 00:00:00.000007");
    assert_eq!(at(1_795_331_217, 869_222), "2026-11-22 07:06:57.869222");
    assert_eq!(at(4_107_542_399, 0), "2100-02-28 23:59:59.000000");
    assert_eq!(at(4_107_542_400, 0), "2100-03-01 00:00:00.000000");
}

#[test]
fn rpc_meta_is_mooncakes_to_the_byte() {
    let meta = RpcMeta { ip_or_host_name: "127.0.0.1".to_owned(), rpc_port: 16270 };
    assert_eq!(meta.to_json(), br#"{"ip_or_host_name":"127.0.0.1","rpc_port":16270}"#);
    assert_eq!(RpcMeta::parse(&meta.to_json()).unwrap(), meta);
    let mistyped = br#"{"ip_or_host_name":"h","rpc_port":"16270"}"#;
    assert_eq!(RpcMeta::parse(mistyped).unwrap_err().kind(), ErrorKind::Refused);
}

prop_compose! {
    fn any_buffer()(name in ".{1,20}", addr in 1_u64.., length in 1_u64..) -> Buffer {
        Buffer { name, addr, length: length.min(u64::MAX - addr).max(1), ..Buffer::default() }
    }
}

prop_compose! {
    fn any_descriptor()(
        buffers in prop::collection::vec(any_buffer(), 0..20),
        name in ".*",
        rdma_server_name in ".*",
        tcp_data_host in prop::option::of(".+"),
        tcp_data_port: u16,
        tcp_proto_version: u32,
        extras: Option<(u32, u64)>,
    ) -> Descriptor {
        let buffers = buffers.into_iter().filter(|b| b.addr != u64::MAX).collect();
        let kvrail = extras.map(|(version, incarnation)| {
            let sockets = vec!["@a".into()];
            Extras { version, incarnation, sockets, kept: None }
        });
        let (protocol, timestamp) = (PROTOCOL_TCP.to_owned(), String::new());
        Descriptor {
            buffers, kvrail, name, protocol, rdma_server_name, tcp_data_host, tcp_data_port,
            tcp_proto_version, timestamp,
            devices: Vec::new(),
            priority_matrix: PriorityMatrix::default(),
        }
    }
}

proptest! {
    #[test]
    fn what_is_written_is_read(descriptor in any_descriptor()) {
        let json = descriptor.to_json().unwrap();
        prop_assert_eq!(Descriptor::parse(&json).unwrap(), descriptor);
    }

    #[test]
    fn mutilated_text_keeps_the_property(at in 0..GOLDEN.len(), byte: u8, cut: bool) {
        let mut text = GOLDEN.as_bytes().to_vec();
        text[at] = byte;
        text.truncate(if cut { at } else { GOLDEN.len() });
        fuzzing::descriptor(&text);
    }
}

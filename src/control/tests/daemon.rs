//! What the daemon says to a client that knows only bytes: Mooncake's own, as observed.

use super::*;

#[test]
fn a_probe_is_answered_as_mooncake_does() {
    let (control, _engine) = start(config("127.0.0.1"));
    assert_eq!(probe_raw(&control), frame(b"\x03{\"status\":\"success\"}\n"));
}

#[test]
fn a_notification_reaches_the_host() {
    let (control, engine) = start(config("127.0.0.1"));
    let request = frame(br#"_{"name":"10.0.0.7:1","notify_msg":"block 7 is there","later":[1]}"#);
    let request = [&request[..8], b"\x02", &request[9..]].concat();
    let reply = Raw::connect(&control).send(&request).receive();
    assert_eq!(reply, frame(b"\x02{\"name\":\"\",\"notify_msg\":\"success\"}\n"));
    let expected = ("10.0.0.7:1".to_owned(), b"block 7 is there".to_vec());
    assert_eq!(*engine.notes.lock().unwrap(), [expected]);
}

#[test]
fn the_descriptor_is_told_under_a_resolvable_name() {
    let (control, _engine) = start(config("127.0.0.1"));
    let reply = Raw::connect(&control).send(&frame(b"\x01{}")).receive();
    let (head, json) = reply.split_at(9);
    assert_eq!(head, [&(json.len() as u64 + 1).to_le_bytes()[..], &[1]].concat());
    let value: serde_json::Value = serde_json::from_slice(json).unwrap();
    let address = control.identity().control.to_string();
    assert_eq!(value["name"], address.as_str());
    assert_eq!(value["protocol"], "tcp");
    assert_eq!(value["tcp_data_host"], "127.0.0.1");
    assert_eq!(value["tcp_data_port"], control.identity().data.port);
    assert_eq!(value["tcp_proto_version"], 2);
    assert_eq!(value["rdma_server_name"], "");
    assert_eq!(value["buffers"][1]["addr"], 0x8000);
}

#[test]
fn an_rdma_handshake_gets_an_empty_one() {
    let (control, _engine) = start(config("127.0.0.1"));
    let request = br#"{"local_nic_path":"a@mlx5_0","peer_nic_path":"b@mlx5_0","qp_num":[1,2]}"#;
    let reply = Raw::connect(&control).send(&frame(&[b"\x00", &request[..]].concat())).receive();
    assert_eq!(reply[8], 0);
    let value: serde_json::Value = serde_json::from_slice(&reply[9..]).unwrap();
    assert_eq!(value["qp_num"], serde_json::json!([]));
    assert_eq!(value["reply_msg"], "");
    assert_eq!(value["local_nic_path"], "");
}

#[test]
fn legacy_text_is_answered_untyped() {
    let (control, _engine) = start(config("127.0.0.1"));
    let request = frame(br#"{"local_nic_path":"a@x","peer_nic_path":"b@x","qp_num":[]}"#);
    let reply = Raw::connect(&control).send(&request).receive();
    assert_eq!(reply[8], b'{');
    assert_eq!(reply.len() as u64, 8 + u64::from_le_bytes(reply[..8].try_into().unwrap()));
}

#[test]
fn both_address_families_are_served() {
    let (control, _engine) = start(config("127.0.0.1"));
    let port = control.identity().control.port;
    if std::net::TcpListener::bind("[::1]:0").is_err() {
        return eprintln!("this host has no IPv6");
    }
    let stream = TcpStream::connect(("::1", port)).unwrap();
    let reply = Raw(stream).send(&frame(b"\x03{}")).receive();
    assert_eq!(reply[8], 3);
}

#[test]
fn a_data_connection_is_handed_over_nonblocking() {
    let (control, engine) = start(config("127.0.0.1"));
    let data = control.identity().data.clone();
    let stream = wait(control.connect(&data.host, data.port)).unwrap();
    assert!(stream.nodelay().unwrap());
    let mut byte = [0];
    let error = (&stream).read(&mut byte).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
    while engine.streams.lock().unwrap().is_empty() {
        std::thread::yield_now();
    }
    let theirs = &engine.streams.lock().unwrap()[0];
    assert!(theirs.nodelay().unwrap());
    assert_eq!((&*theirs).read(&mut byte).unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
}

#[test]
fn a_host_that_panics_costs_one_connection() {
    let (control, _engine) = start_with(config("127.0.0.1"), |engine| engine.panics = true);
    assert_eq!(Raw::connect(&control).send(&frame(b"\x01{}")).receive(), b"");
    assert_eq!(probe_raw(&control)[8], 3);
}

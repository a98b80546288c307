//! Whatever arrives, the metadata server lives, stays within its bounds and serves the next client.

use super::metadata::server::{MetadataServer, ServerLimits};
use super::registry::http;
use super::*;

fn server(adjust: impl FnOnce(&mut ServerLimits)) -> MetadataServer {
    let mut limits = ServerLimits::default();
    adjust(&mut limits);
    MetadataServer::start("127.0.0.1:0", limits).unwrap()
}

fn lives(server: &MetadataServer) {
    assert_eq!(http(server, "GET", "/health", ""), (200, "OK".to_owned()));
}

#[test]
fn documents_are_put_read_and_deleted() {
    let server = server(|_| ());
    let target = "/metadata?key=mooncake%2Fram%2Fnode-a%3A1";
    assert_eq!(http(&server, "GET", target, "").0, 404);
    assert_eq!(http(&server, "PUT", target, "{\"a\":1}"), (200, "metadata updated".to_owned()));
    assert_eq!(http(&server, "GET", target, ""), (200, "{\"a\":1}".to_owned()));
    assert_eq!(http(&server, "GET", "/metadata?key=mooncake/ram/node-a:1", "").0, 200);
    assert_eq!(http(&server, "DELETE", target, "").0, 200);
    assert_eq!(http(&server, "DELETE", target, "").0, 404);
}

#[test]
fn a_duplicate_registration_is_denied_in_mooncakes_words() {
    let server = server(|_| ());
    let target = "/metadata?key=mooncake%2Frpc_meta%2Fa";
    let meta = |host| format!("{{\"ip_or_host_name\":\"{host}\",\"rpc_port\":1}}");
    assert_eq!(http(&server, "PUT", target, &meta("h1")).0, 200);
    let denied = (400, "Duplicate rpc_meta key not allowed".to_owned());
    assert_eq!(http(&server, "PUT", target, &meta("h2")), denied);
    assert_eq!(http(&server, "PUT", target, &meta("h1")).0, 200);
}

#[test]
fn an_oversized_document_is_denied() {
    let server = server(|limits| limits.document_bytes = 1000);
    let body = format!("{{\"a\":\"{}\"}}", "x".repeat(2000));
    // The server may close before it has read it all, which can cost the client the answer.
    let (status, _) = http(&server, "PUT", "/metadata?key=k", &body);
    assert!([413, 0].contains(&status), "{status}");
    assert_eq!(http(&server, "GET", "/metadata?key=k", "").0, 404);
}

#[test]
fn a_claimed_length_is_not_believed() {
    let server = server(|limits| limits.connection = Duration::from_millis(200));
    for length in ["99999999999", "18446744073709551616", "-1", "x"] {
        let head = format!(
            "PUT /metadata?key=k HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n{{"
        );
        Raw::to(server.address()).send(head.as_bytes()).receive();
    }
    lives(&server);
    assert_eq!(http(&server, "GET", "/metadata?key=k", "").0, 404);
}

#[test]
fn too_many_keys_are_denied() {
    let server = server(|limits| limits.keys = 3);
    for number in 0..5 {
        let (status, _) = http(&server, "PUT", &format!("/metadata?key=k{number}"), "{}");
        assert_eq!(status, if number < 3 { 200 } else { 507 });
    }
    assert_eq!(http(&server, "DELETE", "/metadata?key=k0", "").0, 200);
    assert_eq!(http(&server, "PUT", "/metadata?key=k4", "{}").0, 200);
}

#[test]
fn bad_keys_are_denied() {
    let server = server(|_| ());
    let long = format!("/metadata?key={}", "k".repeat(1025));
    for target in ["/metadata", "/metadata?key=", "/metadata?kee=a", &long] {
        for method in ["GET", "PUT", "DELETE"] {
            assert_eq!(http(&server, method, target, "{}").0, 400, "{method} {target:.40}");
        }
    }
    http(&server, "GET", "/metadata?key=%ff%00%zz", "");
    http(&server, "GET", "/metadata?key=a&key=b", "");
    lives(&server);
}

#[test]
fn documents_that_would_end_a_reader_are_denied() {
    let server = server(|_| ());
    for document in ["", "[1]", "null", "{", "\u{0}"] {
        assert_eq!(http(&server, "PUT", "/metadata?key=k", document).0, 400, "{document:?}");
    }
    let deep = format!("{{\"a\":{}", "[".repeat(500_000));
    assert_eq!(http(&server, "PUT", "/metadata?key=k", &deep).0, 400);
}

#[test]
fn random_bytes_are_no_request() {
    let server = server(|limits| limits.connection = Duration::from_millis(200));
    for byte in [0, b'\n', b'G', 0x80, 0xff] {
        Raw::to(server.address()).send(&[byte; 300]).receive();
    }
    lives(&server);
}

#[test]
fn silent_and_dripping_clients_are_dropped() {
    let server = server(|limits| limits.connection = Duration::from_millis(200));
    Raw::to(server.address()).receive();
    let mut raw = Raw::to(server.address()).send(b"GET /metadata?key=");
    let mut dripped = 0;
    while raw.0.write_all(b"k").is_ok() {
        dripped += 1;
        assert!(dripped < 500, "dripping was never ended");
        std::thread::sleep(Duration::from_millis(10));
    }
    lives(&server);
}

#[test]
fn half_open_connections_keep_nobody_out() {
    // Only eviction ends a connection within the raw client's patience.
    let server = server(|limits| {
        limits.connections = 16;
        limits.connection = Duration::from_secs(600);
    });
    let silent: Vec<Raw> = (0..100).map(|_| Raw::to(server.address()).send(b"GET ")).collect();
    lives(&server);
    drop(silent);
}

#[test]
fn a_connection_carries_one_request() {
    let server = server(|_| ());
    let request = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n";
    let answer = Raw::to(server.address()).send(request).receive();
    let answer = String::from_utf8(answer).unwrap().to_lowercase();
    assert!(answer.contains("connection: close"), "{answer}");
}

#[test]
fn stopping_frees_the_port() {
    let server = server(|_| ());
    let address = server.address();
    server.stop();
    assert!(TcpStream::connect(address).is_err());
}

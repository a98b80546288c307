//! Our client against peers that are not kvrail: Mooncake's bytes, and whatever else may listen.

use std::net::TcpListener;
use std::thread::JoinHandle;

use super::*;

/// Listens for one connection, reads one frame and sends `reply`; gives back the request's bytes
/// once the client has closed.
struct Stranger {
    name: String,
    request: JoinHandle<Vec<u8>>,
}

impl Stranger {
    fn replying(reply: &[u8]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let name = listener.local_addr().unwrap().to_string();
        let reply = reply.to_vec();
        let request = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = vec![0; 8];
            stream.read_exact(&mut request).unwrap();
            let length = u64::from_le_bytes(request[..8].try_into().unwrap()) as usize;
            request.resize(8 + length, 0);
            stream.read_exact(&mut request[8..]).unwrap();
            stream.write_all(&reply).unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
            // A client that never closed would hold a Mooncake daemon, and this test.
            stream.read_to_end(&mut request).unwrap();
            request
        });
        Self { name, request }
    }
}

fn client() -> Control {
    let mut config = config("127.0.0.1");
    config.limits.answer = Duration::from_millis(300);
    start(config).0
}

/// Sends no answer and reads no request.
fn silent() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let name = listener.local_addr().unwrap().to_string();
    (listener, name)
}

#[test]
fn a_mooncake_descriptor_is_resolved() {
    let golden = include_bytes!("../../../fuzz/corpus/control_frame/metadata_reply");
    let (client, peer) = (client(), Stranger::replying(golden));
    let resolved = wait(client.resolve(&peer.name, false)).unwrap();
    assert_eq!(resolved.data, Address::new("127.0.0.1", 15690));
    assert_eq!(resolved.control.to_string(), peer.name);
    assert_eq!(resolved.descriptor.kvrail, None);
    let request = peer.request.join().unwrap();
    assert_eq!(request[8], 1);
    let ours = Descriptor::parse(&request[9..]).unwrap();
    assert_eq!(ours.name, client.name(), "we introduce ourselves");
}

#[test]
fn what_we_send_has_mooncakes_exact_types() {
    let client = client();
    let peer = Stranger::replying(&frame(b"\x03{\"status\":\"success\"}\n"));
    wait(client.probe(&peer.name)).unwrap();
    assert_eq!(peer.request.join().unwrap(), frame(b"\x03{}\n"));
    let peer = Stranger::replying(&frame(b"\x02{\"name\":\"\",\"notify_msg\":\"success\"}\n"));
    wait(client.notify(&peer.name, "a \"b\"")).unwrap();
    let text = format!("\u{2}{{\"name\":\"{}\",\"notify_msg\":\"a \\\"b\\\"\"}}\n", client.name());
    assert_eq!(peer.request.join().unwrap(), frame(text.as_bytes()));
}

#[test]
fn an_empty_receipt_is_a_rejection() {
    let (client, peer) = (client(), Stranger::replying(&frame(b"\x02{\"notify_msg\":\"\"}")));
    let error = wait(client.notify(&peer.name, "text")).unwrap_err();
    assert_eq!((error.kind(), error.landed()), (ErrorKind::Busy, Landed::No));
}

#[test]
fn a_peer_in_metadata_mode_is_named_as_such() {
    let (client, peer) = (client(), Stranger::replying(&frame(b"\x01null\n")));
    let error = wait(client.resolve(&peer.name, false)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused);
    assert!(error.to_string().contains("metadata server"), "{error}");
}

#[test]
fn malformed_answers_are_refused() {
    let client = client();
    let long = ((1_u64 << 20) + 1).to_le_bytes();
    let replies = [
        frame(b"\x03{}"),
        frame(b"{}"),
        frame(b"\x01[]"),
        frame(b"\x01{\"protocol\":[[]]}"),
        frame(b"\x01\"text\""),
        frame(b"\xff{}"),
        0_u64.to_le_bytes().to_vec(),
        [&long[..], b"\x01{}"].concat(),
        b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec(),
    ];
    for reply in replies {
        let peer = Stranger::replying(&reply);
        let error = wait(client.resolve(&peer.name, false)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Refused, "{:?}", String::from_utf8_lossy(&reply));
        assert_eq!(error.peer(), Some(&*peer.name));
    }
}

#[test]
fn an_answer_cut_short_is_a_loss() {
    let client = client();
    for reply in [&b""[..], b"\x16\0", &frame(b"\x01{\"name\":\"n\"}")[..12]] {
        let peer = Stranger::replying(reply);
        assert_eq!(wait(client.resolve(&peer.name, false)).unwrap_err().kind(), ErrorKind::Lost);
    }
    let peer = Stranger::replying(b"");
    let error = wait(client.notify(&peer.name, "text")).unwrap_err();
    assert_eq!(error.landed(), Landed::Maybe, "it may have been taken before the loss");
}

#[test]
fn silence_expires() {
    let (client, (_listener, name)) = (client(), silent());
    assert_eq!(wait(client.probe(&name)).unwrap_err().kind(), ErrorKind::Expired);
}

#[test]
fn an_unresolvable_host_is_a_loss_that_says_so() {
    let error = wait(client().connect("no such host", 1)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Lost);
    assert!(error.to_string().contains("resolved"), "{error}");
}

#[test]
fn a_name_with_several_addresses_is_tried_through() {
    // Where `localhost` is ::1 first, the IPv4 listener is found second.
    let (listener, _) = silent();
    let port = listener.local_addr().unwrap().port();
    wait(client().connect("localhost", port)).unwrap();
}

#[test]
fn calls_are_bounded_and_end_with_the_control_plane() {
    let mut config = config("127.0.0.1");
    config.limits.calls = 1;
    let (client, _) = start(config);
    let (listener, name) = silent();
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| wait(client.probe(&name)));
        let _stream = listener.accept().unwrap();
        assert_eq!(wait(client.probe(&name)).unwrap_err().kind(), ErrorKind::Busy);
        wait(client.stop());
        assert_eq!(waiting.join().unwrap().unwrap_err().kind(), ErrorKind::Closed);
    });
}

#[test]
fn a_caller_that_stops_waiting_leaves_no_call_behind() {
    let mut config = config("127.0.0.1");
    config.limits.calls = 1;
    config.limits.answer = Duration::from_millis(50);
    let (client, _) = start(config);
    let (listener, name) = silent();
    {
        let mut call = std::pin::pin!(client.probe(&name));
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        assert!(call.as_mut().poll(&mut context).is_pending());
    }
    let (far, _) = start(super::config("127.0.0.1"));
    while let Err(error) = wait(client.probe(far.name())) {
        assert_eq!(error.kind(), ErrorKind::Busy, "{error}");
        std::thread::yield_now();
    }
    drop(listener);
}

#[test]
fn calls_may_be_awaited_on_any_thread() {
    fn is_send<T: Send>(_: &T) {}
    let client = client();
    is_send(&client.publish());
    is_send(&client.resolve("n", true));
    is_send(&client.notify("n", "text"));
    is_send(&client.connect("h", 1));
    is_send(&client.stop());
}

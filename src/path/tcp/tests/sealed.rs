//! Connections that are encrypted behind their pass: what is asked, in which order, and that no
//! byte goes in clear text where it must not. That it works takes a kernel with TLS, and is tested
//! there (tests/auth/encrypted.rs).

use std::io::{Read, Write};
use std::sync::Arc;

use kvrail_reactors::probe::kernel_tls;
use kvrail_reactors::vector::Vector;

use super::shard::{both, poll_until, shard_behind, sockets};
use crate::auth::{Entrance, Gate, PeerId, Policy};
use crate::config::TcpLimits;
use crate::memory::{Operation, Regions, RegionsView, tests::region};
use crate::path::served::{Served, Service};
use crate::path::tcp::client::ClientStream;
use crate::path::tcp::server::ServerStream;
use crate::path::tcp::wire::{Header, STATUS_BYTES, Status, Verb, Version, pass_frame};
use crate::path::tcp::{Dialed, LaneName, Message};
use crate::{ErrorKind, Result};

const LANE: LaneName = LaneName(1);

/// Which process the tests' services are.
const INCARNATION: u64 = 1;

fn gate(encrypts: bool) -> Gate {
    Gate::new(true, true, Policy::Open).encrypting_tcp(encrypts)
}

fn peer() -> PeerId {
    PeerId::named(["a".to_owned()])
}

#[test]
fn a_gate_gives_passes_of_its_own_kind_and_host_sessions_plain_ones() {
    use Entrance::{Host, SealedTcp, Tcp};
    for (encrypts, good, bad) in [(true, SealedTcp, Tcp), (false, Tcp, SealedTcp)] {
        let gate = gate(encrypts);
        let given = gate.pass(&peer(), LANE, good).unwrap();
        assert_eq!(given.seal.is_some(), encrypts);
        let (_, seal) = gate.admit_tcp(&given.pass, LANE).unwrap();
        assert_eq!(seal, given.seal);
        let error = gate.pass(&peer(), LANE, bad).unwrap_err();
        let how = if encrypts { "are encrypted" } else { "are plain" };
        assert!(error.to_string().contains(how), "{error}");
        assert_eq!(gate.pass(&peer(), LANE, Host).unwrap().seal, None);
        assert!(gate.pass(&PeerId::Mooncake, LANE, good).is_err());
    }
}

#[test]
fn a_pass_for_a_session_of_the_host_opens_no_tcp_that_is_to_be_encrypted() {
    let gate = gate(true);
    let given = gate.pass(&peer(), LANE, Entrance::Host).unwrap();
    assert!(gate.admit_tcp(&given.pass, LANE).is_none());
    let given = gate.pass(&peer(), LANE, Entrance::Host).unwrap();
    assert!(gate.admit(&given.pass, LANE).is_some());
}

#[test]
fn whoever_needs_no_proof_is_let_in_only_where_nothing_is_encrypted() {
    assert!(gate(false).tcp_newcomer().is_in());
    assert!(!gate(true).tcp_newcomer().is_in());
    assert!(gate(true).newcomer().is_in(), "by the same host's socket");
}

fn service(gate: Gate) -> Service {
    let view = RegionsView::new(Arc::new(Regions::default()));
    Service::new(view, Arc::default(), Arc::default(), INCARNATION).behind(Arc::new(gate))
}

/// Feeds bytes as a socket would; how many the stream asked for in vain, at the end.
fn feed(stream: &mut ServerStream, served: &mut impl Served, mut bytes: &[u8]) -> usize {
    loop {
        let mut vector = Vector::default();
        stream.receive_into(&mut vector);
        if bytes.is_empty() || vector.is_empty() {
            return vector.len();
        }
        let len = vector.len().min(bytes.len());
        vector.store(&bytes[..len]);
        stream.received(&vector, len, served);
        bytes = &bytes[len..];
    }
}

#[test]
fn not_a_byte_behind_the_pass_is_received_in_clear_text() {
    let gate = gate(true);
    let given = gate.pass(&peer(), LANE, Entrance::SealedTcp).unwrap();
    let frame = pass_frame(LANE, INCARNATION, &given.pass);
    let mut service = service(gate);
    let mut stream = ServerStream::new(service.newcomer());
    for (sent, byte) in frame.iter().enumerate() {
        assert!(feed(&mut stream, &mut service, &[]) <= frame.len() - sent, "{sent}");
        assert_eq!(stream.take_seal(), None);
        feed(&mut stream, &mut service, &[*byte]);
    }
    assert_eq!(stream.take_seal(), given.seal);
    assert_eq!(stream.take_seal(), None, "the socket has it");
    assert!(stream.is_let_in() && stream.has_replies());
}

#[test]
fn a_lane_that_has_shown_its_pass_sends_nothing_before_the_answer() {
    let mut stream = ClientStream::new(Version::V2, false).entered(LANE);
    let mut vector = Vector::default();
    stream.send_into(&mut vector, &mut Default::default(), |_| false);
    assert!(vector.is_empty() && !stream.is_ready() && stream.name().is_none());
    stream.receive_into(&mut vector);
    assert_eq!(vector.len(), STATUS_BYTES);
    vector.store(&Status::Ok.encode());
    stream.received(&vector, STATUS_BYTES, |_, _| panic!("nobody asked")).unwrap();
    assert_eq!((stream.is_ready(), stream.name()), (true, Some(LANE)));
}

/// The kernel encrypts what is behind the pass, or it can't, and the connection ends: whichever it
/// is here, no answer comes in clear text, and no request in clear text is carried out.
#[test]
fn a_server_says_nothing_in_clear_text_behind_a_pass() {
    both(|streams| {
        let gate = Arc::new(gate(true));
        let given = gate.pass(&peer(), LANE, Entrance::SealedTcp).unwrap();
        let mut shard = shard_behind(streams, TcpLimits::default(), gate);
        let (socket, mut peer) = sockets();
        shard.handle(Message::Accepted(socket.into()), 0);
        peer.write_all(&pass_frame(LANE, INCARNATION, &given.pass)).unwrap();
        let verb = Verb::Transfer(Operation::Read);
        let read = Header { len: 16, addr: 0, verb, version: Version::V2 }.encode();
        peer.write_all(&read).unwrap();
        let (heard, done) = std::sync::mpsc::channel();
        let listening = std::thread::spawn(move || {
            let mut bytes = Vec::new();
            // A reset is an end too: the request was left unread.
            let _ = peer.read_to_end(&mut bytes);
            heard.send(()).unwrap();
            bytes
        });
        poll_until(&mut shard, 0, || done.try_recv().is_ok());
        let bytes = listening.join().unwrap();
        let says = |status: Status| bytes.windows(4).any(|four| four == &status.encode()[4..]);
        assert!(!says(Status::Ok), "{bytes:x?}");
        assert_eq!(kernel_tls().is_err(), bytes.is_empty(), "{bytes:x?}");
    });
}

#[test]
fn a_new_connection_that_can_not_be_encrypted_shows_no_pass_and_says_why() {
    let given = gate(true).pass(&peer(), LANE, Entrance::SealedTcp).unwrap();
    let (socket, mut peer) = sockets();
    let dialed: Result<Dialed> = Dialed::admitted(socket.into(), LANE, INCARNATION, given.clone());
    let mut bytes = Vec::new();
    match (kernel_tls(), dialed) {
        (Ok(()), Ok(dialed)) => {
            drop(dialed);
            peer.read_to_end(&mut bytes).unwrap();
            assert_eq!(bytes, pass_frame(LANE, INCARNATION, &given.pass));
        }
        (Err(_), Err(error)) => {
            peer.read_to_end(&mut bytes).unwrap();
            assert_eq!((error.kind(), bytes.len()), (ErrorKind::Refused, 0), "{error}");
            assert!(error.to_string().contains("modprobe -a tls"), "{error}");
        }
        (kernel, dialed) => panic!("{kernel:?} {dialed:?}"),
    }
}

#[test]
fn requests_in_clear_text_are_refused_where_they_are_to_be_encrypted() {
    let memory = region(4096);
    let regions = Arc::new(Regions::default());
    regions.insert(memory.clone()).unwrap();
    let view = RegionsView::new(regions);
    let service = Service::new(view, Arc::default(), Arc::default(), INCARNATION);
    let mut service = service.behind(Arc::new(gate(true)));
    let mut stream = ServerStream::new(service.newcomer());
    let (addr, verb) = (memory.addr(), Verb::Transfer(Operation::Read));
    let read = Header { len: 16, addr, verb, version: Version::V2 }.encode();
    feed(&mut stream, &mut service, &read);
    let mut vector = Vector::default();
    stream.send_into(&mut vector);
    assert_eq!(vector.copy_out(usize::MAX), Status::Refused.encode());
    assert!(stream.is_closing());
}

//! Two control planes that talk to each other.

use super::*;
use crate::error::ErrorKind;

#[test]
fn a_peer_is_resolved_by_its_address() {
    let (near, _) = start(config("127.0.0.1"));
    let (far, engine) = start(config("127.0.0.1"));
    let resolved = wait(near.resolve(far.name(), false)).unwrap();
    assert_eq!(resolved.descriptor.buffers, *engine.buffers.lock().unwrap());
    assert_eq!(
        resolved.descriptor.kvrail,
        Some(Extras { version: 1, incarnation: 7, sockets: Vec::new(), kept: None })
    );
    assert_eq!(resolved.control, far.identity().control);
    assert_eq!(resolved.data, far.identity().data);
}

#[test]
fn a_descriptor_is_remembered_until_a_refresh() {
    let (near, _) = start(config("127.0.0.1"));
    let (far, engine) = start(config("127.0.0.1"));
    wait(near.resolve(far.name(), false)).unwrap();
    engine.buffers.lock().unwrap().push(buffer(0x20000, 0x1000));
    let known = wait(near.resolve(far.name(), false)).unwrap();
    assert_eq!(known.descriptor.buffers.len(), 2);
    let fresh = wait(near.resolve(far.name(), true)).unwrap();
    assert_eq!(fresh.descriptor.buffers.len(), 3);
    assert!(fresh.descriptor.buffers.iter().any(|buffer| buffer.addr == 0x20000));
}

#[test]
fn notifications_arrive_until_the_queue_is_full() {
    let (near, _) = start(config("127.0.0.1"));
    let (far, engine) = start(config("127.0.0.1"));
    for number in 0..engine.room {
        wait(near.notify(far.name(), &format!("note {number} äöü \u{0}"))).unwrap();
    }
    let error = wait(near.notify(far.name(), "one too many")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Busy);
    let notes = engine.notes.lock().unwrap();
    assert_eq!(notes[3], (near.name().to_owned(), "note 3 äöü \u{0}".as_bytes().to_vec()));
}

#[test]
fn the_living_answer_a_probe_and_the_stopped_do_not() {
    let (near, _) = start(config("127.0.0.1"));
    let (far, _) = start(config("127.0.0.1"));
    wait(near.probe(far.name())).unwrap();
    wait(far.stop());
    assert_eq!(wait(near.probe(far.name())).unwrap_err().kind(), ErrorKind::Lost);
    assert_eq!(wait(far.probe(near.name())).unwrap_err().kind(), ErrorKind::Closed);
}

#[test]
fn dropping_frees_the_port() {
    let (control, _) = start(config("127.0.0.1"));
    let port = control.identity().control.port;
    let mut ended = control.ended.clone();
    drop(control);
    wait(ended.wait_for(|ended| *ended)).unwrap();
    assert!(TcpStream::connect(("127.0.0.1", port)).is_err());
}

#[test]
fn an_ipv6_name_is_bracketed_and_resolves() {
    if std::net::TcpListener::bind("[::1]:0").is_err() {
        return eprintln!("this host has no IPv6");
    }
    let (near, _) = start(config("::1"));
    let (far, _) = start(config("[::1]:99"));
    assert_eq!(far.name(), format!("[::1]:{}", far.identity().control.port));
    wait(near.resolve(far.name(), false)).unwrap();
}

#[test]
fn an_unusable_name_is_refused_at_the_start() {
    for name in ["0.0.0.0", "::", "", "a b"] {
        let host = |_: &Identity| -> Arc<dyn Host> { unreachable!("no identity, no host") };
        let error = Control::start(config(name), host).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::Refused, "{name:?}");
    }
}

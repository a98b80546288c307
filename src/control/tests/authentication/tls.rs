//! Certificates.

#[path = "../../../../tests/auth/authority.rs"]
pub(in crate::control) mod authority;

use self::authority::{Authority, Files};
use super::*;
use crate::auth::{PeerNames, TlsFiles};

fn tls(files: Files, names: PeerNames) -> Authentication {
    let Files { certificate, key, authorities } = files;
    Authentication::Tls(TlsFiles { certificate, key, authorities, names })
}

fn start_with_files(files: Files) -> (Control, Arc<Engine>) {
    start_as(tls(files, PeerNames::Opened))
}

#[test]
fn peers_know_each_other_by_the_names_in_their_certificates() {
    let authority = Authority::new();
    let (near, ours) = start_with_files(authority.issue("prefill"));
    let (far, theirs) = start_with_files(authority.issue("spiffe://cluster/decode"));
    wait(near.resolve(far.name(), true)).unwrap();
    wait(far.resolve(near.name(), true)).unwrap();
    wait(near.notify(far.name(), "hello")).unwrap();
    assert_eq!(theirs.notes.lock().unwrap()[0].1, b"hello");
    assert_eq!(seen(&theirs), [named("prefill")]);
    assert_eq!(seen(&ours), [named("spiffe://cluster/decode")]);
}

#[test]
fn letters_and_long_answers_go_by_tls() {
    let authority = Authority::new();
    let (near, _) = start_with_files(authority.issue("prefill"));
    let (far, theirs) = start_with_files(authority.issue("decode"));
    *theirs.buffers.lock().unwrap() = (1..8000).map(|k| buffer(k << 20, 1 << 10)).collect();
    let resolved = wait(near.resolve(far.name(), true)).unwrap();
    assert_eq!(resolved.descriptor.buffers.len(), 7999);
    let body = serde_json::json!({ "text": "x".repeat(100_000) });
    let letter = Letter { from: "somebody".into(), incarnation: 1, to: 7, body };
    (0..20).for_each(|_| near.send(&far.name().into(), &letter));
    while theirs.letters.lock().unwrap().len() < 20 {
        std::thread::yield_now();
    }
    assert!(seen(&theirs).iter().all(|peer| *peer == named("prefill")));
}

#[test]
fn a_certificate_of_another_authority_is_refused_by_both_sides() {
    let (ours, others) = (Authority::new(), Authority::new());
    let (far, theirs) = start_with_files(ours.issue("decode"));
    let (stranger, _) = start_with_files(others.issue("decode"));
    let error = refused(&stranger, far.name());
    assert!(error.to_string().contains("the peer's certificate does not hold"), "{error}");
    // One that would take the peer's is refused by the peer.
    let mut files = others.issue("stranger");
    files.authorities = ours.folder().join("ca.pem");
    let (stranger, _) = start_with_files(files);
    let error = refused(&stranger, far.name());
    assert!(error.to_string().contains("refuses this engine's certificate"), "{error}");
    assert_eq!(seen(&theirs), []);
}

#[test]
fn an_expired_certificate_is_refused_by_both_sides() {
    let authority = Authority::new();
    let (good, theirs) = start_with_files(authority.issue("good"));
    let (late, others) = start_with_files(authority.issue_expired("late"));
    let error = refused(&late, good.name());
    assert!(error.to_string().contains("is it in date"), "{error}");
    let error = refused(&good, late.name());
    assert!(error.to_string().contains("is it in date"), "{error}");
    assert_eq!((seen(&theirs), seen(&others)), (Vec::new(), Vec::new()));
}

#[test]
fn a_certificate_of_another_engine_is_refused_unless_any_will_do() {
    let authority = Authority::new();
    let elsewhere = authority.issue_with("elsewhere", |params| {
        params.subject_alt_names.remove(0);
    });
    let (far, _) = start_with_files(elsewhere);
    let files = authority.issue("near");
    let (near, _) = start_with_files(files.clone());
    let error = refused(&near, far.name());
    assert!(error.to_string().contains("is another's"), "{error}");
    let (near, _) = start_as(tls(files, PeerNames::Any));
    wait(near.probe(far.name())).unwrap();
    // Whether it holds is never overlooked.
    let (stranger, _) = start_with_files(Authority::new().issue("elsewhere"));
    refused(&near, stranger.name());
}

#[test]
fn plain_connections_and_keys_are_refused_and_never_fallen_back_to() {
    let authority = Authority::new();
    let (secure, theirs) = start_with_files(authority.issue("secure"));
    let (plain, others) = start(config("127.0.0.1"));
    assert_eq!(probe_raw(&secure), b"");
    assert!(wait(plain.resolve(secure.name(), true)).is_err());
    assert!(wait(secure.resolve(plain.name(), true)).is_err());
    assert!(wait(secure.notify(plain.name(), "a secret")).is_err());
    let keys = super::keys::Keys::new();
    let (keyed, _) = keys.start("keys", &[("a", 1)]);
    assert!(wait(keyed.probe(secure.name())).is_err());
    assert!(wait(secure.probe(keyed.name())).is_err());
    assert_eq!((seen(&theirs), seen(&others)), (Vec::new(), Vec::new()));
    assert!(others.notes.lock().unwrap().is_empty());
}

#[test]
fn a_certificate_without_names_is_refused() {
    let authority = Authority::new();
    let (far, theirs) = start_with_files(authority.issue("far"));
    let nameless = authority.issue_with("nameless", |params| params.subject_alt_names.truncate(1));
    let start = Control::start(config_as(tls(nameless, PeerNames::Opened)), |_| panic!());
    let error = start.err().unwrap();
    assert!(error.to_string().contains("no alternative name"), "{error}");
    assert_eq!((seen(&theirs), far.name().is_empty()), (Vec::new(), false));
}

#[test]
fn a_renewed_certificate_is_read_without_a_restart() {
    let authority = Authority::new();
    let (near, _) = start_with_files(authority.issue("near"));
    let (far, theirs) = start_with_files(authority.issue_expired("far"));
    assert!(wait(near.resolve(far.name(), true)).is_err());
    // Into the same files.
    authority.issue("far");
    while wait(near.resolve(far.name(), true)).is_err() {
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(seen(&theirs), [named("near")]);
}

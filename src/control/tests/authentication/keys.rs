//! Pre-shared keys.

use std::path::PathBuf;

use tempfile::TempDir;

use super::*;

/// A folder with files of keys.
pub(super) struct Keys(TempDir);

impl Keys {
    pub(super) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    /// A file with these keys: a name, and the byte that the key is made of.
    pub(super) fn file(&self, file: &str, keys: &[(&str, u8)]) -> PathBuf {
        let lines = keys.iter().map(|(name, byte)| format!("{name} = {}\n", hex(*byte)));
        let path = self.0.path().join(file);
        std::fs::write(&path, lines.collect::<String>()).unwrap();
        path
    }

    pub(super) fn start(&self, file: &str, keys: &[(&str, u8)]) -> (Control, Arc<Engine>) {
        start_as(Authentication::Keys(self.file(file, keys)))
    }
}

fn hex(byte: u8) -> String {
    format!("{byte:02x}").repeat(32)
}

#[test]
fn peers_know_each_other_by_the_names_of_their_keys() {
    let keys = Keys::new();
    let (near, ours) = keys.start("near", &[("prefill", 1), ("decode", 2)]);
    let (far, theirs) = keys.start("far", &[("decode", 2), ("prefill", 1)]);
    let resolved = wait(near.resolve(far.name(), true)).unwrap();
    assert_eq!(resolved.descriptor.buffers.len(), 2);
    wait(far.probe(near.name())).unwrap();
    wait(far.resolve(near.name(), true)).unwrap();
    wait(near.notify(far.name(), "hello")).unwrap();
    assert_eq!(theirs.notes.lock().unwrap()[0].1, b"hello");
    assert_eq!((seen(&theirs), seen(&ours)), (vec![named("prefill")], vec![named("decode")]));
}

#[test]
fn letters_come_from_whoever_holds_the_key() {
    let keys = Keys::new();
    let (near, _) = keys.start("near", &[("prefill", 1)]);
    let (far, theirs) = keys.start("far", &[("decode", 2), ("prefill", 1)]);
    let (name, body) = (far.name().into(), serde_json::json!({ "text": "x".repeat(100_000) }));
    let letter = Letter { from: "somebody".into(), incarnation: 1, to: 7, body };
    (0..20).for_each(|_| near.send(&name, &letter));
    while theirs.letters.lock().unwrap().len() < 20 {
        std::thread::yield_now();
    }
    assert_eq!(theirs.letters.lock().unwrap()[19], letter);
    assert!(seen(&theirs).iter().all(|peer| *peer == named("prefill")));
}

#[test]
fn a_wrong_key_is_refused() {
    let keys = Keys::new();
    let (near, _) = keys.start("near", &[("prefill", 9)]);
    let (far, theirs) = keys.start("far", &[("decode", 2), ("prefill", 1)]);
    let error = refused(&near, far.name());
    assert!(error.to_string().contains("\"prefill\" must be in its file"), "{error}");
    assert_eq!(seen(&theirs), []);
}

#[test]
fn a_key_that_the_peer_does_not_know_is_refused() {
    let keys = Keys::new();
    let (near, _) = keys.start("near", &[("stranger", 1)]);
    let (far, theirs) = keys.start("far", &[("decode", 2), ("prefill", 1)]);
    refused(&near, far.name());
    assert_eq!(seen(&theirs), []);
}

#[test]
fn an_unauthenticated_peer_is_refused() {
    let keys = Keys::new();
    let (far, theirs) = keys.start("far", &[("decode", 2)]);
    assert_eq!(probe_raw(&far), b"");
    let (near, _) = start(config("127.0.0.1"));
    let error = wait(near.resolve(far.name(), true)).unwrap_err();
    assert!(error.to_string().contains("require"), "{error}");
    assert_eq!(seen(&theirs), []);
}

#[test]
fn nothing_is_said_to_a_peer_that_proves_nothing() {
    let keys = Keys::new();
    let (near, _) = keys.start("near", &[("prefill", 1)]);
    let (far, theirs) = start(config("127.0.0.1"));
    refused(&near, far.name());
    assert!(wait(near.notify(far.name(), "a secret")).is_err());
    assert_eq!(seen(&theirs), []);
    assert!(theirs.notes.lock().unwrap().is_empty());
}

#[test]
fn mooncake_is_admitted_by_an_option_as_what_it_is() {
    let keys = Keys::new();
    let authentication = Authentication::Keys(keys.file("far", &[("decode", 2), ("a", 1)]));
    let (far, theirs) = start(ControlConfig { admits_plain: true, ..config_as(authentication) });
    let (mooncake, _) = start(config("127.0.0.1"));
    wait(mooncake.resolve(far.name(), true)).unwrap();
    let (near, _) = keys.start("near", &[("a", 1)]);
    wait(near.resolve(far.name(), true)).unwrap();
    assert_eq!(seen(&theirs), [PeerId::Mooncake, named("a")]);
}

#[test]
fn a_key_that_was_taken_out_or_put_in_counts_soon() {
    let keys = Keys::new();
    let (near, _) = keys.start("near", &[("a", 1)]);
    let (far, _) = keys.start("far", &[("decode", 2), ("a", 1)]);
    let until = |is_well: bool| {
        while wait(near.probe(far.name())).is_ok() != is_well {
            std::thread::sleep(Duration::from_millis(20));
        }
    };
    until(true);
    keys.file("far", &[("decode", 2)]);
    until(false);
    // Nonsense changes nothing; the next good file does.
    std::fs::write(keys.0.path().join("far"), "nonsense").unwrap();
    until(false);
    keys.file("far", &[("decode", 2), ("a", 3)]);
    keys.file("near", &[("a", 3)]);
    until(true);
}

#[test]
fn files_that_make_no_sense_are_refused_at_the_start() {
    let keys = Keys::new();
    let file = keys.0.path().join("none");
    let start = || Control::start(config_as(Authentication::Keys(file.clone())), |_| panic!());
    let error = start().err().unwrap();
    assert!(error.to_string().contains("none: cannot be read"), "{error}");
    std::fs::write(&file, "prefill = 1").unwrap();
    let error = start().err().unwrap();
    assert!(error.to_string().contains("line 1"), "{error}");
    std::fs::write(&file, vec![b'#'; crate::limits::AUTH_FILE_MAX_BYTES + 1]).unwrap();
    let error = start().err().unwrap();
    assert!(error.to_string().contains("is longer than"), "{error}");
}

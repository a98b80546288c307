//! Whole engines that have peers prove who they are, against data connections that can't show a
//! good pass: made by hand, with the words of the real protocol.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::path::PathBuf;
use std::time::Duration;

use futures_lite::future::block_on;
use tempfile::TempDir;

use super::*;
use crate::auth::{Entrance, Pass};
use crate::memory::Operation;
use crate::path::host::Neighbour;
use crate::path::tcp::{
    Event, HEADER_BYTES, Header, LaneName, STATUS_BYTES, Status, Verb, Version,
};
use crate::{Access, Authentication, ErrorKind, Location, Protocol};

const SECRET: &[u8; 16] = b"what is in there";

/// An owner of memory, and peers of it that hold keys.
struct Rig {
    folder: TempDir,
    owner: Engine,
    region: Region,
}

impl Rig {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = keys(&folder, "owner", &["owner", "a", "b"]);
        let owner = start(path);
        let region = owner.allocate(4096, Location::Cpu(None), Access::READ_WRITE).unwrap();
        region.lease(0..16).unwrap().copy_in(0, SECRET).unwrap();
        Self { folder, owner, region }
    }

    fn peer(&self, name: &str) -> Engine {
        start(keys(&self.folder, name, &[name, "owner"]))
    }

    /// A pass from the owner for a lane of a peer's.
    fn pass(&self, peer: &Engine, lane: LaneName) -> Pass {
        let (owner, incarnation) = (self.owner.name(), Some(self.incarnation()));
        let control = &peer.inner.control;
        let given = block_on(control.admission(owner, incarnation, lane, Entrance::Tcp));
        given.unwrap().unwrap().pass
    }

    fn incarnation(&self) -> u64 {
        self.owner.inner.host.incarnation
    }

    /// All that the owner's data port says to these bytes, until it closes.
    fn say(&self, bytes: &[u8]) -> Vec<u8> {
        let data = &self.owner.inner.control.identity().data;
        let mut stream = TcpStream::connect((data.host.as_str(), data.port)).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream.write_all(bytes).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        answer
    }

    fn read(&self, version: Version) -> Vec<u8> {
        let (len, addr) = (SECRET.len() as u64, self.region.addr());
        let verb = Verb::Transfer(Operation::Read);
        Header { len, addr, verb, version }.encode().into()
    }

    /// A pass's frame to this process, then a read.
    fn show(&self, lane: LaneName, pass: Pass) -> Vec<u8> {
        self.show_to(self.incarnation(), lane, pass)
    }

    fn show_to(&self, incarnation: u64, lane: LaneName, pass: Pass) -> Vec<u8> {
        let body = [&lane.to_bytes()[..], &pass.0].concat();
        let (len, verb, version) = (body.len() as u64, Verb::Pass, Version::V2);
        let header = Header { len, addr: incarnation, verb, version }.encode();
        self.say(&[&header[..], &body, &self.read(Version::V2)].concat())
    }
}

fn keys(folder: &TempDir, file: &str, names: &[&str]) -> PathBuf {
    // Each name its own key.
    let digits = |name: &str| format!("{:02x}", name.as_bytes()[0]).repeat(32);
    let line = |name: &&str| format!("{name} = {}\n", digits(name));
    let path = folder.path().join(file);
    std::fs::write(&path, names.iter().map(line).collect::<String>()).unwrap();
    path
}

fn start(keys: PathBuf) -> Engine {
    let authentication = Authentication::Keys(keys);
    let builder = Engine::builder().protocol(Protocol::Tcp);
    builder.authentication(authentication).start().unwrap()
}

fn ok() -> Vec<u8> {
    Status::Ok.encode().into()
}

fn refused() -> Vec<u8> {
    Status::Refused.encode().into()
}

#[test]
fn a_pass_lets_its_peer_in() {
    let rig = Rig::new();
    let lane = LaneName::new();
    let pass = rig.pass(&rig.peer("a"), lane);
    assert_eq!(rig.show(lane, pass), [ok(), ok(), SECRET.into()].concat());
}

#[test]
fn a_replayed_pass_is_refused() {
    let rig = Rig::new();
    let lane = LaneName::new();
    let pass = rig.pass(&rig.peer("a"), lane);
    assert_eq!(rig.show(lane, pass).len(), 2 * STATUS_BYTES + SECRET.len());
    assert_eq!(rig.show(lane, pass), refused());
}

#[test]
fn another_peers_pass_is_refused_and_used_up() {
    let rig = Rig::new();
    let (a, b) = (rig.peer("a"), rig.peer("b"));
    let (of_a, of_b) = (LaneName::new(), LaneName::new());
    let (pass_a, pass_b) = (rig.pass(&a, of_a), rig.pass(&b, of_b));
    assert_eq!(rig.show(of_b, pass_a), refused(), "b says that the pass of a is its own");
    assert_eq!(rig.show(of_a, pass_a), refused(), "it was seen in the wrong hands");
    assert_eq!(rig.show(of_b, pass_b).len(), 2 * STATUS_BYTES + SECRET.len());
}

#[test]
fn a_made_up_pass_and_one_to_another_process_are_refused() {
    let rig = Rig::new();
    let (peer, lane) = (rig.peer("a"), LaneName::new());
    assert_eq!(rig.show(lane, Pass([7; 32])), refused());
    let pass = rig.pass(&peer, lane);
    assert_eq!(rig.show_to(rig.incarnation() + 1, lane, pass), refused());
    let other = Some(rig.incarnation() + 1);
    let control = &peer.inner.control;
    let asked = control.admission(rig.owner.name(), other, lane, Entrance::Tcp);
    let error = block_on(asked).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused, "{error}");
}

#[test]
fn a_connection_without_a_pass_gets_nothing() {
    let rig = Rig::new();
    assert_eq!(rig.say(&rig.read(Version::V1)), b"");
    assert_eq!(rig.say(&rig.read(Version::V2)), refused());
    let (len, addr) = (SECRET.len() as u64, rig.region.addr());
    let verb = Verb::Transfer(Operation::Write);
    for (version, answer) in [(Version::V1, Vec::new()), (Version::V2, refused())] {
        let write = Header { len, addr, verb, version }.encode();
        assert_eq!(rig.say(&[&write[..], &[0; 16]].concat()), answer);
    }
    let mut kept = [0; 16];
    rig.region.share(0..16).unwrap().copy_out(0, &mut kept).unwrap();
    assert_eq!(&kept, SECRET);
}

/// As a peer without authentication does: it says its name instead.
#[test]
fn a_downgrade_to_names_without_a_pass_is_refused() {
    let rig = Rig::new();
    let body = [&LaneName::new().to_bytes()[..], b"a"].concat();
    let (len, addr, version) = (body.len() as u64, rig.incarnation(), Version::V2);
    let header = Header { len, addr, verb: Verb::Name, version }.encode();
    assert_eq!(rig.say(&[&header[..], &body, &rig.read(version)].concat()), refused());
}

#[test]
fn events_and_grants_take_a_pass_too() {
    let rig = Rig::new();
    let counter = rig.owner.counter(3).unwrap();
    let body = Event { count: Some((3, 1)), message: None }.encode();
    let (len, version) = (body.len() as u64, Version::V2);
    let header = Header { len, addr: 0, verb: Verb::Event, version }.encode();
    assert_eq!(rig.say(&[&header[..], &body].concat()), refused());
    assert_eq!(counter.value(), 0);
    let grant = rig.owner.grant(&rig.region, 0..16, Access::READ, Default::default()).unwrap();
    let (key, addr) = (grant.reference().key, rig.region.addr());
    let verb = Verb::Granted(Operation::Read);
    let header: [u8; HEADER_BYTES] = Header { len: 16, addr, verb, version }.encode();
    assert_eq!(rig.say(&[&header[..], &key.encode()].concat()), refused());
}

#[test]
fn a_session_of_the_same_host_takes_a_pass_that_is_good() {
    let rig = Rig::new();
    let peer = rig.peer("a");
    let descriptor = rig.owner.inner.host.descriptor();
    let (names, to) = (descriptor.kvrail.unwrap().sockets, rig.incarnation());
    let connect = |entry: (LaneName, Option<Pass>)| {
        let (hub, names) = (peer.inner.host.hub.clone().unwrap(), names.clone());
        let owner = Arc::from(rig.owner.name());
        let connecting =
            async move { Neighbour::connect(hub, &names, to, owner, "a", entry).await.map(drop) };
        block_on(peer.inner.control.run(connecting))
    };
    let lane = LaneName::new();
    let pass = rig.pass(&peer, lane);
    connect((lane, Some(pass))).unwrap();
    let (made_up, replayed) = (Pass([0; 32]), pass);
    for bad in [None, Some(made_up), Some(replayed)] {
        let error = connect((lane, bad)).unwrap_err();
        assert!(error.to_string().contains("closed the Unix socket"), "{bad:?}: {error}");
    }
}

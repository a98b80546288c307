//! Peers that stall in mid-body on a data connection, made by hand: taking memory back waits for
//! none of them.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use kvrail::{Access, Engine, Grant, GrantOptions, Reference, Region};

use super::{SOON, Way, contents, fill, pattern, region};

const OK: [u8; 8] = [0, 0, 0, 0, 0x56, 0x54, 0x43, 0x4d];
const STALE: [u8; 8] = [3, 0, 0, 0, 0x56, 0x54, 0x43, 0x4d];

/// READ and WRITE under a grant, of version 2.
const GRANTED_READ: u8 = 0x80 | 0x44;
const GRANTED_WRITE: u8 = 0x80 | 0x45;

const LEN: usize = 1 << 20;

fn ask(opcode: u8, reference: &Reference, len: usize) -> Vec<u8> {
    let (len, addr) = ((len as u64).to_le_bytes(), reference.addr().to_le_bytes());
    // The key stands at a reference's end as it does behind a header.
    [&len[..], &addr, &[opcode], &[0; 7], &reference.to_bytes()[24..]].concat()
}

/// A data connection to an engine, by what its control daemon says.
fn connect(engine: &Engine) -> TcpStream {
    let mut control = TcpStream::connect(engine.name()).expect("the control daemon");
    control.write_all(&[&3u64.to_le_bytes()[..], b"\x01{}"].concat()).expect("sent");
    let mut answer = Vec::new();
    control.read_to_end(&mut answer).expect("an answer");
    let json: serde_json::Value = serde_json::from_slice(&answer[9..]).expect("a descriptor");
    let (host, _) = engine.name().rsplit_once(':').expect("host:port");
    let stream = TcpStream::connect((host, json["tcp_data_port"].as_u64().unwrap() as u16));
    let stream = stream.expect("accepted");
    stream.set_read_timeout(Some(SOON)).expect("a socket");
    stream
}

fn granted(engine: &Engine, region: &Region, access: Access) -> Grant {
    engine.grant(region, 0..region.len(), access, GrantOptions::default()).unwrap()
}

/// Runs a test of an owner on either driver.
fn on_both_drivers<F: Future<Output = ()>>(test: impl Fn(Engine) -> F) {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("tokio");
    for way in [Way::Tcp, Way::Epoll] {
        runtime.block_on(async {
            let limit = Duration::from_secs(60);
            tokio::time::timeout(limit, test(way.engine())).await.expect("it hangs");
        });
    }
}

#[test]
fn a_writer_that_stalls_in_mid_body_writes_nothing_afterwards_and_its_connection_lives() {
    on_both_drivers(|owner| async move {
        let far = region(&owner, LEN);
        let grant = granted(&owner, &far, Access::WRITE);
        let mut writer = connect(&owner);
        let half = vec![0xAB; LEN / 2];
        writer.write_all(&ask(GRANTED_WRITE, &grant.reference(), LEN)).unwrap();
        writer.write_all(&half).unwrap();
        let mut last = [0];
        while last == [0] {
            far.share(LEN / 2 - 1..LEN / 2).unwrap().copy_out(0, &mut last).unwrap();
        }
        assert!(grant.revoke().await < SOON, "nobody waits for it");
        let expected = pattern(2, LEN);
        fill(&far, &expected);
        writer.write_all(&half).unwrap();
        let mut status = [0; 8];
        writer.read_exact(&mut status).unwrap();
        assert_eq!(status, STALE);
        assert!(contents(&far) == expected, "nothing shows afterwards");
        let again = granted(&owner, &far, Access::WRITE);
        writer.write_all(&ask(GRANTED_WRITE, &again.reference(), 5)).unwrap();
        writer.write_all(b"again").unwrap();
        writer.read_exact(&mut status).unwrap();
        assert_eq!(status, OK);
        assert_eq!(contents(&far)[..5], *b"again");
    });
}

#[test]
fn a_reader_that_stalls_in_mid_answer_sees_nothing_of_what_comes_next() {
    on_both_drivers(|owner| async move {
        let far = region(&owner, LEN);
        fill(&far, &[0x11; LEN]);
        let grant = granted(&owner, &far, Access::READ);
        let mut reader = connect(&owner);
        // More than the sockets hold.
        reader.write_all(&ask(GRANTED_READ, &grant.reference(), LEN).repeat(64)).unwrap();
        let mut first = [0];
        reader.read_exact(&mut first).unwrap();
        assert!(grant.revoke().await < SOON, "nobody waits for it");
        fill(&far, &[0xEE; LEN]);
        let mut rest = Vec::new();
        // All answers, or an end, which may be a reset.
        let left = 64 * (LEN + STALE.len()) - 1;
        let _ = reader.take(left as u64).read_to_end(&mut rest);
        assert!(!rest.contains(&0xEE), "it read what another prompt has there");
    });
}

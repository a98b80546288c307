//! Whatever arrives instead of a handshake: its connection ends, nothing else does.

use std::net::TcpListener;

use super::keys::Keys;
use super::*;

/// The start of an honest handshake by keys: magic, length of the name, name.
const GREETING: &[u8] = b"kvrail\0\x01\x01a";

#[test]
fn bytes_that_are_no_handshake_end_their_connection() {
    let keys = Keys::new();
    let (far, theirs) = keys.start("far", &[("b", 2), ("a", 1)]);
    let junk = [
        vec![0xff; 100_000],
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec(),
        [GREETING, &[0; 48]].concat(),
        [GREETING, &[0xff; 70_000]].concat(),
        [b"kvrail\0\x01\0".as_slice(), &[0; 48]].concat(),
        [b"kvrail\0\x01\xff".as_slice(), &[b'a'; 1000]].concat(),
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
    ];
    for bytes in junk {
        let raw = Raw::connect(&far).send_what_it_takes(&bytes).shutdown_write_if_open();
        assert_eq!(raw.receive(), b"", "{:?}", &bytes[..9]);
    }
    assert_eq!(seen(&theirs), []);
    let (near, _) = keys.start("near", &[("a", 1)]);
    wait(near.probe(far.name())).unwrap();
}

#[test]
fn silent_and_dripping_ones_have_a_bounded_time() {
    let keys = Keys::new();
    let authentication = Authentication::Keys(keys.file("far", &[("b", 2), ("a", 1)]));
    let mut config = config_as(authentication);
    config.limits.request = Duration::from_millis(300);
    let (far, _) = start(config);
    let silent = Raw::connect(&far);
    let half = Raw::connect(&far).send(GREETING);
    let mut dripping = Raw::connect(&far);
    let dripper = std::thread::spawn(move || {
        for byte in std::iter::repeat_n(&GREETING[..1], 10_000).flatten() {
            if dripping.0.write_all(&[*byte]).is_err() {
                return true;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        false
    });
    let (near, _) = keys.start("near", &[("a", 1)]);
    wait(near.probe(far.name())).unwrap();
    assert_eq!((silent.receive(), half.receive()), (Vec::new(), Vec::new()));
    assert!(dripper.join().unwrap(), "it was let drip for ever");
}

#[test]
fn one_who_says_nothing_to_us_has_a_bounded_time_too() {
    let keys = Keys::new();
    let mut config = config_as(Authentication::Keys(keys.file("near", &[("a", 1)])));
    config.limits.request = Duration::from_millis(200);
    let (near, _) = start(config);
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let error = wait(near.probe(&silent.local_addr().unwrap().to_string())).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Expired, "{error:?}");
}

/// Passes one connection on to `to`, and returns what its client has sent.
fn overhear(to: SocketAddr) -> (SocketAddr, std::thread::JoinHandle<Vec<u8>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let heard = std::thread::spawn(move || {
        let (client, _) = listener.accept().unwrap();
        let server = TcpStream::connect(to).unwrap();
        let (mut back, mut into) = (client.try_clone().unwrap(), server.try_clone().unwrap());
        let answers = std::thread::spawn(move || {
            // Either side may be gone by now.
            let _ = std::io::copy(&mut into, &mut back);
            let _ = back.shutdown(Shutdown::Both);
        });
        let (mut heard, mut chunk) = (Vec::new(), [0; 4096]);
        let (mut client, mut server) = (client, server);
        while let Ok(count @ 1..) = client.read(&mut chunk) {
            heard.extend_from_slice(&chunk[..count]);
            let _ = server.write_all(&chunk[..count]);
        }
        let _ = server.shutdown(Shutdown::Write);
        answers.join().unwrap();
        heard
    });
    (address, heard)
}

#[test]
fn what_was_overheard_and_is_said_again_has_no_effect() {
    let keys = Keys::new();
    let (near, _) = keys.start("near", &[("a", 1)]);
    let (far, theirs) = keys.start("far", &[("b", 2), ("a", 1)]);
    let to = ([127, 0, 0, 1], far.identity().control.port).into();
    let (between, heard) = overhear(to);
    wait(near.notify(&between.to_string(), "once")).unwrap();
    let heard = heard.join().unwrap();
    assert!(heard.starts_with(GREETING) && heard.len() > GREETING.len() + 48);
    let text = b"once";
    assert!(!heard.windows(text.len()).any(|window| window == text), "it was clear text");
    // The answer to the first message is public; behind it nothing opens.
    let again = Raw::to(to).send(&heard).shutdown_write_if_open().receive();
    assert_eq!(again.len(), 48);
    assert_eq!(theirs.notes.lock().unwrap().len(), 1);
}

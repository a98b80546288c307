//! How many control connections an engine serves a second, each with its handshake, one question
//! and its answer: plain, by keys and by certificates, while one client says nothing and another
//! drips. Both ends are in this process and share its CPUs.
//!
//! `cargo bench --bench handshakes --features tls`

#[cfg(feature = "tls")]
#[expect(dead_code, reason = "tests use more of it")]
#[path = "../tests/auth/authority.rs"]
mod authority;

use std::io::Write;
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use futures_lite::future::block_on;
use kvrail::{Authentication, Engine, Protocol};

/// Callers at a time: enough to keep both ends busy.
const CALLERS: usize = 16;

/// Long enough for a rate that holds to a few percent.
const SECONDS: u64 = 3;

/// Between two bytes of the client that drips.
const DRIP: Duration = Duration::from_millis(200);

fn main() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut rows = vec![("plain", [Authentication::Off, Authentication::Off])];
    rows.push(("keys", keys(folder.path())));
    #[cfg(feature = "tls")]
    let authority = authority::Authority::new();
    #[cfg(feature = "tls")]
    rows.push(("mutual TLS 1.3", ["near", "far"].map(|name| tls(&authority, name))));
    println!("{:<16}{:>14}{:>10}", "channel", "handshakes/s", "failed");
    for (name, [near, far]) in rows {
        let (rate, failed) = measure(near, far);
        println!("{name:<16}{rate:>14.0}{failed:>10}");
        assert_eq!(failed, 0, "no silent client keeps anybody out");
    }
}

/// Files of keys for two engines that know each other.
fn keys(folder: &std::path::Path) -> [Authentication; 2] {
    let key = |name: &str, byte: u8| format!("{name} = {}\n", format!("{byte:02x}").repeat(32));
    [[("near", 1), ("far", 2)], [("far", 2), ("near", 1)]].map(|file| {
        let path = folder.join(file[0].0);
        let text: String = file.iter().map(|(name, byte)| key(name, *byte)).collect();
        std::fs::write(&path, text).expect("a file");
        Authentication::Keys(path)
    })
}

#[cfg(feature = "tls")]
fn tls(authority: &authority::Authority, name: &str) -> Authentication {
    let authority::Files { certificate, key, authorities } = authority.issue(name);
    let names = kvrail::PeerNames::Opened;
    Authentication::Tls(kvrail::TlsFiles { certificate, key, authorities, names })
}

fn engine(authentication: Authentication) -> Engine {
    let builder = Engine::builder().protocol(Protocol::Tcp).same_host(false);
    builder.authentication(authentication).start().expect("an engine")
}

/// Handshakes a second, and how many failed.
fn measure(near: Authentication, far: Authentication) -> (f64, u64) {
    let (near, far) = (engine(near), engine(far));
    let peer = block_on(near.open(far.name())).expect("the other one");
    let (is_over, done, failed) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    thread::scope(|scope| {
        scope.spawn(|| be_silent(far.name(), &is_over));
        scope.spawn(|| drip(far.name(), &is_over));
        for _ in 0..CALLERS {
            scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    let count = if block_on(near.probe(&peer)).is_ok() { &done } else { &failed };
                    count.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        thread::sleep(Duration::from_secs(1));
        let (before, since) = (done.load(Ordering::Relaxed), Instant::now());
        thread::sleep(Duration::from_secs(SECONDS));
        let rate = (done.load(Ordering::Relaxed) - before) as f64 / since.elapsed().as_secs_f64();
        is_over.store(true, Ordering::Relaxed);
        (rate, failed.load(Ordering::Relaxed))
    })
}

/// Holds a connection on which nothing is said.
fn be_silent(name: &str, is_over: &AtomicBool) {
    let _held = TcpStream::connect(name).expect("a connection");
    while !is_over.load(Ordering::Relaxed) {
        thread::sleep(DRIP);
    }
}

/// Says a byte now and then, and comes back when it was hung up on.
fn drip(name: &str, is_over: &AtomicBool) {
    let mut stream = TcpStream::connect(name).expect("a connection");
    while !is_over.load(Ordering::Relaxed) {
        if stream.write_all(&[0x16]).is_err() {
            stream = TcpStream::connect(name).expect("a connection");
        }
        thread::sleep(DRIP);
    }
}

//! A network that misbehaves: every connection to an agent goes through a relay, which resets
//! it, holds it up, or breaks it on one side only and delivers late what it had taken.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use nix::sys::socket::{setsockopt, sockopt};

use super::lock;

/// How often a connection looks what shall become of it.
const LOOK: Duration = Duration::from_millis(10);
/// Bytes that one read takes.
const CHUNK_BYTES: usize = 256 << 10;
/// Bytes that a broken connection still delivers: about what sockets hold.
const LATE_MAX_BYTES: usize = 8 << 20;

/// What shall become of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    Flow,
    /// Nothing moves until then.
    Hold(Instant),
    Reset,
    /// The client sees a reset now; what it had sent arrives only then.
    Orphan(Instant),
}

/// Stands before one agent, at the address that this one publishes.
pub struct Relay {
    connections: Arc<Mutex<Vec<Weak<Connection>>>>,
    is_over: Arc<AtomicBool>,
}

struct Connection {
    fate: Mutex<Fate>,
}

impl Relay {
    /// Relays `host:port` to the same port of the loopback address, for each port.
    pub fn start(host: IpAddr, ports: &[u16]) -> Result<Self, String> {
        let relay = Self { connections: Arc::default(), is_over: Arc::default() };
        for &port in ports {
            let at = SocketAddr::new(host, port);
            let listener = TcpListener::bind(at).map_err(|error| format!("{at}: {error}"))?;
            listener.set_nonblocking(true).map_err(|error| format!("{at}: {error}"))?;
            let (connections, is_over) = (relay.connections.clone(), relay.is_over.clone());
            std::thread::spawn(move || accept(&listener, port, &connections, &is_over));
        }
        Ok(relay)
    }

    /// Decides on all connections, or on one of them.
    pub fn decide(&self, fate: Fate, which: Option<usize>) -> usize {
        let connections = lock(&self.connections);
        let alive: Vec<_> = connections.iter().filter_map(Weak::upgrade).collect();
        let chosen: Vec<_> = match which {
            _ if alive.is_empty() => Vec::new(),
            Some(which) => vec![&alive[which % alive.len()]],
            None => alive.iter().collect(),
        };
        chosen.iter().for_each(|connection| *lock(&connection.fate) = fate);
        chosen.len()
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
    }
}

fn accept(
    listener: &TcpListener,
    port: u16,
    connections: &Mutex<Vec<Weak<Connection>>>,
    is_over: &AtomicBool,
) {
    while !is_over.load(Ordering::Relaxed) {
        let Ok((client, _)) = listener.accept() else {
            std::thread::sleep(LOOK / 5);
            continue;
        };
        // An agent that is gone: the client sees its connection close.
        let Ok(server) = TcpStream::connect(("127.0.0.1", port)) else { continue };
        let connection = Arc::new(Connection { fate: Mutex::new(Fate::Flow) });
        let mut all = lock(connections);
        all.retain(|connection| connection.strong_count() > 0);
        all.push(Arc::downgrade(&connection));
        drop(all);
        let [client, server] = [client, server].map(Arc::new);
        let pair = (client.clone(), server.clone());
        if [&client, &server].into_iter().all(|stream| prepare(stream).is_ok()) {
            let other = connection.clone();
            std::thread::spawn(move || upstream(client, server, &other));
            std::thread::spawn(move || downstream(&pair.1, &pair.0, &connection));
        }
    }
}

/// Reads and writes come back soon, so that its fate is noticed; closing it resets it if need be.
fn prepare(stream: &TcpStream) -> std::io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(LOOK))?;
    stream.set_write_timeout(Some(LOOK))
}

/// Closing it sends a reset from here on.
fn reset(stream: &TcpStream) {
    let linger = nix::libc::linger { l_onoff: 1, l_linger: 0 };
    // It may be gone already.
    let _ = setsockopt(stream, sockopt::Linger, &linger);
}

fn upstream(client: Arc<TcpStream>, server: Arc<TcpStream>, connection: &Connection) {
    match pump(&client, &server, connection) {
        Fate::Orphan(until) => {
            let late = drain(&client);
            reset(&client);
            drop(client);
            std::thread::sleep(until.saturating_duration_since(Instant::now()));
            let _ = server.set_write_timeout(Some(Duration::from_secs(1)));
            let _ = (&*server).write_all(&late);
        }
        Fate::Reset => [&client, &server].into_iter().for_each(|stream| reset(stream)),
        Fate::Flow | Fate::Hold(_) => {}
    }
}

fn downstream(server: &TcpStream, client: &TcpStream, connection: &Connection) {
    match pump(server, client, connection) {
        Fate::Orphan(_) => reset(client),
        Fate::Reset => [client, server].into_iter().for_each(reset),
        Fate::Flow | Fate::Hold(_) => {}
    }
}

/// Carries bytes until the source ends or its fate takes another turn, which it answers.
fn pump(from: &TcpStream, to: &TcpStream, connection: &Connection) -> Fate {
    let mut bytes = vec![0; CHUNK_BYTES];
    loop {
        match go_on(connection) {
            Fate::Flow => {}
            end => return end,
        }
        match (&*from).read(&mut bytes) {
            Ok(0) => {
                let _ = to.shutdown(std::net::Shutdown::Write);
                return Fate::Flow;
            }
            Ok(len) => match carry(&bytes[..len], to, connection) {
                Fate::Flow => {}
                end => return end,
            },
            Err(error) if is_early(&error) => {}
            Err(_) => return broken(connection),
        }
    }
}

fn carry(mut bytes: &[u8], mut to: &TcpStream, connection: &Connection) -> Fate {
    while !bytes.is_empty() {
        match go_on(connection) {
            // What was taken is late, not lost.
            Fate::Orphan(_) | Fate::Flow => {}
            end => return end,
        }
        match to.write(bytes) {
            Ok(len) => bytes = &bytes[len..],
            Err(error) if is_early(&error) => {}
            Err(_) => return broken(connection),
        }
    }
    Fate::Flow
}

/// A side that broke breaks the other.
fn broken(connection: &Connection) -> Fate {
    *lock(&connection.fate) = Fate::Reset;
    Fate::Reset
}

/// Waits while it is held up.
fn go_on(connection: &Connection) -> Fate {
    loop {
        let fate = *lock(&connection.fate);
        match fate {
            Fate::Hold(until) if Instant::now() < until => std::thread::sleep(LOOK),
            Fate::Hold(_) => return Fate::Flow,
            fate => return fate,
        }
    }
}

/// What a client had sent and nobody has read.
fn drain(mut client: &TcpStream) -> Vec<u8> {
    let (mut late, mut bytes) = (Vec::new(), vec![0; CHUNK_BYTES]);
    while late.len() < LATE_MAX_BYTES {
        match client.read(&mut bytes) {
            Ok(len) if len > 0 => late.extend(&bytes[..len]),
            _ => break,
        }
    }
    late
}

fn is_early(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{Interrupted, TimedOut, WouldBlock};
    matches!(error.kind(), WouldBlock | TimedOut | Interrupted)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server behind a relay, and a client before it.
    fn world() -> (Relay, TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let host: IpAddr = [127, 0, 0, 99].into();
        let relay = Relay::start(host, &[port]).unwrap();
        let client = TcpStream::connect((host, port)).unwrap();
        let server = listener.accept().unwrap().0;
        (relay, client, server)
    }

    fn read(mut from: &TcpStream, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        from.read_exact(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn bytes_go_both_ways_and_a_reset_reaches_both() {
        let (relay, mut client, mut server) = world();
        client.write_all(b"ask").unwrap();
        assert_eq!(read(&server, 3), b"ask");
        server.write_all(b"answer").unwrap();
        assert_eq!(read(&client, 6), b"answer");
        assert_eq!(relay.decide(Fate::Reset, Some(5)), 1);
        for mut side in [client, server] {
            let error = side.read(&mut [0]).unwrap_err();
            assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
        }
        // The connection is gone for the relay, too.
        while relay.decide(Fate::Reset, None) > 0 {
            std::thread::sleep(LOOK);
        }
    }

    #[test]
    fn what_a_broken_connection_had_taken_arrives_late() {
        let (relay, mut client, server) = world();
        client.write_all(b"one").unwrap();
        assert_eq!(read(&server, 3), b"one");
        let start = Instant::now();
        relay.decide(Fate::Hold(start + Duration::from_secs(60)), None);
        // Whoever was reading when it was told has stopped by now.
        std::thread::sleep(3 * LOOK);
        client.write_all(b"two").unwrap();
        relay.decide(Fate::Orphan(Instant::now() + 5 * LOOK), None);
        assert!(client.read(&mut [0]).is_err(), "the client sees a reset");
        assert_eq!(read(&server, 3), b"two");
        assert_eq!((&server).read(&mut [0]).unwrap(), 0);
    }
}

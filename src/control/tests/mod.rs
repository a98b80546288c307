//! Whole control planes, against raw sockets and against each other.

pub(super) mod authentication;
mod daemon;
mod descriptor;
mod handshake;
mod hostile;
mod hostile_http;
mod letters;
mod peers;
mod rdma_descriptor;
mod registry;
mod strangers;
mod wire;

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::*;

/// An engine's stand-in: fixed memory, a bounded queue, and a list of data connections.
pub(super) struct Engine {
    identity: Identity,
    pub buffers: Mutex<Vec<Buffer>>,
    pub notes: Mutex<Vec<(String, Vec<u8>)>>,
    pub room: usize,
    pub streams: Mutex<Vec<TcpStream>>,
    has_refused: AtomicBool,
    pub letters: Mutex<Vec<Letter>>,
    /// Who wrote them, or asked for a descriptor.
    pub peers: Mutex<Vec<PeerId>>,
    /// Who came as a guest.
    pub guests: Mutex<Vec<(PeerId, Guest)>>,
    /// Which processes it was to leave.
    pub left: Mutex<Vec<u64>>,
    /// What `descriptor` does instead of answering.
    pub panics: bool,
    /// Its RDMA devices, and whether it has nothing else.
    pub rdma: Option<Vec<super::descriptor::OwnDevice>>,
    /// Whether a policy leaves nobody anything.
    pub serves_nobody: bool,
    /// How it answers handshakes, if it has RDMA.
    pub shakes: Option<fn(Handshake) -> Answering>,
}

impl Host for Engine {
    fn descriptor(&self) -> Descriptor {
        assert!(!self.panics, "this host panics on purpose");
        let buffers = self.buffers.lock().unwrap().clone();
        if let Some(devices) = &self.rdma {
            let descriptor = self.identity.descriptor(buffers, None);
            return descriptor.offering(super::descriptor::Offer::new(devices, ["cpu:0"]));
        }
        let extras = Extras { version: 1, incarnation: 7, sockets: Vec::new(), kept: None };
        self.identity.descriptor(buffers, Some(extras))
    }

    fn descriptor_for(&self, peer: &PeerId) -> Descriptor {
        self.peers.lock().unwrap().push(peer.clone());
        self.descriptor()
    }

    fn notified(&self, name: String, message: Vec<u8>) -> Result<()> {
        let mut notes = self.notes.lock().unwrap();
        if notes.len() == self.room {
            return Err(Error::busy("no room for notifications"));
        }
        notes.push((name, message));
        Ok(())
    }

    fn letter(&self, peer: &PeerId, letter: Letter) {
        self.peers.lock().unwrap().push(peer.clone());
        self.letters.lock().unwrap().push(letter);
    }

    fn serves(&self, _peer: &PeerId) -> bool {
        !self.serves_nobody
    }

    fn arrived(&self, peer: &PeerId, guest: Guest) -> bool {
        self.guests.lock().unwrap().push((peer.clone(), guest));
        false
    }

    fn leave(&self, incarnation: u64) -> Ending {
        self.left.lock().unwrap().push(incarnation);
        Box::pin(std::future::ready(()))
    }

    fn end_lane(&self, _peer: &PeerId, _lane: LaneName) -> Ending {
        Box::pin(std::future::ready(()))
    }

    fn handshake(&self, request: Handshake) -> Answering {
        match self.shakes {
            Some(answer) => answer(request),
            None => Box::pin(std::future::ready(Handshake::default())),
        }
    }

    fn accepted(&self, stream: TcpStream) -> std::result::Result<(), TcpStream> {
        // The first offer finds no room.
        if !self.has_refused.swap(true, Ordering::Relaxed) {
            return Err(stream);
        }
        self.streams.lock().unwrap().push(stream);
        Ok(())
    }
}

pub(super) fn buffer(addr: u64, length: u64) -> Buffer {
    Buffer { addr, length, name: "cpu:0".to_owned(), ..Buffer::default() }
}

pub(super) fn config(host: &str) -> ControlConfig {
    ControlConfig::new(host, MetadataKind::P2p)
}

/// A control plane and the engine's stand-in behind it.
pub(super) fn start(config: ControlConfig) -> (Control, Arc<Engine>) {
    start_with(config, |_| ())
}

pub(super) fn start_with(
    config: ControlConfig,
    adjust: impl FnOnce(&mut Engine) + Send + 'static,
) -> (Control, Arc<Engine>) {
    let (send, receive) = std::sync::mpsc::channel();
    let control = Control::start(config, move |identity| {
        let mut engine = Engine {
            identity: identity.clone(),
            buffers: Mutex::new(vec![buffer(0x1000, 0x1000), buffer(0x8000, 0x2000)]),
            serves_nobody: false,
            notes: Mutex::default(),
            room: 4,
            streams: Mutex::default(),
            has_refused: AtomicBool::new(false),
            letters: Mutex::default(),
            peers: Mutex::default(),
            guests: Mutex::default(),
            left: Mutex::default(),
            panics: false,
            rdma: None,
            shakes: None,
        };
        adjust(&mut engine);
        let engine = Arc::new(engine);
        send.send(Arc::clone(&engine)).unwrap();
        engine
    })
    .unwrap();
    (control, receive.recv().unwrap())
}

/// Waits on any thread, with no executor: what the control plane promises.
pub(super) fn wait<T>(future: impl Future<Output = T>) -> T {
    futures_lite::future::block_on(future)
}

/// A client that knows nothing but bytes. Reads give up after a time far beyond any bound under
/// test, so that a failing test ends.
pub(super) struct Raw(pub TcpStream);

impl Raw {
    pub fn connect(control: &Control) -> Self {
        Self::to(([127, 0, 0, 1], control.identity().control.port).into())
    }

    pub fn to(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream.set_write_timeout(Some(Duration::from_secs(20))).unwrap();
        Self(stream)
    }

    pub fn send(mut self, bytes: &[u8]) -> Self {
        self.0.write_all(bytes).unwrap();
        self
    }

    /// All bytes until the daemon closes; a reset ends them too.
    pub fn receive(mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        match self.0.read_to_end(&mut bytes) {
            Ok(_) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => bytes,
            Err(error) => panic!("the daemon neither answered nor closed: {error}"),
        }
    }

    /// Sends until the daemon closes.
    pub fn send_what_it_takes(mut self, bytes: &[u8]) -> Self {
        // Losing the connection is what the tests that call this provoke.
        let _ = self.0.write_all(bytes);
        self
    }

    /// Ends our side, if the daemon has not ended both.
    pub fn shutdown_write_if_open(self) -> Self {
        let _ = self.0.shutdown(Shutdown::Write);
        self
    }
}

/// A frame written by hand.
pub(super) fn frame(payload: &[u8]) -> Vec<u8> {
    [&(payload.len() as u64).to_le_bytes(), payload].concat()
}

/// A good client's question and its answer.
pub(super) fn probe_raw(control: &Control) -> Vec<u8> {
    Raw::connect(control).send(&frame(b"\x03{}")).receive()
}

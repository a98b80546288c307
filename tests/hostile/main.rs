//! A whole engine against peers that lie, stall, flood and vanish, over real sockets. After each
//! of them a good peer is served as before.

mod clients;
mod servers;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use kvrail::{Access, Batch, Engine, EngineBuilder, Lease, Location, Peer, Region};

/// No case lasts longer: half of the engine's own patience with silent peers.
pub(crate) const LIMIT: Duration = Duration::from_secs(15);

/// Of an impatient victim: short for a test, long for a good client on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_millis(1_500);

pub(crate) const READ: u8 = 0;
pub(crate) const WRITE: u8 = 1;
pub(crate) const EVENT: u8 = 0x40;
pub(crate) const V2: u8 = 0x80;

pub(crate) const OK: [u8; 8] = [0, 0, 0, 0, 0x56, 0x54, 0x43, 0x4d];
pub(crate) const REFUSED: [u8; 8] = [1, 0, 0, 0, 0x56, 0x54, 0x43, 0x4d];
pub(crate) const BUSY: [u8; 8] = [2, 0, 0, 0, 0x56, 0x54, 0x43, 0x4d];

pub(crate) fn header(opcode: u8, addr: u64, len: u64) -> Vec<u8> {
    let mut bytes = [len.to_le_bytes(), addr.to_le_bytes(), [0; 8]].concat();
    bytes[16] = opcode;
    bytes
}

/// An engine under attack, and a good client of it.
pub(crate) struct Victim {
    pub(crate) engine: Engine,
    /// What hostile peers may read and write.
    pub(crate) region: Region,
    data: (String, u16),
    good: Engine,
    peer: Peer,
    /// What the good client uses.
    own: Region,
}

impl Victim {
    pub(crate) async fn new() -> Self {
        Self::start(Engine::builder()).await
    }

    /// One that loses patience with stalled peers within the test.
    pub(crate) async fn impatient() -> Self {
        Self::start(Engine::builder().progress_deadline(PATIENCE)).await
    }

    async fn start(builder: EngineBuilder) -> Self {
        let engine = builder.start().expect("an engine");
        let good = Engine::builder().start().expect("an engine");
        let peer = good.open(engine.name()).await.expect("the engine");
        let region = region(&engine, 32 << 20, Access::READ_WRITE);
        let own = crate::region(&engine, 1 << 20, Access::READ_WRITE);
        let data = data_port(engine.name());
        Self { engine, region, data, good, peer, own }
    }

    /// A data connection of a stranger.
    pub(crate) fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect((self.data.0.as_str(), self.data.1)).expect("accepted");
        stream.set_read_timeout(Some(LIMIT)).expect("a socket");
        stream.set_write_timeout(Some(LIMIT)).expect("a socket");
        stream
    }

    /// A connection on which these bytes were sent, as far as they are taken.
    pub(crate) fn send(&self, bytes: &[u8]) -> TcpStream {
        let mut stream = self.connect();
        // A server may close before it has read everything.
        let _ = stream.write_all(bytes);
        stream
    }

    /// The good client writes and reads back.
    pub(crate) async fn serves(&self) {
        self.tries().await.expect("the good client is served");
    }

    pub(crate) async fn tries(&self) -> Result<(), kvrail::Error> {
        let bytes = pattern(Instant::now().elapsed().as_nanos() as u64 + 7, self.own.len());
        let ours = region(&self.good, bytes.len(), Access::LOCAL);
        ours.lease(0..bytes.len())?.copy_in(0, &bytes)?;
        let mut batch = Batch::new(&self.peer);
        batch.deadline(LIMIT).write(&ours.share(0..bytes.len())?, self.own.addr());
        self.good.transfer(batch).await?;
        let target = region(&self.good, bytes.len(), Access::LOCAL);
        let mut batch = Batch::new(&self.peer);
        batch.deadline(LIMIT).read(target.lease(0..bytes.len())?, self.own.addr());
        let leases = self.good.transfer(batch).await?.into_leases();
        let lease = leases.into_iter().next().and_then(Lease::into_exclusive).expect("a lease");
        let mut got = vec![0; bytes.len()];
        lease.copy_out(0, &mut got)?;
        assert!(got == bytes, "the good client's bytes differ");
        Ok(())
    }

    /// The good client notifies.
    pub(crate) async fn notify(&self, message: &str) -> kvrail::Result<()> {
        self.good.notify(&self.peer, message).await
    }
}

/// Asks an engine's control daemon where its data goes.
fn data_port(name: &str) -> (String, u16) {
    let mut stream = TcpStream::connect(name).expect("the control daemon");
    stream.write_all(&[&3u64.to_le_bytes()[..], b"\x01{}"].concat()).expect("sent");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).expect("an answer");
    let json: serde_json::Value = serde_json::from_slice(&answer[9..]).expect("a descriptor");
    let port = json["tcp_data_port"].as_u64().expect("a port");
    let (host, _) = name.rsplit_once(':').expect("host:port");
    (host.to_owned(), port as u16)
}

/// A peer made by hand: a control daemon that answers any request with a descriptor whose data
/// port is the returned listener.
pub(crate) fn fake_peer(version: u32) -> (String, TcpListener) {
    let listener = || TcpListener::bind("127.0.0.1:0").expect("a port");
    let (control, data) = (listener(), listener());
    let (name, port) = (control.local_addr().unwrap(), data.local_addr().unwrap().port());
    let descriptor = format!(
        r#"{{"buffers":[],"name":"{name}","protocol":"tcp",
            "tcp_data_port":{port},"tcp_proto_version":{version}}}"#
    );
    std::thread::spawn(move || {
        for stream in control.incoming().flatten() {
            introduce(stream, &descriptor);
        }
    });
    (name.to_string(), data)
}

fn introduce(mut stream: TcpStream, descriptor: &str) {
    let mut header = [0; 9];
    stream.read_exact(&mut header).unwrap();
    let len = u64::from_le_bytes(header[..8].try_into().unwrap()) as usize - 1;
    stream.read_exact(&mut vec![0; len]).unwrap();
    stream.write_all(&(descriptor.len() as u64 + 1).to_le_bytes()).unwrap();
    stream.write_all(&[header[8]]).unwrap();
    stream.write_all(descriptor.as_bytes()).unwrap();
}

pub(crate) fn region(engine: &Engine, len: usize, access: Access) -> Region {
    engine.allocate(len, Location::Cpu(None), access).expect("a region")
}

/// Bytes that differ from place to place and from seed to seed.
pub(crate) fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    std::iter::repeat_with(|| {
        // xorshift64 (Marsaglia, 2003).
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    })
    .take(len)
    .collect()
}

pub(crate) fn contents(region: &Region, range: std::ops::Range<usize>) -> Vec<u8> {
    let mut bytes = vec![0; range.len()];
    region.share(range).expect("a lease").copy_out(0, &mut bytes).expect("room");
    bytes
}

/// Everything until the connection ends; whether it ends well or by a reset does not matter.
pub(crate) fn rest(mut stream: &TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut piece = [0; 65_536];
    loop {
        match stream.read(&mut piece) {
            Ok(0) => return bytes,
            Ok(count) => bytes.extend(&piece[..count]),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                panic!("the connection stays open after {} bytes", bytes.len())
            }
            Err(_) => return bytes,
        }
    }
}

pub(crate) fn eventually(what: &str, is_so: impl Fn() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < LIMIT, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Runs a case to its end, and fails it rather than hang.
pub(crate) fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("tokio");
    let limit = 4 * LIMIT;
    runtime.block_on(async { tokio::time::timeout(limit, test).await.expect("the test hangs") });
}

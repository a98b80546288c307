//! Whole engines on real verbs: soft-RoCE NICs rxe0 to rxe3 on one switch, which
//! `cargo xtask vm --nics 4` has. A plain `cargo test` lists these as ignored;
//! `cargo xtask test --only rdma` boots the guest and runs them.

mod draining;
mod failing;
mod fences;
mod keys;
mod rails;
mod transfers;

use std::future::Future;
use std::process::Command;
use std::time::{Duration, Instant};

use kvrail::runtime::Shards;
use kvrail::{
    Access, Batch, Engine, EngineBuilder, Failed, Location, Outcome, PathKind, Peer, Protocol,
    Region,
};

/// Two of the guest's NICs for each side.
const OURS: [&str; 2] = ["rxe0", "rxe1"];
const THEIRS: [&str; 2] = ["rxe2", "rxe3"];

/// Whatever happens is over by then: soft-RoCE gives a peer up after seconds, a rail rests for
/// some, and a peer is lost after ten.
const PATIENCE: Duration = Duration::from_secs(60);

const MIB: usize = 1 << 20;

/// An engine whose control plane is on the loopback interface, which no test cuts.
fn engine(devices: &[&str]) -> Engine {
    // RUST_LOG=kvrail=trace shows what the shards do.
    let filter = tracing_subscriber::EnvFilter::from_default_env();
    let _ = tracing_subscriber::fmt().with_env_filter(filter).with_test_writer().try_init();
    builder(devices).start().unwrap()
}

fn builder(devices: &[&str]) -> EngineBuilder {
    Engine::builder()
        .host("127.0.0.1")
        .protocol(Protocol::Rdma)
        .devices(devices.iter().copied())
        .same_host(false)
        .shards(Shards::Count(1))
}

/// Two engines in one process, which only their NICs connect.
struct Pair {
    a: Engine,
    b: Engine,
    near: Region,
    far: Region,
    peer: Peer,
}

impl Pair {
    fn new(rails: usize, bytes: usize) -> Self {
        let (a, b) = (engine(&OURS[..rails]), engine(&THEIRS[..rails]));
        let near = a.allocate(bytes, Location::Cpu(None), Access::READ_WRITE).unwrap();
        let far = b.allocate(bytes, Location::Cpu(None), Access::READ_WRITE).unwrap();
        let peer = run(a.open(b.name())).unwrap();
        assert_eq!(peer.path(), PathKind::Rdma);
        Self { a, b, near, far, peer }
    }

    /// A batch that writes `len` bytes at `at` to the same place over there.
    fn writing(&self, at: usize, len: usize) -> Batch {
        let mut batch = Batch::new(&self.peer);
        batch.write(&self.near.share(at..at + len).unwrap(), self.far.addr() + at as u64);
        batch
    }

    /// A batch that reads them.
    fn reading(&self, at: usize, len: usize) -> Batch {
        let mut batch = Batch::new(&self.peer);
        batch.read(self.near.lease(at..at + len).unwrap(), self.far.addr() + at as u64);
        batch
    }

    fn transfer(&self, batch: Batch) -> Result<Outcome, Failed> {
        run(self.a.transfer(batch))
    }

    fn stop(self) {
        drop((self.near, self.far, self.peer));
        run(self.a.stop());
        run(self.b.stop());
    }
}

/// Waits for a future; one that takes longer than anything may hangs.
fn run<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let ended = runtime.block_on(async { tokio::time::timeout(PATIENCE, future).await });
    ended.expect("it hangs")
}

/// A byte that tells its place and its round.
fn pattern(at: usize, round: usize) -> u8 {
    (at ^ (at >> 8) ^ (at >> 16)).wrapping_mul(31).wrapping_add(round * 37) as u8
}

fn fill(region: &Region, round: usize) {
    let bytes: Vec<u8> = (0..region.len()).map(|at| pattern(at, round)).collect();
    region.lease(0..region.len()).unwrap().copy_in(0, &bytes).unwrap();
}

fn bytes(region: &Region) -> Vec<u8> {
    let mut bytes = vec![0; region.len()];
    region.share(0..region.len()).unwrap().copy_out(0, &mut bytes).unwrap();
    bytes
}

/// The first byte of a range that isn't of this round.
fn first_wrong(region: &Region, range: std::ops::Range<usize>, round: usize) -> Option<usize> {
    let bytes = bytes(region);
    range.into_iter().find(|&at| bytes[at] != pattern(at, round))
}

/// Runs a command of the guest's.
fn sh(command: &str) {
    let status = Command::new("sh").arg("-c").arg(command).status().unwrap();
    assert!(status.success(), "{command}");
}

/// Packets that a device has sent.
fn sent(device: &str) -> u64 {
    let counter = format!("/sys/class/infiniband/{device}/ports/1/hw_counters/sent_pkts");
    std::fs::read_to_string(counter).unwrap().trim().parse().unwrap()
}

/// Takes the wire of the NIC below `rxeN` off the switch until it is dropped.
struct Cut(usize);

impl Cut {
    fn new(nic: usize) -> Self {
        sh(&format!("ip link set p{nic} nomaster"));
        Self(nic)
    }
}

impl Drop for Cut {
    fn drop(&mut self) {
        sh(&format!("ip link set p{} master sw0", self.0));
    }
}

/// Does something after a while, beside what the caller does; what it returns is held until the
/// returned handle is joined.
fn later<T: Send + 'static>(
    after: Duration,
    what: impl FnOnce() -> T + Send + 'static,
) -> std::thread::JoinHandle<T> {
    std::thread::spawn(move || {
        std::thread::sleep(after);
        what()
    })
}

/// Tries until it is so.
fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let since = Instant::now();
    while !is_so() {
        assert!(since.elapsed() < PATIENCE, "{what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

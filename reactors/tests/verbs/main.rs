//! The real provider against soft-RoCE: two NICs of one guest, rxe0 and rxe1, which
//! `cargo xtask vm --nics 2` has. A plain `cargo test` lists these as ignored.
#![cfg(feature = "rdma")]

mod cost;
mod devices;
mod fences;
mod memory;
mod refusals;
mod transfers;

use std::sync::Arc;
use std::time::{Duration, Instant};

use kvrail_reactors::Reactor;
use kvrail_reactors::region::{Region, Slice};
use kvrail_reactors::verbs::{
    Adapter, Completed, Completion, Depths, Nic, Operation, Post, QpAddress, Registration,
    RemoteAccess, RemoteKey, Status, Way, WorkRequest,
};

const LEN: usize = 256 << 10;
const DEPTHS: Depths = Depths { work_requests: 128, completions: 1024, receives: 64 };
const BOTH: RemoteAccess = RemoteAccess { read: true, write: true };

/// IPv4-mapped, RoCEv2: what the guest's devices have there.
const GID: u8 = 1;

/// Soft-RoCE gives a peer up after some seconds.
const PATIENCE: Duration = Duration::from_secs(20);

/// One side: a NIC with one region.
struct Side {
    adapter: Arc<Adapter>,
    nic: Nic,
    region: Arc<Region>,
    registration: Arc<Registration>,
    qp: QpAddress,
}

impl Side {
    fn new(device: &str) -> Self {
        let adapter = Adapter::open(device).unwrap();
        let mut nic = Nic::new(adapter.clone(), DEPTHS).unwrap();
        let region = Arc::new(Region::allocate(LEN, None).unwrap());
        let registration = adapter.register(&region, BOTH).unwrap();
        let qp = nic.create_qp().unwrap();
        Self { adapter, nic, region, registration, qp }
    }

    fn connect(&mut self, peer: QpAddress, device: &Adapter) {
        let port = self.adapter.device().port().unwrap();
        let way = Way::roce(&port, GID, device.device().gid(GID).unwrap());
        self.nic.connect(self.qp.number, peer, &way).unwrap();
    }

    fn key(&self) -> RemoteKey {
        self.registration.keys().next().unwrap().2
    }

    fn fill(&self, byte: u8) {
        self.slice(0, LEN).write(0, &vec![byte; LEN]).unwrap();
    }

    fn slice(&self, offset: usize, len: usize) -> Slice {
        Slice::new(self.region.clone(), offset, len).unwrap()
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; LEN];
        self.slice(0, LEN).read(0, &mut bytes).unwrap();
        bytes
    }

    fn post(&mut self, requests: Vec<WorkRequest>) {
        self.nic.submit(Post { qp: self.qp.number, requests }).unwrap();
    }

    /// Waits for so many completions.
    fn take(&mut self, count: usize) -> Vec<Completion> {
        let (since, mut done) = (Instant::now(), Vec::new());
        while done.len() < count {
            self.nic.poll(count - done.len(), &mut done);
            assert!(since.elapsed() < PATIENCE, "{} of {count} completions came", done.len());
        }
        done
    }

    fn ends(&mut self, count: usize) -> Vec<(u64, Status)> {
        let end = |completion: Completion| match completion.what {
            Completed::Sent(status) => (completion.id, status),
            Completed::Received(word) => panic!("a word came: {word}"),
        };
        self.take(count).into_iter().map(end).collect()
    }
}

/// Two sides that are connected.
fn pair() -> (Side, Side) {
    let (mut a, mut b) = (Side::new("rxe0"), Side::new("rxe1"));
    let (to_b, to_a) = (b.qp, a.qp);
    a.connect(to_b, &b.adapter.clone());
    b.connect(to_a, &a.adapter.clone());
    a.fill(1);
    b.fill(2);
    (a, b)
}

/// The same bytes of both regions, all of them.
fn request(id: u64, operation: Operation, a: &Side, b: &Side) -> WorkRequest {
    WorkRequest {
        id,
        operation,
        local: Some(a.slice(0, LEN)),
        remote_addr: b.region.addr(),
        key: b.key(),
        is_signalled: true,
    }
}

/// New queue pairs in the place of those that are in error.
fn reconnect(a: &mut Side, b: &mut Side) {
    for side in [&mut *a, &mut *b] {
        side.nic.destroy(side.qp.number);
        side.qp = side.nic.create_qp().unwrap();
    }
    let (to_b, to_a) = (b.qp, a.qp);
    a.connect(to_b, &b.adapter.clone());
    b.connect(to_a, &a.adapter.clone());
}

fn way(from: &Side, to: &Side) -> Way {
    let port = from.adapter.device().port().unwrap();
    Way::roce(&port, GID, to.adapter.device().gid(GID).unwrap())
}

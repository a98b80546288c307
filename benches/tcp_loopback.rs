//! How near do two engines on loopback come to bare sockets? Writes of one block, each waited for,
//! between two engines that may use nothing but TCP; the limit beside them is a blocking socket
//! whose other end answers with eight bytes when it has read as many.
//!
//! `cargo bench --bench tcp_loopback`

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use futures_lite::future::block_on;
use kvrail::{Access, Batch, Engine, Location, Peer, Protocol, Region};

const SIZES: [(&str, usize); 4] =
    [("4K", 4 << 10), ("64K", 64 << 10), ("1M", 1 << 20), ("16M", 16 << 20)];

const LARGEST: usize = SIZES[SIZES.len() - 1].1;

/// What a version 2 request is answered with.
const ANSWER_BYTES: usize = 8;

/// Two engines, memory of theirs, and one as the other sees it.
struct Pair {
    near: Engine,
    _far: Engine,
    source: Region,
    target: Region,
    peer: Peer,
}

impl Pair {
    fn new() -> Self {
        let [near, far] = [(); 2].map(|()| {
            let builder = Engine::builder().protocol(Protocol::Tcp).same_host(false);
            builder.start().expect("an engine")
        });
        let region = |engine: &Engine| {
            engine.allocate(LARGEST, Location::Cpu(None), Access::READ_WRITE).expect("a region")
        };
        let (source, target) = (region(&near), region(&far));
        let peer = block_on(near.open(far.name())).expect("the other one");
        Self { near, _far: far, source, target, peer }
    }

    fn batch(&self, len: usize) -> Batch {
        let mut batch = Batch::new(&self.peer);
        batch.write(&self.source.share(0..len).expect("a lease"), self.target.addr());
        batch
    }
}

/// The other end of a socket that answers every `len` bytes; it ends with the socket.
fn answering(len: usize) -> TcpStream {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let near = TcpStream::connect(listener.local_addr().expect("its address")).expect("it listens");
    let (mut far, _) = listener.accept().expect("a connection");
    [&near, &far].iter().for_each(|end| end.set_nodelay(true).expect("an option of TCP"));
    thread::spawn(move || {
        let mut bytes = vec![0; len];
        while far.read_exact(&mut bytes).is_ok() && far.write_all(&[0; ANSWER_BYTES]).is_ok() {}
    });
    near
}

fn loopback(criterion: &mut Criterion) {
    let pair = Pair::new();
    let mut group = criterion.benchmark_group("tcp write");
    for (name, len) in SIZES {
        group.throughput(Throughput::Bytes(len as u64));
        let (mut socket, bytes) = (answering(len), vec![1; len]);
        group.bench_function(BenchmarkId::new("limit, blocking sockets", name), |bencher| {
            bencher.iter(|| {
                socket.write_all(&bytes).expect("the other end reads");
                socket.read_exact(&mut [0; ANSWER_BYTES]).expect("it answers");
            });
        });
        group.bench_function(BenchmarkId::new("engines", name), |bencher| {
            bencher.iter(|| block_on(pair.near.transfer(pair.batch(len))).expect("a transfer"));
        });
        let prepared = pair.near.prepare(pair.batch(len)).expect("a plan");
        group.bench_function(BenchmarkId::new("engines, prepared", name), |bencher| {
            bencher.iter(|| block_on(pair.near.post(&prepared)).expect("a transfer"));
        });
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(2))
        .sample_size(20);
    targets = loopback
}
criterion_main!(benches);

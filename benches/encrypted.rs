//! What it costs to have the kernel encrypt TCP: the same writes between two engines of this
//! process by connections in clear text and by encrypted ones, in turn, so that the ratio outlives
//! the drift of the machine. It takes a kernel with TLS.
//!
//! `cargo bench --bench encrypted`; where the host's kernel has none, in a guest, whose emulated
//! CPUs make the cipher dearer than it is.

use std::path::Path;
use std::time::Instant;

use futures_lite::future::block_on;
use kvrail::{Access, Authentication, Batch, Engine, Location, Peer, Protocol, Region};

const ROUNDS: usize = 9;

/// Bytes of a request, requests of a batch, and batches of a round.
const CELLS: [(usize, usize, usize); 4] =
    [(4 << 10, 1, 400), (64 << 10, 16, 64), (1 << 20, 1, 64), (1 << 20, 16, 4)];

/// Two engines, memory of theirs, and one as the other sees it.
struct Pair {
    near: Engine,
    _far: Engine,
    source: Region,
    target: Region,
    peer: Peer,
}

impl Pair {
    fn new(folder: &Path, encrypts: bool) -> Self {
        let [near, far] = [["near", "far"], ["far", "near"]].map(|names| {
            let builder = Engine::builder().protocol(Protocol::Tcp).same_host(false);
            let builder = builder.authentication(keys(folder, names)).encrypt_tcp(encrypts);
            builder.start().expect("an engine")
        });
        let region = |engine: &Engine| {
            engine.allocate(16 << 20, Location::Cpu(None), Access::READ_WRITE).expect("a region")
        };
        let (source, target) = (region(&near), region(&far));
        let peer = block_on(near.open(far.name())).expect("the other one");
        Self { near, _far: far, source, target, peer }
    }

    /// How long these batches take, in seconds.
    fn take(&self, (len, requests, batches): (usize, usize, usize)) -> f64 {
        let since = Instant::now();
        for _ in 0..batches {
            let mut batch = Batch::new(&self.peer);
            for at in (0..requests).map(|request| request * len) {
                let lease = self.source.share(at..at + len).expect("a lease");
                batch.write(&lease, self.target.addr() + at as u64);
            }
            block_on(self.near.transfer(batch)).expect("a transfer");
        }
        since.elapsed().as_secs_f64()
    }
}

/// A file of both keys, the first one's own first.
fn keys(folder: &Path, names: [&str; 2]) -> Authentication {
    let key = |name: &str| format!("{name} = {}\n", format!("{:02x}", name.len()).repeat(32));
    let path = folder.join(names[0]);
    std::fs::write(&path, names.map(key).concat()).expect("a file");
    Authentication::Keys(path)
}

fn main() {
    let folder = tempfile::tempdir().expect("a folder");
    let [plain, encrypted] = [false, true].map(|encrypts| Pair::new(folder.path(), encrypts));
    let heads = ["write", "clear MB/s", "encrypted MB/s", "clear / encrypted"];
    println!("{:<12}{:>22}{:>22}{:>24}", heads[0], heads[1], heads[2], heads[3]);
    for cell in CELLS {
        let (len, requests, batches) = cell;
        let megabytes = (len * requests * batches) as f64 / 1e6;
        // The first round makes the connections.
        let rounds = (0..=ROUNDS).map(|_| (plain.take(cell), encrypted.take(cell))).skip(1);
        let rounds: Vec<_> = rounds.collect();
        let clear = spread(rounds.iter().map(|(clear, _)| megabytes / clear));
        let sealed = spread(rounds.iter().map(|(_, sealed)| megabytes / sealed));
        let ratio = spread(rounds.iter().map(|(clear, sealed)| sealed / clear));
        let name = format!("{}K b{requests}", len >> 10);
        println!(
            "{name:<12}{:>22}{:>22}{:>24}",
            shown(clear, 0),
            shown(sealed, 0),
            shown(ratio, 2)
        );
    }
}

/// Least, median, most.
fn spread(values: impl Iterator<Item = f64>) -> [f64; 3] {
    let mut values: Vec<_> = values.collect();
    values.sort_by(f64::total_cmp);
    [values[0], values[values.len() / 2], values[values.len() - 1]]
}

fn shown([least, median, most]: [f64; 3], digits: usize) -> String {
    format!("{median:.digits$} ({least:.digits$}-{most:.digits$})")
}

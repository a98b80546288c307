//! TCP that the kernel encrypts: what is carried is right, whoever listens hears none of it, and
//! neither side goes without where the other asks for it. Most of it takes a kernel with TLS, which
//! a guest has (`cargo xtask test --only vm`); elsewhere these are listed as ignored.

use std::num::NonZeroU32;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use kvrail::runtime::Driver;
use kvrail::{
    Access, Authentication, Batch, Engine, EngineBuilder, ErrorKind, GrantOptions, Landed,
    Location, PathKind, Peer, Peers, Policy, Proof, Region, Rule,
};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, Protocol, RecvFlags, SocketFlags, SocketType, recv, socket_with};

use crate::{Keys, Way, content, read, region, run, status, write};

const MIB: usize = 1 << 20;

/// What each side waits on.
const DRIVERS: [(Driver, Driver); 4] = [
    (Driver::Uring, Driver::Uring),
    (Driver::Epoll, Driver::Epoll),
    (Driver::Uring, Driver::Epoll),
    (Driver::Epoll, Driver::Uring),
];

/// An owner of memory, and a peer of it.
struct Pair {
    owner: Engine,
    other: Engine,
    peer: Peer,
}

impl Pair {
    async fn new(builder: impl Fn(usize, Authentication) -> EngineBuilder) -> Self {
        let keys = Keys::new();
        let owner = builder(0, keys.of(&[("decode", 2), ("prefill", 1)])).start().unwrap();
        let other = builder(1, keys.of(&[("prefill", 1), ("decode", 2)])).start().unwrap();
        let peer = other.open(owner.name()).await.unwrap();
        Self { owner, other, peer }
    }

    async fn encrypted((ours, theirs): (Driver, Driver)) -> Self {
        Self::new(|side, keys| {
            let builder = Way::Tcp.builder().authentication(keys).encrypt_tcp(true);
            builder.driver([theirs, ours][side])
        })
        .await
    }

    fn regions(&self, len: usize) -> (Region, Region) {
        let new = |engine: &Engine| engine.allocate(len, Location::Cpu(None), Access::READ_WRITE);
        (new(&self.other).unwrap(), new(&self.owner).unwrap())
    }
}

/// Bytes that tell their place and their round.
fn pattern(len: usize, round: usize) -> Vec<u8> {
    let byte = |at: usize| (at ^ (at >> 8) ^ (at >> 16)).wrapping_mul(31).wrapping_add(round * 37);
    (0..len).map(|at| byte(at) as u8).collect()
}

fn fill(region: &Region, bytes: &[u8]) {
    region.lease(0..bytes.len()).unwrap().copy_in(0, bytes).unwrap();
}

fn bytes(region: &Region, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    region.share(0..len).unwrap().copy_out(0, &mut bytes).unwrap();
    bytes
}

#[test]
#[ignore = "needs a kernel with TLS: cargo xtask test --only vm"]
fn bytes_of_all_sizes_go_both_ways_on_every_driver() {
    run(async {
        for drivers in DRIVERS {
            let pair = Pair::encrypted(drivers).await;
            assert_eq!(pair.peer.path(), PathKind::Tcp);
            let (near, far) = pair.regions(8 * MIB);
            let explained = pair.other.explain(&pair.peer, &near).await;
            let why = &explained.write_path().unwrap().why;
            assert!(why.contains("encrypted"), "{why}");
            // A byte, a record of TLS and its neighbours, a slice of ours, several slices.
            let sizes = [1, 7, 4096, 16_383, 16_384, 16_385, 65_536, MIB, MIB + 3, 5 * MIB + 11];
            for (round, len) in sizes.into_iter().enumerate() {
                let sent = pattern(len, round);
                fill(&near, &sent);
                let mut batch = Batch::new(&pair.peer);
                batch.write(&near.share(0..len).unwrap(), far.addr());
                status(pair.other.transfer(batch).await).unwrap();
                assert!(bytes(&far, len) == sent, "{drivers:?}: {len} bytes written");
                let sent = pattern(len, round + 100);
                fill(&far, &sent);
                let mut batch = Batch::new(&pair.peer);
                batch.read(near.lease(0..len).unwrap(), far.addr());
                status(pair.other.transfer(batch).await).unwrap();
                assert!(bytes(&near, len) == sent, "{drivers:?}: {len} bytes read");
            }
        }
    });
}

#[test]
#[ignore = "needs a kernel with TLS: cargo xtask test --only vm"]
fn batches_count_and_tell_behind_their_data() {
    const BLOCKS: usize = 64;
    const LEN: usize = 5_001;
    run(async {
        for drivers in DRIVERS {
            let pair = Pair::encrypted(drivers).await;
            let (near, far) = pair.regions(BLOCKS * LEN);
            let counter = pair.owner.counter(7).unwrap();
            for round in 1..=10 {
                let sent = pattern(BLOCKS * LEN, round);
                fill(&near, &sent);
                let mut batch = Batch::new(&pair.peer);
                for at in (0..BLOCKS).map(|block| block * LEN) {
                    batch.write(&near.share(at..at + LEN).unwrap(), far.addr() + at as u64);
                }
                batch.count(7, 2).notify(format!("round {round}"));
                let transfer = pair.other.transfer(batch);
                counter.reached(2 * round as u64).await;
                assert!(bytes(&far, BLOCKS * LEN) == sent, "{drivers:?}: round {round}");
                let told = pair.owner.notification().await;
                assert_eq!(told.bytes, format!("round {round}").into_bytes());
                transfer.await.unwrap();
                assert_eq!(counter.value(), 2 * round as u64);
            }
        }
    });
}

#[test]
#[ignore = "needs a kernel with TLS: cargo xtask test --only vm"]
fn grants_regions_and_transfers_end_as_they_should() {
    run(async {
        for drivers in DRIVERS {
            let pair = Pair::encrypted(drivers).await;
            let (near, far) = pair.regions(8 * MIB);
            let hidden = pair.owner.allocate(MIB, Location::Cpu(None), Access::LOCAL).unwrap();
            let options = GrantOptions::default;
            let grant = pair.owner.grant(&hidden, 0..MIB, Access::WRITE, options()).unwrap();
            let reference = grant.reference();
            fill(&near, &pattern(MIB, 1));
            let write = || {
                let mut batch = Batch::new(&pair.peer);
                batch.write_to(&near.share(0..MIB).unwrap(), &reference, 0);
                pair.other.transfer(batch)
            };
            status(write().await).unwrap();
            assert!(bytes(&hidden, MIB) == pattern(MIB, 1));
            grant.revoke().await;
            let error = status(write().await).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Stale, "{drivers:?}: {error}");
            // Cancelled wherever it is; what comes behind it on the lanes is right again.
            for round in 0..8 {
                let mut batch = Batch::new(&pair.peer);
                batch.write(&near.share(0..8 * MIB).unwrap(), far.addr());
                let transfer = pair.other.transfer(batch);
                tokio::time::sleep(Duration::from_millis(round * 5)).await;
                let outcome = transfer.cancel().await;
                assert_eq!(outcome.receipt().remote(), Proof::Quiet, "{drivers:?}");
            }
            let (addr, sent) = (far.addr(), pattern(MIB, 2));
            fill(&near, &sent);
            let mut batch = Batch::new(&pair.peer);
            batch.write(&near.share(0..MIB).unwrap(), addr);
            status(pair.other.transfer(batch).await).unwrap();
            assert!(bytes(&far, MIB) == sent, "{drivers:?}");
            pair.owner.unregister(far).await.unwrap();
            let mut batch = Batch::new(&pair.peer);
            batch.write(&near.share(0..64).unwrap(), addr);
            let error = status(pair.other.transfer(batch).await).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Refused, "{drivers:?}: {error}");
        }
    });
}

#[test]
#[ignore = "needs a kernel with TLS: cargo xtask test --only vm"]
fn what_is_taken_back_in_mid_transfer_lands_nowhere_afterwards() {
    const LEN: usize = 16 * MIB;
    run(async {
        let mut stale = 0;
        for drivers in DRIVERS {
            let pair = Pair::encrypted(drivers).await;
            let (near, far) = pair.regions(LEN);
            for round in 0..8 {
                fill(&near, &[1; LEN]);
                let options = GrantOptions::default();
                let grant = pair.owner.grant(&far, 0..LEN, Access::WRITE, options).unwrap();
                let mut batch = Batch::new(&pair.peer);
                batch.write_to(&near.share(0..LEN).unwrap(), &grant.reference(), 0);
                let writing = pair.other.transfer(batch);
                let revoking = async {
                    tokio::time::sleep(Duration::from_millis(round * 10)).await;
                    grant.revoke().await;
                    fill(&far, &[2; LEN]);
                };
                let (written, ()) = futures_lite::future::zip(writing, revoking).await;
                if let Err(error) = status(written) {
                    assert_eq!(error.kind(), ErrorKind::Stale, "{drivers:?}: {error}");
                    stale += 1;
                }
                assert!(bytes(&far, LEN) == [2; LEN], "{drivers:?}: nothing shows afterwards");
            }
        }
        assert!(stale > DRIVERS.len(), "only {stale} were taken back in time");
    });
}

/// What nobody else on the loopback interface says.
const SECRET: &[u8; 32] = b"the key and the value of a token";

/// A socket that hears every packet of every interface, and who listens to it.
struct Ear {
    is_over: Arc<AtomicBool>,
    packets: JoinHandle<Vec<Vec<u8>>>,
}

impl Ear {
    fn open() -> Self {
        // ETH_P_ALL of linux/if_ether.h, in the network's order.
        let all = NonZeroU32::new(u32::from(3u16.to_be())).map(Protocol::from_raw);
        let flags = SocketFlags::CLOEXEC;
        let socket = socket_with(AddressFamily::PACKET, SocketType::RAW, flags, all).unwrap();
        set_socket_timeout(&socket, Timeout::Recv, Some(Duration::from_millis(100))).unwrap();
        let is_over = Arc::new(AtomicBool::new(false));
        let until = is_over.clone();
        let packets = std::thread::spawn(move || listen(&socket, &until));
        Self { is_over, packets }
    }

    fn close(self) -> Vec<Vec<u8>> {
        self.is_over.store(true, Ordering::Relaxed);
        self.packets.join().unwrap()
    }
}

/// Until it is over, and silent.
fn listen(socket: &OwnedFd, is_over: &AtomicBool) -> Vec<Vec<u8>> {
    let (mut packets, mut buffer) = (Vec::new(), vec![0; 1 << 17]);
    loop {
        match recv(socket, &mut buffer[..], RecvFlags::empty()) {
            Ok((len, _)) => packets.push(buffer[..len].to_vec()),
            Err(_) if is_over.load(Ordering::Relaxed) => return packets,
            Err(_) => {}
        }
    }
}

/// What is overheard of a write, a read, a message and a grant's use: bytes, and whether the secret
/// is among them.
async fn overheard(pair: &Pair) -> (usize, bool) {
    const LEN: usize = 16 << 10;
    let (near, far) = pair.regions(LEN);
    fill(&near, &SECRET.repeat(LEN / SECRET.len()));
    let ear = Ear::open();
    let mut batch = Batch::new(&pair.peer);
    batch.write(&near.share(0..LEN).unwrap(), far.addr()).notify(SECRET.to_vec());
    status(pair.other.transfer(batch).await).unwrap();
    let mut batch = Batch::new(&pair.peer);
    batch.read(near.lease(0..LEN).unwrap(), far.addr());
    status(pair.other.transfer(batch).await).unwrap();
    assert_eq!(pair.owner.notification().await.bytes, SECRET);
    let packets = ear.close();
    let bytes = packets.iter().map(Vec::len).sum();
    // Wherever the secret's repetitions begin, half of one stands in any packet of them.
    let half = &SECRET[..SECRET.len() / 2];
    let says = |packet: &Vec<u8>| packet.windows(half.len()).any(|part| part == half);
    assert!(bytes > 2 * LEN, "both ways went by this interface: {bytes}");
    (bytes, packets.iter().any(says))
}

#[test]
#[ignore = "needs a kernel with TLS: cargo xtask test --only vm"]
fn nobody_who_listens_hears_what_is_carried() {
    run(async {
        for driver in [Driver::Uring, Driver::Epoll] {
            let plain = |_, keys| Way::Tcp.builder().authentication(keys).driver(driver);
            // The ear is a good one.
            let (bytes, heard) = overheard(&Pair::new(plain).await).await;
            assert!(heard, "{driver:?}: {bytes} bytes in clear text");
            let (bytes, heard) = overheard(&Pair::encrypted((driver, driver)).await).await;
            assert!(!heard, "{driver:?}: the secret is among {bytes} bytes");
        }
    });
}

#[test]
#[ignore = "needs a kernel with TLS: cargo xtask test --only vm"]
fn neither_side_goes_without_where_the_other_asks_for_it() {
    run(async {
        for (encrypts, words) in [
            ([true, false], "start this engine with encrypt_tcp"),
            ([false, true], "the peer does not encrypt TCP"),
        ] {
            let builder = |side: usize, keys| {
                Way::Tcp.builder().authentication(keys).encrypt_tcp(encrypts[side])
            };
            let pair = Pair::new(builder).await;
            let memory = region(&pair.owner, Access::READ_WRITE, 5);
            let error = write(&pair.other, &pair.peer, memory.addr(), 6).await.unwrap_err();
            assert_eq!((error.kind(), error.landed()), (ErrorKind::Refused, Landed::No), "{error}");
            assert!(error.to_string().contains(words), "{error}");
            assert_eq!(content(&memory), 5);
        }
    });
}

#[test]
#[ignore = "needs a kernel with TLS: cargo xtask test --only vm"]
fn mooncake_gets_nothing_by_tcp_that_is_to_be_encrypted() {
    run(async {
        let keys = Keys::new();
        let policy = Policy::Rules(vec![Rule::new(Peers::Mooncake, Access::READ_WRITE)]);
        let builder = Way::Tcp.builder().authentication(keys.of(&[("owner", 1)])).policy(policy);
        let owner = builder.allow_mooncake(true).encrypt_tcp(true).start().unwrap();
        let memory = region(&owner, Access::READ_WRITE, 5);
        let mooncake = Way::Tcp.builder().start().unwrap();
        let peer = mooncake.open(owner.name()).await.unwrap();
        assert!(read(&mooncake, &peer, memory.addr()).await.is_err());
        assert!(write(&mooncake, &peer, memory.addr(), 6).await.is_err());
        assert_eq!(content(&memory), 5);
    });
}

#[test]
#[ignore = "needs a kernel with TLS: cargo xtask test --only vm"]
fn on_one_host_memory_is_shared_as_without() {
    run(async {
        let builder = |_, keys| Way::Host.builder().authentication(keys).encrypt_tcp(true);
        let pair = Pair::new(builder).await;
        assert_eq!(pair.peer.path(), PathKind::Host);
        let memory = region(&pair.owner, Access::READ_WRITE, 5);
        write(&pair.other, &pair.peer, memory.addr(), 6).await.unwrap();
        assert_eq!(content(&memory), 6);
    });
}

#[test]
fn it_takes_authentication_and_a_kernel_that_can() {
    let error = Way::Tcp.builder().encrypt_tcp(true).start().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused);
    assert!(error.to_string().contains("authentication"), "{error}");
    let keys = Keys::new();
    let builder = || Way::Tcp.builder().authentication(keys.of(&[("a", 1)])).encrypt_tcp(true);
    match kvrail::doctor::Facts::here().kernel_tls {
        Ok(()) => drop(builder().start().unwrap()),
        Err(_) => {
            let error = builder().start().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Refused);
            assert!(error.to_string().contains("modprobe -a tls chacha20poly1305"), "{error}");
        }
    }
}

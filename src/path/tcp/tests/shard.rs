//! A shard over real sockets, its clock turned by hand: who is taken for stalled, who makes room,
//! and that one that ends with work under way leaves memory quiet and nobody waiting.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use kvrail_reactors::affinity::probe_uring;
use kvrail_reactors::doorbell::Doorbell;
use kvrail_reactors::sockets::Sockets;
use kvrail_reactors::stream::Streams;
use kvrail_reactors::uring::Uring;

use crate::arrivals::Arrivals;
use crate::auth::{Entrance, Gate, PeerId, Policy};
use crate::config::TcpLimits;
use crate::flight::{Flight, Landing, Portion};
use crate::limits::PASS_NS;
use crate::memory::{Operation, Region, Regions, RegionsView, tests::region};
use crate::path::served::Service;
use crate::path::tcp::wire::{Header, STATUS_BYTES, Verb, Version, pass_frame};
use crate::path::tcp::{Action, Dialed, Errands, LaneName, Message, Request, Status, TcpShard};
use crate::peer::{Link, Peer, Route, RouteKind, TcpRoute};
use crate::prepared::Plan;
use crate::receipt::Fenced;
use crate::request::Batch;
use crate::runtime::{Pump, Runtime, Shards};
use crate::{ErrorKind, Landed};

/// More than the sockets' buffers hold.
const LEN: usize = 32 << 20;

fn route() -> Route {
    let tcp = TcpRoute {
        host: "peer".into(),
        port: 1,
        speaks_v2: true,
        incarnation: Some(1),
        names_lanes: false,
    };
    Route { key: 1, name: "peer:1".into(), kind: RouteKind::Tcp(tcp) }
}

/// A flight that writes the whole region in one request, and the message that carries it.
fn flight(memory: &Region) -> (Arc<Flight>, Message) {
    let peer = Peer::new(Link::local(route()), Vec::new());
    let mut batch = Batch::new(&peer);
    let lease = memory.share(0..memory.len()).unwrap();
    batch.write(&lease, 4_096);
    let Ok(plan) = Plan::new(batch, "us") else { panic!("a plan") };
    let flight = Flight::new(Arc::new(plan), 1, None, None, Vec::new(), quanta::Instant::now());
    let action = Action::Write(lease.memory().clone());
    let requests = vec![Request {
        part: 0,
        index: 0,
        action,
        addr: 4_096,
        key: None,
        attempts: 0,
        landed: Landed::No,
        fenced: Fenced::Unposted,
        name: None,
    }];
    let portion = Portion::new(flight.clone(), 0..=0);
    let message = Message::Carry { portion, route: Arc::new(route()), requests };
    (flight, message)
}

/// Runs `test` on each reactor that the kernel gives us.
pub(super) fn both(test: impl Fn(Streams)) {
    let doorbell = Doorbell::with_sources().unwrap();
    test(Sockets::new(64, &doorbell).unwrap().into());
    match probe_uring() {
        Err(error) => eprintln!("not on io_uring, which the kernel refuses: {error}"),
        Ok(()) => test(Uring::new(64, doorbell.raw_fd()).unwrap().into()),
    }
}

fn service(view: RegionsView, arrivals: Arc<Arrivals>) -> Service {
    Service::new(view, Arc::default(), arrivals, 1)
}

fn errands() -> Errands {
    Errands { own: "us".into(), dial: Box::new(|_| {}), fence: Box::new(|_, _| {}) }
}

fn shard(streams: Streams, limits: TcpLimits) -> TcpShard {
    shard_behind(streams, limits, Arc::default())
}

pub(super) fn shard_behind(streams: Streams, limits: TcpLimits, gate: Arc<Gate>) -> TcpShard {
    let view = RegionsView::new(Arc::new(Regions::default()));
    TcpShard::new(streams, service(view, Arc::default()).behind(gate), errands(), limits)
}

/// Ours and the peer's.
pub(super) fn sockets() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let socket = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (peer, _) = listener.accept().unwrap();
    peer.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    (socket, peer)
}

fn is_flying(flight: &Flight) -> bool {
    flight.poll(&mut Context::from_waker(Waker::noop())).is_pending()
}

/// Polls at `now_ns` until this is so.
pub(super) fn poll_until(shard: &mut TcpShard, now_ns: u64, is_so: impl Fn() -> bool) {
    let start = Instant::now();
    while !is_so() {
        shard.poll(now_ns);
        assert!(start.elapsed() < Duration::from_secs(10), "not in time");
    }
}

#[test]
fn a_lane_is_stalled_by_what_its_peer_owes_and_not_by_idle_time() {
    both(stalled);
}

fn stalled(streams: Streams) {
    let limits = TcpLimits { progress_ns: 1_000, ..TcpLimits::default() };
    let mut shard = shard(streams, limits);
    let (socket, mut peer) = sockets();
    let (small, large) = (region(4_096), region(LEN));
    let (first, message) = flight(&small);
    shard.handle(message, 0);
    let result = Ok(Dialed::open(socket.into()));
    shard.handle(Message::Dialed { peer: 1, result }, 0);
    shard.poll(0);
    peer.read_exact(&mut [0; 24 + 4_096]).unwrap();
    peer.write_all(&Status::Ok.encode()).unwrap();
    poll_until(&mut shard, 0, || !is_flying(&first));
    // An hour later the peer is slow to read.
    let now_ns = 3_600_000_000_000;
    let (second, message) = flight(&large);
    shard.handle(message, now_ns);
    for _ in 0..10 {
        shard.poll(now_ns + 500);
    }
    assert!(is_flying(&second), "it was given no time at all");
    let later_ns = now_ns + 60_000_000_000;
    poll_until(&mut shard, later_ns, || !is_flying(&second));
}

/// A connection that has never made a request makes room before one that has, even if it is in the
/// middle of its first header: peers don't notice in time that an idle connection was closed.
#[test]
fn strangers_make_room_first() {
    both(strangers);
}

fn strangers(streams: Streams) {
    let limits = TcpLimits { connections_max: 2, ..TcpLimits::default() };
    let regions = Arc::new(Regions::default());
    let memory = region(4_096);
    regions.insert(memory.clone()).unwrap();
    let arrivals = Arc::new(Arrivals::default());
    let view = RegionsView::new(regions);
    let service = service(view, arrivals);
    let mut shard = TcpShard::new(streams, service, errands(), limits);
    let (socket, mut known) = sockets();
    shard.handle(Message::Accepted(socket.into()), 0);
    let read = Header {
        len: 1,
        addr: memory.addr(),
        verb: Verb::Transfer(Operation::Read),
        version: Version::V1,
    };
    let mut ask = |shard: &mut TcpShard, now_ns| {
        known.write_all(&read.encode()).unwrap();
        (0..50).for_each(|_| {
            shard.poll(now_ns);
            std::thread::sleep(Duration::from_millis(1));
        });
        known.read_exact(&mut [0]).unwrap();
    };
    ask(&mut shard, 1);
    let (socket, mut half) = sockets();
    half.write_all(&read.encode()[..10]).unwrap();
    shard.handle(Message::Accepted(socket.into()), 2);
    (0..50).for_each(|_| {
        shard.poll(2);
        std::thread::sleep(Duration::from_millis(1));
    });
    let (socket, _newcomer) = sockets();
    shard.handle(Message::Accepted(socket.into()), 3);
    shard.poll(3);
    assert_eq!(half.read(&mut [0]).unwrap(), 0, "it made room");
    ask(&mut shard, 4);
}

fn landing(flight: &Flight) -> Landing {
    match flight.poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(landing) => landing,
        Poll::Pending => panic!("its caller waits for ever"),
    }
}

fn is_closed(flight: &Flight) {
    let error = landing(flight).statuses.remove(0).unwrap_err();
    assert_eq!((error.kind(), error.landed()), (ErrorKind::Closed, Landed::Maybe));
}

#[test]
fn a_dropped_shard_is_quiet_and_fails_what_it_had() {
    both(dropped);
}

fn dropped(streams: Streams) {
    let mut shard = shard(streams, TcpLimits::default());
    let (socket, mut peer) = sockets();
    let (memory, waiting) = (region(LEN), region(4_096));
    let (flying, message) = flight(&memory);
    shard.handle(message, 0);
    let result = Ok(Dialed::open(socket.into()));
    shard.handle(Message::Dialed { peer: 1, result }, 0);
    shard.poll(1);
    peer.read_exact(&mut [0; 1]).unwrap();
    let (never_sent, message) = flight(&waiting);
    shard.handle(message, 0);
    let (guard, fenced) = flume::bounded(0);
    shard.handle(Message::Fence { region: memory.memory().clone(), guard }, 1);
    assert_eq!(fenced.try_recv(), Err(flume::TryRecvError::Empty), "it is being sent");
    drop(shard);
    assert_eq!(fenced.try_recv(), Err(flume::TryRecvError::Disconnected));
    is_closed(&flying);
    is_closed(&never_sent);
    drop((flying, never_sent));
    assert!(!memory.is_leased(0..LEN) && !waiting.is_leased(0..4_096));
}

/// A pump that dies of its first message.
struct Dies;

impl Pump for Dies {
    type Message = Message;

    fn handle(&mut self, _message: Message) {
        // Whatever is in the inbox then is dropped with it.
        std::thread::sleep(std::time::Duration::from_millis(50));
        panic!("a bug");
    }

    fn poll(&mut self, _now_ns: u64) -> usize {
        0
    }

    fn arm(&mut self, _now_ns: u64) -> bool {
        true
    }

    fn stopping(&mut self, _now_ns: u64) -> bool {
        true
    }
}

#[test]
fn what_a_dead_shard_has_in_its_inbox_is_closed() {
    let runtime = Runtime::builder().shards(Shards::Count(1)).build().unwrap();
    let memory = region(4_096);
    let address = runtime.spawn_pump(0, |_| Dies).unwrap();
    let (first, message) = flight(&memory);
    assert!(address.send(message).is_ok());
    let (second, message) = flight(&memory);
    assert!(address.send(message).is_ok());
    for flight in [first, second] {
        let landing = futures_lite::future::block_on(std::future::poll_fn(|cx| flight.poll(cx)));
        assert_eq!(landing.first_error.unwrap().kind(), ErrorKind::Closed);
    }
}

#[test]
fn one_that_drips_its_pass_is_cut_off_and_nobody_waits_for_it() {
    both(dripped);
}

fn dripped(streams: Streams) {
    let gate = Arc::new(Gate::new(true, false, Policy::Open));
    let mut shard = shard_behind(streams, TcpLimits::default(), gate);
    let (socket, mut peer) = sockets();
    shard.handle(Message::Accepted(socket.into()), 0);
    peer.write_all(&[0]).unwrap();
    let (guard, quiet) = flume::bounded(0);
    shard.handle(Message::Rest { guard }, 0);
    // Whose request is not under way, for all that it has begun one.
    let is_quiet = || quiet.is_disconnected();
    poll_until(&mut shard, 0, is_quiet);
    peer.set_nonblocking(true).unwrap();
    let is_open = |mut peer: &TcpStream| {
        let nothing = peer.read(&mut [0]);
        nothing.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock)
    };
    for now_ns in [1, PASS_NS] {
        peer.write_all(&[0]).unwrap();
        for _ in 0..100 {
            shard.poll(now_ns);
        }
        assert!(is_open(&peer), "it was given no time");
    }
    // Its last byte has just come.
    peer.write_all(&[0]).unwrap();
    poll_until(&mut shard, PASS_NS + 1_000_000_000, || !is_open(&peer));
}

#[test]
fn a_connection_is_ended_by_the_peer_whose_it_is() {
    both(ended_by_its_peer);
}

fn ended_by_its_peer(streams: Streams) {
    const LANE: LaneName = LaneName(7);
    let named = |names: &[&str]| PeerId::named(names.iter().map(|name| (*name).to_owned()));
    let gate = Arc::new(Gate::new(true, false, Policy::Open));
    let given = gate.pass(&named(&["a"]), LANE, Entrance::Tcp).unwrap();
    let mut shard = shard_behind(streams, TcpLimits::default(), gate);
    let (socket, mut peer) = sockets();
    shard.handle(Message::Accepted(socket.into()), 0);
    peer.write_all(&pass_frame(LANE, 1, &given.pass)).unwrap();
    peer.set_nonblocking(true).unwrap();
    poll_until(&mut shard, 0, || {
        peer.peek(&mut [0; STATUS_BYTES]).is_ok_and(|len| len == STATUS_BYTES)
    });
    peer.read_exact(&mut [0; STATUS_BYTES]).unwrap();
    let is_open = || {
        let nothing = peer.peek(&mut [0]);
        nothing.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock)
    };
    let ask = |shard: &mut TcpShard, peer: PeerId| {
        let (guard, waits) = flume::bounded(0);
        shard.handle(Message::EndLane { peer, lane: LANE, guard }, 0);
        waits
    };
    let stranger = ask(&mut shard, named(&["b"]));
    for _ in 0..100 {
        shard.poll(0);
    }
    assert!(is_open() && !stranger.is_disconnected(), "nothing says that it is over");
    // Its certificate has been renewed, with another name beside the one that it had.
    let owner = ask(&mut shard, named(&["c", "a"]));
    poll_until(&mut shard, 0, || owner.is_disconnected() && stranger.is_disconnected());
    assert!(!is_open());
}

//! A shard that ends with work under way leaves memory quiet and nobody waiting.

use std::io::Read;
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use kvrail_reactors::doorbell::Doorbell;
use kvrail_reactors::uring::Uring;

use crate::arrivals::Arrivals;
use crate::flight::{Flight, Landing, Portion};
use crate::memory::{Region, Regions, RegionsView, tests::region};
use crate::path::tcp::{Action, Message, Request, TcpShard};
use crate::peer::{Link, Peer, Route, RouteKind, TcpRoute};
use crate::request::Batch;
use crate::runtime::{Pump, Runtime, Shards};
use crate::transfer::Plan;
use crate::{ErrorKind, Landed};

/// More than the sockets' buffers hold.
const LEN: usize = 32 << 20;

fn route() -> Route {
    let tcp = TcpRoute { host: "peer".into(), port: 1, speaks_v2: true, incarnation: Some(1) };
    Route { key: 1, name: "peer:1".into(), kind: RouteKind::Tcp(tcp) }
}

/// A flight that writes the whole region in one request, and the message that carries it.
fn flight(memory: &Region) -> (Arc<Flight>, Message) {
    let peer = Peer::new(Link::local(route()), Vec::new());
    let mut batch = Batch::new(&peer);
    let lease = memory.share(0..memory.len()).unwrap();
    batch.write(&lease, 4_096);
    let Ok(plan) = Plan::new(batch, "us") else { panic!("a plan") };
    let flight = Flight::new(Arc::new(plan), 1, None, None, Vec::new());
    let action = Action::Write(lease.memory().clone());
    let requests = vec![Request { part: 0, index: 0, action, addr: 4_096, attempts: 0 }];
    let portion = Portion::new(flight.clone(), 0..=0);
    let message = Message::Carry { portion, route: Arc::new(route()), requests };
    (flight, message)
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
    let doorbell = Doorbell::new().unwrap();
    let ring = Uring::new(16, doorbell.raw_fd()).unwrap();
    let view = RegionsView::new(Arc::new(Regions::default()));
    let mut shard = TcpShard::new(ring, view, Arc::new(Arrivals::default()), Box::new(|_| {}));
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let socket = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (mut peer, _) = listener.accept().unwrap();
    let (memory, waiting) = (region(LEN), region(4_096));
    let (flying, message) = flight(&memory);
    shard.handle(message, 0);
    shard.handle(Message::Dialed { peer: 1, result: Ok(socket) }, 0);
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

//! The ways by which bytes travel, as actors on the shards.

pub(crate) mod asking;
mod carriers;
pub(crate) mod gpu;
pub(crate) mod host;
pub(crate) mod local;
pub(crate) mod order;
#[cfg(any(test, fuzzing, feature = "sim", feature = "rdma"))]
#[cfg_attr(
    all(fuzzing, not(any(test, feature = "sim", feature = "rdma"))),
    expect(dead_code, unused_imports, reason = "only the handshake is fuzzed")
)]
pub(crate) mod rdma;
pub(crate) mod served;
pub(crate) mod tcp;
#[cfg_attr(not(feature = "rdma"), path = "verbs/off.rs")]
pub(crate) mod verbs;

use std::sync::Arc;

use kvrail_reactors::sockets::Sockets;
use kvrail_reactors::stream::{Socket, Streams};
use kvrail_reactors::uring::Uring;

pub(crate) use self::carriers::Carriers;
use self::host::HostShard;
use self::local::LocalCopy;
use self::served::Service;
use self::tcp::{Dialed, Errands, LaneName, Message, TcpShard};
use crate::auth::Entrance;
use crate::config::TcpLimits;
use crate::control::Control;
use crate::limits::{RING_OPERATIONS_MAX, TICK_NS};
use crate::peer::{Route, RouteKind};
use crate::runtime::{Doorbell, Driver, Pump, PumpAddress, PumpContext, Runtime};
use crate::{Error, Result};

/// The TCP path of one shard.
pub(crate) struct TcpActor {
    shard: TcpShard,
    context: PumpContext<Message>,
}

impl TcpActor {
    /// Starts it; waits until its reactor is there.
    pub(crate) fn spawn(
        runtime: &Runtime,
        shard: usize,
        service: Service,
        control: Arc<Control>,
        limits: TcpLimits,
        blocks: u32,
    ) -> Result<PumpAddress<Message>> {
        let (report, ready) = std::sync::mpsc::sync_channel(1);
        let driver = runtime.driver();
        let address = runtime.try_spawn_pump(shard, move |context| {
            let started = streams(driver, &context.doorbell).map(|streams| {
                let streams = streams.staging(context.doorbell.clone(), blocks);
                let errands = errands(&control, &context.address, service.entrance());
                let service = service.with_sm_budget(blocks);
                Self { shard: TcpShard::new(streams, service, errands, limits), context }
            });
            let (actor, error) = match started {
                Ok(actor) => (Some(actor), None),
                Err(error) => (None, Some(error)),
            };
            // Who started us waits for the answer.
            let _ = report.send(error);
            actor
        })?;
        match ready.recv() {
            Ok(None) => Ok(address),
            Ok(Some(error)) => Err(no_streams(driver).with_source(error)),
            Err(_) => Err(Error::closed("the shard ended while starting")),
        }
    }
}

#[cfg(any(test, feature = "sim"))]
impl TcpActor {
    /// Starts it on a simulated network.
    pub(crate) fn simulated(
        runtime: &Runtime,
        shard: usize,
        service: Service,
        streams: kvrail_reactors::sim::Streams,
        errands: Errands,
        limits: TcpLimits,
    ) -> Result<PumpAddress<Message>> {
        runtime.spawn_pump(shard, move |context| {
            let streams = Streams::from(streams);
            Self { shard: TcpShard::new(streams, service, errands, limits), context }
        })
    }
}

/// The reactor that fits the shard's doorbell.
fn streams(driver: Driver, doorbell: &Doorbell) -> std::io::Result<Streams> {
    match driver {
        Driver::Epoll => Sockets::new(RING_OPERATIONS_MAX, doorbell).map(Streams::from),
        Driver::Uring | Driver::Auto => {
            Uring::new(RING_OPERATIONS_MAX, doorbell.raw_fd()).map(Streams::from)
        }
    }
}

fn no_streams(driver: Driver) -> Error {
    Error::refused(match driver {
        Driver::Epoll => "a shard gets no epoll set or timer: raise `ulimit -n`",
        Driver::Uring | Driver::Auto => {
            "io_uring gives a shard no ring: raise `ulimit -n` and `ulimit -l`, or choose epoll"
        }
    })
}

impl Pump for TcpActor {
    type Message = Message;

    fn handle(&mut self, message: Message) {
        self.shard.handle(message, self.context.now_ns());
    }

    fn poll(&mut self, now_ns: u64) -> usize {
        self.shard.poll(now_ns)
    }

    fn arm(&mut self, now_ns: u64) -> bool {
        self.shard.arm(now_ns)
    }

    fn stopping(&mut self, now_ns: u64) -> bool {
        self.shard.stopping(now_ns)
    }
}

/// What the control thread does for a shard: it knows names and time-outs.
fn errands(control: &Arc<Control>, shard: &PumpAddress<Message>, entrance: Entrance) -> Errands {
    let dial = Box::new(dial(control.clone(), shard.clone(), entrance));
    let fence = Box::new(fence(control.clone(), shard.clone()));
    Errands { own: control.name().into(), dial, fence }
}

fn dial(
    control: Arc<Control>,
    shard: PumpAddress<Message>,
    entrance: Entrance,
) -> impl Fn(&Arc<Route>) {
    move |route: &Arc<Route>| {
        let RouteKind::Tcp(tcp) = &route.kind else { return };
        let (host, port, peer) = (tcp.host.clone(), tcp.port, route.key);
        let (name, incarnation) = (route.name.clone(), tcp.incarnation);
        let (caller, shard) = (control.clone(), shard.clone());
        control.detach(async move {
            let lane = LaneName::new();
            let dialed = async {
                let socket = Socket::from(caller.connect(&host, port).await?);
                // Behind the connection: a pass is not good for long.
                let admission = caller.admission(&name, incarnation, lane, entrance).await?;
                match (incarnation, admission) {
                    (Some(to), Some(given)) => Dialed::admitted(socket, lane, to, given),
                    _ if entrance == Entrance::SealedTcp => Err(unsealed(&name)),
                    _ => Ok(Dialed::open(socket)),
                }
            };
            let result = dialed.await;
            report(&shard, Message::Dialed { peer, result }).await;
        });
    }
}

/// A peer that gives no passes, where nothing goes without.
fn unsealed(peer: &str) -> Error {
    Error::refused("the peer can't encrypt TCP, and this engine sends nothing in clear text")
        .with_peer(peer)
}

fn fence(control: Arc<Control>, shard: PumpAddress<Message>) -> impl Fn(&Arc<Route>, LaneName) {
    move |route: &Arc<Route>, lane: LaneName| {
        let RouteKind::Tcp(tcp) = &route.kind else { return };
        let (name, incarnation, peer) = (route.name.clone(), tcp.incarnation, route.key);
        let (caller, shard) = (control.clone(), shard.clone());
        control.detach(async move {
            let fenced = caller.end_lane(&name, incarnation, lane).await;
            report(&shard, Message::Fenced { peer, lane, fenced }).await;
        });
    }
}

/// Requests wait for the answer, so a full inbox must not lose it.
async fn report(shard: &PumpAddress<Message>, mut message: Message) {
    while let Err(crate::runtime::SendError::Full(back)) = shard.send(message) {
        message = back;
        tokio::time::sleep(REPORT_RETRY).await;
    }
}

/// Pause before a full inbox is tried again; a shard empties it within microseconds.
const REPORT_RETRY: std::time::Duration = std::time::Duration::from_millis(1);

/// The local copies of one shard.
pub(crate) struct CopyActor {
    copy: LocalCopy,
    context: PumpContext<local::Message>,
}

impl CopyActor {
    pub(crate) fn spawn(
        runtime: &Runtime,
        shard: usize,
        blocks: u32,
    ) -> Result<PumpAddress<local::Message>> {
        runtime.spawn_pump(shard, move |context| Self {
            copy: LocalCopy::new(context.doorbell.clone(), blocks),
            context,
        })
    }
}

impl Pump for CopyActor {
    type Message = local::Message;

    fn handle(&mut self, message: local::Message) {
        self.copy.handle(message, self.context.now_ns());
    }

    fn poll(&mut self, now_ns: u64) -> usize {
        self.copy.poll(now_ns)
    }

    fn arm(&mut self, _now_ns: u64) -> bool {
        self.copy.arm()
    }

    fn wake_at_ns(&self) -> Option<u64> {
        self.copy.awaits_gpus().then(|| self.context.now_ns() + TICK_NS)
    }

    /// Copies end by themselves within milliseconds.
    fn stopping(&mut self, _now_ns: u64) -> bool {
        self.copy.is_idle()
    }
}

/// The same-host path of one shard.
pub(crate) struct HostActor {
    shard: HostShard,
    context: PumpContext<host::Message>,
}

impl HostActor {
    pub(crate) fn spawn(
        runtime: &Runtime,
        shard: usize,
        actor: HostShard,
    ) -> Result<PumpAddress<host::Message>> {
        runtime.spawn_pump(shard, |context| Self { shard: actor, context })
    }
}

impl Pump for HostActor {
    type Message = host::Message;

    fn handle(&mut self, message: host::Message) {
        self.shard.handle(message);
    }

    fn poll(&mut self, now_ns: u64) -> usize {
        self.shard.poll(now_ns)
    }

    fn arm(&mut self, _now_ns: u64) -> bool {
        self.shard.arm()
    }

    fn wake_at_ns(&self) -> Option<u64> {
        self.shard.wake_at_ns()
    }

    fn stopping(&mut self, _now_ns: u64) -> bool {
        self.shard.stopping(self.context.now_ns())
    }
}

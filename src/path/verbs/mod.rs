//! RDMA on real NICs: the actors that run the machines of [`rdma`](super::rdma), and what an
//! engine's shards share.
//!
//! - `devices`: the NICs that an engine uses
//! - `hub`: those, the regions registered with them, and the shards
//! - `shard`: one shard's machines and what they ask; `endpoints` its queue pairs, `windows` its
//!   windows, `parts` the transfers that it carries
//! - `reach`: what of a peer's memory can be reached, by which rails; pure
//! - `mooncake`: handshakes with Mooncake's peers, and their queue pairs
//! - `letter`: what endpoints' two sides write each other; pure
//! - `watch`: whether peers are alive

mod devices;
mod endpoints;
mod hub;
mod letter;
mod mooncake;
mod parts;
mod reach;
mod shard;
mod watch;
mod windows;

use std::sync::Arc;

use self::endpoints::Endpoints;
pub(crate) use self::hub::Rdma;
use self::hub::Struck;
use self::mooncake::Mooncake;
pub(crate) use self::parts::Carry;
pub(crate) use self::reach::{Piece, Reach};
use self::shard::RdmaShard;
pub(crate) use self::shard::{Message, not_taken};
use crate::control::Control;
use crate::runtime::{Pump, PumpAddress, PumpContext, Runtime};
use crate::{Error, Result};

/// The shard that reads for all what NICs report.
const WATCHER: usize = 0;

/// The RDMA path of one shard.
pub(crate) struct RdmaActor {
    shard: RdmaShard,
    context: PumpContext<Message>,
}

impl RdmaActor {
    /// Starts it; waits until its queues are there.
    fn spawn(
        runtime: &Runtime,
        shard: usize,
        rdma: Arc<Rdma>,
        control: Arc<Control>,
        struck: Arc<Struck>,
    ) -> Result<PumpAddress<Message>> {
        let (report, ready) = std::sync::mpsc::sync_channel(1);
        let node = runtime.placement().get(shard).and_then(|placement| placement.node);
        let address = runtime.try_spawn_pump(shard, move |context| {
            let started = Endpoints::new(&rdma, &context.doorbell, shard == WATCHER);
            let started = started.and_then(|endpoints| {
                let (mooncake, place) = (Mooncake::new(control.name(), &rdma)?, (shard, node));
                let shard = RdmaShard::new(endpoints, mooncake, rdma, control, struck, place);
                Ok(Self { shard, context })
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
            Ok(Some(error)) => Err(error),
            Err(_) => Err(Error::closed("the shard ended while starting")),
        }
    }
}

impl Pump for RdmaActor {
    type Message = Message;

    fn handle(&mut self, message: Message) {
        self.shard.handle(message, self.context.now_ns());
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

    fn stopping(&mut self, now_ns: u64) -> bool {
        self.shard.stopping(now_ns)
    }
}

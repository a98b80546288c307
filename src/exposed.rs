//! What peers reach of an engine through the control thread: its descriptor, its queue of
//! notifications, and its shards for their connections.

use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::Result;
use crate::arrivals::Arrivals;
use crate::control::{Buffer, Descriptor, Extras, Host, Identity};
use crate::memory::{Access, Regions};
use crate::notification::Notification;
use crate::path::host::Hub;
use crate::path::tcp;
use crate::runtime::{PumpAddress, SendError};

/// Version of the steps that only kvrail peers take: events on data connections.
const EXTRAS_VERSION: u32 = 1;

/// An engine as its peers see it.
pub(crate) struct Exposed {
    identity: Identity,
    incarnation: u64,
    pub(crate) regions: Arc<Regions>,
    pub(crate) arrivals: Arc<Arrivals>,
    /// How peers of this host get in; none where they don't.
    pub(crate) hub: Option<Arc<Hub>>,
    sockets: Vec<String>,
    /// Filled in once the shards' actors run.
    tcp: OnceLock<Vec<PumpAddress<tcp::Message>>>,
    next_shard: AtomicUsize,
}

/// What an engine exposes, before it has a name.
pub(crate) struct Exposure {
    pub(crate) incarnation: u64,
    pub(crate) regions: Arc<Regions>,
    pub(crate) arrivals: Arc<Arrivals>,
    pub(crate) hub: Option<Arc<Hub>>,
}

impl Exposure {
    pub(crate) fn named(self, identity: Identity) -> Exposed {
        let Self { incarnation, regions, arrivals, hub } = self;
        let sockets = hub.as_ref().map(|hub| hub.names()).unwrap_or_default();
        let (tcp, next_shard) = (OnceLock::new(), AtomicUsize::new(0));
        Exposed { identity, incarnation, regions, arrivals, hub, sockets, tcp, next_shard }
    }
}

impl Exposed {
    /// The shards' TCP actors run.
    pub(crate) fn start(&self, shards: Vec<PumpAddress<tcp::Message>>) {
        // Nobody else sets it.
        let _ = self.tcp.set(shards);
    }

    pub(crate) fn shards(&self) -> &[PumpAddress<tcp::Message>] {
        self.tcp.get().map_or(&[], Vec::as_slice)
    }
}

impl Host for Exposed {
    fn descriptor(&self) -> Descriptor {
        let regions = self.regions.current();
        let published = regions.iter().filter(|region| region.access() != Access::LOCAL);
        let buffers = published
            .map(|region| Buffer {
                addr: region.addr(),
                length: region.len() as u64,
                name: region.location().to_string(),
            })
            .collect();
        let extras = Extras {
            version: EXTRAS_VERSION,
            incarnation: self.incarnation,
            sockets: self.sockets.clone(),
        };
        self.identity.descriptor(buffers, Some(extras))
    }

    fn notified(&self, name: String, message: Vec<u8>) -> Result<()> {
        self.arrivals.notifications.push(Notification { from: name, bytes: message })
    }

    fn accepted(&self, stream: std::net::TcpStream) -> Result<(), std::net::TcpStream> {
        // Before the shards' actors run nobody knows our port.
        let Some(shards) = self.tcp.get() else { return Ok(()) };
        let shard = self.next_shard.fetch_add(1, Ordering::Relaxed) % shards.len();
        match shards[shard].send(tcp::Message::Accepted(stream)) {
            Err(SendError::Full(tcp::Message::Accepted(stream))) => Err(stream),
            _ => Ok(()),
        }
    }

    fn crowded(&self) {
        for shard in self.shards() {
            // A full inbox is asked again soon.
            let _ = shard.send(tcp::Message::Crowded);
        }
    }
}

//! The ways to peers: one link a peer and process, found again while somebody holds it, and the
//! session with those of this host.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use crate::auth::Entrance;
use crate::control::{Control, Extras, Resolved};
use crate::path::host::{Hub, Neighbour};
use crate::path::tcp::{self, LaneName};
use crate::path::verbs::Rdma;
use crate::peer::{Link, Phase, Route, RouteKind, TcpRoute, Vicinity};
use crate::runtime::PumpAddress;
use crate::{Error, Result};

/// An engine's links.
pub(crate) struct Links {
    alive: Mutex<Vec<Weak<Link>>>,
    next_route: AtomicU64,
    /// Peers are sent version 1 of the TCP protocol, whatever they say.
    tcp_v1: bool,
    /// By which peers of this host are met, or why none are.
    hub: Result<Arc<Hub>>,
    /// By which peers elsewhere are reached, or why they go by TCP.
    rdma: Result<Arc<Rdma>>,
}

impl Links {
    pub(crate) fn new(tcp_v1: bool, hub: Result<Arc<Hub>>, rdma: Result<Arc<Rdma>>) -> Self {
        Self { alive: Mutex::default(), next_route: AtomicU64::new(1), tcp_v1, hub, rdma }
    }

    /// The engine's NICs, or why it uses none.
    pub(crate) fn rdma(&self) -> Result<&Arc<Rdma>> {
        self.rdma.as_ref().map_err(Error::clone)
    }

    /// The link to a peer: the living one where the peer is still where it was.
    pub(crate) fn to(
        &self,
        name: &str,
        resolved: &Resolved,
        shards: &[PumpAddress<tcp::Message>],
    ) -> Arc<Link> {
        let link = self.link(name, resolved, shards);
        self.reach(&link, resolved);
        link
    }

    fn reach(&self, link: &Link, resolved: &Resolved) {
        let rdma = self.rdma.as_ref().map_err(Error::clone);
        let reach = rdma.and_then(|rdma| rdma.meet(&link.route.name, resolved));
        link.set_reach(reach.map_err(|error| error.to_string().into()));
    }

    /// The peers that are in use.
    pub(crate) fn alive(&self) -> Vec<Arc<Link>> {
        let links = self.alive.lock().unwrap_or_else(PoisonError::into_inner);
        links.iter().filter_map(Weak::upgrade).collect()
    }

    /// Stops to send anything to the process of this incarnation, which drains; over when nothing
    /// is under way to it.
    pub(crate) async fn leave(&self, incarnation: u64) {
        let there = |link: &Arc<Link>| link.incarnation() == Some(incarnation);
        let links: Vec<_> = self.alive().into_iter().filter(there).collect();
        links.iter().for_each(|link| link.enter(Phase::PeerDrains));
        for link in links {
            link.over().await;
        }
    }

    /// Asks a peer for what it has now, and by which keys it is reached.
    ///
    /// # Errors
    /// Lost: nobody answers. Closed: it is another process now.
    pub(crate) async fn refresh(&self, link: &Link, control: &Control) -> Result<()> {
        let resolved = control.resolve(&link.route.name, true).await?;
        let incarnation = resolved.descriptor.kvrail.as_ref().map(|extras| extras.incarnation);
        if incarnation != link.incarnation() {
            return Err(Error::closed("another process has the peer's name: open it anew"));
        }
        self.reach(link, &resolved);
        Ok(())
    }

    fn link(
        &self,
        name: &str,
        resolved: &Resolved,
        shards: &[PumpAddress<tcp::Message>],
    ) -> Arc<Link> {
        let extras = resolved.descriptor.kvrail.as_ref();
        let speaks_v2 = resolved.descriptor.tcp_proto_version >= 2 && !self.tcp_v1;
        let tcp = TcpRoute {
            host: resolved.data.host.clone(),
            port: resolved.data.port,
            speaks_v2,
            incarnation: extras.map(|extras| extras.incarnation),
            names_lanes: speaks_v2 && extras.is_some_and(Extras::has_named_lanes),
        };
        let mut links = self.alive.lock().unwrap_or_else(PoisonError::into_inner);
        links.retain(|link| link.strong_count() > 0);
        let alive = links.iter().filter_map(Weak::upgrade);
        if let Some(link) =
            alive.into_iter().find(|link| !link.is_closed() && link.route.is(name, &tcp))
        {
            return link;
        }
        let key = self.next_route.fetch_add(1, Ordering::Relaxed);
        let route = Route { key, name: name.into(), kind: RouteKind::Tcp(tcp) };
        let shards = shards.to_vec();
        let rdma = self.rdma.clone();
        let link = Link::new(route, move |key| {
            rdma.iter().for_each(|rdma| rdma.forget(key));
            for shard in &shards {
                if shard.send(tcp::Message::Forget { peer: key }).is_err() {
                    tracing::debug!(key, "a shard keeps connections to a peer nobody uses");
                }
            }
        });
        links.push(Arc::downgrade(&link));
        link
    }

    /// Finds out whether the peer is a process of this host, by connecting to it there; host names
    /// prove nothing.
    pub(crate) async fn meet(&self, link: &Arc<Link>, resolved: &Resolved, control: &Control) {
        let _met = link.meeting.lock().await;
        if link.neighbour().is_some() {
            return;
        }
        let vicinity = match self.find_neighbour(link, resolved, control).await {
            Ok(neighbour) => Vicinity::Here(neighbour),
            Err(error) => {
                tracing::debug!(peer = %link.route.name, %error, "by TCP");
                Vicinity::Elsewhere(error.to_string().into())
            }
        };
        link.set_vicinity(vicinity);
    }

    async fn find_neighbour(
        &self,
        link: &Arc<Link>,
        resolved: &Resolved,
        control: &Control,
    ) -> Result<Arc<Neighbour>> {
        let hub = self.hub.clone()?;
        let extras = resolved.descriptor.kvrail.as_ref();
        let extras = extras.ok_or_else(|| Error::refused("the peer is not kvrail"))?;
        let (sockets, incarnation) = (extras.sockets.clone(), extras.incarnation);
        let peer = link.route.name.clone();
        let own = control.name().to_owned();
        let lane = LaneName::new();
        let given = control.admission(&peer, Some(incarnation), lane, Entrance::Host).await?;
        let pass = given.map(|given| given.pass);
        let connect = async move {
            Neighbour::connect(hub, &sockets, incarnation, peer, &own, (lane, pass)).await
        };
        control.run(connect).await
    }
}

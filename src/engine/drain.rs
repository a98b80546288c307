//! Going without breaking anything: nothing new begins, what is under way ends, then the engine
//! stops.

use std::time::Duration;

use super::{Engine, Inner, tell};
use crate::control::Resolved;
use crate::path::tcp;
use crate::peer::{Peer, Phase};
use crate::{Error, Result};

/// How a drain ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Drained {
    stayed: Vec<String>,
    is_quiet: bool,
}

impl Drained {
    /// Peers that did not leave in time: what they had under way here was ended by the stop.
    pub fn stayed(&self) -> &[String] {
        &self.stayed
    }

    /// Whether everything that was under way ended by itself: own transfers, those of all peers
    /// that were told, and the requests of others (Mooncake's) that had begun.
    pub fn is_complete(&self) -> bool {
        self.is_quiet && self.stayed.is_empty()
    }
}

impl Engine {
    /// Stops without failing anybody's transfers, if `within` is enough for them to end; behind it
    /// what is left is fenced, as by [`Engine::stop`]. From now on nothing new begins: no peer is
    /// opened, nothing is granted and no batch posted here, each with
    /// [`crate::ErrorKind::Draining`]; the entry at a metadata server goes. kvrail peers are told:
    /// what they had posted ends well, what they post later is Draining too, before anything of it
    /// is sent. Mooncake's peers can't be told: what they had begun ends, what they send later
    /// is lost with the engine; send them elsewhere first. There is no way back.
    pub async fn drain(&self, within: Duration) -> Drained {
        let guests = self.inner.host.guests.drain();
        self.begin_nothing();
        self.withdraw_soon();
        let started = quanta::Instant::now();
        let (control, incarnation) = (&self.inner.control, self.inner.host.incarnation);
        tracing::info!(guests = guests.len(), "draining");
        let sent_off = control.send_off(incarnation, guests, within);
        let own = control.within(within, self.own_end());
        let (stayed, own) = futures_lite::future::zip(sent_off, own).await;
        let rest = within.saturating_sub(started.elapsed());
        let served = control.within(rest, self.served_end()).await;
        let drained = Drained { stayed, is_quiet: own.is_some() && served.is_some() };
        tracing::info!(complete = drained.is_complete(), stayed = ?drained.stayed, "drained");
        self.stop().await;
        drained
    }

    /// Whether [`Engine::drain`] was called.
    pub fn is_draining(&self) -> bool {
        self.inner.is_draining()
    }

    #[cfg(feature = "prometheus")]
    pub(crate) fn downgrade(&self) -> std::sync::Weak<Inner> {
        std::sync::Arc::downgrade(&self.inner)
    }

    /// Tells a peer that we use it.
    ///
    /// # Errors
    /// Draining: it is about to stop.
    pub(super) async fn arrive_at(&self, peer: &Peer, resolved: &Resolved) -> Result<()> {
        let extras = resolved.descriptor.kvrail.as_ref();
        let Some(extras) = extras.filter(|extras| extras.has_guests()) else { return Ok(()) };
        let own = self.inner.host.incarnation;
        if !self.inner.control.arrive(peer.name(), own, extras.incarnation).await {
            return Ok(());
        }
        peer.inner.link.enter(Phase::PeerDrains);
        Err(Error::draining("the peer finishes what it has and then stops: open another one")
            .with_peer(peer.name()))
    }

    fn withdraw_soon(&self) {
        let control = self.inner.control.clone();
        self.inner.control.detach(async move {
            if let Err(error) = control.withdraw().await {
                tracing::warn!(%error, "the metadata server still has this engine's entry");
            }
        });
    }

    fn begin_nothing(&self) {
        let own = self.inner.own.inner.link.clone();
        self.inner.links.alive().iter().chain([&own]).for_each(|link| link.enter(Phase::WeDrain));
    }

    /// Over when none of the own transfers is under way.
    async fn own_end(&self) {
        let own = self.inner.own.inner.link.clone();
        for link in self.inner.links.alive().into_iter().chain([own]) {
            link.over().await;
        }
    }

    /// Over when no peer's request is under way at any shard.
    async fn served_end(&self) {
        let (guard, over) = flume::bounded(0);
        for shard in self.inner.shards() {
            tell(shard, tcp::Message::Rest { guard: guard.clone() }).await;
        }
        drop(guard);
        // Nobody sends: the channel closes when the last shard has let go of its guard.
        let _: Result<(), _> = over.recv_async().await;
    }
}

impl Inner {
    pub(crate) fn is_draining(&self) -> bool {
        self.host.guests.is_draining()
    }
}

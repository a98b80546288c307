//! Guests and their host: who uses an engine's memory says so when it opens the engine, and an
//! engine that drains asks each of its guests to leave. Questions between kvrail peers only.

use std::collections::VecDeque;
use std::error::Error as _;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::address::Address;
use super::client::{Callee, Client, Question};
use super::daemon::Daemon;
use super::wire::{Kind, RequestId};
use super::{Control, Shared};
use crate::auth::PeerId;
use crate::error::{Error, Result};
use crate::limits::{ARRIVE_MS, LEAVE_MS, LEAVE_PAUSE_MS, LEAVING_MAX};

/// Somebody who may have transfers under way to or from an engine's memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Guest {
    /// Its segment name.
    pub name: String,
    /// Which process of that name it is.
    pub incarnation: u64,
    /// Host and port of its control daemon.
    pub control: String,
    /// What its host says when it asks it to leave: nobody else knows.
    #[serde(default)]
    pub word: u64,
}

/// The words by which hosts prove that they are the ones that were visited.
#[derive(Debug, Default)]
pub(super) struct Words(RandomState);

impl Words {
    /// The word that this process was told when we came: SipHash of its name under a key of ours,
    /// so that none has to be kept.
    pub(super) fn of(&self, host: u64) -> u64 {
        self.0.hash_one(host)
    }
}

/// A guest's question: here I am, may I?
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Arrive {
    guest: Guest,
    /// The process that is meant.
    to: u64,
    #[serde(default)]
    request: RequestId,
}

/// The answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Arrived {
    /// No: it drains.
    pub(super) draining: bool,
}

/// A host's question: start nothing here any more; are you through with what you had begun?
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Leave {
    /// The process that drains.
    pub(super) incarnation: u64,
    /// The guest's.
    to: u64,
    /// The guest's word, by which it knows whose wish it is.
    #[serde(default)]
    word: u64,
    #[serde(default)]
    request: RequestId,
}

/// The answer, which comes as late as [`LEAVE_MS`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Left {
    /// Nothing of the guest's is under way there any more.
    left: bool,
}

impl Question for Arrive {
    type Answer = Arrived;

    async fn put_to(&self, callee: Callee<'_>, client: &Client) -> Result<Arrived> {
        client.ask(callee, Kind::Arrive, self).await
    }
}

impl Question for Leave {
    type Answer = Left;

    async fn put_to(&self, callee: Callee<'_>, client: &Client) -> Result<Left> {
        client.ask(callee, Kind::Leave, self).await
    }
}

impl Arrive {
    /// The answer of the engine that is asked. Who means another process has no business here.
    ///
    /// # Errors
    /// Refused: the guest has not proven who it is.
    pub(super) fn answer(self, daemon: &Daemon, peer: &PeerId) -> Result<Arrived> {
        let (request, guest) = (&self.request, &self.guest.name);
        tracing::debug!(%request, guest, %peer, "a guest arrives");
        check_proven(peer)?;
        let draining = daemon.is_process(self.to) && daemon.host.arrived(peer, self.guest);
        Ok(Arrived { draining })
    }
}

impl Leave {
    /// The answer of the guest that is asked.
    ///
    /// # Errors
    /// Refused: the host has not proven who it is, or is another one than it says.
    pub(super) async fn answer(self, daemon: &Daemon, peer: &PeerId) -> Result<Left> {
        tracing::debug!(request = %self.request, %peer, "a host asks us to leave");
        check_proven(peer)?;
        if !daemon.is_process(self.to) {
            return Ok(Left { left: true });
        }
        if self.word != daemon.client.words.of(self.incarnation) {
            return Err(Error::refused("a host that was not visited asks for another"));
        }
        let gone = daemon.host.leave(self.incarnation);
        Ok(Left { left: timeout(Duration::from_millis(LEAVE_MS), gone).await.is_ok() })
    }
}

/// Whoever is let in without a proof, where others have to bring one, asks what Mooncake's engines
/// ask: it neither comes as a guest nor makes anybody leave, ends nobody's connection and writes no
/// letters.
///
/// # Errors
/// Refused: it has not proven who it is.
pub(super) fn check_proven(peer: &PeerId) -> Result<()> {
    match peer {
        PeerId::Mooncake => Err(Error::refused("kvrail's engines have to prove who they are")),
        PeerId::Anyone | PeerId::Named(_) => Ok(()),
    }
}

impl Control {
    /// Tells the engine called `name` that we are its guest; whether it drains. One that does not
    /// answer in time does not know us, and may stop without asking.
    pub async fn arrive(&self, name: &str, own: u64, to: u64) -> bool {
        let identity = &self.shared.identity;
        let (guest, control) = (identity.name.clone(), identity.control.to_string());
        let guest =
            Guest { name: guest, incarnation: own, control, word: self.shared.client.words.of(to) };
        let request = self.shared.next_request();
        tracing::debug!(%request, peer = name, "we arrive");
        let asked = self.ask(name, Arrive { guest, to, request });
        match self.within(Duration::from_millis(ARRIVE_MS), asked).await {
            Some(Ok(arrived)) => arrived.draining,
            Some(Err(error)) => {
                tracing::debug!(peer = name, %error, "it does not know that we are its guest");
                false
            }
            None => false,
        }
    }

    /// Takes back what was published, for good, while the engine still answers.
    pub async fn withdraw(&self) -> Result<()> {
        self.call(|shared| async move {
            shared.stopping.store(true, Ordering::Release);
            shared.withdraw().await
        })
        .await
    }

    /// Asks guests to leave until they have, or the time is over; the names of those who stayed.
    pub async fn send_off(&self, own: u64, guests: Vec<Guest>, within: Duration) -> Vec<String> {
        let names: Vec<_> = guests.iter().map(|guest| guest.name.clone()).collect();
        let sent =
            self.call(move |shared| async move { Ok(shared.send_off(own, guests, within).await) });
        // A control plane that was stopped meanwhile has asked nobody.
        sent.await.unwrap_or(names)
    }

    /// Waits for something so long at most; on any executor.
    pub async fn within<T>(&self, limit: Duration, what: impl Future<Output = T>) -> Option<T> {
        // Made over there: the caller's executor may know no time.
        let alarm = self.runtime.spawn(async move { sleep(limit).await });
        let over = async {
            let _ = alarm.await;
            None
        };
        futures_lite::future::or(async { Some(what.await) }, over).await
    }
}

impl Shared {
    async fn send_off(
        self: Arc<Self>,
        own: u64,
        guests: Vec<Guest>,
        within: Duration,
    ) -> Vec<String> {
        let mut stayed: Vec<_> = guests.iter().map(|guest| guest.name.clone()).collect();
        let mut left = JoinSet::new();
        // The last who came first: those who came long ago are the likeliest to be gone.
        let mut waiting: VecDeque<_> = guests.into_iter().rev().collect();
        let all = async {
            loop {
                while left.len() < LEAVING_MAX
                    && let Some(guest) = waiting.pop_front()
                {
                    let shared = self.clone();
                    left.spawn(async move { ask_to_leave(own, guest, &shared).await });
                }
                let Some(asked) = left.join_next().await else { return };
                match asked {
                    Ok(Ok(name)) => stayed.retain(|guest| *guest != name),
                    // Behind the others: many who stay keep nobody from being asked.
                    Ok(Err(guest)) => waiting.push_back(guest),
                    Err(_) => {}
                }
            }
        };
        // Who is left out stays in the list.
        let _ = timeout(within, all).await;
        stayed
    }
}

/// Asks a guest once: its name if it has left or is nowhere. One who stays comes back after the
/// pause that it is given.
async fn ask_to_leave(own: u64, guest: Guest, shared: &Shared) -> Result<String, Guest> {
    let Ok(address) = Address::parse(&guest.control) else { return Ok(guest.name) };
    let request = shared.next_request();
    tracing::debug!(%request, peer = guest.name, "it is asked to leave");
    let question = Leave { incarnation: own, to: guest.incarnation, word: guest.word, request };
    let callee = Callee { name: &guest.name, address: &address };
    match question.put_to(callee, &shared.client).await {
        Ok(Left { left: true }) => return Ok(guest.name),
        Ok(Left { left: false }) => {}
        Err(error) if is_nobody(&error) => return Ok(guest.name),
        Err(error) => tracing::debug!(peer = guest.name, %error, "it stays"),
    }
    sleep(Duration::from_millis(LEAVE_PAUSE_MS)).await;
    Err(guest)
}

/// Nobody listens there any more.
fn is_nobody(error: &Error) -> bool {
    let source = error.source().and_then(|source| source.downcast_ref::<io::Error>());
    source.is_some_and(|source| source.kind() == io::ErrorKind::ConnectionRefused)
}

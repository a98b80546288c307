//! Letters between kvrail processes: one way, in order on one connection a peer, and lost with it.
//! Who writes them asks again until it has its answer.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use futures_lite::future::poll_once;
use serde::{Deserialize, Serialize};
use tokio::io::AsyncReadExt;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::Shared;
use super::channel::Stream;
use super::client::{Callee, write};
use super::wire::{self, FrameError, Kind};
use crate::error::Result;
use crate::limits::{LETTERS_IDLE_MS, LETTERS_MAX};

/// A letter and its envelope.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Letter {
    /// The sender's segment name, by which it is answered.
    pub from: String,
    /// The sender's process.
    pub incarnation: u64,
    /// The process that is meant: another one under its name has nothing to do with it.
    pub to: u64,
    /// What whoever it is for understands.
    pub body: serde_json::Value,
}

impl Letter {
    /// As a frame of the control channel.
    ///
    /// # Errors
    /// It is too long for one.
    pub(crate) fn sealed(&self) -> Result<Vec<u8>, FrameError> {
        wire::encode_message(Kind::Letter, false, self)
    }
}

type Pouch = mpsc::Sender<Vec<u8>>;

/// One courier for each peer that is being written to.
#[derive(Debug, Default)]
pub(super) struct Couriers(Mutex<HashMap<Arc<str>, Pouch>>);

impl Couriers {
    fn lock(&self) -> MutexGuard<'_, HashMap<Arc<str>, Pouch>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives a letter to the peer's courier, hiring one where there is none. One that has too many
    /// loses it.
    pub(super) fn send(
        &self,
        shared: &Arc<Shared>,
        runtime: &tokio::runtime::Handle,
        name: &Arc<str>,
        mut letter: Vec<u8>,
    ) {
        let mut all = self.lock();
        if let Some(pouch) = all.get(name) {
            match pouch.try_send(letter) {
                Ok(()) => return,
                Err(mpsc::error::TrySendError::Full(_)) => {
                    return tracing::debug!(peer = %name, "a letter too many is lost");
                }
                Err(mpsc::error::TrySendError::Closed(back)) => letter = back,
            }
        }
        let (pouch, letters) = mpsc::channel(LETTERS_MAX);
        // It is new and has room.
        let _ = pouch.try_send(letter);
        all.insert(name.clone(), pouch.clone());
        runtime.spawn(carry(Arc::downgrade(shared), name.clone(), letters, pouch.downgrade()));
    }

    /// Forgets a courier that has gone home, unless another one has its place.
    fn dismiss(&self, name: &Arc<str>, pouch: &mpsc::WeakSender<Vec<u8>>) {
        let mut all = self.lock();
        let is_its = |own: &Pouch| pouch.upgrade().is_some_and(|pouch| own.same_channel(&pouch));
        if all.get(name).is_some_and(is_its) {
            all.remove(name);
        }
    }
}

/// One courier's life: until nobody has written for a while.
async fn carry(
    shared: Weak<Shared>,
    name: Arc<str>,
    mut letters: mpsc::Receiver<Vec<u8>>,
    pouch: mpsc::WeakSender<Vec<u8>>,
) {
    let idle = Duration::from_millis(LETTERS_IDLE_MS);
    let mut road: Option<Stream> = None;
    while let Ok(Some(letter)) = timeout(idle, letters.recv()).await {
        let Some(shared) = shared.upgrade() else { return };
        let is_gone = match &mut road {
            Some(stream) => is_closed(stream).await,
            None => true,
        };
        if is_gone {
            road = find_road(&shared, &name).await;
        }
        let Some(stream) = &mut road else { continue };
        let written = timeout(shared.client.limits.request, write(stream, &letter)).await;
        if !matches!(written, Ok(Ok(()))) {
            tracing::debug!(peer = %name, "a letter got lost with its connection");
            road = None;
        }
    }
    if let Some(shared) = shared.upgrade() {
        shared.couriers.dismiss(&name, &pouch);
    }
}

async fn find_road(shared: &Shared, name: &str) -> Option<Stream> {
    let known = shared.directory().get(name).map(|resolved| resolved.control.clone());
    let address = match known {
        Some(address) => Ok(address),
        None => shared.metadata.locate(name).await,
    };
    let road = match address {
        Ok(address) => shared.client.connect(Callee { name, address: &address }).await,
        Err(error) => Err(error),
    };
    road.inspect_err(|error| tracing::debug!(peer = %name, %error, "letters get lost")).ok()
}

/// Readers say nothing, so whatever can be read is the end.
async fn is_closed(stream: &mut Stream) -> bool {
    poll_once(stream.read(&mut [0; 1])).await.is_some()
}

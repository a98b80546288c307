//! What all same-host sessions of an engine share: where it listens, which regions its peers may
//! believe in, and who is told when that changes.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use kvrail_reactors::cuda::{Gpus, SM_BUDGET};
use kvrail_reactors::host::ledger::Ledger;
use kvrail_reactors::host::process::Token;
use kvrail_reactors::host::socket::{Listener, own_uid, remove_if_dead};
use tokio::sync::{Semaphore, broadcast, watch};

use super::shard::Message;
use crate::auth::Gate;
use crate::config::Vram;
use crate::limits::{HOST_CHANGES_MAX, HOST_SESSIONS_MAX, REGIONS_MAX};
use crate::memory::grant::Grants;
use crate::memory::{Region, Regions};
use crate::runtime::{PumpAddress, SendError};
use crate::{Error, Result};

/// Suffix and prefix of sockets in a folder.
const SOCKET_PREFIX: &str = "kvrail-";
const SOCKET_SUFFIX: &str = ".sock";

/// A change of the engine's regions that sessions tell their peers.
#[derive(Debug, Clone, Copy)]
pub(super) enum Change {
    Gone(u64),
    Added,
}

/// The same-host side of an engine.
pub(crate) struct Hub {
    pub(super) incarnation: u64,
    pub(super) regions: Arc<Regions>,
    pub(super) grants: Arc<Grants>,
    pub(super) gate: Arc<Gate>,
    pub(super) roll: Roll,
    pub(super) token: Token,
    pub(super) changes: broadcast::Sender<Change>,
    /// Open sessions hold a receiver; true ends them.
    pub(super) closing: watch::Sender<bool>,
    pub(super) seats: Arc<Semaphore>,
    /// By which peers' VRAM is mapped.
    pub(super) gpus: Gpus,
    /// Multiprocessors that a launch for a peer takes at most.
    pub(super) blocks: u32,
    folder: Option<PathBuf>,
    listeners: Mutex<Vec<(String, Listener)>>,
    shards: OnceLock<Vec<PumpAddress<Message>>>,
    nodes: OnceLock<Vec<Option<u32>>>,
    next_session: AtomicU64,
}

impl Hub {
    /// Listens under an abstract name and, where one is given, in `folder`.
    ///
    /// # Errors
    /// Refused: the system gives no socket or memfd; why, in the source.
    pub(crate) fn new(
        incarnation: u64,
        regions: Arc<Regions>,
        grants: Arc<Grants>,
        gate: Arc<Gate>,
        folder: Option<PathBuf>,
    ) -> Result<Self> {
        let no_ledger = |error| Error::refused("no memfd for the same host").with_source(error);
        let ledger = Ledger::new(REGIONS_MAX).map_err(no_ledger)?;
        let listeners = listen(incarnation, folder.as_deref())?;
        Ok(Self {
            incarnation,
            regions,
            grants,
            gate,
            roll: Roll { ledger, slots: Mutex::default() },
            token: Token::new(),
            changes: broadcast::channel(HOST_CHANGES_MAX).0,
            closing: watch::channel(false).0,
            seats: Arc::new(Semaphore::new(HOST_SESSIONS_MAX)),
            gpus: Gpus::default(),
            blocks: SM_BUDGET,
            folder,
            listeners: Mutex::new(listeners),
            shards: OnceLock::new(),
            nodes: OnceLock::new(),
            next_session: AtomicU64::new(1),
        })
    }

    /// Has it map peers' VRAM by these GPUs.
    pub(crate) fn with_vram(self, vram: &Vram) -> Self {
        Self { gpus: vram.gpus.clone(), blocks: vram.blocks, ..self }
    }

    /// The names that peers connect to.
    pub(crate) fn names(&self) -> Vec<String> {
        lock(&self.listeners).iter().map(|(name, _)| name.clone()).collect()
    }

    /// The sockets, to be served; their names stay.
    pub(super) fn take_listeners(&self) -> Vec<Listener> {
        std::mem::take(&mut *lock(&self.listeners)).into_iter().map(|(_, one)| one).collect()
    }

    /// Where a peer that listens under `names` may be reached from here: its folder may be mounted
    /// at another place in our container.
    pub(super) fn candidates(&self, names: &[String]) -> Vec<String> {
        let mut candidates = names.to_vec();
        for name in names.iter().filter(|name| !name.starts_with('@')) {
            let file = std::path::Path::new(name).file_name();
            let here = self.folder.as_ref().zip(file).map(|(folder, file)| folder.join(file));
            candidates.extend(here.and_then(|path| path.to_str().map(str::to_owned)));
        }
        candidates.dedup();
        candidates
    }

    /// The shards' actors run, on these NUMA nodes.
    pub(crate) fn start(&self, shards: Vec<PumpAddress<Message>>, nodes: Vec<Option<u32>>) {
        // Nobody else sets them.
        let _ = (self.nodes.set(nodes), self.shards.set(shards));
    }

    /// The NUMA node of each shard.
    pub(super) fn nodes(&self) -> &[Option<u32>] {
        self.nodes.get().map_or(&[], Vec::as_slice)
    }

    pub(crate) fn shards(&self) -> &[PumpAddress<Message>] {
        self.shards.get().map_or(&[], Vec::as_slice)
    }

    pub(super) fn next_session(&self) -> u64 {
        self.next_session.fetch_add(1, Ordering::Relaxed)
    }

    /// Peers may believe in the region from now on.
    pub(crate) fn added(&self, region: &Region) {
        self.roll.enter(region.memory().id());
        // Nobody listens where no session is open.
        let _ = self.changes.send(Change::Added);
    }

    /// From now on nobody's reading of the region is good any more, finished or not.
    pub(crate) fn struck(&self, region: &Region) {
        let id = region.memory().id();
        self.roll.strike(id);
        let _ = self.changes.send(Change::Gone(id));
    }

    /// Ends every session and waits for that.
    pub(crate) async fn close(&self) {
        self.closing.send_replace(true);
        self.closing.closed().await;
    }
}

/// Passes a message on to a shard whose inbox may be full.
pub(super) async fn tell(shard: &PumpAddress<Message>, mut message: Message) {
    while let Err(SendError::Full(back)) = shard.send(message) {
        message = back;
        tokio::task::yield_now().await;
    }
}

fn listen(incarnation: u64, folder: Option<&std::path::Path>) -> Result<Vec<(String, Listener)>> {
    let (uid, process) = (own_uid(), std::process::id());
    let abstract_name = format!("@{SOCKET_PREFIX}{uid}-{process}-{incarnation:x}");
    let mut names = vec![abstract_name];
    if let Some(folder) = folder {
        remove_dead(folder);
        let file = format!("{SOCKET_PREFIX}{process}-{incarnation:x}{SOCKET_SUFFIX}");
        names.push(folder.join(file).to_string_lossy().into_owned());
    }
    let bind = |name: String| match Listener::bind(&name) {
        Ok(listener) => Ok((name, listener)),
        Err(error) => Err(Error::refused(format!(
            "no Unix socket at {name}: the folder must exist, be writable and have a short path"
        ))
        .with_source(error)),
    };
    names.into_iter().map(bind).collect()
}

/// Sockets of killed processes stay in the folder until somebody looks.
fn remove_dead(folder: &std::path::Path) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with(SOCKET_PREFIX) && name.ends_with(SOCKET_SUFFIX) {
            remove_if_dead(&entry.path());
        }
    }
}

/// Which slot of the ledger each living region has.
pub(super) struct Roll {
    pub(super) ledger: Ledger,
    slots: Mutex<Slots>,
}

#[derive(Default)]
struct Slots {
    by_region: HashMap<u64, usize>,
    free: Vec<usize>,
    used: usize,
}

impl Roll {
    fn enter(&self, id: u64) {
        let mut slots = lock(&self.slots);
        let slot = slots.free.pop().unwrap_or_else(|| {
            slots.used += 1;
            slots.used - 1
        });
        slots.by_region.insert(id, slot);
        self.ledger.enter(slot, [id]);
    }

    fn strike(&self, id: u64) {
        let mut slots = lock(&self.slots);
        if let Some(slot) = slots.by_region.remove(&id) {
            self.ledger.strike(slot);
            slots.free.push(slot);
        }
    }

    /// The slot of a living region.
    pub(super) fn slot(&self, id: u64) -> Option<usize> {
        lock(&self.slots).by_region.get(&id).copied()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hub(folder: Option<PathBuf>) -> Result<Hub> {
        let no_grants = Arc::new(Grants::new(None));
        Hub::new(7, Arc::default(), no_grants, Arc::default(), folder)
    }

    #[test]
    fn slots_are_used_again_and_bounded_by_living_regions() {
        let roll = Roll { ledger: Ledger::new(2).unwrap(), slots: Mutex::default() };
        roll.enter(1);
        roll.enter(2);
        roll.strike(1);
        roll.enter(3);
        assert_eq!((roll.slot(3), roll.slot(2), roll.slot(1)), (Some(0), Some(1), None));
        roll.strike(17);
    }

    #[test]
    fn a_socket_in_a_folder_is_looked_for_in_ours_too() {
        let folder = tempfile::tempdir().unwrap();
        let hub = hub(Some(folder.path().to_owned())).unwrap();
        let names = hub.names();
        assert!(names[0].starts_with('@') && names[1].ends_with("-7.sock"), "{names:?}");
        let theirs = ["@x".to_owned(), "/elsewhere/kvrail-1-2.sock".to_owned()];
        let here = folder.path().join("kvrail-1-2.sock");
        assert_eq!(hub.candidates(&theirs)[2], here.to_str().unwrap());
        drop(hub);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_folder_that_is_not_there_is_refused_with_its_name() {
        let error = hub(Some("/nowhere/at/all".into())).err().unwrap();
        assert!(error.to_string().contains("/nowhere/at/all"), "{error}");
    }
}

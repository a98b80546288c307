//! Grants: what a peer may do with a range of memory, until its owner takes that back. A grant is a
//! word that nobody guesses; requests bring it along, and who carries them out looks, before the
//! first byte and again while bytes move, whether it still holds.
//!
//! Taking back has two steps. *Striking* the word takes effect at once: nothing new begins under
//! it, and what is under way ends as Stale. *Quiet* it is when the last request under way has let
//! go of its [`Use`]. A peer of this host that reads from a mapping holds none: it looks at the
//! ledger behind its last byte, so nobody waits for it.

mod reference;
mod row;
mod table;

use std::hash::{BuildHasher, RandomState};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, PoisonError, RwLock, RwLockWriteGuard};
use std::time::{Duration, Instant};

use kvrail_reactors::host::ledger::Ledger;
use kvrail_reactors::region::Slice;
use tokio::sync::Notify;

pub(crate) use self::reference::Key;
pub use self::reference::{REFERENCE_BYTES, Reference};
pub(crate) use self::row::{ROW, check};
pub(crate) use self::table::Denied;
use self::table::{GrantTable, Terms};
use super::{Access, Operation, Region, RegionMap};
use crate::auth::Visitor;
use crate::limits::GRANTS_MAX;
use crate::{Error, ErrorKind, Result};

/// The error of a request whose grant the peer says does not hold.
pub(crate) fn stale() -> Error {
    let what = "the peer took the memory back: ask it for a new reference";
    Error::new(ErrorKind::Stale, what)
}

/// To whom and until when memory is granted. By default to any peer that has the reference, until
/// it is taken back.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct GrantOptions {
    /// The only peer that may use it. With authentication, a name that it has proven (see
    /// [`crate::Authentication`]). Without, its segment name, which peers say themselves: this
    /// keeps an honest peer from using what is another's, and the secret reference the others.
    pub holder: Option<String>,
    /// When it ends by itself, as if it were taken back then; to within milliseconds.
    pub expires_after: Option<Duration>,
}

/// The owner's handle of a grant. Dropping it takes the memory back in the background;
/// [`Grant::revoke`] also says when that is done.
#[derive(Debug)]
#[must_use = "a grant that is dropped is taken back"]
pub struct Grant {
    strike: Strike,
    reference: Reference,
}

impl Grant {
    /// What peers need to use it.
    pub fn reference(&self) -> Reference {
        self.reference
    }

    /// Whether it still holds: it has not expired, and its block or region is still there.
    pub fn holds(&self) -> bool {
        self.strike.grants.table().get(self.reference.key).is_some()
    }

    /// Takes the memory back. Requests under the grant end as Stale from now on; returns when none
    /// can reach the memory any more, with how long that took. Peers that are slow, stopped or gone
    /// are not waited for: what they were sending is cut off.
    pub async fn revoke(self) -> Duration {
        let since = Instant::now();
        let quiet = self.strike.quiet.clone();
        drop(self);
        quiet.wait().await;
        since.elapsed()
    }

    /// What a block keeps, to take the grant back with itself.
    pub(super) fn strike(&self) -> Strike {
        self.strike.clone()
    }
}

impl Drop for Grant {
    fn drop(&mut self) {
        self.strike.now();
    }
}

/// Takes a grant back, and tells when it is quiet.
#[derive(Debug, Clone)]
pub(super) struct Strike {
    grants: Arc<Grants>,
    key: Key,
    quiet: Quiet,
}

impl Strike {
    pub(super) fn now(&self) {
        self.grants.strike(self.key);
    }

    pub(super) fn quiet(&self) -> &Quiet {
        &self.quiet
    }
}

/// Whether requests under a grant are still under way.
#[derive(Debug, Clone)]
pub(crate) struct Quiet(flume::Receiver<()>);

impl Quiet {
    /// It was struck, and nothing touches its memory any more.
    pub(crate) fn is_here(&self) -> bool {
        self.0.is_disconnected()
    }

    pub(crate) async fn wait(self) {
        // Nobody sends: the channel closes with the last use.
        let _: Result<(), _> = self.0.recv_async().await;
    }
}

/// A request under way under a grant, which isn't quiet before this is dropped.
#[derive(Debug, Clone)]
pub(crate) struct Use {
    state: Arc<State>,
    _guard: flume::Sender<()>,
}

impl Use {
    /// Whether the grant was taken back: the request must end as Stale.
    pub(crate) fn is_struck(&self) -> bool {
        self.state.is_struck.load(Ordering::Acquire)
    }

    /// Whether it is of the same grant.
    pub(crate) fn is_of(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.state, &other.state)
    }
}

/// What the uses of one grant share.
#[derive(Debug, Default)]
struct State {
    is_struck: AtomicBool,
    /// A NIC lets peers in by itself: it has to be told when the grant is struck.
    has_window: AtomicBool,
}

/// What the table keeps for each grant.
#[derive(Debug)]
struct Granted {
    memory: Slice,
    used: Use,
    quiet: Quiet,
}

/// A row for each grant, for peers of this host to look at.
pub(crate) type GrantLedger = Ledger<ROW>;

/// The grants of an engine, looked up by every shard.
pub(crate) struct Grants {
    table: RwLock<GrantTable<Granted>>,
    /// None where no peer of this host reads here.
    ledger: Option<GrantLedger>,
    words: Words,
    is_closed: AtomicBool,
    /// The next one ends sooner than it did.
    sooner: Notify,
    /// Closes the windows of a grant that was struck.
    close_windows: OnceLock<CloseWindows>,
}

type CloseWindows = Box<dyn Fn(Key) + Send + Sync>;

/// Where words come from: a keyed hash of a number, which nobody guesses from other words.
struct Words {
    state: RandomState,
    next: std::sync::atomic::AtomicU64,
}

impl Words {
    fn draw(&self) -> u64 {
        self.state.hash_one(self.next.fetch_add(1, Ordering::Relaxed)).max(1)
    }
}

/// What a grant is made of.
pub(crate) struct Granting<'a> {
    pub(crate) region: &'a Region,
    pub(crate) range: Range<usize>,
    pub(crate) access: Access,
    pub(crate) holder: Option<String>,
    pub(crate) expires_ns: Option<u64>,
    pub(crate) generation: u64,
}

impl Grants {
    pub(crate) fn new(ledger: Option<GrantLedger>) -> Self {
        let words = Words { state: RandomState::new(), next: Default::default() };
        let table = RwLock::new(GrantTable::new(GRANTS_MAX));
        Self {
            table,
            ledger,
            words,
            is_closed: AtomicBool::new(false),
            sooner: Notify::new(),
            close_windows: OnceLock::new(),
        }
    }

    /// Says who closes windows, before there are any.
    #[cfg(feature = "rdma")]
    pub(crate) fn close_windows_by(&self, close: impl Fn(Key) + Send + Sync + 'static) {
        // It is said once.
        let _ = self.close_windows.set(Box::new(close));
    }

    pub(crate) fn ledger(&self) -> Option<&GrantLedger> {
        self.ledger.as_ref()
    }

    /// Makes a grant.
    ///
    /// # Errors
    /// Refused: it permits nothing, or the range isn't inside the region. Busy: there are too many.
    /// Closed: the engine was stopped.
    pub(crate) fn add(self: &Arc<Self>, granting: Granting<'_>) -> Result<Grant> {
        let Granting { region, range, access, holder, expires_ns, generation } = granting;
        if access == Access::LOCAL {
            return Err(Error::refused("a grant that permits neither reads nor writes"));
        }
        if range.is_empty() || range.end > region.len() {
            return Err(Error::refused(format!(
                "a grant of bytes {}..{} of a region of {} bytes",
                range.start,
                range.end,
                region.len()
            )));
        }
        let memory = Slice::new(region.memory().clone(), range.start, range.len())
            .map_err(|error| Error::refused(error.to_string()))?;
        let (addr, len) = (memory.addr(), memory.len() as u64);
        let holder = holder.map(Into::into);
        let terms = Terms { addr, len, access, holder, expires_ns };
        let (guard, quiet) = flume::bounded(0);
        let used = Use { state: Arc::default(), _guard: guard };
        let quiet = Quiet(quiet);
        let key = self.enter(terms, Granted { memory, used, quiet: quiet.clone() })?;
        let strike = Strike { grants: self.clone(), key, quiet };
        Ok(Grant { strike, reference: Reference { addr, len, generation, key } })
    }

    fn enter(&self, terms: Terms, granted: Granted) -> Result<Key> {
        let word = self.words.draw();
        let row = row::row(word, &terms);
        let mut table = self.change();
        if self.is_closed.load(Ordering::Acquire) {
            return Err(Error::closed("the engine was stopped"));
        }
        let next_ns = table.next_end_ns();
        let key = table.insert(word, terms, granted)?;
        if let Some(ledger) = &self.ledger {
            ledger.enter(key.slot as usize, row);
        }
        if table.next_end_ns() != next_ns {
            self.sooner.notify_one();
        }
        Ok(key)
    }

    /// The memory that a peer may touch by a request, and the use that it makes of the grant.
    pub(crate) fn find(
        &self,
        key: Key,
        holder: &str,
        addr: u64,
        len: u64,
        operation: Operation,
    ) -> Result<(Slice, Use), Denied> {
        let table = self.table();
        let entry = table.get(key).ok_or(Denied::Stale)?;
        entry.terms.check(holder, addr, len, operation)?;
        let offset = (addr - entry.terms.addr) as usize;
        let memory = entry.own.memory.part(offset, len as usize).map_err(|_| Denied::Refused)?;
        Ok((memory, entry.own.used.clone()))
    }

    /// The same for a visitor, under any of its names, if the policy lets it do that with the
    /// region, too.
    pub(crate) fn find_for(
        &self,
        visitor: &Visitor,
        regions: &RegionMap,
        key: Key,
        addr: u64,
        len: u64,
        operation: Operation,
    ) -> Result<(Slice, Use), Denied> {
        let look = |holder: &str| self.find(key, holder, addr, len, operation);
        let found = visitor.under_a_name(Denied::Refused, look)?;
        if visitor.is_unbound() {
            return Ok(found);
        }
        let (region, _) = regions.find_own(addr, len).map_err(|_| Denied::Stale)?;
        match visitor.may(region, operation) {
            true => Ok(found),
            false => Err(Denied::Refused),
        }
    }

    /// The memory that a peer is let into by a window, what it may do there, and the use of the
    /// grant that the window makes as long as it is open.
    #[cfg(feature = "rdma")]
    pub(crate) fn window(&self, key: Key, holder: &str) -> Result<(Slice, Access, Use), Denied> {
        let table = self.table();
        let entry = table.get(key).ok_or(Denied::Stale)?;
        let is_holder = entry.terms.holder.as_ref().is_none_or(|only| **only == *holder);
        if !is_holder {
            return Err(Denied::Refused);
        }
        // Under the table's lock: who strikes the grant behind this sees the window.
        entry.own.used.state.has_window.store(true, Ordering::Relaxed);
        Ok((entry.own.memory.clone(), entry.terms.access, entry.own.used.clone()))
    }

    /// The same for a visitor, under any of its names; what it may do there is what the policy lets
    /// it do with the region.
    #[cfg(feature = "rdma")]
    pub(crate) fn window_for(
        &self,
        visitor: &Visitor,
        regions: &RegionMap,
        key: Key,
    ) -> Result<(Slice, Access, Use), Denied> {
        let found = visitor.under_a_name(Denied::Refused, |holder| self.window(key, holder))?;
        let (memory, access, used) = found;
        let own = regions.find_own(memory.addr(), memory.len() as u64);
        let (region, _) = own.map_err(|_| Denied::Stale)?;
        let access = visitor.bound(region, access);
        match access == Access::LOCAL {
            false => Ok((memory, access, used)),
            true => Err(Denied::Refused),
        }
    }

    /// From now on nothing begins under the grant, and what is under way ends as Stale.
    pub(crate) fn strike(&self, key: Key) {
        let mut table = self.change();
        self.strike_in(&mut table, key);
    }

    fn strike_in(&self, table: &mut GrantTable<Granted>, key: Key) {
        let Some(entry) = table.strike(key) else { return };
        let state = &entry.own.used.state;
        state.is_struck.store(true, Ordering::SeqCst);
        if let Some(close) = self.close_windows.get()
            && state.has_window.load(Ordering::Relaxed)
        {
            close(key);
        }
        if let Some(ledger) = &self.ledger {
            ledger.strike(key.slot as usize);
        }
    }

    /// Strikes all grants of a region, which goes away; returns what to wait for.
    pub(crate) fn strike_region(&self, region: &Region) -> Vec<Quiet> {
        let is_its = |granted: &Granted| Arc::ptr_eq(granted.memory.region(), region.memory());
        let mut table = self.change();
        let keys = table.keys(is_its);
        let quiet = |key: &Key| table.get(*key).map(|entry| entry.own.quiet.clone());
        let quiets = keys.iter().filter_map(quiet).collect();
        keys.into_iter().for_each(|key| self.strike_in(&mut table, key));
        quiets
    }

    /// Strikes those whose time is over; returns when the next one is due.
    pub(crate) fn strike_expired(&self, now_ns: u64) -> Option<u64> {
        let mut table = self.change();
        while let Some(key) = table.expired(now_ns) {
            self.strike_in(&mut table, key);
        }
        table.next_end_ns()
    }

    /// Strikes all of them, and makes no more.
    pub(crate) fn close(&self) {
        let mut table = self.change();
        self.is_closed.store(true, Ordering::Release);
        table.keys(|_| true).into_iter().for_each(|key| self.strike_in(&mut table, key));
    }

    /// Strikes what expires, for as long as it is polled.
    pub(crate) async fn keep_time(&self, now_ns: impl Fn() -> u64) {
        loop {
            // Before looking, so that no news are missed.
            let sooner = self.sooner.notified();
            match self.strike_expired(now_ns()) {
                None => sooner.await,
                Some(due_ns) => {
                    let wait = Duration::from_nanos(due_ns.saturating_sub(now_ns()));
                    // Sooner, or due: either way there is something to look at.
                    let _ = tokio::time::timeout(wait, sooner).await;
                }
            }
        }
    }

    /// How many hold.
    #[cfg(any(test, feature = "sim"))]
    pub(crate) fn len(&self) -> usize {
        self.table().len()
    }

    fn table(&self) -> std::sync::RwLockReadGuard<'_, GrantTable<Granted>> {
        self.table.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self) -> RwLockWriteGuard<'_, GrantTable<Granted>> {
        self.table.write().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(any(fuzzing, test))]
impl Default for Grants {
    /// Without peers of this host.
    fn default() -> Self {
        Self::new(None)
    }
}

impl std::fmt::Debug for Grants {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Grants")
    }
}

#[cfg(test)]
mod tests;

//! A device as all shards share it: its protection domain, and the regions that it may reach.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};

use super::RemoteAccess;
use super::device::Device;
use super::domain::Domain;
use super::library::VerbsError;
use super::memory::{PIECE_MAX_BYTES, Progress, Registration};
use crate::region::Region;

/// An opened device with its domain and registrations, which all shards share.
#[derive(Debug)]
pub struct Adapter {
    pub(super) domain: Arc<Domain>,
    /// By the region's id; a region has one for each access that was asked for.
    seats: RwLock<HashMap<u64, Vec<Seat>>>,
    /// How often a registration was made or taken back.
    version: AtomicU64,
}

/// A region's place among the registrations.
#[derive(Debug)]
struct Seat {
    access: RemoteAccess,
    /// Who has asked for it and not taken it back.
    holders: usize,
    place: Arc<Place>,
}

/// Filled by the first who asks, while others who ask for the same wait.
#[derive(Debug, Default)]
struct Place {
    making: Mutex<()>,
    made: OnceLock<Arc<Registration>>,
}

/// What a shard knows of the registrations without asking the adapter each time.
#[derive(Debug)]
pub(super) struct Known {
    adapter: Arc<Adapter>,
    version: u64,
    found: HashMap<u64, Vec<Arc<Registration>>>,
}

impl Adapter {
    /// Opens a device.
    ///
    /// # Errors
    /// As [`Device::open`].
    pub fn open(name: &str) -> Result<Arc<Self>, VerbsError> {
        let domain = Domain::new(Device::open(name)?)?;
        let (seats, version) = (RwLock::default(), AtomicU64::new(0));
        Ok(Arc::new(Self { domain, seats, version }))
    }

    /// The device.
    pub fn device(&self) -> &Device {
        &self.domain.device
    }

    /// Makes a region reachable for the device, and for peers as `access` says. However often that
    /// is asked for, it is done once, and holds until it was taken back as often.
    ///
    /// # Errors
    /// What the kernel says: too little locked memory, or too many registrations.
    pub fn register(
        &self,
        region: &Arc<Region>,
        access: RemoteAccess,
    ) -> Result<Arc<Registration>, VerbsError> {
        self.register_with(region, access, &|_, _| ())
    }

    /// The same, and tells of its progress: a large region takes seconds.
    ///
    /// # Errors
    /// As [`Adapter::register`].
    pub fn register_with(
        &self,
        region: &Arc<Region>,
        access: RemoteAccess,
        progress: Progress<'_>,
    ) -> Result<Arc<Registration>, VerbsError> {
        self.register_in_pieces(region, access, PIECE_MAX_BYTES, progress)
    }

    /// The same, cut into smaller pieces than it has to be, for tests that look at the cuts.
    ///
    /// # Errors
    /// As [`Adapter::register`].
    #[doc(hidden)]
    pub fn register_in_pieces(
        &self,
        region: &Arc<Region>,
        access: RemoteAccess,
        piece_bytes: usize,
        progress: Progress<'_>,
    ) -> Result<Arc<Registration>, VerbsError> {
        let place = self.seat(region.id(), access);
        let _making = place.making.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(made) = place.made.get() {
            return Ok(made.clone());
        }
        let made = Registration::new(&self.domain, region.clone(), access, piece_bytes, progress);
        let made = made.inspect_err(|_| self.deregister(region, access))?;
        let made = place.made.get_or_init(|| Arc::new(made)).clone();
        self.version.fetch_add(1, Ordering::Release);
        Ok(made)
    }

    /// Takes a registration back. When everybody has who asked for it, the device reaches nothing
    /// by it once its last holder is gone: shards let go at their next [`Nic::refresh`].
    ///
    /// [`Nic::refresh`]: super::Nic::refresh
    pub fn deregister(&self, region: &Region, access: RemoteAccess) {
        let mut seats = self.seats.write().unwrap_or_else(PoisonError::into_inner);
        let Some(of_region) = seats.get_mut(&region.id()) else { return };
        let Some(at) = of_region.iter().position(|seat| seat.access == access) else { return };
        of_region[at].holders -= 1;
        if of_region[at].holders > 0 {
            return;
        }
        let taken = of_region.swap_remove(at);
        if of_region.is_empty() {
            seats.remove(&region.id());
        }
        self.version.fetch_add(1, Ordering::Release);
        drop(seats);
        // Unpinning takes a while, and nobody is kept waiting for it.
        drop(taken);
    }

    /// A registration of this region, whatever it permits.
    pub fn find(&self, region: &Region) -> Option<Arc<Registration>> {
        self.all_of(region).into_iter().next()
    }

    /// A place for another holder.
    fn seat(&self, region: u64, access: RemoteAccess) -> Arc<Place> {
        let mut seats = self.seats.write().unwrap_or_else(PoisonError::into_inner);
        let of_region = seats.entry(region).or_default();
        if let Some(seat) = of_region.iter_mut().find(|seat| seat.access == access) {
            seat.holders += 1;
            return seat.place.clone();
        }
        let place = Arc::new(Place::default());
        of_region.push(Seat { access, holders: 1, place: place.clone() });
        place
    }

    fn all_of(&self, region: &Region) -> Vec<Arc<Registration>> {
        let seats = self.seats.read().unwrap_or_else(PoisonError::into_inner);
        let of_region = seats.get(&region.id()).into_iter().flatten();
        of_region.filter_map(|seat| seat.place.made.get().cloned()).collect()
    }
}

impl Known {
    pub(super) fn new(adapter: Arc<Adapter>) -> Self {
        Self { adapter, version: 0, found: HashMap::new() }
    }

    pub(super) fn adapter(&self) -> &Adapter {
        &self.adapter
    }

    /// Lets go of everything, if something was made or taken back.
    pub(super) fn refresh(&mut self) {
        // Whoever does either counts behind it: with the new number nothing old is found.
        let version = self.adapter.version.load(Ordering::Acquire);
        if version != self.version {
            self.version = version;
            self.found.clear();
        }
    }

    /// The registrations of a region.
    pub(super) fn of(&mut self, region: &Region) -> &[Arc<Registration>] {
        let id = region.id();
        if !self.found.contains_key(&id) {
            let all = self.adapter.all_of(region);
            if all.is_empty() {
                return &[];
            }
            self.found.insert(id, all);
        }
        &self.found[&id]
    }
}

//! Who may touch which bytes: shared leases to read from, exclusive ones to write into. A lease
//! in flight belongs to the flight, so dropping a future frees nothing that is still moving.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use kvrail_reactors::region::{AccessError, OutOfRange, Slice};

use super::{Registered, gpu_error};
use crate::{Error, Result};

/// How a range is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    Shared,
    Exclusive,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Shared => "shared",
            Self::Exclusive => "exclusively",
        })
    }
}

/// The ranges of one region that are held, cut at the edges of leases: start → end, holders.
#[derive(Debug, Default)]
pub(super) struct LeaseTable {
    segments: BTreeMap<usize, Segment>,
}

#[derive(Debug, Clone, Copy)]
struct Segment {
    end: usize,
    holders: Holders,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Holders {
    Shared(u32),
    Exclusive,
}

/// What stands in the way of a lease.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Held {
    pub(super) range: Range<usize>,
    pub(super) mode: Mode,
}

impl LeaseTable {
    /// Holds `range`, which isn't empty.
    pub(super) fn take(&mut self, range: Range<usize>, mode: Mode) -> Result<(), Held> {
        let holders = match mode {
            Mode::Shared => Holders::Shared(1),
            Mode::Exclusive => Holders::Exclusive,
        };
        debug_assert!(!range.is_empty(), "nobody holds nothing");
        if !self.is_held(&range) {
            self.segments.insert(range.start, Segment { end: range.end, holders });
            return Ok(());
        }
        if let Some(held) = self.conflict(&range, mode) {
            return Err(held);
        }
        self.cut(range.start);
        self.cut(range.end);
        let mut at = range.start;
        let mut gaps = Vec::new();
        for (&start, segment) in self.segments.range_mut(range.clone()) {
            if start > at {
                gaps.push(at..start);
            }
            if let Holders::Shared(count) = &mut segment.holders {
                *count += 1;
            }
            at = segment.end;
        }
        if at < range.end {
            gaps.push(at..range.end);
        }
        self.segments
            .extend(gaps.into_iter().map(|gap| (gap.start, Segment { end: gap.end, holders })));
        Ok(())
    }

    /// Gives back what `take` held, or a part of it.
    pub(super) fn release(&mut self, range: Range<usize>, mode: Mode) {
        if range.is_empty() || self.release_whole(range.start, Some(range.end), mode) {
            return;
        }
        self.cut(range.start);
        self.cut(range.end);
        let starts: Vec<usize> = self.segments.range(range).map(|(&start, _)| start).collect();
        for start in starts {
            self.release_whole(start, None, mode);
        }
    }

    /// One holder fewer of the segment that starts here, if it ends there; whether it does.
    fn release_whole(&mut self, start: usize, end: Option<usize>, mode: Mode) -> bool {
        let Entry::Occupied(mut found) = self.segments.entry(start) else { return false };
        if end.is_some_and(|end| found.get().end != end) {
            return false;
        }
        match (&mut found.get_mut().holders, mode) {
            (Holders::Shared(count), Mode::Shared) if *count > 1 => *count -= 1,
            (Holders::Shared(_), Mode::Shared) | (Holders::Exclusive, Mode::Exclusive) => {
                found.remove();
            }
            (holders, mode) => unreachable!("{mode:?} release of {holders:?}"),
        }
        true
    }

    pub(super) fn is_held(&self, range: &Range<usize>) -> bool {
        self.conflict(range, Mode::Exclusive).is_some()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.segments.is_empty()
    }

    fn conflict(&self, range: &Range<usize>, mode: Mode) -> Option<Held> {
        self.segments
            .range(..range.end)
            .rev()
            .take_while(|(_, segment)| segment.end > range.start)
            .find(|(_, segment)| mode == Mode::Exclusive || segment.holders == Holders::Exclusive)
            .map(|(&start, segment)| Held {
                range: start..segment.end,
                mode: match segment.holders {
                    Holders::Shared(_) => Mode::Shared,
                    Holders::Exclusive => Mode::Exclusive,
                },
            })
    }

    /// Makes `at` an edge between segments.
    fn cut(&mut self, at: usize) {
        let Some((_, segment)) = self.segments.range_mut(..at).next_back() else { return };
        if segment.end > at {
            let tail = *segment;
            segment.end = at;
            self.segments.insert(at, tail);
        }
    }
}

/// A held range; gives it back when dropped.
#[derive(Debug)]
pub(super) struct Hold {
    region: Arc<Registered>,
    range: Range<usize>,
    mode: Mode,
}

impl Hold {
    pub(super) fn new(region: Arc<Registered>, range: Range<usize>, mode: Mode) -> Self {
        Self { region, range, mode }
    }

    fn slice(&self) -> Slice {
        self.region.slice(&self.range)
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.region.release(self.range.clone(), self.mode);
    }
}

/// A lease to read from. Clones share the hold; the last one gives it back.
///
/// Nobody writes through it:
/// ```compile_fail,E0599
/// # fn wrong(region: kvrail::Region) -> kvrail::Result<()> {
/// let mut lease = region.share(0..4096)?;
/// lease.copy_in(0, b"a write may be reading this")?;
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
pub struct SharedLease {
    hold: Arc<Hold>,
    slice: Slice,
}

impl SharedLease {
    pub(super) fn new(hold: Hold) -> Self {
        Self { slice: hold.slice(), hold: Arc::new(hold) }
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.slice.len()
    }

    /// Never true: an empty lease is refused.
    pub fn is_empty(&self) -> bool {
        self.slice.is_empty()
    }

    /// The first byte's address.
    pub fn addr(&self) -> u64 {
        self.slice.addr()
    }

    /// Copies bytes out, from `offset` on.
    ///
    /// # Errors
    /// Refused where they aren't all inside the lease. Of a GPU's memory its driver's, too.
    pub fn copy_out(&self, offset: usize, out: &mut [u8]) -> Result<()> {
        self.slice.read(offset, out).map_err(no_access)
    }

    /// A part of this lease that shares its hold.
    ///
    /// # Errors
    /// Refused where it isn't inside.
    pub fn slice(&self, range: Range<usize>) -> Result<Self> {
        let slice = self.slice.part(range.start, range.len()).map_err(out_of_range)?;
        Ok(Self { hold: self.hold.clone(), slice })
    }

    pub(crate) fn memory(&self) -> &Slice {
        &self.slice
    }
}

/// A lease to write into: while it lives, nobody else has a lease on these bytes.
///
/// A read takes it along, and its outcome brings it back:
/// ```
/// # use kvrail::{Batch, Engine, Peer, Region, Result};
/// # async fn right(engine: Engine, peer: Peer, region: Region, addr: u64) -> Result<()> {
/// let mut batch = Batch::new(&peer);
/// batch.read(region.lease(0..4096)?, addr);
/// let leases = engine.transfer(batch).await?.into_leases();
/// let lease = leases.into_iter().next().and_then(kvrail::Lease::into_exclusive);
/// # Ok(()) }
/// ```
/// Meanwhile it is out of reach, and there is no second one:
/// ```compile_fail,E0382
/// # use kvrail::{Batch, Engine, Peer, Region, Result};
/// # fn wrong(engine: Engine, peer: Peer, region: Region, addr: u64) -> Result<()> {
/// let mut lease = region.lease(0..4096)?;
/// let mut batch = Batch::new(&peer);
/// batch.read(lease, addr);
/// let transfer = engine.transfer(batch);
/// lease.copy_in(0, b"the peer's bytes may be landing here")?;
/// # Ok(()) }
/// ```
/// ```compile_fail,E0599
/// # fn wrong(region: kvrail::Region) -> kvrail::Result<()> {
/// let lease = region.lease(0..4096)?;
/// let second = lease.clone();
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct ExclusiveLease {
    hold: Hold,
    slice: Slice,
}

impl ExclusiveLease {
    pub(super) fn new(hold: Hold) -> Self {
        Self { slice: hold.slice(), hold }
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.slice.len()
    }

    /// Never true: an empty lease is refused.
    pub fn is_empty(&self) -> bool {
        self.slice.is_empty()
    }

    /// The first byte's address.
    pub fn addr(&self) -> u64 {
        self.slice.addr()
    }

    /// Copies bytes in, from `offset` on.
    ///
    /// # Errors
    /// Refused where they aren't all inside the lease. Of a GPU's memory its driver's, too.
    pub fn copy_in(&mut self, offset: usize, bytes: &[u8]) -> Result<()> {
        self.slice.write(offset, bytes).map_err(no_access)
    }

    /// Copies bytes out, from `offset` on.
    ///
    /// # Errors
    /// Refused where they aren't all inside the lease. Of a GPU's memory its driver's, too.
    pub fn copy_out(&self, offset: usize, out: &mut [u8]) -> Result<()> {
        self.slice.read(offset, out).map_err(no_access)
    }

    /// Cuts the lease in two: the first `at` bytes and the rest.
    ///
    /// # Errors
    /// Refused where either part would be empty; the lease is given back.
    pub fn split_at(mut self, at: usize) -> Result<(Self, Self)> {
        if at == 0 || at >= self.len() {
            return Err(Error::refused(format!("a lease of {} bytes cut at {at}", self.len())));
        }
        let middle = self.hold.range.start + at;
        let right = middle..self.hold.range.end;
        self.hold.range.end = middle;
        let right = Hold::new(self.hold.region.clone(), right, Mode::Exclusive);
        self.slice.truncate(at);
        Ok((self, Self::new(right)))
    }

    /// Makes it a shared lease, without a moment in which nobody holds the bytes.
    pub fn downgrade(mut self) -> SharedLease {
        self.hold.region.downgrade(self.hold.range.clone());
        self.hold.mode = Mode::Shared;
        SharedLease::new(self.hold)
    }

    pub(crate) fn memory(&self) -> &Slice {
        &self.slice
    }
}

fn out_of_range(error: OutOfRange) -> Error {
    Error::refused(error.to_string())
}

fn no_access(error: AccessError) -> Error {
    match error {
        AccessError::OutOfRange(error) => out_of_range(error),
        AccessError::Device(failure) => gpu_error(&failure),
    }
}

/// What a read that failed has left: old bytes, new ones or others, in any mixture. They are not to
/// be read, only to be written over.
///
/// ```compile_fail,E0599
/// # fn wrong(lease: kvrail::UndefinedLease) {
/// let mut key = [0; 64];
/// lease.copy_out(0, &mut key);
/// # }
/// ```
#[derive(Debug)]
pub struct UndefinedLease(ExclusiveLease);

impl UndefinedLease {
    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Never true: an empty lease is refused.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The first byte's address.
    pub fn addr(&self) -> u64 {
        self.0.addr()
    }

    /// To write over the bytes, or to have another read do so.
    pub fn overwrite(self) -> ExclusiveLease {
        self.0
    }
}

/// A lease of any kind, as a finished transfer returns it.
#[derive(Debug)]
pub enum Lease {
    /// What a write read from.
    Shared(SharedLease),
    /// What a read wrote into, all of it; or nothing of it, where its status says so.
    Exclusive(ExclusiveLease),
    /// What a read that failed may have written into.
    Undefined(UndefinedLease),
}

impl Lease {
    /// The exclusive lease of a read; none of one that failed and may have written.
    pub fn into_exclusive(self) -> Option<ExclusiveLease> {
        match self {
            Self::Exclusive(lease) => Some(lease),
            Self::Shared(_) | Self::Undefined(_) => None,
        }
    }

    /// The lease of a read, however that ended, to be written over.
    pub fn overwrite(self) -> Option<ExclusiveLease> {
        match self {
            Self::Exclusive(lease) => Some(lease),
            Self::Undefined(lease) => Some(lease.overwrite()),
            Self::Shared(_) => None,
        }
    }

    /// The shared lease of a write.
    pub fn into_shared(self) -> Option<SharedLease> {
        match self {
            Self::Shared(lease) => Some(lease),
            Self::Exclusive(_) | Self::Undefined(_) => None,
        }
    }

    /// After a failure that may have written into it.
    pub(crate) fn undefined(self) -> Self {
        match self {
            Self::Exclusive(lease) => Self::Undefined(UndefinedLease(lease)),
            other => other,
        }
    }

    pub(crate) fn memory(&self) -> &Slice {
        match self {
            Self::Shared(lease) => lease.memory(),
            Self::Exclusive(lease) => lease.memory(),
            Self::Undefined(lease) => lease.0.memory(),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ROOM: usize = 24;

    /// One counter a byte: -1 exclusive, else the number of shared holders.
    fn model_take(model: &mut [i32], range: Range<usize>, mode: Mode) -> bool {
        let bytes = &mut model[range];
        let free = match mode {
            Mode::Shared => bytes.iter().all(|&holders| holders >= 0),
            Mode::Exclusive => bytes.iter().all(|&holders| holders == 0),
        };
        if free {
            let step = if mode == Mode::Shared { 1 } else { -1 };
            bytes.iter_mut().for_each(|holders| *holders += step);
        }
        free
    }

    proptest! {
        #[test]
        fn the_table_agrees_with_a_counter_for_every_byte(
            steps in prop::collection::vec((0..ROOM, 1..ROOM, any::<bool>(), any::<u8>()), 0..60)
        ) {
            let mut table = LeaseTable::default();
            let mut model = [0; ROOM];
            let mut held: Vec<(Range<usize>, Mode)> = Vec::new();
            for (start, len, shared, pick) in steps {
                let range = start..(start + len).min(ROOM);
                let mode = if shared { Mode::Shared } else { Mode::Exclusive };
                if pick % 3 == 0 && !held.is_empty() {
                    let (range, mode) = held.swap_remove(pick as usize % held.len());
                    let step = if mode == Mode::Shared { -1 } else { 1 };
                    model[range.clone()].iter_mut().for_each(|holders| *holders += step);
                    table.release(range, mode);
                } else {
                    let taken = table.take(range.clone(), mode).is_ok();
                    prop_assert_eq!(taken, model_take(&mut model, range.clone(), mode));
                    if taken {
                        held.push((range, mode));
                    }
                }
                for (byte, &holders) in model.iter().enumerate() {
                    prop_assert_eq!(table.is_held(&(byte..byte + 1)), holders != 0);
                }
            }
            for (range, mode) in held {
                table.release(range, mode);
            }
            prop_assert!(table.is_empty());
        }
    }
}

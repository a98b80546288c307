//! Pure: which grants hold, by slot and word, and what each of them permits. A slot is used again,
//! its word is not, so a key is permission and generation at once.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::Key;
use crate::canary::{self, Canary};
use crate::memory::{Access, Operation};
use crate::{Error, Result};

/// What a grant permits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Terms {
    /// The first byte's address.
    pub(crate) addr: u64,
    pub(crate) len: u64,
    pub(crate) access: Access,
    /// The one peer that may use it; any that has the key where there is none.
    pub(crate) holder: Option<Arc<str>>,
    /// When it ends by itself.
    pub(crate) expires_ns: Option<u64>,
}

/// Why a request with a key is not carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Denied {
    /// No such grant holds: it was taken back, it has expired, or it never was.
    Stale,
    /// It holds, but not for this range, operation or peer.
    Refused,
}

impl Terms {
    /// Whether a peer of this name may do that.
    pub(crate) fn check(
        &self,
        holder: &str,
        addr: u64,
        len: u64,
        operation: Operation,
    ) -> Result<(), Denied> {
        let is_holder = self.holder.as_ref().is_none_or(|only| **only == *holder);
        match is_holder && permits((self.addr, self.len), self.access, addr, len, operation) {
            true => Ok(()),
            false => Err(Denied::Refused),
        }
    }
}

/// Whether a range of bytes with this access takes such a request.
pub(super) fn permits(
    (start, room): (u64, u64),
    access: Access,
    addr: u64,
    len: u64,
    operation: Operation,
) -> bool {
    let end = addr.checked_sub(start).and_then(|offset| offset.checked_add(len));
    let permitted = match operation {
        Operation::Read => access.read,
        Operation::Write => access.write,
    };
    permitted && len > 0 && end.is_some_and(|end| end <= room)
}

/// The grants of an engine, each with something of its owner's.
#[derive(Debug)]
pub(crate) struct GrantTable<T> {
    slots: Vec<Option<Entry<T>>>,
    free: Vec<u32>,
    /// Slots by the time at which they end.
    ends: BTreeSet<(u64, u32)>,
    capacity: usize,
}

#[derive(Debug)]
pub(crate) struct Entry<T> {
    pub(crate) word: u64,
    pub(crate) terms: Terms,
    pub(crate) own: T,
}

impl<T> GrantTable<T> {
    pub(crate) fn new(capacity: usize) -> Self {
        Self { slots: Vec::new(), free: Vec::new(), ends: BTreeSet::new(), capacity }
    }

    /// Enters a grant under a word that no other has had.
    ///
    /// # Errors
    /// Busy: there are too many.
    pub(crate) fn insert(&mut self, word: u64, terms: Terms, own: T) -> Result<Key> {
        let slot = match self.free.pop() {
            Some(slot) => slot,
            None if self.slots.len() < self.capacity => {
                self.slots.push(None);
                (self.slots.len() - 1) as u32
            }
            None => {
                return Err(Error::busy(format!(
                    "{} grants hold already: revoke some, or grant larger ranges",
                    self.capacity
                )));
            }
        };
        self.ends.extend(terms.expires_ns.map(|at_ns| (at_ns, slot)));
        self.slots[slot as usize] = Some(Entry { word, terms, own });
        Ok(Key { slot, word })
    }

    /// The grant of this key.
    pub(crate) fn get(&self, key: Key) -> Option<&Entry<T>> {
        let entry = self.slots.get(key.slot as usize)?.as_ref()?;
        let is_same = entry.word == key.word || canary::is_on(Canary::GenerationUnchecked);
        is_same.then_some(entry)
    }

    /// Takes a grant out; none where it is out already.
    pub(crate) fn strike(&mut self, key: Key) -> Option<Entry<T>> {
        self.get(key)?;
        let entry = self.slots[key.slot as usize].take()?;
        self.free.push(key.slot);
        if let Some(at_ns) = entry.terms.expires_ns {
            self.ends.remove(&(at_ns, key.slot));
        }
        Some(entry)
    }

    /// The next one whose time is over.
    pub(crate) fn expired(&self, now_ns: u64) -> Option<Key> {
        let (at_ns, slot) = *self.ends.first()?;
        let entry = self.slots.get(slot as usize)?.as_ref()?;
        (at_ns <= now_ns).then_some(Key { slot, word: entry.word })
    }

    /// When the next one ends by itself.
    pub(crate) fn next_end_ns(&self) -> Option<u64> {
        self.ends.first().map(|(at_ns, _)| *at_ns)
    }

    /// Those of which this is true.
    pub(crate) fn keys(&self, is_meant: impl Fn(&T) -> bool) -> Vec<Key> {
        let entries = self.slots.iter().zip(0..).filter_map(|(entry, slot)| {
            let entry = entry.as_ref().filter(|entry| is_meant(&entry.own))?;
            Some(Key { slot, word: entry.word })
        });
        entries.collect()
    }

    /// How many hold.
    #[cfg(any(test, feature = "sim"))]
    pub(crate) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    fn terms(addr: u64, len: u64, access: Access) -> Terms {
        Terms { addr, len, access, holder: None, expires_ns: None }
    }

    #[test]
    fn only_the_range_the_operation_and_the_holder_are_permitted() {
        use Operation::{Read, Write};
        let read = Terms { holder: Some("a".into()), ..terms(1000, 100, Access::READ) };
        assert_eq!(read.check("a", 1000, 100, Read), Ok(()));
        assert_eq!(read.check("a", 1099, 1, Read), Ok(()));
        for (holder, addr, len, operation) in [
            ("b", 1000, 100, Read),
            ("", 1000, 100, Read),
            ("a", 1000, 100, Write),
            ("a", 999, 1, Read),
            ("a", 1000, 101, Read),
            ("a", 1100, 1, Read),
            ("a", 1000, 0, Read),
            ("a", 1001, u64::MAX, Read),
            ("a", u64::MAX, 2, Read),
        ] {
            let denied = read.check(holder, addr, len, operation);
            assert_eq!(denied, Err(Denied::Refused), "{holder} {addr} {len} {operation:?}");
        }
        let anyone = terms(0, 5, Access::WRITE);
        assert_eq!(anyone.check("", 0, 5, Write), Ok(()));
        assert_eq!(anyone.check("x", 0, 5, Read), Err(Denied::Refused));
    }

    #[test]
    fn a_slot_comes_again_its_word_does_not() {
        let mut table = GrantTable::new(2);
        let old = table.insert(7, terms(0, 10, Access::READ), ()).unwrap();
        table.insert(8, terms(0, 10, Access::READ), ()).unwrap();
        let full = table.insert(9, terms(0, 10, Access::READ), ()).unwrap_err();
        assert_eq!(full.kind(), crate::ErrorKind::Busy);
        assert!(table.strike(old).is_some() && table.strike(old).is_none());
        let new = table.insert(9, terms(0, 10, Access::READ), ()).unwrap();
        assert_eq!(new.slot, old.slot);
        assert!(table.get(old).is_none() && table.get(new).is_some());
        assert!(table.strike(old).is_none(), "an old key strikes nothing new");
        for key in [Key { slot: 0, word: 0 }, Key { slot: 2, word: 7 }, Key { slot: !0, word: 9 }] {
            assert!(table.get(key).is_none(), "{key:?}");
        }
    }

    proptest! {
        #[test]
        fn the_table_agrees_with_a_map(
            steps in prop::collection::vec((0u8..4, 0u64..50, any::<u8>()), 0..200)
        ) {
            const CAPACITY: usize = 5;
            let mut table = GrantTable::new(CAPACITY);
            let mut model: HashMap<Key, Option<u64>> = HashMap::new();
            let mut gone: Vec<Key> = Vec::new();
            for (word, (what, number, pick)) in (1..).zip(steps) {
                match what {
                    0 | 1 => {
                        let expires_ns = (what == 1).then_some(number);
                        let terms = Terms { expires_ns, ..terms(number, 1, Access::READ) };
                        match table.insert(word, terms, number) {
                            Ok(key) => prop_assert!(model.insert(key, expires_ns).is_none()),
                            Err(_) => prop_assert_eq!(model.len(), CAPACITY),
                        }
                    }
                    2 => {
                        let known: Vec<Key> = model.keys().copied().collect();
                        if !known.is_empty() {
                            let key = known[usize::from(pick) % known.len()];
                            model.remove(&key);
                            gone.push(key);
                            prop_assert!(table.strike(key).is_some());
                        }
                    }
                    _ => while let Some(key) = table.expired(number) {
                        prop_assert!(model.remove(&key).flatten().is_some_and(|at| at <= number));
                        gone.push(key);
                        table.strike(key);
                    },
                }
                prop_assert_eq!(table.len(), model.len());
                prop_assert!(model.keys().all(|key| table.get(*key).is_some()));
                prop_assert!(gone.iter().all(|key| table.get(*key).is_none()));
                prop_assert_eq!(table.next_end_ns(), model.values().copied().flatten().min());
            }
        }
    }
}

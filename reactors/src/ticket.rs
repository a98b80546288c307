//! A slab whose keys die with their entry: index and generation in one `u64`, typed, so that a
//! late completion can't reach a slot's next tenant, nor a key of one table another table.

use std::fmt;
use std::marker::PhantomData;

use slab::Slab;

/// Names one entry of a [`Table`] for as long as that entry lives, and nothing afterwards.
pub struct Ticket<T> {
    raw: u64,
    kind: PhantomData<fn() -> T>,
}

impl<T> Ticket<T> {
    /// The ticket as one word, for `user_data` and `wr_id`.
    pub fn to_raw(self) -> u64 {
        self.raw
    }

    /// The ticket that [`Ticket::to_raw`] came from. A made-up word names nothing.
    pub fn from_raw(raw: u64) -> Self {
        Self { raw, kind: PhantomData }
    }

    fn new(index: usize, generation: u32) -> Self {
        Self::from_raw(u64::from(generation) << 32 | index as u64)
    }

    fn index(self) -> usize {
        (self.raw & u64::from(u32::MAX)) as usize
    }

    fn generation(self) -> u32 {
        (self.raw >> 32) as u32
    }
}

impl<T> Clone for Ticket<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Ticket<T> {}

impl<T> PartialEq for Ticket<T> {
    fn eq(&self, other: &Self) -> bool {
        self.raw == other.raw
    }
}

impl<T> Eq for Ticket<T> {}

impl<T> std::hash::Hash for Ticket<T> {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.raw.hash(state);
    }
}

impl<T> fmt::Debug for Ticket<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.index(), self.generation())
    }
}

/// Entries under [`Ticket`]s. At most 2^32 at a time.
#[derive(Debug)]
pub struct Table<T> {
    slots: Slab<(u32, T)>,
    next_generation: u32,
}

impl<T> Default for Table<T> {
    fn default() -> Self {
        Self { slots: Slab::new(), next_generation: 1 }
    }
}

impl<T> Table<T> {
    /// Keeps `value` and names it.
    pub fn insert(&mut self, value: T) -> Ticket<T> {
        let generation = self.next_generation;
        self.next_generation = self.next_generation.wrapping_add(1);
        Ticket::new(self.slots.insert((generation, value)), generation)
    }

    /// The entry, unless it is gone.
    pub fn get(&self, ticket: Ticket<T>) -> Option<&T> {
        let (generation, value) = self.slots.get(ticket.index())?;
        (*generation == ticket.generation()).then_some(value)
    }

    /// The entry, unless it is gone.
    pub fn get_mut(&mut self, ticket: Ticket<T>) -> Option<&mut T> {
        let (generation, value) = self.slots.get_mut(ticket.index())?;
        (*generation == ticket.generation()).then_some(value)
    }

    /// Takes the entry out; its ticket names nothing from now on.
    pub fn remove(&mut self, ticket: Ticket<T>) -> Option<T> {
        self.get(ticket)?;
        Some(self.slots.remove(ticket.index()).1)
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// Every entry with its ticket.
    pub fn iter(&self) -> impl Iterator<Item = (Ticket<T>, &T)> {
        self.slots
            .iter()
            .map(|(index, (generation, value))| (Ticket::new(index, *generation), value))
    }

    /// Takes every entry out, each with its ticket, which names nothing from now on.
    pub fn drain(&mut self) -> impl Iterator<Item = (Ticket<T>, T)> {
        let entries = std::mem::take(&mut self.slots).into_iter();
        entries.map(|(index, (generation, value))| (Ticket::new(index, generation), value))
    }

    /// Every entry with its ticket.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (Ticket<T>, &mut T)> {
        self.slots
            .iter_mut()
            .map(|(index, (generation, value))| (Ticket::new(index, *generation), value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_late_ticket_does_not_reach_the_next_tenant() {
        let mut table = Table::default();
        let first = table.insert("first");
        assert_eq!(table.remove(first), Some("first"));
        let second = table.insert("second");
        assert_eq!(first.index(), second.index(), "the slot is used again");
        assert_eq!(table.get(first), None);
        assert_eq!(table.remove(first), None);
        assert_eq!(table.get(Ticket::from_raw(second.to_raw())), Some(&"second"));
    }

    #[test]
    fn made_up_words_name_nothing() {
        let mut table = Table::default();
        table.insert(1);
        for raw in [0, 1 << 32 | 1, u64::MAX] {
            assert_eq!(table.get_mut(Ticket::from_raw(raw)), None);
        }
    }
}

//! Who uses this engine's memory, as they said when they came, and whether more may come.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::control::Guest;
use crate::limits::{GUESTS_MAX, NAME_MAX_BYTES};

/// An engine's guests. One lock, so that whoever comes is either asked to leave or told that the
/// engine drains.
#[derive(Debug, Default)]
pub(crate) struct Guests(Mutex<House>);

#[derive(Debug, Default)]
struct House {
    /// In the order of their coming.
    guests: VecDeque<Guest>,
    is_draining: bool,
}

impl Guests {
    /// Takes note of a guest; whether the engine drains.
    pub(crate) fn arrived(&self, guest: Guest) -> bool {
        let mut house = self.lock();
        // Longer than any name: nobody who could be asked to leave.
        if guest.name.len().max(guest.control.len()) <= NAME_MAX_BYTES {
            house.guests.retain(|known| known.name != guest.name);
            if house.guests.len() == GUESTS_MAX {
                house.guests.pop_front();
            }
            house.guests.push_back(guest);
        }
        house.is_draining
    }

    /// Nobody may come any more; who is there.
    pub(crate) fn drain(&self) -> Vec<Guest> {
        let mut house = self.lock();
        house.is_draining = true;
        house.guests.iter().cloned().collect()
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.lock().is_draining
    }

    fn lock(&self) -> MutexGuard<'_, House> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guest(name: impl Into<String>, incarnation: u64) -> Guest {
        Guest { name: name.into(), incarnation, control: "127.0.0.1:1".to_owned() }
    }

    #[test]
    fn a_guest_who_comes_again_is_one_guest_and_its_successor_takes_its_place() {
        let guests = Guests::default();
        for incarnation in [1, 1, 2] {
            assert!(!guests.arrived(guest("a", incarnation)));
        }
        assert!(!guests.arrived(guest("b", 3)));
        assert_eq!(guests.drain(), [guest("a", 2), guest("b", 3)]);
        assert!(guests.is_draining() && guests.arrived(guest("c", 4)));
    }

    #[test]
    fn guests_are_bounded_in_number_and_bytes() {
        let guests = Guests::default();
        (0..=GUESTS_MAX).for_each(|k| assert!(!guests.arrived(guest(k.to_string(), 1))));
        guests.arrived(guest("x".repeat(NAME_MAX_BYTES + 1), 1));
        let all = guests.drain();
        assert_eq!((all.len(), all[0].name.as_str()), (GUESTS_MAX, "1"), "the first is forgotten");
    }
}

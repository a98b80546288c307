//! Who uses this engine's memory, as they said when they came, and whether more may come.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::auth::PeerId;
use crate::control::Guest;
use crate::limits::{GUESTS_MAX, NAME_MAX_BYTES};

/// An engine's guests. One lock, so that whoever comes is either asked to leave or told that the
/// engine drains.
#[derive(Debug, Default)]
pub(crate) struct Guests(Mutex<House>);

#[derive(Debug, Default)]
struct House {
    /// With who each has proven to be, in the order of their coming.
    guests: VecDeque<(PeerId, Guest)>,
    is_draining: bool,
}

impl House {
    /// The first of this peer's, so that it takes nobody else's place; else the first of all.
    fn forget_one_of(&mut self, peer: &PeerId) {
        let own = self.guests.iter().position(|(who, _)| who == peer);
        self.guests.remove(own.unwrap_or(0));
    }
}

impl Guests {
    /// Takes note of a guest; whether the engine drains. Whoever has proven something else is
    /// another guest, whatever it calls itself.
    pub(crate) fn arrived(&self, peer: &PeerId, guest: Guest) -> bool {
        let mut house = self.lock();
        // Longer than any name: nobody who could be asked to leave.
        if guest.name.len().max(guest.control.len()) <= NAME_MAX_BYTES {
            house.guests.retain(|(who, known)| (who, &known.name) != (peer, &guest.name));
            if house.guests.len() == GUESTS_MAX {
                house.forget_one_of(peer);
            }
            house.guests.push_back((peer.clone(), guest));
        }
        house.is_draining
    }

    /// Nobody may come any more; who is there.
    pub(crate) fn drain(&self) -> Vec<Guest> {
        let mut house = self.lock();
        house.is_draining = true;
        house.guests.iter().map(|(_, guest)| guest.clone()).collect()
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
        Guest { name: name.into(), incarnation, control: "127.0.0.1:1".to_owned(), word: 0 }
    }

    #[test]
    fn a_guest_who_comes_again_is_one_guest_and_its_successor_takes_its_place() {
        let guests = Guests::default();
        for incarnation in [1, 1, 2] {
            assert!(!guests.arrived(&PeerId::Anyone, guest("a", incarnation)));
        }
        assert!(!guests.arrived(&PeerId::Anyone, guest("b", 3)));
        assert_eq!(guests.drain(), [guest("a", 2), guest("b", 3)]);
        assert!(guests.is_draining() && guests.arrived(&PeerId::Anyone, guest("c", 4)));
    }

    #[test]
    fn nobody_takes_the_place_of_a_guest_who_has_proven_to_be_another() {
        let guests = Guests::default();
        let [one, other] = ["one", "other"].map(|name| PeerId::named([name.to_owned()]));
        guests.arrived(&one, guest("a", 1));
        guests.arrived(&other, guest("a", 2));
        guests.arrived(&one, guest("a", 3));
        assert_eq!(guests.drain(), [guest("a", 2), guest("a", 3)]);
    }

    #[test]
    fn whoever_comes_under_many_names_takes_its_own_places() {
        let guests = Guests::default();
        let [one, other] = ["one", "other"].map(|name| PeerId::named([name.to_owned()]));
        guests.arrived(&one, guest("first", 1));
        (0..=GUESTS_MAX).for_each(|k| _ = guests.arrived(&other, guest(k.to_string(), 1)));
        let all = guests.drain();
        assert_eq!((all.len(), all[0].name.as_str()), (GUESTS_MAX, "first"));
    }

    #[test]
    fn guests_are_bounded_in_number_and_bytes() {
        let guests = Guests::default();
        let come = |name: String| assert!(!guests.arrived(&PeerId::Anyone, guest(name, 1)));
        (0..=GUESTS_MAX).for_each(|k| come(k.to_string()));
        come("x".repeat(NAME_MAX_BYTES + 1));
        let all = guests.drain();
        assert_eq!((all.len(), all[0].name.as_str()), (GUESTS_MAX, "1"), "the first is forgotten");
    }
}

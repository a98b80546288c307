//! Pure: a grant as a row of the ledger, by which peers of this host tell for themselves what it
//! permits, before they copy and behind it.

use super::table::{Denied, Terms, permits};
use crate::memory::{Access, Operation};

/// Words of a row: the grant's word, the first address, the length, and what is permitted to whom.
pub(crate) const ROW: usize = 4;

/// A row's last word: bit 0 permits reads, bit 1 writes, the others tell the holder; none are set
/// where anyone may.
const READ: u64 = 1;
const WRITE: u64 = 2;
const HOLDER: u64 = !(READ | WRITE);

/// The row of a grant.
pub(super) fn row(word: u64, terms: &Terms) -> [u64; ROW] {
    let read = if terms.access.read { READ } else { 0 };
    let write = if terms.access.write { WRITE } else { 0 };
    let holder = terms.holder.as_deref().map_or(0, mark);
    [word, terms.addr, terms.len, read | write | holder]
}

/// Whether a peer of this name may do that under the grant whose row it is.
pub(crate) fn check(
    [_, start, room, what]: [u64; ROW],
    name: &str,
    addr: u64,
    len: u64,
    operation: Operation,
) -> Result<(), Denied> {
    let access = Access { read: what & READ != 0, write: what & WRITE != 0 };
    let is_holder = what & HOLDER == 0 || what & HOLDER == mark(name);
    match is_holder && permits((start, room), access, addr, len, operation) {
        true => Ok(()),
        false => Err(Denied::Refused),
    }
}

/// A name in the bits that a row has for it, never none. Both sides must get the same, whatever
/// built them: FNV-1a. It keeps the wrong peer from reading by mistake; the owner of the memory
/// compares names.
fn mark(name: &str) -> u64 {
    const BASIS: u64 = 0xcbf2_9ce4_8422_2325;
    const PRIME: u64 = 0x0000_0100_0000_01b3;
    let hash = name.bytes().fold(BASIS, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(PRIME));
    match hash & HOLDER {
        0 => HOLDER,
        mark => mark,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_row_says_what_its_terms_say(
            (start, room) in (0u64..100, 1u64..100), read: bool, write: bool,
            holder in prop::option::of(prop::sample::select(vec!["", "a", "b:1", "b:2"])),
            name in prop::sample::select(vec!["", "a", "b:1", "b:2"]),
            (addr, len) in prop_oneof![(0u64..200, 0u64..200), any::<(u64, u64)>()],
            is_read: bool,
        ) {
            let (access, holder) = (Access { read, write }, holder.map(Into::into));
            let terms = Terms { addr: start, len: room, access, holder, expires_ns: None };
            let operation = if is_read { Operation::Read } else { Operation::Write };
            let by_row = check(row(9, &terms), name, addr, len, operation);
            prop_assert_eq!(by_row, terms.check(name, addr, len, operation));
        }
    }
}

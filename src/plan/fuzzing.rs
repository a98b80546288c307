//! The property behind [`crate::fuzzing::plan`]: slices tile what was asked for, in order, within
//! both memories; and what is refused is refused for a reason.

use super::{PlannedSlice, plan, share_out};
use crate::ErrorKind;
use crate::limits::{BATCH_SLICES_MAX, SLICE_BYTES};
use crate::request::{Pages, Shape, Strided};

/// Numbers taken from fuzzed bytes, one after the other; 0 when they have run out.
struct Numbers<'a>(&'a [u8]);

impl Numbers<'_> {
    fn next(&mut self, len: usize) -> u64 {
        let (now, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        now.iter().rev().fold(0, |number, &byte| number << 8 | u64::from(byte))
    }

    /// Small, large or around the end of the address space, by its first byte.
    fn any(&mut self) -> u64 {
        match self.next(1) {
            kind @ 0..200 => kind << 8 | self.next(1),
            200..230 => self.next(4),
            230..250 => self.next(8),
            _ => u64::MAX - self.next(2),
        }
    }
}

/// See [`crate::fuzzing::plan`].
pub(crate) fn property(input: &[u8]) {
    let mut numbers = Numbers(input);
    let kind = numbers.next(1) % 3;
    let lease_bytes = numbers.any() as usize;
    let slice_bytes = numbers.any().max(1) as usize;
    let (workers, group_bytes) = (numbers.next(1) as usize, numbers.any() as usize);
    let shape = shape(kind, &mut numbers);
    let mut slices = Vec::new();
    match plan(7, lease_bytes, &shape, slice_bytes, &mut slices) {
        Ok(()) => {
            assert!(slices.len() <= BATCH_SLICES_MAX);
            let extents = extents(&shape, lease_bytes).expect("it was accepted");
            tiles(&slices, &extents, slice_bytes);
            // A batch holds no more; see its limits.
            if slices.iter().all(|slice| slice.len <= SLICE_BYTES) {
                groups(&slices, workers, group_bytes);
            }
        }
        Err(error) if error.kind() == ErrorKind::Busy => {
            let least = extents(&shape, lease_bytes).map_or(u128::MAX, |extents| {
                extents.iter().map(|(_, _, len)| len.div_ceil(slice_bytes as u128)).sum()
            });
            assert!(least > BATCH_SLICES_MAX as u128, "{error}: {least} slices would do");
        }
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::Refused);
            assert!(extents(&shape, lease_bytes).is_none(), "{error}: nothing is wrong with it");
        }
    }
}

fn shape(kind: u64, numbers: &mut Numbers<'_>) -> Shape {
    match kind {
        0 => Shape::Whole(numbers.any()),
        1 => {
            let page_bytes = numbers.any() as usize;
            let (mut local, mut remote) = (Vec::new(), Vec::new());
            while !numbers.0.is_empty() {
                local.push(numbers.any());
                remote.extend((numbers.next(1) != 255).then(|| numbers.any()));
            }
            Shape::Pages(Pages { page_bytes, local, remote })
        }
        _ => Shape::Strided(Strided {
            rows: numbers.any() as usize,
            row_bytes: numbers.any() as usize,
            local_stride: numbers.any(),
            remote: numbers.any(),
            remote_stride: numbers.any(),
        }),
    }
}

/// Offset, address and length of each piece; none where any of them is impossible. Adjoining
/// pieces of a list are one. Of more rows than a batch takes, the first ones and the last.
fn extents(shape: &Shape, lease_bytes: usize) -> Option<Vec<(u128, u128, u128)>> {
    let pieces: Vec<(u128, u128, u128)> = match shape {
        Shape::Whole(remote) => vec![(0, u128::from(*remote), lease_bytes as u128)],
        Shape::Pages(pages) if pages.local.len() != pages.remote.len() => return None,
        Shape::Pages(pages) => {
            let pairs = pages.local.iter().zip(&pages.remote);
            pairs
                .map(|(&at, &addr)| (u128::from(at), u128::from(addr), pages.page_bytes as u128))
                .collect()
        }
        Shape::Strided(rows) => strided(rows),
    };
    let is_possible = |&(offset, addr, len): &(u128, u128, u128)| {
        len > 0 && offset + len <= lease_bytes as u128 && addr + len <= u128::from(u64::MAX)
    };
    let mut joined: Vec<(u128, u128, u128)> = Vec::new();
    for piece in &pieces {
        match joined.last_mut() {
            Some((offset, addr, len)) if *offset + *len == piece.0 && *addr + *len == piece.1 => {
                *len += piece.2;
            }
            _ => joined.push(*piece),
        }
    }
    (!pieces.is_empty() && pieces.iter().all(is_possible)).then_some(joined)
}

fn strided(rows: &Strided) -> Vec<(u128, u128, u128)> {
    let len = rows.row_bytes as u128;
    let at = |row: u128| {
        let offset = row.saturating_mul(u128::from(rows.local_stride));
        let addr = row.saturating_mul(u128::from(rows.remote_stride));
        (offset, addr.saturating_add(u128::from(rows.remote)), len)
    };
    let is_dense = u128::from(rows.local_stride) == len && u128::from(rows.remote_stride) == len;
    if is_dense && rows.rows > 0 {
        return vec![(0, u128::from(rows.remote), len.saturating_mul(rows.rows as u128))];
    }
    let first = rows.rows.min(BATCH_SLICES_MAX + 1);
    (0..first as u128).chain((rows.rows > first).then(|| rows.rows as u128 - 1)).map(at).collect()
}

fn tiles(slices: &[PlannedSlice], extents: &[(u128, u128, u128)], slice_bytes: usize) {
    let mut rest = slices.iter();
    for &(offset, addr, len) in extents {
        let mut done = 0;
        while done < len {
            let slice = rest.next().expect("nothing is left out");
            assert_eq!(
                (slice.offset as u128, u128::from(slice.addr)),
                (offset + done, addr + done)
            );
            assert!(slice.request == 7 && (1..=slice_bytes).contains(&slice.len));
            done += slice.len as u128;
        }
        assert_eq!(done, len, "a slice crosses its extent's end");
    }
    assert!(rest.next().is_none(), "nothing is added");
}

fn groups(slices: &[PlannedSlice], workers: usize, group_bytes: usize) {
    let groups = share_out(slices, workers, group_bytes);
    assert!(groups.len() <= workers.max(1));
    let mut at = 0;
    for group in groups {
        assert!(group.start == at && group.end > at);
        at = group.end;
    }
    assert_eq!(at, slices.len());
}

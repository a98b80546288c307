//! Requests into slices that tile them exactly. Pure: lengths and addresses in, slices out.

#[cfg(any(fuzzing, test))]
pub(crate) mod fuzzing;

use std::ops::Range;

use crate::limits::BATCH_SLICES_MAX;
use crate::request::{Pages, Shape, Strided};
use crate::{Error, Result};

/// What one path carries at once: contiguous on both sides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PlannedSlice {
    /// Which request of the batch.
    pub(crate) request: usize,
    /// Where in the request's lease.
    pub(crate) offset: usize,
    /// Where at the peer.
    pub(crate) addr: u64,
    /// Bytes; never 0.
    pub(crate) len: usize,
}

/// Cuts request number `request`, whose lease has `lease_bytes`, into slices of at most
/// `slice_bytes` and appends them. Pages and rows that adjoin on both sides travel as one.
///
/// # Errors
/// Refused: empty, unequal lists, outside of the lease, or past the end of the address space.
/// Busy: more slices than a batch may hold.
pub(crate) fn plan(
    request: usize,
    lease_bytes: usize,
    shape: &Shape,
    slice_bytes: usize,
    slices: &mut Vec<PlannedSlice>,
) -> Result<()> {
    let mut plan = Planner { request, lease_bytes, slice_bytes, run: None, slices };
    match shape {
        Shape::Whole(remote) => plan.extent(0, *remote, lease_bytes)?,
        Shape::Pages(pages) => plan.pages(pages)?,
        Shape::Strided(rows) => plan.rows(rows)?,
    }
    plan.flush()
}

struct Planner<'a> {
    request: usize,
    lease_bytes: usize,
    slice_bytes: usize,
    /// Adjoining extents, not cut yet.
    run: Option<Extent>,
    slices: &'a mut Vec<PlannedSlice>,
}

#[derive(Clone, Copy)]
struct Extent {
    offset: usize,
    addr: u64,
    len: usize,
}

impl Planner<'_> {
    fn pages(&mut self, pages: &Pages) -> Result<()> {
        let (local, remote) = (pages.local.len(), pages.remote.len());
        if local != remote || local == 0 {
            return Err(self.refused(format!("{local} local and {remote} remote pages")));
        }
        for (&offset, &addr) in pages.local.iter().zip(&pages.remote) {
            self.extent(offset, addr, pages.page_bytes)?;
        }
        Ok(())
    }

    fn rows(&mut self, rows: &Strided) -> Result<()> {
        if rows.rows == 0 {
            return Err(self.refused("no rows".to_owned()));
        }
        // Every other kind ends at its first row too many.
        let (row_bytes, strides) = (rows.row_bytes as u64, [rows.local_stride, rows.remote_stride]);
        if strides == [row_bytes; 2] {
            return match rows.rows.checked_mul(rows.row_bytes) {
                Some(bytes) => self.extent(0, rows.remote, bytes),
                None => Err(self.refused("the rows are longer than memory".to_owned())),
            };
        }
        for row in 0..rows.rows as u64 {
            let at = |start: u64, stride: u64| start.checked_add(row.checked_mul(stride)?);
            let (Some(offset), Some(addr)) =
                (at(0, rows.local_stride), at(rows.remote, rows.remote_stride))
            else {
                return Err(self.refused(format!("row {row} is past the end of memory")));
            };
            self.extent(offset, addr, rows.row_bytes)?;
        }
        Ok(())
    }

    fn extent(&mut self, offset: u64, addr: u64, len: usize) -> Result<()> {
        let end = offset.checked_add(len as u64);
        if len == 0 || end.is_none_or(|end| end > self.lease_bytes as u64) {
            return Err(self.refused(format!(
                "{len} bytes at offset {offset} of a lease of {} bytes",
                self.lease_bytes
            )));
        }
        if addr.checked_add(len as u64).is_none() {
            return Err(self.refused(format!("{len} bytes at {addr:#x} wrap around")));
        }
        let offset = offset as usize;
        match &mut self.run {
            Some(run) if run.offset + run.len == offset && run.addr + run.len as u64 == addr => {
                run.len += len;
            }
            _ => {
                self.flush()?;
                self.run = Some(Extent { offset, addr, len });
            }
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        let Some(run) = self.run.take() else { return Ok(()) };
        if self.slices.len() + run.len.div_ceil(self.slice_bytes) > BATCH_SLICES_MAX {
            return Err(Error::busy(format!(
                "the batch is cut into more than {BATCH_SLICES_MAX} slices; post it in parts"
            )));
        }
        for start in (0..run.len).step_by(self.slice_bytes) {
            self.slices.push(PlannedSlice {
                request: self.request,
                offset: run.offset + start,
                addr: run.addr + start as u64,
                len: self.slice_bytes.min(run.len - start),
            });
        }
        Ok(())
    }

    fn refused(&self, why: String) -> Error {
        Error::refused(format!("request {}: {why}", self.request))
    }
}

/// Shares slices out among `workers`: contiguous groups of nearly equal bytes, in order, none
/// smaller than `group_bytes` unless it is the only one.
pub(crate) fn share_out(
    slices: &[PlannedSlice],
    workers: usize,
    group_bytes: usize,
) -> Vec<Range<usize>> {
    let total: usize = slices.iter().map(|slice| slice.len).sum();
    let groups = (total / group_bytes.max(1)).clamp(1, workers.max(1));
    let mut ranges = Vec::with_capacity(groups);
    let (mut start, mut bytes) = (0, 0);
    for (index, slice) in slices.iter().enumerate() {
        bytes += slice.len;
        // Group g ends where g+1 shares of the bytes have passed.
        if bytes * groups >= total * (ranges.len() + 1) {
            ranges.push(start..index + 1);
            start = index + 1;
        }
    }
    ranges
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LEASE: usize = 10_000;

    fn planned(shape: &Shape, slice_bytes: usize) -> Result<Vec<PlannedSlice>> {
        let mut slices = Vec::new();
        plan(0, LEASE, shape, slice_bytes, &mut slices).map(|()| slices)
    }

    /// Every byte that slices move, as (offset, address), in order.
    fn bytes(slices: &[PlannedSlice]) -> Vec<(u64, u64)> {
        slices
            .iter()
            .flat_map(|s| (0..s.len as u64).map(|at| (s.offset as u64 + at, s.addr + at)))
            .collect()
    }

    #[test]
    fn a_contiguous_request_is_cut_and_adjoining_pages_travel_as_one() {
        let slices = planned(&Shape::Whole(1 << 40), 4096).unwrap();
        assert_eq!(slices.iter().map(|s| s.len).collect::<Vec<_>>(), [4096, 4096, 1808]);
        let pages = Pages {
            page_bytes: 100,
            local: vec![500, 600, 0, 100],
            remote: vec![7000, 7100, 7200, 9000],
        };
        let slices = planned(&Shape::Pages(pages), 4096).unwrap();
        let got: Vec<_> = slices.iter().map(|s| (s.offset, s.addr, s.len)).collect();
        assert_eq!(got, [(500, 7000, 200), (0, 7200, 100), (100, 9000, 100)]);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let pages = |page_bytes, local, remote| Shape::Pages(Pages { page_bytes, local, remote });
        let strided = |rows, row_bytes, local_stride, remote_stride| {
            Shape::Strided(Strided { rows, row_bytes, local_stride, remote: 1, remote_stride })
        };
        for shape in [
            Shape::Whole(u64::MAX - 1),
            pages(100, vec![0], vec![]),
            pages(100, vec![], vec![]),
            pages(0, vec![0], vec![1]),
            pages(100, vec![9_901], vec![1]),
            pages(100, vec![u64::MAX], vec![1]),
            strided(0, 1, 1, 1),
            strided(2, 1, u64::MAX, 1),
            strided(3, 1, 1, u64::MAX / 2),
            strided(usize::MAX, 1, 1, 1),
        ] {
            let error = planned(&shape, 4096).unwrap_err();
            assert_eq!(error.kind(), crate::ErrorKind::Refused, "{shape:?}: {error}");
        }
    }

    #[test]
    fn a_batch_of_too_many_slices_is_busy() {
        let error = plan(0, usize::MAX >> 1, &Shape::Whole(0), 1, &mut Vec::new()).unwrap_err();
        assert_eq!(error.kind(), crate::ErrorKind::Busy);
    }

    #[test]
    fn dense_rows_are_one_extent_however_many() {
        let rows =
            Strided { rows: 1 << 45, row_bytes: 1, local_stride: 1, remote: 5, remote_stride: 1 };
        let mut slices = Vec::new();
        plan(0, 1 << 45, &Shape::Strided(rows), 1 << 30, &mut slices).unwrap();
        assert_eq!((slices.len(), slices[1].addr), (1 << 15, 5 + (1 << 30)));
        let rows = Strided { rows: usize::MAX, row_bytes: 8, local_stride: 8, ..rows };
        let rows = Strided { remote_stride: 8, ..rows };
        let error = plan(0, 1 << 45, &Shape::Strided(rows), 1 << 30, &mut slices).unwrap_err();
        assert_eq!(error.kind(), crate::ErrorKind::Refused);
    }

    proptest! {
        #[test]
        fn pages_are_tiled_exactly(
            page_bytes in 1usize..300,
            pairs in prop::collection::vec((0u64..9_700, 0u64..1 << 48), 1..20),
            slice_bytes in 1usize..500,
        ) {
            let (local, remote): (Vec<u64>, Vec<u64>) = pairs.iter().copied().unzip();
            let shape = Shape::Pages(Pages { page_bytes, local, remote });
            let slices = planned(&shape, slice_bytes).unwrap();
            let expected: Vec<_> = pairs
                .iter()
                .flat_map(|(l, r)| (0..page_bytes as u64).map(move |at| (l + at, r + at)))
                .collect();
            prop_assert_eq!(bytes(&slices), expected);
            prop_assert!(slices.iter().all(|s| s.len > 0 && s.len <= slice_bytes));
        }

        #[test]
        fn rows_are_tiled_exactly(
            rows in 1usize..20, row_bytes in 1usize..200,
            local_stride in 0u64..400, remote_stride in 0u64..400, slice_bytes in 1usize..500,
        ) {
            let shape = Shape::Strided(
                Strided { rows, row_bytes, local_stride, remote: 77, remote_stride });
            let slices = planned(&shape, slice_bytes).unwrap();
            let expected: Vec<_> = (0..rows as u64)
                .flat_map(|row| (0..row_bytes as u64)
                    .map(move |at| (row * local_stride + at, 77 + row * remote_stride + at)))
                .collect();
            prop_assert_eq!(bytes(&slices), expected);
        }

        #[test]
        fn groups_tile_the_slices(
            lens in prop::collection::vec(1usize..5_000, 1..50),
            workers in 0usize..9, group_bytes in 0usize..10_000,
        ) {
            let slices: Vec<_> = lens
                .iter()
                .map(|&len| PlannedSlice { request: 0, offset: 0, addr: 0, len })
                .collect();
            let groups = share_out(&slices, workers, group_bytes);
            prop_assert!(groups.len() <= workers.max(1));
            let mut at = 0;
            for group in &groups {
                prop_assert_eq!(group.start, at);
                prop_assert!(group.end > group.start);
                at = group.end;
            }
            prop_assert_eq!(at, slices.len());
        }
    }
}

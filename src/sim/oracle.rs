//! What every byte of a process may be: what it is now, or what a request that is allowed to
//! write there brings.

use std::ops::Range;

use super::pattern::{Fill, Origin, WORD};
use kvrail_reactors::region::AccessError;

use crate::memory::Region;

/// One region of a process, its bytes as they may be, and who may change them.
pub(super) struct Memory {
    pub(super) region: Region,
    shadow: Vec<u8>,
    seen: Vec<u8>,
    writers: Vec<Writer>,
}

/// A request that may write.
struct Writer {
    transfer: usize,
    /// Where it may write, in the region.
    range: Range<usize>,
    /// What it may write there.
    bytes: Vec<u8>,
}

impl Memory {
    pub(super) fn new(region: Region) -> Self {
        let len = region.len();
        Self { region, shadow: vec![0; len], seen: vec![0; len], writers: Vec::new() }
    }

    /// The owner's own bytes, which nobody may change from here on.
    pub(super) fn fill(&mut self, start: usize, fill: Fill, len: usize) {
        let bytes = fill.bytes(len);
        self.put(start, &bytes);
    }

    fn put(&mut self, start: usize, bytes: &[u8]) {
        let range = start..start + bytes.len();
        // A lease would be refused where the region was unregistered, or a bug holds one.
        let memory = kvrail_reactors::region::Slice::new(
            self.region.memory().clone(),
            range.start,
            range.len(),
        );
        let stored = memory.map_err(AccessError::from).and_then(|memory| memory.write(0, bytes));
        assert_eq!(stored, Ok(()), "a block lies in its region");
        self.shadow[range].copy_from_slice(bytes);
    }

    /// What is there by the oracle's account.
    pub(super) fn expected(&self, range: Range<usize>) -> &[u8] {
        &self.shadow[range]
    }

    /// From here on this transfer may write these bytes there.
    pub(super) fn allow(&mut self, transfer: usize, range: Range<usize>, bytes: Vec<u8>) {
        self.writers.push(Writer { transfer, range, bytes });
    }

    /// It is proven that it doesn't write any more.
    pub(super) fn forbid(&mut self, transfer: usize) {
        self.writers.retain(|writer| writer.transfer != transfer);
    }

    /// Nobody writes there any more.
    pub(super) fn forbid_all(&mut self) {
        self.writers.clear();
    }

    /// Looks at every byte.
    ///
    /// # Errors
    /// A byte that nobody was allowed to bring there, with its origin.
    pub(super) fn check(&mut self) -> Result<(), String> {
        let slice =
            kvrail_reactors::region::Slice::new(self.region.memory().clone(), 0, self.shadow.len());
        let read =
            slice.map_err(AccessError::from).and_then(|memory| memory.read(0, &mut self.seen));
        assert_eq!(read, Ok(()), "a region has its bytes");
        if self.seen == self.shadow {
            return Ok(());
        }
        for at in 0..self.seen.len() {
            if self.seen[at] != self.shadow[at] {
                self.changed(at)?;
            }
        }
        Ok(())
    }

    fn changed(&mut self, at: usize) -> Result<(), String> {
        let brings = |writer: &Writer| {
            writer.range.contains(&at) && writer.bytes[at - writer.range.start] == self.seen[at]
        };
        if self.writers.iter().any(brings) {
            self.shadow[at] = self.seen[at];
            return Ok(());
        }
        let start = at / WORD * WORD;
        let word = self.seen[start..][..WORD].try_into().unwrap_or_default();
        let allowed: Vec<usize> = self
            .writers
            .iter()
            .filter(|writer| writer.range.contains(&at))
            .map(|writer| writer.transfer)
            .collect();
        Err(format!(
            "byte {at} of a region changed to what nobody may bring there: it comes from {}; \
             transfers that may write there: {allowed:?}",
            Origin(word)
        ))
    }
}

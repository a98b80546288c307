//! What one send or receive touches: pieces of scratch bytes and of regions, in stream order.
//! Owned by the reactor while the kernel may use it.

use std::ops::Range;

use crate::region::Slice;

/// Scratch bytes (headers, statuses) and region memory (bodies) as one stream of bytes.
#[derive(Debug, Default)]
pub struct Vector {
    scratch: Vec<u8>,
    /// Scratch bytes in use. Those behind are left from earlier uses, so that room for a receive
    /// is not zeroed each time.
    used: usize,
    parts: Vec<Part>,
    /// Parts before this one are used up.
    first: usize,
    len: usize,
}

#[derive(Debug)]
enum Part {
    Scratch(Range<usize>),
    Memory(Slice),
}

/// What a GPU's wide loads and stores want of an address.
pub(crate) const WIDE_BYTES: u64 = 16;

/// Bytes from `addr` to the first address that lies as `like` does within a wide word.
pub(crate) fn lacking(addr: u64, like: u64) -> usize {
    (like.wrapping_sub(addr) % WIDE_BYTES) as usize
}

/// A vector without a GPU's memory, and what stands for it.
#[derive(Debug, Default)]
pub(crate) struct Staged {
    pub(crate) vector: Vector,
    pub(crate) pairs: Vec<StagedPair>,
}

/// A GPU's bytes, and the host's in their place.
#[derive(Debug)]
pub(crate) struct StagedPair {
    /// Where they begin in the vector.
    pub(crate) at: usize,
    pub(crate) gpu: Slice,
    pub(crate) block: Slice,
}

/// A piece of a vector that has been received.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Filled<'a> {
    /// Bytes in scratch.
    Bytes(&'a [u8]),
    /// So many bytes, stored in region memory already.
    Memory(usize),
}

impl Staged {
    /// Appends memory, a GPU's by way of `room`; `false` where that is full.
    fn push(&mut self, mut slice: Slice, room: &mut Slice) -> bool {
        if slice.driver().is_none() {
            self.vector.push_memory(slice);
            return true;
        }
        // Both ends begin alike, which lets a GPU take wide words.
        room.advance(lacking(room.addr(), slice.addr()));
        let len = slice.len();
        slice.truncate(room.len());
        let is_whole = slice.len() == len;
        if !slice.is_empty() {
            let mut block = room.clone();
            block.truncate(slice.len());
            room.advance(slice.len());
            let at = self.vector.len();
            self.vector.push_memory(block.clone());
            self.pairs.push(StagedPair { at, gpu: slice, block });
        }
        is_whole
    }
}

impl Part {
    fn len(&self) -> usize {
        match self {
            Self::Scratch(range) => range.len(),
            Self::Memory(slice) => slice.len(),
        }
    }

    fn advance(&mut self, count: usize) {
        match self {
            Self::Scratch(range) => range.start += count,
            Self::Memory(slice) => slice.advance(count),
        }
    }
}

impl Vector {
    /// Appends bytes to be sent.
    pub fn push_bytes(&mut self, bytes: &[u8]) {
        let range = self.push_scratch(bytes.len());
        self.scratch[range].copy_from_slice(bytes);
    }

    /// Appends bytes to be sent: those of `slice`, as they are now.
    pub fn push_copy(&mut self, slice: &Slice) {
        let range = self.push_scratch(slice.len());
        slice.read(0, &mut self.scratch[range]).expect("as many bytes as the slice has");
    }

    /// Appends `len` zeros to be sent.
    pub fn push_zeros(&mut self, len: usize) {
        let range = self.push_scratch(len);
        self.scratch[range].fill(0);
    }

    /// Appends room for `len` bytes to be received into scratch, where anything may be until then.
    pub fn push_room(&mut self, len: usize) {
        self.push_scratch(len);
    }

    /// The part of scratch that is used from here on; whoever sends it fills it first.
    fn push_scratch(&mut self, len: usize) -> Range<usize> {
        let (start, end) = (self.used, self.used + len);
        self.used = end;
        if self.scratch.len() < end {
            self.scratch.resize(end, 0);
        }
        self.len += len;
        match self.parts.last_mut() {
            Some(Part::Scratch(last)) if last.end == start => last.end = end,
            _ if start < end => self.parts.push(Part::Scratch(start..end)),
            _ => {}
        }
        start..end
    }

    /// Appends region memory, to be sent from or received into.
    pub fn push_memory(&mut self, slice: Slice) {
        if !slice.is_empty() {
            self.len += slice.len();
            self.parts.push(Part::Memory(slice));
        }
    }

    /// Bytes that remain.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing remains.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Parts that remain.
    pub fn parts(&self) -> usize {
        self.parts.len() - self.first
    }

    /// All scratch bytes, used up or not, in the order they were pushed.
    pub fn scratch(&self) -> &[u8] {
        &self.scratch[..self.used]
    }

    /// Drops the first `count` bytes of what remains; region memory that is used up is let go.
    pub fn advance(&mut self, mut count: usize) {
        self.len -= count.min(self.len);
        while let Some(part) = self.parts.get_mut(self.first) {
            if part.len() > count {
                part.advance(count);
                return;
            }
            count -= part.len();
            *part = Part::Scratch(0..0);
            self.first += 1;
        }
    }

    /// Empties it, keeping its room for the next use.
    pub fn clear(&mut self) {
        self.used = 0;
        self.parts.clear();
        self.first = 0;
        self.len = 0;
    }

    /// What the first `count` bytes of what remains are: scratch bytes, or how many bytes of
    /// region memory. In stream order.
    pub fn filled(&self, mut count: usize) -> impl Iterator<Item = Filled<'_>> {
        self.parts[self.first..].iter().map_while(move |part| {
            let len = part.len().min(count);
            count -= len;
            (len > 0).then(|| match part {
                Part::Scratch(range) => Filled::Bytes(&self.scratch[range.start..][..len]),
                Part::Memory(_) => Filled::Memory(len),
            })
        })
    }

    /// The region memory that remains.
    pub fn memory(&self) -> impl Iterator<Item = &Slice> {
        self.parts[self.first..].iter().filter_map(|part| match part {
            Part::Memory(slice) => Some(slice),
            Part::Scratch(_) => None,
        })
    }

    /// Whether some of what remains is a GPU's, which no system call reaches.
    pub(crate) fn is_on_gpu(&self) -> bool {
        self.memory().any(|slice| slice.driver().is_some())
    }

    /// What remains behind its first `skip` bytes, with parts of `block` in place of a GPU's
    /// memory, up to where the block is full; scratch is copied, as it is now.
    pub(crate) fn staged(&self, mut skip: usize, block: &Slice) -> Staged {
        let mut staged = Staged::default();
        let mut room = block.clone();
        for part in &self.parts[self.first..] {
            let skipped = skip.min(part.len());
            skip -= skipped;
            match part {
                Part::Scratch(range) => {
                    staged.vector.push_bytes(&self.scratch[range.start + skipped..range.end]);
                }
                Part::Memory(slice) => {
                    let mut slice = slice.clone();
                    slice.advance(skipped);
                    if !staged.push(slice, &mut room) {
                        return staged;
                    }
                }
            }
        }
        staged
    }

    /// Takes over the scratch that `staged` has, of which what remains was made from what is behind
    /// the first `skip` bytes.
    pub(crate) fn take_scratch(&mut self, mut skip: usize, staged: &Self) {
        let mut parts = self.parts[self.first..].iter().peekable();
        while let Some(part) = parts.next_if(|part| part.len() <= skip) {
            skip -= part.len();
        }
        for (own, theirs) in parts.zip(&staged.parts[staged.first..]) {
            if let (Part::Scratch(own), Part::Scratch(theirs)) = (own, theirs) {
                self.scratch[own.start + skip..own.end]
                    .copy_from_slice(&staged.scratch[theirs.clone()]);
            }
            skip = 0;
        }
    }

    /// Receives `bytes` without a kernel, for tests: as many as there is room for, and returns
    /// how many.
    #[doc(hidden)]
    pub fn store(&mut self, bytes: &[u8]) -> usize {
        let mut stored = 0;
        for part in &self.parts[self.first..] {
            let now = &bytes[stored..][..part.len().min(bytes.len() - stored)];
            stored += now.len();
            match part {
                Part::Scratch(range) => {
                    self.scratch[range.start..][..now.len()].copy_from_slice(now);
                }
                Part::Memory(slice) => slice.write(0, now).expect("no more than the slice's bytes"),
            }
        }
        stored
    }

    /// Sends without a kernel, for tests: the first `count` bytes (all where there are fewer).
    #[doc(hidden)]
    pub fn copy_out(&self, mut count: usize) -> Vec<u8> {
        let mut out = Vec::new();
        for part in &self.parts[self.first..] {
            let (start, len) = (out.len(), part.len().min(count));
            count -= len;
            match part {
                Part::Scratch(range) => out.extend(&self.scratch[range.start..][..len]),
                Part::Memory(slice) => {
                    out.resize(start + len, 0);
                    slice.read(0, &mut out[start..]).expect("no more than the slice's bytes");
                }
            }
        }
        out
    }

    /// Describes what remains to the kernel. The entries are valid until the vector is next
    /// changed; the scratch allocation does not move while it isn't pushed to.
    pub(crate) fn fill_iovecs(&mut self, iovecs: &mut Vec<libc::iovec>) {
        iovecs.clear();
        let scratch = self.scratch.as_mut_ptr();
        iovecs.extend(self.parts[self.first..].iter().map(|part| match part {
            Part::Scratch(range) => libc::iovec {
                // SAFETY: the range lies inside the scratch bytes, see `push_scratch`.
                iov_base: unsafe { scratch.add(range.start) }.cast(),
                iov_len: range.len(),
            },
            Part::Memory(slice) => {
                libc::iovec { iov_base: slice.ptr().cast(), iov_len: slice.len() }
            }
        }));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::region::Region;

    #[test]
    fn advancing_walks_across_parts() {
        let region = Arc::new(Region::allocate(4096, None).unwrap());
        let mut vector = Vector::default();
        vector.push_bytes(b"head");
        vector.push_memory(Slice::new(region.clone(), 0, 10).unwrap());
        vector.push_room(3);
        vector.push_memory(Slice::new(region.clone(), 0, 0).unwrap());
        assert_eq!((vector.len(), vector.parts()), (17, 3));
        vector.advance(6);
        assert_eq!((vector.len(), vector.parts()), (11, 2));
        assert_eq!(vector.memory().next().unwrap().addr(), region.addr() + 2);
        vector.advance(8);
        assert_eq!((vector.len(), vector.parts()), (3, 1));
        assert_eq!(Arc::strong_count(&region), 1, "used memory is let go");
        vector.advance(99);
        assert!(vector.is_empty());
        assert_eq!(vector.scratch(), b"head\0\0\0");
    }

    #[test]
    fn what_was_left_in_scratch_is_never_sent() {
        let mut vector = Vector::default();
        vector.push_bytes(b"another's secret");
        vector.clear();
        vector.push_zeros(4);
        vector.push_bytes(b"own");
        assert_eq!(vector.copy_out(usize::MAX), b"\0\0\0\0own");
        assert_eq!(vector.scratch(), b"\0\0\0\0own", "nor seen");
    }

    #[test]
    fn bytes_go_in_and_out_without_a_kernel() {
        let region = Arc::new(Region::allocate(4096, None).unwrap());
        let mut vector = Vector::default();
        vector.push_room(2);
        vector.push_memory(Slice::new(region, 0, 3).unwrap());
        vector.push_room(1);
        assert_eq!(vector.store(b"abcd"), 4);
        assert_eq!(vector.copy_out(99), b"abcd\0\0");
        vector.advance(1);
        assert_eq!(vector.store(b"1234567"), 5);
        assert_eq!(vector.copy_out(4), b"1234");
        assert_eq!(vector.copy_out(99), b"12345");
    }
}

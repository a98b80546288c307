//! A launch's arguments, laid out as `pages.cu` reads them, and its size.

use crate::cuda::even::Even;
use crate::cuda::plan::Range;

/// Threads of a block at most, as `pages.cu` is compiled for.
const BLOCK_THREADS: u32 = 512;

/// Threads of a warp.
const WARP_THREADS: u32 = 32;

/// Bytes that a warp moves at a time, as in `pages.cu`.
const CHUNK_BYTES: usize = 2048;

/// The kernel's one parameter, in words.
#[derive(Debug, Default)]
pub(super) struct Arguments {
    words: Vec<u64>,
    chunks: u32,
}

impl Arguments {
    /// Those of pages of any length, for the kernel that takes `max`: how many there are and the
    /// chunks of the longest in one word, then sources, targets, and lengths, two a word.
    pub(super) fn pages(&mut self, pages: &[Range], max: usize) {
        let longest = pages.iter().map(|page| page.len).max().unwrap_or(0);
        self.head(pages.len(), longest, 1 + 2 * max + max / 2);
        let (from, rest) = self.words[1..].split_at_mut(max);
        let (to, lens) = rest.split_at_mut(max);
        for (k, page) in pages.iter().enumerate() {
            (from[k], to[k]) = (page.from, page.to);
        }
        for (word, pair) in lens.iter_mut().zip(pages.chunks(2)) {
            let second = pair.get(1).map_or(0, |page| page.len as u64);
            *word = pair[0].len as u64 | second << 32;
        }
    }

    /// Those of pages of one length: behind the same first word what distances are counted from,
    /// the length and the unit in one word, then the pages.
    pub(super) fn even(&mut self, pages: &Even, max: usize) {
        let Even { from, to, len, shift, at } = pages;
        self.head(at.len(), *len as usize, 4 + max);
        self.words[1..4].copy_from_slice(&[*from, *to, u64::from(*len) | u64::from(*shift) << 32]);
        self.words[4..4 + at.len()].copy_from_slice(at);
    }

    fn head(&mut self, count: usize, longest: usize, words: usize) {
        let chunks = longest.div_ceil(CHUNK_BYTES);
        self.chunks = u32::try_from(count * chunks).unwrap_or(u32::MAX);
        self.words.resize(words, 0);
        self.words[0] = count as u64 | (chunks as u64) << 32;
    }

    /// Threads of each of so many blocks: a warp for every chunk, while there are any.
    pub(super) fn threads(&self, blocks: u32) -> u32 {
        let warps = self.chunks.div_ceil(blocks);
        warps.saturating_mul(WARP_THREADS).clamp(WARP_THREADS, BLOCK_THREADS)
    }

    pub(super) fn words(&mut self) -> &mut [u64] {
        &mut self.words
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_of_any_length_are_laid_out_as_their_source_says() {
        let page = |k: u64| Range { from: k, to: 100 + k, len: 5000 + k as usize };
        let mut arguments = Arguments::default();
        arguments.pages(&[page(1), page(2), page(3)], 64);
        let words = arguments.words();
        // u32 count, chunks; u64 from[64], to[64]; u32 bytes[64].
        assert_eq!(words.len() * 8, 8 + 64 * 8 + 64 * 8 + 64 * 4);
        assert_eq!((words[0] as u32, words[0] >> 32), (3, 3));
        assert_eq!((words[1], words[3], words[65], words[67]), (1, 3, 101, 103));
        assert_eq!((words[129], words[130]), (5001 | 5002 << 32, 5003));
    }

    #[test]
    fn pages_of_one_length_are_laid_out_as_their_source_says() {
        let page = |k: u64| Range { from: 1000 + 16 * k, to: 5000 - 16 * k, len: 4096 };
        let mut arguments = Arguments::default();
        arguments.even(&Even::of(&[page(0), page(1), page(2)]).expect("one length"), 64);
        let words = arguments.words();
        // u32 count, chunks; u64 from, to; u32 bytes, shift; u64 at[64].
        assert_eq!(words.len() * 8, 8 + 16 + 8 + 64 * 8);
        assert_eq!(words[..4], [3 | 2 << 32, 1000, 5000 - 32, 4096 | 4 << 32]);
        assert_eq!(words[4..8], [2 << 32, 1 | 1 << 32, 2, 0]);
    }

    #[test]
    fn a_block_has_no_more_warps_than_there_are_chunks_for() {
        let page = |k: u64| Range { from: k << 20, to: k << 20, len: 4096 };
        let pages: Vec<_> = (0..960).map(page).collect();
        for (count, threads) in [(1, 32), (8, 32), (16, 64), (960, 512)] {
            let mut arguments = Arguments::default();
            arguments.pages(&pages[..count], 1024);
            assert_eq!(arguments.threads(16), threads);
            arguments.even(&Even::of(&pages[..count]).expect("one length"), 1024);
            assert_eq!(arguments.threads(16), threads);
        }
    }
}

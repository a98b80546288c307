//! Batches of pages: how many of what size, and where each lies on the far side.

use crate::size;

/// Pages of one batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pages {
    /// How many.
    pub count: usize,
    /// Bytes of each.
    pub bytes: usize,
}

/// Reads `960x12K`.
pub fn parse(text: &str) -> Result<Pages, String> {
    let wrong = || format!("{text:?} is no number of pages: write COUNTxSIZE, such as 960x12K");
    let (count, bytes) = text.split_once('x').ok_or_else(wrong)?;
    let count = count.parse().ok().filter(|&count| count > 0).ok_or_else(wrong)?;
    Ok(Pages { count, bytes: size::parse(bytes)? })
}

/// Where a page lies among `count`: each at one place of its own, far from its neighbours'. The
/// step is nearest to the golden section, which spreads any number of them.
pub fn scattered(page: usize, count: usize) -> usize {
    let coprime = |step: &usize| gcd(*step, count) == 1;
    let step = (count * 618 / 1000).max(1);
    let step = (step..=count.max(1)).find(coprime).unwrap_or(1);
    (page as u128 * step as u128 % count as u128) as usize
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_read() {
        assert_eq!(parse("960x12K"), Ok(Pages { count: 960, bytes: 12 << 10 }));
        for text in ["", "x", "960", "0x4K", "960x", "ax4K", "960x4Q"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn every_page_has_a_place_of_its_own_without_its_neighbour_beside_it() {
        for count in [1, 2, 3, 7, 16, 128, 960, 8192] {
            let mut places: Vec<_> = (0..count).map(|page| scattered(page, count)).collect();
            let neighbours = places.windows(2).filter(|pair| pair[0] + 1 == pair[1]).count();
            assert!(count < 7 || neighbours == 0, "{count}");
            places.sort_unstable();
            assert!(places.into_iter().eq(0..count));
        }
    }
}

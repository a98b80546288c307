//! How long batches took: not one figure but a curve. Pure.

use serde_json::{Value, json};

use super::figures::Spread;

/// The shares of all batches of which contenders say how long they took, and their names in the
/// drivers' answers: `p90` is the time within which 90 % of them ended.
pub const RANKS: [(&str, f64); 7] = [
    ("p10", 0.1),
    ("p25", 0.25),
    ("p50", 0.5),
    ("p75", 0.75),
    ("p90", 0.9),
    ("p99", 0.99),
    ("p99_9", 0.999),
];
const P50: usize = 2;
const P99: usize = 5;

/// Microseconds of a whole batch, by rank.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Latency([f64; RANKS.len()]);

impl Latency {
    /// From a driver's answer; none where it doesn't say all of it.
    pub fn read(answer: &Value) -> Option<Self> {
        let mut ranks = [0.0; RANKS.len()];
        for (rank, (name, _)) in ranks.iter_mut().zip(RANKS) {
            *rank = answer[name].as_f64()?;
        }
        Some(Self(ranks))
    }

    /// The median of each rank over several rounds.
    pub fn median(rounds: &[Self]) -> Option<Self> {
        let mut ranks = [0.0; RANKS.len()];
        for (at, rank) in ranks.iter_mut().enumerate() {
            *rank = Spread::of(rounds.iter().map(|round| round.0[at]))?.median;
        }
        Some(Self(ranks))
    }

    pub fn p50_us(&self) -> f64 {
        self.0[P50]
    }

    pub fn p99_us(&self) -> f64 {
        self.0[P99]
    }

    /// Shares of the batches, and within how many microseconds they ended.
    pub fn curve(&self) -> impl Iterator<Item = (f64, f64)> {
        RANKS.into_iter().zip(self.0).map(|((_, share), us)| (share, us))
    }

    pub fn json(&self) -> Value {
        RANKS.iter().zip(self.0).map(|((name, _), us)| ((*name).to_owned(), json!(us))).collect()
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// A median of so much, and a tail of twice that from the 99th percentile on.
    pub fn latency(p50_us: f64) -> Latency {
        let tail = 2.0 * p50_us;
        Latency([0.5 * p50_us, 0.75 * p50_us, p50_us, p50_us, p50_us, tail, 2.0 * tail])
    }

    #[test]
    fn what_is_written_is_read_and_half_of_it_is_not() {
        let one = latency(10.0);
        assert_eq!(Latency::read(&one.json()), Some(one));
        assert_eq!(Latency::read(&json!({"p50": 1.0, "p99": 2.0})), None);
        assert_eq!((one.p50_us(), one.p99_us()), (10.0, 20.0));
        assert_eq!(one.curve().last(), Some((0.999, 40.0)));
    }

    #[test]
    fn rounds_meet_in_their_medians() {
        let rounds = [latency(1.0), latency(9.0), latency(2.0)];
        assert_eq!(Latency::median(&rounds), Some(latency(2.0)));
        assert_eq!(Latency::median(&[]), None);
    }
}

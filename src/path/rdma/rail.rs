//! One rail to a peer: whether it may be used, and how soon it would be done with more.

use kvrail_reactors::ticket::Ticket;

use super::action::RdmaLimits;
use super::endpoint::Endpoint;

/// Bandwidth that rails are thought to have before anything was measured, in bytes a microsecond:
/// 10 Gbit/s. Only the ratio between rails counts.
pub(super) const BANDWIDTH_FIRST: f64 = 1_250.0;

/// How much longer a NIC takes for memory of another node: the middle of the 1.2 to 1.7 times that
/// reads take over the link between two sockets. Only the order of rails follows from it.
const NUMA_PENALTY: f64 = 1.4;

/// Weight of a new measurement: the last eight or so count.
const WEIGHT: f64 = 0.125;

/// After so long without a completion a measurement is doubted. A rail that was slow for a while
/// would else get nothing for ever, since nothing would tell that it is quick again. Longer than
/// transfers take, and so short that nobody waits for a rail to be used again.
const DOUBTED_AFTER_NS: u64 = 1_000_000_000;

/// The two NICs that a rail is between.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ends {
    /// Ours, by its index here.
    pub(crate) nic: u8,
    /// The peer's, by its place in what the peer has published.
    pub(crate) theirs: u8,
    /// The NUMA node that ours hangs on.
    pub(crate) node: Option<u32>,
}

#[derive(Debug)]
pub(crate) struct Rail {
    pub(crate) ends: Ends,
    /// The endpoint that carries work, or will.
    pub(crate) endpoint: Option<Ticket<Endpoint>>,
    /// The port says that it carries nothing.
    pub(crate) is_down: bool,
    /// Endpoints whose silence has no end yet: nothing more is given to that NIC.
    pub(crate) mute: usize,
    /// Rests until then, after a failure.
    paused_until_ns: u64,
    /// How long it rests after the next failure.
    pause_ns: u64,
    /// What it carried, and when that was last measured.
    measured: Option<(f64, u64)>,
}

impl Rail {
    pub(crate) fn new(ends: Ends, limits: &RdmaLimits) -> Self {
        Self {
            ends,
            endpoint: None,
            is_down: false,
            mute: 0,
            paused_until_ns: 0,
            pause_ns: limits.pause_ns,
            measured: None,
        }
    }

    pub(crate) fn is_usable(&self, now_ns: u64) -> bool {
        !self.is_down && self.mute == 0 && now_ns >= self.paused_until_ns
    }

    /// It failed: it rests, twice as long as the last time. What it carried while it was failing
    /// says nothing of it once it works again.
    pub(crate) fn failed(&mut self, now_ns: u64, limits: &RdmaLimits) {
        self.measured = None;
        self.paused_until_ns = now_ns + self.pause_ns;
        self.pause_ns = (2 * self.pause_ns).min(limits.pause_max_ns);
    }

    /// Its port came up: what it rested for may be over.
    pub(crate) fn came_up(&mut self) {
        self.is_down = false;
        self.paused_until_ns = 0;
    }

    /// Something completed behind `ahead` bytes, itself included, that was `posted_ns`.
    pub(crate) fn completed(
        &mut self,
        ahead: usize,
        posted_ns: u64,
        now_ns: u64,
        limits: &RdmaLimits,
    ) {
        self.pause_ns = limits.pause_ns;
        if ahead == 0 {
            return;
        }
        let new = ahead as f64 * 1_000.0 / (now_ns - posted_ns).max(1) as f64;
        let known = self.bytes_per_us(now_ns).unwrap_or(new);
        self.measured = Some((known + WEIGHT * (new - known), now_ns));
    }

    /// What it carries, in bytes a microsecond, where that was measured lately.
    pub(crate) fn bytes_per_us(&self, now_ns: u64) -> Option<f64> {
        let is_known = |(_, at_ns): &(f64, u64)| now_ns < at_ns + DOUBTED_AFTER_NS;
        self.measured.filter(is_known).map(|(bytes_per_us, _)| bytes_per_us)
    }

    /// When `more` bytes behind those `under_way` would be done, in nanoseconds from now. A rail
    /// that nothing is known of is as good as the `best` of the peer's; one that was slow when it
    /// was last measured is tried with one piece of work at a time.
    pub(crate) fn finish_ns(
        &self,
        (under_way, more): (usize, usize),
        penalty: f64,
        best: f64,
        now_ns: u64,
    ) -> u64 {
        let last = self.measured.map(|(bytes_per_us, _)| bytes_per_us);
        let doubted = last.filter(|_| under_way > 0);
        let bytes_per_us = self.bytes_per_us(now_ns).or(doubted).unwrap_or(best);
        let bytes = (under_way + more) as f64 * penalty;
        (bytes * 1_000.0 / bytes_per_us.max(f64::MIN_POSITIVE)) as u64
    }

    /// How many times as long it takes for memory that isn't near to its NICs: ours on another
    /// `node`, the peer's where others are `near`.
    pub(crate) fn penalty(&self, node: Option<u32>, near: u64) -> f64 {
        let is_far = node.is_some() && self.ends.node.is_some() && node != self.ends.node;
        let is_far_there = near != 0 && near >> self.ends.theirs.min(63) & 1 == 0;
        NUMA_PENALTY.powi(i32::from(is_far) + i32::from(is_far_there))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENDS: Ends = Ends { nic: 0, theirs: 0, node: None };

    #[test]
    fn a_failing_rail_rests_longer_each_time_until_it_works() {
        let limits = RdmaLimits::default();
        let mut rail = Rail::new(ENDS, &limits);
        let mut now_ns = 0;
        let mut rests = Vec::new();
        for _ in 0..20 {
            rail.failed(now_ns, &limits);
            let back_ns = rail.paused_until_ns;
            assert!(!rail.is_usable(back_ns - 1) && rail.is_usable(back_ns));
            rests.push(back_ns - now_ns);
            now_ns = back_ns;
        }
        assert_eq!(rests[..3], [1, 2, 4].map(|times| times * limits.pause_ns));
        assert_eq!(rests[19], limits.pause_max_ns);
        rail.completed(1, now_ns, now_ns + 1, &limits);
        rail.failed(now_ns, &limits);
        assert_eq!(rail.paused_until_ns, now_ns + limits.pause_ns);
        rail.came_up();
        assert!(rail.is_usable(now_ns));
    }

    #[test]
    fn a_slow_rail_is_measured_and_gets_less() {
        let limits = RdmaLimits::default();
        let [mut fast, mut slow] = [Rail::new(ENDS, &limits), Rail::new(ENDS, &limits)];
        let mut now_ns = 0;
        for _ in 0..50 {
            now_ns += 2_000_000_000;
            fast.completed(1 << 20, now_ns - 20_000, now_ns, &limits);
            slow.completed(1 << 20, now_ns - 2_000_000, now_ns, &limits);
        }
        let best = fast.bytes_per_us(now_ns).unwrap();
        let finish_ns = |rail: &Rail, mib: usize| rail.finish_ns((0, mib << 20), 1.0, best, now_ns);
        assert!(finish_ns(&fast, 50) < finish_ns(&slow, 1));
    }

    #[test]
    fn a_rail_that_was_slow_a_while_ago_is_tried_with_one_piece_of_work() {
        let limits = RdmaLimits::default();
        let mut rail = Rail::new(ENDS, &limits);
        rail.completed(1 << 20, 0, 1_000_000_000, &limits);
        let finish_ns = |rail: &Rail, under_way, now_ns| {
            rail.finish_ns((under_way, 1_000), 1.0, BANDWIDTH_FIRST, now_ns)
        };
        let later_ns = 1_000_000_000 + DOUBTED_AFTER_NS;
        assert!(finish_ns(&rail, 0, later_ns - 1) > 500_000, "it is known to be slow");
        assert_eq!(finish_ns(&rail, 0, later_ns), 800);
        assert!(finish_ns(&rail, 1_000, later_ns) > 500_000);
        rail.completed(1_000, later_ns, later_ns + 800, &limits);
        assert_eq!(finish_ns(&rail, 0, later_ns + 800), 800, "what was before doesn't count");
    }

    #[test]
    fn a_rail_that_failed_is_as_good_as_the_others_when_it_returns() {
        let limits = RdmaLimits::default();
        let mut rail = Rail::new(ENDS, &limits);
        rail.completed(1 << 20, 0, 1_000_000_000, &limits);
        rail.failed(1_000_000_000, &limits);
        assert_eq!(rail.finish_ns((500, 500), 1.0, 500.0, 1_000_000_000), 2_000);
    }

    #[test]
    fn memory_of_another_node_is_farther() {
        let rail = Rail::new(Ends { node: Some(1), ..ENDS }, &RdmaLimits::default());
        let near = rail.penalty(Some(1), 0b1);
        assert_eq!(near, rail.penalty(None, 0), "nobody knows where it is");
        assert!(near < rail.penalty(Some(0), 0b1));
        assert!(near < rail.penalty(Some(1), 0b10));
        assert!(rail.penalty(Some(1), 0b10) < rail.penalty(Some(0), 0b10));
    }
}

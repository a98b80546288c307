//! One rail to a peer: whether it may be used, and how soon it would be done with more.

use kvrail_reactors::ticket::Ticket;

use super::action::RdmaLimits;
use super::endpoint::Endpoint;

/// Bandwidth that a rail is thought to have before anything was measured, in bytes a microsecond:
/// 10 Gbit/s. Only the ratio between rails counts.
const BANDWIDTH_FIRST: f64 = 1_250.0;

/// How much longer a NIC takes for memory of another node: the middle of the 1.2 to 1.7 times that
/// reads take over the link between two sockets. Only the order of rails follows from it.
const NUMA_PENALTY: f64 = 1.4;

/// Weight of a new measurement: the last eight or so count.
const WEIGHT: f64 = 0.125;

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
    bytes_per_us: f64,
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
            bytes_per_us: BANDWIDTH_FIRST,
        }
    }

    pub(crate) fn is_usable(&self, now_ns: u64) -> bool {
        !self.is_down && self.mute == 0 && now_ns >= self.paused_until_ns
    }

    /// It failed: it rests, twice as long as the last time.
    pub(crate) fn failed(&mut self, now_ns: u64, limits: &RdmaLimits) {
        self.paused_until_ns = now_ns + self.pause_ns;
        self.pause_ns = (2 * self.pause_ns).min(limits.pause_max_ns);
    }

    /// Its port came up: what it rested for may be over.
    pub(crate) fn came_up(&mut self) {
        self.is_down = false;
        self.paused_until_ns = 0;
    }

    /// Something completed behind `ahead` bytes, itself included, in `took_ns`.
    pub(crate) fn completed(&mut self, ahead: usize, took_ns: u64, limits: &RdmaLimits) {
        self.pause_ns = limits.pause_ns;
        if ahead > 0 {
            let measured = ahead as f64 * 1_000.0 / took_ns.max(1) as f64;
            self.bytes_per_us += WEIGHT * (measured - self.bytes_per_us);
        }
    }

    /// When `bytes`, those under way included, would be done, in nanoseconds from now. Memory that
    /// isn't near to the NIC takes longer: ours on another `node`, the peer's where others are
    /// `near`.
    pub(crate) fn finish_ns(&self, bytes: usize, node: Option<u32>, near: u64) -> u64 {
        let is_far = node.is_some() && self.ends.node.is_some() && node != self.ends.node;
        let is_far_there = near != 0 && near >> self.ends.theirs.min(63) & 1 == 0;
        let times = i32::from(is_far) + i32::from(is_far_there);
        let bytes = bytes as f64 * NUMA_PENALTY.powi(times);
        (bytes * 1_000.0 / self.bytes_per_us.max(f64::MIN_POSITIVE)) as u64
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
        rail.completed(1, 1, &limits);
        rail.failed(now_ns, &limits);
        assert_eq!(rail.paused_until_ns, now_ns + limits.pause_ns);
        rail.came_up();
        assert!(rail.is_usable(now_ns));
    }

    #[test]
    fn a_slow_rail_is_measured_and_gets_less() {
        let limits = RdmaLimits::default();
        let [mut fast, mut slow] = [Rail::new(ENDS, &limits), Rail::new(ENDS, &limits)];
        for _ in 0..50 {
            fast.completed(1 << 20, 20_000, &limits);
            slow.completed(1 << 20, 2_000_000, &limits);
        }
        assert!(fast.finish_ns(50 << 20, None, 0) < slow.finish_ns(1 << 20, None, 0));
    }

    #[test]
    fn memory_of_another_node_is_farther() {
        let rail = Rail::new(Ends { node: Some(1), ..ENDS }, &RdmaLimits::default());
        let near = rail.finish_ns(1 << 20, Some(1), 0b1);
        assert!(near < rail.finish_ns(1 << 20, Some(0), 0b1));
        assert!(near < rail.finish_ns(1 << 20, Some(1), 0b10));
        assert_eq!(near, rail.finish_ns(1 << 20, None, 0), "nobody knows where it is");
    }
}

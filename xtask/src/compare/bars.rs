//! What ours has to reach in each cell, and whether it does. Pure.

use super::contender::Role;
use super::figures::{Results, Row};
use super::latency::Latency;

/// Where a peer is so far from the limit, it is not enough to be as fast as it.
const SLOW_PEER: f64 = 0.6;
const OVER_SLOW_PEER: f64 = 1.5;
/// Of a peer that shares memory, or of one thread's memcpy where that is lower.
const OVER_HOST_PEER: f64 = 1.3;
const OF_MEMCPY: f64 = 0.9;
/// Of the limit, by RDMA.
const OF_PERFTEST: f64 = 0.85;
/// Inside a process, where blocks are this long.
const OF_LOCAL_MEMCPY: f64 = 0.95;
const LONG_BYTES: u64 = 1 << 20;
/// Of what one peer gets, where many share it.
const OF_ONE_PEER: f64 = 0.9;
/// Many small blocks against one as long as all of them.
const OF_WHOLE: f64 = 0.9;

/// What a workload asks of ours.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Bar {
    /// As fast as each peer, and faster than a slow one.
    Peers,
    /// Faster than a peer that shares memory, or near to one thread's memcpy.
    HostPeers,
    /// Long copies near to memcpy's.
    Limit,
    /// Several callers no slower than one: no column of ours below our last one.
    Callers,
    /// Many peers hardly slower than one: no column of ours far below our last one.
    ManyPeers,
    /// As fast as each peer, and near to the limit.
    Rdma,
    /// Each peer takes longer, in the middle and at the end.
    Latency,
    /// Many blocks near to one as long.
    Whole,
    None,
}

/// How far ours has come in one cell.
#[derive(Clone, PartialEq, Debug)]
pub struct Verdict {
    /// The ratio, in words: `1.5 x Mooncake tcp`.
    pub bar: String,
    pub needed: f64,
    pub reached: f64,
}

impl Verdict {
    pub fn is_met(&self) -> bool {
        self.reached >= self.needed
    }

    fn of(needed: f64, name: &str, reached: f64) -> Self {
        Self { bar: format!("{needed} x {name}"), needed, reached }
    }

    /// 1 is just enough.
    fn margin(&self) -> f64 {
        self.reached / self.needed
    }
}

/// Whether the speed of ours is enough in one cell: the verdict that is nearest to failing, or
/// where one of several is enough, the best. None where nothing is asked, or there are no figures.
pub fn speed(results: &Results, row: &Row) -> Option<Verdict> {
    let all = verdicts(results, row).into_iter();
    let by_margin = |one: &Verdict, other: &Verdict| one.margin().total_cmp(&other.margin());
    match results.bar {
        Bar::HostPeers => all.max_by(by_margin),
        _ => all.min_by(by_margin),
    }
}

fn verdicts(results: &Results, row: &Row) -> Vec<Verdict> {
    let Some(ours) = results.ours() else { return Vec::new() };
    let over = |needed: f64, at: usize| {
        let reached = row.ratio(ours, at)?.median;
        Some(Verdict::of(needed, &results.columns[at].name, reached))
    };
    let limit = results.best(row, Role::Limit);
    let peers = || results.of(Role::Peer);
    match results.bar {
        Bar::Peers => peers().filter_map(|at| over(over_peer(row, at, limit), at)).collect(),
        Bar::HostPeers => {
            let peer = results.best(row, Role::Peer).and_then(|at| over(OVER_HOST_PEER, at));
            let memcpy = results.columns.iter().position(|column| column.name == "memcpy");
            peer.into_iter().chain(memcpy.and_then(|at| over(OF_MEMCPY, at))).collect()
        }
        Bar::Limit if row.cell.block_bytes >= LONG_BYTES => {
            limit.and_then(|at| over(OF_LOCAL_MEMCPY, at)).into_iter().collect()
        }
        Bar::Rdma => {
            let limits = results.of(Role::Limit).filter_map(|at| over(OF_PERFTEST, at));
            peers().filter_map(|at| over(1.0, at)).chain(limits).collect()
        }
        Bar::Callers => beside_last(results, row, 1.0),
        Bar::ManyPeers => beside_last(results, row, OF_ONE_PEER),
        Bar::Latency => peers().filter_map(|at| latency(results, row, ours, at)).collect(),
        Bar::Whole => whole(results, row, ours).into_iter().collect(),
        Bar::Limit | Bar::None => Vec::new(),
    }
}

fn over_peer(row: &Row, peer: usize, limit: Option<usize>) -> f64 {
    let share = limit.and_then(|limit| row.ratio(peer, limit));
    if share.is_some_and(|share| share.median < SLOW_PEER) { OVER_SLOW_PEER } else { 1.0 }
}

/// Our last column has one caller, or one peer.
fn beside_last(results: &Results, row: &Row, needed: f64) -> Vec<Verdict> {
    let mut ours: Vec<_> = results.of(Role::Ours).collect();
    let Some(one) = ours.pop() else { return Vec::new() };
    let name = &results.columns[one].name;
    let ratios = ours.into_iter().filter_map(|at| row.ratio(at, one));
    ratios.map(|ratio| Verdict::of(needed, name, ratio.median)).collect()
}

/// How many times longer a peer takes, where that is least.
fn latency(results: &Results, row: &Row, ours: usize, peer: usize) -> Option<Verdict> {
    let (ours, theirs) = (row.latency(ours)?, row.latency(peer)?);
    let [p50, p99] = [Latency::p50_us, Latency::p99_us].map(|rank| rank(&theirs) / rank(&ours));
    let bar = format!("p50 and p99 under {}", results.columns[peer].name);
    Some(Verdict { bar, needed: 1.0, reached: p50.min(p99) })
}

/// The same bytes, by the same operation, in one block.
fn whole(results: &Results, row: &Row, ours: usize) -> Option<Verdict> {
    let bytes = |row: &Row| row.cell.block_bytes * row.cell.batch;
    let is_it = |one: &&Row| {
        one.cell.batch == 1 && one.cell.operation == row.cell.operation && bytes(one) == bytes(row)
    };
    let one = results.rows.iter().find(is_it).filter(|_| row.cell.batch > 1)?;
    let reached = row.throughput(ours)?.median / one.throughput(ours)?.median;
    Some(Verdict::of(OF_WHOLE, "one block", reached))
}

/// Whether ours takes less CPU for a byte than each peer: theirs over ours, of the least.
pub fn cpu(results: &Results, row: &Row) -> Option<Verdict> {
    let ours = row.cpu(results.ours()?)?.median;
    let peers = results.of(Role::Peer).filter_map(|at| Some((at, row.cpu(at)?.median)));
    let (at, least) = peers.min_by(|one, other| one.1.total_cmp(&other.1))?;
    let bar = format!("less than {}", results.columns[at].name);
    Some(Verdict { bar, needed: 1.0, reached: least / ours })
}

#[cfg(test)]
mod tests {
    use super::super::figures::tests::results;
    use super::super::plan::Cell;
    use super::*;

    fn speeds(bar: Bar) -> Option<Verdict> {
        let results = Results { bar, ..results() };
        speed(&results, &results.rows[0])
    }

    #[test]
    fn a_peer_far_from_the_limit_must_be_left_behind() {
        // Ours has 2 and 6, the fast peer 4 and 2, of a limit of 8: half of it in the one round.
        let verdict = speeds(Bar::Peers).unwrap();
        assert_eq!((verdict.bar.as_str(), verdict.reached), ("1.5 x fast", 1.75));
        assert!(verdict.is_met());
    }

    #[test]
    fn on_one_host_either_of_two_is_enough() {
        let verdict = speeds(Bar::HostPeers).unwrap();
        assert_eq!(verdict.bar, "1.3 x fast");
        assert!(verdict.is_met());
    }

    #[test]
    fn short_copies_have_no_bar_in_a_process_and_long_ones_do() {
        assert_eq!(speeds(Bar::Limit), None);
        let mut results = Results { bar: Bar::Limit, ..results() };
        results.rows[0].cell.block_bytes = LONG_BYTES;
        let verdict = speed(&results, &results.rows[0]).unwrap();
        assert_eq!((verdict.bar.as_str(), verdict.is_met()), ("0.95 x memcpy", false));
        assert_eq!(speeds(Bar::None), None);
    }

    #[test]
    fn callers_are_held_against_one_and_blocks_against_a_whole() {
        let mut results = Results { bar: Bar::Callers, ..results() };
        results.columns[1].role = Role::Ours;
        let verdict = speed(&results, &results.rows[0]).unwrap();
        assert_eq!((verdict.bar.as_str(), verdict.reached), ("1 x slow", 4.0));
        results.bar = Bar::Whole;
        let cell = Cell { block_bytes: 1 << 20, batch: 1, ..results.rows[0].cell };
        let row = Row { cell, ..results.rows[0].clone() };
        results.rows.push(row);
        assert_eq!(speed(&results, &results.rows[0]).map(|verdict| verdict.reached), Some(1.0));
        assert_eq!(speed(&results, &results.rows[1]), None);
    }

    #[test]
    fn by_rdma_peers_are_reached_and_the_limit_nearly() {
        let verdict = speeds(Bar::Rdma).unwrap();
        assert_eq!((verdict.bar.as_str(), verdict.reached), ("0.85 x memcpy", 0.25));
        assert!(!verdict.is_met());
    }

    #[test]
    fn many_peers_may_cost_a_tenth_and_one_request_takes_no_longer_than_theirs() {
        let mut results = Results { bar: Bar::ManyPeers, ..results() };
        results.columns[1].role = Role::Ours;
        let verdict = speed(&results, &results.rows[0]).unwrap();
        assert_eq!((verdict.bar.as_str(), verdict.is_met()), ("0.9 x slow", true));
        results.columns[1].role = Role::Peer;
        results.bar = Bar::Latency;
        let verdict = speed(&results, &results.rows[0]).unwrap();
        assert_eq!(verdict.reached, 1.0, "all take as long");
        assert!(verdict.bar.starts_with("p50 and p99 under"), "{}", verdict.bar);
    }

    #[test]
    fn cpu_is_held_against_the_thriftiest_peer() {
        let results = results();
        let verdict = cpu(&results, &results.rows[0]).unwrap();
        assert_eq!((verdict.reached, verdict.is_met()), (1.0, true));
    }
}

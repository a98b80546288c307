//! What a seed makes happen, and when; each happening has a seed of its own, so that the others
//! stay what they are when one is left out.

use crate::path::rdma::{RdmaLimits, Signals};

#[derive(Debug, Clone, Copy)]
pub(super) struct Happening {
    pub(super) at_ns: u64,
    pub(super) what: What,
    pub(super) seed: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum What {
    /// A process asks for a transfer.
    Transfer,
    /// A port's wire is cut for a while.
    Cut,
    /// A NIC says nothing for a while.
    Silence,
    /// A NIC is slow for a while.
    Slow,
    /// The wire loses packets for a while.
    Loss,
    /// A NIC's reads end as if they had succeeded, where such a NIC isn't believed.
    Surprise,
    /// Control messages are lost for a while.
    Partition,
    /// A process stops for a while.
    Pause,
    /// A process dies, and another takes its name.
    Crash,
    /// An owner reuses a block that somebody reads, under another generation.
    Reuse,
    /// An owner takes a grant back.
    Revoke,
    /// An owner takes its registration back, and registers anew.
    Unregister,
    /// A process lets go of a peer.
    Close,
}

/// What a world is like, and what happens in it.
pub(super) struct Schedule {
    pub(super) nodes: usize,
    pub(super) rails: usize,
    pub(super) limits: RdmaLimits,
    /// One control message in so many is lost, and one in so many comes twice; 0: none.
    pub(super) control_loss: u32,
    pub(super) control_twice: u32,
    pub(super) happenings: Vec<Happening>,
}

/// Moments are spread over so long: a transfer takes a tenth of it, so several overlap.
const SPAN_NS: u64 = 3_000_000;

impl Schedule {
    /// A seed's schedule, without the happenings whose numbers are in `dropped`.
    pub(super) fn new(seed: u64, dropped: &[usize]) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let transfers = rng.usize(6..=16);
        let faults = if rng.u8(..4) == 0 { 0 } else { rng.usize(1..=5) };
        let mut happenings: Vec<Happening> = (0..transfers + faults)
            .map(|number| Happening {
                at_ns: rng.u64(..SPAN_NS),
                what: if number < transfers { What::Transfer } else { fault(&mut rng) },
                seed: rng.u64(..),
            })
            .collect();
        happenings.sort_by_key(|happening| happening.at_ns);
        let is_kept = |(number, _): &(usize, Happening)| !dropped.contains(number);
        let kept = happenings.into_iter().enumerate().filter(is_kept);
        Self {
            nodes: rng.usize(2..=3),
            rails: rng.usize(1..=3),
            limits: RdmaLimits {
                queues: rng.usize(1..=2),
                window_requests: rng.usize(2..=16),
                window_bytes: rng.usize(1..=8) * 256,
                list_max: rng.usize(1..=6),
                signals: match rng.usize(..12) {
                    every @ 1..=8 => Signals::Every(every),
                    _ => Signals::Behind,
                },
                notices: 1 << rng.usize(0..=3),
                ..RdmaLimits::default()
            },
            control_loss: [0, 0, 6][rng.usize(..3)],
            control_twice: [0, 4][rng.usize(..2)],
            happenings: kept.map(|(_, happening)| happening).collect(),
        }
    }
}

fn fault(rng: &mut fastrand::Rng) -> What {
    match rng.u8(..22) {
        0..=3 => What::Cut,
        4..=5 => What::Silence,
        6 => What::Slow,
        7..=8 => What::Loss,
        9..=10 => What::Partition,
        11..=12 => What::Pause,
        13 => What::Crash,
        14..=16 => What::Reuse,
        17 => What::Revoke,
        18 => What::Unregister,
        19..=20 => What::Surprise,
        _ => What::Close,
    }
}

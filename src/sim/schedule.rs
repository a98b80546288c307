//! What a seed makes happen, and when: work and faults, each with a seed of its own, so that the
//! others stay what they are when one is left out.

/// Something that happens at a moment.
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
    /// A connection is cut.
    Reset,
    /// What is on its way to one side of a connection waits.
    Stall,
    /// A process stops for a while, as by SIGSTOP.
    Pause,
    /// A process dies, and another takes its name.
    Crash,
    /// A process takes a region back under load.
    Unregister,
    /// A process takes a granted block back under load.
    Revoke,
    /// A process lets go of its peers.
    Forget,
    /// A process closes a peer.
    Close,
}

/// What a world is like, and what happens in it.
pub(super) struct Schedule {
    pub(super) nodes: usize,
    /// Bytes of a block.
    pub(super) block_bytes: usize,
    /// Operations that a reactor takes at a time.
    pub(super) capacity: usize,
    pub(super) connections_max: usize,
    /// Messages that an actor's inbox takes.
    pub(super) mailbox: usize,
    /// A node that speaks version 1 to its peers, as Mooncake's older processes do.
    pub(super) old_node: Option<usize>,
    /// Whether a process that takes a dead one's name gets its port and its addresses too.
    pub(super) is_rebuilt_alike: bool,
    pub(super) happenings: Vec<Happening>,
}

/// Moments are spread over so long: some tens of transfers overlap.
const SPAN_NS: u64 = 4_000_000;

impl Schedule {
    /// A seed's schedule, without the happenings whose numbers are in `dropped`.
    pub(super) fn new(seed: u64, dropped: &[usize]) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let transfers = rng.usize(8..=24);
        let faults = if rng.u8(..4) == 0 { 0 } else { rng.usize(1..=8) };
        let revocations = rng.usize(..=6);
        let work = transfers + revocations;
        let mut happenings: Vec<Happening> = (0..work + faults)
            .map(|number| Happening {
                at_ns: rng.u64(..SPAN_NS),
                what: match number {
                    _ if number < transfers => What::Transfer,
                    _ if number < work => What::Revoke,
                    _ => fault(&mut rng),
                },
                seed: rng.u64(..),
            })
            .collect();
        happenings.sort_by_key(|happening| happening.at_ns);
        let is_kept = |(number, _): &(usize, Happening)| !dropped.contains(number);
        let kept = happenings.into_iter().enumerate().filter(is_kept);
        // Bodies of large blocks go straight to memory, those of small ones through scratch.
        let block_bytes = [256, 1_024, 4_096, 20_480][rng.usize(..20).saturating_sub(12) / 2];
        let is_rebuilt_alike = rng.bool();
        // To who speaks version 1 the next process at an address is the last one.
        let old_node = (!is_rebuilt_alike && rng.u8(..4) == 0).then_some(0);
        Self {
            nodes: rng.usize(2..=3),
            block_bytes,
            capacity: if faults > 0 && rng.u8(..8) == 0 { rng.usize(4..12) } else { 1_024 },
            connections_max: if faults > 0 && rng.u8(..8) == 0 { 2 } else { 64 },
            mailbox: if faults > 0 && rng.u8(..8) == 0 { rng.usize(1..4) } else { 1_024 },
            old_node,
            is_rebuilt_alike,
            happenings: kept.map(|(_, happening)| happening).collect(),
        }
    }

    /// Whether anything but load is in the way of a transfer.
    pub(super) fn has_faults(&self) -> bool {
        let is_fault =
            |happening: &Happening| !matches!(happening.what, What::Transfer | What::Revoke);
        self.happenings.iter().any(is_fault)
            || self.capacity < 64
            || self.connections_max < 8
            || self.mailbox < 64
    }
}

fn fault(rng: &mut fastrand::Rng) -> What {
    match rng.u8(..18) {
        0..=2 => What::Reset,
        3..=7 => What::Stall,
        8..=10 => What::Pause,
        11..=12 => What::Crash,
        13..=14 => What::Unregister,
        15..=16 => What::Close,
        _ => What::Forget,
    }
}

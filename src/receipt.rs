//! What is known when a transfer is over: which memory is provably untouched from here on, and
//! by whose word. Every end has a receipt: success, failure, deadline and cancellation.

use std::time::Duration;

use crate::{Error, Landed, PathKind};

/// Whether memory can still be touched by what was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Proof {
    /// Nothing of the transfer touches it any more.
    Quiet,
    /// Nobody has said so: bytes may still land. Reuse it only where that does no harm.
    Unproven,
}

/// What removed the last doubt about the peer's memory; the weakest word of all requests'.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Fenced {
    /// Nothing had been posted.
    Unposted,
    /// Whoever copies, here or at the peer, has said that it is over.
    Copier,
    /// The peer answered every request that it was sent.
    Answered,
    /// Nothing of the peer's was to be written, and nothing comes in here any more.
    Reader,
    /// The peer has closed the connection at our request and stores nothing from it any more.
    Lane,
    /// The peer has moved its queue pairs to error and drained them: its NIC stores nothing that
    /// came by them any more.
    Target,
    /// The process that had the memory is gone: another one answers in its place.
    Gone,
    /// Nobody: the peer is out of reach, or speaks Mooncake's protocol only.
    Nobody,
}

impl Fenced {
    /// Whether that is a proof.
    pub fn proof(self) -> Proof {
        if self == Self::Nobody { Proof::Unproven } else { Proof::Quiet }
    }

    /// The word in lower case: a bounded metric label.
    pub fn label(self) -> &'static str {
        match self {
            Self::Unposted => "unposted",
            Self::Copier => "copier",
            Self::Answered => "answered",
            Self::Reader => "reader",
            Self::Lane => "lane",
            Self::Target => "target",
            Self::Gone => "gone",
            Self::Nobody => "nobody",
        }
    }
}

/// How a transfer ended, seen from the memory on both sides. Our own side is always quiet by
/// then: a transfer is not over before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Receipt {
    pub(crate) landed: Landed,
    pub(crate) fenced: Fenced,
    pub(crate) took: Duration,
}

impl Receipt {
    /// Of what never took off: it has touched nothing.
    pub(crate) const UNPOSTED: Self =
        Self { landed: Landed::No, fenced: Fenced::Unposted, took: Duration::ZERO };

    /// Of this process's memory: always [`Proof::Quiet`].
    pub fn local(&self) -> Proof {
        Proof::Quiet
    }

    /// Of the peer's memory.
    pub fn remote(&self) -> Proof {
        self.fenced.proof()
    }

    /// Whether bytes reached their destination: all, none, or it isn't known.
    pub fn landed(&self) -> Landed {
        self.landed
    }

    /// By whose word [`Receipt::remote`] is known.
    pub fn fenced(&self) -> Fenced {
        self.fenced
    }

    /// From what ended the transfer (its cancellation, its drop, its deadline; else from its
    /// start) until its memory was quiet.
    pub fn took(&self) -> Duration {
        self.took
    }

    /// Of a batch all of whose requests have ended well.
    pub(crate) fn success(path: PathKind, took: Duration) -> Self {
        let fenced = match path {
            PathKind::Local | PathKind::Host => Fenced::Copier,
            PathKind::Tcp | PathKind::Rdma => Fenced::Answered,
        };
        Self { landed: Landed::Yes, fenced, took }
    }

    /// Sums up what failed of a batch whose requests have so many slices each.
    pub(crate) fn sum(
        path: PathKind,
        failures: &[(usize, Error)],
        slices: &[usize],
        took: Duration,
    ) -> Self {
        let success = Self::success(path, took);
        let failed = failures.iter().map(|(_, error)| error.fenced());
        let has_success = slices.iter().sum::<usize>() > failures.len();
        let least = if has_success { success.fenced } else { Fenced::Unposted };
        Self { landed: landed(failures, slices), fenced: failed.fold(least, Fenced::max), took }
    }
}

/// Failures are of slices, so a request that failed may have landed in part.
fn landed(failures: &[(usize, Error)], slices: &[usize]) -> Landed {
    let all: usize = slices.iter().sum();
    let mut words = failures.iter().map(|(_, error)| error.landed());
    match failures.iter().filter(|(request, _)| *request < slices.len()).count() {
        0 => Landed::Yes,
        failed if failed < all => Landed::Maybe,
        _ if words.all(|landed| landed == Landed::No) => Landed::No,
        _ => Landed::Maybe,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed(request: usize, landed: Landed) -> (usize, Error) {
        (request, Error::lost("test").with_landed(landed))
    }

    fn sum(failures: &[(usize, Error)], slices: &[usize]) -> (Landed, Fenced) {
        let receipt = Receipt::sum(PathKind::Tcp, failures, slices, Duration::ZERO);
        (receipt.landed(), receipt.fenced())
    }

    #[test]
    fn a_success_has_landed_and_was_answered() {
        assert_eq!(sum(&[], &[1, 64]), (Landed::Yes, Fenced::Answered));
    }

    #[test]
    fn what_was_never_posted_has_not_landed() {
        let failures = [failed(0, Landed::No), failed(0, Landed::No)];
        assert_eq!(sum(&failures, &[2]), (Landed::No, Fenced::Unposted));
        assert_eq!(sum(&failures, &[64]), (Landed::Maybe, Fenced::Answered), "62 slices did land");
    }

    #[test]
    fn one_doubt_is_enough() {
        let proven = failed(0, Landed::Maybe).1.with_fence(Fenced::Lane);
        let failures = [(0, proven.clone()), failed(1, Landed::Maybe)];
        assert_eq!(sum(&failures, &[1, 1]), (Landed::Maybe, Fenced::Nobody));
        assert_eq!(sum(&[(0, proven)], &[1, 1]), (Landed::Maybe, Fenced::Lane));
    }
}

//! A shard's view of one peer: requests that wait, the lanes that carry them, and what happens
//! when a lane dies.

use std::collections::VecDeque;
use std::sync::Arc;

use kvrail_reactors::ticket::Ticket;

use super::client::{Action, Broken, ClientStream, Request};
use super::connection::{Connection, End};
use super::dialed::Entry;
use super::wire::{LaneName, Version};
use crate::canary::{self, Canary};
use crate::limits::{ATTEMPTS_MAX, LANE_SPREAD_BYTES, LANES_MAX};
use crate::memory::gpu_error;
use crate::peer::{Route, RouteKind};
use crate::receipt::{Fenced, Proof};
use crate::{Error, ErrorKind, Landed, PathKind};

/// How a lane died.
pub(super) struct Loss {
    pub(super) end: End,
    pub(super) was_careful: bool,
    /// The peer had refused a request on it.
    pub(super) was_rejected: bool,
    /// What the peer knew it by.
    pub(super) name: Option<LaneName>,
    /// It carried requests: the peer had taken its name, if it has one.
    pub(super) was_ready: bool,
    /// Which try at reaching the peer it belonged to.
    pub(super) round: u64,
}

/// A lane that is gone here, and of which the peer has still to say that it stores nothing more.
pub(super) struct Fencing {
    pub(super) loss: Loss,
    pub(super) unanswered: Vec<Request>,
    /// When it is not waited for any longer.
    pub(super) patience_ns: u64,
}

/// Requests for one peer and the connections to it.
pub(super) struct Lanes {
    pub(super) route: Arc<Route>,
    pub(super) waiting: VecDeque<Request>,
    pub(super) lanes: Vec<Ticket<Connection>>,
    /// Connections that are being made.
    pub(super) dialing: usize,
    /// The peer closed without a word: one request at a time, to find out at which.
    careful: bool,
    /// Lanes that the peer is asked to end.
    pub(super) fencing: Vec<Fencing>,
    /// Rounds in a row whose lane died before it carried a request.
    stillborn: u32,
    /// Counts those rounds. Lanes of one round are cut by one event, however many they are.
    pub(super) round: u64,
}

impl Loss {
    fn is_given_up(&self) -> bool {
        matches!(self.end, End::GivenUp)
    }

    /// It need not be a request's fault, or the careful lane finds out whose.
    fn is_blameless(&self) -> bool {
        matches!(self.end, End::GivenUp | End::PeerClosed | End::Gpu(_))
    }
}

impl Lanes {
    pub(super) fn new(route: Arc<Route>) -> Self {
        Self {
            route,
            waiting: VecDeque::new(),
            lanes: Vec::new(),
            dialing: 0,
            careful: false,
            fencing: Vec::new(),
            stillborn: 0,
            round: 0,
        }
    }

    /// How many connections should be made for what waits now.
    pub(super) fn missing(&self) -> usize {
        if self.waiting.is_empty() {
            return 0;
        }
        let waiting_bytes: usize = self.waiting.iter().map(Request::len).sum();
        let lanes_max = if self.careful { 1 } else { LANES_MAX };
        let wanted = (waiting_bytes / LANE_SPREAD_BYTES + 1).min(lanes_max);
        wanted.saturating_sub(self.lanes.len() + self.dialing)
    }

    /// The framing of a new lane, and whether it sends one request at a time.
    pub(super) fn framing(&self) -> (Version, bool) {
        match &self.route.kind {
            RouteKind::Tcp(tcp) if tcp.speaks_v2 => (Version::V2, self.careful),
            _ => (Version::V1, self.careful),
        }
    }

    /// A new lane's client side.
    pub(super) fn stream(&self, entry: Entry, own: &Arc<str>) -> ClientStream {
        let (version, careful) = self.framing();
        let stream = ClientStream::new(version, careful);
        match entry {
            Entry::Open => stream.named(self.name(None), None, own),
            Entry::Pass(pass) => stream.named(self.name(Some(pass.0)), Some(pass.1), own),
            Entry::Entered(lane) => stream.entered(lane),
        }
    }

    /// What a new lane is called, where the peer is to know, and the process that is meant. A pass
    /// is good for one name only.
    pub(super) fn name(&self, of_pass: Option<LaneName>) -> Option<(LaneName, u64)> {
        let name = || of_pass.unwrap_or_else(LaneName::new);
        match &self.route.kind {
            RouteKind::Tcp(tcp) if tcp.names_lanes => Some((name(), tcp.incarnation?)),
            _ => None,
        }
    }

    /// Whether the peer must end a lane that died before what it carried can be settled. Behind a
    /// refusal the peer carries nothing out, and reads leave nothing at the peer.
    pub(super) fn must_fence(loss: &Loss, unanswered: &[Request]) -> Option<LaneName> {
        loss.name.filter(|_| !loss.was_rejected && unanswered.iter().any(Request::stores))
    }

    /// A lane died before it carried a request: whether to try another one.
    pub(super) fn may_retry(&mut self, loss: &Loss) -> bool {
        if loss.was_ready {
            self.stillborn = 0;
        } else if loss.round == self.round {
            self.stillborn += 1;
            self.round += 1;
        }
        let is_hopeless = self.stillborn >= ATTEMPTS_MAX || matches!(loss.end, End::Stalled);
        let may_retry = loss.was_ready || !is_hopeless || !self.lanes.is_empty();
        self.stillborn = if may_retry { self.stillborn } else { 0 };
        may_retry
    }

    /// A lane died with these requests unanswered, nothing of them moves any more on our side, and
    /// the peer's side is as `fenced` says. Those that the peer provably doesn't work on either
    /// wait for another lane; the rest is returned with its error.
    ///
    /// A refusal may get lost with the connection it ends (a reset throws away what the peer had
    /// still to send), so the next lane is careful: one request at a time, which names the culprit.
    pub(super) fn settle(
        &mut self,
        loss: &Loss,
        unanswered: Vec<Request>,
        fenced: Fenced,
    ) -> Vec<(Request, Error)> {
        // A nameless peer that closed has stopped storing what we sent; one with names says so.
        let may_resend = match loss.name {
            Some(_) => fenced.proof() == Proof::Quiet || loss.was_rejected,
            None => matches!(loss.end, End::PeerClosed | End::Broken(Broken::Rejected)),
        };
        let may_resend = may_resend && !matches!(loss.end, End::Ours);
        let is_repeatable = match loss.name {
            Some(_) => !matches!(loss.end, End::Ours),
            None => loss.is_given_up(),
        };
        let is_costly = loss.was_careful || (loss.name.is_some() && !loss.is_blameless());
        let (unanswered, mut failed) = self.without_owed(loss, unanswered, fenced);
        let mut is_unwell = false;
        for mut request in unanswered.into_iter().rev() {
            request.attempts += u32::from(is_costly && !loss.was_rejected);
            let is_exhausted = request.attempts >= self.attempts_max();
            is_unwell |= is_exhausted;
            // An event that arrived and whose answer was lost would count twice; behind a refusal
            // nothing is carried out.
            let may_repeat = loss.was_rejected
                || !matches!(request.action, Action::Event(_))
                || canary::is_on(Canary::CountedTwice);
            // Nothing lands in our own memory any more, whatever the peer does.
            let is_safe = is_repeatable && !request.stores();
            if (may_resend || is_safe) && may_repeat && !is_exhausted {
                if !loss.was_rejected {
                    request.landed = Landed::Maybe;
                    request.fenced = fenced;
                }
                self.waiting.push_front(request);
            } else {
                let error = self.lost(loss).with_fence(request.fence(fenced));
                failed.push((request, error));
            }
        }
        let is_doubtful = matches!(loss.end, End::PeerClosed | End::Broken(Broken::Rejected));
        if is_doubtful
            && (may_resend || is_repeatable)
            && !loss.was_rejected
            && !self.waiting.is_empty()
        {
            self.careful = true;
        }
        if is_unwell && self.framing().0 == Version::V2 {
            // It closed on one request thrice and said nothing: it is the peer, not the request.
            let error = self.lost(loss);
            failed.extend(self.waiting.drain(..).map(|request| {
                let error = request.at_rest(error.clone());
                (request, error)
            }));
        }
        failed
    }

    /// Sorts out the requests that a GPU of ours owes bytes of, if the lane died of one, each with
    /// its error.
    fn without_owed(
        &self,
        loss: &Loss,
        unanswered: Vec<Request>,
        fenced: Fenced,
    ) -> (Vec<Request>, Vec<(Request, Error)>) {
        let End::Gpu(gpu) = &loss.end else { return (unanswered, Vec::new()) };
        let (mut gpu, mut others, mut failed) = (gpu.clone(), Vec::new(), Vec::new());
        for request in unanswered.into_iter().rev() {
            let error = match gpu.owes(&request) {
                None => {
                    others.push(request);
                    continue;
                }
                Some(Landed::No) => request.at_rest(self.lost(loss)),
                Some(_) => self.lost(loss).with_fence(request.fence(fenced)),
            };
            failed.push((request, error));
        }
        others.reverse();
        (others, failed)
    }

    /// Lonely attempts of a request. A version 1 peer refuses by closing, so its first word is
    /// final.
    fn attempts_max(&self) -> u32 {
        if self.framing().0 == Version::V1 { 1 } else { ATTEMPTS_MAX }
    }

    /// Nothing waits any more: whatever made us careful is over.
    pub(super) fn relax(&mut self) {
        self.careful = false;
    }

    /// The error of a request that was sent and not answered.
    pub(super) fn lost(&self, loss: &Loss) -> Error {
        let is_v1 = self.framing().0 == Version::V1;
        let error = match &loss.end {
            End::Ours => Error::closed("the engine closed the connection"),
            End::PeerClosed if loss.was_careful && is_v1 => Error::refused(
                "the peer closed the connection at this request: it has no such region or left",
            ),
            End::PeerClosed => Error::lost("the peer closed the connection"),
            End::Stalled => Error::lost("the peer moved no byte for too long"),
            End::GivenUp => Error::lost("the peer was too slow for another transfer beside it"),
            End::Io(source) => Error::lost("the connection failed").with_source(source.clone()),
            End::Gpu(gpu) => gpu_error(&gpu.failure),
            End::Broken(source) => Error::lost("the peer broke the protocol").with_source(*source),
        };
        self.blame(error).with_landed(Landed::Maybe)
    }

    /// Names this peer and path.
    pub(super) fn blame(&self, error: Error) -> Error {
        error.with_peer(self.route.name.clone()).with_path(PathKind::Tcp)
    }

    /// The error of a request that waits while its transfer has ended.
    pub(super) fn unsent(&self, request: &Request, kind: ErrorKind) -> Error {
        let what = match kind {
            ErrorKind::Expired => "the deadline passed before it was sent",
            ErrorKind::Closed => "the engine or the peer was closed before it was sent",
            _ => "the transfer was dropped before it was sent",
        };
        request.at_rest(self.blame(Error::new(kind, what)))
    }
}

//! Who asks, and what both sides' logs call a request of a transfer. No path carries the name for
//! that: each side has its own count of what a lane carries, or the number that it carries anyway.

use std::fmt;

use tracing::field::display;

use crate::auth::Visitor;

/// A lane, by half of its name, and the number of a request on it: `18c2a7b3f0e1d4a5.7`. On TCP it
/// counts the frames, on the same host it is a part's, over RDMA an event's. The other half of the
/// lane's name isn't told, since whoever knows all of it can have the lane ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RequestName {
    pub(crate) lane: u64,
    pub(crate) number: u64,
}

/// What a peer's request is known by while it is looked at.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Asking<'a> {
    pub(crate) visitor: &'a Visitor,
    /// None on connections without a name, as Mooncake's are.
    pub(crate) request: Option<RequestName>,
}

impl Asking<'_> {
    /// Logs that its grant was taken back in the middle of it.
    pub(crate) fn note_struck(&self) {
        let (request, peer) = (self.request.map(display), self.visitor);
        tracing::debug!(request, %peer, "a grant was taken back under a write");
    }
}

impl fmt::Display for RequestName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}.{:x}", self.lane, self.number)
    }
}

//! What can go wrong, sorted by what the caller can do about it.
//!
//! Every error names its kind, and, where they are known, the peer, the path and the error
//! beneath. `landed` says whether bytes of the request may have reached their destination.

use std::fmt;
use std::sync::Arc;

use crate::receipt::{Fenced, Proof};

/// What the caller can do: one word per remedy, also used as a metric label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The request is wrong and stays wrong: fix it.
    Refused,
    /// A bound is reached: the same request may pass later.
    Busy,
    /// The peer or the path is gone: retry elsewhere or reopen the peer.
    Lost,
    /// The block moved on to another generation: fetch a new reference.
    Stale,
    /// The deadline passed.
    Expired,
    /// The caller gave up.
    Cancelled,
    /// The peer, or this engine, finishes what it has and then stops: go to another one.
    Draining,
    /// The engine, actor or region was stopped.
    Closed,
}

impl ErrorKind {
    /// The kind as a lower-case word: a bounded metric label.
    pub fn label(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::Busy => "busy",
            Self::Lost => "lost",
            Self::Stale => "stale",
            Self::Expired => "expired",
            Self::Cancelled => "cancelled",
            Self::Draining => "draining",
            Self::Closed => "closed",
        }
    }
}

/// Whether bytes of a failed request may have reached their destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Landed {
    /// Not a byte was stored.
    No,
    /// Some or all bytes may have been stored.
    Maybe,
    /// All bytes were stored, only the confirmation failed.
    Yes,
}

/// How bytes travel between two regions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PathKind {
    /// A copy inside this process.
    Local,
    /// A copy between two processes of this host, by shared memory or `process_vm_readv`.
    Host,
    /// Mooncake's TCP protocol.
    Tcp,
    /// RDMA, over one NIC or several.
    Rdma,
}

impl PathKind {
    /// The path as a lower-case word: a bounded metric label.
    pub fn label(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Host => "host",
            Self::Tcp => "tcp",
            Self::Rdma => "rdma",
        }
    }
}

type Source = Arc<dyn std::error::Error + Send + Sync>;

/// An error of kvrail. Cheap to clone, as one failed connection may end many requests, and small,
/// as each request of a batch has room for one.
#[derive(Debug, Clone)]
pub struct Error(Arc<Details>);

#[derive(Debug, Clone)]
struct Details {
    kind: ErrorKind,
    what: Arc<str>,
    peer: Option<Arc<str>>,
    path: Option<PathKind>,
    landed: Landed,
    fenced: Option<Fenced>,
    source: Option<Source>,
}

/// The result of anything in kvrail that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error of `kind`; `what` says what happened and what to do.
    pub fn new(kind: ErrorKind, what: impl Into<Arc<str>>) -> Self {
        Self(Arc::new(Details {
            kind,
            what: what.into(),
            peer: None,
            path: None,
            landed: Landed::No,
            fenced: None,
            source: None,
        }))
    }

    /// The request is wrong: see [`ErrorKind::Refused`].
    pub fn refused(what: impl Into<Arc<str>>) -> Self {
        Self::new(ErrorKind::Refused, what)
    }

    /// A bound is reached: see [`ErrorKind::Busy`].
    pub fn busy(what: impl Into<Arc<str>>) -> Self {
        Self::new(ErrorKind::Busy, what)
    }

    /// The peer or path is gone: see [`ErrorKind::Lost`].
    pub fn lost(what: impl Into<Arc<str>>) -> Self {
        Self::new(ErrorKind::Lost, what)
    }

    /// Who is asked takes nothing new: see [`ErrorKind::Draining`].
    pub fn draining(what: impl Into<Arc<str>>) -> Self {
        Self::new(ErrorKind::Draining, what)
    }

    /// The thing asked was stopped: see [`ErrorKind::Closed`].
    pub fn closed(what: impl Into<Arc<str>>) -> Self {
        Self::new(ErrorKind::Closed, what)
    }

    fn with(mut self, change: impl FnOnce(&mut Details)) -> Self {
        change(Arc::make_mut(&mut self.0));
        self
    }

    /// Names the peer (its segment name or address).
    #[must_use]
    pub fn with_peer(self, peer: impl Into<Arc<str>>) -> Self {
        self.with(|details| details.peer = Some(peer.into()))
    }

    /// Names the path that was used.
    #[must_use]
    pub fn with_path(self, path: PathKind) -> Self {
        self.with(|details| details.path = Some(path))
    }

    /// Says whether bytes may have landed.
    #[must_use]
    pub fn with_landed(self, landed: Landed) -> Self {
        self.with(|details| details.landed = landed)
    }

    /// Says by whose word nothing more of the request lands at the peer.
    #[must_use]
    pub(crate) fn with_fence(self, fenced: Fenced) -> Self {
        self.with(|details| details.fenced = Some(fenced))
    }

    /// Together with another part of the same request, which ended so.
    #[must_use]
    pub(crate) fn joined(self, landed: Landed, fenced: Fenced) -> Self {
        let fenced = self.fenced().max(fenced);
        self.with(|details| {
            details.fenced = Some(fenced);
            details.landed = if details.landed == landed { landed } else { Landed::Maybe };
        })
    }

    /// Keeps the error beneath.
    #[must_use]
    pub fn with_source(self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.with(|details| details.source = Some(Arc::from(source.into())))
    }

    /// What the caller can do about it.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// The peer's segment name or address, where one was involved.
    pub fn peer(&self) -> Option<&str> {
        self.0.peer.as_deref()
    }

    /// The path that was in use, where one was chosen.
    pub fn path(&self) -> Option<PathKind> {
        self.0.path
    }

    /// Whether the peer's memory is provably untouched by this request from here on.
    pub fn remote(&self) -> Proof {
        self.fenced().proof()
    }

    /// By whose word [`Error::remote`] is known.
    pub fn fenced(&self) -> Fenced {
        self.0.fenced.unwrap_or(match self.0.landed {
            Landed::No => Fenced::Unposted,
            Landed::Maybe | Landed::Yes => Fenced::Nobody,
        })
    }

    /// Whether bytes of the request may have reached their destination.
    pub fn landed(&self) -> Landed {
        self.0.landed
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.0.kind.label(), self.0.what)?;
        if let Some(peer) = &self.0.peer {
            write!(f, " (peer {peer}")?;
            match self.0.path {
                Some(path) => write!(f, " over {})", path.label())?,
                None => write!(f, ")")?,
            }
        }
        if self.0.landed == Landed::Maybe {
            write!(f, "; some bytes may have landed")?;
        }
        if let Some(source) = &self.0.source {
            write!(f, ": {source}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source.as_ref().map(|source| source.as_ref() as _)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_has_room_for_one_in_a_word() {
        assert_eq!(size_of::<Result<()>>(), size_of::<usize>());
    }

    #[test]
    fn a_clone_keeps_what_the_other_is_told() {
        let error = Error::lost("gone");
        let other = error.clone().with_peer("a").with_landed(Landed::Maybe);
        assert_eq!((error.peer(), error.landed()), (None, Landed::No));
        assert_eq!((other.peer(), other.landed()), (Some("a"), Landed::Maybe));
    }

    #[test]
    fn an_error_reads_as_one_sentence() {
        let io = std::io::Error::from(std::io::ErrorKind::ConnectionReset);
        let error = Error::lost("the connection broke")
            .with_peer("10.0.0.7:16001")
            .with_path(PathKind::Tcp)
            .with_landed(Landed::Maybe)
            .with_source(io);
        assert_eq!(
            error.to_string(),
            "lost: the connection broke (peer 10.0.0.7:16001 over tcp); \
             some bytes may have landed: connection reset"
        );
    }
}

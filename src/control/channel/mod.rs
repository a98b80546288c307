//! What carries control traffic: plain TCP, or a channel on which both ends have proven who they
//! are. Which of them it is our own configuration says, for those that come and those that we
//! connect to alike; nothing that a peer or a metadata server says can make it less.
//!
//! - `key`: pre-shared keys; `sealed`: the bytes of such a channel
//! - `tls`: mutual TLS
//! - `files`: what was configured, as it is now

mod files;
mod key;
mod sealed;
#[cfg_attr(not(feature = "tls"), path = "tls/off.rs")]
mod tls;

use std::future::poll_fn;
use std::io::{self, Cursor};
use std::pin::Pin;
use std::task::{Poll, ready};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf, join};
use tokio::net::TcpStream;

use self::files::Files;
use self::key::Keys;
use self::tls::Tls;
use crate::auth::{Authentication, PeerId};
use crate::error::{Error, Result};
use crate::limits::CONTROL_FRAME_MAX_BYTES;

/// Bytes read at once, on the stack: a waiting connection holds only what has arrived.
const CHUNK_BYTES: usize = 16 << 10;

/// What looks like a plain frame's length says that a connection is plain.
const FIRST_BYTES: usize = 8;

/// A connection that carries bytes both ways.
pub(super) trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// A channel that stands.
pub(super) type Stream = Box<dyn Duplex>;

/// How this engine's channels are made.
pub(super) struct Channels {
    way: Way,
    /// Where something has to be proven, those are let in too who prove nothing.
    admits_plain: bool,
}

enum Way {
    Plain,
    Keys(Files<Keys>),
    Tls(Files<Tls>),
}

impl Channels {
    /// Reads what the configuration names.
    ///
    /// # Errors
    /// Refused: a file can't be read or makes no sense, or the build lacks a feature.
    pub fn new(authentication: &Authentication, admits_plain: bool) -> Result<Self> {
        let way = match authentication {
            Authentication::Off => Way::Plain,
            Authentication::Keys(file) => Way::Keys(Files::load(vec![file.clone()], Keys::new)?),
            Authentication::Tls(files) => Way::Tls(tls::load(files)?),
        };
        Ok(Self { way, admits_plain })
    }

    /// Whether anything has to be proven.
    pub fn is_authenticated(&self) -> bool {
        !matches!(self.way, Way::Plain)
    }

    /// The names that this engine proves.
    pub fn own(&self) -> PeerId {
        match &self.way {
            Way::Plain => PeerId::Anyone,
            Way::Keys(keys) => keys.now().own(),
            Way::Tls(tls) => tls.now().own(),
        }
    }

    /// Makes a channel of a connection to the engine that was opened as `name`. The caller limits
    /// the time.
    ///
    /// # Errors
    /// Refused: either side doesn't take the other's proof. Lost: the connection broke.
    pub async fn connect(&self, stream: TcpStream, name: &str) -> Result<Stream> {
        match &self.way {
            Way::Plain => Ok(Box::new(stream)),
            Way::Keys(keys) => Ok(Box::new(keys.now().connect(stream).await?)),
            Way::Tls(tls) => tls.now().connect(stream, name).await,
        }
    }

    /// Makes a channel of a connection that a peer opened, and says who it is. The caller limits
    /// the time.
    ///
    /// # Errors
    /// Refused: the peer proves nothing, or nothing that holds. Lost: the connection broke.
    pub async fn accept(&self, mut stream: TcpStream) -> Result<(Stream, PeerId)> {
        if !self.is_authenticated() {
            return Ok((Box::new(stream), PeerId::Anyone));
        }
        let mut first = [0; FIRST_BYTES];
        stream.read_exact(&mut first).await.map_err(broken)?;
        let is_plain = is_plain(first);
        if is_plain && !self.admits_plain {
            return Err(Error::refused(
                "a connection that proves nothing, where authentication is required",
            ));
        }
        let stream = rewound(first, stream);
        match &self.way {
            _ if is_plain => Ok((Box::new(stream), PeerId::Mooncake)),
            Way::Keys(keys) => keys.now().accept(stream).await,
            Way::Tls(tls) => tls.now().accept(stream).await,
            Way::Plain => Ok((Box::new(stream), PeerId::Anyone)),
        }
    }
}

/// A frame's length; TLS and `key` begin with bytes that no length has.
fn is_plain(first: [u8; FIRST_BYTES]) -> bool {
    u64::from_le_bytes(first) <= CONTROL_FRAME_MAX_BYTES as u64
}

/// The connection as it was before its first bytes were read.
fn rewound(first: [u8; FIRST_BYTES], stream: TcpStream) -> impl Duplex {
    let (reader, writer) = stream.into_split();
    join(Cursor::new(first).chain(reader), writer)
}

/// Reads once and has `take` look at what came; nothing at the end of the stream. Safe to be
/// dropped while nothing has come.
pub(super) async fn read_some<T>(
    stream: &mut Stream,
    mut take: impl FnMut(&[u8]) -> T,
) -> io::Result<T> {
    poll_fn(|context| {
        let mut chunk = [0; CHUNK_BYTES];
        let mut chunk = ReadBuf::new(&mut chunk);
        ready!(Pin::new(&mut *stream).poll_read(context, &mut chunk))?;
        Poll::Ready(Ok(take(chunk.filled())))
    })
    .await
}

/// Whether an error of a channel is the peer's word that it refuses our proof; what to do then.
pub(super) fn refusal(error: &io::Error) -> Option<Error> {
    tls::refusal(error)
}

fn broken(error: io::Error) -> Error {
    Error::lost("the connection ended before the peer had proven who it is").with_source(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_length_is_taken_for_a_handshake_and_no_handshake_for_a_length() {
        for length in [1, 9, 0x16, 0x01_0316, CONTROL_FRAME_MAX_BYTES as u64] {
            assert!(is_plain(length.to_le_bytes()), "{length}");
        }
        // Record header, then the type of the message: ClientHello.
        for hello in [[0x16, 3, 1, 0, 200, 1, 0, 0], [0x16, 3, 1, 2, 0, 1, 0, 1], *key::MAGIC] {
            assert!(!is_plain(hello), "{hello:?}");
        }
    }
}

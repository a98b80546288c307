//! A socket between engines of one host, on the control thread: messages in JSON with descriptors
//! beside them, each sent within a bounded time.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::Duration;

use kvrail_reactors::host::socket::{self, Credentials, own_uid};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::time::timeout;

use crate::limits::{HOST_ANSWER_MS, HOST_MESSAGE_MAX_BYTES};
use crate::{Error, Result};

/// A connected socket. tokio's stream only tells when it is ready; messages and descriptors go by
/// system calls of our own.
pub(super) struct Packets(UnixStream);

impl Packets {
    /// Takes a socket over, if whoever is at its other end is this process's own user. Others
    /// could read what the kernel lets this user alone read.
    pub(super) fn new(socket: OwnedFd) -> Result<(Self, Credentials)> {
        let broken = |error| Error::lost("a Unix socket failed").with_source(error);
        let peer = socket::peer(&socket).map_err(broken)?;
        if peer.uid != own_uid() {
            return Err(Error::refused(format!(
                "the peer runs as user {}, this process as {}: memory is shared between processes \
                 of one user only",
                peer.uid,
                own_uid()
            )));
        }
        Ok((Self(UnixStream::from_std(socket.into()).map_err(broken)?), peer))
    }

    /// Sends a message. A peer that does not read for [`HOST_ANSWER_MS`] is lost.
    pub(super) async fn send<M: Serialize>(
        &self,
        message: &M,
        fds: &[BorrowedFd<'_>],
    ) -> Result<()> {
        let json = serde_json::to_vec(message).expect("a message is always JSON");
        let send = self.0.async_io(Interest::WRITABLE, || socket::send(&self.0, &json, fds));
        match timeout(Duration::from_millis(HOST_ANSWER_MS), send).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(Error::lost("the peer is gone").with_source(error)),
            Err(_) => Err(Error::lost("the peer does not read what it is told")),
        }
    }

    /// The next message with its descriptors; none at the peer's end.
    pub(super) async fn receive<M: DeserializeOwned>(&self) -> Result<Option<(M, Vec<OwnedFd>)>> {
        let mut buffer = vec![0; HOST_MESSAGE_MAX_BYTES];
        let receive = || socket::receive(&self.0, &mut buffer);
        let received = self.0.async_io(Interest::READABLE, receive).await.map_err(lost)?;
        if received.len == 0 {
            return Ok(None);
        }
        let message = serde_json::from_slice(&buffer[..received.len]).map_err(|error| {
            Error::refused("the peer sent a message that nobody knows").with_source(error)
        })?;
        Ok(Some((message, received.fds)))
    }

    /// An answer of the handshake.
    pub(super) async fn answer<M: DeserializeOwned>(&self) -> Result<(M, Vec<OwnedFd>)> {
        match timeout(Duration::from_millis(HOST_ANSWER_MS), self.receive()).await {
            Ok(Ok(Some(answer))) => Ok(answer),
            Ok(Ok(None)) => Err(Error::lost("the peer closed the Unix socket")),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(Error::lost("the peer does not answer at its Unix socket")),
        }
    }
}

fn lost(error: io::Error) -> Error {
    Error::lost("the Unix socket to the peer broke").with_source(error)
}

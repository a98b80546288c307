//! A new connection to a peer's data port, and how it gets in there.

use std::io;

use kvrail_reactors::stream::{Direction, Socket};

use super::wire::{LaneName, pass_frame};
use crate::auth::{Admission, Pass, Seal};
use crate::{Error, Result};

/// A connection that a shard has asked for.
#[derive(Debug)]
pub(crate) struct Dialed {
    pub(super) socket: Socket,
    pub(super) entry: Entry,
}

/// How it gets in.
#[derive(Debug)]
pub(super) enum Entry {
    /// By saying its name, where that is understood.
    Open,
    /// By a pass, and under the name for which that was given.
    Pass(Box<(LaneName, Pass)>),
    /// It has shown its pass: all behind it is encrypted. The peer has still to answer.
    Entered(LaneName),
}

impl Dialed {
    /// One that needs no pass.
    pub(crate) fn open(socket: Socket) -> Self {
        Self { socket, entry: Entry::Open }
    }

    /// One that has this admission to the process of this incarnation.
    ///
    /// # Errors
    /// Lost: the connection broke. Refused: the kernel has no TLS (any more).
    pub(crate) fn admitted(
        socket: Socket,
        lane: LaneName,
        incarnation: u64,
        Admission { pass, seal }: Admission,
    ) -> Result<Self> {
        let Some(seal) = seal else {
            return Ok(Self { socket, entry: Entry::Pass(Box::new((lane, pass))) });
        };
        enter(&socket, &pass_frame(lane, incarnation, &pass), &seal).map_err(unencrypted)?;
        Ok(Self { socket, entry: Entry::Entered(lane) })
    }

    pub(super) fn made_ready(self) -> Result<Self> {
        let Self { socket, entry } = self;
        made_ready(socket).map(|socket| Self { socket, entry })
    }
}

/// Shows the pass in clear text, between the two directions: the peer's answer is encrypted, and
/// may be here before `write_now` returns.
fn enter(socket: &Socket, frame: &[u8], seal: &Seal) -> io::Result<()> {
    socket.encrypt(Direction::Receive, seal.of_host())?;
    socket.write_now(frame)?;
    socket.encrypt(Direction::Send, seal.of_guest())
}

fn unencrypted(error: io::Error) -> Error {
    let what = "the new connection can't be encrypted";
    match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::InvalidInput => {
            Error::refused(format!("{what}: {NO_KERNEL_TLS}"))
        }
        _ => Error::lost(what),
    }
    .with_source(error)
}

/// What to do where the kernel has no TLS (ENOENT), or not with the cipher that is asked for (the
/// same, and EINVAL before Linux 5.11).
pub(crate) const NO_KERNEL_TLS: &str = "this kernel has no TLS with ChaCha20-Poly1305: load its \
                                        modules (`modprobe -a tls chacha20poly1305`), or run \
                                        Linux 5.11 or later with CONFIG_TLS and \
                                        CONFIG_CRYPTO_CHACHA20POLY1305";

pub(super) fn made_ready(socket: Socket) -> Result<Socket> {
    match socket.make_ready() {
        Ok(()) => Ok(socket),
        Err(error) => Err(Error::lost("a new socket failed").with_source(error)),
    }
}

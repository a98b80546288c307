//! Channels by pre-shared keys: Noise's pattern `NNpsk0`, which proves that either end holds the
//! key and makes new keys for each channel, so that one that is lost later opens none of them.
//!
//! ```text
//! MAGIC | u8 length of the key's name | name | first message   →
//!                                                              ←   second message
//! ```
//!
//! Magic and name are part of what is proven. Whoever repeats a first message learns nothing and
//! has no channel: for that takes the key that it was made with.

use snow::{Builder, HandshakeState};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::sealed::Sealed;
use super::{Duplex, Stream, broken};
use crate::auth::{Key, Keyring, PeerId};
use crate::error::{Error, Result};

/// What such a connection begins with; no plain frame is that long.
pub(super) const MAGIC: &[u8; 8] = b"kvrail\0\x01";

const PATTERN: &str = "Noise_NNpsk0_25519_ChaChaPoly_BLAKE2s";

/// Either message of the handshake: a public key and the proof of an empty payload.
const MESSAGE_BYTES: usize = 32 + 16;

/// The keys of this engine and its peers.
pub(super) struct Keys(Keyring);

impl Keys {
    /// # Errors
    /// Refused: the file makes no sense.
    pub fn new(files: &[Vec<u8>]) -> Result<Self> {
        let text = std::str::from_utf8(&files[0])
            .map_err(|error| Error::refused("the file of keys is no text").with_source(error))?;
        Keyring::parse(text).map(Self)
    }

    pub fn own(&self) -> PeerId {
        PeerId::named([self.0.own().name.clone()])
    }

    /// Proves that we hold our own key, to somebody who has to know it.
    pub async fn connect<S: Duplex>(&self, mut stream: S) -> Result<Sealed<S>> {
        let key = self.0.own();
        let prologue = prologue(key.name.as_bytes());
        let mut noise = initiator(key, &prologue)?;
        let mut greeting = prologue;
        greeting.extend_from_slice(&write(&mut noise)?);
        stream.write_all(&greeting).await.map_err(broken)?;
        let mut answer = [0; MESSAGE_BYTES];
        stream.read_exact(&mut answer).await.map_err(|error| {
            Error::refused(format!(
                "the peer does not go on with the handshake: the key {:?} must be in its file, \
                 the same as here, and it must require keys too",
                key.name
            ))
            .with_source(error)
        })?;
        read(&mut noise, &answer).map_err(|error| {
            Error::refused(format!("the peer does not hold the key {:?}", key.name))
                .with_source(error)
        })?;
        seal(stream, noise)
    }

    /// Has a peer prove that it holds one of our keys.
    pub async fn accept<S: Duplex + 'static>(&self, mut stream: S) -> Result<(Stream, PeerId)> {
        let name = read_greeting(&mut stream).await?;
        let mut first = [0; MESSAGE_BYTES];
        stream.read_exact(&mut first).await.map_err(broken)?;
        let shown = String::from_utf8_lossy(&name).into_owned();
        let key = self.0.find(&name);
        let key = key.ok_or_else(|| Error::refused(format!("nobody knows the key {shown:?}")))?;
        let mut noise = responder(key, &prologue(&name))?;
        read(&mut noise, &first).map_err(|error| {
            Error::refused(format!("a peer does not hold the key {shown:?}")).with_source(error)
        })?;
        let answer = write(&mut noise)?;
        stream.write_all(&answer).await.map_err(broken)?;
        let peer = PeerId::named([key.name.clone()]);
        Ok((Box::new(seal(stream, noise)?), peer))
    }
}

/// The name of the key that the peer says it holds.
async fn read_greeting(stream: &mut impl Duplex) -> Result<Vec<u8>> {
    let mut head = [0; MAGIC.len() + 1];
    stream.read_exact(&mut head).await.map_err(broken)?;
    let (magic, length) = (&head[..MAGIC.len()], head[MAGIC.len()]);
    if magic != MAGIC {
        return Err(Error::refused("a peer proves something else than that it holds a key"));
    }
    let mut name = vec![0; usize::from(length)];
    stream.read_exact(&mut name).await.map_err(broken)?;
    Ok(name)
}

fn prologue(name: &[u8]) -> Vec<u8> {
    // A key's name has at most 255 bytes.
    [&MAGIC[..], &[name.len() as u8], name].concat()
}

fn builder<'a>(key: &'a Key, prologue: &'a [u8]) -> Result<Builder<'a>> {
    let builder = Builder::new(PATTERN.parse().map_err(unfit)?);
    builder.psk(0, &key.secret).and_then(|builder| builder.prologue(prologue)).map_err(unfit)
}

fn initiator(key: &Key, prologue: &[u8]) -> Result<HandshakeState> {
    builder(key, prologue)?.build_initiator().map_err(unfit)
}

fn responder(key: &Key, prologue: &[u8]) -> Result<HandshakeState> {
    builder(key, prologue)?.build_responder().map_err(unfit)
}

fn write(noise: &mut HandshakeState) -> Result<[u8; MESSAGE_BYTES]> {
    let mut message = [0; MESSAGE_BYTES];
    noise.write_message(&[], &mut message).map_err(unfit)?;
    Ok(message)
}

fn read(noise: &mut HandshakeState, message: &[u8]) -> Result<(), snow::Error> {
    noise.read_message(message, &mut []).map(drop)
}

fn seal<S>(stream: S, noise: HandshakeState) -> Result<Sealed<S>> {
    Ok(Sealed::new(stream, noise.into_transport_mode().map_err(unfit)?))
}

/// Only a system without random numbers gets here.
fn unfit(error: snow::Error) -> Error {
    Error::refused("no handshake with keys can be made here").with_source(error)
}

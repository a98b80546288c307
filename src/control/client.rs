//! Asking another engine's control daemon: one connection, one question, one answer, close.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;

use super::ControlLimits;
use super::address::Address;
use super::channel::{self, Channels, Stream, read_some};
use super::descriptor::Descriptor;
use super::handshake::Handshake;
use super::visits::Words;
use super::wire::{
    self, AnyObject, AskPass, Decoder, EndLane, Frame, Kind, LaneEnded, Notify, PassGiven,
};
use crate::auth::{Admission, Entrance};
use crate::error::{Error, ErrorKind, Landed, Result};

/// How this engine asks others.
pub(super) struct Client {
    pub channels: Channels,
    pub limits: ControlLimits,
    /// What it tells those that it visits.
    pub words: Words,
}

/// The engine that is asked: the name by which it was opened, and where its daemon listens.
#[derive(Clone, Copy)]
pub(super) struct Callee<'a> {
    pub name: &'a str,
    pub address: &'a Address,
}

/// What one engine asks another.
pub(super) trait Question: Send + Sync + 'static {
    /// What it gets for an answer.
    type Answer: Send + 'static;

    /// Asks an engine.
    fn put_to(
        &self,
        callee: Callee<'_>,
        client: &Client,
    ) -> impl Future<Output = Result<Self::Answer>> + Send;
}

/// Delivers one notification. If the answer got lost, so may have the notification.
impl Question for Notify {
    type Answer = ();

    async fn put_to(&self, callee: Callee<'_>, client: &Client) -> Result<()> {
        let frame = wire::encode_message(Kind::Notify, false, self)?;
        let stream = client.connect(callee).await?;
        let reply = client.exchange(stream, Kind::Notify, &frame).await;
        let reply = reply
            .and_then(|reply| Ok(reply.parse::<Notify>()?))
            .map_err(|error| error.with_landed(Landed::Maybe));
        let accepted = reply.and_then(|reply| match reply.notify_msg.is_empty() {
            true => Err(Error::busy(
                "the peer rejected the notification: its queue is full, or its policy permits none",
            )),
            false => Ok(()),
        });
        accepted.map_err(|error| error.with_peer(callee.address.to_string()))
    }
}

/// Asks whether the engine is alive. Mooncake answers since 0.3.10.post2.
impl Question for AnyObject {
    type Answer = ();

    async fn put_to(&self, callee: Callee<'_>, client: &Client) -> Result<()> {
        client.ask::<AnyObject>(callee, Kind::Probe, self).await.map(drop)
    }
}

/// Has the engine end a data connection; an error unless it says that nothing is stored from it.
impl Question for EndLane {
    type Answer = ();

    async fn put_to(&self, callee: Callee<'_>, client: &Client) -> Result<()> {
        match client.ask::<LaneEnded>(callee, Kind::EndLane, self).await?.quiet {
            true => Ok(()),
            false => Err(Error::busy("the peer could not end the connection in time")),
        }
    }
}

/// A pass for a data connection.
impl Question for AskPass {
    type Answer = Admission;

    async fn put_to(&self, callee: Callee<'_>, client: &Client) -> Result<Admission> {
        let given = client.ask::<PassGiven>(callee, Kind::Pass, self).await?;
        admission(&given, self.entrance).map_err(|error| error.with_peer(callee.name))
    }
}

/// What was given, if it is what was asked for: nothing that a peer says makes a connection that
/// was to be encrypted go without.
fn admission(given: &PassGiven, entrance: Entrance) -> Result<Admission> {
    let no_pass = |_| match (entrance, given.encrypts_tcp) {
        _ if given.is_busy => Error::busy("the peer has too many connections being opened"),
        (Entrance::Tcp, true) => Error::refused(
            "the peer takes encrypted TCP connections alone: start this engine with encrypt_tcp",
        ),
        (Entrance::SealedTcp, false) => not_encrypted(),
        _ => Error::refused("the peer lets no data connection of this engine in"),
    };
    let pass = given.pass.parse().map_err(no_pass)?;
    let seal = match entrance {
        Entrance::SealedTcp => Some(given.seal.parse().map_err(|_| not_encrypted())?),
        Entrance::Tcp | Entrance::Host => None,
    };
    Ok(Admission { pass, seal })
}

fn not_encrypted() -> Error {
    Error::refused("the peer does not encrypt TCP: start it with encrypt_tcp, or neither engine")
}

/// The answer to a handshake, which may be a refusal. The same request may be put again.
impl Question for Handshake {
    type Answer = Handshake;

    async fn put_to(&self, callee: Callee<'_>, client: &Client) -> Result<Handshake> {
        client.ask(callee, Kind::Connection, self).await
    }
}

impl Client {
    /// A channel to an engine's daemon.
    pub async fn connect(&self, callee: Callee<'_>) -> Result<Stream> {
        let stream = dial(callee.address, &self.limits).await?;
        let channel = self.channels.connect(stream, callee.name);
        let connected = match timeout(self.limits.request, channel).await {
            Ok(connected) => connected,
            Err(_) => Err(expired("did not finish the handshake", self.limits.request)),
        };
        connected.map_err(|error| error.with_peer(callee.name))
    }

    /// The descriptor that an engine's daemon publishes; ours introduces us.
    pub async fn fetch(&self, callee: Callee<'_>, ours: &Descriptor) -> Result<Descriptor> {
        let frame = wire::encode(Kind::Metadata, false, &ours.to_json()?)?;
        let stream = self.connect(callee).await?;
        let reply = self.exchange(stream, Kind::Metadata, &frame).await;
        let reply = reply.and_then(|reply| match reply.body().trim_ascii() {
            b"null" => Err(Error::refused(
                "the peer publishes through a metadata server: open it by its name there",
            )),
            body => Descriptor::parse(body),
        });
        reply.map_err(|error| error.with_peer(callee.address.to_string()))
    }

    /// The answer to a question that is one message for another, and may be put again.
    pub async fn ask<A: DeserializeOwned>(
        &self,
        callee: Callee<'_>,
        kind: Kind,
        question: &(impl Serialize + Sync),
    ) -> Result<A> {
        let frame = wire::encode_message(kind, false, question)?;
        let stream = self.connect(callee).await?;
        let reply = self.exchange(stream, kind, &frame).await;
        let reply = reply.and_then(|reply| Ok(reply.parse::<A>()?));
        reply.map_err(|error| error.with_peer(callee.address.to_string()))
    }

    /// Sends `frame`, returns the answer, and closes at once: a Mooncake daemon serves nobody else
    /// until we do.
    async fn exchange(&self, mut stream: Stream, kind: Kind, frame: &[u8]) -> Result<Frame> {
        let limit = self.limits.answer;
        let reply = match timeout(limit, ask(&mut stream, frame)).await {
            Ok(reply) => reply?,
            Err(_) => return Err(expired("did not answer", limit)),
        };
        match reply.kind == kind && !reply.legacy {
            true => Ok(reply),
            false => Err(Error::refused("the peer answered with a message of another type")),
        }
    }
}

/// A connection to the first address of the host that takes it.
pub(super) async fn dial(address: &Address, limits: &ControlLimits) -> Result<TcpStream> {
    let attempt = connect_any(address, limits.connect);
    let connected = match timeout(limits.connect_all, attempt).await {
        Ok(connected) => connected,
        Err(_) => Err(expired("did not accept a connection", limits.connect_all)),
    };
    connected.map_err(|error| error.with_peer(address.to_string()))
}

async fn ask(stream: &mut Stream, frame: &[u8]) -> Result<Frame> {
    // A daemon may answer without reading to the end, so a broken write is no verdict.
    let written = write(stream, frame).await;
    match read_frame(stream).await? {
        Some(reply) => Ok(reply),
        None => {
            let error = Error::lost(
                "the peer closed the control connection without an answer: does it require \
                 authentication?",
            );
            Err(match written {
                Ok(()) => error,
                Err(source) => error.with_source(source),
            })
        }
    }
}

/// Writes all of it, to the last byte that a channel may hold back.
pub(super) async fn write(stream: &mut Stream, bytes: &[u8]) -> io::Result<()> {
    stream.write_all(bytes).await?;
    stream.flush().await
}

/// The next frame, or `None` if the peer closed before its end.
async fn read_frame(stream: &mut Stream) -> Result<Option<Frame>> {
    let mut decoder = Decoder::default();
    loop {
        let took = read_some(stream, |chunk| (chunk.len(), decoder.push(chunk))).await;
        match took {
            Ok((0, _)) => return Ok(None),
            Ok((_, pushed)) => {
                if let (_, Some(frame)) = pushed? {
                    return Ok(Some(frame));
                }
            }
            Err(error) => match channel::refusal(&error) {
                Some(refused) => return Err(refused),
                None if is_end(&error) => return Ok(None),
                None => return Err(broken(error)),
            },
        }
    }
}

/// Some channels miss a word of parting where plain TCP just ends.
fn is_end(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::UnexpectedEof)
}

async fn connect_any(address: &Address, each: Duration) -> Result<TcpStream> {
    let found = lookup_host((address.host.as_str(), address.port)).await.map_err(|error| {
        Error::lost("the host name cannot be resolved: check the name and DNS").with_source(error)
    })?;
    let mut failure = Error::lost("the host name has no address");
    for socket in found {
        match timeout(each, connect_one(socket)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => failure = not_connected(socket, error),
            Err(_) => failure = expired(&format!("did not accept a connection at {socket}"), each),
        }
    }
    Err(failure)
}

fn not_connected(socket: SocketAddr, error: io::Error) -> Error {
    let remedy = match error.kind() {
        io::ErrorKind::NetworkUnreachable | io::ErrorKind::HostUnreachable => {
            "no route leads there: name an address that this host reaches (IPv6 or IPv4)"
        }
        _ => "is it running?",
    };
    Error::lost(format!("cannot connect to {socket}: {remedy}")).with_source(error)
}

async fn connect_one(socket: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(socket).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

fn broken(error: io::Error) -> Error {
    Error::lost("the control connection broke").with_source(error)
}

fn expired(what: &str, within: Duration) -> Error {
    Error::new(ErrorKind::Expired, format!("the peer {what} within {within:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_a_peer_answers_makes_an_encrypted_connection_a_plain_one() {
        use Entrance::{Host, SealedTcp, Tcp};
        let (pass, seal) = ("ab".repeat(32), "cd".repeat(88));
        let given = |pass: &str, seal: &str, encrypts_tcp| PassGiven {
            pass: pass.to_owned(),
            seal: seal.to_owned().into(),
            encrypts_tcp,
            is_busy: false,
        };
        let whole = admission(&given(&pass, &seal, true), SealedTcp).unwrap();
        assert!(whole.seal.is_some());
        for (entrance, answer, words) in [
            (SealedTcp, given(&pass, "", true), "does not encrypt"),
            (SealedTcp, given(&pass, &seal[1..], true), "does not encrypt"),
            // As peers do that know of no encryption.
            (SealedTcp, given(&pass, "", false), "does not encrypt"),
            (SealedTcp, given("", "", false), "does not encrypt"),
            (SealedTcp, given("", &seal, true), "lets no data connection"),
            (Tcp, given("", "", true), "start this engine with encrypt_tcp"),
            (Tcp, given("", "", false), "lets no data connection"),
            (Host, given("", "", true), "lets no data connection"),
        ] {
            let error = admission(&answer, entrance).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Refused);
            assert!(error.to_string().contains(words), "{entrance:?} {answer:?}: {error}");
        }
        assert_eq!(admission(&given(&pass, &seal, false), Tcp).unwrap().seal, None);
        let busy = PassGiven { is_busy: true, ..given("", "", true) };
        assert_eq!(admission(&busy, SealedTcp).unwrap_err().kind(), ErrorKind::Busy);
    }
}

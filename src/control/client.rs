//! Asking another engine's control daemon: one connection, one question, one answer, close.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;

use super::ControlLimits;
use super::address::Address;
use super::descriptor::Descriptor;
use super::handshake::Handshake;
use super::wire::{self, AnyObject, Decoder, EndLane, Frame, Kind, LaneEnded, Notify};
use crate::error::{Error, ErrorKind, Landed, Result};

/// Bytes read at once; most answers fit.
const CHUNK_BYTES: usize = 16 << 10;

/// What one engine asks another.
pub(super) trait Question: Send + Sync + 'static {
    /// What it gets for an answer.
    type Answer: Send + 'static;

    /// Asks the daemon at `address`.
    fn put_to(
        &self,
        address: &Address,
        limits: &ControlLimits,
    ) -> impl Future<Output = Result<Self::Answer>> + Send;
}

impl Question for Notify {
    type Answer = ();

    async fn put_to(&self, address: &Address, limits: &ControlLimits) -> Result<()> {
        notify(address, self, limits).await
    }
}

/// A probe.
impl Question for AnyObject {
    type Answer = ();

    async fn put_to(&self, address: &Address, limits: &ControlLimits) -> Result<()> {
        probe(address, limits).await
    }
}

impl Question for EndLane {
    type Answer = ();

    async fn put_to(&self, address: &Address, limits: &ControlLimits) -> Result<()> {
        end_lane(address, self, limits).await
    }
}

impl Question for Handshake {
    type Answer = Handshake;

    async fn put_to(&self, address: &Address, limits: &ControlLimits) -> Result<Handshake> {
        put(address, Kind::Connection, self, limits).await
    }
}

/// A connection to the first address of the host that takes it.
pub(super) async fn connect(address: &Address, limits: &ControlLimits) -> Result<TcpStream> {
    let attempt = connect_any(address, limits.connect);
    let connected = match timeout(limits.connect_all, attempt).await {
        Ok(connected) => connected,
        Err(_) => Err(expired("did not accept a connection", limits.connect_all)),
    };
    connected.map_err(|error| error.with_peer(address.to_string()))
}

/// The descriptor that the daemon at `address` publishes; ours introduces us.
pub(super) async fn fetch(
    address: &Address,
    ours: &Descriptor,
    limits: &ControlLimits,
) -> Result<Descriptor> {
    let frame = wire::encode(Kind::Metadata, false, &ours.to_json()?)?;
    let stream = connect(address, limits).await?;
    let reply =
        exchange(stream, Kind::Metadata, &frame, limits).await.and_then(|reply| {
            match reply.body().trim_ascii() {
                b"null" => Err(Error::refused(
                    "the peer publishes through a metadata server: open it by its name there",
                )),
                body => Descriptor::parse(body),
            }
        });
    reply.map_err(|error| error.with_peer(address.to_string()))
}

/// Delivers one notification. If the answer got lost, so may have the notification.
async fn notify(address: &Address, notification: &Notify, limits: &ControlLimits) -> Result<()> {
    let frame = wire::encode_message(Kind::Notify, false, notification)?;
    let stream = connect(address, limits).await?;
    let reply = exchange(stream, Kind::Notify, &frame, limits)
        .await
        .and_then(|reply| Ok(reply.parse::<Notify>()?))
        .map_err(|error| error.with_landed(Landed::Maybe));
    let accepted = reply.and_then(|reply| match reply.notify_msg.is_empty() {
        true => Err(Error::busy("the peer rejected the notification: its queue is full")),
        false => Ok(()),
    });
    accepted.map_err(|error| error.with_peer(address.to_string()))
}

/// Asks whether the engine is alive. Mooncake answers since 0.3.10.post2.
async fn probe(address: &Address, limits: &ControlLimits) -> Result<()> {
    let frame = wire::encode_message(Kind::Probe, false, &AnyObject {})?;
    let stream = connect(address, limits).await?;
    let reply = exchange(stream, Kind::Probe, &frame, limits).await;
    let alive = reply.and_then(|reply| Ok(reply.parse::<AnyObject>().map(drop)?));
    alive.map_err(|error| error.with_peer(address.to_string()))
}

/// Has the engine end a data connection; an error unless it says that nothing is stored from it.
async fn end_lane(address: &Address, which: &EndLane, limits: &ControlLimits) -> Result<()> {
    let frame = wire::encode_message(Kind::EndLane, false, which)?;
    let stream = connect(address, limits).await?;
    let reply = exchange(stream, Kind::EndLane, &frame, limits).await?;
    match reply.parse::<LaneEnded>()?.quiet {
        true => Ok(()),
        false => Err(Error::busy("the peer could not end the connection in time")),
    }
}

/// The answer to a question that is one message for another, and may be put again.
pub(super) async fn put<A: DeserializeOwned>(
    address: &Address,
    kind: Kind,
    question: &impl Serialize,
    limits: &ControlLimits,
) -> Result<A> {
    let frame = wire::encode_message(kind, false, question)?;
    let stream = connect(address, limits).await?;
    let reply = exchange(stream, kind, &frame, limits).await;
    let reply = reply.and_then(|reply| Ok(reply.parse::<A>()?));
    reply.map_err(|error| error.with_peer(address.to_string()))
}

/// Sends `frame`, returns the answer, and closes at once: a Mooncake daemon serves nobody else
/// until we do.
async fn exchange(
    mut stream: TcpStream,
    kind: Kind,
    frame: &[u8],
    limits: &ControlLimits,
) -> Result<Frame> {
    let reply = match timeout(limits.answer, ask(&mut stream, frame)).await {
        Ok(reply) => reply?,
        Err(_) => return Err(expired("did not answer", limits.answer)),
    };
    match reply.kind == kind && !reply.legacy {
        true => Ok(reply),
        false => Err(Error::refused("the peer answered with a message of another type")),
    }
}

async fn ask(stream: &mut TcpStream, frame: &[u8]) -> Result<Frame> {
    // A daemon may answer without reading to the end, so a broken write is no verdict.
    let written = stream.write_all(frame).await;
    match read_frame(stream).await? {
        Some(reply) => Ok(reply),
        None => {
            let error = Error::lost("the peer closed the control connection without an answer");
            Err(match written {
                Ok(()) => error,
                Err(source) => error.with_source(source),
            })
        }
    }
}

/// The next frame, or `None` if the peer closed before its end.
async fn read_frame(stream: &mut TcpStream) -> Result<Option<Frame>> {
    let mut decoder = Decoder::default();
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        let count = match stream.read(&mut chunk).await {
            Ok(0) => return Ok(None),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(None),
            Err(error) => return Err(broken(error)),
        };
        if let (_, Some(frame)) = decoder.push(&chunk[..count])? {
            return Ok(Some(frame));
        }
    }
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

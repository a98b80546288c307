//! The control daemon: answers other engines' questions, and accepts their data connections.
//!
//! Unlike Mooncake's, which serves one client at a time and can be made to abort, it serves many at
//! once, holds a bounded amount for each and for all, and survives whatever arrives.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};

use super::Host;
use super::channel::{Stream, read_some};
use super::client::{Client, write};
use super::handshake::Handshake;
use super::seats::{Phase, Seat, Seats};
use super::visits::{Arrive, Leave, check_proven};
use super::wire::{
    self, AnyObject, AskPass, Decoder, EndLane, Frame, FrameError, Kind, LaneEnded, Notify,
    PassGiven, ProbeReply,
};
use crate::auth::{Admission, PeerId};
use crate::error::{Error, ErrorKind, Result};
use crate::limits::{CONTROL_ACCEPT_PAUSE_MS, DATA_ACCEPT_PAUSE_MS, FENCE_MS};
use crate::metrics;
use crate::path::tcp::LaneName;

/// What every conversation of a daemon shares.
pub(super) struct Daemon {
    pub host: Arc<dyn Host>,
    /// The name under which a peer without a metadata server finds this daemon again.
    pub address: String,
    pub client: Arc<Client>,
}

impl Daemon {
    /// Whether this process is meant: another one may have had its name.
    pub(super) fn is_process(&self, incarnation: u64) -> bool {
        self.host.incarnation() == Some(incarnation)
    }
}

/// Why a conversation ended early. Nobody is told but the log: the peer sees its connection close.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error("{0}")]
    Malformed(#[from] FrameError),
    #[error("{0}")]
    Refused(#[from] crate::error::Error),
    #[error("{0}")]
    Broken(#[from] io::Error),
    #[error("it closed before the end of its request")]
    Closed,
    #[error("it took too long")]
    Slow,
    #[error("it made room for a newcomer")]
    Evicted,
}

/// Serves the control port until dropped.
pub(super) async fn serve(listener: TcpListener, daemon: Arc<Daemon>) {
    let limits = &daemon.client.limits;
    let seats = Seats::new(limits.connections, limits.buffered_bytes);
    loop {
        let make_room = || {
            seats.evict_one();
            daemon.host.crowded();
        };
        let Some((stream, peer)) = accept(&listener, make_room).await else { continue };
        let (seat, evicted) = seats.take();
        let daemon = Arc::clone(&daemon);
        // A panic in there ends the task, not the daemon, and gives back the seat.
        tokio::spawn(async move {
            let ended = tokio::select! {
                result = converse(stream, &seat, &daemon) => result,
                _ = evicted => Err(Ended::Evicted),
            };
            if let Err(ended) = ended {
                tracing::debug!(%peer, %ended, "control connection dropped");
            }
        });
    }
}

/// Accepts data connections for the host until dropped.
pub(super) async fn accept_data(listener: TcpListener, host: Arc<dyn Host>) {
    loop {
        let Some((stream, peer)) = accept(&listener, || host.crowded()).await else { continue };
        match stream.set_nodelay(true).and_then(|()| stream.into_std()) {
            Ok(stream) => hand_over(stream, &peer, &*host).await,
            Err(error) => tracing::debug!(%peer, %error, "data connection dropped"),
        }
    }
}

/// Offers a connection until the host takes it: a peer that opens one for each request, as
/// Mooncake 0.3.11 does, must wait rather than be reset.
async fn hand_over(mut stream: std::net::TcpStream, peer: &std::net::SocketAddr, host: &dyn Host) {
    loop {
        match catch_unwind(AssertUnwindSafe(|| host.accepted(stream))) {
            Ok(Ok(())) => return,
            Ok(Err(back)) => stream = back,
            Err(_) => return tracing::error!(%peer, "taking over a data connection panicked"),
        }
        sleep(Duration::from_millis(DATA_ACCEPT_PAUSE_MS)).await;
    }
}

async fn accept(
    listener: &TcpListener,
    make_room: impl FnOnce(),
) -> Option<(TcpStream, std::net::SocketAddr)> {
    match listener.accept().await {
        Ok(accepted) => Some(accepted),
        Err(error) => {
            tracing::warn!(%error, "accepting a connection failed");
            make_room();
            sleep(Duration::from_millis(CONTROL_ACCEPT_PAUSE_MS)).await;
            None
        }
    }
}

/// A handshake where one is required, one request, one answer, close.
async fn converse(stream: TcpStream, seat: &Seat, daemon: &Daemon) -> Result<(), Ended> {
    let limits = &daemon.client.limits;
    let (mut stream, peer, request, rest) = in_time(limits.request, async {
        let accepted = daemon.client.channels.accept(stream).await;
        let (mut stream, peer) = accepted.inspect_err(metrics::handshake_failed)?;
        let (request, rest) = read_request(&mut stream, seat).await?;
        Ok((stream, peer, request, rest))
    })
    .await?;
    if request.kind == Kind::Letter {
        return take_letters(&mut stream, seat, (daemon, &peer), (request, rest)).await;
    }
    seat.enter(Phase::Answering);
    let reply = answer(&request, daemon, &peer).await?;
    drop(request);
    seat.hold(reply.len());
    in_time(limits.request, async { Ok(write(&mut stream, &reply).await?) }).await?;
    drop(reply);
    seat.hold(0);
    seat.enter(Phase::Closing);
    in_time(limits.linger, async {
        stream.shutdown().await?;
        read_to_end(&mut stream).await
    })
    .await
}

async fn in_time<T>(
    limit: Duration,
    step: impl Future<Output = Result<T, Ended>>,
) -> Result<T, Ended> {
    timeout(limit, step).await.unwrap_or(Err(Ended::Slow))
}

/// The first frame, and what came behind it.
async fn read_request(stream: &mut Stream, seat: &Seat) -> Result<(Frame, Vec<u8>), Ended> {
    let mut decoder = Decoder::default();
    loop {
        match read_some(stream, |chunk| push(&mut decoder, chunk)).await?? {
            Pushed::End => return Err(Ended::Closed),
            Pushed::Frame(frame, behind) => return Ok((frame, behind)),
            Pushed::Part => seat.hold(decoder.held_bytes()),
        }
    }
}

/// What a read has brought.
enum Pushed {
    End,
    Part,
    /// A frame, and what came behind it.
    Frame(Frame, Vec<u8>),
}

fn push(decoder: &mut Decoder, chunk: &[u8]) -> Result<Pushed, FrameError> {
    if chunk.is_empty() {
        return Ok(Pushed::End);
    }
    Ok(match decoder.push(chunk)? {
        (used, Some(frame)) => Pushed::Frame(frame, chunk[used..].to_vec()),
        (_, None) => Pushed::Part,
    })
}

/// Hands over one letter after the other, until the sender closes. Between two of them it loses
/// nothing by making room for somebody else.
async fn take_letters(
    stream: &mut Stream,
    seat: &Seat,
    (daemon, peer): (&Daemon, &PeerId),
    (mut frame, mut rest): (Frame, Vec<u8>),
) -> Result<(), Ended> {
    loop {
        hand_letter(&frame, daemon, peer)?;
        let mut decoder = Decoder::default();
        let (used, next) = decoder.push(&rest)?;
        frame = match next {
            Some(next) => {
                rest.drain(..used);
                next
            }
            None => {
                seat.hold(decoder.held_bytes());
                let wait = if used == 0 { Phase::Closing } else { Phase::Asking };
                seat.enter(wait);
                let Some((next, behind)) = next_letter(stream, seat, daemon, decoder).await? else {
                    return Ok(());
                };
                rest = behind;
                next
            }
        };
    }
}

/// The rest of a letter, and what came behind it; none where the sender closed between two.
async fn next_letter(
    stream: &mut Stream,
    seat: &Seat,
    daemon: &Daemon,
    mut decoder: Decoder,
) -> Result<Option<(Frame, Vec<u8>)>, Ended> {
    loop {
        // It may take its time to begin a letter, not to end it.
        let is_between = decoder.is_empty();
        let reading = async { Ok(read_some(stream, |chunk| push(&mut decoder, chunk)).await??) };
        let pushed = match is_between {
            true => reading.await,
            false => in_time(daemon.client.limits.request, reading).await,
        };
        match pushed? {
            Pushed::End if is_between => return Ok(None),
            Pushed::End => return Err(Ended::Closed),
            Pushed::Frame(frame, behind) => return Ok(Some((frame, behind))),
            Pushed::Part => {
                seat.enter(Phase::Asking);
                seat.hold(decoder.held_bytes());
            }
        }
    }
}

fn hand_letter(frame: &Frame, daemon: &Daemon, peer: &PeerId) -> Result<(), Ended> {
    if frame.kind != Kind::Letter {
        let what = "a question among letters: it needs a connection of its own";
        return Err(crate::error::Error::refused(what).into());
    }
    check_proven(peer)?;
    daemon.host.letter(peer, frame.parse()?);
    Ok(())
}

/// Reads and forgets, so that closing does not reset the connection under an unread answer.
async fn read_to_end(stream: &mut Stream) -> Result<(), Ended> {
    while read_some(stream, <[u8]>::len).await? > 0 {}
    Ok(())
}

/// The frame that answers `request`, of the same type and form. A body that is no JSON object of
/// the right types gets no answer, as with Mooncake.
async fn answer(request: &Frame, daemon: &Daemon, peer: &PeerId) -> Result<Vec<u8>, Ended> {
    let (kind, legacy) = (request.kind, request.legacy);
    let reply = match kind {
        Kind::Notify => {
            let Notify { name, notify_msg } = request.parse()?;
            wire::encode_message(kind, legacy, &receipt(daemon, peer, name, notify_msg))?
        }
        Kind::Connection => {
            let reply = handshake(request.parse()?, daemon, peer).await;
            wire::encode_message(kind, legacy, &reply)?
        }
        Kind::Metadata => {
            request.parse::<AnyObject>()?;
            wire::encode(kind, legacy, &introduction(daemon, peer)?)?
        }
        // Whoever reads them has taken them out.
        Kind::Letter => return Err(Ended::Closed),
        Kind::EndLane => {
            check_proven(peer)?;
            let quiet = end_lane(request.parse()?, daemon, peer).await;
            wire::encode_message(kind, legacy, &LaneEnded { quiet })?
        }
        Kind::Arrive => {
            let arrived = request.parse::<Arrive>()?.answer(daemon, peer)?;
            wire::encode_message(kind, legacy, &arrived)?
        }
        Kind::Leave => {
            let left = request.parse::<Leave>()?.answer(daemon, peer).await?;
            wire::encode_message(kind, legacy, &left)?
        }
        Kind::Pass => wire::encode_message(kind, legacy, &pass(&request.parse()?, daemon, peer))?,
        Kind::Probe => {
            request.parse::<AnyObject>()?;
            wire::encode_message(kind, legacy, &ProbeReply::success())?
        }
    };
    Ok(reply)
}

/// The engine's answer, or that there is none.
async fn handshake(request: Handshake, daemon: &Daemon, peer: &PeerId) -> Handshake {
    let knows_ack = request.ready_ack.is_some();
    if let PeerId::Named(_) = peer {
        // Whoever can prove who it is has better ways, by letters.
        return Handshake::refusal(knows_ack, "only Mooncake's engines shake hands like that");
    }
    if !daemon.host.serves(peer) {
        return Handshake::refusal(knows_ack, "no rule of the policy permits Mooncake anything");
    }
    let answer = daemon.host.handshake(request);
    let late =
        || Handshake::refusal(knows_ack, "the engine made no queue pairs in time: try again");
    timeout(daemon.client.limits.handshake, answer).await.unwrap_or_else(|_| late())
}

/// Whether nothing is stored from the connection any more. Those of another process are nothing
/// that we could vouch for.
async fn end_lane(asked: EndLane, daemon: &Daemon, peer: &PeerId) -> bool {
    let EndLane { incarnation, lane, request } = asked;
    tracing::debug!(%request, %peer, "a peer asks us to end a connection");
    match lane.parse::<LaneName>() {
        Ok(lane) if daemon.is_process(incarnation) => {
            timeout(Duration::from_millis(FENCE_MS), daemon.host.end_lane(peer, lane)).await.is_ok()
        }
        _ => false,
    }
}

fn pass(asked: &AskPass, daemon: &Daemon, peer: &PeerId) -> PassGiven {
    let lane = asked.lane.parse().map_err(|_| Error::refused("a lane's name is malformed"));
    let given = lane.and_then(|lane| match daemon.is_process(asked.incarnation) {
        true => daemon.host.pass(peer, lane, asked.entrance),
        false => Err(Error::refused("another process is meant")),
    });
    let encrypts_tcp = daemon.host.encrypts_tcp();
    match given {
        Ok(Admission { pass, seal }) => PassGiven {
            pass: pass.to_string(),
            is_busy: false,
            seal: seal.map(|seal| seal.to_text()).unwrap_or_default(),
            encrypts_tcp,
        },
        Err(error) => {
            tracing::debug!(%peer, %error, "no pass");
            let is_busy = error.kind() == ErrorKind::Busy;
            PassGiven { is_busy, encrypts_tcp, ..PassGiven::default() }
        }
    }
}

/// Our descriptor under the name by which the daemon itself can be found: Mooncake resolves the
/// name in the answer when it asks again. So it is of use in metadata mode too, where Mooncake
/// would answer `null`: a peer can reach us while the metadata server is down.
fn introduction(daemon: &Daemon, peer: &PeerId) -> Result<Vec<u8>> {
    let mut descriptor = daemon.host.descriptor_for(peer);
    descriptor.name.clone_from(&daemon.address);
    let mut json = descriptor.to_json()?;
    json.push(b'\n');
    Ok(json)
}

fn receipt(daemon: &Daemon, peer: &PeerId, name: String, text: String) -> Notify {
    let accepted = match daemon.host.serves(peer) {
        true => daemon.host.notified(name, text.into_bytes()),
        false => Err(Error::refused("no rule of the policy permits it anything")),
    };
    if let Err(error) = &accepted {
        tracing::debug!(%peer, %error, "notification rejected");
    }
    let notify_msg = if accepted.is_ok() { "success" } else { "" };
    Notify { name: String::new(), notify_msg: notify_msg.to_owned() }
}

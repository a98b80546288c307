//! Connections of a metadata server: bounded in number, bytes and life.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::serve::Listener;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Sleep, sleep};

use super::ServerLimits;
use crate::control::seats::{Evicted, Phase, Seat, Seats};
use crate::limits::CONTROL_ACCEPT_PAUSE_MS;

/// Gives each connection a seat and an end.
pub(crate) struct Bounded {
    listener: TcpListener,
    seats: Seats,
    life: Duration,
}

impl Bounded {
    pub fn new(listener: TcpListener, limits: &ServerLimits) -> Self {
        let seats = Seats::new(limits.connections, limits.buffered_bytes);
        Self { listener, seats, life: limits.connection }
    }
}

impl Listener for Bounded {
    type Io = Visit;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Visit, SocketAddr) {
        loop {
            match self.listener.accept().await {
                Ok((stream, peer)) => return (Visit::new(stream, &self.seats, self.life), peer),
                Err(error) => {
                    tracing::warn!(%error, "accepting a connection failed");
                    self.seats.evict_one();
                    sleep(Duration::from_millis(CONTROL_ACCEPT_PAUSE_MS)).await;
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// A connection that ends after its time, or when a newcomer takes its seat.
pub(crate) struct Visit {
    stream: TcpStream,
    seat: Seat,
    evicted: Evicted,
    end: Pin<Box<Sleep>>,
    received_bytes: usize,
}

impl Visit {
    fn new(stream: TcpStream, seats: &Seats, life: Duration) -> Self {
        let (seat, evicted) = seats.take();
        Self { stream, seat, evicted, end: Box::pin(sleep(life)), received_bytes: 0 }
    }

    fn check(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        let over = self.end.as_mut().poll(context).is_ready();
        if over
            || self.evicted.is_terminated()
            || Pin::new(&mut self.evicted).poll(context).is_ready()
        {
            return Err(io::ErrorKind::TimedOut.into());
        }
        Ok(())
    }
}

impl AsyncRead for Visit {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check(context)?;
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(context, buffer);
        let count = buffer.filled().len() - before;
        if count > 0 {
            self.received_bytes += count;
            self.seat.hold(self.received_bytes);
        }
        polled
    }
}

impl AsyncWrite for Visit {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.check(context)?;
        self.seat.enter(Phase::Answering);
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.seat.enter(Phase::Closing);
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.check(context)?;
        self.seat.enter(Phase::Answering);
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

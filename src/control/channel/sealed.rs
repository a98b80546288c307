//! The bytes of a channel by keys: records of `u16 BE length | ciphertext`. Each is whole and in
//! its place, or the channel ends. Memory grows with the bytes that arrived, up to one record.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use snow::TransportState;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes of a record's length.
const LENGTH_BYTES: usize = 2;

/// What sealing adds to a record.
const TAG_BYTES: usize = 16;

/// Plain bytes of a record that we write; TLS has the same bound, and Noise's is 64 KiB.
const RECORD_BYTES: usize = 16 << 10;

/// A connection whose bytes are sealed.
pub(super) struct Sealed<S> {
    stream: S,
    noise: TransportState,
    /// The record that is arriving, with its length.
    record: Vec<u8>,
    /// What came of the last one, and how much of it was read.
    opened: Vec<u8>,
    read: usize,
    /// Sealed and not yet written.
    outgoing: Vec<u8>,
    written: usize,
}

impl<S> Sealed<S> {
    pub fn new(stream: S, noise: TransportState) -> Self {
        let (record, opened, outgoing) = Default::default();
        Self { stream, noise, record, opened, read: 0, outgoing, written: 0 }
    }

    /// Bytes that the record that is arriving still lacks, as far as is known.
    fn missing(&self) -> io::Result<usize> {
        let Some(length) = self.record.first_chunk() else {
            return Ok(LENGTH_BYTES - self.record.len());
        };
        let length = usize::from(u16::from_be_bytes(*length));
        match (TAG_BYTES + 1..=TAG_BYTES + RECORD_BYTES).contains(&length) {
            true => Ok(LENGTH_BYTES + length - self.record.len()),
            false => Err(malformed("a record that is empty or too long")),
        }
    }

    fn open(&mut self) -> io::Result<()> {
        let sealed = &self.record[LENGTH_BYTES..];
        self.opened.resize(sealed.len(), 0);
        let opened = self.noise.read_message(sealed, &mut self.opened);
        let len = opened.map_err(|_| malformed("a record that the peer has not sealed"))?;
        self.opened.truncate(len);
        self.read = 0;
        self.record = Vec::new();
        Ok(())
    }

    fn seal(&mut self, plain: &[u8]) -> io::Result<()> {
        self.outgoing.resize(LENGTH_BYTES + plain.len() + TAG_BYTES, 0);
        let sealed = self.noise.write_message(plain, &mut self.outgoing[LENGTH_BYTES..]);
        let len = sealed.map_err(|_| malformed("the channel is used up"))?;
        self.outgoing[..LENGTH_BYTES].copy_from_slice(&(len as u16).to_be_bytes());
        self.written = 0;
        Ok(())
    }
}

fn malformed(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

impl<S: AsyncRead + Unpin> Sealed<S> {
    /// Waits for a whole record; `false` at an end between two of them.
    fn poll_record(&mut self, context: &mut Context<'_>) -> Poll<io::Result<bool>> {
        loop {
            let missing = self.missing()?;
            if missing == 0 {
                self.open()?;
                return Poll::Ready(Ok(true));
            }
            let mut room = [0; RECORD_BYTES];
            let mut room = ReadBuf::new(&mut room[..missing.min(RECORD_BYTES)]);
            ready!(Pin::new(&mut self.stream).poll_read(context, &mut room))?;
            match room.filled() {
                [] if self.record.is_empty() => return Poll::Ready(Ok(false)),
                [] => return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())),
                bytes => self.record.extend_from_slice(bytes),
            }
        }
    }
}

impl<S: AsyncWrite + Unpin> Sealed<S> {
    /// Writes what is sealed.
    fn poll_drain(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.written < self.outgoing.len() {
            let rest = &self.outgoing[self.written..];
            match ready!(Pin::new(&mut self.stream).poll_write(context, rest))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                count => self.written += count,
            }
        }
        self.outgoing = Vec::new();
        self.written = 0;
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Sealed<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.read == this.opened.len() && !ready!(this.poll_record(context))? {
            return Poll::Ready(Ok(()));
        }
        let rest = &this.opened[this.read..];
        let count = rest.len().min(into.remaining());
        into.put_slice(&rest[..count]);
        this.read += count;
        if this.read == this.opened.len() {
            (this.opened, this.read) = (Vec::new(), 0);
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Sealed<S> {
    /// Seals and takes a record's worth, once the one before is written; what is left of it goes
    /// with the next call or flush.
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_drain(context))?;
        let now = &bytes[..bytes.len().min(RECORD_BYTES)];
        if now.is_empty() {
            return Poll::Ready(Ok(0));
        }
        self.seal(now)?;
        match self.poll_drain(context) {
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            _ => Poll::Ready(Ok(now.len())),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_drain(context))?;
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_drain(context))?;
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

//! The limit of TCP: one blocking connection of the standard library, one thread a side.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};

use kvrail_reactors::stream::unpace;

use crate::{Limit, Shape};

/// A request: whether it writes, then where its bytes begin and end.
const HEADER_BYTES: usize = 17;

/// Prints where it listens and serves connections, one after the other, for good.
pub fn serve(bytes: usize) -> io::Result<()> {
    let mut memory = vec![1; bytes];
    let listener = TcpListener::bind("127.0.0.1:0")?;
    println!("segment {}", listener.local_addr()?);
    loop {
        let (stream, _) = listener.accept()?;
        // An initiator that leaves ends its connection, which is no error of ours.
        let _ = answer(stream, &mut memory);
    }
}

fn answer(mut stream: TcpStream, memory: &mut [u8]) -> io::Result<()> {
    stream.set_nodelay(true)?;
    unpace(&stream);
    loop {
        let mut header = [0; HEADER_BYTES];
        stream.read_exact(&mut header)?;
        let number =
            |from| u64::from_le_bytes(std::array::from_fn(|at| header[from + at])) as usize;
        let bytes = memory.get_mut(number(1)..number(9)).ok_or(io::ErrorKind::InvalidInput)?;
        match header[0] {
            0 => stream.write_all(bytes)?,
            _ => {
                stream.read_exact(bytes)?;
                stream.write_all(&[1])?;
            }
        }
    }
}

/// The initiator's side: a batch is one request, since its blocks lie side by side.
pub struct Stream {
    stream: TcpStream,
    /// A batch lies behind its header, so that one call sends both. The header of a later batch
    /// lies on the last bytes of the batch before it, whose contents are of no interest.
    memory: Vec<u8>,
}

impl Stream {
    pub fn to(segment: &str, bytes: usize) -> io::Result<Self> {
        let stream = TcpStream::connect(segment)?;
        stream.set_nodelay(true)?;
        unpace(&stream);
        Ok(Self { stream, memory: vec![1; HEADER_BYTES + bytes] })
    }
}

impl Limit for Stream {
    const IDLE: &'static str = "asleep in system calls";

    fn carry(&mut self, shape: Shape, start: usize) -> io::Result<()> {
        let end = start + shape.bytes();
        let message = &mut self.memory[start..HEADER_BYTES + end];
        message[0] = shape.is_write.into();
        message[1..9].copy_from_slice(&(start as u64).to_le_bytes());
        message[9..HEADER_BYTES].copy_from_slice(&(end as u64).to_le_bytes());
        if shape.is_write {
            self.stream.write_all(message)?;
            return self.stream.read_exact(&mut [0]);
        }
        let (header, bytes) = message.split_at_mut(HEADER_BYTES);
        self.stream.write_all(header)?;
        self.stream.read_exact(bytes)
    }
}

//! The limit of TCP: one blocking connection of the standard library, one thread a side.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};

use crate::{Limit, Shape};

/// A request: whether it writes, and how many bytes follow it or are to come back.
const HEADER_BYTES: usize = 9;

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
    loop {
        let mut header = [0; HEADER_BYTES];
        stream.read_exact(&mut header)?;
        let len = u64::from_le_bytes(std::array::from_fn(|at| header[at + 1])) as usize;
        let bytes = memory.get_mut(..len).ok_or(io::ErrorKind::InvalidInput)?;
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
    /// A header and the batch behind it, so that one call sends both.
    memory: Vec<u8>,
}

impl Stream {
    pub fn to(segment: &str, bytes: usize) -> io::Result<Self> {
        let stream = TcpStream::connect(segment)?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, memory: vec![1; HEADER_BYTES + bytes] })
    }
}

impl Limit for Stream {
    const IDLE: &'static str = "asleep in system calls";

    fn carry(&mut self, shape: Shape) -> io::Result<()> {
        let (header, bytes) = self.memory.split_at_mut(HEADER_BYTES);
        header[0] = shape.is_write.into();
        header[1..].copy_from_slice(&(shape.bytes() as u64).to_le_bytes());
        if shape.is_write {
            self.stream.write_all(&self.memory[..HEADER_BYTES + shape.bytes()])?;
            return self.stream.read_exact(&mut [0]);
        }
        self.stream.write_all(header)?;
        self.stream.read_exact(&mut bytes[..shape.bytes()])
    }
}

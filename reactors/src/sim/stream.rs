//! One shard's reactor on a simulated network, and the sockets that it is given.

use std::io;
use std::net::Shutdown;

use super::network::Network;
use crate::Reactor;
use crate::stream::{Done, Socket, Work};

/// One side of a simulated connection; dropped, it closes.
#[derive(Debug)]
pub struct Stream {
    network: Network,
    end: usize,
}

impl Stream {
    pub(super) fn new(network: Network, end: usize) -> Self {
        Self { network, end }
    }

    /// Its number in the network.
    pub fn end(&self) -> usize {
        self.end
    }

    pub(crate) fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        self.network.with(|net| net.shutdown(self.end, how));
        Ok(())
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.network.with(|net| net.close(self.end));
    }
}

/// A reactor for simulated sockets. Dropped, it ends what is under way: its process is gone.
pub struct Streams {
    network: Network,
    reactor: usize,
}

impl Streams {
    pub(super) fn new(network: Network, reactor: usize) -> Self {
        Self { network, reactor }
    }

    /// As every reactor's.
    pub(crate) fn set_alarm(&mut self, at_ns: u64, _now_ns: u64) {
        self.network.with(|net| net.set_alarm(self.reactor, at_ns));
    }
}

impl Reactor for Streams {
    type Work = Work;
    type Done = Done;

    fn submit(&mut self, work: Work) -> Result<u64, Work> {
        match &*work.socket {
            Socket::Sim(stream) => {
                let end = stream.end;
                self.network.with(|net| net.submit(self.reactor, end, work))
            }
            Socket::Tcp(_) => Err(work),
        }
    }

    fn poll(&mut self, budget: usize, done: &mut Vec<Done>) -> usize {
        self.network.with(|net| net.take(self.reactor, budget, done))
    }

    fn arm(&mut self) -> bool {
        self.network.with(|net| net.arm(self.reactor))
    }

    fn fence(&mut self, name: u64) {
        self.network.with(|net| net.fence(name));
    }
}

impl Drop for Streams {
    fn drop(&mut self) {
        drop(self.network.with(|net| net.drop_reactor(self.reactor)));
    }
}

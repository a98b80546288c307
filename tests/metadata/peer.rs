//! An engine in a process of its own, to be killed: this test binary started again.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};

use crate::{Service, named, region};

/// Tells the binary that it is a peer, and which.
const MARK: &str = "KVRAIL_TEST_PEER";

/// Said when it is ready, behind what libtest writes.
const READY: &str = "=> ready";

/// A peer whose memory is full of one byte.
pub(crate) struct Peer(Child);

impl Peer {
    /// Starts it, and waits until it is published.
    pub(crate) fn start(name: &str, service: &Service, byte: u8) -> Self {
        let mut command = Command::new(std::env::current_exe().expect("this binary"));
        command.args(["peer::a_peer", "--exact", "--ignored", "--nocapture"]);
        command.env(MARK, format!("{name} {} {byte}", service.url()));
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("a process");
        let output = BufReader::new(child.stdout.take().expect("piped"));
        let peer = Self(child);
        let mut lines = output.lines().map_while(Result::ok);
        assert!(lines.any(|line| line.contains(READY)), "the peer did not start");
        peer
    }

    /// As `kill -9` does.
    pub(crate) fn kill(mut self) {
        self.0.kill().expect("it lives");
        self.0.wait().expect("our child");
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // It may have been killed before.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Not a test: what the other process does, until its standard input ends.
#[test]
#[ignore = "the other process of the tests here"]
fn a_peer() {
    let Ok(orders) = std::env::var(MARK) else { return };
    let words: Vec<_> = orders.split(' ').collect();
    let [name, url, byte] = words[..] else { panic!("{orders}") };
    let engine = named(name, url).start().expect("an engine");
    let _region = region(&engine, byte.parse().expect("a byte"));
    println!("\n{READY}");
    // All that comes is the end.
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
}

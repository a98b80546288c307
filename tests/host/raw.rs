//! Peers made by hand: the messages of `src/path/host/message.rs` at the Unix socket, lanes' words
//! written straight into their memory, and descriptors that lie.

use std::fs::File;
use std::io::{IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType, bind, connect,
    listen, recvmsg, sendmsg, socket_with,
};
use serde_json::{Value, json};

/// Most descriptors that a message of these tests brings: the kernel's own limit.
pub(crate) const FDS_MAX: usize = 253;

/// An engine's descriptor, from its control daemon.
pub(crate) fn descriptor(name: &str) -> Value {
    let mut stream = TcpStream::connect(name).unwrap();
    stream.write_all(&[&3u64.to_le_bytes()[..], b"\x01{}"].concat()).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    serde_json::from_slice(&answer[9..]).unwrap()
}

/// A control daemon that gives the descriptor of the engine `name`, changed; its segment name.
pub(crate) fn forged(name: &str, change: impl FnOnce(&mut Value)) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let own = listener.local_addr().unwrap().to_string();
    let mut forged = descriptor(name);
    forged["name"] = json!(own);
    change(&mut forged);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut header = [0; 9];
            // Whoever asks may be gone before the answer.
            let _ = stream.read_exact(&mut header);
            let len = u64::from_le_bytes(header[..8].try_into().unwrap()).saturating_sub(1);
            let _ = stream.read_exact(&mut vec![0; len as usize]);
            let text = forged.to_string();
            let frame = [&(text.len() as u64 + 1).to_le_bytes()[..], &header[8..], text.as_bytes()];
            let _ = stream.write_all(&frame.concat());
        }
    });
    own
}

/// The incarnation that a descriptor names, and its abstract socket.
pub(crate) fn whereabouts(name: &str) -> (u64, String) {
    let kvrail = &descriptor(name)["kvrail"];
    let socket = kvrail["sockets"][0].as_str().unwrap().to_owned();
    (kvrail["incarnation"].as_u64().unwrap(), socket)
}

fn unix() -> OwnedFd {
    socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap()
}

fn address(name: &str) -> SocketAddrUnix {
    SocketAddrUnix::new_abstract_name(name.strip_prefix('@').unwrap().as_bytes()).unwrap()
}

/// A word that stays where it is.
fn token() -> (u64, u64) {
    static TOKEN: u64 = 0x0123_4567_89ab_cdef;
    ((&raw const TOKEN) as u64, TOKEN)
}

/// A Unix socket to an engine, or from one.
pub(crate) struct Raw {
    socket: OwnedFd,
    pub(crate) incarnation: u64,
    /// Where a word is in our memory, and which: proof of what is read from here.
    pub(crate) token: (u64, u64),
}

impl Raw {
    /// Connects to an engine as an asker does.
    pub(crate) fn to(name: &str) -> Self {
        let (incarnation, socket_name) = whereabouts(name);
        let socket = unix();
        connect(&socket, &address(&socket_name)).unwrap();
        Self { socket, incarnation, token: token() }
    }

    pub(crate) fn send(&self, message: &Value, fds: &[BorrowedFd<'_>]) {
        self.send_bytes(message.to_string().as_bytes(), fds);
    }

    /// Sends any bytes; an engine that has closed meanwhile does not matter.
    pub(crate) fn send_bytes(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            assert!(control.push(SendAncillaryMessage::ScmRights(fds)));
        }
        let _ = sendmsg(&self.socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL);
    }

    /// The next message but news of regions that come; none at the engine's end.
    pub(crate) fn receive(&self) -> Option<(Value, Vec<OwnedFd>)> {
        loop {
            let (bytes, fds) = self.receive_bytes()?;
            let message: Value = serde_json::from_slice(&bytes).unwrap();
            if message["type"] != "added" {
                return Some((message, fds));
            }
        }
    }

    fn receive_bytes(&self) -> Option<(Vec<u8>, Vec<OwnedFd>)> {
        let mut ready = [PollFd::new(&self.socket, PollFlags::IN)];
        let limit = Timespec { tv_sec: 20, tv_nsec: 0 };
        assert_eq!(poll(&mut ready, Some(&limit)), Ok(1), "the engine neither answers nor closes");
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut buffer = vec![0; 1 << 16];
        let received = recvmsg(
            &self.socket,
            &mut [IoSliceMut::new(&mut buffer)],
            &mut control,
            RecvFlags::CMSG_CLOEXEC,
        );
        // A reset is an end, too: it had not read what we sent.
        let bytes = received.map_or(0, |message| message.bytes);
        let mut fds = Vec::new();
        for part in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = part {
                fds.extend(rights);
            }
        }
        buffer.truncate(bytes);
        (bytes > 0).then_some((buffer, fds))
    }

    /// Waits until the engine has closed the connection.
    pub(crate) fn is_closed(&self) {
        while self.receive_bytes().is_some() {}
    }

    pub(crate) fn hello(&self) -> Value {
        json!({
            "type": "hello",
            "version": 4,
            "to": self.incarnation,
            "name": "by hand",
            "from": "by hand",
            "token": [self.token.0, self.token.1],
        })
    }

    /// The handshake as an honest asker's, up to the welcome; how many lanes there are.
    pub(crate) fn is_welcome(&self) -> usize {
        self.bells().len()
    }

    /// The same; a bell for each lane.
    fn bells(&self) -> Vec<File> {
        self.send(&self.hello(), &[]);
        let (welcome, mut fds) = self.receive().unwrap();
        assert_eq!((&welcome["type"], &welcome["version"]), (&json!("welcome"), &json!(4)));
        let lanes = welcome["lanes"].as_array().unwrap().len();
        assert_eq!(fds.len(), lanes + 2, "two ledgers and the bells");
        fds.drain(2..).map(File::from).collect()
    }

    /// The whole handshake; the lanes' memory.
    pub(crate) fn connected(&self) -> Lanes {
        let engines = self.bells();
        let count = engines.len();
        let lanes = Lanes { bells: engines, ..Lanes::new(count) };
        let bells: Vec<_> = (0..count).map(|_| bell()).collect();
        let fds: Vec<_> =
            [lanes.file.as_fd()].into_iter().chain(bells.iter().map(AsFd::as_fd)).collect();
        self.send(&json!({"type": "lanes"}), &fds);
        assert_eq!(self.receive().unwrap().0["type"], "ready");
        lanes
    }

    /// What the engine answers to a message.
    pub(crate) fn ask(&self, message: &Value, fds: &[BorrowedFd<'_>]) -> Value {
        self.send(message, fds);
        self.receive().expect("the session goes on").0
    }

    /// Offers memory of ours; whether it is taken, or why not.
    pub(crate) fn offer(&self, id: u64, len: u64, fd: Option<BorrowedFd<'_>>) -> Option<String> {
        let offer = json!({"type": "offer", "call": id, "id": id, "addr": 1u64 << 40, "len": len,
            "is_foreign": false});
        let answer = self.ask(&offer, fd.as_slice());
        assert_eq!(answer["call"], json!(id));
        match answer["type"].as_str().unwrap() {
            "taken" => None,
            "refused" => Some(answer["why"].as_str().unwrap().to_owned()),
            other => panic!("{other}"),
        }
    }
}

/// An engine's peer made by hand: where it is said to listen.
pub(crate) struct Listening {
    socket: OwnedFd,
    name: String,
}

impl Listening {
    pub(crate) fn new() -> Self {
        static NEXT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
        let number = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let name = format!("@kvrail-by-hand-{}-{number}", std::process::id());
        let socket = unix();
        bind(&socket, &address(&name)).unwrap();
        listen(&socket, 8).unwrap();
        Self { socket, name }
    }

    /// The segment name of an engine whose Unix socket is this one.
    pub(crate) fn instead_of(&self, name: &str) -> String {
        forged(name, |descriptor| descriptor["kvrail"]["sockets"] = json!([self.name]))
    }

    /// The next connection, and the incarnation that it means.
    pub(crate) fn accept(&self) -> Raw {
        let socket = rustix::net::accept(&self.socket).unwrap();
        let mut raw = Raw { socket, incarnation: 0, token: token() };
        let hello = raw.receive().unwrap().0;
        assert_eq!((&hello["type"], &hello["version"]), (&json!("hello"), &json!(4)));
        raw.incarnation = hello["to"].as_u64().unwrap();
        raw
    }
}

/// The bell of a shard that nobody is.
pub(crate) fn bell() -> OwnedFd {
    eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap()
}

/// A memfd with these bytes and seals.
pub(crate) fn memfd(bytes: &[u8], seals: SealFlags) -> File {
    let fd = memfd_create("by-hand", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
    let file = File::from(fd);
    file.write_all_at(bytes, 0).unwrap();
    fcntl_add_seals(&file, seals).unwrap();
    file
}

/// Seals that make memory fit to be offered.
pub(crate) const SEALED: SealFlags =
    SealFlags::SHRINK.union(SealFlags::GROW).union(SealFlags::FUTURE_WRITE);

/// The memory of lanes, as words.
pub(crate) struct Lanes {
    pub(crate) file: File,
    count: usize,
    /// Of the engine's shards.
    bells: Vec<File>,
}

/// Words of a lane, as `reactors/src/host/lane.rs` lays them out.
pub(crate) const REQUEST_HEAD: u64 = 0;
pub(crate) const REQUEST_TAIL: u64 = 8;
pub(crate) const REPLY_HEAD: u64 = 16;
pub(crate) const REPLY_TAIL: u64 = 24;
pub(crate) const CLOSED: u64 = 48;
pub(crate) const RING: u64 = 1024;
const REQUESTS: u64 = 64;
const REPLIES: u64 = REQUESTS + RING * 8;
pub(crate) const LANE_BYTES: u64 = ((REPLIES + RING * 4) * 8).next_multiple_of(4096);

impl Lanes {
    pub(crate) fn new(count: usize) -> Self {
        let fd = memfd_create("by-hand", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
        ftruncate(&fd, count as u64 * LANE_BYTES).unwrap();
        fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW).unwrap();
        Self { file: fd.into(), count, bells: Vec::new() }
    }

    /// Lanes whose memory came from an engine.
    pub(crate) fn of(fd: OwnedFd, count: usize) -> Self {
        Self { file: fd.into(), count, bells: Vec::new() }
    }

    pub(crate) fn get(&self, lane: usize, word: u64) -> u64 {
        let mut bytes = [0; 8];
        self.file.read_exact_at(&mut bytes, lane as u64 * LANE_BYTES + word * 8).unwrap();
        u64::from_le_bytes(bytes)
    }

    pub(crate) fn set(&self, lane: usize, word: u64, value: u64) {
        assert!(lane < self.count);
        let at = lane as u64 * LANE_BYTES + word * 8;
        self.file.write_all_at(&value.to_le_bytes(), at).unwrap();
        // An honest peer rings only a shard that sleeps; more does not hurt.
        if word < REQUESTS
            && let Some(bell) = self.bells.get(lane)
        {
            (&mut &*bell).write_all(&1u64.to_ne_bytes()).unwrap();
        }
    }

    /// Asks by a lane as an honest peer does; there must be room.
    pub(crate) fn ask(&self, lane: usize, requests: &[[u64; 8]]) {
        let head = self.get(lane, REQUEST_HEAD);
        for (k, request) in requests.iter().enumerate() {
            let slot = REQUESTS + (head + k as u64) % RING * 8;
            request.iter().zip(slot..).for_each(|(value, word)| self.set(lane, word, *value));
        }
        self.set(lane, REQUEST_HEAD, head + requests.len() as u64);
    }

    /// The next reply, once it is there; none where the lane was closed.
    pub(crate) fn reply(&self, lane: usize) -> Option<[u64; 4]> {
        let tail = self.get(lane, REPLY_TAIL);
        wait(|| self.get(lane, REPLY_HEAD) != tail || self.get(lane, CLOSED) != 0);
        if self.get(lane, REPLY_HEAD) == tail {
            return None;
        }
        let slot = REPLIES + tail % RING * 4;
        let reply = std::array::from_fn(|k| self.get(lane, slot + k as u64));
        self.set(lane, REPLY_TAIL, tail + 1);
        Some(reply)
    }

    /// Replies as a responder does.
    pub(crate) fn answer(&self, lane: usize, reply: [u64; 4]) {
        let head = self.get(lane, REPLY_HEAD);
        let slot = REPLIES + head % RING * 4;
        reply.iter().zip(slot..).for_each(|(value, word)| self.set(lane, word, *value));
        self.set(lane, REPLY_HEAD, head + 1);
    }

    /// The request at an index, once it was asked.
    pub(crate) fn request(&self, lane: usize, index: u64) -> [u64; 8] {
        wait(|| self.get(lane, REQUEST_HEAD) > index);
        let slot = REQUESTS + index % RING * 8;
        std::array::from_fn(|k| self.get(lane, slot + k as u64))
    }

    /// Waits until the engine has given the lane up.
    pub(crate) fn is_closed(&self, lane: usize) {
        wait(|| self.get(lane, CLOSED) != 0);
    }
}

/// Waits for an engine to do something; fails rather than hang.
fn wait(is_done: impl Fn() -> bool) {
    let since = std::time::Instant::now();
    while !is_done() {
        assert!(since.elapsed() < Duration::from_secs(20), "the engine does nothing");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Words of requests and replies, as `src/path/host/entry.rs` defines them.
pub(crate) mod words {
    pub(crate) const COPY: u64 = 1;
    pub(crate) const CANCEL: u64 = 2;
    pub(crate) const EVENT: u64 = 3;
    pub(crate) const BODY: u64 = 4;
    pub(crate) const LAST: u64 = 256;
    pub(crate) const DONE: u64 = 1;
    pub(crate) const FAILED: u64 = 2;
    pub(crate) const OK: u64 = 0;
    pub(crate) const REFUSED: u64 = 1;
    pub(crate) const UNREADABLE: u64 = 3;

    pub(crate) const LIST: u64 = 5;
    pub(crate) const LISTED: u64 = 6;

    /// What a reply says of one copy that failed, or of so many.
    pub(crate) fn failed(part: u64, index: u64, verdict: u64) -> [u64; 4] {
        [FAILED, part, index, verdict | (1 << 32)]
    }

    /// A part of one copy.
    pub(crate) fn copy(part: u64, source: u64, offset: u64, addr: u64, len: u64) -> [u64; 8] {
        [COPY | LAST, part, source, offset, addr, len, 0, 0]
    }
}

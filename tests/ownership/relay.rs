//! A relay in front of an engine, control and data, that passes so many bytes of requests and
//! answers and then stands still or hangs up: what a network does to transfers under way.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Type byte of a question for an engine's descriptor.
const METADATA: u8 = 1;

/// What passes, in bytes of all connections together.
#[derive(Default)]
struct Limits {
    requests: AtomicUsize,
    answers: AtomicUsize,
    control_is_silent: AtomicBool,
    connections: Mutex<Vec<TcpStream>>,
}

/// The relay; its name opens the engine behind it.
pub(crate) struct Relay {
    pub(crate) name: String,
    limits: Arc<Limits>,
}

impl Relay {
    /// In front of the engine of this name, passing so many bytes each way.
    pub(crate) fn new(engine: &str, requests: usize, answers: usize) -> Self {
        let limits = Arc::new(Limits::default());
        limits.requests.store(requests, Ordering::SeqCst);
        limits.answers.store(answers, Ordering::SeqCst);
        let (control, data) = (listener(), listener());
        let name = control.local_addr().unwrap().to_string();
        let there: SocketAddr = engine.parse().unwrap();
        let port = data.local_addr().unwrap().port();
        let ours = limits.clone();
        let behind = Arc::new(AtomicUsize::new(0));
        let known = behind.clone();
        std::thread::spawn(move || {
            for stream in control.incoming() {
                let (limits, known) = (ours.clone(), known.clone());
                std::thread::spawn(move || ask(stream.unwrap(), there, port, &known, &limits));
            }
        });
        let ours = limits.clone();
        std::thread::spawn(move || {
            for stream in data.incoming() {
                let port = behind.load(Ordering::SeqCst) as u16;
                pass(stream.unwrap(), SocketAddr::new(there.ip(), port), &ours);
            }
        });
        Self { name, limits }
    }

    /// From here on everything passes.
    pub(crate) fn open(&self) {
        self.limits.requests.store(usize::MAX, Ordering::SeqCst);
        self.limits.answers.store(usize::MAX, Ordering::SeqCst);
    }

    /// The engine's control daemon is out of reach.
    pub(crate) fn silence_control(&self) {
        self.limits.control_is_silent.store(true, Ordering::SeqCst);
    }

    /// Whether all that may pass has passed.
    pub(crate) fn is_still(&self) -> bool {
        let left = [&self.limits.requests, &self.limits.answers];
        left.iter().any(|left| left.load(Ordering::SeqCst) == 0)
    }

    /// Hangs up on both sides of every connection; what is under way is lost.
    pub(crate) fn hang_up(&self) {
        for stream in self.limits.connections.lock().unwrap().drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

fn listener() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").unwrap()
}

/// One question and its answer, in which the data port is the relay's.
fn ask(mut asker: TcpStream, there: SocketAddr, port: u16, known: &AtomicUsize, limits: &Limits) {
    let Some(question) = frame(&mut asker) else { return };
    if limits.control_is_silent.load(Ordering::SeqCst) {
        // Until the asker gives up.
        let _ = asker.read(&mut [0]);
        return;
    }
    let mut engine = TcpStream::connect(there).unwrap();
    engine.write_all(&question).unwrap();
    let Some(mut answer) = frame(&mut engine) else { return };
    if answer[8] == METADATA {
        let text = String::from_utf8(answer.split_off(9)).unwrap();
        let key = "\"tcp_data_port\":";
        let (before, rest) = text.split_once(key).unwrap();
        let end = rest.find([',', '}']).unwrap();
        known.store(rest[..end].trim().parse().unwrap(), Ordering::SeqCst);
        let text = format!("{before}{key}{port}{}", &rest[end..]);
        answer[..8].copy_from_slice(&(text.len() as u64 + 1).to_le_bytes());
        answer.extend(text.into_bytes());
    }
    let _ = asker.write_all(&answer);
}

fn frame(stream: &mut TcpStream) -> Option<Vec<u8>> {
    let mut frame = vec![0; 8];
    stream.read_exact(&mut frame).ok()?;
    let len = u64::from_le_bytes(frame[..8].try_into().unwrap()) as usize;
    frame.resize(8 + len, 0);
    stream.read_exact(&mut frame[8..]).ok()?;
    Some(frame)
}

fn pass(client: TcpStream, there: SocketAddr, limits: &Arc<Limits>) {
    let engine = TcpStream::connect(there).unwrap();
    for stream in [&client, &engine] {
        limits.connections.lock().unwrap().push(stream.try_clone().unwrap());
    }
    let ways = [(&client, &engine, true), (&engine, &client, false)];
    for (from, to, is_request) in ways {
        let (from, to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
        let limits = limits.clone();
        std::thread::spawn(move || {
            let left = if is_request { &limits.requests } else { &limits.answers };
            copy(from, to, left);
        });
    }
}

/// Passes what `left` allows, and an end.
fn copy(mut from: TcpStream, mut to: TcpStream, left: &AtomicUsize) {
    let mut bytes = vec![0; 64 << 10];
    while let Ok(count @ 1..) = from.read(&mut bytes) {
        let mut rest = &bytes[..count];
        while !rest.is_empty() {
            let take = |left: usize| (left > 0).then(|| left - left.min(rest.len()));
            let Ok(had) = left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, take) else {
                std::thread::sleep(Duration::from_millis(1));
                continue;
            };
            let (now, later) = rest.split_at(had.min(rest.len()));
            if to.write_all(now).is_err() {
                return;
            }
            rest = later;
        }
    }
    let _ = to.shutdown(Shutdown::Write);
}

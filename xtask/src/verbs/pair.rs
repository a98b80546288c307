//! Two hosts and the wire between them, in trouble: one serves memory, the other writes and reads
//! it back round after round, while the wire is cut and mended and the target stops, goes on, and
//! is gone at last. Rounds may fail meanwhile; none may end well with wrong bytes, and none may
//! hang.

use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use crate::process::json;
use crate::shell::{Shell, quoted};
use crate::steps::Outcome;
use crate::vm::pair::Pair;
use crate::vm::qmp::Order;
use crate::vm::wire::DEVICE;
use crate::vm::{End, Job, Machine, prepare};

/// How long the wire is cut, and the target stopped: less than the 5 s that a rail may be silent
/// for, and more.
const CUT: Duration = Duration::from_millis(1500);
const STOP: Duration = Duration::from_secs(6);
/// A pair is up in 15 s on two busy cores.
const BOOT_PATIENCE: Duration = Duration::from_secs(90);
/// For a round to end, well or not; all of a transfer's times add up to less.
const ROUND_PATIENCE: Duration = Duration::from_secs(40);
/// For rounds to end well again: a rail that failed rests 30 s at most before it is tried again.
const MEND_PATIENCE: Duration = Duration::from_secs(40);
/// Rounds that end well in a row: the second began after the trouble.
const GOOD_ROUNDS: u32 = 2;
/// Writes and looks that end well in trouble: one may be told of late, with more there was none.
const GOOD_MEANWHILE: u64 = 1;
/// Of all of it, and of a guest that nobody ends.
const LIMIT_S: u64 = 300;

/// Small, since both guests share the cores of a small host.
const MEMORY_MIB: u32 = 768;
/// A round writes a batch and reads it back, then writes it for so many seconds: both many times
/// shorter than the wire is cut.
const SHAPE: &str = "--block-size 64K --batch-size 8 --threads 1 --buffer-size 4M";
const CELL: &str = "write 64K 8 0.2";

/// The part of the step: boots the pair and brings trouble.
pub fn trouble(shell: &Shell, kvrail: &Path) -> Outcome {
    let boot = prepare(shell, None)?;
    let shared = tempfile::tempdir().map_err(|error| format!("a folder: {error}"))?;
    let machine = Machine {
        memory_mib: MEMORY_MIB,
        rw: Some(shared.path().to_owned()),
        ..Machine::default()
    };
    let said = shared.path().join("target");
    let commands = [target(kvrail, &said), requester(kvrail, &said)];
    let jobs = commands.map(|command| Job { command, limit_s: LIMIT_S, keep: false });
    let pair = Pair::new(boot, machine)?;
    let start = Instant::now();
    pair.watch(&jobs, |[_, lines]| Rounds { lines, start, good: 0 }.in_trouble(&pair))
}

fn bench(kvrail: &Path, mode: &str, end: End) -> String {
    let program = quoted(&kvrail.to_string_lossy());
    let nic = format!("--protocol rdma --path rdma --device-name {DEVICE}");
    let name = end.address();
    format!("{program} bench --mode {mode} {nic} --local-server-name {name} {SHAPE}")
}

/// Serves memory, and says under which name in a file that the other guest sees too.
fn target(kvrail: &Path, said: &Path) -> String {
    format!("{} >{}", bench(kvrail, "target", End::A), quoted(&said.to_string_lossy()))
}

/// Writes and reads back without end, as soon as the target has said its name.
fn requester(kvrail: &Path, said: &Path) -> String {
    let bench = bench(kvrail, "initiator", End::B);
    let said = quoted(&said.to_string_lossy());
    format!(
        "until segment=$(sed -n 's/^segment //p' {said} 2>/dev/null) && [ \"$segment\" ]; do\n\
         sleep 0.1\ndone\n\
         while echo verify && echo '{CELL}'; do :; done |\n\
         {bench} --segment-id \"$segment\" --cells --verify"
    )
}

/// What the requester says.
#[derive(Debug, PartialEq)]
enum Told {
    Ready,
    /// What was written was read back, or not.
    Looked(bool),
    /// Batches were written, and all ended well.
    Wrote,
    Failed(String),
}

fn told(line: &str) -> Option<Told> {
    let line = json(line.trim())?;
    match (line["error"].as_str(), line["verified"].as_bool(), line["batches"].as_u64()) {
        (Some(error), ..) => Some(Told::Failed(error.to_owned())),
        (_, _, Some(_)) => Some(Told::Wrote),
        (_, Some(is_right), _) => Some(Told::Looked(is_right)),
        _ if line["ready"] == true => Some(Told::Ready),
        _ => None,
    }
}

/// Whether an error says who is gone, which way led there, and how that ended.
fn tells_all(error: &str) -> bool {
    let peer = format!("(peer {}", End::A.address());
    let rail = error.split_once(&format!("rail {DEVICE} to {DEVICE}: "));
    let status = rail.and_then(|(_, rest)| rest.split(')').next());
    error.contains(&peer) && status.is_some_and(|status| !status.is_empty())
}

/// The requester's rounds, as they come.
struct Rounds {
    lines: Receiver<String>,
    start: Instant,
    good: u64,
}

impl Rounds {
    fn in_trouble(&mut self, pair: &Pair) -> Outcome {
        match self.next(BOOT_PATIENCE)? {
            Told::Ready => self.say("the requester has opened the target"),
            other => return Err(format!("the requester began with {other:?}")),
        }
        self.recover("nothing has happened yet")?;
        self.amid("the wire is cut and mended", pair, [Order::Cut, Order::Mend], CUT)?;
        self.amid("the target stops and goes on", pair, [Order::Pause, Order::Resume], STOP)?;
        self.reach_a_write()?;
        pair.order(End::A, Order::Cut)?;
        pair.order(End::A, Order::Kill)?;
        let took = self.fail()?;
        Ok(format!("{} rounds of a pair in trouble, lost in {took:.1} s", self.good))
    }

    /// Brings trouble and ends it, in the middle of a write.
    fn amid(
        &mut self,
        what: &str,
        pair: &Pair,
        orders: [Order; 2],
        time: Duration,
    ) -> Result<(), String> {
        self.reach_a_write()?;
        pair.order(End::A, orders[0])?;
        self.catch_up()?;
        thread::sleep(time);
        let good = self.catch_up()?;
        pair.order(End::A, orders[1])?;
        match good <= GOOD_MEANWHILE {
            true => self.recover(what),
            false => Err(format!("{what}: {good} times, all was well meanwhile")),
        }
    }

    /// A look has just ended well: the next batches are under way.
    fn reach_a_write(&mut self) -> Result<(), String> {
        self.catch_up()?;
        while self.next(ROUND_PATIENCE)? != Told::Looked(true) {}
        Ok(())
    }

    /// Hears what has been said; answers how many writes and looks have ended well.
    fn catch_up(&mut self) -> Result<u64, String> {
        let mut good = 0;
        while let Ok(line) = self.lines.try_recv() {
            good += u64::from(matches!(self.take(&line)?, Some(Told::Wrote | Told::Looked(true))));
        }
        Ok(good)
    }

    /// Rounds end well again.
    fn recover(&mut self, after: &str) -> Result<(), String> {
        let (began, mut in_a_row, mut failures) = (Instant::now(), 0, Vec::new());
        while in_a_row < GOOD_ROUNDS {
            match self.next(ROUND_PATIENCE)? {
                Told::Looked(_) => in_a_row += 1,
                Told::Failed(error) => {
                    in_a_row = 0;
                    failures.push(error);
                }
                Told::Wrote | Told::Ready => {}
            }
            if began.elapsed() > MEND_PATIENCE {
                return Err(format!("{after}: no {GOOD_ROUNDS} rounds end well: {failures:?}"));
            }
        }
        let took = began.elapsed().as_secs_f32();
        let why = failures.first().map_or("none", String::as_str);
        self.say(&format!(
            "{after}: {GOOD_ROUNDS} good rounds within {took:.1} s, {} that failed ({why})",
            failures.len()
        ));
        Ok(())
    }

    /// The peer is gone: that is told, and how. Answers after how many seconds.
    fn fail(&mut self) -> Result<f32, String> {
        let began = Instant::now();
        loop {
            match self.next(ROUND_PATIENCE.saturating_sub(began.elapsed()))? {
                Told::Failed(error) if tells_all(&error) => {
                    self.say(&format!("the target is gone: {error}"));
                    return Ok(began.elapsed().as_secs_f32());
                }
                Told::Failed(error) => {
                    return Err(format!("an error that does not say all: {error}"));
                }
                // These had ended before.
                Told::Looked(_) | Told::Wrote | Told::Ready => {}
            }
        }
    }

    fn next(&mut self, patience: Duration) -> Result<Told, String> {
        let until = Instant::now() + patience;
        loop {
            match self.lines.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(line) => {
                    if let Some(told) = self.take(&line)? {
                        return Ok(told);
                    }
                }
                Err(RecvTimeoutError::Timeout) => {
                    return Err(format!("the requester hangs: no word for {patience:?}"));
                }
                Err(RecvTimeoutError::Disconnected) => return Err("the requester is gone".into()),
            }
        }
    }

    /// Counts a line; one that tells of wrong bytes ends everything.
    fn take(&mut self, line: &str) -> Result<Option<Told>, String> {
        let told = told(line);
        match told {
            Some(Told::Looked(false)) => return Err("what was read back is wrong".to_owned()),
            Some(Told::Looked(true)) => self.good += 1,
            Some(_) => {}
            None => println!("b: {}", line.trim_end()),
        }
        Ok(told)
    }

    fn say(&self, what: &str) {
        println!("{:>5.1} s: {what}", self.start.elapsed().as_secs_f32());
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    const LOST: &str = "lost: the peer is out of reach (rail rxe0 to rxe0: transport retry counter \
                        exceeded): is it running? (peer 10.8.0.1:15986 over rdma)";

    #[test]
    fn both_speak_rdma_and_the_requester_waits_for_the_targets_name() {
        let target = target(Path::new("/t/kv rail"), Path::new("/s/target"));
        assert!(
            target.starts_with("'/t/kv rail' bench --mode target --protocol rdma "),
            "{target}"
        );
        assert!(target.contains("--path rdma --device-name rxe0 --local-server-name 10.8.0.1 "));
        assert!(target.ends_with(" >'/s/target'"), "{target}");
        let requester = requester(Path::new("/t/kvrail"), Path::new("/s/target"));
        assert!(requester.starts_with("until segment=$(sed -n 's/^segment //p' '/s/target' "));
        assert!(requester.contains("--mode initiator") && requester.contains("10.8.0.2"));
        assert!(requester.ends_with("--segment-id \"$segment\" --cells --verify"), "{requester}");
    }

    #[test]
    fn an_error_names_peer_rail_and_status() {
        assert!(tells_all(LOST));
        assert!(!tells_all(&LOST.replace("10.8.0.1", "10.8.0.3")));
        assert!(!tells_all(&LOST.replace("rail rxe0", "rail ?")));
        assert!(!tells_all(&LOST.replace("transport retry counter exceeded", "")));
    }

    fn rounds(lines: &[&str]) -> Rounds {
        let (send, lines_) = channel();
        lines.iter().for_each(|line| send.send((*line).to_owned()).unwrap());
        Rounds { lines: lines_, start: Instant::now(), good: 0 }
    }

    const GOOD: &str = "{\"verified\": true}\r";
    const WROTE: &str = "{\"batches\": 9, \"verified\": null}";
    const FAILED: &str = "{\"error\": \"lost: nobody\"}";

    #[test]
    fn two_good_rounds_in_a_row_are_recovery() {
        let mut heard = rounds(&[GOOD, FAILED, WROTE, "a word", GOOD, WROTE, GOOD]);
        assert_eq!((heard.recover("nothing"), heard.good), (Ok(()), 3));
        let gone = rounds(&[GOOD, FAILED, GOOD, WROTE]).recover("nothing");
        assert_eq!(gone.unwrap_err(), "the requester is gone");
        assert_eq!(rounds(&[GOOD, FAILED, WROTE]).catch_up(), Ok(2));
    }

    #[test]
    fn wrong_bytes_and_vague_errors_are_faults() {
        let wrong = rounds(&[GOOD, "{\"verified\": false}", GOOD, GOOD]).recover("nothing");
        assert_eq!(wrong.unwrap_err(), "what was read back is wrong");
        assert!(rounds(&[WROTE, FAILED]).fail().unwrap_err().ends_with("lost: nobody"));
        let lost = serde_json::json!({"error": LOST}).to_string();
        assert!(rounds(&[GOOD, WROTE, &lost]).fail().is_ok());
    }

    #[test]
    fn silence_is_a_hang() {
        let (_send, lines) = channel();
        let mut rounds = Rounds { lines, start: Instant::now(), good: 0 };
        let hang = rounds.next(Duration::from_millis(1)).unwrap_err();
        assert_eq!(hang, "the requester hangs: no word for 1ms");
    }
}

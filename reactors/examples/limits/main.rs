//! What the machine itself can do with the shapes that kvrail is measured with: memcpy between
//! mappings, bare process_vm calls, and blocking sockets. `cargo xtask compare` runs it.
//!
//! usage: `limits memcpy|process-vm|sockets target BYTES`, which prints the segment it serves;
//! `limits KIND initiator BYTES SEGMENT`, which answers lines of OPERATION BLOCK BATCH SECONDS
//! WALK with lines of JSON; `limits memcpy local BYTES`, the same inside one process.
#![deny(unsafe_op_in_unsafe_fn)]

mod memory;
mod sockets;

use std::io::{self, BufRead, Read};
use std::time::{Duration, Instant};

use memory::{Calls, Copies};

/// Clocks are read no more often than this, so that reading them is no part of what is measured:
/// 20 us is 500 times what one reading costs.
const GROUP: Duration = Duration::from_micros(20);

/// Within how long these shares of all batches ended: what every contender tells.
const RANKS: [(&str, f64); 7] = [
    ("p10", 0.1),
    ("p25", 0.25),
    ("p50", 0.5),
    ("p75", 0.75),
    ("p90", 0.9),
    ("p99", 0.99),
    ("p99_9", 0.999),
];

/// What one line asks for: `batch` blocks of `block` bytes, lying side by side; and `walk` such
/// batches behind each other, which take turns.
#[derive(Clone, Copy)]
pub struct Shape {
    is_write: bool,
    block: usize,
    batch: usize,
    walk: usize,
}

impl Shape {
    fn bytes(&self) -> usize {
        self.block * self.batch
    }
}

/// One way to move a batch, as bare as it gets.
trait Limit {
    /// What it does while it waits.
    const IDLE: &'static str;

    /// Moves the batch that begins at byte `start` and returns when all of it has arrived.
    fn carry(&mut self, shape: Shape, start: usize) -> io::Result<()>;
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let words: Vec<_> = std::env::args().skip(1).collect();
    let words: Vec<_> = words.iter().map(String::as_str).collect();
    let bytes = words.get(2).ok_or("say KIND ROLE BYTES")?.parse()?;
    match (words[0], words[1], words.get(3)) {
        ("memcpy", "target", _) => serve(&memory::shared(bytes)?),
        ("process-vm", "target", _) => serve(&memory::private(bytes)),
        ("sockets", "target", _) => sockets::serve(bytes)?,
        ("memcpy", "local", _) => answer(Copies::within(bytes)?, bytes),
        ("memcpy", "initiator", Some(segment)) => answer(Copies::to(segment, bytes)?, bytes),
        ("process-vm", "initiator", Some(segment)) => answer(Calls::to(segment, bytes)?, bytes),
        ("sockets", "initiator", Some(segment)) => {
            answer(sockets::Stream::to(segment, bytes)?, bytes);
        }
        _ => return Err(format!("{words:?} is no way to be called").into()),
    }
    Ok(())
}

/// Names the memory and keeps it until standard input ends.
fn serve(memory: &impl memory::Served) {
    println!("segment {}", memory.segment());
    // What comes is of no interest, only the end.
    let _ = io::stdin().read_to_end(&mut Vec::new());
}

fn answer(mut limit: impl Limit, bytes: usize) {
    println!(r#"{{"ready": true}}"#);
    for line in io::stdin().lock().lines().map_while(Result::ok) {
        let found = read(&line, bytes).and_then(|(shape, time)| {
            measure(&mut limit, shape, time).map_err(|error| error.to_string())
        });
        println!("{}", found.unwrap_or_else(|error| format!(r#"{{"error": "{error}"}}"#)));
    }
}

/// `write 65536 16 0.5 1`, where the blocks fit into so many bytes.
fn read(line: &str, bytes: usize) -> Result<(Shape, Duration), String> {
    let words: Vec<_> = line.split_whitespace().collect();
    let [operation, block, batch, seconds, walk] = words[..] else {
        return Err("a line is OPERATION BLOCK BATCH SECONDS WALK".into());
    };
    let number = |word: &str| word.parse::<usize>().map_err(|_| format!("{word} is no number"));
    let (is_write, block, batch) = (operation == "write", number(block)?, number(batch)?);
    let shape = Shape { is_write, block, batch, walk: number(walk)? };
    let needed = block.checked_mul(batch).and_then(|needed| needed.checked_mul(shape.walk));
    if needed.is_none_or(|needed| needed == 0 || needed > bytes) {
        return Err(format!("{block} x {batch} x {walk} do not fit into {bytes} bytes"));
    }
    let time = seconds.parse().ok().and_then(|time| Duration::try_from_secs_f64(time).ok());
    Ok((shape, time.ok_or("SECONDS is no time")?))
}

/// Batches until the time is over, and the JSON that tells of them.
fn measure<L: Limit>(limit: &mut L, shape: Shape, time: Duration) -> io::Result<String> {
    let mut group = 1;
    let (mut batches, mut latencies) = (0u64, Vec::new());
    let mut starts = (0..shape.walk).map(|step| step * shape.bytes()).cycle();
    let started = Instant::now();
    while started.elapsed() < time || batches == 0 {
        let posted = Instant::now();
        for start in starts.by_ref().take(group) {
            limit.carry(shape, start)?;
        }
        let took = posted.elapsed();
        latencies.push(took.as_nanos() as u64 / group as u64);
        batches += group as u64;
        if took < GROUP {
            group *= 2;
        }
    }
    let seconds = started.elapsed().as_secs_f64();
    latencies.sort_unstable();
    let ranks = RANKS.map(|(name, share)| {
        let rank = (latencies.len() as f64 * share).ceil() as usize;
        format!(r#""{name}": {}"#, latencies[rank.max(1) - 1] as f64 * 1e-3)
    });
    Ok(format!(
        r#"{{"gigabytes_per_second": {}, "seconds": {seconds}, "batches": {batches}, "#,
        batches as f64 * shape.bytes() as f64 * 1e-9 / seconds
    ) + &format!(r#""batch_latency_us": {{{}}}, "idle": "{}"}}"#, ranks.join(", "), L::IDLE))
}

//! `kvrail bench`: one process serves memory, another reads or writes it, as fast as it goes.

mod cells;

use std::io::IsTerminal;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use futures_lite::future::block_on;
use hdrhistogram::Histogram;
use indicatif::{ProgressBar, ProgressStyle};
use kvrail::runtime::{Idle, Shards};
use kvrail::topology::Topology;
use kvrail::{
    Access, Batch, Engine, EngineBuilder, Error, Eternal, Location, Metadata, Peer, Prepared,
    Region, RemoteBuffer, Result,
};

use crate::report::Report;
use crate::size;

/// Foreign memory is faulted in by copies of so much: a few hundred for a gigabyte.
const FILL_BYTES: usize = 4 << 20;

#[derive(Args, Clone)]
pub struct Options {
    /// Whether to serve memory or to transfer.
    #[arg(long, value_enum)]
    mode: Mode,
    /// P2PHANDSHAKE, or the URL of a metadata server such as http://127.0.0.1:8080/metadata.
    #[arg(long, alias = "metadata_server", default_value = "P2PHANDSHAKE")]
    metadata_server: Metadata,
    /// P2P: this host's address; otherwise the segment name of this process.
    #[arg(long, alias = "local_server_name", default_value = "127.0.0.1")]
    local_server_name: String,
    /// The target's segment name; the initiator needs it unless the path is local.
    #[arg(long, alias = "segment_id")]
    segment_id: Option<String>,
    /// The protocol to speak.
    #[arg(long, value_enum, default_value = "tcp")]
    protocol: Protocol,
    /// What the initiator does.
    #[arg(long, value_enum, default_value = "read")]
    operation: Operation,
    /// Bytes of one request.
    #[arg(long, alias = "block_size", default_value = "64K", value_parser = size::parse)]
    block_size: usize,
    /// Requests of one batch.
    #[arg(long, alias = "batch_size", default_value_t = 128)]
    batch_size: usize,
    /// Callers at a time.
    #[arg(long, default_value_t = 12)]
    threads: usize,
    /// Seconds to run.
    #[arg(long, default_value_t = 10.0, value_parser = seconds)]
    duration: f64,
    /// Bytes of each buffer; one a NUMA node.
    #[arg(long, alias = "buffer_size", default_value = "1G", value_parser = size::parse)]
    buffer_size: usize,
    /// Which way to the segment: the best, host (same host, no network), tcp; or local, inside
    /// this process.
    #[arg(long, value_enum, default_value = "auto")]
    path: Path,
    /// Whose memory: regions that the engine allocates, or foreign memory that it is told of.
    #[arg(long, value_enum, default_value = "region")]
    memory: Memory,
    /// What idle shards do; hybrid polls for 50 us before it sleeps.
    #[arg(long, value_enum, default_value = "hybrid")]
    idle: IdlePolicy,
    /// Shards of this process; by default half of its CPUs, 8 at most.
    #[arg(long)]
    shards: Option<usize>,
    /// Writes known bytes and reads them back before and after measuring.
    #[arg(long)]
    verify: bool,
    /// Prints the report as one line of JSON.
    #[arg(long)]
    json: bool,
    /// Measures what each line of standard input asks for, OPERATION BLOCK BATCH SECONDS, and
    /// answers each with a line of JSON.
    #[arg(long)]
    cells: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Mode {
    Target,
    Initiator,
}

#[derive(Clone, Copy, ValueEnum)]
enum Protocol {
    Tcp,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Operation {
    Read,
    Write,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Path {
    Auto,
    Local,
    Host,
    Tcp,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Memory {
    Region,
    Foreign,
}

#[derive(Clone, Copy, ValueEnum)]
enum IdlePolicy {
    Spin,
    Hybrid,
    Event,
}

impl From<IdlePolicy> for Idle {
    fn from(policy: IdlePolicy) -> Self {
        match policy {
            IdlePolicy::Spin => Self::Spin,
            IdlePolicy::Hybrid => Self::default(),
            IdlePolicy::Event => Self::Event,
        }
    }
}

pub fn run(options: &Options) -> Result<()> {
    let Protocol::Tcp = options.protocol;
    let shards = options.shards.map_or_else(Shards::default, Shards::Count);
    let builder = Engine::builder()
        .name(&options.local_server_name)
        .metadata(options.metadata_server.clone())
        .shards(shards)
        .idle(options.idle.into());
    let engine = forced(builder, options).start()?;
    match options.mode {
        Mode::Target => serve(&engine, options),
        Mode::Initiator => initiate(&engine, options),
    }
}

/// An engine that doesn't take the paths which `--path` rules out.
fn forced(builder: EngineBuilder, _options: &Options) -> EngineBuilder {
    builder
}

/// One buffer a NUMA node that has CPUs of ours, as transfer_engine_bench expects.
fn buffers(engine: &Engine, options: &Options) -> Result<Vec<Region>> {
    let nodes = Topology::here()?.nodes.len();
    let on_node = |node| if nodes > 1 { Some(node as u32) } else { None };
    let len = options.buffer_size;
    let buffer = |node| match options.memory {
        Memory::Region => engine.allocate(len, Location::Cpu(on_node(node)), Access::READ_WRITE),
        Memory::Foreign => foreign(engine, len),
    };
    (0..nodes.max(1)).map(buffer).collect()
}

/// Memory of this program's own, written once so that no page is the kernel's shared zeros.
fn foreign(engine: &Engine, len: usize) -> Result<Region> {
    let region = engine.register(Eternal::new(len).foreign(), Access::READ_WRITE)?;
    for start in (0..len).step_by(FILL_BYTES) {
        let end = len.min(start + FILL_BYTES);
        region.lease(start..end)?.copy_in(0, &vec![1; end - start])?;
    }
    Ok(region)
}

fn serve(engine: &Engine, options: &Options) -> Result<()> {
    let _buffers = buffers(engine, options)?;
    block_on(engine.publish())?;
    println!("segment {}", engine.name());
    loop {
        std::thread::park();
    }
}

/// Everything one caller needs.
struct Run<'a> {
    engine: &'a Engine,
    options: Options,
    peer: Peer,
    far: Vec<RemoteBuffer>,
    near: Vec<Region>,
}

fn initiate(engine: &Engine, options: &Options) -> Result<()> {
    let near = buffers(engine, options)?;
    let run = match (&options.segment_id, options.path) {
        (_, Path::Local) | (None, _) => local_run(engine, options, near)?,
        (Some(segment), _) => {
            let peer = block_on(engine.open(segment))?;
            let far = peer.buffers().to_vec();
            Run { engine, options: options.clone(), peer, far, near }
        }
    };
    run.check_path()?;
    if options.cells {
        return cells::answer(run);
    }
    run.check()?;
    let before = run.verify()?;
    let mut report = run.measure()?;
    report.verified = before.and_then(|before| run.verify().ok()?.map(|after| before && after));
    if options.json {
        println!("{}", report.json());
    } else {
        println!("{}", report.table());
    }
    match report.verified {
        Some(false) => Err(differs()),
        _ => Ok(()),
    }
}

fn differs() -> Error {
    Error::lost("the bytes read back differ from those written")
}

/// Without a segment, or with `--path local`: this engine's own memory is the far side.
fn local_run<'a>(engine: &'a Engine, options: &'a Options, near: Vec<Region>) -> Result<Run<'a>> {
    if options.path != Path::Local {
        return Err(Error::refused("name the target by --segment-id, or choose --path local"));
    }
    let far = buffers(engine, options)?
        .iter()
        .map(|region| RemoteBuffer {
            name: engine.name().to_owned(),
            addr: region.addr(),
            len: region.len() as u64,
        })
        .collect();
    Ok(Run { engine, options: options.clone(), peer: engine.local(), far, near })
}

impl Run<'_> {
    /// Who asks for one path wants no figures of another.
    fn check_path(&self) -> Result<()> {
        let (asked, taken) = match self.options.path {
            Path::Host => ("host", self.peer.path().label()),
            Path::Tcp => ("tcp", self.peer.path().label()),
            Path::Auto | Path::Local => return Ok(()),
        };
        if asked == taken {
            return Ok(());
        }
        Err(Error::refused(format!(
            "the segment is reached over {taken}, not over {asked}: ask for --path auto, or start \
             the target where {asked} leads to it"
        )))
    }

    /// The requested shape fits into the buffers of both sides.
    fn check(&self) -> Result<()> {
        let options = &self.options;
        let needed = options
            .block_size
            .checked_mul(options.batch_size)
            .and_then(|bytes| bytes.checked_mul(options.threads))
            .filter(|&bytes| bytes > 0)
            .ok_or_else(|| Error::refused("block size, batch size and threads are 1 or more"))?;
        let far = self.far.iter().map(|buffer| buffer.len).min().unwrap_or(0);
        if needed > options.buffer_size || needed as u64 > far {
            return Err(Error::refused(format!(
                "{} of blocks at a time, but the buffers have {} here and {} at the target: \
                 lower block size, batch size or threads, or raise --buffer-size on both sides",
                size::show(needed),
                size::show(options.buffer_size),
                size::show(far as usize)
            )));
        }
        Ok(())
    }

    /// A caller's batch: its blocks lie as transfer_engine_bench lays them.
    fn prepare(&self, thread: usize, operation: Operation) -> Result<Prepared> {
        let options = &self.options;
        let near = &self.near[thread % self.near.len()];
        let far = &self.far[thread % self.far.len()];
        let mut batch = Batch::new(&self.peer);
        for block in 0..options.batch_size {
            let start = (block * options.threads + thread) * options.block_size;
            let range = start..start + options.block_size;
            let addr = far.addr + start as u64;
            match operation {
                Operation::Write => batch.write(&near.share(range)?, addr),
                Operation::Read => batch.read(near.lease(range)?, addr),
            };
        }
        self.engine.prepare(batch)
    }

    fn measure(&self) -> Result<Report> {
        let options = &self.options;
        let batches = AtomicU64::new(0);
        let latency = Mutex::new(new_histogram()?);
        let (started, cpu) = (Instant::now(), cpu_seconds());
        let bar = progress(options);
        let elapsed = std::thread::scope(|scope| {
            let callers: Vec<_> = (0..options.threads)
                .map(|thread| {
                    let (batches, latency) = (&batches, &latency);
                    scope.spawn(move || self.call(thread, started, batches, latency))
                })
                .collect();
            while !bar.is_hidden() && callers.iter().any(|caller| !caller.is_finished()) {
                bar.set_position(started.elapsed().as_millis() as u64);
                std::thread::sleep(Duration::from_millis(50));
            }
            callers.into_iter().try_fold(Duration::ZERO, |longest, caller| {
                let took = caller.join().map_err(|_| Error::closed("a caller panicked"))??;
                Ok::<_, Error>(longest.max(took))
            })
        })?;
        bar.finish_and_clear();
        Ok(Report {
            operation: if options.operation == Operation::Read { "read" } else { "write" },
            path: self.peer.path().label(),
            idle: format!("{:?}", Idle::from(options.idle)),
            block_bytes: options.block_size,
            batch: options.batch_size,
            threads: options.threads,
            batches: batches.into_inner(),
            elapsed,
            cpu_seconds: cpu_seconds() - cpu,
            latency: latency.into_inner().unwrap_or_else(PoisonError::into_inner),
            verified: None,
        })
    }

    /// One caller's batches, one after the other. Answers when the last one had ended.
    fn call(
        &self,
        thread: usize,
        started: Instant,
        batches: &AtomicU64,
        latency: &Mutex<Histogram<u64>>,
    ) -> Result<Duration> {
        let prepared = self.prepare(thread, self.options.operation)?;
        let mut own = new_histogram()?;
        let limit = Duration::from_secs_f64(self.options.duration);
        while started.elapsed() < limit {
            let posted = Instant::now();
            block_on(self.engine.post(&prepared))?;
            own.saturating_record(posted.elapsed().as_nanos() as u64);
            batches.fetch_add(1, Ordering::Relaxed);
        }
        let took = started.elapsed();
        let mut all = latency.lock().unwrap_or_else(PoisonError::into_inner);
        all.add(own).map_err(|error| Error::refused(error.to_string()))?;
        Ok(took)
    }

    /// Writes a pattern to every block of every caller and reads it back into cleared memory;
    /// none where it isn't asked for.
    fn verify(&self) -> Result<Option<bool>> {
        if !self.options.verify {
            return Ok(None);
        }
        let round = rounds();
        let mut is_equal = true;
        for thread in 0..self.options.threads {
            self.fill(thread, |at| pattern(at + round))?;
            block_on(self.engine.post(&self.prepare(thread, Operation::Write)?))?;
            self.fill(thread, |_| 0)?;
            block_on(self.engine.post(&self.prepare(thread, Operation::Read)?))?;
            is_equal &= self.is_filled(thread, |at| pattern(at + round))?;
        }
        Ok(Some(is_equal))
    }

    fn blocks(&self, thread: usize) -> impl Iterator<Item = std::ops::Range<usize>> + '_ {
        let options = &self.options;
        (0..options.batch_size).map(move |block| {
            let start = (block * options.threads + thread) * options.block_size;
            start..start + options.block_size
        })
    }

    fn fill(&self, thread: usize, byte: impl Fn(usize) -> u8) -> Result<()> {
        let near = &self.near[thread % self.near.len()];
        self.blocks(thread).try_for_each(|range| {
            let bytes: Vec<u8> = range.clone().map(&byte).collect();
            near.lease(range)?.copy_in(0, &bytes)
        })
    }

    fn is_filled(&self, thread: usize, byte: impl Fn(usize) -> u8) -> Result<bool> {
        let near = &self.near[thread % self.near.len()];
        for range in self.blocks(thread) {
            let mut bytes = vec![0; range.len()];
            near.share(range.clone())?.copy_out(0, &mut bytes)?;
            if !bytes.into_iter().eq(range.map(&byte)) {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// Reads a time to run: more than nothing, and at most a day.
fn seconds(text: &str) -> Result<f64, String> {
    const DAY_S: f64 = 86_400.0;
    let read = text.parse().ok().filter(|&seconds: &f64| seconds > 0.0 && seconds <= DAY_S);
    read.ok_or_else(|| format!("{text:?} is no time to run: write seconds, such as 10 or 0.5"))
}

/// A number that differs from round to round of verifying.
fn rounds() -> usize {
    static ROUNDS: AtomicU64 = AtomicU64::new(1);
    ROUNDS.fetch_add(1, Ordering::Relaxed) as usize
}

/// A byte that tells its place: neighbours, blocks and megabytes differ.
fn pattern(at: usize) -> u8 {
    (at ^ at >> 8 ^ at >> 16 ^ at >> 24) as u8
}

/// From a nanosecond to a minute, with three digits.
fn new_histogram() -> Result<Histogram<u64>> {
    Histogram::new_with_max(60_000_000_000, 3).map_err(|error| Error::refused(error.to_string()))
}

fn progress(options: &Options) -> ProgressBar {
    if options.json || !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{bar:40} {elapsed} of {msg}")
        .unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new((options.duration * 1e3) as u64)
        .with_style(style)
        .with_message(format!("{} s", options.duration))
}

/// User and system seconds of this process so far, in clock ticks of 10 ms (`proc(5)`).
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let after_name = stat.rsplit(')').next().unwrap_or_default();
    let ticks = |field: usize| -> f64 {
        after_name.split_whitespace().nth(field).and_then(|text| text.parse().ok()).unwrap_or(0.0)
    };
    (ticks(11) + ticks(12)) / 100.0
}

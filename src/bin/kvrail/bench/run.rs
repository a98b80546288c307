//! One run of the bench: batches prepared once and posted until the time is over, and a look at
//! the bytes themselves.

use std::io::IsTerminal;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use futures_lite::future::block_on;
use hdrhistogram::Histogram;
use indicatif::{ProgressBar, ProgressStyle};
use kvrail::runtime::Idle;
use kvrail::{Batch, Engine, Error, ErrorKind, Peer, Prepared, Region, RemoteBuffer, Result};

use super::pages::scattered;
use super::{Operation, Options, Path};
use crate::report::Report;
use crate::size;

/// How often the progress bar moves.
const PROGRESS_TICK: Duration = Duration::from_millis(50);

/// Everything one caller needs.
pub(super) struct Run<'a> {
    pub(super) engine: &'a Engine,
    pub(super) options: Options,
    /// Whose memory is transferred to and from, batch by batch in turn.
    pub(super) segments: Vec<Segment>,
    pub(super) near: Vec<Region>,
}

/// A target, and its buffers.
pub(super) struct Segment {
    pub(super) peer: Peer,
    pub(super) far: Vec<RemoteBuffer>,
}

/// What was done, and how long each part of it took.
pub(super) struct Work {
    pub(super) batches: u64,
    pub(super) elapsed: Duration,
    pub(super) latency: Histogram<u64>,
}

impl Work {
    fn nothing() -> Result<Self> {
        Ok(Self { batches: 0, elapsed: Duration::ZERO, latency: new_histogram()? })
    }

    /// What another caller did meanwhile.
    fn add(&mut self, other: &Self) -> Result<()> {
        self.batches += other.batches;
        self.elapsed = self.elapsed.max(other.elapsed);
        self.latency.add(&other.latency).map_err(|error| Error::refused(error.to_string()))
    }
}

impl Run<'_> {
    /// Who asks for one path wants no figures of another.
    pub(super) fn check_path(&self) -> Result<()> {
        let asked = match self.options.path {
            Path::Host => "host",
            Path::Tcp => "tcp",
            Path::Rdma => "rdma",
            Path::Auto | Path::Local => return Ok(()),
        };
        let mut paths = self.segments.iter().map(|segment| segment.peer.path().label());
        match paths.find(|&taken| taken != asked) {
            None => Ok(()),
            Some(taken) => Err(Error::refused(format!(
                "the segment is reached over {taken}, not over {asked}: ask for --path auto, or \
                 start the target where {asked} leads to it"
            ))),
        }
    }

    /// Which way the segments are reached.
    pub(super) fn path(&self) -> &'static str {
        self.segments[0].peer.path().label()
    }

    /// Batches that take turns; each segment has its own.
    fn steps(&self) -> usize {
        self.options.walk.next_multiple_of(self.segments.len())
    }

    /// The requested shape fits into the buffers of both sides.
    pub(super) fn check(&self) -> Result<()> {
        let options = &self.options;
        let needed = options
            .block_size
            .checked_mul(options.batch_size)
            .and_then(|bytes| bytes.checked_mul(options.threads))
            .and_then(|bytes| bytes.checked_mul(self.steps()))
            .filter(|&bytes| bytes > 0)
            .ok_or_else(|| {
                Error::refused("block size, batch size, walk and threads are 1 or more")
            })?;
        let far = self.segments.iter().flat_map(|segment| &segment.far);
        let far = far.map(|buffer| buffer.len).min().unwrap_or(0);
        if needed > options.buffer_size || needed as u64 > far {
            return Err(Error::refused(format!(
                "{} of blocks at a time, but the buffers have {} here and {} at the target: \
                 lower block size, batch size, walk or threads, name fewer segments, or raise \
                 --buffer-size on both sides",
                size::show(needed),
                size::show(options.buffer_size),
                size::show(far as usize)
            )));
        }
        Ok(())
    }

    /// A caller's batches: their blocks lie as transfer_engine_bench lays them.
    fn prepare(&self, thread: usize, operation: Operation) -> Result<Vec<Prepared>> {
        (0..self.steps()).map(|step| self.prepare_one(thread, step, operation)).collect()
    }

    fn prepare_one(&self, thread: usize, step: usize, operation: Operation) -> Result<Prepared> {
        let places = self.blocks(thread, step).zip(self.far_blocks(thread, step));
        self.prepare_places(thread, step, places, operation)
    }

    /// A write of some of the first caller's blocks, to the same places.
    pub(super) fn prepare_slots(&self, slots: Range<usize>) -> Result<Prepared> {
        let blocks = slots.map(|block| self.block(0, 0, block));
        self.prepare_places(0, 0, blocks.map(|block| (block.clone(), block)), Operation::Write)
    }

    /// From ranges here to ranges there, or the other way round.
    fn prepare_places(
        &self,
        thread: usize,
        step: usize,
        places: impl Iterator<Item = (Range<usize>, Range<usize>)>,
        operation: Operation,
    ) -> Result<Prepared> {
        let near = &self.near[thread % self.near.len()];
        let Segment { peer, far } = &self.segments[step % self.segments.len()];
        let far = &far[thread % far.len()];
        let mut batch = Batch::new(peer);
        for (range, place) in places {
            let addr = far.addr + place.start as u64;
            match operation {
                Operation::Write => batch.write(&near.share(range)?, addr),
                Operation::Read => batch.read(near.lease(range)?, addr),
            };
        }
        self.engine.prepare(batch)
    }

    pub(super) fn measure(&self) -> Result<Report> {
        self.reported(|| self.call_all())
    }

    /// The report of some work, with the CPU time that it takes.
    pub(super) fn reported(&self, work: impl FnOnce() -> Result<Work>) -> Result<Report> {
        let (options, cpu) = (&self.options, cpu_seconds());
        let Work { batches, elapsed, latency } = work()?;
        Ok(Report {
            operation: if options.operation == Operation::Read { "read" } else { "write" },
            path: self.path(),
            idle: format!("{:?}", options.idle.map_or_else(Idle::default, Idle::from)),
            block_bytes: options.block_size,
            batch: options.batch_size,
            threads: options.threads,
            batches,
            elapsed,
            cpu_seconds: cpu_seconds() - cpu,
            latency,
            is_cut_short: self.segments.iter().any(|segment| !segment.peer.is_open()),
            verified: None,
        })
    }

    fn call_all(&self) -> Result<Work> {
        let threads = 0..self.options.threads;
        // Preparing isn't measured: it is done once, however often a batch is posted.
        let prepared = threads.map(|thread| self.prepare(thread, self.options.operation));
        let prepared = prepared.collect::<Result<Vec<_>>>()?;
        let (ended, works) = mpsc::channel();
        let (started, bar) = (Instant::now(), progress(&self.options));
        for (thread, prepared) in prepared.into_iter().enumerate() {
            self.start_caller(thread, prepared, ended.clone())?;
        }
        drop(ended);
        let mut all = Work::nothing()?;
        let (mut left, mut failed) = (self.options.threads, None);
        loop {
            match works.recv_timeout(PROGRESS_TICK) {
                Ok(work) => {
                    left -= 1;
                    failed = work.and_then(|work| all.add(&work)).err().or(failed);
                }
                Err(RecvTimeoutError::Timeout) => {
                    bar.set_position(started.elapsed().as_millis() as u64);
                }
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        bar.finish_and_clear();
        match failed {
            None if left == 0 => Ok(all),
            None => Err(Error::closed("a caller panicked")),
            Some(failed) => Err(failed),
        }
    }

    /// Starts one caller: a thread of its own, or a task on one of the shards.
    fn start_caller(
        &self,
        thread: usize,
        prepared: Vec<Prepared>,
        ended: mpsc::Sender<Result<Work>>,
    ) -> Result<()> {
        let limit = Duration::from_secs_f64(self.options.duration);
        let called = call(self.engine.clone(), prepared, limit);
        // Nobody waits for it any more where another failed to start.
        let call = async move { drop(ended.send(called.await)) };
        if !self.options.callers_on_shards {
            drop(std::thread::spawn(move || block_on(call)));
            return Ok(());
        }
        let runtime = self.engine.runtime();
        runtime.spawn_on(thread % runtime.shards(), move || call).map(drop)
    }

    /// Writes a pattern to every block of every caller and reads it back into cleared memory;
    /// none where it isn't asked for.
    pub(super) fn verify(&self) -> Result<Option<bool>> {
        if !self.options.verify {
            return Ok(None);
        }
        let mut is_equal = true;
        for thread in 0..self.options.threads {
            is_equal &= self.verify_by(thread, || self.post_all(thread, Operation::Write))?;
        }
        Ok(Some(is_equal))
    }

    /// Whether what somebody writes for a caller is what is read back.
    pub(super) fn verify_by(
        &self,
        thread: usize,
        write: impl FnOnce() -> Result<()>,
    ) -> Result<bool> {
        let round = rounds();
        self.fill(thread, |at| pattern(at + round))?;
        write()?;
        self.fill(thread, |_| 0)?;
        self.post_all(thread, Operation::Read)?;
        self.is_filled(thread, |at| pattern(at + round))
    }

    fn post_all(&self, thread: usize, operation: Operation) -> Result<()> {
        let prepared = self.prepare(thread, operation)?;
        for prepared in &prepared {
            block_on(self.engine.post(prepared))?;
        }
        Ok(())
    }

    /// Where the blocks of one batch of a caller lie.
    fn blocks(&self, thread: usize, step: usize) -> impl Iterator<Item = Range<usize>> + '_ {
        (0..self.options.batch_size).map(move |block| self.block(thread, step, block))
    }

    /// Where they lie at the segment: pages in an order of their own.
    fn far_blocks(&self, thread: usize, step: usize) -> impl Iterator<Item = Range<usize>> + '_ {
        let Options { batch_size, pages, .. } = self.options;
        let place = move |block| match pages {
            Some(_) => scattered(block, batch_size),
            None => block,
        };
        (0..batch_size).map(move |block| self.block(thread, step, place(block)))
    }

    fn block(&self, thread: usize, step: usize, block: usize) -> Range<usize> {
        let options = &self.options;
        let before = step * options.batch_size + block;
        let start = (before * options.threads + thread) * options.block_size;
        start..start + options.block_size
    }

    fn all_blocks(&self, thread: usize) -> impl Iterator<Item = Range<usize>> + '_ {
        (0..self.steps()).flat_map(move |step| self.blocks(thread, step))
    }

    fn fill(&self, thread: usize, byte: impl Fn(usize) -> u8) -> Result<()> {
        let near = &self.near[thread % self.near.len()];
        self.all_blocks(thread).try_for_each(|range| {
            let bytes: Vec<u8> = range.clone().map(&byte).collect();
            near.lease(range)?.copy_in(0, &bytes)
        })
    }

    fn is_filled(&self, thread: usize, byte: impl Fn(usize) -> u8) -> Result<bool> {
        let near = &self.near[thread % self.near.len()];
        for range in self.all_blocks(thread) {
            let mut bytes = vec![0; range.len()];
            near.share(range.clone())?.copy_out(0, &mut bytes)?;
            if !bytes.into_iter().eq(range.map(&byte)) {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// One caller's batches, one after the other, for so long.
async fn call(engine: Engine, prepared: Vec<Prepared>, limit: Duration) -> Result<Work> {
    let Work { mut batches, mut latency, .. } = Work::nothing()?;
    let started = Instant::now();
    for prepared in prepared.iter().cycle() {
        let posted = Instant::now();
        if let Err(failed) = engine.post(prepared).await {
            match failed.error().kind() {
                // Nothing of it was sent: what was measured so far stands.
                ErrorKind::Draining => break,
                _ => return Err(failed.into()),
            }
        }
        latency.saturating_record(posted.elapsed().as_nanos() as u64);
        batches += 1;
        if started.elapsed() >= limit {
            break;
        }
    }
    Ok(Work { batches, elapsed: started.elapsed(), latency })
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
pub(super) fn new_histogram() -> Result<Histogram<u64>> {
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

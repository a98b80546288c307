//! Which path a transfer would take, and why: the candidates, what speaks against each, what it
//! is expected to cost and what it has cost.

use std::fmt;
use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use crate::engine::Inner;
use crate::limits::{CALIBRATION_BYTES, HOST_QUESTIONS_MAX};
use crate::memory::Region;
use crate::path::host::{Asked, Known, Neighbour, Offer};
use crate::peer::{Peer, RouteKind, Vicinity};
use crate::post::host::refusal;
use crate::{PathKind, RemoteBuffer};

/// How bytes between a region and a peer travel, and why; made by [`crate::Engine::explain`].
/// Its `Display` is a table for people.
#[derive(Debug, Clone)]
pub struct Explanation {
    /// The peer's segment name.
    pub peer: String,
    /// For writes from the region to the peer.
    pub write: Vec<Candidate>,
    /// For reads from the peer's published ranges into the region.
    pub read: Vec<Candidate>,
}

/// A path that a transfer could take.
#[derive(Debug, Clone, PartialEq)]
pub struct Candidate {
    /// The path.
    pub path: PathKind,
    /// By what means it moves bytes.
    pub means: Means,
    /// Whether it is taken.
    pub verdict: Verdict,
    /// Why it is or isn't usable, in words.
    pub why: String,
    /// What it should reach for large copies, in GB/s: this machine's memory speed, measured once,
    /// times what the means have been measured to lose against it. 0 where it is not known.
    pub estimated_gb_per_s: f64,
    /// What transfers to this peer have reached on this path lately, in GB/s.
    pub observed_gb_per_s: Option<f64>,
}

/// By what means bytes are moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Means {
    /// A copy inside the process.
    Copy,
    /// A copy out of the other process's memory, mapped read-only.
    Mapped,
    /// A copy by a GPU, one end of which is in its memory or another GPU's.
    Gpu,
    /// `process_vm_readv` of the other process's memory.
    ProcessVm,
    /// A TCP connection.
    Socket,
    /// RDMA reads and writes by the NICs.
    Verbs,
}

/// What becomes of a candidate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Transfers take it.
    Chosen,
    /// It would work, but another is better.
    Usable,
    /// It does not work.
    Unusable,
}

impl Candidate {
    /// One end is a GPU's: where memory is copied, it makes the copy; how fast was not measured.
    fn made_by_gpu(&mut self) {
        if matches!(self.means, Means::Copy | Means::Mapped) {
            (self.means, self.estimated_gb_per_s) = (Means::Gpu, 0.0);
        }
    }
}

impl fmt::Display for Means {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Copy => "copy",
            Self::Mapped => "mapped memory",
            Self::Gpu => "GPU copy",
            Self::ProcessVm => "process_vm_readv",
            Self::Socket => "socket",
            Self::Verbs => "verbs",
        })
    }
}

impl Means {
    /// What share of a plain copy's speed it reaches, for large copies on loopback
    /// (`cargo xtask compare`): the kernel pins pages one by one, and a socket copies twice.
    fn share(self) -> f64 {
        match self {
            Self::Copy | Self::Mapped => 1.0,
            Self::ProcessVm => 0.5,
            Self::Socket => 0.3,
            // What NICs and GPUs reach is no share of it.
            Self::Verbs | Self::Gpu => 0.0,
        }
    }
}

impl Explanation {
    /// The path that writes take.
    pub fn write_path(&self) -> Option<&Candidate> {
        chosen(&self.write)
    }

    /// The path that reads take; of several the best.
    pub fn read_path(&self) -> Option<&Candidate> {
        chosen(&self.read)
    }
}

fn chosen(candidates: &[Candidate]) -> Option<&Candidate> {
    candidates.iter().find(|candidate| candidate.verdict == Verdict::Chosen)
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (what, rows) in [("writes to", &self.write), ("reads from", &self.read)] {
            writeln!(f, "{what} {}", self.peer)?;
            for row in rows {
                let mark = match row.verdict {
                    Verdict::Chosen => "->",
                    Verdict::Usable => "  ",
                    Verdict::Unusable => " x",
                };
                let observed = match row.observed_gb_per_s {
                    Some(rate) => format!("{rate:.1}"),
                    None => "-".to_owned(),
                };
                let Candidate { path, means, estimated_gb_per_s: estimated, why, .. } = row;
                let estimated = match *estimated {
                    0.0 => "?".to_owned(),
                    rate => format!("{rate:.1}"),
                };
                let path = path.label();
                writeln!(
                    f,
                    "{mark} {path:<6} {means:<17} {estimated:>5} GB/s estimated {observed:>5} \
                     observed  {why}"
                )?;
            }
        }
        Ok(())
    }
}

/// What transfers to a peer have cost, by path.
#[derive(Debug, Default)]
pub(crate) struct Observed {
    /// Nanoseconds per MiB, smoothed; 0 where there was none.
    paths: [AtomicU64; 4],
}

impl Observed {
    /// A transfer of so many bytes took so long. The last few count most (an eighth each).
    pub(crate) fn note(&self, path: PathKind, bytes: usize, took: Duration) {
        if bytes < CALIBRATION_BYTES / 16 {
            return; // latency, not speed
        }
        let now = (took.as_nanos() as u64).saturating_mul(1 << 20) / bytes as u64;
        let cell = &self.paths[slot(path)];
        let last = cell.load(Ordering::Relaxed);
        let smooth = if last == 0 { now } else { last - last / 8 + now / 8 };
        cell.store(smooth.max(1), Ordering::Relaxed);
    }

    fn gb_per_s(&self, path: PathKind) -> Option<f64> {
        let ns = self.paths[slot(path)].load(Ordering::Relaxed);
        (ns > 0).then(|| (1 << 20) as f64 / ns as f64)
    }
}

fn slot(path: PathKind) -> usize {
    match path {
        PathKind::Local => 0,
        PathKind::Host => 1,
        PathKind::Tcp => 2,
        PathKind::Rdma => 3,
    }
}

/// The speed of a large copy here, in GB/s, measured at the first question.
fn memory_gb_per_s() -> f64 {
    static SPEED: OnceLock<f64> = OnceLock::new();
    *SPEED.get_or_init(|| {
        let source = vec![1u8; CALIBRATION_BYTES];
        let mut target = vec![0u8; CALIBRATION_BYTES];
        let mut copy = || {
            let since = Instant::now();
            target.copy_from_slice(black_box(&source));
            black_box(&mut target);
            since.elapsed()
        };
        copy();
        let best = (0..3).map(|_| copy()).min().unwrap_or_default();
        CALIBRATION_BYTES as f64 / best.as_nanos().max(1) as f64
    })
}

/// What speaks for or against the same-host path's two means, and whether the better one works.
struct Finding {
    mapped: (bool, String),
    process: (bool, String),
}

impl Finding {
    fn neither(why: &str) -> Self {
        Self { mapped: (false, why.to_owned()), process: (false, why.to_owned()) }
    }
}

impl Inner {
    pub(crate) async fn explain(&self, peer: &Peer, region: &Region) -> Explanation {
        let link = &peer.inner.link;
        let is_self = matches!(link.route.kind, RouteKind::Local);
        let (write, read) = match link.vicinity() {
            _ if is_self => {
                let why = "the peer is this engine: a copy needs no help";
                (Finding::neither(why), Finding::neither(why))
            }
            Vicinity::Elsewhere(why) => (Finding::neither(&why), Finding::neither(&why)),
            Vicinity::Here(neighbour) if neighbour.is_over() => {
                let why = "the session ended: open the peer again";
                (Finding::neither(why), Finding::neither(why))
            }
            Vicinity::Here(neighbour) => {
                let write = offered(&neighbour, region).await;
                (write, readable(&neighbour, peer.buffers()).await)
            }
        };
        let rails = match link.no_reach() {
            _ if is_self => Err("the peer is this engine".into()),
            Some(why) => Err(why),
            None => Ok(self.rdma_gb_per_s()),
        };
        let socket = match self.encrypts_tcp() {
            true => "always there; encrypted by the kernel, which the estimate leaves out",
            false => "always there",
        };
        let has_keys = || self.rdma().is_some_and(|rdma| rdma.has(region.memory()));
        let rails = match region.is_on_gpu() && !has_keys() {
            true => Err("no NIC reaches this GPU's memory: it goes by way of the host's".into()),
            false => rails,
        };
        let candidates = |finding| {
            let mut rows = candidates(is_self, finding, &rails, socket, &link.observed);
            if region.is_on_gpu() {
                rows.iter_mut().for_each(Candidate::made_by_gpu);
            }
            rows
        };
        let (write, read) = (candidates(write), candidates(read));
        Explanation { peer: peer.name().to_owned(), write, read }
    }
}

/// Can the peer read this region?
async fn offered(neighbour: &Neighbour, region: &Region) -> Finding {
    let memory = region.memory();
    if neighbour.offer(memory.id()).is_none() {
        neighbour.ask(Asked::Offer(memory.clone())).await;
    }
    let no_need = match memory.device() {
        Some(_) => "the region is a GPU's, which is mapped".to_owned(),
        None => "the region is a memfd, which is mapped".to_owned(),
    };
    let foreign = "the region is foreign memory: allocate it instead".to_owned();
    let reads = "the peer copies it from here".to_owned();
    match neighbour.offer(memory.id()) {
        Some(Offer::Taken { is_mapped: true }) => {
            Finding { mapped: (true, reads), process: (false, no_need) }
        }
        Some(Offer::Taken { is_mapped: false }) => {
            Finding { mapped: (false, foreign), process: (true, reads) }
        }
        Some(Offer::Refused(why)) if !memory.is_foreign() => {
            Finding { mapped: (false, why.to_string()), process: (false, no_need) }
        }
        Some(Offer::Refused(why)) => {
            Finding { mapped: (false, foreign), process: (false, why.to_string()) }
        }
        None => Finding::neither("the peer did not say whether it can read the region"),
    }
}

/// Can we read the peer's ranges?
async fn readable(neighbour: &Neighbour, buffers: &[RemoteBuffer]) -> Finding {
    let (mut mapped, mut process, mut refusals) = (0, 0, Vec::new());
    let buffers = &buffers[..buffers.len().min(HOST_QUESTIONS_MAX)];
    for buffer in buffers {
        let known = || neighbour.readable.known(buffer.addr, buffer.len);
        let ask = Asked::Map { addr: buffer.addr, len: buffer.len, key: None };
        if known().is_none() && !neighbour.ask(ask).await {
            refusals.push("the peer does not say whether they can be read".into());
            break;
        }
        match known() {
            Some(Known::Readable { region, .. }) if region.is_mapped() => mapped += 1,
            Some(Known::Readable { .. }) => process += 1,
            known => refusals.extend(refusal(known)),
        }
    }
    let of = buffers.len();
    let why: Arc<str> = refusals.first().cloned().unwrap_or_else(|| "there are none".into());
    let row = |count: usize| match count {
        0 => (false, format!("none of the peer's {of} ranges ({why})")),
        _ if count == of => (true, format!("all {of} ranges of the peer's")),
        _ => (true, format!("{count} of the peer's {of} ranges")),
    };
    Finding { mapped: row(mapped), process: row(process) }
}

/// `rails` is what the NICs reach together, in GB/s, or why they don't reach the peer; `socket` is
/// what is to be said of TCP.
fn candidates(
    is_self: bool,
    finding: Finding,
    rails: &Result<f64, Arc<str>>,
    socket: &str,
    observed: &Observed,
) -> Vec<Candidate> {
    let copy = match is_self {
        true => "the peer is this engine",
        false => "the peer is another engine",
    };
    let rows = [
        (PathKind::Local, Means::Copy, (is_self, copy.to_owned())),
        (PathKind::Host, Means::Mapped, finding.mapped),
        (PathKind::Host, Means::ProcessVm, finding.process),
        (
            PathKind::Rdma,
            Means::Verbs,
            match rails {
                Ok(_) => (true, "NICs of both sides".to_owned()),
                Err(why) => (false, why.to_string()),
            },
        ),
        (PathKind::Tcp, Means::Socket, (!is_self, socket.to_owned())),
    ];
    let mut is_first = true;
    let candidate = |(path, means, (is_usable, why)): (PathKind, Means, (bool, String))| {
        let verdict = match is_usable {
            false => Verdict::Unusable,
            true if std::mem::take(&mut is_first) => Verdict::Chosen,
            true => Verdict::Usable,
        };
        let estimated_gb_per_s = match (means, rails) {
            (Means::Verbs, Ok(rate)) => *rate,
            (Means::Verbs, Err(_)) => 0.0,
            _ => memory_gb_per_s() * means.share(),
        };
        let observed_gb_per_s = observed.gb_per_s(path).filter(|_| is_usable);
        Candidate { path, means, verdict, why, estimated_gb_per_s, observed_gb_per_s }
    };
    rows.into_iter().map(candidate).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_usable_path_is_chosen() {
        let finding = Finding { mapped: (false, "a".into()), process: (true, "b".into()) };
        let observed = Observed::default();
        let verdicts: Vec<_> = candidates(false, finding, &Err("c".into()), "d", &observed)
            .into_iter()
            .map(|candidate| candidate.verdict)
            .collect();
        use Verdict::{Chosen, Unusable, Usable};
        assert_eq!(verdicts, [Unusable, Unusable, Chosen, Unusable, Usable]);
    }

    #[test]
    fn what_was_observed_is_smoothed_and_latency_is_not_speed() {
        let observed = Observed::default();
        observed.note(PathKind::Tcp, 64, Duration::from_secs(1));
        assert_eq!(observed.gb_per_s(PathKind::Tcp), None);
        for _ in 0..100 {
            observed.note(PathKind::Tcp, 1 << 30, Duration::from_millis(1024));
        }
        let rate = observed.gb_per_s(PathKind::Tcp).unwrap();
        assert!((1.0..1.1).contains(&rate), "{rate}");
    }
}

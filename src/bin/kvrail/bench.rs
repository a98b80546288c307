//! `kvrail bench`: one process serves memory, another reads or writes it, as fast as it goes.

mod cells;
mod pages;
mod replay;
mod run;
mod serve;

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use futures_lite::future::block_on;
use kvrail::prometheus::{Exporter, Served};
use kvrail::runtime::Driver;
use kvrail::topology::{self, Binding};
use kvrail::{
    Access, Config, Devices, Engine, Error, Eternal, IdlePolicy, Location, Metadata, NumaPolicy,
    Region, RemoteBuffer, Result,
};

use self::pages::Pages;
use self::run::{Run, Segment};
use crate::security::Security;
use crate::size;

/// Foreign memory is faulted in by copies of so much: a few hundred for a gigabyte.
const FILL_BYTES: usize = 4 << 20;

/// Longer than most transfers of the bench take, so that no caller sleeps.
const CALLER_SPIN_US: u64 = 1000;

#[derive(Args, Clone)]
pub struct Options {
    /// Whether to serve memory or to transfer.
    #[arg(long, value_enum)]
    mode: Mode,
    /// Settings of the engine from a file of TOML or JSON; other options go before it.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// P2PHANDSHAKE (the default), or a metadata service, as in http://127.0.0.1:8080/metadata,
    /// etcd://10.0.0.1:2379;10.0.0.2:2379 or redis://10.0.0.1:6379. Redis takes its user, password
    /// and database from MC_REDIS_USERNAME, MC_REDIS_PASSWORD and MC_REDIS_DB_INDEX.
    #[arg(long, alias = "metadata_server")]
    metadata_server: Option<String>,
    /// P2P: this host's address, 127.0.0.1 by default; otherwise the segment name of this process.
    #[arg(long, alias = "local_server_name")]
    local_server_name: Option<String>,
    /// The target's segment name; the initiator needs it unless the path is local. Batches take
    /// turns among several, separated by commas.
    #[arg(long, alias = "segment_id", value_delimiter = ',')]
    segment_id: Vec<String>,
    /// The protocol to serve: rdma where there are NICs for it (auto), or one of the two. Peers
    /// without RDMA come by TCP all the same.
    #[arg(long, value_enum)]
    protocol: Option<Protocol>,
    /// RDMA devices, such as mlx5_0,mlx5_1; all of the host's by default.
    #[arg(long, alias = "device_name", value_delimiter = ',')]
    device_name: Vec<String>,
    /// Entry of the RDMA ports' address tables; the best routable one by default.
    #[arg(long)]
    gid_index: Option<u8>,
    /// What the initiator does.
    #[arg(long, value_enum, default_value = "read")]
    operation: Operation,
    /// Bytes of one request.
    #[arg(long, alias = "block_size", default_value = "64K", value_parser = size::parse)]
    block_size: usize,
    /// Requests of one batch.
    #[arg(long, alias = "batch_size", default_value_t = 128)]
    batch_size: usize,
    /// Pages of one batch and their size, as in 960x12K, in place of the two above: at the segment
    /// they lie in another order than here, as a cache's pages do.
    #[arg(long, value_parser = pages::parse)]
    pages: Option<Pages>,
    /// Batches that lie side by side and take turns; 1 uses the same memory again and again.
    #[arg(long, default_value_t = 1)]
    walk: usize,
    /// Callers at a time.
    #[arg(long, default_value_t = 12)]
    threads: usize,
    /// Callers are tasks on this process's shards instead of threads.
    #[arg(long)]
    callers_on_shards: bool,
    /// Seconds to run.
    #[arg(long, default_value_t = 10.0, value_parser = seconds)]
    duration: f64,
    /// Bytes of each buffer; one a NUMA node.
    #[arg(long, alias = "buffer_size", default_value = "1G", value_parser = size::parse)]
    buffer_size: usize,
    /// Which way to the segment: the best, host (same host, no network), tcp, rdma; or local,
    /// inside this process.
    #[arg(long, value_enum, default_value = "auto")]
    path: Path,
    /// Whose memory: regions that the engine allocates, or foreign memory that it is told of.
    #[arg(long, value_enum, default_value = "region")]
    memory: Memory,
    /// Where the memory lives: cpu (one buffer a NUMA node), cpu:0 (on that node) or cuda:0 (on
    /// that GPU).
    #[arg(long, default_value = "cpu")]
    location: Location,
    /// Multiprocessors of a GPU that one launch of copies takes at most, by default 16.
    #[arg(long)]
    sm_budget: Option<u32>,
    /// What idle shards do: spin, event, or hybrid (the default), which polls for 50 us before it
    /// sleeps.
    #[arg(long)]
    idle: Option<IdlePolicy>,
    /// How many microseconds a caller looks for the end of a same-host transfer itself before it
    /// sleeps, by default 1000; the peers' benches look without end
    #[arg(long)]
    caller_spin: Option<u64>,
    /// What the shards wait on: auto (the default), uring or epoll.
    #[arg(long)]
    driver: Option<Driver>,
    /// Shards of this process; by default half of its CPUs, 8 at most.
    #[arg(long)]
    shards: Option<usize>,
    /// Writes known bytes and reads them back before and after measuring.
    #[arg(long)]
    verify: bool,
    /// Target: seconds that peers get, on SIGTERM or SIGINT, to end what they have under way.
    #[arg(long, default_value_t = 30.0, value_parser = seconds)]
    drain: f64,
    /// Serves metrics for Prometheus at /metrics, and the engine's health at /healthz, here; such
    /// as 127.0.0.1:9400.
    #[arg(long, value_name = "ADDRESS")]
    metrics: Option<String>,
    /// Prints the report as one line of JSON.
    #[arg(long)]
    json: bool,
    /// Measures what each line of standard input asks for, OPERATION BLOCK BATCH SECONDS and
    /// perhaps WALK, and answers each with a line of JSON; the line `verify` writes and reads back
    /// once more, and `replay BLOCK MS:BLOCKS,MS:BLOCKS,...` writes so many blocks at such times
    /// (`verify-replay`: and reads them back).
    #[arg(long)]
    cells: bool,
    #[command(flatten)]
    security: Security,
}

#[derive(Clone, Copy, ValueEnum)]
enum Mode {
    Target,
    Initiator,
}

#[derive(Clone, Copy, ValueEnum)]
enum Protocol {
    Auto,
    Tcp,
    Rdma,
}

impl From<Protocol> for kvrail::Protocol {
    fn from(protocol: Protocol) -> Self {
        match protocol {
            Protocol::Auto => Self::Auto,
            Protocol::Tcp => Self::Tcp,
            Protocol::Rdma => Self::Rdma,
        }
    }
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
    Rdma,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Memory {
    Region,
    Foreign,
}

pub fn run(options: &Options) -> Result<()> {
    let config = settings(options)?;
    let options = &Options { idle: config.idle, ..options.clone().with_pages() };
    let exporter = options.metrics.as_ref().map(|_| Exporter::install()).transpose()?;
    let metadata = config.metadata_server.as_deref().map_or(Ok(Metadata::P2p), str::parse)?;
    let metadata = metadata.with_variables(|name| std::env::var(name).ok())?;
    let mut builder = options.security.apply(config.builder()?.metadata(metadata));
    if let Some(budget) = options.sm_budget {
        builder = builder.sm_budget(budget);
    }
    let engine = builder.start()?;
    let _served = match (&options.metrics, exporter) {
        (Some(address), Some(exporter)) => Some(announced(exporter.serve(address, &engine)?)),
        _ => None,
    };
    match options.mode {
        Mode::Target => serve::run(&engine, options),
        Mode::Initiator => initiate(&engine, options),
    }
}

/// Says where metrics are, beside the answers on standard output.
fn announced(served: Served) -> Served {
    eprintln!("metrics at http://{}/metrics", served.address());
    served
}

/// The engine's settings: what the options say, else the file. It doesn't take the paths which
/// `--path` rules out, and a peer of this host may reach its foreign memory.
fn settings(options: &Options) -> Result<Config> {
    let mut config = match &options.config {
        Some(file) => Config::from_file(file)?,
        None => Config::default(),
    };
    let protocol = options.protocol.map(Into::into);
    let (by_tcp, is_foreign) = (options.path == Path::Tcp, options.memory == Memory::Foreign);
    let devices = Some(&options.device_name).filter(|names| !names.is_empty());
    overrule(&mut config.local_hostname, options.local_server_name.clone());
    overrule(&mut config.metadata_server, options.metadata_server.clone());
    overrule(&mut config.protocol, if by_tcp { Some(kvrail::Protocol::Tcp) } else { protocol });
    overrule(&mut config.device_name, devices.cloned().map(Devices::List));
    overrule(&mut config.gid_index, options.gid_index);
    overrule(&mut config.shards, options.shards);
    overrule(&mut config.idle, options.idle);
    overrule(&mut config.driver, options.driver);
    overrule(&mut config.caller_spin_us, options.caller_spin);
    overrule(&mut config.peers_may_trace, is_foreign.then_some(true));
    let to_network = matches!(options.path, Path::Tcp | Path::Rdma);
    overrule(&mut config.same_host, to_network.then_some(false));
    config.caller_spin_us.get_or_insert(CALLER_SPIN_US);
    Ok(config)
}

fn overrule<T>(setting: &mut Option<T>, by: Option<T>) {
    if by.is_some() {
        *setting = by;
    }
}

impl Options {
    /// Pages are blocks of a batch.
    fn with_pages(self) -> Self {
        match self.pages {
            Some(Pages { count, bytes }) => Self { batch_size: count, block_size: bytes, ..self },
            None => self,
        }
    }
}

/// One buffer a NUMA node, as transfer_engine_bench expects; one where nodes can't be chosen, or
/// where it was said which.
fn buffers(engine: &Engine, options: &Options) -> Result<Vec<Region>> {
    let is_said = options.location != Location::Cpu(None);
    if is_said && options.memory == Memory::Region {
        let buffer = engine.allocate(options.buffer_size, options.location, Access::READ_WRITE);
        return Ok(vec![buffer?]);
    }
    let facts = topology::Memory::here();
    let bound = facts.usable().map(|node| NumaPolicy::Bind(vec![node.id]));
    let policies = match facts.binding {
        Binding::Permitted if facts.usable().count() > 1 => bound.collect(),
        _ => vec![NumaPolicy::Any],
    };
    let len = options.buffer_size;
    let buffer = |policy| match options.memory {
        Memory::Region => engine.allocate_with(len, &policy, Access::READ_WRITE),
        Memory::Foreign => foreign(engine, len),
    };
    policies.into_iter().map(buffer).collect()
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

fn initiate(engine: &Engine, options: &Options) -> Result<()> {
    let near = buffers(engine, options)?;
    let segments = match options.path {
        Path::Local => vec![local(engine, options)?],
        _ => open(engine, &options.segment_id)?,
    };
    let run = Run { engine, options: options.clone(), segments, near };
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

fn open(engine: &Engine, names: &[String]) -> Result<Vec<Segment>> {
    if names.is_empty() {
        return Err(Error::refused("name the target by --segment-id, or choose --path local"));
    }
    let open = |name: &String| {
        let peer = block_on(engine.open(name))?;
        let far = peer.buffers().to_vec();
        Ok(Segment { peer, far })
    };
    names.iter().map(open).collect()
}

/// With `--path local`, this engine's own memory is the far side.
fn local(engine: &Engine, options: &Options) -> Result<Segment> {
    let far = buffers(engine, options)?
        .iter()
        .map(|region| RemoteBuffer {
            name: engine.name().to_owned(),
            addr: region.addr(),
            len: region.len() as u64,
        })
        .collect();
    Ok(Segment { peer: engine.local(), far })
}

/// Reads a time to run: more than nothing, and at most a day.
fn seconds(text: &str) -> Result<f64, String> {
    const DAY_S: f64 = 86_400.0;
    let read = text.parse().ok().filter(|&seconds: &f64| seconds > 0.0 && seconds <= DAY_S);
    read.ok_or_else(|| format!("{text:?} is no time to run: write seconds, such as 10 or 0.5"))
}

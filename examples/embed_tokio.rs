//! kvrail inside a tokio service: an actor on a shard owns the state, handlers on tokio call it,
//! and texts travel between two services as memory, without either one's tokio touching a byte.
//!
//! Start two, `cargo run --example embed_tokio` and `… -- 127.0.0.1:7778`, then
//! `printf 'put hello\n' | nc -q1 127.0.0.1 7777` answers `SEGMENT ADDRESS LENGTH`, and
//! `printf 'pull SEGMENT ADDRESS LENGTH\n' | nc -q1 127.0.0.1 7778` answers `hello`.

use kvrail::runtime::{Actor, Address, Context};
use kvrail::{Access, Batch, Block, BlockPool, Engine, Error, Lease, Location, Result};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

const BLOCK_BYTES: usize = 4096;
const BLOCKS: usize = 1024;

/// The texts that this service keeps: state of one shard, so no lock.
struct Texts {
    pool: BlockPool,
    kept: Vec<Block>,
}

impl Actor for Texts {
    type Message = String;
    /// Where a peer finds the text.
    type Reply = Result<(u64, usize)>;

    async fn handle(&mut self, text: String, _: &Context<Self>) -> Self::Reply {
        let block = self.pool.take()?;
        block.lease()?.copy_in(0, text.as_bytes())?;
        let found = (block.addr(), text.len());
        self.kept.push(block);
        Ok(found)
    }
}

/// What every handler needs.
#[derive(Clone)]
struct Service {
    engine: Engine,
    texts: Address<Texts>,
    inbound: BlockPool,
}

impl Service {
    fn start() -> Result<Self> {
        let engine = Engine::builder().host("127.0.0.1").start()?;
        let pool = |access| {
            let region = engine.allocate(BLOCKS * BLOCK_BYTES, Location::Cpu(None), access)?;
            BlockPool::new(region, BLOCK_BYTES)
        };
        let texts = Texts { pool: pool(Access::READ)?, kept: Vec::new() };
        let inbound = pool(Access::LOCAL)?;
        let texts = engine.runtime().spawn_actor(0, texts)?;
        Ok(Self { engine, texts, inbound })
    }

    async fn answer(&self, line: &str) -> Result<String> {
        let words: Vec<&str> = line.split(' ').collect();
        match words.as_slice() {
            ["put", ..] => {
                let text = line["put".len()..].trim_start().to_owned();
                let (addr, len) = self.texts.call(text).await??;
                Ok(format!("{} {addr} {len}", self.engine.name()))
            }
            ["pull", segment, addr, len] => match (addr.parse(), len.parse()) {
                (Ok(addr), Ok(len)) => self.pull(segment, addr, len).await,
                _ => Err(Error::refused("an address and a length are numbers")),
            },
            _ => Err(Error::refused("say: put TEXT, or pull SEGMENT ADDRESS LENGTH")),
        }
    }

    async fn pull(&self, segment: &str, addr: u64, len: usize) -> Result<String> {
        let peer = self.engine.open(segment).await?;
        let block = self.inbound.take()?;
        let (target, _unused) = block.lease()?.split_at(len)?;
        let mut batch = Batch::new(&peer);
        batch.read(target, addr);
        let leases = self.engine.transfer(batch).await?.into_leases();
        let mut bytes = vec![0; len];
        let lease = leases.into_iter().find_map(Lease::into_exclusive);
        lease.map_or(Ok(()), |lease| lease.copy_out(0, &mut bytes))?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    async fn serve(self, mut stream: TcpStream) {
        let (reader, mut writer) = stream.split();
        let mut lines = BufReader::new(reader).lines();
        while let Ok(Some(line)) = lines.next_line().await {
            let answer = self.answer(&line).await.unwrap_or_else(|error| error.to_string());
            if writer.write_all(format!("{answer}\n").as_bytes()).await.is_err() {
                return;
            }
        }
    }
}

#[tokio::main]
async fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:7777".into());
    let service = Service::start()?;
    let listener = TcpListener::bind(&address).await?;
    println!("serving on {address} as segment {}", service.engine.name());
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                tokio::spawn(service.clone().serve(accepted?.0));
            }
            signal = tokio::signal::ctrl_c() => {
                signal?;
                break;
            }
        }
    }
    service.engine.stop().await;
    Ok(())
}

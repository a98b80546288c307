//! One process of `cargo xtask chaos`: it owns memory and reaches into that of its peers, as it is
//! told by lines of JSON on standard input, and looks at every byte.
//!
//! - `orders`: what it is told
//! - `pattern`: what every byte of a block says: whose it is, which, and of which tenancy
//! - `owner` `tenancy`: memory for peers, what must be in it, and who is told of it
//! - `requester` `ending`: writes and reads, and how they end
//! - `usage`: what the process holds
//!
//! `chaos_agent registry` is the metadata server at which the others find each other.

mod ending;
mod orders;
mod owner;
mod pattern;
mod requester;
mod tenancy;
mod usage;

use std::io::{BufRead, Write};
use std::sync::Arc;

use clap::Parser;
use kvrail::metadata::server::{MetadataServer, ServerLimits};
use kvrail::runtime::{Driver, Shards};
use kvrail::{Engine, Metadata, Protocol};
use serde_json::{Value, json};

use crate::orders::{Fault, Job, Order, Verdict};
use crate::owner::Owner;
use crate::pattern::Author;
use crate::requester::Requester;

#[derive(Parser)]
#[command(about = "An agent of `cargo xtask chaos`")]
enum Arguments {
    /// Owns memory and reaches into that of others
    Play(Play),
    /// Tells engines where the others are
    Registry,
}

#[derive(clap::Args)]
struct Play {
    #[arg(long)]
    name: String,
    /// Its number among the agents, in every word that it writes
    #[arg(long)]
    id: u8,
    /// Which process of that name it is
    #[arg(long)]
    incarnation: u8,
    #[arg(long)]
    registry: Metadata,
    /// The host to publish; the listeners are at 127.0.0.1
    #[arg(long)]
    advertise: String,
    /// Leave shared memory aside
    #[arg(long)]
    network: bool,
    /// RDMA, by these devices
    #[arg(long, value_delimiter = ',')]
    device_name: Vec<String>,
    /// Wait on epoll instead of io_uring
    #[arg(long)]
    epoll: bool,
}

fn main() -> Result<(), Fault> {
    match Arguments::parse() {
        Arguments::Registry => registry(),
        Arguments::Play(play) => {
            let mut runtime = tokio::runtime::Builder::new_multi_thread();
            runtime.worker_threads(2).enable_all().build()?.block_on(run(play))
        }
    }
}

fn registry() -> Result<(), Fault> {
    let server = MetadataServer::start("127.0.0.1:0", ServerLimits::default())?;
    println!("{}", json!({ "ready": server.url() }));
    // Nobody says anything; the end of the input is the end of the run.
    std::io::stdin().lines().for_each(drop);
    Ok(())
}

struct Agent {
    engine: Engine,
    owner: Owner,
    requester: Requester,
}

async fn run(play: Play) -> Result<(), Fault> {
    let engine = engine(&play)?;
    let author = Author::new(play.id, play.incarnation);
    let owner = Owner::new(&engine, author)?;
    let requester = Requester::new(&engine, author)?;
    let agent = Arc::new(Agent { engine, owner, requester });
    let (says, said) = std::sync::mpsc::channel::<Value>();
    // Whoever reads may be slow; nothing here waits for it.
    std::thread::spawn(move || {
        let mut out = std::io::stdout().lock();
        said.into_iter().try_for_each(|line| writeln!(out, "{line}").and_then(|()| out.flush()))
    });
    let watching = tokio::spawn(watch(agent.clone(), says.clone()));
    let _ = says.send(json!({ "ready": agent.owner.regions() }));
    let mut jobs = lines();
    while let Some(line) = jobs.recv().await {
        let Job { id, order } = serde_json::from_str(&line)?;
        let (agent, says) = (agent.clone(), says.clone());
        tokio::spawn(async move {
            let answer = answer(agent.obey(order).await);
            let _ = says.send(json!({ "id": id, "answer": answer }));
        });
    }
    watching.abort();
    Ok(())
}

fn engine(play: &Play) -> kvrail::Result<Engine> {
    let driver = if play.epoll { Driver::Epoll } else { Driver::Auto };
    let builder = match play.device_name.is_empty() {
        true => Engine::builder(),
        false => Engine::builder().protocol(Protocol::Rdma).devices(&play.device_name),
    };
    builder
        .name(&play.name)
        .metadata(play.registry.clone())
        .advertise(&play.advertise)
        .bind([127, 0, 0, 1].into())
        .shards(Shards::Count(2))
        .driver(driver)
        .same_host(!play.network)
        .progress_deadline(orders::PROGRESS)
        .start()
}

/// What comes on standard input, which only a thread can wait for.
fn lines() -> tokio::sync::mpsc::UnboundedReceiver<String> {
    let (give, take) = tokio::sync::mpsc::unbounded_channel();
    std::thread::spawn(move || {
        let lines = std::io::stdin().lock().lines().map_while(Result::ok);
        lines.into_iter().try_for_each(|line| give.send(line).ok())
    });
    take
}

impl Agent {
    async fn obey(&self, order: Order) -> Verdict {
        match order {
            Order::Offer { region, count, write } => self.owner.offer(region, count, write),
            Order::Settle { region, epoch, blocks, revoke } => {
                self.owner.settle(region, epoch, &blocks, revoke).await
            }
            Order::Renew { region } => self.owner.renew(region).await,
            Order::Transfer(transfer) => self.requester.transfer(transfer).await,
            Order::Forget => {
                self.requester.forget();
                self.owner.bury()
            }
            Order::Check => self.owner.check_all(),
            Order::Usage => Ok(json!({
                "held": usage::held()?,
                "leases": self.requester.in_flight(),
                "blocks": self.owner.in_flight(),
                "counters": self.owner.counters(),
            })),
            Order::Stop => {
                self.engine.stop().await;
                Ok(Value::Null)
            }
        }
    }
}

/// Looks at all memory again and again, block by block: what is wrong is said at once.
async fn watch(agent: Arc<Agent>, says: std::sync::mpsc::Sender<Value>) {
    loop {
        for block in 0..agent.owner.blocks() {
            if let Err(fault) = agent.owner.check(block) {
                let _ = says.send(json!({ "wrong": fault.to_string() }));
                return;
            }
            tokio::time::sleep(orders::GLANCE).await;
        }
    }
}

fn answer(verdict: Verdict) -> Value {
    match verdict {
        Ok(value) => json!({ "ok": value }),
        Err(Fault::Wrong(what)) => json!({ "wrong": what }),
        Err(Fault::Other(what)) => json!({ "failed": what }),
    }
}

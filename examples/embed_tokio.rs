//! kvrail's runtime inside a tokio service: an actor owns the state, handlers on tokio call it, and
//! heavy work runs on a shard instead of a tokio worker.
//!
//! `cargo run --example embed_tokio`, then
//! `printf 'put 7 hello\nget 7\nsum 7\n' | nc 127.0.0.1 7777`

use std::collections::HashMap;
use std::sync::Arc;

use kvrail::runtime::{Actor, Address, Context, Runtime, Shards};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

/// Blocks by their number: state of one shard, so no lock.
#[derive(Default)]
struct Blocks(HashMap<u64, Arc<str>>);

enum Ask {
    Put(u64, Arc<str>),
    Get(u64),
}

impl Actor for Blocks {
    type Message = Ask;
    type Reply = Option<Arc<str>>;

    async fn handle(&mut self, message: Ask, _: &Context<Self>) -> Option<Arc<str>> {
        match message {
            Ask::Put(block, text) => self.0.insert(block, text),
            Ask::Get(block) => self.0.get(&block).cloned(),
        }
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:7777".into());
    let runtime = Runtime::builder()
        .shards(Shards::Count(1))
        .on_panic(|panic| eprintln!("{} on shard {}: {}", panic.actor, panic.shard, panic.message))
        .build()?;
    let blocks = runtime.spawn_actor(0, Blocks::default())?;
    let listener = TcpListener::bind(&address).await?;
    println!("serving on {}", listener.local_addr()?);
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                tokio::spawn(serve(accepted?.0, blocks.clone(), runtime.clone()));
            }
            signal = tokio::signal::ctrl_c() => {
                signal?;
                break;
            }
        }
    }
    // A stop waits for the shards' threads, so it belongs where blocking is allowed.
    tokio::task::spawn_blocking(move || runtime.stop()).await?;
    Ok(())
}

async fn serve(mut stream: TcpStream, blocks: Address<Blocks>, runtime: Runtime) {
    let (reader, mut writer) = stream.split();
    let mut lines = BufReader::new(reader).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        let answer = match answer(&line, &blocks, &runtime).await {
            Ok(text) => format!("{text}\n"),
            Err(error) => format!("error: {error}\n"),
        };
        if writer.write_all(answer.as_bytes()).await.is_err() {
            return;
        }
    }
}

async fn answer(
    line: &str,
    blocks: &Address<Blocks>,
    runtime: &Runtime,
) -> Result<String, kvrail::Error> {
    let mut words = line.splitn(3, ' ');
    let verb = words.next().unwrap_or_default();
    let block = words.next().and_then(|word| word.parse().ok());
    let found = match (verb, block, words.next()) {
        ("put", Some(block), Some(text)) => blocks.call(Ask::Put(block, text.into())).await?,
        ("get" | "sum", Some(block), None) => blocks.call(Ask::Get(block)).await?,
        _ => return Err(kvrail::Error::refused("say: put N TEXT, get N, or sum N")),
    };
    match found {
        Some(text) if verb == "sum" => {
            let sum = move || async move { text.bytes().map(u64::from).sum::<u64>() };
            Ok(runtime.spawn_on(0, sum)?.await?.to_string())
        }
        found => Ok(found.as_deref().unwrap_or("-").to_owned()),
    }
}

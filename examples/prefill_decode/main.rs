//! A small language model whose prefill and decode run in processes of their own: the KV cache
//! is computed in one and read in the other, where kvrail has carried it.
//!
//! `cargo run --release --example prefill_decode -- --prompt "Why is the sky blue?"`
//!
//! - `split` `table`: the parent, which asks, shows and compares
//! - `crew` `messages` `wait`: the processes it starts, and what is said between them
//! - `prefill` `decode` `together`: their roles
//! - `kv` `shipment`: the KV cache in registered memory, and how it leaves while it is computed
//! - `single`: everything in one process, for comparison
//! - `fetch` `gguf` `weights` `shape`: the model file and what is in it
//! - `bpe` `letters` `text` `typewriter`: prompts to ids, ids to text
//! - `kernel` `portable` `matmul`: the arithmetic, the same to the bit on every CPU
//! - `llama` `attention` `generate`: the layers, the answer
//! - `cache`: the seam behind which K and V live

mod attention;
mod bpe;
mod cache;
mod crew;
mod decode;
mod fetch;
mod generate;
mod gguf;
mod kernel;
mod kv;
mod letters;
mod llama;
mod matmul;
mod messages;
mod options;
mod portable;
mod prefill;
mod shape;
mod shipment;
mod single;
mod split;
#[cfg(test)]
mod split_tests;
mod table;
#[cfg(test)]
mod tests;
mod text;
mod together;
mod typewriter;
mod wait;
mod weights;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::crew::Role;

#[derive(Parser)]
#[command(about = "Runs SmolLM2-135M in two processes, with kvrail between them")]
struct Arguments {
    #[command(flatten)]
    options: options::Options,
    #[command(subcommand)]
    part: Option<Part>,
}

#[derive(Subcommand)]
enum Part {
    /// Prefill and decode in this one process, without kvrail
    Single,
    /// Started by the parent
    #[command(hide = true)]
    Prefill,
    /// Started by the parent
    #[command(hide = true)]
    Decode,
}

fn main() -> ExitCode {
    let Arguments { options, part } = Arguments::parse();
    let ended = match part {
        None => split::run(&options),
        Some(Part::Single) => single::run(&options).map(|()| true),
        Some(Part::Prefill) => crew::child(Role::Prefill, &options).map(|()| true),
        Some(Part::Decode) => crew::child(Role::Decode, &options).map(|()| true),
    };
    match ended {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(failure) => {
            eprintln!("error: {failure}");
            ExitCode::from(2)
        }
    }
}

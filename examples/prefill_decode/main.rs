//! A small language model whose prefill and decode run in processes of their own: the KV cache
//! is computed in one and read in the other.
//!
//! `cargo run --release --example prefill_decode -- single --prompt "Why is the sky blue?"`
//!
//! - `fetch` `gguf` `weights` `shape`: the model file and what is in it
//! - `bpe` `letters` `text`: prompts to ids, ids to text
//! - `kernel` `portable` `matmul`: the arithmetic, the same to the bit on every CPU
//! - `llama` `generate`: the layers, the answer
//! - `cache`: the seam behind which K and V live

mod bpe;
mod cache;
mod fetch;
mod generate;
mod gguf;
mod kernel;
mod letters;
mod llama;
mod matmul;
mod portable;
mod shape;
mod single;
#[cfg(test)]
mod tests;
mod text;
mod weights;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(about = "Runs SmolLM2-135M and moves its KV cache")]
struct Arguments {
    #[command(subcommand)]
    role: Role,
}

#[derive(Subcommand)]
enum Role {
    /// Prefill and decode in this one process.
    Single(single::Options),
}

fn main() -> Result<(), llama::Failure> {
    match Arguments::parse().role {
        Role::Single(options) => single::run(&options),
    }
}

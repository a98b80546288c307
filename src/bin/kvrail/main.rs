//! The command line: `kvrail bench`, `doctor`, `metadata-server` and `topology`.
#![forbid(unsafe_code)]

mod bench;
mod doctor;
mod metadata_server;
mod report;
mod security;
mod size;
mod table;
mod topology;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tracing_subscriber::EnvFilter;

/// Moves LLM KV cache between processes; speaks Mooncake's Transfer Engine protocol.
#[derive(Parser)]
#[command(version, arg_required_else_help = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Measures transfers between two processes, with transfer_engine_bench's options.
    Bench(Box<bench::Options>),
    /// Checks what works here, and says what to do about the rest.
    #[command(after_help = doctor::EXIT)]
    Doctor(doctor::Options),
    /// Shows NUMA nodes, NICs, what of them this process may use, and where shards would run.
    Topology(topology::Options),
    /// Serves segment descriptors to Mooncake and kvrail engines.
    MetadataServer(metadata_server::Options),
}

fn main() -> ExitCode {
    let filter = EnvFilter::try_from_env("KVRAIL_LOG").unwrap_or_else(|_| EnvFilter::new("warn"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    let result = match Arguments::parse().command {
        Command::Bench(options) => bench::run(&options).map(|()| true),
        Command::Doctor(options) => doctor::run(&options),
        Command::Topology(options) => topology::run(&options),
        Command::MetadataServer(options) => metadata_server::run(&options).map(|()| true),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("kvrail: {error}");
            ExitCode::FAILURE
        }
    }
}

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

use clap::{Parser, Subcommand, ValueEnum};
use tracing_subscriber::EnvFilter;

/// Moves LLM KV cache between processes; speaks Mooncake's Transfer Engine protocol.
#[derive(Parser)]
#[command(version, arg_required_else_help = true)]
struct Arguments {
    /// How log lines are written, to standard error; KVRAIL_LOG says which (warn by default).
    #[arg(long, global = true, value_enum, default_value = "text")]
    log_format: LogFormat,
    #[command(subcommand)]
    command: Command,
}

#[derive(Clone, Copy, ValueEnum)]
enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
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
    let arguments = Arguments::parse();
    log(arguments.log_format);
    let result = match arguments.command {
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

fn log(format: LogFormat) {
    let filter = EnvFilter::try_from_env("KVRAIL_LOG").unwrap_or_else(|_| EnvFilter::new("warn"));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match format {
        LogFormat::Text => log.init(),
        LogFormat::Json => log.json().init(),
    }
}

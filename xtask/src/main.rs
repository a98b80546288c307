//! The project's own chores: `cargo xtask test` is the one way in, for people and for CI.
//!
//! - `steps`: what `test` does, in which order, and the summary
//! - `rust`: format, lints, tests, documentation
//! - `without_uring`: commands, and the suite, where io_uring is refused
//! - `fuzz` `example` `mooncake`: the steps that need more than a Rust toolchain
//! - `shell`: running commands, and installing what they need

mod example;
mod fuzz;
mod mooncake;
mod rust;
mod shell;
mod steps;
mod without_uring;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "kvrail's chores")]
struct Arguments {
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Subcommand)]
enum Chore {
    /// Checks everything, cheapest first; installs what it needs and says so.
    Test(steps::Options),
    /// Runs a command where io_uring is refused, as in a container with the default profile.
    WithoutUring(without_uring::Options),
}

fn main() -> ExitCode {
    let passed = match Arguments::parse().chore {
        Chore::Test(options) => steps::test(&options),
        Chore::WithoutUring(options) => without_uring::exec(&options).map(|never| match never {}),
    };
    match passed {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("xtask: {error}");
            ExitCode::FAILURE
        }
    }
}

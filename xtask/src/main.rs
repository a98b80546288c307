//! The project's own chores: `cargo xtask test` is the one way in, for people and for CI;
//! `cargo xtask compare` is the ruler.
//!
//! - `steps`: what `test` does, in which order, and the summary
//! - `rust`: format, lints, tests, documentation
//! - `without_uring`: commands, and the suite, where io_uring is refused
//! - `fuzz` `example` `mooncake`: the steps that need more than a Rust toolchain
//! - `compare`: kvrail beside its peers and the machine's limits
//! - `shell` `wheels`: running commands, and installing what they need

mod compare;
mod example;
mod fuzz;
mod mooncake;
mod rust;
mod shell;
#[path = "../../src/bin/kvrail/size.rs"]
mod size;
mod steps;
mod wheels;
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
    /// Measures kvrail, its peers and the machine's limits in turn; writes target/compare.
    Compare(compare::Options),
    /// Runs a command where io_uring is refused, as in a container with the default profile.
    WithoutUring(without_uring::Options),
}

fn main() -> ExitCode {
    let done = match Arguments::parse().chore {
        Chore::Test(options) => steps::test(&options),
        Chore::Compare(options) => compare::compare(&options).map(|_| true),
        Chore::WithoutUring(options) => without_uring::exec(&options).map(|never| match never {}),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("xtask: {error}");
            ExitCode::FAILURE
        }
    }
}

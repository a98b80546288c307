//! The project's own chores: `cargo xtask test` is the one way in, for people and for CI;
//! `cargo xtask compare` is the ruler.
//!
//! - `steps`: what `test` does, in which order, and the summary
//! - `rust`: format, lints, tests, documentation
//! - `verbs`: RDMA's verbs on soft-RoCE, in a guest
//! - `vram`: the suite on a machine with GPUs, `cargo xtask vram`
//! - `vm`: a command in a guest, `cargo xtask vm`, and the NUMA tests in guests
//! - `environments`: the engine where something is missing
//! - `without_uring`: commands, and the suite, where io_uring is refused
//! - `fuzz` `example` `mooncake`: the steps that need more than a Rust toolchain
//! - `chaos`: real processes under fire
//! - `compare`: kvrail beside its peers and the machine's limits
//! - `checkers`: sanitizers, and every order of threads' steps
//! - `ptx`: the kernel that copies pages on GPUs, compiled
//! - `callgrind`: counting instructions
//! - `price`: those of a request, `cargo xtask price`
//! - `instructions`: those of hot functions, beside their record, `cargo xtask instructions`
//! - `sim`: whole engines on a simulated network, `cargo xtask sim`
//! - `proof`: tests that run somewhere else, and what they must say
//! - `process`: another process, asked line by line
//! - `shell` `wheels`: running commands, and installing what they need

mod callgrind;
mod chaos;
mod checkers;
mod compare;
mod environments;
mod example;
mod fuzz;
mod instructions;
mod mooncake;
mod price;
mod process;
mod proof;
mod ptx;
mod rust;
mod services;
mod shell;
mod sim;
#[path = "../../src/bin/kvrail/size.rs"]
mod size;
mod steps;
mod verbs;
mod vm;
mod vram;
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
    /// Counts the instructions of a request by callgrind, on every path.
    Price(price::Options),
    /// Counts those of hot functions, and compares with what the repository has on record.
    Instructions(instructions::Options),
    /// Runs whole engines on a simulated network, seed after seed.
    Sim(sim::Options),
    /// Kills, stops and cuts off processes that transfer, and looks at every byte.
    Chaos(chaos::Options),
    /// What `chaos --path rdma` runs inside of its guest.
    #[command(hide = true)]
    ChaosInGuest(chaos::guest::Play),
    /// Runs a command in a guest that sees this host's files.
    Vm(vm::Options),
    /// What `compare --only rdma` runs inside of its guest.
    #[command(hide = true)]
    RdmaRounds(compare::rdma::Plan),
    /// Has Mooncake and a program meet over soft-RoCE, in a guest, and compares every byte.
    RdmaExchange(verbs::interop::Options),
    /// Cuts, stops and kills one of two guests that transfer over soft-RoCE.
    RdmaPair,
    /// Compiles the kernel that copies pages on GPUs; needs no GPU.
    Ptx,
    /// Builds what travels to a machine with two GPUs, and runs the VRAM suite there.
    Vram(vram::Options),
    /// Runs a command where io_uring is refused, as in a container with the default profile.
    WithoutUring(without_uring::Options),
}

fn main() -> ExitCode {
    let ended = match Arguments::parse().chore {
        Chore::Test(options) => steps::test(&options).map(|passed| match passed {
            true => ExitCode::SUCCESS,
            false => ExitCode::FAILURE,
        }),
        Chore::Compare(options) => compare::compare(&options).map(|_| ExitCode::SUCCESS),
        Chore::Price(options) => price::price(&options).map(|()| ExitCode::SUCCESS),
        Chore::Instructions(options) => {
            instructions::instructions(&options).map(|()| ExitCode::SUCCESS)
        }
        Chore::Sim(options) => sim::sim(&options),
        Chore::Chaos(options) => chaos::chaos(&options).map(|_| ExitCode::SUCCESS),
        Chore::ChaosInGuest(play) => chaos::guest::inside(&play).map(|()| ExitCode::SUCCESS),
        Chore::Vm(options) => vm::run(options),
        Chore::RdmaRounds(plan) => compare::rdma::rounds(&plan).map(|()| ExitCode::SUCCESS),
        Chore::RdmaExchange(options) => shell::Shell::new()
            .and_then(|shell| verbs::interop::exchange(&shell, &options))
            .map(|_| ExitCode::SUCCESS),
        Chore::RdmaPair => shell::Shell::new()
            .and_then(|shell| verbs::pair::trouble(&shell, &verbs::interop::release(&shell)?))
            .map(|_| ExitCode::SUCCESS),
        Chore::Ptx => ptx::compile().map(|()| ExitCode::SUCCESS),
        Chore::Vram(options) => vram::vram(&options).map(|()| ExitCode::SUCCESS),
        Chore::WithoutUring(options) => without_uring::exec(&options).map(|never| match never {}),
    };
    ended.unwrap_or_else(|error| {
        eprintln!("xtask: {error}");
        ExitCode::FAILURE
    })
}

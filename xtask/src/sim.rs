//! The simulator: built as fast as it can be with every assertion, then run with the words given.

use std::ffi::OsString;
use std::process::ExitCode;

use clap::Args;

use crate::shell::{Shell, run};
use crate::steps::Outcome;

/// Each of them is found within so many seeds of its world.
const CANARIES: [(&str, &str); 9] = [
    ("engines", "reuse-before-fence"),
    ("engines", "counted-twice"),
    ("engines", "lost-wake"),
    ("engines", "local-fence"),
    ("engines", "generation-unchecked"),
    ("rdma", "reset-instead-of-error"),
    ("rdma", "local-fence"),
    ("rdma", "counted-twice"),
    ("rdma", "generation-unchecked"),
];

/// Seeds of each world: 2,000 in all, of which the engines, which are in use, get the most.
const SEEDS: [(&str, &str); 2] = [("engines", "0..1500"), ("rdma", "0..500")];

/// What is passed on.
#[derive(Args)]
#[command(disable_help_flag = true)]
pub struct Options {
    /// The simulator's own options; `--help` names them.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "OPTIONS")]
    words: Vec<OsString>,
}

/// Runs the simulator; its exit code is ours.
pub fn sim(options: &Options) -> Result<ExitCode, String> {
    let shell = Shell::new()?;
    build(&shell)?;
    let mut command = shell.command(program(&shell));
    let status = command.args(&options.words).status().map_err(|error| error.to_string())?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Some thousands of seeds, and every canary found.
pub fn seeds_and_canaries(shell: &Shell) -> Outcome {
    build(shell)?;
    let simulate = |world, seeds, more: &[&str]| {
        let words = ["--world", world, "--seeds", seeds];
        run(shell.command(program(shell)).args(words).args(more))
    };
    for (world, seeds) in SEEDS {
        simulate(world, seeds, &[])?;
    }
    for (world, canary) in CANARIES {
        simulate(world, "0..1000", &["--canary", canary])?;
    }
    Ok(format!("2,000 seeds, {} canaries found", CANARIES.len()))
}

fn build(shell: &Shell) -> Result<(), String> {
    run(&mut shell.cargo("build --quiet --locked --profile sim --features sim --bin kvrail-sim"))
}

fn program(shell: &Shell) -> std::path::PathBuf {
    shell.root.join("target/sim/kvrail-sim")
}

//! The simulator: built as fast as it can be with every assertion, then run with the words given.

use std::ffi::OsString;
use std::process::ExitCode;

use clap::Args;

use crate::shell::{Shell, run};
use crate::steps::Outcome;

/// Each of them is found within so many seeds.
const CANARIES: [&str; 5] =
    ["reuse-before-fence", "counted-twice", "lost-wake", "local-fence", "generation-unchecked"];

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
    run(shell.command(program(shell)).args(["--seeds", "0..2000"]))?;
    for canary in CANARIES {
        run(shell.command(program(shell)).args(["--seeds", "0..1000", "--canary", canary]))?;
    }
    Ok(format!("2,000 seeds, {} canaries found", CANARIES.len()))
}

fn build(shell: &Shell) -> Result<(), String> {
    run(&mut shell.cargo("build --quiet --locked --profile sim --features sim --bin kvrail-sim"))
}

fn program(shell: &Shell) -> std::path::PathBuf {
    shell.root.join("target/sim/kvrail-sim")
}

//! `cargo xtask vram`: what travels to a machine with GPUs, which needs neither Rust nor a CUDA
//! toolkit, and the suite run there as one command.

use std::fs;
use std::path::{Path, PathBuf};

use clap::Args;

use crate::proof;
use crate::shell::{Shell, WHOLE, quoted, run};

/// The folder's name, here under `target` and there.
const FOLDER: &str = "kvrail-vram";

/// The suite: every path, ownership, others' memory, events, peers that are killed and what leaks
/// on real GPUs, then kvrail beside the peers whose wheels came along.
const RUN: &str = r#"#!/bin/sh
# usage: ./run [ROUNDS [SECONDS]]
cd "$(dirname "$0")" || exit 1
export KVRAIL_GPUS=real PYTHONPATH="$PWD/site${PYTHONPATH:+:$PYTHONPATH}"
./kvrail topology || exit 1
./vram-tests paths ownership foreign processes events timed killed leaks --test-threads 1 || exit 1
for wheel in wheels/*.whl; do
    [ -f "$wheel" ] || continue
    python3 -m pip install -q --no-deps --no-index --target site "$wheel" || exit 1
done
exec python3 vram.py "$@"
"#;

#[derive(Args)]
pub struct Options {
    /// A machine with two GPUs to copy it to and run it on, as ssh knows it; this one by default,
    /// if it has GPUs.
    #[arg(long)]
    on: Option<String>,
    /// Wheels of peers to measure beside kvrail: Mooncake's for CUDA 13, nixl-cu13.
    #[arg(long, value_name = "FILE")]
    wheel: Vec<PathBuf>,
    /// Rounds of the comparison.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Builds the folder and says where it is.
    #[arg(long, conflicts_with = "on")]
    only_build: bool,
}

/// Builds the folder and runs the suite.
pub fn vram(options: &Options) -> Result<(), String> {
    let shell = Shell::new()?;
    let folder = shell.root.join("target").join(FOLDER);
    build(&shell, &folder, &options.wheel)?;
    let rounds = options.rounds.to_string();
    match &options.on {
        Some(host) => run(shell.command("sh").args(["-c", &over(&folder, host, &rounds)])),
        None if options.only_build => {
            println!("{}: copy it to a machine with two GPUs and call ./run", folder.display());
            Ok(())
        }
        None => run(shell.command(folder.join("run")).arg(rounds)),
    }
}

fn build(shell: &Shell, folder: &Path, wheels: &[PathBuf]) -> Result<(), String> {
    let tests = proof::built(shell, "vram")?.test;
    run(&mut shell.cargo(&format!("build --release {WHOLE} --bin kvrail")))?;
    let at = |path: &Path, error| format!("{}: {error}", path.display());
    if folder.exists() {
        fs::remove_dir_all(folder).map_err(|error| at(folder, error))?;
    }
    let inside = folder.join("wheels");
    fs::create_dir_all(&inside).map_err(|error| at(&inside, error))?;
    for (from, name) in
        [(tests, "vram-tests"), (shell.root.join("target/release/kvrail"), "kvrail")]
    {
        // Symbols are most of a test's bytes, and tell nobody there anything.
        let to = folder.join(name);
        run(shell.command("strip").arg("-o").args([&to, &from]))?;
    }
    let peers = shell.root.join("benches/peers");
    let scripts = ["driver.py", "drive_vram.py", "vram.py"].map(|name| peers.join(name));
    for (file, to) in
        scripts.iter().map(|file| (file, folder)).chain(wheels.iter().map(|file| (file, &*inside)))
    {
        let name = file.file_name().ok_or_else(|| format!("{}: no file", file.display()))?;
        fs::copy(file, to.join(name)).map_err(|error| at(file, error))?;
    }
    let script = folder.join("run");
    fs::write(&script, RUN).map_err(|error| at(&script, error))?;
    executable(&script).map_err(|error| at(&script, error))
}

fn executable(script: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(script, fs::Permissions::from_mode(0o755))
}

/// The shell's words that copy the folder to a host, replacing one that is there, and run it.
fn over(folder: &Path, host: &str, rounds: &str) -> String {
    let parent = quoted(&folder.parent().unwrap_or(folder).to_string_lossy());
    let there = format!("rm -rf {FOLDER} && tar xzf - && exec ./{FOLDER}/run {rounds}");
    format!("tar czf - -C {parent} {FOLDER} | ssh {} {}", quoted(host), quoted(&there))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_folder_goes_to_a_host_in_one_command() {
        let command = over(Path::new("/a b/target/kvrail-vram"), "gpu; reboot", "5");
        assert_eq!(
            command,
            "tar czf - -C '/a b/target' kvrail-vram | ssh 'gpu; reboot' \
             'rm -rf kvrail-vram && tar xzf - && exec ./kvrail-vram/run 5'"
        );
    }

    #[test]
    fn the_suite_is_a_script_that_a_shell_takes() {
        let mut shell = std::process::Command::new("sh");
        let ended = shell.args(["-n", "-c", RUN]).status().expect("a shell");
        assert!(ended.success());
    }
}

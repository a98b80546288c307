//! Every fuzz target for a while: whatever a peer sends, we neither crash nor hang.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::iter;
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;
use std::thread;

use crate::shell::{Shell, run, shown};
use crate::steps::Outcome;

/// The release whose command line this file speaks.
const CARGO_FUZZ: &str = "0.13.2";
/// As many targets at a time as the smallest machine has cores.
const WORKERS: usize = 2;
/// Two of these leave room on a machine of 8 GiB.
const MEMORY_LIMIT_MB: u32 = 2048;
/// Of a failed target's log: the panic, or the sanitizer's finding, and what follows.
const REPORT_LINES: usize = 60;
/// One input takes microseconds; this long is a hang.
const INPUT_LIMIT_S: u32 = 10;

/// Builds all targets, then runs each for `seconds`.
pub fn all(shell: &Shell, seconds: u32) -> Outcome {
    let targets = targets(&shell.root.join("fuzz/fuzz_targets"))?;
    install(shell)?;
    run(&mut fuzz(shell, &["build"]))?;
    let queue = Mutex::new(VecDeque::from(targets.clone()));
    let worker = || {
        let queued = iter::from_fn(|| queue.lock().unwrap().pop_front());
        queued.filter_map(|target| one(shell, &target, seconds).err()).collect::<Vec<_>>()
    };
    let failed: Vec<_> = thread::scope(|scope| {
        let workers: Vec<_> = (0..WORKERS).map(|_| scope.spawn(worker)).collect();
        workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect()
    });
    if !failed.is_empty() {
        return Err(failed.join("\n"));
    }
    Ok(format!("{} targets, {seconds} s each", targets.len()))
}

/// One target: it starts from its seeds and keeps what it finds outside the repository's files.
fn one(shell: &Shell, target: &str, seconds: u32) -> Result<(), String> {
    let found = shell.root.join("fuzz/target/corpus").join(target);
    let log = shell.root.join("fuzz/target").join(format!("{target}.log"));
    let file = fs::create_dir_all(&found).and_then(|()| File::create(&log));
    let file = file.map_err(|error| format!("{}: {error}", log.display()))?;
    let seeds = shell.root.join("fuzz/corpus").join(target);
    let mut command = fuzz(shell, &["run", target]);
    command.arg(&found).args(seeds.is_dir().then_some(&seeds));
    command.arg("--").arg(format!("-max_total_time={seconds}"));
    command.arg(format!("-rss_limit_mb={MEMORY_LIMIT_MB}"));
    command.arg(format!("-timeout={INPUT_LIMIT_S}"));
    command.stdout(file.try_clone().unwrap()).stderr(file);
    println!("$ {}", shown(&command));
    let success = command.status().is_ok_and(|status| status.success());
    let text = fs::read_to_string(&log).unwrap_or_default();
    let lines: Vec<_> = text.lines().collect();
    if success {
        println!("{target}: {}", lines.last().unwrap_or(&"").to_lowercase());
        return Ok(());
    }
    let is_cause = |line: &&&str| line.contains("panicked at") || line.contains("ERROR:");
    let cause = lines.iter().skip_while(|line| !is_cause(line)).take(REPORT_LINES);
    println!("{target}: FAILED\n{}", cause.copied().collect::<Vec<_>>().join("\n"));
    Err(format!("{target} failed; all of its output is in {}", log.display()))
}

/// The names of the files in `folder`, without `.rs`.
fn targets(folder: &Path) -> Result<Vec<String>, String> {
    let entries = fs::read_dir(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let stems = names.filter_map(|name| Some(name.strip_suffix(".rs")?.to_owned()));
    let mut targets: Vec<_> = stems.collect();
    targets.sort();
    match targets.is_empty() {
        true => Err(format!("no fuzz target in {}", folder.display())),
        false => Ok(targets),
    }
}

/// Sees to it that `cargo fuzz` can be called; libFuzzer itself is C++.
fn install(shell: &Shell) -> Result<(), String> {
    if !crate::shell::succeeds(shell.command("c++").arg("--version")) {
        shell.apt(&["g++"], "libFuzzer")?;
    }
    if crate::shell::succeeds(fuzz(shell, &[]).arg("--version")) {
        return Ok(());
    }
    println!("installing cargo-fuzz {CARGO_FUZZ} in {}", shell.cache.display());
    let mut install = shell.cargo("install --quiet --locked cargo-fuzz --version");
    run(install.arg(CARGO_FUZZ).arg("--root").arg(&shell.cache))
}

/// `cargo fuzz`, found in our cache too; the sanitizers it asks for are unstable options.
fn fuzz(shell: &Shell, arguments: &[&str]) -> Command {
    let ours = shell.cache.join("bin");
    let path = std::env::var_os("PATH").unwrap_or_default();
    let path = std::env::join_paths(std::env::split_paths(&path).chain([ours]));
    let mut command = shell.cargo("fuzz");
    command.args(arguments).env("PATH", path.unwrap_or_default()).env("RUSTC_BOOTSTRAP", "1");
    command
}

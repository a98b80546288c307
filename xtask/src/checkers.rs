//! Tests under a checker: address and thread sanitizers for memory, leases and tickets, and a
//! model checker for the protocol by which threads wake each other.

use std::path::Path;
use std::process::Command;

use crate::shell::{Shell, run};
use crate::steps::Outcome;

/// Rooms of what owns memory, names what is in flight, or passes it between threads.
const ROOMS: [&str; 7] =
    ["region::", "ticket::", "memory::", "flight::", "copy::", "inbox::", "doorbell::"];

/// Address and thread sanitizers. They are unstable options of the compiler, which the stable one
/// takes too when told to bootstrap.
pub fn sanitize(shell: &Shell) -> Outcome {
    let target = host(shell)?;
    // What `register` takes over must live for ever, and does in the tests.
    let mut address = sanitizer(shell, &target, "address", &[]);
    run(address.env("ASAN_OPTIONS", "detect_leaks=0"))?;
    sources(shell)?;
    // Data races are told from locks only if the standard library is instrumented too.
    run(&mut sanitizer(shell, &target, "thread", &["-Zbuild-std"]))?;
    Ok("no finding of address and thread sanitizers".into())
}

fn sanitizer(shell: &Shell, target: &str, name: &str, options: &[&str]) -> Command {
    let mut cargo = shell.cargo("test --locked -p kvrail-reactors -p kvrail --lib --target");
    cargo.arg(target).args(options).arg("--").args(ROOMS);
    cargo.env("RUSTC_BOOTSTRAP", "1").env("RUSTFLAGS", format!("-Zsanitizer={name}"));
    cargo.env("CARGO_PROFILE_DEV_DEBUG", "line-tables-only");
    cargo.env("CARGO_TARGET_DIR", shell.root.join("target").join(name));
    cargo
}

/// Every order of the steps of inbox and doorbell, by loom.
pub fn loom(shell: &Shell) -> Outcome {
    let mut cargo = shell.cargo("test --locked -p kvrail --lib runtime::inbox::models");
    cargo.env("RUSTFLAGS", "--cfg kvrail_loom");
    run(cargo.env("CARGO_TARGET_DIR", shell.root.join("target/loom")))?;
    Ok("no wake is lost in any order".into())
}

/// The target that this compiler builds for unasked.
fn host(shell: &Shell) -> Result<String, String> {
    let version = said(shell.command("rustc").arg("-vV"))?;
    let host = version.lines().find_map(|line| line.strip_prefix("host: "));
    host.map(str::to_owned).ok_or(format!("rustc names no host: {version}"))
}

/// Sees to it that the standard library can be built.
fn sources(shell: &Shell) -> Result<(), String> {
    let sysroot = said(shell.command("rustc").args(["--print", "sysroot"]))?;
    if Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library/Cargo.lock").is_file() {
        return Ok(());
    }
    println!("installing the toolchain's rust-src");
    run(shell.command("rustup").args(["component", "add", "rust-src"]))
}

fn said(command: &mut Command) -> Result<String, String> {
    let output = command.output().map_err(|error| format!("rustc: {error}"))?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

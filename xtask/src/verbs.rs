//! The step `rdma`: reactors with verbs build without a warning, start without libibverbs, and do
//! what they should on soft-RoCE, in a guest with two such NICs; so does the command line.

pub mod interop;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::proof;
use crate::shell::{Shell, find, quoted, run, shown};
use crate::steps::Outcome;
use crate::vm::{Job, Machine, prepare};

/// The newest libclang with which rdma-sys's bindings can be generated: later ones name what has no
/// name in a way that bindgen 0.59 refuses.
const LIBCLANG: &str = "/usr/lib/llvm-14/lib";

/// Files that building takes, and the Debian packages that they come from.
const FILES: [(&str, &str); 4] = [
    ("/usr/include/infiniband/verbs.h", "libibverbs-dev"),
    ("/usr/include/rdma/rdma_cma.h", "librdmacm-dev"),
    ("/etc/libibverbs.d/rxe.driver", "ibverbs-providers"),
    // The folder alone may be there for other parts of LLVM.
    ("/usr/lib/llvm-14/lib/libclang.so", "libclang-14-dev"),
];

/// Programs likewise.
const TOOLS: [(&str, &str); 2] = [("pkg-config", "pkg-config"), ("readelf", "binutils")];

/// Ten times what it takes on a machine with two busy cores.
const LIMIT_S: u64 = 300;

/// The step.
pub fn all(shell: &Shell) -> Outcome {
    packages(shell)?;
    run(with_libclang(&mut shell.cargo(
        "clippy --locked -p kvrail-reactors --features rdma --all-targets -- -D warnings",
    )))?;
    let binary = built(shell)?;
    starts_without_libibverbs(shell, &binary)?;
    let tests = [binary, proof::built(shell, "cli_machine")?.test];
    let line =
        |test: &PathBuf| format!("{} --ignored --test-threads=1", quoted(&test.to_string_lossy()));
    let command = tests.iter().map(line).collect::<Vec<_>>().join(" && ");
    let machine = Machine { nics: 2, ..Machine::default() };
    let job = Job { command, limit_s: LIMIT_S, keep: true };
    let ended = prepare(shell, None)?.run(&machine, &job)?;
    let tests = ended.output.lines().filter(|line| line.trim_end().ends_with("... ok")).count();
    match (ended.code, tests) {
        (0, 1..) => Ok(format!("{tests} tests on soft-RoCE")),
        (code, tests) => Err(format!("exit code {code} after {tests} tests that passed")),
    }
}

fn packages(shell: &Shell) -> Result<(), String> {
    let files = FILES.iter().filter(|(file, _)| !Path::new(file).exists());
    let tools = TOOLS.iter().filter(|(program, _)| find(program).is_none());
    let missing: Vec<_> = files.chain(tools).map(|(_, package)| *package).collect();
    if missing.is_empty() { Ok(()) } else { shell.apt(&missing, "RDMA") }
}

/// Where a build that needs RDMA's bindings finds libclang.
pub fn with_libclang(cargo: &mut Command) -> &mut Command {
    cargo.env("LIBCLANG_PATH", LIBCLANG)
}

/// Builds reactors/tests/verbs.
fn built(shell: &Shell) -> Result<PathBuf, String> {
    let mut command = shell.cargo(
        "test --locked -p kvrail-reactors --features rdma --no-run --message-format json \
         --test verbs",
    );
    with_libclang(&mut command).stderr(Stdio::inherit());
    println!("$ {}", shown(&command));
    let output = command.output().map_err(|error| format!("cargo test: {error}"))?;
    let found = proof::executable(&String::from_utf8_lossy(&output.stdout), "verbs");
    found.filter(|_| output.status.success()).ok_or("reactors/tests/verbs: not built".into())
}

/// One binary serves hosts with and without RDMA, so it must not ask the linker for the library.
fn starts_without_libibverbs(shell: &Shell, binary: &Path) -> Result<(), String> {
    let mut command = shell.command("readelf");
    let output = command.arg("--dynamic").arg(binary).output();
    let output = output.map_err(|error| format!("readelf: {error}"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let needed = text.lines().filter(|line| line.contains("(NEEDED)"));
    match needed.clone().find(|line| line.contains("ibverbs") || line.contains("rdmacm")) {
        Some(line) => Err(format!("a binary that needs RDMA's libraries to start: {line}")),
        None if needed.count() == 0 => Err("readelf names no library at all".into()),
        None => Ok(()),
    }
}

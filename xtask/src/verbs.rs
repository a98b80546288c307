//! The step `rdma`: reactors with verbs start without libibverbs, and do what they should on
//! soft-RoCE, in a guest with such NICs; so do engines and the command line.

pub mod interop;
pub mod pair;

use std::path::{Path, PathBuf};
use std::process::Stdio;

use crate::proof;
use crate::shell::{Shell, find, quoted, shown};
use crate::steps::Outcome;
use crate::vm::{Job, Machine, prepare};

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

/// The suite takes four minutes on a machine with two busy cores, the rest one or two.
const LIMIT_S: u64 = 1800;

/// The step.
pub fn all(shell: &Shell) -> Outcome {
    let provider = tests(shell, "kvrail-reactors", "verbs", "")?;
    let machine = proof::built(shell, "cli_machine")?;
    // The suite moves a gigabyte on an emulated CPU.
    let suite = tests(shell, "kvrail", "rdma", "--release")?;
    starts_without_libibverbs(shell, &machine.kvrail)?;
    // The last one takes addresses away and links down.
    let on_nics = run_all(shell, &[provider, suite, machine.test])?;
    let kvrail = interop::release(shell)?;
    let met = interop::exchange(shell, &interop::Options::with_kvrail(kvrail.clone()))?;
    let trouble = pair::trouble(shell, &kvrail)?;
    Ok(format!("{on_nics} tests on soft-RoCE; with Mooncake {met}; {trouble}"))
}

/// Runs the ignored tests of these binaries in a guest; answers how many passed.
fn run_all(shell: &Shell, tests: &[PathBuf]) -> Result<usize, String> {
    let line =
        |test: &PathBuf| format!("{} --ignored --test-threads=1", quoted(&test.to_string_lossy()));
    let command = tests.iter().map(line).collect::<Vec<_>>().join(" && ");
    let machine = Machine { nics: 4, ..Machine::default() };
    let job = Job { command, limit_s: LIMIT_S, keep: true };
    let ended = prepare(shell, None)?.run(&machine, &job)?;
    let passed = ended.output.lines().filter(|line| line.trim_end().ends_with("... ok")).count();
    match (ended.code, passed) {
        (0, 1..) => Ok(passed),
        (code, passed) => Err(format!("exit code {code} after {passed} tests that passed")),
    }
}

/// Sees to it that what builds with the feature `rdma` take is there.
pub fn packages(shell: &Shell) -> Result<(), String> {
    let files = FILES.iter().filter(|(file, _)| !Path::new(file).exists());
    let tools = TOOLS.iter().filter(|(program, _)| find(program).is_none());
    let missing: Vec<_> = files.chain(tools).map(|(_, package)| *package).collect();
    if missing.is_empty() { Ok(()) } else { shell.apt(&missing, "RDMA") }
}

/// Builds a test of a package with the feature `rdma`.
fn tests(shell: &Shell, package: &str, name: &str, profile: &str) -> Result<PathBuf, String> {
    let mut command = shell.cargo(&format!(
        "test --locked -p {package} --features rdma --no-run --message-format json {profile} \
         --test {name}"
    ));
    command.stderr(Stdio::inherit());
    println!("$ {}", shown(&command));
    let output = command.output().map_err(|error| format!("cargo test: {error}"))?;
    let found = proof::executable(&String::from_utf8_lossy(&output.stdout), name);
    found.filter(|_| output.status.success()).ok_or(format!("tests/{name}: not built"))
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

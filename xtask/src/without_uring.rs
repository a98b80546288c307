//! A host without io_uring, for a command and its children: a seccomp filter that refuses its three
//! system calls, as the default profiles of Docker and containerd do.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::Command;

use clap::{Args, ValueEnum};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch};

use crate::shell::{Shell, WHOLE, run, shown};
use crate::steps::Outcome;

/// io_uring_setup, io_uring_enter, io_uring_register: the same numbers on every architecture.
const URING_CALLS: [i64; 3] = [425, 426, 427];

/// What to run, and how io_uring is missing.
#[derive(Args)]
pub struct Options {
    /// What the three system calls answer.
    #[arg(long, value_enum, ignore_case = true, default_value = "EPERM")]
    errno: Errno,
    /// The command and its arguments.
    #[arg(last = true, required = true)]
    command: Vec<OsString>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Errno {
    /// As a seccomp profile or the sysctl kernel.io_uring_disabled.
    #[value(name = "EPERM")]
    Eperm,
    /// As a kernel that has no io_uring, or a profile that hides it.
    #[value(name = "ENOSYS")]
    Enosys,
}

impl Errno {
    /// The kernel's number for it.
    fn number(self) -> u32 {
        match self {
            Self::Eperm => 1,
            Self::Enosys => 38,
        }
    }
}

/// Becomes the command; returns only when it can't.
pub fn exec(options: &Options) -> Result<std::convert::Infallible, String> {
    refuse(options.errno)?;
    let mut command = Command::new(&options.command[0]);
    command.args(&options.command[1..]);
    Err(format!("`{}` could not be started: {}", shown(&command), command.exec()))
}

/// From here on io_uring is refused to this thread and to what it starts.
fn refuse(errno: Errno) -> Result<(), String> {
    let filter = filter(errno).map_err(|error| format!("the filter: {error}"))?;
    seccompiler::apply_filter(&filter).map_err(|error| format!("seccomp: {error}"))
}

fn filter(errno: Errno) -> Result<BpfProgram, seccompiler::BackendError> {
    let always = || Vec::new();
    let rules = URING_CALLS.map(|call| (call, always())).into_iter().collect();
    let arch = TargetArch::try_from(std::env::consts::ARCH)?;
    let refuse = SeccompAction::Errno(errno.number());
    SeccompFilter::new(rules, SeccompAction::Allow, refuse, arch)?.try_into()
}

/// The step: the whole suite without io_uring, and once more in part where it isn't even known.
pub fn suite(shell: &Shell) -> Outcome {
    let tests = match shell.has_cargo("nextest") {
        true => "nextest run --no-fail-fast",
        false => "test --no-fail-fast",
    };
    let all = format!("{tests} {WHOLE} --lib --bins --tests --examples");
    behind(Errno::Eperm, || check(shell).and_then(|()| run(&mut shell.cargo(&all))))?;
    let some = format!("{tests} {WHOLE} --test engine --test runtime --test driver");
    behind(Errno::Enosys, || check(shell).and_then(|()| run(&mut shell.cargo(&some))))?;
    Ok("refused by EPERM and by ENOSYS".into())
}

/// Does `work` on a thread to which io_uring is refused. This program itself may be built anew by
/// what it starts, so it is not run again for that.
fn behind(errno: Errno, work: impl FnOnce() -> Result<(), String> + Send) -> Result<(), String> {
    println!("io_uring answers errno {} from here on", errno.number());
    std::thread::scope(|scope| {
        let worker = scope.spawn(|| refuse(errno).and_then(|()| work()));
        worker.join().map_err(|_| "the thread behind the filter panicked")?
    })
}

/// The filter does what it is for: a suite that passes behind it has not used io_uring.
fn check(shell: &Shell) -> Result<(), String> {
    run(&mut shell.cargo(&format!("build --quiet {WHOLE} --bins")))?;
    let mut bench = shell.command(shell.root.join("target/debug/kvrail"));
    bench.args("bench --mode initiator --path local --driver uring --duration 1".split(' '));
    println!("$ {} (must fail)", shown(&bench));
    let output = bench.output().map_err(|error| format!("kvrail: {error}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    match !output.status.success() && said.contains("io_uring can't be used") {
        true => Ok(()),
        false => Err(format!("io_uring is not refused: {said}")),
    }
}

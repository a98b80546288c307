//! A host without io_uring, for a command and its children: a seccomp filter that refuses its three
//! system calls, as the default profiles of Docker and containerd do.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::Command;

use clap::{Args, ValueEnum};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch};

use crate::shell::{Shell, run, shown};
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
    let filter = filter(options.errno).map_err(|error| format!("the filter: {error}"))?;
    seccompiler::apply_filter(&filter).map_err(|error| format!("seccomp: {error}"))?;
    let mut command = Command::new(&options.command[0]);
    command.args(&options.command[1..]);
    Err(format!("`{}` could not be started: {}", shown(&command), command.exec()))
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
    refused(shell, "EPERM")?;
    refused(shell, "ENOSYS")?;
    let tests = match shell.has_cargo("nextest") {
        true => "nextest run --no-fail-fast --locked",
        false => "test --no-fail-fast --locked",
    };
    let all = format!("{tests} --workspace --lib --bins --tests --examples");
    run(&mut without_uring(shell, "EPERM", &all)?)?;
    let some = format!("{tests} -p kvrail --test engine --test runtime --test driver");
    run(&mut without_uring(shell, "ENOSYS", &some)?)?;
    Ok("refused by EPERM and by ENOSYS".into())
}

/// The filter does what it is for: a suite that passes under it has not used io_uring.
fn refused(shell: &Shell, errno: &str) -> Result<(), String> {
    let bench = "run --quiet --locked -p kvrail -- bench --mode initiator --path local \
                 --driver uring --duration 1";
    let mut command = without_uring(shell, errno, bench)?;
    println!("$ {}", shown(&command));
    let output = command.output().map_err(|error| format!("{bench}: {error}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    match !output.status.success() && said.contains("io_uring can't be used") {
        true => Ok(()),
        false => Err(format!("io_uring is not refused by {errno}: {said}")),
    }
}

/// Cargo with these arguments, behind the filter.
fn without_uring(shell: &Shell, errno: &str, arguments: &str) -> Result<Command, String> {
    let xtask = std::env::current_exe().map_err(|error| format!("this program: {error}"))?;
    let mut command = shell.command(xtask);
    command.args(["without-uring", "--errno", errno, "--", "cargo"]);
    command.args(arguments.split_whitespace());
    Ok(command)
}

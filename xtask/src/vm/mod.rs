//! `cargo xtask vm`: a command in a guest that sees this host's files, for NUMA layouts, kernel
//! settings and soft-RoCE NICs that the host doesn't have.
//!
//! - `numa`: a layout as people write it, and as QEMU wants it; pure
//! - `kernel`, `image`: Debian's kernel, fetched but not installed, and unpacked
//! - `initrd`: what the guest boots into; its init is xtask/vm/init
//! - `guest`: QEMU's command line, the boot, the job's output and exit code
//! - `wire` `pair` `qmp`: two guests on one wire, and what is done to them from outside
//! - `nics`: what its soft-RoCE NICs are called
//! - `cases`: the NUMA tests, each in a guest that is built for it
//! - `encrypted`: the tests of encrypted TCP, for which hosts' kernels may lack TLS

mod cases;
mod encrypted;
pub mod guest;
mod image;
mod initrd;
mod kernel;
pub mod nics;
mod numa;
pub mod pair;
pub mod qmp;
pub mod wire;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, value_parser};

pub use guest::{Job, Machine};
pub use numa::Numa;
pub use wire::{End, Wire};

use crate::shell::{Shell, find, quoted, succeeds};
use crate::steps::Outcome;

/// Programs that a guest is made with, and the Debian packages they come from.
const TOOLS: [(&str, &str); 9] = [
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("busybox", "busybox-static"),
    ("modprobe", "kmod"),
    ("cpio", "cpio"),
    ("strip", "binutils"),
    ("xz", "xz-utils"),
    ("zstd", "zstd"),
    ("ip", "iproute2"),
    ("setpriv", "util-linux"),
];

/// The guest, and the command to run in it.
#[derive(Args)]
pub struct Options {
    /// Soft-RoCE NICs on one switch: n0.. at 10.9.0.1.., as RDMA devices rxe0..
    #[arg(long, value_name = "N", default_value_t = 0)]
    #[arg(value_parser = value_parser!(u8).range(..=16))]
    nics: u8,
    /// Two guests, a and b, with one NIC each, ext0 at 10.8.0.1 and 10.8.0.2 as RDMA device rxe0;
    /// both run the command, and learn from KVRAIL_GUEST, KVRAIL_GUEST_ADDRESS and
    /// KVRAIL_PEER_ADDRESS which they are. The exit code is a's, or b's if a ends well.
    #[arg(long, conflicts_with_all = ["nics", "log"])]
    pair: bool,
    /// NUMA nodes as MIB:CPUS, such as 512:0-1,512:2-3; `256:` has no CPU, `0:4-5` no memory.
    #[arg(long, value_name = "SPEC", conflicts_with_all = ["smp", "mem"])]
    numa: Option<Numa>,
    /// Virtual CPUs.
    #[arg(long, value_name = "N", default_value_t = 2)]
    smp: u32,
    /// Memory in MiB.
    #[arg(long, value_name = "MIB", default_value_t = 2048)]
    mem: u32,
    /// Ends the guest after so many seconds (exit code 124).
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    timeout: u64,
    /// A folder in which the command's writes last; everywhere else they vanish with the guest.
    #[arg(long, value_name = "DIR")]
    rw: Option<PathBuf>,
    /// Debian's kernel of this version, such as 6.12.117+deb12-amd64.
    #[arg(long, value_name = "VERSION")]
    kernel: Option<String>,
    /// Where the guest kernel's messages go.
    #[arg(long, value_name = "FILE")]
    log: Option<PathBuf>,
    /// One more argument for QEMU (may be repeated).
    #[arg(long, value_name = "ARGUMENT", allow_hyphen_values = true)]
    qemu: Vec<String>,
    /// What to run: words, or one string for the shell.
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<String>,
}

/// The step: what only guests have.
pub fn step(shell: &Shell) -> Outcome {
    let layouts = cases::all(shell)?;
    let encrypted = encrypted::all(shell)?;
    Ok(format!("{layouts}, {encrypted}"))
}

/// Runs the command in a guest; its exit code is ours.
pub fn run(options: Options) -> Result<ExitCode, String> {
    let shell = Shell::new()?;
    let command = match &options.command[..] {
        [line] => line.clone(),
        words => words.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" "),
    };
    let machine = Machine {
        numa: options.numa,
        smp: options.smp,
        memory_mib: options.mem,
        nics: options.nics,
        wire: None,
        rw: options.rw,
        log: options.log,
        extra: options.qemu,
    };
    let job = Job { command, limit_s: options.timeout, keep: false };
    let boot = prepare(&shell, options.kernel)?;
    let code = match options.pair {
        true => pair::Pair::new(boot, machine)?.run(&job)?,
        false => boot.run(&machine, &job)?.code,
    };
    Ok(ExitCode::from(code))
}

/// Sees to it that guests can be booted: tools, kernel, initramfs.
pub fn prepare(shell: &Shell, version: Option<String>) -> Result<guest::Boot, String> {
    tools(shell)?;
    let kernel = kernel::fetched(shell, version)?;
    let initrd = initrd::built(shell, &kernel)?;
    Ok(guest::Boot { vmlinux: kernel.vmlinux(), initrd })
}

fn tools(shell: &Shell) -> Result<(), String> {
    let is_missing = |(program, _): &&(&str, &str)| match find(program) {
        // The guest has no libraries yet when it starts busybox.
        Some(path) if *program == "busybox" => succeeds(shell.command("ldd").arg(path)),
        found => found.is_none(),
    };
    let missing: Vec<_> = TOOLS.iter().filter(is_missing).map(|(_, package)| *package).collect();
    if missing.is_empty() {
        return Ok(());
    }
    shell.apt(&missing, "a guest")?;
    match TOOLS.iter().find(|(program, _)| find(program).is_none()) {
        Some((program, package)) => Err(format!("{package} brought no {program}")),
        None => Ok(()),
    }
}

//! Getting the contenders' programs, and the commands that start them.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::contender::{Contender, Program};
use super::plan::BUFFER_BYTES;
use crate::mooncake;
use crate::shell::{Shell, run, succeeds};
use crate::wheels::Wheel;

/// NIXL with its UCX backend. Its CUDA libraries stay out: memory here is the CPU's.
const NIXL: Wheel = Wheel {
    name: "NIXL",
    version: "1.5.1",
    requirements: include_str!("../../nixl/1.5.1.txt"),
    import: "nixl_cu12._api",
    libraries: &[],
};

/// UCX by itself: what NIXL's backend is made of.
const UCX: Wheel = Wheel {
    name: "UCX",
    version: "1.22.0",
    requirements: include_str!("../../ucx/1.22.0.txt"),
    import: "libucx",
    libraries: &[],
};

impl Program {
    pub const ALL: [Self; 6] =
        [Self::Kvrail, Self::Limits, Self::Mooncake, Self::Nixl, Self::Ucx, Self::Iperf3];

    /// What `--without` calls it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Kvrail => "kvrail",
            Self::Limits => "limits",
            Self::Mooncake => "mooncake",
            Self::Nixl => "nixl",
            Self::Ucx => "ucx",
            Self::Iperf3 => "iperf3",
        }
    }

    /// Whether its sources are in this repository.
    pub fn is_built_here(self) -> bool {
        matches!(self, Self::Kvrail | Self::Limits)
    }

    /// Builds or installs it unless it is there; answers its version.
    pub fn install(self, shell: &Shell) -> Result<String, String> {
        match self {
            Self::Kvrail => {
                run(&mut shell.cargo(
                    "build --release --locked --package kvrail --bin kvrail --features rdma",
                ))?;
                let mut commit = shell.command("git");
                commit.args(["describe", "--always", "--dirty"]);
                Ok(format!("{} {}", env!("CARGO_PKG_VERSION"), said(&mut commit)))
            }
            Self::Limits => {
                let build = "build --release --locked --package kvrail-reactors --example limits";
                run(&mut shell.cargo(build))?;
                Ok(said(shell.command("rustc").arg("--version")))
            }
            Self::Mooncake => wheel(&mooncake::WHEELS[0], shell),
            Self::Nixl => wheel(&NIXL, shell),
            Self::Ucx => wheel(&UCX, shell),
            Self::Iperf3 => iperf3(shell),
        }
    }

    /// The command of one side: the target's, or the initiator's of a segment. It has a session,
    /// and so a scheduler group, of its own, and ends with this process.
    pub fn command(
        self,
        shell: &Shell,
        contender: &Contender,
        segment: Option<&str>,
        is_target: bool,
    ) -> Command {
        let side = match (is_target, segment) {
            (true, _) => "target",
            (false, None) if self == Self::Limits => "local",
            (false, _) => "initiator",
        };
        let mut command = shell.command("setsid");
        command.args(["setpriv", "--pdeathsig", "KILL", "--"]);
        let bytes = BUFFER_BYTES.to_string();
        let options = contender.options.split_whitespace();
        match self {
            Self::Kvrail => {
                command.arg(release().join("kvrail"));
                command.args(["bench", "--buffer-size", &bytes, "--mode", side]).args(options);
                if !is_target {
                    let callers = contender.callers.to_string();
                    command.args(["--cells", "--threads", &callers, "--batch-size", "16"]);
                    // Each peer has memory of its own, also where bytes are looked at first.
                    command.args((contender.peers > 1).then_some("--block-size=4K"));
                    command.arg("--verify");
                    let names = segment.map(|segment| names(segment, contender.peers).join(","));
                    command.args(names.map(|names| format!("--segment-id={names}")));
                }
            }
            Self::Limits => {
                command.arg(release().join("examples/limits"));
                command.args(options).args([side, &bytes]).args(segment);
            }
            Self::Mooncake | Self::Nixl | Self::Ucx | Self::Iperf3 => {
                let (python, script) = self.driver(shell);
                command.arg(python).arg(shell.root.join("benches/peers").join(script));
                command.args([side, &bytes]).args(options).args(segment);
                command.env("CALLERS", contender.callers.to_string());
                // The sources stay as they are.
                command.env("PYTHONDONTWRITEBYTECODE", "1");
            }
        }
        command
    }

    fn driver(self, shell: &Shell) -> (PathBuf, &'static str) {
        match self {
            Self::Mooncake => (mooncake::WHEELS[0].python(shell), "drive_mooncake.py"),
            Self::Nixl => (NIXL.python(shell), "drive_nixl.py"),
            Self::Ucx => (UCX.python(shell), "drive_ucx.py"),
            _ => ("python3".into(), "drive_iperf3.py"),
        }
    }
}

/// So many names of one segment: all of 127.0.0.0/8 is this host (RFC 1122, 3.2.1.3).
fn names(segment: &str, count: u64) -> Vec<String> {
    const IN_A_ROW: u64 = 250;
    let alias = |at: u64| format!("127.0.{}.{}:", at / IN_A_ROW, 1 + at % IN_A_ROW);
    (0..count).map(|at| segment.replacen("127.0.0.1:", &alias(at), 1)).collect()
}

fn wheel(wheel: &Wheel, shell: &Shell) -> Result<String, String> {
    wheel.install(shell)?;
    Ok(wheel.version.to_owned())
}

fn iperf3(shell: &Shell) -> Result<String, String> {
    shell.python()?;
    if !succeeds(shell.command("iperf3").arg("--version")) {
        shell.apt(&["iperf3"], "the limit of TCP streams")?;
    }
    Ok(said(shell.command("iperf3").arg("--version")))
}

/// The first line that a command prints.
pub fn said(command: &mut Command) -> String {
    let output = command.output().map(|output| output.stdout).unwrap_or_default();
    String::from_utf8_lossy(&output).lines().next().unwrap_or("unknown").to_owned()
}

/// Where cargo puts release builds: beside the folder that this program was built into.
pub fn release() -> PathBuf {
    let own = std::env::current_exe().unwrap_or_default();
    own.ancestors().nth(2).unwrap_or(Path::new("target")).join("release")
}

#[cfg(test)]
mod tests {
    use super::super::contender::WORKLOADS;
    use super::*;
    use crate::shell::shown;

    #[test]
    fn every_side_gets_its_options_sizes_and_segment() {
        let shell = Shell::new().unwrap();
        let line = |workload: usize, at: usize, segment, is_target| {
            let contender = &WORKLOADS[workload].contenders[at];
            shown(&contender.program.command(&shell, contender, segment, is_target))
        };
        let ours = line(2, 0, Some("127.0.0.1:9"), false);
        assert!(ours.ends_with("--verify --segment-id=127.0.0.1:9"), "{ours}");
        assert!(ours.contains("--mode initiator --path host --memory foreign --cells"), "{ours}");
        let target = line(0, 0, None, true);
        assert!(target.ends_with("--mode target --path tcp"), "{target}");
        assert!(line(0, 2, Some("9/x"), false).ends_with("initiator 268435456 tcp 9/x"));
        assert!(line(3, 1, None, false).ends_with("limits memcpy local 268435456"));
    }

    #[test]
    fn a_segment_has_as_many_names_as_peers_are_asked_for() {
        let names = names("127.0.0.1:15001", 1_000);
        assert_eq!(names[0], "127.0.0.1:15001");
        assert_eq!(names[999], "127.0.3.250:15001");
        let apart: std::collections::HashSet<_> = names.iter().collect();
        assert_eq!(apart.len(), names.len());
    }
}

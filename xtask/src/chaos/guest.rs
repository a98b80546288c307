//! RDMA: the whole play, agents, trouble and oracle, in one guest. Its soft-RoCE NICs hang on a
//! switch; a port of it that is cut is the trouble that only this path has.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use clap::Args;

use super::{Field, Way, fight};
use crate::proof;
use crate::shell::{Shell, own_program, quoted};
use crate::verbs;
use crate::vm::{Job, Machine, prepare};

/// Of each agent. One has two NICs: when one of them is cut, it goes on with the other.
pub const DEVICES: [&[&str]; 3] = [&["rxe0"], &["rxe1"], &["rxe2", "rxe3"]];
pub const NICS: usize = 4;

const MEMORY_MIB: u32 = 3072;
/// Boot, start, warming up, and coming to rest again, when everything goes as slowly as it may.
const OVERHEAD_S: u64 = 400;

/// What the guest is told.
#[derive(Args)]
pub struct Play {
    /// The agents' program.
    #[arg(long)]
    program: PathBuf,
    #[arg(long)]
    logs: PathBuf,
    #[arg(long)]
    seconds: u64,
    #[arg(long)]
    seed: u64,
}

impl Play {
    pub fn new(program: PathBuf, logs: PathBuf, seconds: u64, seed: u64) -> Self {
        Self { program, logs, seconds, seed }
    }

    /// The words that `cargo xtask chaos-in-guest` takes.
    fn words(&self) -> Vec<String> {
        vec![
            format!("--program={}", self.program.display()),
            format!("--logs={}", self.logs.display()),
            format!("--seconds={}", self.seconds),
            format!("--seed={}", self.seed),
        ]
    }
}

/// Boots the guest and has this program play in it; the agents' logs last.
pub fn play(shell: &Shell, play: &Play) -> Result<(), String> {
    let words = [own_program()?, "chaos-in-guest".to_owned()];
    let words = words.into_iter().chain(play.words());
    let command = words.map(|word| quoted(&word)).collect::<Vec<_>>().join(" ");
    let machine = Machine {
        nics: NICS as u8,
        memory_mib: MEMORY_MIB,
        rw: Some(play.logs.clone()),
        ..Machine::default()
    };
    let job = Job { command, limit_s: play.seconds + OVERHEAD_S, keep: false };
    match prepare(shell, None)?.run(&machine, &job)?.code {
        0 => Ok(()),
        code => Err(format!("exit code {code} in the guest: see above")),
    }
}

/// What happens in the guest.
pub fn inside(play: &Play) -> Result<(), String> {
    let (program, logs) = (play.program.clone(), play.logs.clone());
    let field = Field { way: Way::Rdma, program, logs, registry: String::new() };
    fight(field, play.seed, Duration::from_secs(play.seconds))
}

/// Makes the agents' program, with RDMA in it.
pub fn agents(shell: &Shell, is_release: bool) -> Result<PathBuf, String> {
    verbs::packages(shell)?;
    proof::example(shell, super::AGENT, is_release)
}

/// Takes the wire of a NIC off the switch for a while.
pub fn cut(nic: usize, time: Duration) -> Result<(), String> {
    let port = format!("p{nic}");
    link(&["set", &port, "nomaster"])?;
    std::thread::sleep(time);
    link(&["set", &port, "master", "sw0"])
}

fn link(words: &[&str]) -> Result<(), String> {
    let status = Command::new("ip").arg("link").args(words).stdin(Stdio::null()).status();
    match status.map_err(|error| format!("ip: {error}"))?.success() {
        true => Ok(()),
        false => Err(format!("ip link {} failed", words.join(" "))),
    }
}

/// How many queue pairs, or memory regions, the kernel keeps for a process: `qp` or `mr`.
pub fn kept(what: &str, pid: u32) -> Result<u64, String> {
    let output = Command::new("rdma").args(["resource", "show", what]).output();
    let output = output.map_err(|error| format!("rdma: {error}"))?;
    Ok(owned(&String::from_utf8_lossy(&output.stdout), pid))
}

/// Lines of `rdma resource show` that are a process's.
fn owned(shown: &str, pid: u32) -> u64 {
    let pid = pid.to_string();
    let is_its = |line: &&str| {
        let mut words = line.split_whitespace();
        words.any(|word| word == "pid") && words.next() == Some(&pid)
    };
    shown.lines().filter(is_its).count() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_keeps_is_told_apart_by_process() {
        let shown = "\
link rxe0/1 lqpn 1 type GSI state RTS sq-psn 0 comm [rdma_rxe]
link rxe0/1 lqpn 17 rqpn 18 type RC state RTS rq-psn 0 sq-psn 0 path-mig-state MIGRATED pid 95 \
comm chaos_agent
link rxe1/1 lqpn 17 rqpn 18 type RC state RTS rq-psn 0 sq-psn 0 path-mig-state MIGRATED pid 955 \
comm chaos_agent
link rxe1/1 lqpn 18 rqpn 19 type RC state ERR pid 95 comm pid
";
        assert_eq!((owned(shown, 95), owned(shown, 955), owned(shown, 9)), (2, 1, 0));
    }

    #[test]
    fn each_agent_has_nics_of_its_own() {
        let all: Vec<_> = DEVICES.iter().flat_map(|devices| devices.iter()).collect();
        assert!((0..NICS).all(|nic| all.contains(&&format!("rxe{nic}").as_str())));
        assert_eq!((all.len(), DEVICES.len()), (NICS, usize::from(Way::Rdma.seats())));
    }
}

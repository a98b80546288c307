//! Who moves bytes between the guest's NICs: how they are got, their commands, and their figures.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use super::super::launch::{release, said};
use super::super::plan::Cell;
use crate::mooncake::{SOFT_ROCE, WHEELS};
use crate::shell::{Shell, find, run};
use crate::vm::nics::{GID_INDEX, NICS, Nic};

/// Bytes of memory on each side: soft-RoCE registers a GiB in twenty seconds.
pub const BUFFER_BYTES: u64 = 64 << 20;
/// What soft-RoCE reaches in a guest; perftest counts messages, not seconds.
const BYTES_PER_S: f64 = 40e6;
/// The fewest messages that perftest makes a mean of, on each of its queue pairs.
const MESSAGES_MIN: u64 = 16;
/// As Mooncake's endpoints have. Soft-RoCE works on each by itself: with messages of 1 MiB two are
/// half as fast again as one, and with 64 KiB as fast.
const QUEUE_PAIRS: u64 = 2;
/// perftest's MB.
const MEBIBYTE: f64 = 1_048_576.0;
const PERFTEST_PORT: u16 = 18515;

/// One of those who take turns.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum System {
    Perftest,
    Mooncake,
    Kvrail,
}

/// A measurement: which cell, and for how long.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Task {
    pub cell: Cell,
    pub seconds: f64,
}

impl System {
    /// In the order of the table, and of each round.
    pub const ALL: [Self; 3] = [Self::Perftest, Self::Mooncake, Self::Kvrail];

    pub fn word(self) -> &'static str {
        match self {
            Self::Perftest => "perftest",
            Self::Mooncake => "mooncake",
            Self::Kvrail => "kvrail",
        }
    }

    /// Builds or installs it unless it is there; answers its version.
    pub fn install(self, shell: &Shell) -> Result<String, String> {
        match self {
            Self::Perftest => {
                if find("ib_write_bw").is_none() {
                    let packages = ["perftest", "rdma-core", "ibverbs-providers"];
                    shell.apt(&packages, "the limit of RDMA")?;
                }
                Ok(said(shell.command("ib_write_bw").arg("--version")))
            }
            Self::Mooncake => {
                WHEELS[0].install(shell)?;
                Ok(WHEELS[0].version.to_owned())
            }
            Self::Kvrail => {
                let build =
                    "build --release --locked --package kvrail --bin kvrail --features rdma";
                run(&mut shell.cargo(build))?;
                Ok(env!("CARGO_PKG_VERSION").to_owned())
            }
        }
    }

    /// The command of one side: the target's, or the initiator's of a segment.
    pub fn command(self, shell: &Shell, task: Task, to: Option<&str>) -> Result<Command, String> {
        let nic = &NICS[usize::from(to.is_some())];
        match self {
            Self::Perftest => Ok(perftest(task, nic, to)),
            Self::Mooncake => {
                let bench = WHEELS[0].program(shell, "mooncake/transfer_engine_bench")?;
                Ok(mooncake(bench, task, nic, to))
            }
            Self::Kvrail => Ok(kvrail(&release().join("kvrail"), task, nic, to)),
        }
    }

    /// What the initiator is to call the target that has said all this, once it is ready.
    pub fn segment(self, said: &str) -> Option<String> {
        let behind = |words| said.lines().find_map(|line| Some(line.split_once(words)?.1.trim()));
        match self {
            Self::Perftest => behind("Waiting for client").map(|_| NICS[0].address.to_owned()),
            // The last that it says, just before it registers its memory.
            Self::Mooncake => {
                behind("DRAM is used").and_then(|_| behind("listening on ")).map(str::to_owned)
            }
            Self::Kvrail => behind("segment ").map(str::to_owned),
        }
    }

    /// The throughput that an initiator has told of when it ended.
    pub fn megabytes_per_second(self, said: &str, cell: Cell) -> Option<f64> {
        match self {
            Self::Perftest => perftest_figure(said),
            Self::Mooncake => mooncake_figure(said, cell),
            Self::Kvrail => {
                let mut reports = said.lines().filter_map(crate::process::json);
                let rate =
                    reports.find_map(|report: Value| report["gigabytes_per_second"].as_f64());
                Some(rate? * 1e3)
            }
        }
    }
}

/// Packets of 4096 bytes, on each queue pair the batch's number of messages on their way, no
/// complaint about the CPU's frequency. Its target is told the same.
fn perftest(task: Task, nic: &Nic, to: Option<&str>) -> Command {
    let Cell { operation, block_bytes, batch, .. } = task.cell;
    let messages = (BYTES_PER_S * task.seconds) as u64 / block_bytes / QUEUE_PAIRS;
    // Who waits for a client says so at once, and not when its buffer is full.
    let mut command = Command::new("stdbuf");
    command.args(["-oL", &format!("ib_{operation}_bw"), "-F", "-m", "4096"]);
    command.args(["-d", nic.device, "-x", GID_INDEX, "-p", &PERFTEST_PORT.to_string()]);
    command.args(["-q", &QUEUE_PAIRS.to_string()]);
    command.args(["-s", &block_bytes.to_string(), "-t", &batch.to_string()]);
    command.args(["-n", &messages.max(MESSAGES_MIN).to_string()]).args(to);
    command
}

/// Of the header `#bytes #iterations BW peak[MB/sec] BW average[MB/sec] MsgRate[Mpps]`, the fourth.
fn perftest_figure(said: &str) -> Option<f64> {
    let mut lines = said.lines().skip_while(|line| !line.trim_start().starts_with("#bytes"));
    let average: f64 = lines.nth(1)?.split_whitespace().nth(3)?.parse().ok()?;
    Some(average * MEBIBYTE / 1e6)
}

/// As it does best here. A slice is as long as a block, so that a block is one message as it is
/// everywhere. Both sides are of the idle scheduling class: they poll, and soft-RoCE works on the
/// same CPUs.
fn mooncake(bench: PathBuf, task: Task, nic: &Nic, to: Option<&str>) -> Command {
    let Cell { operation, block_bytes, batch, .. } = task.cell;
    let mut command = Command::new("chrt");
    command.args(["-i", "0"]).arg(bench);
    command.args(["-metadata_server=P2PHANDSHAKE", "-protocol=rdma", "-logtostderr"]);
    command.arg(format!("-device_name={}", nic.device));
    command.arg(format!("-local_server_name={}", nic.address));
    command.arg(format!("-buffer_size={BUFFER_BYTES}"));
    // Both sides check that the buffer holds what threads and batches will ask for.
    command.args(["-threads=1".to_owned(), format!("-batch_size={batch}")]);
    command.arg(format!("-block_size={block_bytes}"));
    match to {
        None => command.arg("-mode=target"),
        Some(segment) => command
            .args(["-mode=initiator".to_owned(), format!("-segment_id={segment}")])
            .arg(format!("-operation={operation}"))
            .arg(format!("-duration={}", task.seconds.ceil())),
    };
    command.envs(SOFT_ROCE).env("MC_SLICE_SIZE", block_bytes.to_string());
    command
}

/// `Test completed: duration 3.02, batch count 52, throughput ...`, in units of our own.
fn mooncake_figure(said: &str, cell: Cell) -> Option<f64> {
    let (_, result) = said.split_once("Test completed: duration ")?;
    let (seconds, rest) = result.split_once(", batch count ")?;
    let batches: f64 = rest.split(',').next()?.trim().parse().ok()?;
    let seconds: f64 = seconds.trim().parse().ok()?;
    Some(batches * (cell.batch * cell.block_bytes) as f64 / 1e6 / seconds)
}

/// `kvrail bench` at a NIC: a target, or the initiator of a segment, which reports in JSON.
pub fn kvrail(program: &Path, task: Task, nic: &Nic, to: Option<&str>) -> Command {
    let Cell { operation, block_bytes, batch, .. } = task.cell;
    let mut command = Command::new(program);
    command.args(["bench", "--protocol", "rdma", "--path", "rdma"]);
    command.args(["--device-name", nic.device, "--gid-index", GID_INDEX]);
    command.args(["--local-server-name", nic.address]);
    command.args(["--buffer-size", &BUFFER_BYTES.to_string()]);
    match to {
        None => command.args(["--mode", "target"]),
        Some(segment) => command
            .args(["--mode", "initiator", "--segment-id", segment, "--operation", operation])
            .args(["--block-size", &block_bytes.to_string(), "--batch-size", &batch.to_string()])
            .args(["--threads", "1", "--duration", &task.seconds.to_string(), "--json"]),
    };
    command
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shell::shown;

    const CELL: Cell =
        Cell { operation: "read", block_bytes: 65536, batch: 16, walk: 1, trace: None };

    #[test]
    fn each_side_is_at_its_nic_and_the_initiator_knows_its_segment() {
        let task = Task { cell: CELL, seconds: 2.0 };
        let (far, near) = (&NICS[0], &NICS[1]);
        let line = shown(&perftest(task, near, Some("10.9.0.1")));
        assert!(line.starts_with("stdbuf -oL ib_read_bw ") && line.contains("-d rxe1"), "{line}");
        assert!(line.ends_with("-q 2 -s 65536 -t 16 -n 610 10.9.0.1"), "{line}");
        let line = shown(&mooncake("bench".into(), task, near, Some("10.9.0.1:9")));
        assert!(line.contains("-segment_id=10.9.0.1:9 -operation=read -duration=2"), "{line}");
        let line = shown(&kvrail("kvrail".as_ref(), task, far, None));
        assert!(line.contains("--device-name rxe0") && line.ends_with("--mode target"), "{line}");
        let line = shown(&kvrail("kvrail".as_ref(), task, near, Some("10.9.0.1:9")));
        assert!(line.contains("--segment-id 10.9.0.1:9 --operation read"), "{line}");
    }

    #[test]
    fn targets_are_ready_when_they_say_so() {
        let ready = |system: System, said| system.segment(said);
        let waiting = "****\n* Waiting for client to connect... *\n";
        assert_eq!(ready(System::Perftest, waiting).as_deref(), Some("10.9.0.1"));
        let listening = "I1 impl.cpp:183] P2P handshake, listening on 10.9.0.1:15433\n";
        assert_eq!(ready(System::Mooncake, listening), None);
        let whole = format!("{listening}I1 bench.cpp:335] DRAM is used, numa node num: 1\n");
        assert_eq!(ready(System::Mooncake, &whole).as_deref(), Some("10.9.0.1:15433"));
        assert_eq!(ready(System::Kvrail, "segment 10.9.0.1:7\n").as_deref(), Some("10.9.0.1:7"));
    }

    #[test]
    fn figures_are_read_in_one_unit() {
        let rate = |system: System, said| system.megabytes_per_second(said, CELL);
        let table = " #bytes     #iterations    BW peak[MB/sec]    BW average[MB/sec]   MsgRate\n \
                     65536      1500             59.18              50.00  \t\t   0.000875\n";
        assert_eq!(rate(System::Perftest, table), Some(52.4288));
        assert_eq!(rate(System::Perftest, " #bytes\n"), None);
        let ended = "x] Test completed: duration 2.00, batch count 100, throughput 52.4 MB/s\n";
        assert_eq!(rate(System::Mooncake, ended), Some(52.4288));
        let report = "noise\n{\"gigabytes_per_second\": 0.5}\n";
        assert_eq!(rate(System::Kvrail, report), Some(500.0));
        assert_eq!(rate(System::Kvrail, "{}"), None);
    }
}

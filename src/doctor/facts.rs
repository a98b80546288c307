//! Gathering: what the kernel grants this process, tried out or read.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener, TcpStream};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::Path;
use std::time::Duration;

use kvrail_reactors::affinity;
use kvrail_reactors::probe::{self, Limit};

use crate::topology::{Devices, Gpus, Memory, Topology};
use crate::{Error, Result};

/// How a thing went that was tried; the error is the system's number for it.
pub type Answer = std::result::Result<(), i32>;

/// What there is to judge.
#[derive(Debug, Clone)]
pub struct Facts {
    /// Making an io_uring.
    pub io_uring: Answer,
    /// The sysctl `kernel.io_uring_disabled`; `None` before Linux 6.6.
    pub io_uring_disabled: Option<u32>,
    /// Memory that may be locked, in bytes.
    pub memlock: Limit,
    /// Whether this process has `CAP_IPC_LOCK`, and with it no limit on memory that devices pin.
    pub may_lock: bool,
    /// Descriptors that may be open.
    pub open_files: Limit,
    /// CPUs and nodes.
    pub topology: Result<Topology, Error>,
    /// Memory that can be had.
    pub memory: Memory,
    /// Reading one's own memory by `process_vm_readv`, which only a profile can forbid.
    pub process_vm: Answer,
    /// The sysctl `kernel.yama.ptrace_scope`; `None` without Yama.
    pub ptrace_scope: Option<u32>,
    /// Whether this process has `CAP_SYS_PTRACE`.
    pub may_ptrace: bool,
    /// Making, mapping and sealing a memfd.
    pub memfd: Answer,
    /// Sealing one against writers to come.
    pub seal_future_write: Answer,
    /// Listening on an abstract Unix socket.
    pub unix_socket: Answer,
    /// Listening on 127.0.0.1 and connecting to it.
    pub loopback_v4: Answer,
    /// Listening on ::1 and connecting to it.
    pub loopback_v6: Answer,
    /// Sending over a connection that the kernel encrypts.
    pub kernel_tls: Answer,
    /// NICs and RDMA devices.
    pub devices: Devices,
    /// Loading libibverbs: how many devices it knows, or what is wrong; `None` in a build without
    /// RDMA.
    pub verbs: Option<std::result::Result<usize, String>>,
    /// GPUs.
    pub gpus: Gpus,
    /// The process's seccomp mode: 0 none, 1 strict, 2 a filter; `None` where the kernel has none.
    pub seccomp: Option<u32>,
}

/// `CAP_IPC_LOCK` of `capabilities(7)`.
const CAP_IPC_LOCK: u32 = 14;

/// `CAP_SYS_PTRACE`.
const CAP_SYS_PTRACE: u32 = 19;

impl Facts {
    /// The facts about this process on this machine.
    pub fn here() -> Self {
        let root = Path::new("/");
        let status = status(root);
        let none = Limit { soft: None, hard: None };
        Self {
            io_uring: answer(affinity::probe_uring()),
            io_uring_disabled: sysctl(root, "kernel/io_uring_disabled"),
            // A limit that can't be read is found out by whatever runs into it.
            memlock: probe::memlock().unwrap_or(none),
            may_lock: status.may_lock,
            open_files: probe::open_files().unwrap_or(none),
            topology: Topology::here(),
            memory: Memory::here(),
            process_vm: answer(probe::process_vm_readv()),
            ptrace_scope: sysctl(root, "kernel/yama/ptrace_scope"),
            may_ptrace: status.may_ptrace,
            memfd: answer(probe::memfd()),
            seal_future_write: answer(probe::seal_future_write()),
            unix_socket: answer(abstract_socket()),
            loopback_v4: answer(loopback(Ipv4Addr::LOCALHOST.into())),
            loopback_v6: answer(loopback(Ipv6Addr::LOCALHOST.into())),
            kernel_tls: answer(probe::kernel_tls()),
            devices: Devices::here(),
            verbs: verbs(),
            gpus: Gpus::here(),
            seccomp: status.seccomp,
        }
    }
}

fn answer(result: io::Result<()>) -> Answer {
    // What has no number is the library's own refusal of what it was given.
    result.map_err(|error| error.raw_os_error().unwrap_or(probe::EINVAL))
}

fn sysctl(root: &Path, name: &str) -> Option<u32> {
    fs::read_to_string(root.join("proc/sys").join(name)).ok()?.trim().parse().ok()
}

struct Status {
    may_lock: bool,
    may_ptrace: bool,
    seccomp: Option<u32>,
}

fn status(root: &Path) -> Status {
    let text = fs::read_to_string(root.join("proc/self/status")).unwrap_or_default();
    let value = |key: &str| Some(text.lines().find_map(|line| line.strip_prefix(key))?.trim());
    let effective = value("CapEff:").and_then(|mask| u64::from_str_radix(mask, 16).ok());
    let has = |capability: u32| effective.is_some_and(|mask| mask >> capability & 1 == 1);
    Status {
        // Pinning asks for the capability in the first user namespace.
        may_lock: has(CAP_IPC_LOCK) && is_first_user_namespace(root),
        may_ptrace: has(CAP_SYS_PTRACE),
        seccomp: value("Seccomp:").and_then(|mode| mode.parse().ok()),
    }
}

/// The first user namespace maps every user to itself; kernels without namespaces have only it.
fn is_first_user_namespace(root: &Path) -> bool {
    fs::read_to_string(root.join("proc/self/uid_map"))
        .map_or(true, |map| map.split_whitespace().eq(["0", "0", &u32::MAX.to_string()]))
}

/// A connection inside the kernel takes microseconds; a second is for a host that stands still.
const LOOPBACK_PATIENCE: Duration = Duration::from_secs(1);

fn abstract_socket() -> io::Result<()> {
    let name = format!("kvrail-doctor-{}", std::process::id());
    UnixListener::bind_addr(&SocketAddr::from_abstract_name(name)?).map(drop)
}

fn loopback(address: IpAddr) -> io::Result<()> {
    let listener = TcpListener::bind((address, 0))?;
    // Where the interface is down, listening works and connecting doesn't.
    TcpStream::connect_timeout(&listener.local_addr()?, LOOPBACK_PATIENCE).map(drop)
}

#[cfg(feature = "rdma")]
fn verbs() -> Option<std::result::Result<usize, String>> {
    let names = kvrail_reactors::verbs::Device::names();
    Some(names.map(|names| names.len()).map_err(|error| error.to_string()))
}

#[cfg(not(feature = "rdma"))]
fn verbs() -> Option<std::result::Result<usize, String>> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::tests::tree;

    #[test]
    fn status_and_sysctls_are_read() {
        let root = tree(&[
            ("proc/self/status", "Name:\tx\nCapEff:\t0000000000084000\nSeccomp:\t2\n"),
            ("proc/self/uid_map", "         0          0 4294967295\n"),
            ("proc/sys/kernel/yama/ptrace_scope", "1\n"),
        ]);
        let found = status(root.path());
        assert!(found.may_ptrace && found.may_lock);
        assert_eq!(found.seccomp, Some(2));
        assert_eq!(sysctl(root.path(), "kernel/yama/ptrace_scope"), Some(1));
        assert_eq!(sysctl(root.path(), "kernel/io_uring_disabled"), None);
        let bare = status(tree(&[]).path());
        assert!(!bare.may_ptrace && !bare.may_lock && bare.seccomp.is_none());
    }

    #[test]
    fn capabilities_of_a_user_namespace_do_not_pin_memory() {
        let status_of = |map: &str| {
            let text = "CapEff:\t000001ffffffffff\n";
            status(tree(&[("proc/self/status", text), ("proc/self/uid_map", map)]).path())
        };
        assert!(!status_of("0 100000 65536\n").may_lock);
        assert!(!status_of("0 0 1000\n1000 1000 1\n").may_lock);
        assert!(status_of("0 0 4294967295\n").may_lock);
    }

    #[test]
    fn this_machine_answers_every_question_twice_alike() {
        let (first, second) = (Facts::here(), Facts::here());
        assert_eq!(first.memfd, second.memfd);
        assert_eq!(first.unix_socket, second.unix_socket, "the first one left nothing behind");
        assert_eq!(first.memfd, Ok(()), "or no test of regions passes");
    }
}

//! What processes of one host and the network need: memfds, sockets, foreign memory.

use kvrail_reactors::probe::{EADDRNOTAVAIL, EINVAL, ENETUNREACH, ENOENT};

use super::{errno, fail, ok, warn};
use crate::doctor::{Answer, Facts, Finding, Verdict};
use crate::path::tcp::NO_KERNEL_TLS;

pub(super) fn memfd(facts: &Facts) -> Finding {
    let name = "memfd";
    if let Err(number) = facts.memfd {
        return fail(
            name,
            format!("regions live in memfds, and none can be made and sealed: {}", errno(number)),
            "run Linux 3.17 or later, allow memfd_create in the seccomp profile, and keep the \
             sysctl vm.memfd_noexec below 2",
        );
    }
    match facts.seal_future_write {
        Ok(()) => ok(name, "memfds are made and sealed (/dev/shm is not used)"),
        Err(_) => warn(
            name,
            "memfds can't be sealed against writers, so other processes don't map regions",
            "run Linux 5.1 or later; until then processes of this host transfer over TCP",
        ),
    }
}

const TCP_INSTEAD: &str = "memory from Engine::allocate is not concerned, the rest goes over TCP";

pub(super) fn foreign_memory(facts: &Facts) -> Finding {
    let name = "foreign_memory";
    if let Err(number) = facts.process_vm {
        return warn(
            name,
            format!("other processes' memory can't be read: {}; {TCP_INSTEAD}", errno(number)),
            "allow process_vm_readv in the seccomp profile, or `--cap-add SYS_PTRACE`",
        );
    }
    let (who, remedy) = match facts.ptrace_scope {
        None | Some(0) => {
            return ok(name, "processes of one user may read each other's registered memory");
        }
        Some(1 | 2) if facts.may_ptrace => {
            return ok(name, "this process may read others' registered memory (CAP_SYS_PTRACE)");
        }
        Some(1) => (
            "whom its owner names (PR_SET_PTRACER)",
            "start engines with `peers_may_trace(true)`, or set the sysctl \
             kernel.yama.ptrace_scope to 0",
        ),
        Some(2) => (
            "processes with CAP_SYS_PTRACE",
            "set the sysctl kernel.yama.ptrace_scope to 0 or 1, or `--cap-add SYS_PTRACE`",
        ),
        Some(_) => (
            "nobody",
            "kernel.yama.ptrace_scope stays 3 until the next boot: boot with a lower one",
        ),
    };
    warn(name, format!("registered memory may be read only by {who}; {TCP_INSTEAD}"), remedy)
}

pub(super) fn unix_sockets(facts: &Facts) -> Finding {
    let name = "unix_sockets";
    match facts.unix_socket {
        Ok(()) => ok(name, "Unix sockets work, so peers of this host need no network"),
        Err(number) => warn(
            name,
            format!("no Unix socket can listen ({}): peers come over TCP", errno(number)),
            "allow AF_UNIX in the seccomp profile (RestrictAddressFamilies= of systemd)",
        ),
    }
}

pub(super) fn loopback(facts: &Facts) -> Finding {
    let name = "loopback";
    match (facts.loopback_v4, facts.loopback_v6) {
        (Ok(()), Ok(())) => ok(name, "127.0.0.1 and ::1 can be reached"),
        (Ok(()), Err(_)) => ok(name, "127.0.0.1 can be reached; there is no IPv6"),
        (Err(_), Ok(())) => warn(
            name,
            "there is no IPv4; ::1 can be reached",
            "name engines by an IPv6 address: `.host(\"::1\")`, `--local-server-name ::1`",
        ),
        (Err(EADDRNOTAVAIL | ENETUNREACH), _) => warn(
            name,
            "neither 127.0.0.1 nor ::1 can be reached, so engines need another address",
            "`ip link set lo up`, or name engines by an address of another interface",
        ),
        (Err(number), Err(_)) => fail(
            name,
            format!("there are no network sockets for this process: {}", errno(number)),
            "allow AF_INET and AF_INET6 (the seccomp profile, RestrictAddressFamilies= of systemd)",
        ),
    }
}

/// An option, which an engine does without.
pub(super) fn kernel_tls(answer: Answer) -> Finding {
    let name = "kernel_tls";
    match answer {
        Ok(()) => ok(name, "the kernel can encrypt TCP (encrypt_tcp)"),
        Err(ENOENT | EINVAL) => ok(name, "TCP can't be encrypted (encrypt_tcp)")
            .or(Verdict::Ok, format!("to have it: {NO_KERNEL_TLS}")),
        Err(number) => ok(name, format!("TCP can't be encrypted: {}", errno(number)))
            .or(Verdict::Ok, "to have it: allow setsockopt(TCP_ULP) on a loopback connection"),
    }
}

pub(super) fn seccomp(facts: &Facts) -> Finding {
    let name = "seccomp";
    match facts.seccomp {
        Some(2) => ok(name, "a seccomp filter is active; what it forbids stands above"),
        _ => ok(name, "no seccomp filter"),
    }
}

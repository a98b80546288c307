//! A healthy machine, then one thing after another taken from it.

mod rdma;

use kvrail_reactors::probe::{EACCES, EINVAL, ENETUNREACH, EPERM};

use super::*;
use crate::topology::{Devices, Gpus, NodeMemory};

const GIB: u64 = 1 << 30;

fn node_memory(id: u32, gib: u64) -> NodeMemory {
    let bytes = gib * GIB;
    NodeMemory { id, total_bytes: bytes, room_bytes: bytes, free_bytes: bytes, huge_room_bytes: 0 }
}

/// Two nodes of two CPUs and 4 GiB each; this process may use CPUs `allowed`.
fn topology(allowed: &str) -> Topology {
    let node = |id: u32, cpus: &str| crate::topology::Node {
        id,
        cpus: cpus.parse().unwrap(),
        memory_total_bytes: 4 * GIB,
        memory_free_bytes: 4 * GIB,
    };
    Topology { nodes: vec![node(0, "0-1"), node(1, "2-3")], allowed: allowed.parse().unwrap() }
}

fn healthy() -> Facts {
    let plenty = Limit { soft: Some(1 << 30), hard: None };
    Facts {
        io_uring: Ok(()),
        io_uring_disabled: Some(0),
        memlock: Limit { soft: None, hard: None },
        may_lock: false,
        open_files: plenty,
        topology: Ok(topology("0-3")),
        memory: Memory {
            nodes: vec![node_memory(0, 4), node_memory(1, 4)],
            host_room_bytes: Some(8 * GIB),
            huge_room_bytes: GIB,
            ..Memory::default()
        },
        process_vm: Ok(()),
        ptrace_scope: None,
        may_ptrace: false,
        memfd: Ok(()),
        seal_future_write: Ok(()),
        unix_socket: Ok(()),
        loopback_v4: Ok(()),
        loopback_v6: Ok(()),
        kernel_tls: Ok(()),
        devices: Devices::default(),
        verbs: Some(Ok(0)),
        gpus: Gpus { found: Err("none".into()), has_driver: false },
        seccomp: Some(0),
    }
}

/// What the check says once `change` has happened to a healthy machine; all others are still ok.
fn changed(name: &str, change: impl FnOnce(&mut Facts)) -> Finding {
    let mut facts = healthy();
    change(&mut facts);
    let findings = all(&facts);
    let others = findings.iter().filter(|found| found.name != name);
    for other in others {
        assert_eq!(other.verdict, Verdict::Ok, "{other:?}");
    }
    findings.into_iter().find(|found| found.name == name).expect("the check is there")
}

#[track_caller]
fn says(found: &Finding, verdict: Verdict, words: &str, remedy: &str) {
    assert_eq!(found.verdict, verdict, "{found:?}");
    assert!(found.what.contains(words), "{found:?}");
    assert!(found.remedy.as_deref().unwrap_or_default().contains(remedy), "{found:?}");
}

#[test]
fn a_healthy_machine_is_ok_throughout() {
    let findings = all(&healthy());
    assert!(findings.iter().all(|found| found.verdict == Verdict::Ok), "{findings:?}");
    let names: std::collections::BTreeSet<_> = findings.iter().map(|found| found.name).collect();
    assert_eq!(names.len(), findings.len());
}

#[test]
fn refused_io_uring_names_who_refuses_it() {
    for (errno, sysctl, seccomp, words, remedy) in [
        (EPERM, Some(0), 2, "forbidden", "seccomp profile"),
        (ENOSYS, None, 2, "forbidden", "seccomp profile"),
        (ENOSYS, Some(0), 0, "forbidden", "seccomp profile"),
        (ENOSYS, None, 0, "not in this kernel", "Linux 5.11"),
        (EPERM, Some(2), 2, "sysctl", "kernel.io_uring_disabled to 0"),
        (EPERM, Some(1), 0, "privileged", "kernel.io_uring_group"),
        (ENOMEM, Some(0), 0, "no memory", "ulimit -l"),
    ] {
        let found = changed("io_uring", |facts| {
            facts.io_uring = Err(errno);
            facts.io_uring_disabled = sysctl;
            facts.seccomp = Some(seccomp);
        });
        says(&found, Verdict::Warn, words, remedy);
        assert!(found.what.contains("epoll"), "{found:?}");
    }
}

#[test]
fn little_locked_memory_runs_on_epoll() {
    for (hard, remedy) in [(None, "`ulimit -l 512`"), (Some(64 << 10), "LimitMEMLOCK")] {
        let limit = Limit { soft: Some(64 << 10), hard };
        let found = changed("memlock", |facts| facts.memlock = limit);
        says(&found, Verdict::Warn, "64.0 KiB of memory may be locked", remedy);
    }
    let limit = Limit { soft: Some(512 << 10), hard: Some(512 << 10) };
    says(&changed("memlock", |facts| facts.memlock = limit), Verdict::Ok, "512.0 KiB", "");
}

#[test]
fn a_kernel_without_tls_is_fine_and_told_of() {
    for (errno, remedy) in [(ENOENT, "modprobe -a tls chacha20poly1305"), (EPERM, "setsockopt")] {
        let found = changed("kernel_tls", |facts| facts.kernel_tls = Err(errno));
        says(&found, Verdict::Ok, "can't be encrypted", remedy);
    }
}

#[test]
fn few_descriptors_are_warned_of_and_too_few_fail() {
    for (soft, hard, verdict, remedy) in [
        (32, Some(32), Verdict::Fail, "LimitNOFILE"),
        (256, Some(4096), Verdict::Warn, "`ulimit -n 4096`"),
        (256, None, Verdict::Warn, "`ulimit -n unlimited`"),
        (1024, Some(1024), Verdict::Ok, ""),
    ] {
        let limit = Limit { soft: Some(soft), hard };
        let found = changed("open_files", |facts| facts.open_files = limit);
        says(&found, verdict, &format!("{soft} descriptors"), remedy);
    }
}

#[test]
fn one_cpu_is_warned_of_and_two_of_one_node_are_fine() {
    let found = changed("cpus", |facts| facts.topology = Ok(topology("3")));
    says(&found, Verdict::Warn, "CPU 3 is all there is", "--idle event");
    let found = changed("cpus", |facts| facts.topology = Ok(topology("2-3")));
    says(&found, Verdict::Ok, "2 CPUs may be used: 2-3", "");
    let none = || Err(crate::Error::refused("no CPU to run on"));
    says(&changed("cpus", |facts| facts.topology = none()), Verdict::Fail, "no CPU", "widen");
}

#[test]
fn nodes_are_judged_by_what_this_process_may_use() {
    let found = changed("numa", |facts| {
        facts.topology = Ok(topology("2-3"));
        facts.memory.allowed_nodes = Some("1".parse().unwrap());
    });
    says(&found, Verdict::Ok, "one node has memory for this process: 1", "");
    let found = changed("numa", |facts| {
        facts.topology = Ok(topology("2-3"));
        facts.memory.allowed_nodes = Some("0".parse().unwrap());
    });
    says(&found, Verdict::Warn, "CPUs are on node 1, memory is on node 0", "node 1 to cpuset.mems");
    let found = changed("numa", |facts| facts.memory.binding = Binding::Forbidden);
    says(&found, Verdict::Warn, "can't be bound", "--cap-add SYS_NICE");
    let found = changed("numa", |facts| facts.memory.binding = Binding::Unsupported);
    says(&found, Verdict::Warn, "no policies", "CONFIG_NUMA");
    let found = changed("numa", |facts| {
        facts.memory.nodes.clear();
        facts.memory.binding = Binding::Unsupported;
    });
    says(&found, Verdict::Ok, "no NUMA nodes", "");
}

#[test]
fn a_node_without_memory_is_how_the_machine_is_and_no_fault() {
    let found = changed("numa", |facts| {
        facts.topology = Ok(topology("2-3"));
        facts.memory.nodes[1] = NodeMemory { id: 1, ..NodeMemory::default() };
    });
    says(&found, Verdict::Ok, "one node has memory for this process: 0", "");
}

#[test]
fn the_tightest_limit_on_memory_is_named() {
    let found = changed("memory", |facts| facts.memory.group_room_bytes = Some(GIB));
    says(&found, Verdict::Ok, "the cgroup leaves 1.0 GiB", "");
    let found = changed("memory", |facts| facts.memory.group_room_bytes = Some(1 << 20));
    says(&found, Verdict::Warn, "the cgroup leaves 1.0 MiB", "container's limit");
    let found = changed("memory", |facts| facts.memory.file_limit_bytes = Some(1 << 20));
    says(&found, Verdict::Warn, "files may have 1.0 MiB", "ulimit -f");
    let found = changed("memory", |facts| facts.memory.host_room_bytes = None);
    says(&found, Verdict::Ok, "doesn't say", "");
}

#[test]
fn huge_pages_are_counted_and_hinted_at() {
    says(&changed("huge_pages", |_| ()), Verdict::Ok, "1.0 GiB are free", "");
    let found = changed("huge_pages", |facts| facts.memory.huge_room_bytes = 0);
    says(&found, Verdict::Ok, "no huge pages", "vm.nr_hugepages");
}

#[test]
fn memfds_are_needed_and_their_last_seal_is_not() {
    for errno in [ENOSYS, EPERM, EACCES] {
        let found = changed("memfd", |facts| facts.memfd = Err(errno));
        says(&found, Verdict::Fail, "none can be made and sealed", "memfd_create");
    }
    let found = changed("memfd", |facts| facts.seal_future_write = Err(EINVAL));
    says(&found, Verdict::Warn, "can't be sealed against writers", "Linux 5.1");
}

#[test]
fn ptrace_scopes_mean_what_yama_says() {
    for (scope, may_ptrace, verdict, words, remedy) in [
        (Some(0), false, Verdict::Ok, "processes of one user", ""),
        (Some(1), false, Verdict::Warn, "PR_SET_PTRACER", "peers_may_trace(true)"),
        (Some(2), false, Verdict::Warn, "CAP_SYS_PTRACE", "ptrace_scope to 0 or 1"),
        (Some(2), true, Verdict::Ok, "CAP_SYS_PTRACE", ""),
        (Some(3), true, Verdict::Warn, "nobody", "next boot"),
    ] {
        let found = changed("foreign_memory", |facts| {
            facts.ptrace_scope = scope;
            facts.may_ptrace = may_ptrace;
        });
        says(&found, verdict, words, remedy);
    }
    let found = changed("foreign_memory", |facts| facts.process_vm = Err(EPERM));
    says(&found, Verdict::Warn, "can't be read", "process_vm_readv");
}

#[test]
fn sockets_are_judged_by_what_is_left() {
    let found = changed("unix_sockets", |facts| facts.unix_socket = Err(EPERM));
    says(&found, Verdict::Warn, "over TCP", "AF_UNIX");
    let found = changed("loopback", |facts| facts.loopback_v4 = Err(EINVAL));
    says(&found, Verdict::Warn, "no IPv4", "--local-server-name ::1");
    says(&changed("loopback", |facts| facts.loopback_v6 = Err(EINVAL)), Verdict::Ok, "no IPv6", "");
    for (errno, verdict, words, remedy) in [
        (ENETUNREACH, Verdict::Warn, "neither", "ip link set lo up"),
        (EPERM, Verdict::Fail, "no network sockets", "AF_INET"),
    ] {
        let found = changed("loopback", |facts| {
            (facts.loopback_v4, facts.loopback_v6) = (Err(errno), Err(errno));
        });
        says(&found, verdict, words, remedy);
    }
}

#[test]
fn an_active_filter_is_mentioned() {
    let found = changed("seccomp", |facts| facts.seccomp = Some(2));
    says(&found, Verdict::Ok, "filter is active", "");
}

//! Pure: facts in, findings out.

mod gpus;
mod host;
mod rdma;

use kvrail_reactors::probe::{ENOENT, ENOMEM, ENOSYS, Limit};

use super::{Facts, Finding, Verdict};
use crate::limits::{MEMLOCK_MIN_BYTES, OPEN_FILES_AMPLE, OPEN_FILES_MIN};
use crate::topology::{Binding, Memory, NodeSet, Size, Topology};

pub(super) fn all(facts: &Facts) -> Vec<Finding> {
    vec![
        io_uring(facts),
        memlock(facts.memlock),
        open_files(facts.open_files),
        cpus(facts),
        numa(facts),
        memory(&facts.memory),
        huge_pages(&facts.memory),
        host::memfd(facts),
        host::foreign_memory(facts),
        host::unix_sockets(facts),
        host::loopback(facts),
        host::kernel_tls(facts.kernel_tls),
        rdma::verbs(facts),
        rdma::ports(&facts.devices),
        rdma::gids(&facts.devices),
        rdma::memlock(facts),
        gpus::gpus(&facts.gpus),
        host::seccomp(facts),
    ]
}

fn ok(name: &'static str, what: impl Into<String>) -> Finding {
    Finding { name, verdict: Verdict::Ok, what: what.into(), remedy: None }
}

fn warn(name: &'static str, what: impl Into<String>, remedy: impl Into<String>) -> Finding {
    ok(name, what).or(Verdict::Warn, remedy)
}

fn fail(name: &'static str, what: impl Into<String>, remedy: impl Into<String>) -> Finding {
    ok(name, what).or(Verdict::Fail, remedy)
}

impl Finding {
    fn or(self, verdict: Verdict, remedy: impl Into<String>) -> Self {
        Self { verdict, remedy: Some(remedy.into()), ..self }
    }
}

/// The sentence's other half where the shards can't have io_uring's executor.
const ON_EPOLL: &str = "so the shards run on epoll";

const ALLOW_URING: &str =
    "allow io_uring_setup, io_uring_enter and io_uring_register in the container's seccomp profile";

fn io_uring(facts: &Facts) -> Finding {
    let name = "io_uring";
    let (why, remedy) = match (facts.io_uring, facts.io_uring_disabled) {
        (Ok(()), _) => return ok(name, "io_uring works"),
        (Err(_), Some(2)) => {
            ("is switched off by a sysctl", "set the sysctl kernel.io_uring_disabled to 0")
        }
        (Err(_), Some(1)) if facts.seccomp != Some(2) => (
            "is for privileged processes only",
            "set the sysctl kernel.io_uring_disabled to 0, or run with CAP_SYS_ADMIN or in the \
             group of kernel.io_uring_group",
        ),
        (Err(ENOSYS), None) if facts.seccomp != Some(2) => {
            ("is not in this kernel", "run Linux 5.11 or later, with CONFIG_IO_URING")
        }
        (Err(ENOMEM), _) => ("gets no memory", "raise the limit on locked memory (`ulimit -l`)"),
        _ => ("is forbidden", ALLOW_URING),
    };
    warn(name, format!("io_uring {why}, {ON_EPOLL}"), format!("to get io_uring: {remedy}"))
}

fn memlock(limit: Limit) -> Finding {
    let name = "memlock";
    let needed = Size(MEMLOCK_MIN_BYTES);
    match limit.soft {
        None => ok(name, "memory may be locked without limit"),
        Some(bytes) if bytes >= MEMLOCK_MIN_BYTES => {
            ok(name, format!("{} of memory may be locked, {needed} are needed", Size(bytes)))
        }
        Some(bytes) => {
            let remedy = raise_memlock(limit, MEMLOCK_MIN_BYTES);
            let what = format!("{} of memory may be locked, io_uring needs {needed}", Size(bytes));
            warn(name, format!("{what}, {ON_EPOLL}"), remedy)
        }
    }
}

/// How to have so much memory locked.
fn raise_memlock(limit: Limit, needed_bytes: u64) -> String {
    match limit.hard {
        None if needed_bytes == u64::MAX => "`ulimit -l unlimited`".to_owned(),
        Some(hard) if hard < needed_bytes => {
            "LimitMEMLOCK=infinity in the systemd unit, `docker run --ulimit memlock=-1`, or \
             memlock in /etc/security/limits.conf"
                .to_owned()
        }
        _ => format!("`ulimit -l {}`", needed_bytes.div_ceil(1 << 10)),
    }
}

fn open_files(limit: Limit) -> Finding {
    let name = "open_files";
    let Some(soft) = limit.soft else { return ok(name, "descriptors without limit") };
    let what = format!("{soft} descriptors may be open; each connection takes one");
    let most = limit.hard.map_or_else(|| "unlimited".to_owned(), |hard| hard.to_string());
    let remedy = if limit.hard.is_none_or(|hard| hard >= OPEN_FILES_AMPLE) {
        format!("`ulimit -n {most}`")
    } else {
        format!("LimitNOFILE= in the systemd unit, `docker run --ulimit nofile={OPEN_FILES_AMPLE}`")
    };
    match soft {
        few if few < OPEN_FILES_MIN => {
            fail(name, format!("{what}, and an engine needs {OPEN_FILES_MIN}"), remedy)
        }
        few if few < OPEN_FILES_AMPLE => warn(name, what, remedy),
        _ => ok(name, what),
    }
}

fn cpus(facts: &Facts) -> Finding {
    let name = "cpus";
    let topology = match &facts.topology {
        Ok(topology) => topology,
        Err(error) => {
            return fail(
                name,
                format!("there is no CPU to run on: {error}"),
                "widen the process's affinity or cpuset, or allow sched_getaffinity",
            );
        }
    };
    match topology.allowed.len() {
        1 => warn(
            name,
            format!("CPU {} is all there is: shard and service take turns on it", topology.allowed),
            "give it two CPUs, or start the engine with Idle::Event (--idle event), so that the \
             shard never spins in the service's way",
        ),
        count => ok(name, format!("{count} CPUs may be used: {}", topology.allowed)),
    }
}

fn numa(facts: &Facts) -> Finding {
    let name = "numa";
    let (Ok(topology), memory) = (&facts.topology, &facts.memory) else {
        return ok(name, "without CPUs there is nothing to say about nodes");
    };
    let usable: NodeSet = memory.usable().map(|node| node.id as usize).collect();
    if let Some((cpu_nodes, far)) = misplaced(topology, memory, &usable) {
        return warn(
            name,
            format!(
                "CPUs are on node {cpu_nodes}, memory is on node {usable}: every access is far"
            ),
            format!("add node {far} to cpuset.mems, or take CPUs of node {usable}"),
        );
    }
    match (usable.len(), memory.binding) {
        (0, _) => ok(name, "the kernel shows no NUMA nodes: memory needs no binding"),
        (1, _) => ok(name, format!("one node has memory for this process: {usable}")),
        (count, Binding::Permitted) => {
            ok(name, format!("{count} nodes have memory for this process: {usable}"))
        }
        (count, Binding::Unsupported) => warn(
            name,
            format!("{count} nodes have memory ({usable}), but this kernel has no policies"),
            "run a kernel with CONFIG_NUMA",
        ),
        (count, Binding::Forbidden) => warn(
            name,
            format!("{count} nodes have memory ({usable}), but memory can't be bound to one"),
            "run the container with `--cap-add SYS_NICE`, or allow mbind in its seccomp profile",
        ),
    }
}

/// The nodes of our CPUs and those whose memory is kept from us, where no CPU has any near.
fn misplaced(topology: &Topology, memory: &Memory, usable: &NodeSet) -> Option<(NodeSet, NodeSet)> {
    let cpu_nodes: NodeSet = topology
        .allowed
        .iter()
        .filter_map(|cpu| topology.node_of(cpu))
        .map(|n| n as usize)
        .collect();
    let has_memory = |node: &usize| {
        memory.nodes.iter().any(|known| known.id as usize == *node && known.total_bytes > 0)
    };
    let far: NodeSet =
        cpu_nodes.iter().filter(|node| !usable.contains(*node) && has_memory(node)).collect();
    let is_near = cpu_nodes.iter().any(|node| usable.contains(node));
    (!is_near && !far.is_empty()).then_some((cpu_nodes, far))
}

/// Less room than this is no place for a KV cache.
const LITTLE_BYTES: u64 = 64 << 20;

fn memory(memory: &Memory) -> Finding {
    let name = "memory";
    let places = [("the host", memory.host_room_bytes), ("the cgroup", memory.group_room_bytes)];
    let rooms = places.iter().filter_map(|(place, room)| Some((place, (*room)?)));
    let Some((place, room)) = rooms.min_by_key(|(_, room)| *room) else {
        return ok(name, "the kernel doesn't say how much memory is free");
    };
    let what = format!("{place} leaves {} for regions", Size(room));
    if let Some(limit) = memory.file_limit_bytes.filter(|limit| *limit < room) {
        let what = format!("regions are files in memory, and files may have {}", Size(limit));
        return warn(name, what, "raise `ulimit -f`");
    }
    if room < LITTLE_BYTES {
        return warn(name, what, "free memory, or raise the container's limit");
    }
    ok(name, what)
}

fn huge_pages(memory: &Memory) -> Finding {
    let name = "huge_pages";
    if memory.huge_room_bytes == 0 {
        let what = "no huge pages are free, so regions are on pages of 4 KiB";
        let remedy = "to have some: `sysctl vm.nr_hugepages=N` (2 MiB each), early after booting";
        return ok(name, what).or(Verdict::Ok, remedy);
    }
    ok(name, format!("{} are free in pages of 2 MiB", Size(memory.huge_room_bytes)))
}

/// The system's word for an error number.
fn errno(number: i32) -> String {
    match number {
        ENOENT => "not there".to_owned(),
        number => std::io::Error::from_raw_os_error(number).to_string(),
    }
}

#[cfg(test)]
mod tests;

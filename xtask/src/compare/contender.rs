//! What is put side by side: workloads, and who takes part in each. A new contender or workload
//! is an entry here; a new program must speak the lines of `benches/peers/driver.py`.

use super::bars::Bar;

/// What all contenders do in their own way: move batches between two memories.
pub struct Workload {
    /// What `--only` calls it.
    pub name: &'static str,
    pub about: &'static str,
    pub bar: Bar,
    /// Where the question is about these alone; none where every size and batch is measured.
    pub shapes: &'static [Shape],
    pub contenders: &'static [Contender],
}

/// A batch, in both directions.
#[derive(Clone, Copy)]
pub struct Shape {
    pub block_bytes: u64,
    /// Requests of a batch.
    pub batch: u64,
    /// Batches, behind each other in memory, that take turns.
    pub walk: u64,
}

/// One long prompt's layer slices (12 KiB are what one layer of the example's model keeps of 16
/// tokens), and as many bytes in one request.
const SLICES: [Shape; 2] = [shape(12 << 10, 10_000), shape((12 << 10) * 10_000, 1)];
/// Where several callers got in each other's way: requests that are neither short nor long.
const OF_CALLERS: [Shape; 3] = [shape(4 << 10, 16), shape(64 << 10, 1), shape(64 << 10, 16)];
/// What one wake, or two, stand beside.
const OF_LATENCY: [Shape; 2] = [shape(4 << 10, 1), shape(64 << 10, 1)];
/// As many peers as there are at most. Each has memory of its own here, and that of each is walked
/// through where there are fewer.
const PEERS: u64 = 1_000;
const OF_PEERS: [Shape; 2] = [walking(4 << 10, 16), walking(64 << 10, 4)];

const fn shape(block_bytes: u64, batch: u64) -> Shape {
    Shape { block_bytes, batch, walk: 1 }
}

const fn walking(block_bytes: u64, batch: u64) -> Shape {
    Shape { walk: PEERS, ..shape(block_bytes, batch) }
}

/// Whose figures these are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    Ours,
    Peer,
    /// What the machine does at best.
    Limit,
}

impl Role {
    pub fn word(self) -> &'static str {
        match self {
            Self::Ours => "ours",
            Self::Peer => "peer",
            Self::Limit => "limit",
        }
    }
}

/// One system in one workload.
#[derive(Clone, Copy)]
pub struct Contender {
    /// What the tables call it.
    pub name: &'static str,
    pub role: Role,
    pub program: Program,
    /// What its program is told on both sides, beside sizes and names.
    pub options: &'static str,
    /// 2: one serves memory, the other is asked. 1: it has both memories.
    pub processes: usize,
    /// The smallest batch for which its figures are comparable.
    pub from_batch: u64,
    /// Threads that each have batches of their own under way.
    pub callers: u64,
    /// Names under which the target is opened, each a peer with connections of its own.
    pub peers: u64,
}

/// What runs it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Program {
    /// `kvrail bench`.
    Kvrail,
    /// The example `limits` of the crate `reactors`.
    Limits,
    /// Drivers in `benches/peers`.
    Mooncake,
    Nixl,
    Ucx,
    Iperf3,
}

/// Every workload, in the order of the report.
pub const WORKLOADS: [Workload; 8] = [
    Workload {
        name: "tcp",
        about: "two processes, TCP on loopback",
        bar: Bar::Peers,
        shapes: &[],
        contenders: &[
            ours("--path tcp"),
            peer("Mooncake tcp", Program::Mooncake, ""),
            peer("NIXL tcp", Program::Nixl, "tcp"),
            peer("UCX tcp", Program::Ucx, "tcp"),
            limit("sockets", "sockets"),
            // It never waits for an answer, so it says nothing of single requests.
            Contender { program: Program::Iperf3, from_batch: 2, ..limit("iperf3", "") },
        ],
    },
    Workload {
        name: "host",
        about: "two processes of one host, no network",
        bar: Bar::HostPeers,
        shapes: &[],
        contenders: &[
            ours("--path host"),
            peer("NIXL shm+cma", Program::Nixl, "posix,cma,tcp"),
            peer("UCX shm+cma", Program::Ucx, "posix,cma,tcp"),
            limit("memcpy", "memcpy"),
            limit("process_vm", "process-vm"),
        ],
    },
    Workload {
        name: "process-vm",
        about: "two processes of one host, memory that nobody can map",
        bar: Bar::None,
        shapes: &[],
        contenders: &[ours("--path host --memory foreign"), limit("process_vm", "process-vm")],
    },
    Workload {
        name: "local",
        about: "inside one process",
        bar: Bar::Limit,
        shapes: &[],
        contenders: &[
            Contender { processes: 1, ..ours("--path local") },
            Contender { processes: 1, ..limit("memcpy", "memcpy") },
        ],
    },
    Workload {
        name: "callers",
        about: "two processes, TCP on loopback, 4 callers, 2 and 1",
        bar: Bar::Callers,
        shapes: &OF_CALLERS,
        contenders: &[
            Contender { callers: 4, ..ours("--path tcp") },
            Contender { callers: 2, name: "kvrail, 2 callers", ..ours("--path tcp") },
            Contender { name: "kvrail, 1 caller", ..ours("--path tcp") },
            Contender { callers: 4, ..peer("Mooncake", Program::Mooncake, "") },
            Contender { callers: 2, ..peer("Mooncake, 2 callers", Program::Mooncake, "") },
            peer("Mooncake, 1 caller", Program::Mooncake, ""),
            limit("sockets, 1 caller", "sockets"),
        ],
    },
    Workload {
        name: "latency",
        about: "two processes, TCP on loopback, one request at a time, whose callers are tasks on \
                the shard, or threads",
        bar: Bar::Latency,
        shapes: &OF_LATENCY,
        contenders: &[
            ours("--path tcp --callers-on-shards"),
            Contender { name: "kvrail, from outside", ..ours("--path tcp") },
            peer("NIXL tcp", Program::Nixl, "tcp"),
            peer("UCX tcp", Program::Ucx, "tcp"),
            peer("Mooncake tcp", Program::Mooncake, ""),
            limit("sockets", "sockets"),
        ],
    },
    Workload {
        name: "peers",
        about: "two processes, TCP on loopback, batches to 1,000 peers in turn, to 100, 10 and 1",
        bar: Bar::ManyPeers,
        shapes: &OF_PEERS,
        contenders: &[
            Contender { peers: PEERS, ..ours("--path tcp") },
            Contender { peers: 100, name: "kvrail, 100 peers", ..ours("--path tcp") },
            Contender { peers: 10, name: "kvrail, 10 peers", ..ours("--path tcp") },
            Contender { name: "kvrail, 1 peer", ..ours("--path tcp") },
            limit("sockets, 1 peer", "sockets"),
        ],
    },
    Workload {
        name: "slices",
        about: "two processes, TCP on loopback, 10,000 blocks beside one as long",
        bar: Bar::Whole,
        shapes: &SLICES,
        contenders: &[
            ours("--path tcp"),
            peer("Mooncake tcp", Program::Mooncake, ""),
            limit("sockets", "sockets"),
        ],
    },
];

/// The workload of `--trace`, one caller: whoever is asked serves the requests as they come.
pub const TRACE: Workload = Workload {
    name: "trace",
    about: "requests of a trace, TCP on loopback; latency of a request, from its arrival",
    bar: Bar::None,
    shapes: &[],
    contenders: &[ours("--path tcp"), peer("Mooncake tcp", Program::Mooncake, "")],
};

const fn ours(options: &'static str) -> Contender {
    let (role, program) = (Role::Ours, Program::Kvrail);
    let (processes, from_batch, callers, peers) = (2, 1, 1, 1);
    Contender { name: "kvrail", role, program, options, processes, from_batch, callers, peers }
}

const fn peer(name: &'static str, program: Program, options: &'static str) -> Contender {
    Contender { name, role: Role::Peer, program, ..ours(options) }
}

const fn limit(name: &'static str, options: &'static str) -> Contender {
    Contender { name, role: Role::Limit, program: Program::Limits, ..ours(options) }
}

/// A workload by its name.
///
/// # Errors
/// There is none of that name; the message has those there are.
pub fn workload(name: &str) -> Result<&'static Workload, String> {
    let found = WORKLOADS.iter().find(|workload| workload.name == name);
    found.ok_or_else(|| {
        let names = WORKLOADS.map(|workload| workload.name).join(", ");
        format!("no workload is called {name}: there are {names}")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_workload_has_ours_first_a_limit_and_no_name_twice() {
        for workload in &WORKLOADS {
            let roles: Vec<_> = workload.contenders.iter().map(|one| one.role).collect();
            assert_eq!(roles[0], Role::Ours, "{}", workload.name);
            assert!(roles.contains(&Role::Limit), "{}", workload.name);
            let mut names: Vec<_> = workload.contenders.iter().map(|one| one.name).collect();
            names.sort_unstable();
            names.dedup();
            assert_eq!(names.len(), roles.len(), "{}", workload.name);
        }
    }

    #[test]
    fn workloads_are_found_by_name_and_the_error_names_them() {
        assert_eq!(workload("host").map(|found| found.name), Ok("host"));
        assert!(workload("ram").err().is_some_and(|error| error.contains("process-vm")));
    }
}

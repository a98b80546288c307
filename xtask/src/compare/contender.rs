//! What is put side by side: workloads, and who takes part in each. A new contender or workload
//! is an entry here; a new program must speak the lines of `benches/peers/driver.py`.

/// What all contenders do in their own way: move batches between two memories.
pub struct Workload {
    /// What `--only` calls it.
    pub name: &'static str,
    pub about: &'static str,
    pub contenders: &'static [Contender],
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
    Iperf3,
}

/// Every workload, in the order of the report.
pub const WORKLOADS: [Workload; 4] = [
    Workload {
        name: "tcp",
        about: "two processes, TCP on loopback",
        contenders: &[
            ours("--path tcp"),
            peer("Mooncake tcp", Program::Mooncake, ""),
            peer("NIXL tcp", Program::Nixl, "tcp"),
            limit("sockets", "sockets"),
            // It never waits for an answer, so it says nothing of single requests.
            Contender { program: Program::Iperf3, from_batch: 2, ..limit("iperf3", "") },
        ],
    },
    Workload {
        name: "host",
        about: "two processes of one host, no network",
        contenders: &[
            ours("--path host"),
            peer("NIXL shm+cma", Program::Nixl, "posix,cma,tcp"),
            limit("memcpy", "memcpy"),
            limit("process_vm", "process-vm"),
        ],
    },
    Workload {
        name: "process-vm",
        about: "two processes of one host, memory that nobody can map",
        contenders: &[ours("--path host --memory foreign"), limit("process_vm", "process-vm")],
    },
    Workload {
        name: "local",
        about: "inside one process",
        contenders: &[
            Contender { processes: 1, ..ours("--path local") },
            Contender { processes: 1, ..limit("memcpy", "memcpy") },
        ],
    },
];

const fn ours(options: &'static str) -> Contender {
    let (role, program) = (Role::Ours, Program::Kvrail);
    Contender { name: "kvrail", role, program, options, processes: 2, from_batch: 1 }
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
            assert_eq!(roles.iter().filter(|role| **role == Role::Ours).count(), 1);
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

//! tests/environments.rs, each test where something is missing that it is named after: made by
//! namespaces, limits and filters here, and in a guest where it takes another kernel's settings.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::proof::{self, Binary};
use crate::shell::{Shell, quoted, shown};
use crate::steps::Outcome;
use crate::vm::{Job, Machine, prepare};

/// How a test gets its surroundings: a script that ends in running `"$@"`.
struct Environment {
    test: &'static str,
    script: &'static str,
}

const fn environment(test: &'static str, script: &'static str) -> Environment {
    Environment { test, script }
}

/// Those that this host can make. `$NOBODY` and `$XTASK` are commands that run another.
const HERE: [Environment; 9] = [
    environment("io_uring_forbidden", r#"exec "$XTASK" without-uring --errno EPERM -- "$@""#),
    environment("io_uring_unknown", r#"exec "$XTASK" without-uring --errno ENOSYS -- "$@""#),
    environment("unprivileged", r#"exec $NOBODY "$@""#),
    // Root's CAP_IPC_LOCK would make the limit meaningless.
    environment("little_locked_memory", r#"exec prlimit --memlock=65536 $NOBODY "$@""#),
    environment(
        "one_cpu",
        r#"cpu=$(sed -n 's/^Cpus_allowed_list:\t\([0-9]*\).*/\1/p' /proc/self/status)
        exec taskset --cpu-list "$cpu" "$@""#,
    ),
    environment(
        "full_dev_shm",
        r#"exec unshare --mount sh -ec '
            mount -t tmpfs -o size=64k tmpfs /dev/shm
            head -c 1M /dev/zero >/dev/shm/full 2>/dev/null || true
            exec "$@"' sh "$@""#,
    ),
    environment("read_only_root", READ_ONLY),
    environment(
        "read_only_root_unprivileged",
        // The same, and then as nobody.
        r#"set -- $NOBODY "$@"; eval "$READ_ONLY""#,
    ),
    environment(
        "ipv6_only",
        r#"exec unshare --net --mount sh -ec '
            ip link set lo up
            ip -4 address flush dev lo
            mount --bind "$HOSTS" /etc/hosts
            exec "$@"' sh "$@""#,
    ),
];

/// Everything that a process could write files to, but for what the kernel itself keeps.
const READ_ONLY: &str = r#"exec unshare --mount sh -ec '
    grep -E "^[^ ]+ (/|/tmp|/var.*|/home.*|/root.*|/run.*|/dev/shm) " /proc/mounts |
        while read -r device folder rest; do mount -o remount,bind,ro "$folder"; done
    exec "$@"' sh "$@""#;

/// Those that take a guest's kernel.
const IN_A_GUEST: [Environment; 4] = [
    environment("ptrace_scope_1", r#"echo 1 >$YAMA; $NOBODY "$@""#),
    environment("ptrace_scope_2", r#"echo 2 >$YAMA; $NOBODY "$@""#),
    environment(
        "cpuset_of_one_cpu",
        r#"echo +cpuset >/sys/fs/cgroup/cgroup.subtree_control
        mkdir /sys/fs/cgroup/one; echo 1 >/sys/fs/cgroup/one/cpuset.cpus
        echo 0 >/sys/fs/cgroup/one/cpuset.mems
        sh -ec 'echo $$ >/sys/fs/cgroup/one/cgroup.procs; exec "$@"' sh "$@""#,
    ),
    // The guest's own: nothing is missing there, so what fails above is not the guest.
    environment("nothing_missing", r#""$@""#),
];

/// Both addresses of the name, as most hosts have them, the useless one first.
const HOSTS: &str = "127.0.0.1 localhost\n::1 localhost\n";
const NOBODY: &str = "setpriv --reuid 65534 --regid 65534 --clear-groups";
const YAMA: &str = "/proc/sys/kernel/yama/ptrace_scope";
/// Many times what the guest's tests take together on a machine with two busy cores.
const GUEST_LIMIT_S: u64 = 300;

/// The step: every environment, in turn.
pub fn all(shell: &Shell) -> Outcome {
    if !shell.is_root() {
        return Err("namespaces and other users need root: run this step as root".to_owned());
    }
    let built = proof::built(shell, "environments")?;
    // Where nobody may read and execute: a repository in root's home is no such place.
    let folder = tempfile::Builder::new().prefix("kvrail-environments-").tempdir();
    let folder = folder.map_err(|error| format!("a folder for the tests: {error}"))?;
    let binary = &copied(&built, folder.path())?;
    let failed: Vec<_> = HERE.iter().filter_map(|one| here(shell, binary, one).err()).collect();
    let guest = in_a_guest(shell, binary).err();
    let failed: Vec<_> = failed.into_iter().chain(guest).collect();
    match failed.is_empty() {
        true => Ok(format!("{} here, {} in a guest", HERE.len(), IN_A_GUEST.len())),
        false => Err(failed.join("\n")),
    }
}

fn copied(binary: &Binary, folder: &Path) -> Result<Binary, String> {
    let failed = |error| format!("{}: {error}", folder.display());
    fs::set_permissions(folder, fs::Permissions::from_mode(0o755)).map_err(failed)?;
    let (test, kvrail) = (folder.join("environments"), folder.join("kvrail"));
    fs::copy(&binary.test, &test).map_err(failed)?;
    fs::copy(&binary.kvrail, &kvrail).map_err(failed)?;
    // By this name it is there even if a step before has built it anew and replaced the file.
    fs::copy("/proc/self/exe", folder.join("xtask")).map_err(failed)?;
    fs::write(folder.join("hosts"), HOSTS).map_err(failed)?;
    Ok(Binary { test, kvrail })
}

fn here(shell: &Shell, binary: &Binary, environment: &Environment) -> Result<(), String> {
    let Environment { test, script } = environment;
    println!("{test}:");
    let mut command = shell.command("sh");
    command.args(["-ec", script, "sh"]).arg(&binary.test).args(proof::arguments(test));
    variables(&mut command, binary);
    let output = command.stderr(Stdio::inherit()).output();
    let output = output.map_err(|error| format!("`{}`: {error}", shown(&command)))?;
    let said = String::from_utf8_lossy(&output.stdout);
    print!("{said}");
    match output.status.success() && proof::passed(&said, test) {
        true => Ok(()),
        false => Err(format!("{test} did not pass: {}", output.status)),
    }
}

fn variables(command: &mut Command, binary: &Binary) {
    command.env("KVRAIL_COMMAND", &binary.kvrail).env("NOBODY", NOBODY);
    command.env("READ_ONLY", READ_ONLY);
    for (name, file) in [("XTASK", "xtask"), ("HOSTS", "hosts")] {
        command.env(name, binary.test.with_file_name(file));
    }
}

fn in_a_guest(shell: &Shell, binary: &Binary) -> Result<(), String> {
    let boot = prepare(shell, None)?;
    let one = |Environment { test, script }: &Environment| {
        let path = quoted(&binary.test.to_string_lossy());
        let words = proof::arguments(test).join(" ");
        format!("echo {test}:; sh -ec {} sh {path} {words} || failed=1\n", quoted(script))
    };
    let command = format!(
        "export NOBODY={} YAMA={YAMA} KVRAIL_COMMAND={}; failed=0\n{}exit $failed",
        quoted(NOBODY),
        quoted(&binary.kvrail.to_string_lossy()),
        IN_A_GUEST.iter().map(one).collect::<String>(),
    );
    let job = Job { command, limit_s: GUEST_LIMIT_S, keep: true };
    let ended = boot.run(&Machine::default(), &job)?;
    let missed = IN_A_GUEST.iter().find(|one| !proof::passed(&ended.output, one.test));
    match (missed, ended.code) {
        (None, 0) => Ok(()),
        (Some(one), code) => Err(format!("{} did not pass in a guest ({code})", one.test)),
        (None, code) => Err(format!("the guest's exit code is {code}")),
    }
}

//! One guest: QEMU's command line, the boot, the job's output and exit code.

use std::ffi::OsString;
use std::fs;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::{Numa, Wire};
use crate::shell::quoted;

/// Emulated: Debian's kernels don't boot under every KVM that lets itself be opened.
const ACCELERATOR: &str = "tcg,thread=multi";
/// `no_timer_check`: without it one boot in ten hangs on a busy host, before the console is up.
const KERNEL_LINE: &str = "console=ttyS0 panic=-1 nokaslr mitigations=off no_timer_check \
                           tsc=reliable loglevel=4";
/// Boots are tried again while the job has not begun: it can't have done anything yet.
const TRIES: usize = 3;
/// A boot takes 4 s, and 10 s on a busy host.
const BOOT_LIMIT: Duration = Duration::from_secs(60);
/// How soon an end is noticed.
const POLL: Duration = Duration::from_millis(50);
/// Of the NICs: the payload of an RDMA packet is then 4096 bytes, the most there is.
const MTU_BYTES: u32 = 4200;
/// Exit codes as `timeout` has them: the time was up, and the guest could not finish.
const TIME_IS_UP: u8 = 124;
const DIED: u8 = 125;

/// What guests are booted from.
pub struct Boot {
    pub vmlinux: PathBuf,
    pub initrd: PathBuf,
}

/// The hardware of a guest.
#[derive(Debug, Clone)]
pub struct Machine {
    /// Takes the place of `smp` and `memory_mib`.
    pub numa: Option<Numa>,
    pub smp: u32,
    pub memory_mib: u32,
    pub nics: u8,
    /// One end of a pair's wire.
    pub wire: Option<Wire>,
    /// A folder of the host that the guest may write to.
    pub rw: Option<PathBuf>,
    /// The guest kernel's messages.
    pub log: Option<PathBuf>,
    /// More arguments for QEMU.
    pub extra: Vec<String>,
}

impl Default for Machine {
    fn default() -> Self {
        Self {
            numa: None,
            smp: 2,
            memory_mib: 2048,
            nics: 0,
            wire: None,
            rw: None,
            log: None,
            extra: vec![],
        }
    }
}

/// What the guest is for.
pub struct Job {
    /// A line, or a script, for /bin/sh.
    pub command: String,
    pub limit_s: u64,
    /// Whether its standard output is answered too.
    pub keep: bool,
}

/// How a job ended.
pub struct Ended {
    /// The job's, or 124 when its time was up, or 125 when the guest died.
    pub code: u8,
    /// What it wrote to standard output, if that was to be kept.
    pub output: String,
}

impl Boot {
    /// Boots a guest, runs the job in it with our working folder and environment, and ends it.
    pub fn run(&self, machine: &Machine, job: &Job) -> Result<Ended, String> {
        self.run_into(machine, job, io::stdout)
    }

    /// The same, and its standard output goes elsewhere than to ours.
    pub fn run_into<W: Write + Send + 'static>(
        &self,
        machine: &Machine,
        job: &Job,
        output: impl Fn() -> W,
    ) -> Result<Ended, String> {
        let share = tempfile::Builder::new().prefix("kvrail-vm-").tempdir();
        let share = share.map_err(|error| format!("a folder for the job: {error}"))?;
        let machine = &machine.resolved()?;
        describe(share.path(), machine, job).map_err(|error| format!("the job: {error}"))?;
        let arguments = self.arguments(machine, share.path());
        for attempt in 1..=TRIES {
            let guest = Running::start(&arguments, output(), job.keep)?;
            match guest.finish(share.path(), Duration::from_secs(job.limit_s))? {
                Some(ended) => return Ok(ended),
                None => eprintln!("the guest did not come up (try {attempt} of {TRIES})"),
            }
        }
        Err("no guest came up; `cargo xtask vm --log FILE` keeps the kernel's messages".to_owned())
    }

    fn arguments(&self, machine: &Machine, share: &Path) -> Vec<OsString> {
        let mut list = Arguments::default();
        list.words(&["-accel", ACCELERATOR, "-cpu", "max", "-M", "q35"]);
        list.words(&["-nodefaults", "-display", "none", "-no-reboot"]);
        match &machine.numa {
            Some(numa) => list.machine(numa.smp(), numa.memory_mib(), &numa.arguments()),
            None => list.machine(machine.smp, machine.memory_mib, &[]),
        }
        list.path("-kernel", "", &self.vmlinux, "");
        list.path("-initrd", "", &self.initrd, "");
        list.words(&["-append", KERNEL_LINE]);
        let log = machine.log.as_deref().unwrap_or(Path::new("/dev/null"));
        list.path("-serial", "file:", log, "");
        let model = "security_model=none";
        let root = format!(",mount_tag=host,{model},readonly=on,multidevs=remap");
        list.path("-virtfs", "local,path=", Path::new("/"), &root);
        list.path("-virtfs", "local,path=", share, &format!(",mount_tag=job,{model}"));
        if let Some(folder) = &machine.rw {
            list.path("-virtfs", "local,path=", folder, &format!(",mount_tag=rw,{model}"));
        }
        list.words(&["-device", "virtio-serial,max_ports=4"]);
        list.words(&["-chardev", "file,id=o,path=/dev/fd/1,append=on"]);
        list.words(&["-device", "virtserialport,chardev=o,nr=1"]);
        list.words(&["-chardev", "file,id=e,path=/dev/fd/2,append=on"]);
        list.words(&["-device", "virtserialport,chardev=e,nr=2"]);
        if let Some(wire) = &machine.wire {
            list.0.extend(wire.arguments());
        }
        machine.extra.iter().for_each(|word| list.words(&[word]));
        list.0
    }
}

impl Machine {
    /// With paths that hold in the guest too, and that exist.
    fn resolved(&self) -> Result<Self, String> {
        let mut machine = self.clone();
        if let Some(folder) = &mut machine.rw {
            let whole = folder.canonicalize();
            *folder = whole.map_err(|error| format!("--rw {}: {error}", folder.display()))?;
        }
        Ok(machine)
    }
}

#[derive(Default)]
struct Arguments(Vec<OsString>);

impl Arguments {
    fn words(&mut self, words: &[&str]) {
        self.0.extend(words.iter().map(OsString::from));
    }

    fn machine(&mut self, smp: u32, memory_mib: u32, numa: &[String]) {
        self.words(&["-smp", &smp.to_string(), "-m", &memory_mib.to_string()]);
        self.0.extend(numa.iter().map(OsString::from));
    }

    /// A path inside an option, where QEMU wants commas doubled.
    fn path(&mut self, option: &str, before: &str, path: &Path, after: &str) {
        let path = match before {
            "" => path.to_string_lossy().into_owned(),
            _ => path.to_string_lossy().replace(',', ",,"),
        };
        self.words(&[option, &format!("{before}{path}{after}")]);
    }
}

/// Writes what the guest's init reads: xtask/vm/init names the files.
fn describe(share: &Path, machine: &Machine, job: &Job) -> io::Result<()> {
    let rw = machine.rw.as_deref().map_or(String::new(), |path| path.to_string_lossy().into());
    let wire = machine.wire.as_ref().map_or("", |wire| wire.end.address());
    let settings = format!("rw={}\nnics={}\nmtu={MTU_BYTES}\n", quoted(&rw), machine.nics);
    fs::write(share.join("settings"), format!("{settings}wire={wire}\n"))?;
    let folder = std::env::current_dir()?;
    fs::write(share.join("cwd"), folder.to_string_lossy().as_bytes())?;
    let which = machine.wire.iter().flat_map(|wire| wire.end.environment());
    let which = which.map(|(name, value)| (name.into(), value.into()));
    fs::write(share.join("environment"), environment(std::env::vars_os().chain(which)))?;
    fs::write(share.join("command"), format!("{}\n", job.command))
}

/// Our variables, as a shell reads them; those that belong to a shell's own run are left out.
fn environment(variables: impl Iterator<Item = (OsString, OsString)>) -> String {
    let own = ["PWD", "OLDPWD", "SHLVL", "_"];
    let text = variables
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    let is_name = |name: &str| {
        !name.starts_with(|c: char| c.is_ascii_digit())
            && name.chars().all(|c| c == '_' || c.is_ascii_alphanumeric())
    };
    let kept = text.filter(|(name, _)| is_name(name) && !own.contains(&name.as_str()));
    kept.map(|(name, value)| format!("export {name}={}\n", quoted(&value))).collect()
}

/// A guest under way, and what carries its output.
struct Running {
    child: Child,
    output: JoinHandle<Vec<u8>>,
    errors: JoinHandle<Vec<u8>>,
}

impl Running {
    fn start(
        arguments: &[OsString],
        into: impl Write + Send + 'static,
        keep: bool,
    ) -> Result<Self, String> {
        // QEMU ends with us, however we end.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "qemu-system-x86_64"]).args(arguments);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(|error| format!("setpriv: {error}"))?;
        let (output, errors) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
        let output = thread::spawn(move || pass(output, into, keep));
        let errors = thread::spawn(move || pass(errors, io::stderr(), false));
        Ok(Self { child, output, errors })
    }

    /// Waits for the end; nothing, when the job never began.
    fn finish(mut self, share: &Path, limit: Duration) -> Result<Option<Ended>, String> {
        let start = Instant::now();
        let begun = || share.join("begun").exists();
        let mut ended = None;
        while ended.is_none() {
            thread::sleep(POLL);
            ended = self.child.try_wait().map_err(|error| format!("the guest: {error}"))?;
            let stuck = start.elapsed() >= BOOT_LIMIT.min(limit) && !begun();
            if ended.is_none() && (stuck || start.elapsed() >= limit) {
                break;
            }
        }
        // It may have ended by itself a moment ago.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let output = self.output.join().unwrap_or_default();
        let _ = self.errors.join();
        if !begun() {
            return match ended.filter(|status| !status.success()) {
                // A kernel that panics ends it well.
                Some(status) => Err(format!("QEMU refused this machine ({status}): see above")),
                None => Ok(None),
            };
        }
        let code = fs::read_to_string(share.join("code")).unwrap_or_default();
        let code = match (code.trim().parse(), ended) {
            (Ok(code), _) => code,
            (_, Some(_)) => DIED,
            (_, None) => TIME_IS_UP,
        };
        Ok(Some(Ended { code, output: String::from_utf8_lossy(&output).into_owned() }))
    }
}

/// Passes bytes on as they come; answers them too, if they are to be kept.
fn pass(mut from: impl Read, mut to: impl Write, keep: bool) -> Vec<u8> {
    let mut kept = Vec::new();
    let mut buffer = [0; 8192];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        // Whoever reads us may have gone; the guest goes on.
        let _ = to.write_all(&buffer[..count]).and_then(|()| to.flush());
        if keep {
            kept.extend_from_slice(&buffer[..count]);
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::super::End;
    use super::*;

    fn arguments(machine: &Machine) -> String {
        let boot = Boot { vmlinux: "/k/vmlinux".into(), initrd: "/k/initrd".into() };
        let words = boot.arguments(machine, Path::new("/tmp/a,b"));
        words.iter().map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn guests_are_emulated_and_see_the_host_read_only() {
        let line = arguments(&Machine::default());
        assert!(line.starts_with("-accel tcg,thread=multi ") && !line.contains("kvm"), "{line}");
        assert!(line.contains("path=/,mount_tag=host,security_model=none,readonly=on"), "{line}");
        assert!(line.contains("path=/tmp/a,,b,mount_tag=job"), "{line}");
        assert!(line.contains("-smp 2 -m 2048") && !line.contains("mount_tag=rw"), "{line}");
    }

    #[test]
    fn a_numa_layout_decides_about_cpus_and_memory() {
        let numa = Some("512:0-1,256:2".parse().unwrap());
        let rw = Some("/data".into());
        let line = arguments(&Machine { numa, rw, ..Machine::default() });
        assert!(line.contains("-smp 3 -m 768 -object"), "{line}");
        assert!(line.contains("path=/data,mount_tag=rw,security_model=none"), "{line}");
    }

    #[test]
    fn one_of_a_pair_has_its_wire_and_is_told_which_it_is() {
        assert!(!arguments(&Machine::default()).contains("-netdev"));
        let wire = Some(Wire { end: End::B, folder: "/w".into() });
        let machine = Machine { wire, ..Machine::default() };
        let line = arguments(&machine);
        assert!(
            line.contains("-netdev dgram,id=wire,local.type=unix,local.path=/w/b.net"),
            "{line}"
        );
        let share = tempfile::tempdir().unwrap();
        let job = Job { command: "true".to_owned(), limit_s: 1, keep: false };
        describe(share.path(), &machine, &job).unwrap();
        let told = |name: &str| fs::read_to_string(share.path().join(name)).unwrap();
        assert!(told("settings").ends_with("\nwire=10.8.0.2\n"));
        assert!(told("environment").contains("export KVRAIL_PEER_ADDRESS='10.8.0.1'\n"));
    }

    #[test]
    fn the_environment_survives_the_shell() {
        let pairs = [("A", "it's $HOME"), ("SHLVL", "1"), ("BAD-NAME", "x"), ("1A", "y")];
        let text = environment(pairs.iter().map(|(name, value)| (name.into(), value.into())));
        assert_eq!(text, "export A='it'\\''s $HOME'\n");
    }
}

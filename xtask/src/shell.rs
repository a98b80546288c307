//! Running commands in the repository, and installing what they need: always said, never hidden.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

/// The newest libclang with which rdma-sys's bindings can be generated: later ones name what has no
/// name in a way that bindgen 0.59 refuses.
pub const LIBCLANG: &str = "/usr/lib/llvm-14/lib";

/// Nearly every step builds the same: all members, and what users can switch on. One build serves
/// all of them.
pub const WHOLE: &str = "--locked --workspace --features rdma,cuda,etcd,tls";

/// Where commands run and where downloads are kept.
pub struct Shell {
    pub root: PathBuf,
    /// The user's cache folder for kvrail: venvs, tools, the example's model.
    pub cache: PathBuf,
    apt_updated: AtomicBool,
}

impl Shell {
    /// In the workspace that this xtask was built from.
    pub fn new() -> Result<Self, String> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned();
        let set = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        let cache = set("XDG_CACHE_HOME").map(PathBuf::from);
        let cache = cache.or_else(|| Some(PathBuf::from(set("HOME")?).join(".cache")));
        let cache = cache.ok_or("neither HOME nor XDG_CACHE_HOME is set")?.join("kvrail");
        std::fs::create_dir_all(&cache).map_err(|e| format!("{}: {e}", cache.display()))?;
        Ok(Self { root, cache, apt_updated: AtomicBool::new(false) })
    }

    /// A command in the repository's root, without standard input.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        command.current_dir(&self.root).stdin(Stdio::null());
        command
    }

    /// Cargo, with these words as its arguments.
    pub fn cargo(&self, arguments: &str) -> Command {
        let mut command = self.command("cargo");
        command.args(arguments.split_whitespace());
        // For builds with the feature `rdma`; others don't look.
        command.env("LIBCLANG_PATH", LIBCLANG);
        command
    }

    /// Whether `cargo NAME` is installed.
    pub fn has_cargo(&self, name: &str) -> bool {
        succeeds(self.cargo(name).arg("--version"))
    }

    /// Sees to it that `cargo NAME`, a component of the toolchain, is there.
    pub fn component(&self, name: &str, component: &str) -> Result<(), String> {
        if self.has_cargo(name) {
            return Ok(());
        }
        println!("installing the toolchain's {component}");
        run(self.command("rustup").args(["component", "add", component]))
    }

    /// Whether we may install, mount and make namespaces.
    pub fn is_root(&self) -> bool {
        self.command("id").arg("-u").output().is_ok_and(|id| id.stdout == b"0\n")
    }

    /// Renews Debian's lists of packages, once, or says which command does.
    pub fn apt_update(&self, why: &str) -> Result<(), String> {
        if !self.is_root() {
            return Err(format!("{why} needs: sudo apt-get update"));
        }
        if !self.apt_updated.swap(true, Ordering::Relaxed) {
            run(self.command("apt-get").args(["update", "-qq"]))?;
        }
        Ok(())
    }

    /// Installs Debian packages, or says which command does.
    pub fn apt(&self, packages: &[&str], why: &str) -> Result<(), String> {
        let list = packages.join(" ");
        if !self.is_root() {
            return Err(format!("{why} needs: sudo apt-get install {list}"));
        }
        println!("{why} needs {list}: installing");
        self.apt_update(why)?;
        let mut command = self.command("apt-get");
        command.args(["install", "-y", "-qq", "--no-install-recommends"]).args(packages);
        // In this runlevel no package starts its service: tests start their own.
        run(command.env("DEBIAN_FRONTEND", "noninteractive").env("RUNLEVEL", "1"))
    }

    /// Sees to it that `python3` can make venvs and has pip.
    pub fn python(&self) -> Result<(), String> {
        let complete = "import ensurepip, pip, venv";
        if succeeds(self.command("python3").args(["-c", complete])) {
            return Ok(());
        }
        self.apt(&["python3", "python3-venv", "python3-pip"], "a Python environment")
    }
}

/// Shows and runs a command.
pub fn run(command: &mut Command) -> Result<(), String> {
    let shown = shown(command);
    println!("$ {shown}");
    match command.status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("`{shown}` ended with {status}")),
        Err(error) => Err(format!("`{shown}` could not be started: {error}")),
    }
}

/// Whether a command succeeds, without a word.
pub fn succeeds(command: &mut Command) -> bool {
    let quiet = command.stdout(Stdio::null()).stderr(Stdio::null());
    quiet.status().is_ok_and(|status| status.success())
}

/// A program of the PATH, or of the folders for administrators, which not everybody's PATH has.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let more = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    let mut files = std::env::split_paths(&path).chain(more).map(|folder| folder.join(program));
    files.find(|file| file.is_file())
}

/// Where this program is, for a guest to run it too. A build in a step may have put another one in
/// its place, of the same sources; what runs is then called deleted.
///
/// # Errors
/// Neither is there.
pub fn own_program() -> Result<String, String> {
    let own = std::env::current_exe().map_err(|error| format!("our own program: {error}"))?;
    let own = own.to_string_lossy();
    let own = own.strip_suffix(" (deleted)").unwrap_or(&own);
    match Path::new(own).exists() {
        true => Ok(own.to_owned()),
        false => Err(format!("our own program is gone from {own}: build it again")),
    }
}

/// One word for the shell, whatever is in it.
pub fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// The command as a person would type it, its program without the path.
pub fn shown(command: &Command) -> String {
    let program = Path::new(command.get_program()).file_name().unwrap_or_default();
    let words = std::iter::once(program).chain(command.get_args());
    words.map(OsStr::to_string_lossy).collect::<Vec<_>>().join(" ")
}

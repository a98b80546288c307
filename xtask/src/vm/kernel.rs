//! Debian's kernel for the guest: downloaded by apt, unpacked in the cache, never installed.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use super::image;
use crate::shell::{Shell, find, run};

/// The package that names the newest kernel; versions change with each security update.
const NEWEST: &str = "linux-image-amd64";

/// A kernel's package, unpacked.
pub struct Kernel {
    pub version: String,
    /// Holds boot/, lib/modules/ and vmlinux.
    pub folder: PathBuf,
}

impl Kernel {
    /// Unpacked here, not by the guest: under emulation that takes seconds.
    pub fn vmlinux(&self) -> PathBuf {
        self.folder.join("vmlinux")
    }
}

/// The kernel of this version; else one that is here, else the one apt offers.
pub fn fetched(shell: &Shell, version: Option<String>) -> Result<Kernel, String> {
    let kernels = shell.cache.join("kernels");
    let version = match version.or_else(|| newest_here(&kernels)) {
        Some(version) => version,
        None => offered(shell)?,
    };
    let kernel = Kernel { folder: kernels.join(&version), version };
    if !kernel.vmlinux().is_file() {
        fetch(shell, &kernel)?;
    }
    Ok(kernel)
}

/// The one that was fetched last.
fn newest_here(kernels: &Path) -> Option<String> {
    let entries = fs::read_dir(kernels).ok()?.filter_map(Result::ok);
    let whole = entries.filter_map(|entry| {
        let fetched = entry.path().join("vmlinux").metadata().ok()?.modified().ok()?;
        Some((fetched, entry.file_name().into_string().ok()?))
    });
    whole.max().map(|(_, version)| version)
}

fn offered(shell: &Shell) -> Result<String, String> {
    let ask = || {
        let output = shell.command("apt-cache").args(["depends", NEWEST]).output();
        let output = output.map_err(|error| format!("apt-cache: {error}"))?;
        Ok::<_, String>(dependency(&String::from_utf8_lossy(&output.stdout)))
    };
    if let Some(version) = ask()? {
        return Ok(version);
    }
    shell.apt_update("a guest's kernel")?;
    ask()?.ok_or_else(|| format!("apt knows no {NEWEST}: is this Debian on x86-64?"))
}

/// The version in `apt-cache depends`'s answer.
fn dependency(text: &str) -> Option<String> {
    let mut lines = text.lines().map(str::trim);
    let version = lines.find_map(|line| line.strip_prefix("Depends: linux-image-"));
    version.map(str::to_owned)
}

fn fetch(shell: &Shell, kernel: &Kernel) -> Result<(), String> {
    let failed = |error| format!("{}: {error}", kernel.folder.display());
    let Kernel { version, folder } = kernel;
    println!("fetching the kernel {version} into {}", folder.display());
    if folder.exists() {
        fs::remove_dir_all(folder).map_err(failed)?;
    }
    fs::create_dir_all(folder).map_err(failed)?;
    let package = format!("linux-image-{version}");
    let download =
        || run(shell.command("apt-get").current_dir(folder).args(["download", "-qq", &package]));
    // A list from before the last security update names files that are gone.
    download().or_else(|_| shell.apt_update("a guest's kernel").and_then(|()| download()))?;
    let archive = archive(folder).ok_or("apt-get download left no package")?;
    run(shell.command("dpkg").arg("-x").arg(&archive).arg(folder))?;
    fs::remove_file(archive).map_err(failed)?;
    if !folder.join("lib").exists() {
        std::os::unix::fs::symlink("usr/lib", folder.join("lib")).map_err(failed)?;
    }
    let depmod = find("depmod").ok_or("depmod is not found: sudo apt-get install kmod")?;
    run(shell.command(depmod).arg("-b").arg(folder).arg(version))?;
    unpack(shell, kernel)
}

fn archive(folder: &Path) -> Option<PathBuf> {
    let mut paths = fs::read_dir(folder).ok()?.filter_map(|entry| Some(entry.ok()?.path()));
    paths.find(|path| path.extension().is_some_and(|extension| extension == "deb"))
}

/// Writes vmlinux; its name comes last, so that an interrupted fetch is made again.
fn unpack(shell: &Shell, kernel: &Kernel) -> Result<(), String> {
    let packed = kernel.folder.join("boot").join(format!("vmlinuz-{}", kernel.version));
    let failed = |error| format!("{}: {error}", packed.display());
    let bytes = fs::read(&packed).map_err(failed)?;
    let (packing, payload) = image::payload(&bytes)?;
    let unpacked = kernel.folder.join("vmlinux.tmp");
    let mut command = shell.command(packing.program());
    command.args(["-d", "-c", "-q"]).stdin(Stdio::piped());
    command.stdout(File::create(&unpacked).map_err(failed)?);
    let mut child = command.spawn().map_err(|error| format!("{}: {error}", packing.program()))?;
    // Its input closes at the end of this line.
    let fed = child.stdin.take().map_or(Ok(()), |mut input| input.write_all(payload));
    let status = child.wait().map_err(failed)?;
    if fed.is_err() || !status.success() {
        return Err(format!("{} can't unpack {}", packing.program(), packed.display()));
    }
    fs::rename(unpacked, kernel.vmlinux()).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_kernel_is_read_from_apts_answer() {
        let text = "linux-image-amd64\n  Depends: linux-image-6.1.0-56-amd64\n    x\n";
        assert_eq!(dependency(text).as_deref(), Some("6.1.0-56-amd64"));
        assert_eq!(dependency("linux-image-amd64\n  Conflicts: y\n"), None);
    }
}

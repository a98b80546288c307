//! The guest's initramfs: busybox, xtask/vm/init, and the modules it needs, in loading order.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use super::kernel::Kernel;
use crate::shell::{Shell, find, run};

const INIT: &str = include_str!("../../vm/init");
/// The host's files, the job's ports, the overlay; NICs, their switch and soft-RoCE; kernel TLS,
/// the cipher that kvrail has it use (its parts are not found by name while no module folder is
/// there), and sockets that overhear what it sends.
const MODULES: [&str; 18] = [
    "virtio_pci",
    "virtio_console",
    "9pnet_virtio",
    "9p",
    "overlay",
    "virtio_net",
    "veth",
    "bridge",
    "ib_uverbs",
    "rdma_ucm",
    "rdma_rxe",
    "crc32_pclmul",
    "crc32_generic",
    "tls",
    "chacha20poly1305",
    "chacha_generic",
    "poly1305_generic",
    "af_packet",
];

/// The initramfs for this kernel, made unless there is one of the same parts.
pub fn built(shell: &Shell, kernel: &Kernel) -> Result<PathBuf, String> {
    let (initrd, stamp) = (kernel.folder.join("initrd"), kernel.folder.join("initrd.parts"));
    let parts = format!("{}\n{INIT}", MODULES.join(" "));
    let current = fs::read_to_string(&stamp).is_ok_and(|text| text == parts);
    if current && initrd.is_file() {
        return Ok(initrd);
    }
    let failed = |error| format!("{}: {error}", initrd.display());
    let tree = tempfile::tempdir().map_err(failed)?;
    fill(shell, kernel, tree.path())?;
    // Renamed into place: another guest may be starting from the one before.
    let fresh = tempfile::NamedTempFile::new_in(&kernel.folder).map_err(failed)?;
    pack(shell, tree.path(), fresh.reopen().map_err(failed)?)?;
    fresh.persist(&initrd).map_err(|error| failed(error.error))?;
    fs::write(stamp, parts).map_err(failed)?;
    Ok(initrd)
}

fn fill(shell: &Shell, kernel: &Kernel, tree: &Path) -> Result<(), String> {
    let failed = |error| format!("{}: {error}", tree.display());
    for folder in ["bin", "lib", "proc", "sys", "dev"] {
        fs::create_dir(tree.join(folder)).map_err(failed)?;
    }
    let busybox = find("busybox").ok_or("busybox is gone")?;
    fs::copy(busybox, tree.join("bin/busybox")).map_err(failed)?;
    let init = tree.join("init");
    fs::write(&init, INIT).map_err(failed)?;
    fs::set_permissions(&init, fs::Permissions::from_mode(0o755)).map_err(failed)?;
    let mut order = Vec::new();
    for module in modules(shell, kernel)? {
        order.push(copy(shell, &module, &tree.join("lib"))?);
    }
    fs::write(tree.join("lib/order"), order.join("\n") + "\n").map_err(failed)
}

/// Paths of the modules and of what they depend on, each once, dependencies first.
fn modules(shell: &Shell, kernel: &Kernel) -> Result<Vec<PathBuf>, String> {
    let modprobe = find("modprobe").ok_or("modprobe is gone")?;
    let mut paths: Vec<PathBuf> = Vec::new();
    for module in MODULES {
        let mut command = shell.command(&modprobe);
        command.arg("-d").arg(&kernel.folder).args(["-S", &kernel.version, "--show-depends"]);
        let output = command.arg(module).output().map_err(|error| format!("modprobe: {error}"))?;
        if !output.status.success() {
            return Err(format!("the kernel {} has no module {module}", kernel.version));
        }
        for path in inserted(&String::from_utf8_lossy(&output.stdout)) {
            if !paths.contains(&path) {
                paths.push(path);
            }
        }
    }
    Ok(paths)
}

/// The files that `modprobe --show-depends` would insert; what is built in has none.
fn inserted(text: &str) -> Vec<PathBuf> {
    let lines = text.lines().filter_map(|line| line.trim().strip_prefix("insmod "));
    lines.map(|rest| PathBuf::from(rest.trim())).collect()
}

/// Copies a module without its debugging symbols, which would only make the boot longer (and
/// without its signature, which only taints the guest); answers its file name.
fn copy(shell: &Shell, module: &Path, folder: &Path) -> Result<String, String> {
    let failed = |error| format!("{}: {error}", module.display());
    let mut name = module.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let packed = name.strip_suffix(".xz").map(str::to_owned);
    name = packed.clone().unwrap_or(name);
    let target = folder.join(&name);
    match packed {
        Some(_) => {
            let file = File::create(&target).map_err(failed)?;
            let mut command = shell.command("xz");
            let status = command.arg("-dc").arg(module).stdout(file).status().map_err(failed)?;
            if !status.success() {
                return Err(format!("xz can't unpack {}", module.display()));
            }
        }
        None => fs::copy(module, &target).map(|_| ()).map_err(failed)?,
    }
    let status = shell.command("strip").arg("-g").arg(&target).status().map_err(failed)?;
    match status.success() {
        true => Ok(name),
        false => Err(format!("strip can't read {}", target.display())),
    }
}

fn pack(shell: &Shell, tree: &Path, into: File) -> Result<(), String> {
    let listed = tree.with_extension("list");
    let failed = |error| format!("{}: {error}", listed.display());
    let mut find = shell.command("find");
    find.current_dir(tree).arg(".").stdout(File::create(&listed).map_err(failed)?);
    let names = run(&mut find).and_then(|()| File::open(&listed).map_err(failed));
    let mut cpio = shell.command("cpio");
    cpio.current_dir(tree).args(["-o", "-H", "newc", "--quiet"]).stdout(into);
    let packed = names.and_then(|names| run(cpio.stdin(Stdio::from(names))));
    let _ = fs::remove_file(listed);
    packed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_files_are_inserted_not_what_is_built_in() {
        let text = "builtin virtio\ninsmod /k/lib/9pnet.ko \ninsmod /k/lib/9p.ko \n";
        assert_eq!(inserted(text), [Path::new("/k/lib/9pnet.ko"), Path::new("/k/lib/9p.ko")]);
    }
}

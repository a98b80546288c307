//! The interop tests, and the Mooncake wheels they need: pinned, checked by hash, kept in a cache.

use std::fs;
use std::path::{Path, PathBuf};

use crate::shell::{Shell, run, succeeds};
use crate::steps::Outcome;

/// Each wheel's version and all that its venv holds, by version and hash.
const WHEELS: [(&str, &str); 2] = [
    ("0.3.13.post1", include_str!("../mooncake/0.3.13.post1.txt")),
    ("0.3.11.post1", include_str!("../mooncake/0.3.11.post1.txt")),
];
/// What the wheels link to and do not bring, found with ldd on Debian 12.
const LIBRARIES: [&str; 3] = ["libcurl4", "libibverbs1", "libnuma1"];

/// Runs tests/interop against every wheel.
pub fn interop(shell: &Shell) -> Outcome {
    shell.python()?;
    let folder = shell.cache.join("mooncake");
    for (version, requirements) in WHEELS {
        wheel(shell, &folder.join(version), requirements)?;
    }
    let mut tests = match shell.has_cargo("nextest") {
        true => shell.cargo(
            "nextest run --locked --no-fail-fast -p kvrail --test interop --run-ignored all",
        ),
        false => shell.cargo("test --locked -p kvrail --test interop -- --include-ignored"),
    };
    // Each test runs up to three processes of its own.
    run(tests.arg("--test-threads=2").env("KVRAIL_MOONCAKE", &folder))?;
    Ok(WHEELS.map(|(version, _)| version).join(", "))
}

/// Makes the venv unless it is there, holds these requirements and can load the engine.
fn wheel(shell: &Shell, venv: &Path, requirements: &str) -> Result<(), String> {
    let stamp = venv.join("requirements.txt");
    let current = fs::read_to_string(&stamp).is_ok_and(|text| text == requirements);
    if !current || !succeeds(shell.command(python(venv)).arg("--version")) {
        create(shell, venv, requirements, &stamp)?;
    }
    let loads = || succeeds(shell.command(python(venv)).args(["-c", "import mooncake.engine"]));
    if !loads() {
        shell.apt(&LIBRARIES, "Mooncake's engine")?;
    }
    match loads() {
        true => Ok(()),
        false => Err(format!("`import mooncake.engine` fails in {}", venv.display())),
    }
}

/// The stamp comes last, so an interrupted installation is made again.
fn create(shell: &Shell, venv: &Path, requirements: &str, stamp: &Path) -> Result<(), String> {
    println!("installing Mooncake's wheel in {}", venv.display());
    let failed = |error: std::io::Error| format!("{}: {error}", venv.display());
    if venv.exists() {
        fs::remove_dir_all(venv).map_err(failed)?;
    }
    run(shell.command("python3").args(["-m", "venv"]).arg(venv))?;
    let listed = venv.join("requirements.tmp");
    fs::write(&listed, requirements).map_err(failed)?;
    let mut pip = shell.command(python(venv));
    pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]);
    pip.args(["--require-hashes", "--only-binary=:all:", "--no-deps", "--requirement"]);
    run(pip.arg(&listed))?;
    fs::rename(listed, stamp).map_err(failed)
}

fn python(venv: &Path) -> PathBuf {
    venv.join("bin/python")
}

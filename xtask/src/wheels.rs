//! Other projects' Python wheels, each in a venv of its own: pinned, checked by hash, kept in the
//! cache.

use std::fs;
use std::path::{Path, PathBuf};

use crate::shell::{Shell, run, succeeds};

/// A wheel, and what its venv holds.
pub struct Wheel {
    /// The project, as people call it.
    pub name: &'static str,
    pub version: &'static str,
    /// All that the venv holds, by version and hash.
    pub requirements: &'static str,
    /// The module that works once everything is there.
    pub import: &'static str,
    /// Debian packages that the wheel links to and does not bring.
    pub libraries: &'static [&'static str],
}

impl Wheel {
    /// Makes the venv unless it is there, holds these requirements and can load the module.
    pub fn install(&self, shell: &Shell) -> Result<(), String> {
        shell.python()?;
        let stamp = self.venv(shell).join("requirements.txt");
        let current = fs::read_to_string(&stamp).is_ok_and(|text| text == self.requirements);
        if !current || !succeeds(shell.command(self.python(shell)).arg("--version")) {
            self.create(shell, &stamp)?;
        }
        let import = format!("import {}", self.import);
        let loads = || succeeds(shell.command(self.python(shell)).args(["-c", &import]));
        if !loads() && !self.libraries.is_empty() {
            shell.apt(self.libraries, self.name)?;
        }
        match loads() {
            true => Ok(()),
            false => Err(format!("`{import}` fails in {}", self.venv(shell).display())),
        }
    }

    /// The venv's interpreter.
    pub fn python(&self, shell: &Shell) -> PathBuf {
        self.venv(shell).join("bin/python")
    }

    /// A program that the wheel has in its package's folder `inside`. (What `bin/` has is a script
    /// that would leave it running when killed.)
    pub fn program(&self, shell: &Shell, inside: &str) -> Result<PathBuf, String> {
        let library = self.venv(shell).join("lib");
        let folders = fs::read_dir(&library).into_iter().flatten().flatten();
        let mut files = folders.map(|folder| folder.path().join("site-packages").join(inside));
        let found = files.find(|file| file.is_file());
        found.ok_or_else(|| format!("{} has no {inside}", library.display()))
    }

    fn venv(&self, shell: &Shell) -> PathBuf {
        shell.cache.join(self.name.to_lowercase()).join(self.version)
    }

    /// The stamp comes last, so an interrupted installation is made again.
    fn create(&self, shell: &Shell, stamp: &Path) -> Result<(), String> {
        let venv = self.venv(shell);
        println!("installing the wheel of {} {} in {}", self.name, self.version, venv.display());
        let failed = |error: std::io::Error| format!("{}: {error}", venv.display());
        if venv.exists() {
            fs::remove_dir_all(&venv).map_err(failed)?;
        }
        run(shell.command("python3").args(["-m", "venv"]).arg(&venv))?;
        let listed = venv.join("requirements.tmp");
        fs::write(&listed, self.requirements).map_err(failed)?;
        let mut pip = shell.command(self.python(shell));
        pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]);
        pip.args(["--require-hashes", "--only-binary=:all:", "--no-deps", "--requirement"]);
        run(pip.arg(&listed)).map_err(|error| {
            let name = self.name;
            format!("{name} needs a package index: a network, or PIP_INDEX_URL and such ({error})")
        })?;
        fs::rename(listed, stamp).map_err(failed)
    }
}

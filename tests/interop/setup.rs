//! Which Mooncake: the wheel, and the environment that shapes its TCP transport.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// One wheel and the environment that shapes its TCP transport.
#[derive(Clone, Copy)]
pub struct Setup {
    pub wheel: &'static str,
    pub env: &'static [(&'static str, &'static str)],
}

/// Protocol v2, reused connections.
pub fn v13() -> Setup {
    Setup { wheel: "0.3.13.post1", env: &[] }
}

/// Protocol v2, a connection per request.
pub fn v13_no_reuse() -> Setup {
    Setup { wheel: "0.3.13.post1", env: &[("MC_TCP_ENABLE_CONNECTION_POOL", "0")] }
}

/// Protocol v1 forced, reused connections: writes are pipelined.
pub fn v13_v1() -> Setup {
    Setup { wheel: "0.3.13.post1", env: &[("MC_TCP_PROTO", "1")] }
}

/// Protocol v1 forced, a connection per request: the end of stream follows each write.
pub fn v13_v1_no_reuse() -> Setup {
    Setup {
        wheel: "0.3.13.post1",
        env: &[("MC_TCP_PROTO", "1"), ("MC_TCP_ENABLE_CONNECTION_POOL", "0")],
    }
}

/// Knows v1 only, a connection per request.
pub fn v11() -> Setup {
    Setup { wheel: "0.3.11.post1", env: &[] }
}

/// Knows v1 only, reused connections.
pub fn v11_reuse() -> Setup {
    Setup { wheel: "0.3.11.post1", env: &[("MC_TCP_ENABLE_CONNECTION_POOL", "1")] }
}

/// One ignored test for each setup: `interop_tests!(check: v13, v11)` makes `check::v13` and
/// `check::v11`, which call `check` with [`v13`] and [`v11`].
macro_rules! interop_tests {
    ($check:ident: $($setup:ident),*) => {
        mod $check {
            $(
                #[test]
                #[ignore = "needs Mooncake's wheels: cargo xtask test --only interop"]
                fn $setup() {
                    super::$check(crate::setup::$setup());
                }
            )*
        }
    };
}
pub(crate) use interop_tests;

impl Setup {
    /// Whether its requests have no status: the wheel knows no better, or was told to.
    pub fn is_version_1(&self) -> bool {
        self.wheel == v11().wheel || self.env.contains(&("MC_TCP_PROTO", "1"))
    }

    /// Whether its target knows what it registered: 0.3.11 serves whatever is mapped.
    pub fn checks_ranges(&self) -> bool {
        self.wheel != v11().wheel
    }

    /// A program of this wheel's venv, on loopback and TCP even where a NIC is found.
    pub fn command(&self, program: &str) -> Command {
        self.start(&self.venv().join("bin").join(program))
    }

    /// The bench itself: what `bin/` has is a script that would leave it running when killed.
    pub fn bench(&self) -> Command {
        let library = self.venv().join("lib");
        let folders = std::fs::read_dir(&library).into_iter().flatten().flatten();
        let inside = "site-packages/mooncake/transfer_engine_bench";
        let mut benches = folders.map(|folder| folder.path().join(inside));
        let bench = benches.find(|bench| bench.is_file());
        self.start(&bench.unwrap_or_else(|| panic!("no bench in {}", library.display())))
    }

    fn start(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command.env("MC_FORCE_TCP", "1").env("MC_TCP_BIND_ADDRESS", "127.0.0.1");
        command.envs(self.env.iter().copied()).stdin(Stdio::null());
        command
    }

    fn venv(&self) -> PathBuf {
        venvs().join(self.wheel)
    }
}

/// The folder with one venv for each wheel, named by its version.
fn venvs() -> PathBuf {
    match std::env::var_os("KVRAIL_MOONCAKE") {
        Some(folder) => folder.into(),
        None => panic!(
            "KVRAIL_MOONCAKE names no folder with Mooncake's venvs; \
             `cargo xtask test --only interop` makes them and runs these tests"
        ),
    }
}

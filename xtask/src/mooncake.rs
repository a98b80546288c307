//! Mooncake's wheels, and the interop tests that run against them.

use crate::shell::{Shell, WHOLE, run};
use crate::steps::Outcome;
use crate::vm::nics::GID_INDEX;
use crate::wheels::Wheel;

/// The newest that we know first.
pub const WHEELS: [Wheel; 2] = [
    wheel("0.3.13.post1", include_str!("../mooncake/0.3.13.post1.txt")),
    wheel("0.3.11.post1", include_str!("../mooncake/0.3.11.post1.txt")),
];

/// What Mooncake needs in its environment to speak RDMA between soft-RoCE NICs: the address that
/// they have, and one worker instead of six that poll, which would leave the NIC no CPU.
pub const SOFT_ROCE: [(&str, &str); 2] = [("MC_GID_INDEX", GID_INDEX), ("MC_WORKERS_PER_CTX", "1")];

const fn wheel(version: &'static str, requirements: &'static str) -> Wheel {
    // The libraries were found with ldd on Debian 12.
    let libraries = &["libcurl4", "libibverbs1", "libnuma1"];
    Wheel { name: "Mooncake", version, requirements, import: "mooncake.engine", libraries }
}

/// Runs tests/interop against every wheel.
pub fn interop(shell: &Shell) -> Outcome {
    for wheel in WHEELS {
        wheel.install(shell)?;
    }
    let mut tests = match shell.has_cargo("nextest") {
        true => shell
            .cargo(&format!("nextest run {WHOLE} --no-fail-fast --test interop --run-ignored all")),
        false => shell.cargo(&format!("test {WHOLE} --test interop -- --include-ignored")),
    };
    // Each test runs up to three processes of its own.
    let folder = shell.cache.join("mooncake");
    run(tests.arg("--test-threads=2").env("KVRAIL_MOONCAKE", &folder))?;
    Ok(WHEELS.map(|wheel| wheel.version).join(", "))
}

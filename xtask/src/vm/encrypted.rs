//! tests/auth/encrypted.rs in a guest: a host's kernel need not have TLS, Debian's has.

use super::{Job, Machine, prepare};
use crate::proof;
use crate::shell::{Shell, quoted};
use crate::steps::Outcome;

/// Many times what it takes on a machine with two busy cores.
const LIMIT_S: u64 = 900;

/// Runs the tests of that file, those that are ignored elsewhere too.
pub fn all(shell: &Shell) -> Outcome {
    let binary = proof::built(shell, "auth")?;
    let path = quoted(&binary.test.to_string_lossy());
    // Its own list, so that no test is forgotten here.
    let command = format!("{path} encrypted:: --include-ignored --test-threads=1");
    let job = Job { command, limit_s: LIMIT_S, keep: true };
    let ended = prepare(shell, None)?.run(&Machine::default(), &job)?;
    let passed = ended.output.lines().filter(|line| line.trim_end().ends_with("... ok")).count();
    match (ended.code, passed) {
        (0, 1..) => Ok(format!("{passed} tests of encrypted TCP")),
        (code, passed) => Err(format!("encrypted TCP: exit code {code} after {passed} tests")),
    }
}

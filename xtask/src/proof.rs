//! Tests that run somewhere else: their binaries, built here, and what they must have said there.

use std::path::PathBuf;
use std::process::Stdio;

use crate::shell::{Shell, WHOLE, quoted, shown};

/// A test target's binary, and the command line that was built beside it.
pub struct Binary {
    pub test: PathBuf,
    pub kvrail: PathBuf,
}

/// Builds tests/NAME.rs.
pub fn built(shell: &Shell, name: &str) -> Result<Binary, String> {
    let mut command = shell.cargo(&format!("test {WHOLE} --no-run --message-format json --test"));
    command.arg(name).stderr(Stdio::inherit());
    println!("$ {}", shown(&command));
    let output = command.output().map_err(|error| format!("cargo test: {error}"))?;
    if !output.status.success() {
        return Err(format!("tests/{name}.rs could not be built"));
    }
    let messages = String::from_utf8_lossy(&output.stdout);
    let found = |target| executable(&messages, target).ok_or(format!("cargo names no {target}"));
    Ok(Binary { test: found(name)?, kvrail: found("kvrail")? })
}

/// Builds examples/NAME; answers its binary.
pub fn example(shell: &Shell, name: &str, is_release: bool) -> Result<PathBuf, String> {
    let mut command = shell.cargo(&format!("build {WHOLE} --message-format json --example"));
    command.arg(name).args(is_release.then_some("--release")).stderr(Stdio::inherit());
    println!("$ {}", shown(&command));
    let output = command.output().map_err(|error| format!("cargo build: {error}"))?;
    let found = executable(&String::from_utf8_lossy(&output.stdout), name);
    found.filter(|_| output.status.success()).ok_or(format!("{name} could not be built"))
}

/// The executable of a target, in cargo's messages.
pub fn executable(messages: &str, target: &str) -> Option<PathBuf> {
    messages.lines().rev().find_map(|line| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        let is_it = message["target"]["name"] == target;
        Some(PathBuf::from(message["executable"].as_str().filter(|_| is_it)?))
    })
}

/// How one ignored test is run alone.
pub fn arguments(test: &str) -> [&str; 4] {
    ["--ignored", "--exact", test, "--test-threads=1"]
}

/// A script that runs these tests, each in a process of its own, and fails when one does.
pub fn script(binary: &Binary, tests: &[&str]) -> String {
    let path = quoted(&binary.test.to_string_lossy());
    let line = |test: &&str| format!("{path} {} || failed=1\n", arguments(test).join(" "));
    format!("failed=0\n{}exit $failed", tests.iter().map(line).collect::<String>())
}

/// Whether the test ran and passed: a binary that knows no such test ends well too.
pub fn passed(output: &str, test: &str) -> bool {
    output.lines().any(|line| line.trim_end() == format!("test {test} ... ok"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_test_that_did_not_run_has_not_passed() {
        let none = "running 0 tests\r\n\r\ntest result: ok. 0 passed; 0 failed\r\n";
        assert!(!passed(none, "two_nodes"));
        assert!(passed("running 1 test\r\ntest two_nodes ... ok\r\n", "two_nodes"));
        assert!(!passed("test two_nodes ... FAILED\n", "two_nodes"));
        assert!(!passed("test two_nodes ... ignored\n", "two_nodes"));
        assert!(!passed("test two_nodes_more ... ok\n", "two_nodes"));
    }

    #[test]
    fn executables_are_found_among_cargos_messages() {
        let messages = [
            r#"{"reason":"compiler-artifact","target":{"name":"kvrail"},"executable":null}"#,
            r#"{"reason":"compiler-artifact","target":{"name":"kvrail"},"executable":"/t/kvrail"}"#,
            r#"{"reason":"compiler-artifact","target":{"name":"numa"},"executable":"/t/numa-1"}"#,
            r#"{"reason":"build-finished","success":true}"#,
        ];
        let messages = messages.join("\n");
        assert_eq!(executable(&messages, "numa"), Some(PathBuf::from("/t/numa-1")));
        assert_eq!(executable(&messages, "kvrail"), Some(PathBuf::from("/t/kvrail")));
        assert_eq!(executable(&messages, "other"), None);
    }
}

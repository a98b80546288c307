//! `without-uring` as people use it: the command becomes what was asked for, behind a filter.

use std::process::{Command, Output};

fn without_uring(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_xtask"));
    command.arg("without-uring").args(arguments).output().expect("it runs")
}

#[test]
fn the_command_and_its_children_are_filtered() {
    let status = ["sh", "-c", "cat /proc/self/status"];
    for errno in [&[][..], &["--errno", "EPERM"], &["--errno", "enosys"]] {
        let output = without_uring(&[errno, &["--"], &status].concat());
        let status = String::from_utf8_lossy(&output.stdout).into_owned();
        // Mode 2 is a filter, see seccomp(2).
        assert!(status.lines().any(|line| line == "Seccomp:\t2"), "{status}");
    }
}

#[test]
fn the_commands_own_end_is_told() {
    assert_eq!(without_uring(&["--", "sh", "-c", "exit 7"]).status.code(), Some(7));
    let output = without_uring(&["--", "no-such-command"]);
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("no-such-command"), "{said}");
    assert!(!without_uring(&["--errno", "EAGAIN", "--", "true"]).status.success());
}

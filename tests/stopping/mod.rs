//! Processes that tests stop: shared by those that have some, and no test by itself.

use std::process::Child;

use rustix::process::{Pid, Signal, kill_process};

/// Sends a signal.
pub fn signal(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).unwrap();
}

/// Stops it; returns when none of its threads runs, by the kernel's word.
pub fn stop(child: &Child) {
    signal(child, Signal::STOP);
    while !is_stopped(child) {
        std::thread::yield_now();
    }
}

fn is_stopped(child: &Child) -> bool {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", child.id())).unwrap();
    let stat = |task: std::fs::DirEntry| std::fs::read_to_string(task.path().join("stat")).unwrap();
    let is_stopped =
        |stat: String| stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T'));
    tasks.map(|task| stat(task.unwrap())).all(is_stopped)
}

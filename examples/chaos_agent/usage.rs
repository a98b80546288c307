//! What the process holds: all of it must be as before when the load has stopped.

use serde_json::json;

use crate::orders::Verdict;

/// Descriptors, threads, mappings of memfds, and memory of its own in KiB.
pub fn held() -> Verdict {
    let entries = |folder| std::fs::read_dir(folder).map(Iterator::count);
    let maps = std::fs::read_to_string("/proc/self/maps")?;
    let status = std::fs::read_to_string("/proc/self/status")?;
    Ok(json!({
        "descriptors": entries("/proc/self/fd")?,
        "threads": entries("/proc/self/task")?,
        "mappings": maps.lines().filter(|line| line.contains("memfd:")).count(),
        "anonymous_kib": anonymous_kib(&status),
    }))
}

/// The heap, more or less: `proc_pid_status(5)`.
fn anonymous_kib(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_holds_something() {
        let held = held().unwrap();
        assert!(held["descriptors"].as_u64() > Some(2), "{held}");
        assert!(held["anonymous_kib"].as_u64() > Some(0), "{held}");
    }
}

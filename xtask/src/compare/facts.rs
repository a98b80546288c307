//! The machine and the programs, without which figures mean nothing.

use serde_json::{Value, json};

use super::launch::said;
use crate::shell::Shell;

/// What a reader of the figures wants to know first.
pub struct Facts {
    /// Names and values, in the report's order.
    pub lines: Vec<(String, String)>,
}

impl Facts {
    /// Taken before anything is measured.
    pub fn gather(shell: &Shell, versions: &[(String, String)]) -> Self {
        let cpus = std::thread::available_parallelism().map_or(0, usize::from);
        let cpuinfo = read("/proc/cpuinfo");
        let memory = read("/proc/meminfo");
        let huge = read("/sys/kernel/mm/transparent_hugepage/enabled");
        let autogroup = match read("/proc/sys/kernel/sched_autogroup_enabled").trim() {
            "1" => "on: every process in a session of its own",
            _ => "off",
        };
        let mut lines: Vec<(String, String)> = [
            ("date", said(shell.command("date").args(["-u", "+%Y-%m-%d %H:%M UTC"]))),
            ("CPU", format!("{}, {cpus} for this process", field(&cpuinfo, "model name"))),
            ("memory", field(&memory, "MemTotal")),
            ("kernel", read("/proc/sys/kernel/osrelease")),
            ("load average before", read("/proc/loadavg")),
            ("transparent huge pages", chosen(&huge)),
            ("scheduler autogroups", autogroup.to_owned()),
            (
                "TCP congestion control",
                read("/proc/sys/net/ipv4/tcp_congestion_control").trim().to_owned()
                    + " (ours and the limits unpaced on loopback)",
            ),
        ]
        .map(|(name, value)| (name.to_owned(), value.trim().to_owned()))
        .into();
        lines.extend_from_slice(versions);
        Self { lines }
    }

    pub fn json(&self) -> Value {
        self.lines.iter().map(|(name, value)| (name.clone(), json!(value))).collect()
    }
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|_| "unknown".to_owned())
}

/// The value behind the first `name :` of the kernel's lists.
fn field(text: &str, name: &str) -> String {
    let mut pairs = text.lines().filter_map(|line| line.split_once(':'));
    let found = pairs.find(|(key, _)| key.trim() == name);
    found.map_or("unknown", |(_, value)| value.trim()).to_owned()
}

/// The bracketed one of several words: `always [madvise] never`.
fn chosen(words: &str) -> String {
    let inside = words.split_once('[').and_then(|(_, rest)| rest.split_once(']'));
    inside.map_or(words, |(word, _)| word).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_lists_are_read() {
        let text = "processor\t: 0\nmodel name\t: Some CPU @ 2 GHz\nmodel name\t: other\n";
        assert_eq!(field(text, "model name"), "Some CPU @ 2 GHz");
        assert_eq!(field(text, "flags"), "unknown");
        assert_eq!(chosen("always [madvise] never\n"), "madvise");
        assert_eq!(chosen("unknown"), "unknown");
    }
}

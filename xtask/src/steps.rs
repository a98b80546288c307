//! What `cargo xtask test` does: the steps in the order that fails fast, and their summary.

use std::time::{Duration, Instant};

use clap::Args;

use crate::shell::Shell;
use crate::{
    chaos, checkers, compare, environments, example, fuzz, mooncake, rust, services, sim, verbs,
    vm, without_uring,
};

/// What a step answers: a few words for the summary, or what went wrong.
pub type Outcome = Result<String, String>;

struct Step {
    name: &'static str,
    about: &'static str,
    run: fn(&Shell, &Options) -> Outcome,
}

/// What a step builds for itself alone, which no later step looks at: 1 to 2 GB each.
const OWN_BUILDS: &[(&str, &[&str])] = &[
    ("aarch64", &["target/aarch64-unknown-linux-gnu"]),
    ("sim", &["target/sim"]),
    ("loom", &["target/loom"]),
    ("sanitize", &["target/address", "target/thread"]),
    ("fuzz", &["fuzz/target"]),
];

/// Cheap and likely to fail first; what takes minutes or a download last.
const STEPS: &[Step] = &[
    step("fmt", "the sources are formatted", |shell, _| rust::fmt(shell)),
    step("style", "lengths, headers, unsafe", |shell, _| rust::style(shell)),
    step("no-c", "default features compile no C", |shell, _| rust::no_c(shell)),
    step("clippy", "no warning in any target", |shell, _| rust::clippy(shell)),
    step("aarch64", "it compiles for the other architecture", |shell, _| rust::aarch64(shell)),
    step("tests", "unit, integration, examples", |shell, _| rust::tests(shell)),
    step("sim", "seeds and canaries", |shell, _| sim::seeds_and_canaries(shell)),
    step("no-uring", "the same where io_uring is refused", |shell, _| without_uring::suite(shell)),
    step("doc", "doc tests, and docs without a warning", |shell, _| rust::doc(shell)),
    step("loom", "inbox and doorbell in every order", |shell, _| checkers::loom(shell)),
    step("sanitize", "owners of memory, sanitized", |shell, _| checkers::sanitize(shell)),
    step("environments", "what a host may lack", |shell, _| environments::all(shell)),
    step("vm", "NUMA layouts and encrypted TCP, in guests", |shell, _| vm::step(shell)),
    step("rdma", "verbs on soft-RoCE, in a guest", |shell, _| verbs::all(shell)),
    step("interop", "against Mooncake's wheels", |shell, _| mooncake::interop(shell)),
    step("example", "prefill and decode, once", |shell, _| example::once(shell)),
    step("chaos", "processes under fire, every path", |shell, _| chaos::brief(shell)),
    step("compare", "the comparison, one cell", |shell, _| compare::smoke(shell)),
    step("fuzz", "each target for a while", |shell, options| fuzz::all(shell, options.fuzz_s)),
];

const fn step(
    name: &'static str,
    about: &'static str,
    run: fn(&Shell, &Options) -> Outcome,
) -> Step {
    Step { name, about, run }
}

/// Which steps to run.
#[derive(Args)]
pub struct Options {
    /// Run only these steps (may be repeated, or comma-separated).
    #[arg(long, value_name = "STEP", value_delimiter = ',')]
    only: Vec<String>,
    /// Leave these steps out (may be repeated, or comma-separated).
    #[arg(long, value_name = "STEP", value_delimiter = ',')]
    skip: Vec<String>,
    /// Name the steps and stop.
    #[arg(long)]
    list: bool,
    /// Go on after a step failed.
    #[arg(long)]
    keep_going: bool,
    /// Remove what a step built for itself alone as soon as it passed.
    #[arg(long)]
    tidy: bool,
    /// How long each fuzz target runs, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 20)]
    fuzz_s: u32,
}

impl Options {
    fn picks(&self, name: &str) -> bool {
        let listed = |list: &[String]| list.iter().any(|one| one == name);
        (self.only.is_empty() || listed(&self.only)) && !listed(&self.skip)
    }

    fn check(&self) -> Result<(), String> {
        let known = |name: &&String| STEPS.iter().any(|step| step.name == **name);
        match self.only.iter().chain(&self.skip).find(|name| !known(name)) {
            Some(name) => Err(format!("no step is called {name}; `--list` names them")),
            None => Ok(()),
        }
    }
}

/// Runs the picked steps; answers whether all of them passed.
pub fn test(options: &Options) -> Result<bool, String> {
    options.check()?;
    if options.list {
        STEPS.iter().for_each(|step| println!("{:<12} {}", step.name, step.about));
        return Ok(true);
    }
    let shell = Shell::new()?;
    // Most steps build with the features `rdma`, `etcd` and `tls`.
    verbs::packages(&shell)?;
    services::packages(&shell)?;
    let mut summary = Summary::default();
    for step in STEPS.iter() {
        if !options.picks(step.name) {
            println!("{} is left out", step.name);
        } else if summary.failed() > 0 && !options.keep_going {
            summary.skip(step.name, "not reached");
        } else {
            run(step, &shell, options, &mut summary);
        }
    }
    print!("{}", summary.table());
    Ok(summary.failed() == 0)
}

fn run(step: &Step, shell: &Shell, options: &Options, summary: &mut Summary) {
    println!("\n=== {}: {}", step.name, step.about);
    let start = Instant::now();
    let (verdict, note) = match (step.run)(shell, options) {
        Ok(note) => (Verdict::Passed, note),
        Err(error) => (Verdict::Failed, error),
    };
    let took = start.elapsed();
    if options.tidy && verdict == Verdict::Passed {
        tidy(shell, step.name);
    }
    println!("=== {} {} in {:.1} s: {note}", step.name, verdict.word(), took.as_secs_f32());
    println!("    {:.1} GB of the disk are free", free_bytes(shell) as f64 / 1e9);
    summary.add(step.name, verdict, took, note);
}

/// What can't be removed only takes room.
fn tidy(shell: &Shell, name: &str) {
    let own = OWN_BUILDS.iter().filter(|(step, _)| *step == name);
    for folder in own.flat_map(|(_, folders)| *folders) {
        let _ = std::fs::remove_dir_all(shell.root.join(folder));
    }
}

/// Free where the repository lies; 0 where that can't be asked.
fn free_bytes(shell: &Shell) -> u64 {
    let disk = nix::sys::statvfs::statvfs(&shell.root);
    disk.map_or(0, |disk| disk.blocks_available() * disk.fragment_size())
}

#[derive(Clone, Copy, PartialEq)]
enum Verdict {
    Passed,
    Failed,
    Skipped,
}

impl Verdict {
    fn word(self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::Failed => "FAILED",
            Self::Skipped => "skipped",
        }
    }
}

#[derive(Default)]
struct Summary {
    lines: Vec<(&'static str, Verdict, Duration, String)>,
}

impl Summary {
    fn add(&mut self, name: &'static str, verdict: Verdict, took: Duration, note: String) {
        self.lines.push((name, verdict, took, note));
    }

    fn skip(&mut self, name: &'static str, why: &str) {
        self.add(name, Verdict::Skipped, Duration::ZERO, why.to_owned());
    }

    fn count(&self, verdict: Verdict) -> usize {
        self.lines.iter().filter(|line| line.1 == verdict).count()
    }

    fn failed(&self) -> usize {
        self.count(Verdict::Failed)
    }

    /// One line for each step, then the counts on a line of their own.
    fn table(&self) -> String {
        let mut text = String::from("\n");
        for (name, verdict, took, note) in &self.lines {
            let seconds = took.as_secs_f32();
            let first = note.lines().next().unwrap_or_default();
            text += &format!("{name:<12} {:<8} {seconds:>7.1} s  {first}\n", verdict.word());
        }
        let total: Duration = self.lines.iter().map(|line| line.2).sum();
        text += &format!("{:<21} {:>7.1} s\n\n", "total", total.as_secs_f32());
        let [passed, failed, skipped] =
            [Verdict::Passed, Verdict::Failed, Verdict::Skipped].map(|one| self.count(one));
        text + &format!("steps: {passed} passed, {failed} failed, {skipped} skipped\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(only: &[&str], skip: &[&str]) -> Options {
        let owned = |list: &[&str]| list.iter().map(|name| (*name).to_owned()).collect();
        let (only, skip) = (owned(only), owned(skip));
        Options { only, skip, list: false, keep_going: false, tidy: false, fuzz_s: 1 }
    }

    #[test]
    fn only_and_skip_pick_steps_and_unknown_names_are_refused() {
        assert!(options(&[], &[]).picks("fmt"));
        assert!(options(&["fmt", "doc"], &[]).picks("doc"));
        assert!(!options(&["fmt"], &[]).picks("doc"));
        assert!(!options(&["fmt"], &["fmt"]).picks("fmt"));
        assert!(options(&["fmt"], &["doc"]).check().is_ok());
        assert!(options(&[], &["fnt"]).check().unwrap_err().contains("fnt"));
    }

    #[test]
    fn own_builds_are_those_of_steps() {
        let known = |name: &str| STEPS.iter().any(|step| step.name == name);
        assert!(OWN_BUILDS.iter().all(|(name, _)| known(name)));
    }

    #[test]
    fn the_summary_counts_and_keeps_notes_to_one_line() {
        let mut summary = Summary::default();
        summary.add("fmt", Verdict::Passed, Duration::from_millis(1500), "clean".into());
        summary.add("doc", Verdict::Failed, Duration::ZERO, "first\nsecond".into());
        summary.skip("fuzz", "not reached");
        let table = summary.table();
        assert!(table.ends_with("\nsteps: 1 passed, 1 failed, 1 skipped\n"), "{table}");
        assert!(table.contains("first") && !table.contains("second"), "{table}");
    }
}

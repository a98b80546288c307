//! What a request costs, in instructions: examples/price.rs under callgrind, which counts every
//! thread of the process. Counts outlive a busy machine, so two revisions can be compared that were
//! never measured side by side: one against itself differs by nothing where the caller copies, and
//! by up to 5 % where threads wake each other.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use clap::Args;

use crate::shell::{Shell, find, run};

/// Callgrind dumps, and counts anew, where this function of the example is entered.
const PHASE: &str = "*begin_phase*";
/// Fewer requests cost less than the noise of threads that wake each other; more find nothing new.
const COUNT: &str = "500";

/// What to count.
#[derive(Args)]
pub struct Options {
    /// Count this revision too, and say what has changed since.
    #[arg(long, value_name = "REV")]
    baseline: Option<String>,
    /// Batches of a shape's first phase; its second has twice as many.
    #[arg(long, default_value = COUNT)]
    count: u32,
}

/// A path, an operation and a number of blocks; posted `prepared` or made `fresh`.
type Shape = (String, &'static str);
type Price = BTreeMap<usize, (Shape, f64)>;

/// Prints the table.
pub fn price(options: &Options) -> Result<(), String> {
    let shell = Shell::new()?;
    if find("valgrind").is_none() {
        shell.apt(&["valgrind"], "counting instructions")?;
    }
    let folder = shell.root.join("target/price");
    let program = build(&shell, &shell.root, &shell.root.join("target"))?;
    let baseline = options.baseline.as_deref();
    let before = baseline.map(|rev| build_baseline(&shell, &folder, rev)).transpose()?;
    let before = before.map(|program| count(&shell, &program, options.count)).transpose()?;
    let now = count(&shell, &program, options.count)?;
    print!("{}", table(before.as_ref(), &now));
    Ok(())
}

/// The example as it is now, against the library of another revision.
fn build_baseline(shell: &Shell, folder: &Path, rev: &str) -> Result<PathBuf, String> {
    let tree = folder.join("baseline");
    // Left over where an earlier run was ended; fails where there is none.
    crate::shell::succeeds(shell.command("git").args(["worktree", "remove", "--force"]).arg(&tree));
    run(shell.command("git").args(["worktree", "add", "--force", "--detach"]).arg(&tree).arg(rev))?;
    let example = "examples/price.rs";
    fs::copy(shell.root.join(example), tree.join(example))
        .map_err(|error| format!("{example}: {error}"))?;
    // By its file times alone, cargo would take one tree's programs for the other's.
    let built = build(shell, &tree, &folder.join("build"));
    run(shell.command("git").args(["worktree", "remove", "--force"]).arg(&tree))?;
    built
}

/// Builds the example in `tree`; answers where it is.
fn build(shell: &Shell, tree: &Path, target: &Path) -> Result<PathBuf, String> {
    let mut cargo = shell.cargo("build --release --locked -p kvrail --example price");
    run(cargo.current_dir(tree).env("CARGO_TARGET_DIR", target))?;
    Ok(target.join("release/examples/price"))
}

/// Runs a program under callgrind; answers its instructions per batch.
fn count(shell: &Shell, program: &Path, count: u32) -> Result<Price, String> {
    let dumps = tempfile::tempdir().map_err(|error| format!("a folder for dumps: {error}"))?;
    let out = dumps.path().join("dump");
    let mut valgrind = shell.command("valgrind");
    valgrind.args(["--quiet", "--tool=callgrind", &format!("--dump-before={PHASE}")]);
    valgrind.arg(format!("--callgrind-out-file={}", out.display()));
    valgrind.arg(program).arg(count.to_string());
    println!("$ {}", crate::shell::shown(&valgrind));
    let output = valgrind.output().map_err(|error| format!("valgrind: {error}"))?;
    let said = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        return Err(format!("valgrind: {}", String::from_utf8_lossy(&output.stderr)));
    }
    // The first dump is of the time before the first phase, the second of that phase.
    let totals = (2..).map_while(|number| total(&out.with_extension(number.to_string())));
    Ok(priced(said.lines().zip(totals)))
}

/// The instructions of one dump.
fn total(dump: &Path) -> Option<u64> {
    let text = fs::read_to_string(dump).ok()?;
    text.lines().rev().find_map(|line| line.strip_prefix("totals: ")?.parse().ok())
}

/// From the phases' names and instructions: what `path write 16 fresh 1000` has more than its
/// neighbour with 500.
fn priced<'a>(phases: impl Iterator<Item = (&'a str, u64)>) -> Price {
    let counted = phases.map(|(name, total)| {
        let (name, count) = name.rsplit_once(' ')?;
        Some((name, count.parse::<f64>().ok()?, total as f64))
    });
    let counted: Vec<_> = counted.collect();
    let pairs = counted.windows(2).filter_map(|pair| match *pair {
        [Some((one, few, cheap)), Some((other, many, dear))] if one == other => {
            let (shape, way) = one.rsplit_once(' ')?;
            let way = if way == "fresh" { "fresh" } else { "prepared" };
            Some(((shape.to_owned(), way), (dear - cheap) / (many - few)))
        }
        _ => None,
    });
    pairs.enumerate().collect()
}

fn table(before: Option<&Price>, now: &Price) -> String {
    let mut text =
        format!("\n{:<32}{:>10}{:>10}{:>9}\n", "instructions a batch", "before", "now", "");
    for (number, ((shape, way), now)) in now {
        let words: Vec<_> = shape.split(' ').collect();
        let name = match words[..] {
            [path, operation, blocks] => format!("{path:<11}{operation:<6}4K b{blocks:<3}{way}"),
            _ => shape.clone(),
        };
        text += &match before.and_then(|before| before.get(number)) {
            Some((_, before)) => {
                let change = (now / before - 1.0) * 100.0;
                format!("{name:<32}{before:>10.0}{now:>10.0}{change:>+7.1} %\n")
            }
            None => format!("{name:<32}{:>10}{now:>10.0}\n", "-"),
        };
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_start_and_what_a_phase_costs_cancel() {
        let phases = [
            ("warm up", 9_000),
            ("tcp read 1 fresh 10", 107),
            ("tcp read 1 fresh 20", 207),
            ("warm up", 8_000),
            ("tcp read 16 prepared 10", 50),
            ("tcp read 16 prepared 20", 75),
            ("end", 1),
        ];
        let price = priced(phases.into_iter());
        assert_eq!(price[&0], (("tcp read 1".to_owned(), "fresh"), 10.0));
        assert_eq!(price[&1], (("tcp read 16".to_owned(), "prepared"), 2.5));
        assert_eq!(price.len(), 2);
    }

    #[test]
    fn a_table_says_what_has_changed() {
        let one = |price| Price::from([(0, (("host read 1".to_owned(), "fresh"), price))]);
        let compared = table(Some(&one(200.0)), &one(210.0));
        assert!(compared.ends_with("200       210   +5.0 %\n"), "{compared}");
        assert!(table(None, &one(210.0)).ends_with("-       210\n"));
    }
}

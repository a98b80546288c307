//! What a request costs, in instructions: examples/price.rs under callgrind, which counts every
//! thread of the process. Counts outlive a busy machine, so two revisions can be compared that were
//! never measured side by side: one against itself differs by nothing where the caller copies, and
//! by up to 5 % where threads wake each other.

use std::fs;
use std::path::{Path, PathBuf};

use clap::Args;

use crate::callgrind::{self, Counted};
use crate::shell::{Shell, run};

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

/// Prints the table.
pub fn price(options: &Options) -> Result<(), String> {
    let shell = Shell::new()?;
    callgrind::install(&shell)?;
    let folder = shell.root.join("target/price");
    let program = build(&shell, &shell.root, &shell.root.join("target"))?;
    let baseline = options.baseline.as_deref();
    let before = baseline.map(|rev| build_baseline(&shell, &folder, rev)).transpose()?;
    let before =
        before.map(|program| callgrind::count(&shell, &program, options.count)).transpose()?;
    let now = callgrind::count(&shell, &program, options.count)?;
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

fn table(before: Option<&Counted>, now: &Counted) -> String {
    let mut text =
        format!("\n{:<32}{:>10}{:>10}{:>9}\n", "instructions a batch", "before", "now", "");
    for (number, (name, now)) in now.iter().enumerate() {
        let words: Vec<_> = name.split(' ').collect();
        let name = match words[..] {
            [path, operation, blocks, way] => {
                format!("{path:<11}{operation:<6}4K b{blocks:<3}{way}")
            }
            _ => name.clone(),
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
    fn a_table_says_what_has_changed() {
        let one = |price| vec![("host read 1 fresh".to_owned(), price)];
        let compared = table(Some(&one(200.0)), &one(210.0));
        assert!(compared.ends_with("200       210   +5.0 %\n"), "{compared}");
        assert!(table(None, &one(210.0)).ends_with("-       210\n"));
    }
}

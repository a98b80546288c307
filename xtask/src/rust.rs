//! The steps that a Rust toolchain does alone: format, lints, tests, documentation.

use crate::shell::{Shell, WHOLE, run};
use crate::steps::Outcome;

/// The workspace's sources, and the fuzz crate's, which is a workspace of its own.
pub fn fmt(shell: &Shell) -> Outcome {
    shell.component("fmt", "rustfmt")?;
    run(&mut shell.cargo("fmt --all --check"))?;
    run(&mut shell.cargo("fmt --manifest-path fuzz/Cargo.toml --check"))?;
    Ok("formatted".into())
}

/// The rules that no lint knows, in tests/style.rs; from the crate that is built soonest.
pub fn style(shell: &Shell) -> Outcome {
    run(&mut shell.cargo("test --locked -p xtask --test style"))?;
    Ok("kept".into())
}

/// What a user gets from `cargo add kvrail` must build without a C compiler; with etcd, too.
pub fn no_c(shell: &Shell) -> Outcome {
    for builder in ["cc", "cmake"] {
        let mut tree = shell.cargo("tree --locked -p kvrail --features etcd -e normal,build -i");
        let output = tree.arg(builder).output().map_err(|error| format!("cargo tree: {error}"))?;
        let (found, said) = (text(&output.stdout), text(&output.stderr));
        if !found.trim().is_empty() {
            return Err(format!("default features compile C:\n{found}"));
        }
        // Cargo has two ways to say "nobody": outside this tree, or in no tree of the workspace.
        if !said.contains("nothing to print") && !said.contains("did not match any packages") {
            return Err(format!("`cargo tree -i {builder}` is not understood: {said}"));
        }
    }
    Ok("neither cc nor cmake in the tree".into())
}

/// Every target of every crate, and the library as a service embeds it.
pub fn clippy(shell: &Shell) -> Outcome {
    shell.component("clippy", "clippy")?;
    run(&mut shell.cargo("clippy --locked --workspace --all-targets -- -D warnings"))?;
    run(&mut shell.cargo(&format!("clippy {WHOLE},sim --all-targets -- -D warnings")))?;
    run(&mut shell.cargo("clippy -p kvrail --lib --no-default-features -- -D warnings"))?;
    Ok("no warning".into())
}

/// The other architecture that users run: library and command compile for it. The tests' own
/// dependencies would take a C compiler for it. Where rustup can't fetch its standard library,
/// nothing can be said, and that is said.
pub fn aarch64(shell: &Shell) -> Outcome {
    const TARGET: &str = "aarch64-unknown-linux-gnu";
    let installed = shell.command("rustup").args(["target", "list", "--installed"]).output();
    let installed = installed.map_err(|error| format!("rustup: {error}"))?;
    if !text(&installed.stdout).lines().any(|line| line == TARGET) {
        println!("installing the standard library for {TARGET}");
        if let Err(why) = run(shell.command("rustup").args(["target", "add", TARGET])) {
            return Ok(format!("NOT CHECKED, no standard library for it: {why}"));
        }
    }
    run(&mut shell.cargo(&format!("check --locked -p kvrail --lib --bins --target {TARGET}")))?;
    Ok("checked, not run".into())
}

/// Unit, integration and example tests, by nextest where it is installed.
pub fn tests(shell: &Shell) -> Outcome {
    // What default features are without is linted and documented by other steps.
    let targets = format!("{WHOLE} --lib --bins --tests --examples");
    if shell.has_cargo("nextest") {
        run(&mut shell.cargo(&format!("nextest run --no-fail-fast {targets}")))?;
        return Ok("by nextest".into());
    }
    run(&mut shell.cargo(&format!("test --no-fail-fast {targets}")))?;
    Ok("by cargo test".into())
}

/// The documentation: its examples run, its links resolve.
pub fn doc(shell: &Shell) -> Outcome {
    run(&mut shell.cargo("test --locked --workspace --doc"))?;
    let mut doc = shell.cargo("doc --locked --workspace --no-deps");
    run(doc.env("RUSTDOCFLAGS", "-D warnings"))?;
    Ok("no warning".into())
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

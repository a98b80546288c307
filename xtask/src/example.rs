//! The example that shows what the library is for, run as its users run it: once for the answer,
//! and on two paths with a request aborted in mid-transfer before it.

use crate::shell::{Shell, run};
use crate::steps::Outcome;

/// Prefill and decode with the real model where it can be had; the example fetches it itself.
pub fn once(shell: &Shell) -> Outcome {
    shell.python()?;
    let example = "run --locked --release --example prefill_decode -- --max-tokens 16";
    run(&mut shell.cargo(example))?;
    for path in ["auto", "tcp"] {
        run(&mut shell.cargo(&format!("{example} --path {path} --abort-after 12")))?;
    }
    Ok("equal, after an abort too".into())
}

//! The example that shows what the library is for, run once as its users run it.

use crate::shell::{Shell, run};
use crate::steps::Outcome;

/// Prefill and decode with the real model where it can be had; the example fetches it itself.
pub fn once(shell: &Shell) -> Outcome {
    shell.python()?;
    run(&mut shell.cargo("run --locked --release --example prefill_decode -- --max-tokens 16"))?;
    Ok("ran".into())
}

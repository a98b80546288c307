//! The example that shows what the library is for, run as its users run it: once for the answer,
//! and on two paths with a request aborted in mid-transfer before it; then over RDMA, in a guest,
//! where a tiny model has to do.

use std::process::Stdio;

use crate::proof;
use crate::shell::{Shell, WHOLE, quoted, run, shown};
use crate::steps::Outcome;
use crate::verbs;
use crate::vm::{Job, Machine, prepare};

const OVER_RDMA: &str = "split_tests::rdma_gives_the_logits_of_a_single_process";
/// Ten times what it takes on a machine with two busy cores.
const LIMIT_S: u64 = 200;

/// Prefill and decode with the real model where it can be had; the example fetches it itself.
pub fn once(shell: &Shell) -> Outcome {
    shell.python()?;
    let example = "run --locked --release --features rdma --example prefill_decode -- \
                   --max-tokens 16";
    run(&mut shell.cargo(example))?;
    for path in ["auto", "tcp"] {
        run(&mut shell.cargo(&format!("{example} --path {path} --abort-after 12")))?;
    }
    over_rdma(shell)?;
    Ok("equal, after an abort too, and over RDMA".into())
}

/// The real model takes minutes in an emulated machine.
fn over_rdma(shell: &Shell) -> Result<(), String> {
    verbs::packages(shell)?;
    let mut command = shell
        .cargo(&format!("test {WHOLE} --no-run --message-format json --example prefill_decode"));
    command.stderr(Stdio::inherit());
    println!("$ {}", shown(&command));
    let output = command.output().map_err(|error| format!("cargo test: {error}"))?;
    let test = proof::executable(&String::from_utf8_lossy(&output.stdout), "prefill_decode");
    let test = test.filter(|_| output.status.success()).ok_or("the example was not built")?;
    let words = proof::arguments(OVER_RDMA).join(" ");
    let command = format!("{} {words}", quoted(&test.to_string_lossy()));
    let machine = Machine { nics: 2, ..Machine::default() };
    let job = Job { command, limit_s: LIMIT_S, keep: true };
    let ended = prepare(shell, None)?.run(&machine, &job)?;
    match proof::passed(&ended.output, OVER_RDMA) {
        true => Ok(()),
        false => Err(format!("over RDMA: exit code {}", ended.code)),
    }
}

//! Some seeds of the RDMA path in every test run. That its canaries are found is checked where it
//! is optimized, by `cargo xtask test --only sim`.

use crate::sim::{Options, Worlds, run};

/// Seeds of a debug build's test: some seconds.
const SEEDS: u64 = 50;

fn options() -> Options {
    Options { world: Worlds::Rdma, ..Options::default() }
}

#[test]
fn seeds_pass() {
    for seed in 0..SEEDS {
        let report = run(seed, &options());
        let replay = format!("replay: cargo xtask sim --world rdma --seed {seed} --trace");
        assert_eq!(report.failure, None, "{replay}");
    }
}

#[test]
fn a_seed_repeats_itself() {
    let traced = Options { is_traced: true, ..options() };
    for seed in 0..5 {
        assert_eq!(run(seed, &traced).trace, run(seed, &traced).trace, "seed {seed}");
    }
}

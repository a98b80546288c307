//! Some seeds of the RDMA path in every test run, and each of its canaries found.

use crate::canary::Canary;
use crate::sim::{Options, Worlds, run};

/// Seeds of a debug build's test: some seconds.
const SEEDS: u64 = 150;

/// A canary is found within so many.
const CANARY_SEEDS: u64 = 1_000;

fn options(canary: Option<Canary>) -> Options {
    Options { world: Worlds::Rdma, canary, ..Options::default() }
}

#[test]
fn seeds_pass() {
    for seed in 0..SEEDS {
        let report = run(seed, &options(None));
        let replay = format!("replay: cargo xtask sim --world rdma --seed {seed} --trace");
        assert_eq!(report.failure, None, "{replay}");
    }
}

#[test]
fn a_seed_repeats_itself() {
    let traced = Options { is_traced: true, ..options(None) };
    for seed in 0..20 {
        assert_eq!(run(seed, &traced).trace, run(seed, &traced).trace, "seed {seed}");
    }
}

fn is_found(canary: Canary) {
    let found = (0..CANARY_SEEDS).find(|seed| run(*seed, &options(Some(canary))).failure.is_some());
    assert!(found.is_some(), "{} lives on after {CANARY_SEEDS} seeds", canary.name());
}

#[test]
fn reset_instead_of_error_is_found() {
    is_found(Canary::ResetInsteadOfError);
}

#[test]
fn a_local_only_fence_is_found() {
    is_found(Canary::LocalFence);
}

#[test]
fn a_notice_counted_twice_is_found() {
    is_found(Canary::CountedTwice);
}

#[test]
fn an_unchecked_generation_is_found() {
    is_found(Canary::GenerationUnchecked);
}

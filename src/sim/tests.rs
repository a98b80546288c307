//! Some seeds in every test run, and those canaries that are found soon; the others are looked for
//! where it is optimized, by `cargo xtask test --only sim`.

use super::*;

/// Seeds of a debug build's test: some seconds.
const SEEDS: u64 = 50;

/// A canary is found within so many.
const CANARY_SEEDS: u64 = 1_000;

#[test]
fn seeds_pass() {
    for seed in 0..SEEDS {
        let report = run(seed, &Options::default());
        assert_eq!(report.failure, None, "replay: cargo xtask sim --seed {seed} --trace");
    }
}

#[test]
fn a_seed_repeats_itself() {
    let traced = Options { is_traced: true, ..Options::default() };
    for seed in 0..10 {
        assert_eq!(run(seed, &traced).trace, run(seed, &traced).trace, "seed {seed}");
    }
}

fn is_found(canary: Canary) {
    let options = Options { canary: Some(canary), ..Options::default() };
    let found = (0..CANARY_SEEDS).find(|seed| run(*seed, &options).failure.is_some());
    assert!(found.is_some(), "{} lives on after {CANARY_SEEDS} seeds", canary.name());
}

#[test]
fn a_completion_counted_twice_is_found() {
    is_found(Canary::CountedTwice);
}

#[test]
fn a_lost_wake_is_found() {
    is_found(Canary::LostWake);
}

//! The project's own chores: `cargo xtask test` is the one way in, for people and for CI.

fn main() {}

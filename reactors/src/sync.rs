//! Atomics of what threads share without a lock: the standard library's; or, in builds with
//! `--cfg kvrail_loom`, those of a model checker that tries every order of steps and every value
//! that a load may see (`cargo xtask loom`).

#[cfg(kvrail_loom)]
pub use loom::sync::atomic::{AtomicBool, Ordering, fence};
#[cfg(not(kvrail_loom))]
pub use std::sync::atomic::{AtomicBool, Ordering, fence};

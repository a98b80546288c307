//! kvrail against unmodified Mooncake wheels, in both directions, with the data compared.
//!
//! These tests need venvs with the wheels, so a plain `cargo test` names them as ignored;
//! `cargo xtask test --only interop` installs the wheels and runs them.

mod initiator;
mod metadata;
mod ours;
mod pair;
mod rig;
#[cfg(feature = "etcd")]
#[allow(dead_code, reason = "the tests of metadata services need more of it")]
#[path = "../metadata/service.rs"]
mod service;
mod setup;
mod target;

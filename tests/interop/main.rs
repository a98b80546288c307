//! kvrail against unmodified Mooncake wheels, in both directions, with the data compared.
//!
//! These tests need venvs with the wheels, so a plain `cargo test` names them as ignored;
//! `cargo xtask test --only interop` installs the wheels and runs them.

mod initiator;
mod metadata;
mod ours;
mod pair;
mod rig;
mod setup;
mod target;

//! What operators meet: the command as a service (`service`), and the files that they are given to
//! run and watch it (`files`).

mod files;
mod service;
#[path = "../stopping/mod.rs"]
mod stopping;

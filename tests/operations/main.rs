//! What operators meet: the command as a service (`service`), the files that they are given to
//! run and watch it (`files`), and logs in which a request is followed from process to process
//! (`requests`).

mod files;
mod requests;
mod service;
#[path = "../stopping/mod.rs"]
mod stopping;

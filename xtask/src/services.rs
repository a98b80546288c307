//! The metadata services that tests start, and what builds with the feature `etcd` take.

use std::path::Path;

use crate::shell::{Shell, find};

/// Programs, and the Debian packages that they come from.
const PROGRAMS: [(&str, &str); 3] =
    [("protoc", "protobuf-compiler"), ("etcd", "etcd-server"), ("redis-server", "redis-server")];

/// What etcd's protocol is written in terms of; it comes apart from the compiler.
const PROTOCOL: (&str, &str) = ("/usr/include/google/protobuf/descriptor.proto", "libprotobuf-dev");

/// Sees to it that they are there.
pub fn packages(shell: &Shell) -> Result<(), String> {
    let programs = PROGRAMS.iter().filter(|(program, _)| find(program).is_none());
    let files = [PROTOCOL].into_iter().filter(|(file, _)| !Path::new(file).exists());
    let missing: Vec<_> = programs.copied().chain(files).map(|(_, package)| package).collect();
    if missing.is_empty() { Ok(()) } else { shell.apt(&missing, "tests of metadata services") }
}

//! The command line: bench, metadata-server.

fn main() {}

//! Fuzzes the handshake of RDMA queue pairs: see `kvrail::fuzzing`.
#![no_main]
libfuzzer_sys::fuzz_target!(|input: &[u8]| kvrail::fuzzing::handshake(input));

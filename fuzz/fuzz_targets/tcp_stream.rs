//! Fuzzes a server's byte stream: see `kvrail::fuzzing`.
#![no_main]
libfuzzer_sys::fuzz_target!(|input: &[u8]| kvrail::fuzzing::tcp_stream(input));

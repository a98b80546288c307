//! Fuzzes messages between engines of one host: see `kvrail::fuzzing`.
#![no_main]
libfuzzer_sys::fuzz_target!(|input: &[u8]| kvrail::fuzzing::host_message(input));

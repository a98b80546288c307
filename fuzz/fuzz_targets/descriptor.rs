//! Fuzzes segment descriptors: see `kvrail::fuzzing`.
#![no_main]
libfuzzer_sys::fuzz_target!(|input: &[u8]| kvrail::fuzzing::descriptor(input));

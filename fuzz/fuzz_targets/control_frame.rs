//! Fuzzes control frames: see `kvrail::fuzzing`.
#![no_main]
libfuzzer_sys::fuzz_target!(|input: &[u8]| kvrail::fuzzing::control_frame(input));

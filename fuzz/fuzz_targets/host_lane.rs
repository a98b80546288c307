//! Fuzzes the answering end of a same-host lane: see `kvrail::fuzzing`.
#![no_main]
libfuzzer_sys::fuzz_target!(|input: &[u8]| kvrail::fuzzing::host_lane(input));

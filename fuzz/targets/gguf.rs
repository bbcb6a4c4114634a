//! See `checks/src/gguf.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| lockstep_fuzz_checks::gguf(data));

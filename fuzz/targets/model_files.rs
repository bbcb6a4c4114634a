//! See `checks/src/model_files.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| lockstep_fuzz_checks::model_files(data));

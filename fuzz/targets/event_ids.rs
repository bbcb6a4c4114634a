//! See `checks/src/event_ids.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| lockstep_fuzz_checks::event_ids(data));

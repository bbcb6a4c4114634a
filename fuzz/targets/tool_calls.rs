//! See `checks/src/tool_calls.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| lockstep_fuzz_checks::tool_calls(data));

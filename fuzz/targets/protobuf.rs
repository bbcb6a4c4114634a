//! See `checks/src/protobuf.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| lockstep_fuzz_checks::protobuf(data));

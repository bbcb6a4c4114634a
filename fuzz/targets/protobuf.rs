//! Segments of the journal; see the check.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| { let _ = data; });

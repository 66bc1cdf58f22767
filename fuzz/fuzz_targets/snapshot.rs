//! See `targets::snapshot`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| quorate_fuzz::targets::snapshot(data));

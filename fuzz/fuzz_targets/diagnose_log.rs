//! Any bytes as a log, and as text to explain.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| fuzz::log(data));

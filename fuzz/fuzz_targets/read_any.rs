//! Any bytes as a trace whose format is told from its first line.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| fuzz::reader(None, data));

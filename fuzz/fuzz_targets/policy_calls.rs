//! Any bytes as a policy, a geometry and calls; the books are checked after every call.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| fuzz::calls::drive(data));

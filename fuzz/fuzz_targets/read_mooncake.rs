//! Any bytes as a trace of the format `mooncake`.

#![no_main]

use libfuzzer_sys::fuzz_target;
use traces::Format;

fuzz_target!(|data: &[u8]| fuzz::reader(Some(Format::Mooncake), data));

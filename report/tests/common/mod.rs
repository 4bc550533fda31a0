//! Rows that the tests of this crate share.
#![allow(dead_code, reason = "each test file uses some of them")]

pub mod ablation;

use std::path::Path;
use std::{env, fs};

use report::Summary;

/// A row with few interesting numbers.
pub fn row(policy: &str, seed: u64, completed: u64, throughput: f64) -> Summary {
    Summary {
        policy: policy.to_owned(),
        trace: "office.csv".to_owned(),
        seed,
        requests: 1000,
        completed,
        failed: 1000 - completed,
        output_tokens: 123_456,
        duration_s: 60.5,
        throughput_tokens_per_s: throughput,
        goodput_requests_per_s: throughput / 1000.0,
        ttft_p50_ms: Some(80.25),
        ttft_p99_ms: Some(2000.0 - throughput / 2.0),
        utilisation_mean: 0.5,
        fragmentation_external_mean: 0.25,
        ttft_mean_ms: Some(100.0),
        steps: 77,
        held_peak: 0.75,
        held_peak_gib: Some(1.0 + completed as f64 / 1000.0),
        model: "gemma3:4b".to_owned(),
        gpu: "rtx-3090".to_owned(),
        kv_cache_type: "f16".to_owned(),
        scheduler: "runner".to_owned(),
        num_ctx: 8192,
        num_parallel: 4,
        num_batch: 512,
        cells: "local=4608;global=16384".to_owned(),
        cost_model: "spec".to_owned(),
        kvlab_version: "0.1.0".to_owned(),
        spec_key: "0123abcd".to_owned(),
        event_hash: "ff".to_owned(),
        ..Summary::default()
    }
}

/// Two policies under three seeds: one is better in throughput, neither in completed requests.
pub fn rows() -> Vec<Summary> {
    let contiguous = [(1, 970, 1200.0), (2, 980, 1300.0), (3, 990, 1250.0)];
    let paged = [(1, 990, 1360.0), (2, 975, 1440.0), (3, 1000, 1400.0)];
    let of = |policy: &'static str, runs: [(u64, u64, f64); 3]| {
        runs.into_iter().map(move |(seed, completed, rate)| row(policy, seed, completed, rate))
    };
    of("contiguous", contiguous).chain(of("paged", paged)).collect()
}

/// Names that would break a careless page, table or picture.
pub const HOSTILE: [&str; 5] = [
    "</script><script>alert(1)</script>",
    "\" onload=\"alert(1)\" x='<&>'",
    "two\nlines\tand \u{0}\u{7}\u{b}\u{fffe} controls",
    "a|pipe {{ 7 * 7 }} {% raw %}",
    "",
];

/// Compares with a file; `UPDATE_EXPECT=1` writes it instead.
pub fn golden(name: &str, actual: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    if env::var_os("UPDATE_EXPECT").is_some() {
        fs::write(&path, actual).expect("the golden file can be written");
    }
    let expected = fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(actual, expected, "{name} differs; UPDATE_EXPECT=1 accepts it");
}

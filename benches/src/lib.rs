//! What the benchmarks share: loads, seeded numbers, and the naive versions they are compared with.
//!
//! The benchmarks are in `benches/`, one file per question; `docs/performance.md` has the answers.

use std::time::Duration;

use criterion::Criterion;

pub mod cheap;
pub mod linear_llama;
pub mod linear_ollama;
pub mod linear_prefix;
pub mod load;
pub mod naive;

/// Cache sizes of every benchmark, cells, with a name for each.
pub const SIZES: [(u32, &str); 3] = [(8_192, "8k"), (131_072, "128k"), (1_638_400, "1.6M")];

/// How long a step is measured: a second for each, which is enough for two digits.
pub fn short() -> Criterion {
    Criterion::default()
        .sample_size(20)
        .nresamples(10_000)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_millis(700))
}

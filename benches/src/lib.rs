//! What the benchmarks share: loads, seeded numbers, and the naive versions they are compared with.
//!
//! The benchmarks are in `benches/`, one file per question; `docs/performance.md` has the answers.

pub mod cheap;
pub mod linear_ollama;
pub mod load;
pub mod naive;
pub mod random;

/// Cache sizes of every benchmark, cells, with a name for each.
pub const SIZES: [(u32, &str); 3] = [(8_192, "8k"), (131_072, "128k"), (1_638_400, "1.6M")];

//! A cost model that costs next to nothing to ask.

use sim::cost::{CostModel, Work};

/// A fixed part, a part per token and a part per cell read: a decoding step of about 25 ms and a
/// prompt token of 0.1 ms.
pub struct Cheap;

impl CostModel for Cheap {
    fn name(&self) -> &str {
        "cheap"
    }

    fn step_ns(&self, work: &Work) -> u64 {
        let reads: u64 = work.decode_reads.iter().sum();
        8_000_000 + 100_000 * u64::from(work.tokens) + 40 * reads
    }
}

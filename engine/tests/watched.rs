//! Whole steps and plans over the imitated device with every access of the kernels watched
//! (`kernels/emu/watch.cpp`): no kernel leaves the memory that the backend allocated, and none that starts early
//! touches what those before it may not have finished. A fault fails the launch, and with it the case.

mod common;

use common::imitated::{self, LATE};
use engine::cuda::{self, Effort};

/// Cases of the self-test that have any of these words: graphs with early starts, products by the library,
/// whatever a plan does, quantised weights.
const WATCHED: [&str; 6] =
    ["a graph", "cuBLASLt", "swapped cells", "rotated keys", "rounded to Q4_0", "q8_0 weights agree"];

#[test]
fn steps_and_plans_stay_in_their_memory_and_wait_for_what_they_read() {
    let Some((gpu, _turn)) = imitated::gpu(true, LATE) else { return };
    for words in WATCHED {
        let outcomes = cuda::selftest(&gpu, Effort::Brief, words, |outcome| println!("{outcome:?}"));
        assert!(!outcomes.is_empty() && outcomes.iter().all(|outcome| outcome.passed), "{outcomes:#?}");
    }
}

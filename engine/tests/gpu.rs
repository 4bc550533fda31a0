//! The CUDA backend on a GPU: all cases of its self-test. Without a GPU it says so and passes.

use engine::cuda::{self, Effort};

#[test]
fn every_case_of_the_self_test_holds_on_the_device() {
    let gpu = match cuda::open(0) {
        Ok(gpu) => gpu,
        Err(error) => {
            println!("skipped: {error}");
            return;
        }
    };
    println!("{:?}", gpu.info());
    let outcomes = cuda::selftest(&gpu, Effort::Whole, |outcome| println!("{outcome:?}"));
    let failed: Vec<_> = outcomes.iter().filter(|outcome| !outcome.passed).collect();
    assert!(failed.is_empty(), "{failed:#?}");
}

//! The CUDA backend on a GPU: all cases of its self-test, and the golden models. Without a GPU it says so and passes.

mod common;

use common::device::golden_models_hold;
use engine::cuda::{self, Effort, Gpu};

fn gpu() -> Option<Gpu> {
    let gpu = cuda::open(0).inspect_err(|error| println!("skipped: {error}")).ok()?;
    println!("{:?}, kernels {}", gpu.info(), gpu.code());
    Some(gpu)
}

#[test]
fn every_case_of_the_self_test_holds_on_the_device() {
    let Some(gpu) = gpu() else { return };
    let outcomes = cuda::selftest(&gpu, Effort::Whole, "", |outcome| println!("{outcome:?}"));
    let failed: Vec<_> = outcomes.iter().filter(|outcome| !outcome.passed).collect();
    assert!(failed.is_empty(), "{failed:#?}");
}

#[test]
fn golden_models_give_their_logits_on_the_device() {
    let Some(gpu) = gpu() else { return };
    golden_models_hold(&gpu, &["A", "B", "C", "S"], &[1000, 33, 7, 1]);
}

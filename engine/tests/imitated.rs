//! The CUDA backend without a GPU: the same host code over a driver library that imitates a device on
//! the CPU. Skipped where there is no C++ compiler.

mod common;

use std::sync::Arc;

use common::device::golden_models_hold;
use common::imitated::{self, LATE, Turn};
use engine::cuda::{self, BenchCase, Effort, Gpu, Made, Model, Options, Spread};
use engine::{Config, KvType};

/// The device, whose kernels are not watched.
fn gpu(pace: u32) -> Option<(Gpu, Turn)> {
    imitated::gpu(false, pace)
}

#[test]
fn the_backend_computes_what_the_cpu_does_over_an_imitated_device() {
    let Some((gpu, _turn)) = gpu(LATE) else { return };
    assert_eq!(gpu.code(), "for sm_90");
    let outcomes = cuda::selftest(&gpu, Effort::Brief, "", |outcome| println!("{outcome:?}"));
    let failed: Vec<_> = outcomes.iter().filter(|outcome| !outcome.passed).collect();
    assert!(failed.is_empty(), "{failed:#?}");
    let library = outcomes.iter().find(|outcome| outcome.name.starts_with("cuBLASLt"));
    assert_eq!(library.map(|outcome| &*outcome.note), Some("1 graphs"), "the imitated library computes");
}

#[test]
fn golden_models_give_their_logits_over_an_imitated_device() {
    let Some((gpu, _turn)) = gpu(LATE) else { return };
    golden_models_hold(&gpu, &["S"], &[33]);
}

#[test]
fn steps_and_prompts_are_timed_over_an_imitated_device() {
    let Some((gpu, _turn)) = gpu(LATE) else { return };
    let config = Config::preset("gemma3-tiny").expect("the preset exists");
    let copy = Spread::of(vec![1e9]);
    for made in [Made::Bf16, Made::Q8, Made::Q4] {
        let model = Arc::new(Model::made_up(&gpu, &config, 1, made).expect("it fits"));
        let case = BenchCase { batch: 3, context: 40, kv: KvType::Q8_0, steps: 1 };
        let decode = cuda::bench_decode(&model, case, Options::default(), copy).expect("it runs");
        // Two layer classes: the window of 16 in six layers, all 40 tokens in one; K and V of 2 heads of 34 bytes.
        assert_eq!(decode.bytes_per_step - model.step_bytes(), 3 * (6 * 16 + 40) * 2 * 80);
        let rate = decode.bytes_per_step as f64 / decode.step_seconds.median / 1e9;
        assert!((decode.share_of_roofline - rate).abs() < 1e-9 * rate);
        let prompt = cuda::bench_prompt(&model, 20, KvType::Bf16, 1, Options::default()).expect("it runs");
        assert!(prompt.tokens_per_second > 0.0 && decode.device_seconds > 0.0);
        let moves = cuda::bench_moves(&model, [10, 4], KvType::Bf16, 1, copy).expect("it runs");
        // Three pieces of four cells; seven layers of K and V of 128 bytes a cell, read and written.
        assert_eq!((moves.cells, moves.bytes), (12, 2 * 12 * 7 * 2 * 128));
        let share = moves.bytes as f64 / moves.seconds.median / copy.median;
        assert!((moves.share_of_copy - share).abs() < 1e-9 * share);
    }
}

#[test]
fn swaps_wait_for_what_they_need_whenever_the_streams_work() {
    for pace in [0, 2, 3, 4] {
        let Some((gpu, _turn)) = gpu(pace) else { return };
        let outcomes = cuda::selftest(&gpu, Effort::Brief, "swapped cells", |_| {});
        assert!(outcomes.len() == 1 && outcomes[0].passed, "pace {pace}: {outcomes:?}");
    }
}

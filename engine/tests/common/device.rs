//! The golden models on a CUDA device.

use std::sync::Arc;

use engine::cuda::{Cuda, Gpu, Model, Options, Precision};
use engine::{CacheShape, KvType};

use super::golden::models;
use super::{chunked, difference, geometry};

/// Largest difference that rounding explains, over all logits.
const TOLERANCE: f32 = 5e-5;

/// Fails unless every golden model gives its logits, in chunks of each size.
pub fn golden_models_hold(gpu: &Gpu, cases: &[&str], chunks: &[usize]) {
    for golden in models() {
        let config = &golden.weights.config;
        let model = Arc::new(Model::upload(gpu, &golden.weights, Precision::Full).unwrap());
        for case in cases {
            let tokens = &golden.tokens[*case];
            for &chunk in chunks {
                let shape = CacheShape::new(config, &geometry(config, &[128, 128]), KvType::F32).unwrap();
                let mut cuda = Cuda::new(model.clone(), shape, Options::default()).unwrap();
                let logits = chunked(&mut cuda, 2, tokens, chunk);
                let (most, _) = difference(&logits, &golden.logits[*case]);
                println!("{}, {case}, chunks of {chunk}: {most:.1e}", golden.name);
                assert!(most < TOLERANCE, "{}, {case}, chunks of {chunk}: off by {most}", golden.name);
            }
        }
    }
}

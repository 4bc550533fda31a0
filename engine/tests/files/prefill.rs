//! Logits of a whole text in one batch, its cells one after another.

use std::sync::Arc;

use engine::cpu::Cpu;
use engine::{Backend, Batch, CacheShape, KvType, Output, Span, View, Wanted, Weights};
use policies::Run;

/// Logits of every position, `[tokens, vocab]`.
pub fn logits(weights: Weights, tokens: &[u32]) -> Vec<f32> {
    let len = tokens.len() as u32;
    let shape = CacheShape {
        class_of: vec![0; weights.layers.len()],
        cells: vec![len],
        k: KvType::F32,
        v: KvType::F32,
        rotated: true,
    };
    let span = Span {
        rows: 0..tokens.len(),
        samples: tokens.len(),
        views: vec![View { first: 0, runs: vec![Run { start: 0, len }] }],
        ..Span::default()
    };
    let batch =
        Batch { tokens: tokens.to_vec(), spans: vec![span], wanted: Wanted::Logits, walks: vec![None] };
    let mut output = Output::default();
    Cpu::new(Arc::new(weights), shape).unwrap().step(&batch, &mut output).unwrap();
    output.logits
}

/// The largest difference between two lists of the same length.
pub fn distance(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

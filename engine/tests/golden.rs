//! The CPU backend against golden models, whose logits come from an f64 twin of the published code.

mod common;

use std::sync::Arc;

use common::golden::{Golden, models};
use common::reference::{Activation, Reference};
use common::{Hand, Random, assert_same_bits, chunked, cpu, difference, geometry, push_span};
use engine::{Backend, Batch, Config, Span, View, Weights};
use policies::{Append, ClassId, Content, Intent, Plan, Policy, SeqId, make_policy};

/// Largest difference that rounding explains, over all logits.
const TOLERANCE: f32 = 5e-5;

fn assert_golden(golden: &Golden, case: &str, logits: &[f32], what: &str) {
    let (most, _) = difference(logits, &golden.logits[case]);
    assert!(most < TOLERANCE, "{}, {case}, {what}: off by {most}", golden.name);
}

#[test]
fn golden_logits_through_prefill_single_tokens_and_chunks() {
    for golden in models() {
        for (case, tokens) in &golden.tokens {
            let mut bits: Option<Vec<f32>> = None;
            for chunk in [tokens.len(), 1, 7, 16, 33] {
                let mut cpu = cpu(&golden.weights, &[128, 128]);
                let logits = chunked(&mut cpu, 2, tokens, chunk);
                assert_golden(&golden, case, &logits, &format!("chunks of {chunk}"));
                assert_same_bits(bits.get_or_insert(logits.clone()), &logits, &format!("chunks of {chunk}"));
            }
        }
    }
}

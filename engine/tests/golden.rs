//! The CPU backend against golden models, whose logits come from an f64 twin of the published code.

#![allow(clippy::unwrap_used, reason = "helpers of tests may stop the test")]

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

#[test]
fn golden_logits_of_interleaved_sequences_in_random_and_paged_cells() {
    for golden in models() {
        let (a, b) = (&golden.tokens["A"], &golden.tokens["B"]);
        let (a_len, b_len) = (a.len() as u32, b.len() as u32);
        let paged = |block: u32| {
            let blocks = Random(u64::from(block)).shuffled((a_len + b_len + 16) / block + 1);
            blocks.into_iter().flat_map(move |at| at * block..(at + 1) * block).collect::<Vec<_>>()
        };
        let mut bits = None;
        for cells in [(0..256).collect(), Random(1).shuffled(256), paged(16), paged(4)] {
            let mut cpu = cpu(&golden.weights, &[256, 256]);
            let mut hand = Hand::default();
            let split = a.len().next_multiple_of(16);
            hand.place(2, 0, cells[..a.len()].to_vec());
            hand.place(2, 1, cells[split..split + b.len()].to_vec());
            let (mut of_a, mut of_b) = (hand.step(&mut cpu, &[(0, &a[..40])]), Vec::new());
            for i in 0..b.len().max(a.len() - 40) {
                let mut parts = Vec::new();
                let (next_a, next_b) = (a.get(40 + i..41 + i), b.get(i..i + 1));
                parts.extend(next_a.map(|tokens| (0, tokens)));
                parts.extend(next_b.map(|tokens| (1, tokens)));
                let logits = hand.step(&mut cpu, &parts);
                let split = next_a.map_or(0, |_| golden.weights.config.vocab);
                of_a.extend_from_slice(&logits[..split]);
                of_b.extend_from_slice(&logits[split..]);
            }
            assert_golden(&golden, "A", &of_a, "interleaved");
            assert_golden(&golden, "B", &of_b, "interleaved");
            let both = [of_a, of_b].concat();
            assert_same_bits(bits.get_or_insert(both.clone()), &both, "another placement");
        }
    }
}

#[test]
fn golden_logits_after_defragmentation_in_mid_decode() {
    for golden in models() {
        let a = &golden.tokens["A"];
        let config = &golden.weights.config;
        let mut cpu = cpu(&golden.weights, &[256, 256]);
        let mut policy = make_policy("defrag", &geometry(config, &[160, 160])).unwrap();
        let mut logits = Vec::new();
        let (reader, other) = (SeqId(0), SeqId(1));
        for seq in [other, reader] {
            let intent = Intent { content: Content::own(seq.0.into()), prompt_tokens: 20, total_tokens: 110 };
            policy.open(seq, &intent);
        }
        let mut copied = 0;
        for (i, token) in a.iter().enumerate() {
            if i < 50 {
                place(&mut *policy, &mut cpu, other, &[7]);
            } else if i == 50 {
                policy.release(other);
            } else if i == 60 {
                policy.open(other, &Intent { content: Content::own(9), prompt_tokens: 70, total_tokens: 71 });
                copied += place(&mut *policy, &mut cpu, other, &[3; 70]).1;
            }
            if i == 80 {
                policy.release(other);
            }
            let (step, moved) = place(&mut *policy, &mut cpu, reader, &[*token]);
            logits.extend(step);
            copied += moved;
        }
        assert!(copied > 0, "nothing has been moved");
        assert_golden(&golden, "A", &logits, "defragmented");
    }
}

/// Places tokens of one sequence, executes the plan and computes them: logits, and cells copied.
fn place(policy: &mut dyn Policy, cpu: &mut dyn Backend, seq: SeqId, tokens: &[u32]) -> (Vec<f32>, usize) {
    let mut plan = Plan::without_writes();
    let first = policy.len(seq);
    policy.place(&[Append { seq, tokens: tokens.len() as u32, restored: false }], &mut plan).unwrap();
    cpu.apply(&plan, &|seq| seq.0.into()).unwrap();
    let mut views = vec![View::default(); 2];
    for class in [0, 1] {
        views[usize::from(class)].read(policy, ClassId(class), seq);
    }
    let mut batch = Batch { wanted: engine::Wanted::Logits, ..Batch::default() };
    push_span(&mut batch, tokens, Span { first, views, ..Span::default() });
    (common::logits(cpu, &batch), plan.effects().len())
}

#[test]
fn golden_logits_with_a_local_pool_of_one_window() {
    for golden in models() {
        let a = &golden.tokens["A"];
        let window = golden.weights.config.window as u32;
        let mut cpu = cpu(&golden.weights, &[window, 128]);
        let mut logits = Vec::new();
        for (i, token) in a.iter().enumerate() {
            let end = i as u32 + 1;
            let first = end.saturating_sub(window);
            let mut local = View { first, runs: Vec::new() };
            (first..end).for_each(|token| policies::push_run(&mut local.runs, token % window, 1));
            let mut global = View::default();
            policies::push_run(&mut global.runs, 0, end);
            let mut batch = Batch { wanted: engine::Wanted::Logits, ..Batch::default() };
            push_span(
                &mut batch,
                &[*token],
                Span { first: i as u32, views: vec![local, global], ..Span::default() },
            );
            logits.extend(common::logits(&mut cpu, &batch));
        }
        assert_golden(&golden, "A", &logits, "trimmed");
        let untrimmed = chunked(&mut common::cpu(&golden.weights, &[128, 128]), 2, a, 100);
        assert_same_bits(&untrimmed, &logits, "trimmed");
    }
}

#[test]
fn golden_logits_over_a_shared_prefix() {
    for golden in models() {
        let (a, c) = (&golden.tokens["A"], &golden.tokens["C"]);
        let shared = a.iter().zip(c).take_while(|(a, c)| a == c).count() as u32;
        assert!(shared >= 48);
        let mut cpu = cpu(&golden.weights, &[256, 256]);
        let mut hand = Hand::default();
        hand.place(2, 0, 0..a.len() as u32);
        hand.place(2, 1, (0..shared).chain(128..128 + c.len() as u32 - shared).collect::<Vec<_>>());
        assert_golden(&golden, "A", &hand.step(&mut cpu, &[(0, a)]), "first of two");
        hand.set_len(1, shared);
        let rest = hand.step(&mut cpu, &[(1, &c[shared as usize..])]);
        let (most, _) =
            difference(&rest, &golden.logits["C"][shared as usize * golden.weights.config.vocab..]);
        assert!(most < TOLERANCE, "{}: off by {most}", golden.name);
    }
}

#[test]
fn golden_logits_are_those_of_the_reference_in_the_tests() {
    for golden in models() {
        for (case, tokens) in &golden.tokens {
            assert_golden(&golden, case, &Reference::new(&golden.weights).text(tokens), "reference");
        }
    }
}

/// Largest difference over the cases of a model.
fn off_by(golden: &Golden, weights: &Weights) -> f32 {
    let weights = Arc::new(weights.clone());
    let cases = golden.tokens.iter().map(|(case, tokens)| {
        let logits = chunked(&mut cpu(&weights, &[128, 128]), 2, tokens, 128);
        difference(&logits, &golden.logits[case]).0
    });
    cases.fold(0.0, f32::max)
}

#[test]
fn golden_logits_tell_every_known_mistake() {
    for golden in models() {
        let config = &golden.weights.config;
        let with = |edit: fn(&mut Config)| {
            let mut weights = Weights::clone(&golden.weights);
            edit(&mut weights.config);
            weights
        };
        let mut mistakes = vec![
            ("a window of one more", with(|config| config.window += 1)),
            ("a window of one less", with(|config| config.window -= 1)),
            ("positions not scaled", with(|config| config.global_rope.factor = 1.0)),
            (
                "local angles in global layers",
                with(|config| config.global_rope.theta = config.local_rope.theta),
            ),
            ("the pattern off by one", with(|config| config.layers.rotate_left(1))),
        ];
        if config.query_scalar != config.head_dim as f64 {
            mistakes
                .push(("scores by head_dim", with(|config| config.query_scalar = config.head_dim as f64)));
        }
        let mut unscaled = with(|_| {});
        unscaled.embedding_scale = 1.0;
        mistakes.push(("embeddings not scaled", unscaled));
        let mut without = with(|_| {});
        for norm in without.layers.iter_mut().flat_map(|layer| [&mut layer.input_norm, &mut layer.q_norm]) {
            norm.iter_mut().for_each(|x| *x -= 1.0);
        }
        mistakes.push(("norms without 1", without));
        for (what, weights) in mistakes {
            let off = off_by(&golden, &weights);
            println!("{}, {what}: off by {off}", golden.name);
            assert!(off > 10.0 * TOLERANCE, "{}: {what} is not told, off by {off}", golden.name);
        }
        for activation in [Activation::GeluErf, Activation::Silu] {
            let mut reference = Reference::with(&golden.weights, activation);
            let (off, _) = difference(&reference.text(&golden.tokens["A"]), &golden.logits["A"]);
            println!("{}, {activation:?}: off by {off}", golden.name);
            assert!(off > 10.0 * TOLERANCE, "{}: {activation:?} is not told, off by {off}", golden.name);
        }
    }
}

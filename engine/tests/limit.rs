//! What policies do at the context limit, on the engine, against the same edit of the plain reference's cache.

#![allow(clippy::unwrap_used, reason = "helpers of tests may stop the test")]

mod common;

use common::reference::Reference;
use common::{Random, difference, geometry};
use engine::context::Context;
use engine::cpu::Cpu;
use engine::{CacheShape, Config, KvType, synthetic};
use policies::{Geometry, make_policy};

const CONTEXT: usize = 24;
const TOKENS: usize = 75;

/// What the reference does when it has as many tokens as the context.
enum Edit {
    /// Drop so many after the head; later ones slide down.
    Slide(usize),
    /// Drop one after the head; positions go on.
    GoOn,
    /// Drop so many after the head and compute the others again.
    Again(usize),
}

#[test]
fn what_a_policy_drops_is_dropped_from_the_references_cache() {
    let config = Config { window: 6, ..Config::preset("gemma3-tiny").unwrap() };
    let weights = synthetic::weights(&config, 5, true).unwrap();
    let tokens = Random(8).tokens(TOKENS, config.vocab);
    let cases = [
        ("shift:2", 2, Edit::Slide((CONTEXT - 2) / 2)),
        ("shift:keep=4:drop=5", 4, Edit::Slide(5)),
        ("sinks:3", 3, Edit::Slide(1)),
        ("sinks:keep=1:drop=4", 1, Edit::Slide(4)),
        ("ring", 0, Edit::GoOn),
        ("ring:2", 2, Edit::GoOn),
        ("truncate:3", 3, Edit::Again((CONTEXT - 3) / 2)),
    ];
    for (spec, keep, edit) in cases {
        let geometry = Geometry {
            context_max: CONTEXT as u32,
            batch_max: 8,
            sequences_max: 1,
            ..geometry(&config, &[64, 64])
        };
        let shape = CacheShape::new(&config, &geometry, KvType::F32).unwrap();
        let mut cpu = Cpu::new(weights.clone().into(), shape).unwrap();
        let mut context = Context::new(&mut cpu, make_policy(spec, &geometry).unwrap(), keep as u32);
        let mut reference = Reference::new(&weights);
        let (mut text, mut offset, mut edits): (Vec<u32>, u32, u32) = (Vec::new(), 0, 0);
        for &token in &tokens {
            if text.len() == CONTEXT {
                edits += 1;
                let dropped = match edit {
                    Edit::Slide(tokens) | Edit::Again(tokens) => keep..keep + tokens,
                    Edit::GoOn => keep..keep + 1,
                };
                text.drain(dropped.clone());
                match edit {
                    Edit::Slide(_) => reference.drop(dropped, true),
                    Edit::GoOn => {
                        reference.drop(dropped, false);
                        offset += 1;
                    }
                    Edit::Again(_) => {
                        reference = Reference::new(&weights);
                        reference.text(&text);
                    }
                }
            }
            text.push(token);
            let expected = reference.next(token, offset);
            let mut found = Vec::new();
            context.push(&[token], 1, &mut |logits| found.extend_from_slice(logits)).unwrap();
            let (most, _) = difference(&expected, &found);
            assert!(most < 1e-4, "{spec}, after {edits} edits: off by {most}");
        }
        assert!(edits > 0 && context.reductions() == edits, "{spec}: {edits} edits");
    }
}

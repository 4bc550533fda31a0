//! A small model by hash against logits that `golden/tiny.py` computed apart from the engine, in f64.

#![allow(clippy::unwrap_used, reason = "helpers of tests may stop the test")]

#[path = "files/prefill.rs"]
mod prefill;

use engine::{Config, LayerKind, Weights, synthetic};
use safetensors::SafeTensors;

use prefill::{distance, logits};

const SEED: u64 = 7;
const TOLERANCE: f32 = 5e-5;

struct Golden {
    tokens: Vec<u32>,
    positions: Vec<u32>,
    logits: Vec<f32>,
}

fn golden() -> Golden {
    let file = SafeTensors::deserialize(include_bytes!("golden/tiny.safetensors")).unwrap();
    let numbers = |name: &str| -> Vec<u32> {
        let tensor = file.tensor(name).unwrap();
        tensor.data().as_chunks().0.iter().map(|&bytes| u32::from_le_bytes(bytes)).collect()
    };
    let logits = numbers("logits").into_iter().map(f32::from_bits).collect();
    Golden { tokens: numbers("tokens"), positions: numbers("positions"), logits }
}

fn tiny() -> Weights {
    synthetic::weights(&Config::preset("gemma3-tiny").unwrap(), SEED, true).unwrap()
}

/// How far the logits of a model are from those expected.
fn error(weights: Weights) -> f32 {
    let golden = golden();
    let vocab = weights.config.vocab;
    let all = logits(weights, &golden.tokens);
    let some: Vec<f32> = golden
        .positions
        .iter()
        .flat_map(|&position| all[position as usize * vocab..][..vocab].to_vec())
        .collect();
    distance(&some, &golden.logits)
}

#[test]
fn golden_logits_of_an_independent_implementation() {
    let error = error(tiny());
    assert!(error <= TOLERANCE, "{error}");
}

/// Checks that a model with one thing wrong is told from the right one.
fn is_caught(what: &str, break_it: impl Fn(&mut Weights)) {
    let mut weights = tiny();
    break_it(&mut weights);
    let error = error(weights);
    assert!(error > 10.0 * TOLERANCE, "{what}: {error}");
}

#[test]
fn golden_logits_tell_every_wrong_model_from_the_right_one() {
    is_caught("a window of one more", |weights| weights.config.window += 1);
    is_caught("a window of one less", |weights| weights.config.window -= 1);
    is_caught("no factor of rotation", |weights| weights.config.global_rope.factor = 1.0);
    is_caught("a factor in local layers", |weights| weights.config.local_rope.factor = 8.0);
    is_caught("scores by the root of the head dimension", |weights| weights.config.query_scalar = 32.0);
    is_caught("embeddings as they are", |weights| weights.embedding_scale = 1.0);
    is_caught("a pattern that begins one layer early", |weights| weights.config.layers.rotate_left(1));
    is_caught("no global layer", |weights| weights.config.layers.fill(LayerKind::Local));
    is_caught("norms without the 1", |weights| {
        weights.norm.iter_mut().for_each(|weight| *weight -= 1.0);
    });
    is_caught("a norm with the 1 twice", |weights| {
        weights.layers[3].q_norm.iter_mut().for_each(|weight| *weight += 1.0);
    });
}

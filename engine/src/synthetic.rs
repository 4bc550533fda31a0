//! Weights from a seeded hash: true shapes and traffic where no checkpoint is at hand.
//!
//! Weight `i` of tensor `t` depends on the seed, `t` and `i` only, so that any language, thread or
//! device makes the same numbers. Norms are 1 plus something of standard deviation 0.3, linear
//! layers have variance 1 / inputs.

use half::bf16;

use crate::config::Config;
use crate::weights::{Data, Layer, Matrix, Weights};

/// SplitMix64's output function (Steele, Lea, Flood 2014) of a counter.
pub(crate) fn hash(seed: u64, index: u64) -> u64 {
    let mut mixed = seed.wrapping_add(index.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    mixed ^ (mixed >> 31)
}

/// Evenly spread with mean 0 and variance 1: 24 bits of a hash, so exact in an f32.
fn unit(seed: u64, index: u64) -> f32 {
    const ROOT_3: f32 = 1.732_050_8;
    let bits = (hash(seed, index) >> 40) as f32;
    (bits / 8_388_608.0 - 1.0) * ROOT_3
}

/// Makes the weights of a model. Matrices are bf16, or f32 where `full` is set.
pub fn weights(config: &Config, seed: u64, full: bool) -> Weights {
    let mut tensor = 0;
    let mut next = || {
        tensor += 1;
        hash(seed, tensor)
    };
    let matrix = |next: &mut dyn FnMut() -> u64, rows: usize, cols: usize| {
        let (key, scale) = (next(), 1.0 / (cols as f32).sqrt());
        let number = |i: usize| unit(key, i as u64) * scale;
        let data = if full {
            Data::F32((0..rows * cols).map(number).collect())
        } else {
            Data::Bf16((0..rows * cols).map(|i| bf16::from_f32(number(i))).collect())
        };
        Matrix { rows, cols, data }
    };
    let norm = |next: &mut dyn FnMut() -> u64, len: usize| {
        let key = next();
        (0..len).map(|i| 1.0 + 0.3 * unit(key, i as u64)).collect::<Vec<f32>>()
    };
    let (hidden, ffn) = (config.hidden, config.ffn);
    let embedding = matrix(&mut next, config.vocab, hidden);
    let layers = (0..config.layers.len()).map(|_| Layer {
        input_norm: norm(&mut next, hidden),
        post_attention_norm: norm(&mut next, hidden),
        pre_ffn_norm: norm(&mut next, hidden),
        post_ffn_norm: norm(&mut next, hidden),
        q_norm: norm(&mut next, config.head_dim),
        k_norm: norm(&mut next, config.head_dim),
        q: matrix(&mut next, config.query_width(), hidden),
        k: matrix(&mut next, config.kv_width(), hidden),
        v: matrix(&mut next, config.kv_width(), hidden),
        o: matrix(&mut next, hidden, config.query_width()),
        gate: matrix(&mut next, ffn, hidden),
        up: matrix(&mut next, ffn, hidden),
        down: matrix(&mut next, hidden, ffn),
    });
    let layers = layers.collect();
    let root = (hidden as f32).sqrt();
    Weights {
        config: config.clone(),
        embedding,
        embedding_scale: if full { root } else { bf16::from_f32(root).to_f32() },
        layers,
        norm: norm(&mut next, hidden),
    }
}

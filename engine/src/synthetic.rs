//! Weights from a seeded hash: true shapes and traffic where no checkpoint is at hand.
//!
//! Weight `i` of tensor `t` depends on the seed, `t` and `i` only, so that any language, thread or
//! device makes the same numbers. Tensors are counted from 1: the embedding; of every layer the four
//! norms of the residual stream, those of Q and K, and Q, K, V, O, gate, up, down; the last norm.
//! Norms are 1 plus something of standard deviation 0.3, linear layers have variance 1 / inputs.

use half::bf16;
use rayon::prelude::*;
use traces::random::{STEP, scramble};

use crate::config::Config;
use crate::error::EngineError;
use crate::memory;
use crate::weights::{Data, Layer, Matrix, Weights};

/// SplitMix64's output function (Steele, Lea, Flood 2014) of a counter.
pub fn hash(seed: u64, index: u64) -> u64 {
    scramble(seed.wrapping_add(index.wrapping_add(1).wrapping_mul(STEP)))
}

/// Evenly spread with mean 0 and variance 1: 24 bits of a hash, so exact in an f32.
fn unit(seed: u64, index: u64) -> f32 {
    const ROOT_3: f32 = 1.732_050_8;
    let bits = (hash(seed, index) >> 40) as u32 as f32;
    (bits / 8_388_608.0 - 1.0) * ROOT_3
}

/// Gives every tensor its key.
struct Maker {
    seed: u64,
    tensor: u64,
    full: bool,
}

impl Maker {
    fn key(&mut self) -> u64 {
        self.tensor += 1;
        hash(self.seed, self.tensor)
    }

    fn norm(&mut self, len: usize) -> Vec<f32> {
        let key = self.key();
        (0..len as u64).map(|i| 1.0 + 0.3 * unit(key, i)).collect()
    }

    fn matrix(&mut self, rows: usize, cols: usize) -> Result<Matrix, EngineError> {
        let (key, scale) = (self.key(), 1.0 / (cols as f32).sqrt());
        let number = |i: u64| unit(key, i) * scale;
        let data = match self.full {
            true => Data::F32(fill(rows * cols, number)?.into()),
            false => Data::Bf16(fill(rows * cols, |i| brain(number(i)))?.into()),
        };
        Ok(Matrix { rows, cols, data })
    }
}

/// Rounds to the nearest, ties to even, as [`bf16::from_f32`] does for what is finite.
fn brain(number: f32) -> bf16 {
    let bits = number.to_bits();
    bf16::from_bits(((bits + 0x7FFF + (bits >> 16 & 1)) >> 16) as u16)
}

/// So many numbers, on all cores.
fn fill<T: Send>(len: usize, number: impl Fn(u64) -> T + Sync) -> Result<Vec<T>, EngineError> {
    let mut numbers = memory::reserve("a matrix of weights", len)?;
    // Enough for a thread to be worth it.
    const PIECE: usize = 1 << 14;
    let all = (0..len).into_par_iter().with_min_len(PIECE);
    all.map(|i| number(i as u64)).collect_into_vec(&mut numbers);
    Ok(numbers)
}

/// Makes the weights of a model. Matrices are bf16, or f32 where `full` is set.
///
/// # Errors
/// [`EngineError::Shape`] for a shape that the engine cannot run, [`EngineError::Memory`] if the
/// weights need more memory than there is.
pub fn weights(config: &Config, seed: u64, full: bool) -> Result<Weights, EngineError> {
    config.check()?;
    memory::check("the synthetic model", config.weights().saturating_mul(if full { 4 } else { 2 }))?;
    let mut make = Maker { seed, tensor: 0, full };
    let (hidden, ffn, head) = (config.hidden, config.ffn, config.head_dim);
    let embedding = make.matrix(config.vocab, hidden)?;
    let mut layers = Vec::new();
    for _ in &config.layers {
        layers.push(Layer {
            input_norm: make.norm(hidden),
            post_attention_norm: make.norm(hidden),
            pre_ffn_norm: make.norm(hidden),
            post_ffn_norm: make.norm(hidden),
            q_norm: make.norm(head),
            k_norm: make.norm(head),
            q: make.matrix(config.query_width(), hidden)?,
            k: make.matrix(config.kv_width(), hidden)?,
            v: make.matrix(config.kv_width(), hidden)?,
            o: make.matrix(hidden, config.query_width())?,
            gate: make.matrix(ffn, hidden)?,
            up: make.matrix(ffn, hidden)?,
            down: make.matrix(hidden, ffn)?,
        });
    }
    let root = (hidden as f32).sqrt();
    let mut weights = Weights {
        config: config.clone(),
        embedding,
        embedding_scale: if full { root } else { bf16::from_f32(root).to_f32() },
        layers,
        norm: make.norm(hidden),
    };
    weights.lay_side_by_side()?;
    Ok(weights)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_numbers_are_the_same_in_every_language() {
        // What tests/golden/tiny.py prints.
        assert_eq!(hash(7, 0), 0x63cb_e1e4_5932_0dd7);
        assert_eq!(hash(7, 1_000_000), 0xa266_b3da_0c52_b8bc);
        let config = Config::preset("gemma3-tiny").unwrap();
        let weights = weights(&config, 7, true).unwrap();
        let first = |matrix: &Matrix| match &matrix.data {
            Data::F32(numbers) => (numbers[0].to_bits(), numbers[numbers.len() - 1].to_bits()),
            _ => panic!("expected f32"),
        };
        assert_eq!(first(&weights.embedding), (0x3b81_4073, 0x3e0d_078e));
        assert_eq!(first(&weights.layers[6].down), (0x3d3d_020d, 0x3d63_40cc));
        assert_eq!((weights.norm[0].to_bits(), weights.norm[63].to_bits()), (0x3f49_0562, 0x3f2f_ae6b));
    }

    #[test]
    fn numbers_do_not_depend_on_threads() {
        let config = Config::preset("gemma3-tiny").unwrap();
        let make = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            match pool.install(|| weights(&config, 3, false)).unwrap().embedding.data {
                Data::Bf16(numbers) => numbers,
                _ => panic!("expected bf16"),
            }
        };
        assert_eq!(*make(1), *make(3));
    }

    #[test]
    fn brain_floats_are_rounded_as_by_the_library() {
        for i in 0..100_000 {
            let number = unit(5, i) * 0.1;
            assert_eq!(brain(number), bf16::from_f32(number));
            // Ties.
            let tie = f32::from_bits(number.to_bits() & !0xFFFF | 0x8000);
            assert_eq!(brain(tie), bf16::from_f32(tie));
        }
    }

    #[test]
    fn what_no_machine_has_room_for_is_refused() {
        let config = Config { ffn: 1 << 31, hidden: 1 << 26, ..Config::preset("gemma3-tiny").unwrap() };
        let error = weights(&config, 1, true).unwrap_err();
        assert!(matches!(error, EngineError::Memory { .. }), "{error}");
    }
}

//! Gemma 3 as plainly as it can be written, in f64, one token after another over a growing list.

use std::ops::Range;

use engine::{Config, Data, LayerKind, Matrix, Rope, Weights};

/// The activation of the MLP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// GELU by tanh, which is right.
    GeluTanh,
    /// GELU by the error function.
    GeluErf,
    /// SiLU.
    Silu,
}

/// K and V of one token in one layer, `[kv_head][head_dim]`, K rotated.
type Entry = (Vec<f64>, Vec<f64>);

/// A model with the cache of one sequence.
pub struct Reference<'a> {
    weights: &'a Weights,
    activation: Activation,
    /// `[layer][token]`.
    cache: Vec<Vec<Entry>>,
    /// What the last token looked at: its attention to each token, summed over heads and global layers.
    pub looked: Vec<f64>,
}

impl<'a> Reference<'a> {
    /// An empty cache.
    pub fn new(weights: &'a Weights) -> Reference<'a> {
        Reference::with(weights, Activation::GeluTanh)
    }

    /// An empty cache, and another activation.
    pub fn with(weights: &'a Weights, activation: Activation) -> Reference<'a> {
        let cache = vec![Vec::new(); weights.layers.len()];
        Reference { weights, activation, cache, looked: Vec::new() }
    }

    /// Logits of all tokens of a text.
    pub fn text(&mut self, tokens: &[u32]) -> Vec<f32> {
        tokens.iter().flat_map(|&token| self.next(token, 0)).collect()
    }

    /// Drops tokens; later ones slide down, their K rotated or not.
    pub fn drop(&mut self, tokens: Range<usize>, rotates: bool) {
        let config = &self.weights.config;
        for (layer, entries) in self.cache.iter_mut().enumerate() {
            entries.drain(tokens.clone());
            for (k, _) in entries.iter_mut().skip(tokens.start).filter(|_| rotates) {
                let rope = config.rope(config.layers[layer]);
                k.chunks_mut(config.head_dim).for_each(|head| turn(head, -(tokens.len() as f64), rope));
            }
        }
    }

    /// Computes the next token, at its index plus `offset`, and returns its logits.
    pub fn next(&mut self, token: u32, offset: u32) -> Vec<f32> {
        let Reference { weights, activation, cache, looked } = self;
        let config = &weights.config;
        let index = cache[0].len();
        let position = (index + offset as usize) as f64;
        *looked = vec![0.0; index + 1];
        let embedding = row(&weights.embedding, token as usize);
        let mut x: Vec<f64> = embedding.iter().map(|e| e * f64::from(weights.embedding_scale)).collect();
        for (l, layer) in weights.layers.iter().enumerate() {
            let rope = config.rope(config.layers[l]);
            let h = rms(&x, &layer.input_norm, config);
            let (mut q, mut k) = (times(&layer.q, &h), times(&layer.k, &h));
            for (heads, norm) in [(&mut q, &layer.q_norm), (&mut k, &layer.k_norm)] {
                for head in heads.chunks_mut(config.head_dim) {
                    head.copy_from_slice(&rms(head, norm, config));
                    turn(head, position, rope);
                }
            }
            cache[l].push((k, times(&layer.v, &h)));
            let first = match config.layers[l] {
                LayerKind::Local => (index + 1).saturating_sub(config.window),
                LayerKind::Global => 0,
            };
            let (attended, weights) = attend(&q, &cache[l][first..], config);
            if config.layers[l] == LayerKind::Global {
                add(looked, &weights);
            }
            add(&mut x, &rms(&times(&layer.o, &attended), &layer.post_attention_norm, config));
            let h = rms(&x, &layer.pre_ffn_norm, config);
            let up = times(&layer.up, &h);
            let inner: Vec<f64> = times(&layer.gate, &h)
                .iter()
                .zip(up)
                .map(|(&gate, up)| activate(*activation, gate) * up)
                .collect();
            add(&mut x, &rms(&times(&layer.down, &inner), &layer.post_ffn_norm, config));
        }
        times(&weights.embedding, &rms(&x, &weights.norm, config)).iter().map(|&x| x as f32).collect()
    }
}

/// What comes out of attention, and how much each token got of it over all heads.
fn attend(q: &[f64], entries: &[Entry], config: &Config) -> (Vec<f64>, Vec<f64>) {
    let (mut out, mut looked) = (Vec::new(), vec![0.0; entries.len()]);
    for (h, q) in q.chunks(config.head_dim).enumerate() {
        let at = h / (config.query_heads / config.kv_heads) * config.head_dim;
        let of = |numbers: &[f64]| numbers[at..at + config.head_dim].to_vec();
        let scores: Vec<f64> =
            entries.iter().map(|(k, _)| dot(q, &of(k)) / config.query_scalar.sqrt()).collect();
        let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let weights: Vec<f64> = scores.iter().map(|score| (score - most).exp()).collect();
        let total: f64 = weights.iter().sum();
        add(&mut looked, &weights.iter().map(|weight| weight / total).collect::<Vec<_>>());
        let mut head = vec![0.0; config.head_dim];
        for (weight, (_, v)) in weights.iter().zip(entries) {
            add(&mut head, &of(v).iter().map(|v| weight / total * v).collect::<Vec<_>>());
        }
        out.extend(head);
    }
    (out, looked)
}

fn turn(head: &mut [f64], position: f64, rope: Rope) {
    let half = head.len() / 2;
    for i in 0..half {
        let angle = position / rope.factor * rope.theta.powf(-(i as f64) / half as f64);
        let (a, b) = (head[i], head[i + half]);
        head[i] = a * angle.cos() - b * angle.sin();
        head[i + half] = b * angle.cos() + a * angle.sin();
    }
}

fn activate(activation: Activation, x: f64) -> f64 {
    match activation {
        Activation::GeluTanh => {
            0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3))).tanh())
        }
        Activation::GeluErf => 0.5 * x * (1.0 + erf(x / std::f64::consts::SQRT_2)),
        Activation::Silu => x / (1.0 + (-x).exp()),
    }
}

/// The error function by its Taylor series, exact enough below 6; beyond it is 1.
fn erf(x: f64) -> f64 {
    if x.abs() > 5.0 {
        return x.signum();
    }
    let (mut term, mut total) = (x, x);
    for n in 1..200 {
        term *= -x * x / f64::from(n);
        total += term / f64::from(2 * n + 1);
    }
    total * 2.0 / std::f64::consts::PI.sqrt()
}

fn rms(x: &[f64], weight: &[f32], config: &Config) -> Vec<f64> {
    let scale = 1.0 / (dot(x, x) / x.len() as f64 + config.rms_eps).sqrt();
    x.iter().zip(weight).map(|(x, &weight)| x * scale * f64::from(weight)).collect()
}

fn row(matrix: &Matrix, row: usize) -> Vec<f64> {
    let range = row * matrix.cols..(row + 1) * matrix.cols;
    match &matrix.data {
        Data::F32(numbers) => numbers[range].iter().map(|&x| f64::from(x)).collect(),
        Data::Bf16(numbers) => numbers[range].iter().map(|x| x.to_f64()).collect(),
        Data::F16(numbers) => numbers[range].iter().map(|x| x.to_f64()).collect(),
        _ => unreachable!("the reference takes plain weights"),
    }
}

fn times(matrix: &Matrix, x: &[f64]) -> Vec<f64> {
    (0..matrix.rows).map(|r| dot(&row(matrix, r), x)).collect()
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn add(to: &mut [f64], x: &[f64]) {
    to.iter_mut().zip(x).for_each(|(to, x)| *to += x);
}

//! The smooth roofline with ten coefficients: the back-ends `spec` and `fitted`.
//!
//! ```text
//! t = c0 + c1*N + c2*S                                          launches, element-wise, sampling
//!   + [(F/(peak*gemm))^p + (W/(BW*weights))^p]^(1/p)             linear layers of N tokens
//!   + the same for the output layer of S samples
//!   + A_prefill + (m if there is a prompt, else 1) * A_decode    attention
//!   + moves
//! A_prefill = sum over pieces and classes:
//!             4*Hq*hd*layers*seen/(peak*prefill) + r*min(context, window)*row/(BW*decode)
//!             less r * what the policy spares of it * row/(BW*decode)
//! A_decode  = sum over classes: (cells read - what the policy spares of them) * row / (BW*decode)
//! ```
//!
//! `seen` is the exact number of (token, cell) pairs under the causal and the window mask; `row`
//! is the bytes of K and V of a cell over the layers of its class. A policy that stores cells coarser *spares*
//! bytes, not operations: a kernel that widens numbers in its registers is supposed. `m` is there because a batch
//! with a prompt in it takes the prompt's kernel, which reads the cache of a decoding sequence
//! with few processors: on an RTX 4090 decoding beside a prompt of any size costs 1.6 to 2.1 times
//! what it costs alone (contexts from 256 to 4096, up to 64 sequences). The form
//! `max + w * min` that one finds elsewhere cannot express it and is not used. `spec` takes the coefficients
//! from the catalogue and can price any model on any device; expect 10 to 40 % of error. `fitted`
//! takes them from measured steps; it holds near the sizes that were measured, for the same
//! model, types and device.

use super::moves::MoveCost;
use super::{CostModel, Prefill, Work};
use crate::hardware::Gpu;
use crate::model::{KvType, Model, WeightType};
use serde::{Deserialize, Serialize};

/// Steps of up to this many tokens are priced by a table made beforehand.
const TOKENS_TABULATED: u32 = 4096;
/// The same for samples.
const SAMPLES_TABULATED: u32 = 1024;

/// The ten numbers of the formula.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Coefficients {
    /// Fixed time of a step, ns (c0).
    pub step_ns: f64,
    /// Element-wise work per token, ns (c1).
    pub token_ns: f64,
    /// Sampling and set-up per sequence, ns (c2).
    pub sample_ns: f64,
    /// Part of the peak FLOP/s that matrix products reach.
    pub gemm: f64,
    /// Part of the bandwidth at which weights are read.
    pub weights: f64,
    /// Sharpness of the corner between the two (p): 1 adds them, infinity takes the larger.
    pub sharpness: f64,
    /// Part of the bandwidth at which K and V are read.
    pub decode: f64,
    /// Part of the peak FLOP/s that the attention of prompts reaches.
    pub prefill: f64,
    /// How often a piece of a prompt reads the cells before it (r).
    pub reread: f64,
    /// How many times as long the attention of decoding takes beside a prompt (m).
    pub mixed: f64,
}

impl Coefficients {
    /// What the catalogue suggests. Fixed time: two attention launches per layer, one for
    /// attention and one for the small kernels together. Per token: bytes of the element-wise
    /// kernels over the bandwidth. Per sample: each 32-bit logit is written and read once, and
    /// 0.25 us a layer to set up a sequence in the attention kernel. Rereading 1, by assumption;
    /// set-up, corner (3) and `mixed` (1.9) as read off the profile of an RTX 4090.
    pub fn prior(model: &Model, gpu: &Gpu) -> Self {
        let bandwidth = gpu.bytes_per_ns();
        Self {
            step_ns: 2.0 * f64::from(model.layers()) * gpu.kernel_us * 1000.0,
            token_ns: model.elementwise_bytes_per_token() as f64 / (bandwidth * gpu.efficiency.weights),
            sample_ns: 8.0 * f64::from(model.vocab) / bandwidth + 250.0 * f64::from(model.layers()),
            gemm: gpu.efficiency.gemm,
            weights: gpu.efficiency.weights,
            sharpness: 3.0,
            decode: gpu.efficiency.decode,
            prefill: gpu.efficiency.prefill,
            reread: 1.0,
            mixed: 1.9,
        }
    }
}

/// What the formula needs to know of a model on a device, in FLOPs, bytes and their rates per ns.
#[derive(Clone, Debug)]
pub(super) struct Shape {
    linear_flops: f64,
    linear_bytes: f64,
    output_flops: f64,
    output_bytes: f64,
    flops_per_ns: f64,
    bytes_per_ns: f64,
    classes: Vec<ClassShape>,
}

#[derive(Clone, Debug)]
struct ClassShape {
    window: Option<u32>,
    /// FLOPs of one (token, cell) pair, all layers of the class.
    pair_flops: f64,
    /// Bytes of K and V of one cell, all layers of the class.
    row_bytes: f64,
}

impl Shape {
    pub(super) fn new(model: &Model, weights: WeightType, kv: KvType, gpu: &Gpu) -> Self {
        let pair = model.attention_flops_per_cell() as f64;
        let rows = model.kv_bytes_per_cell(kv);
        let classes = model.classes.iter().zip(rows).map(|(class, bytes)| ClassShape {
            window: class.window,
            pair_flops: pair * f64::from(class.layers),
            row_bytes: bytes as f64,
        });
        Self {
            linear_flops: model.linear_flops_per_token() as f64,
            linear_bytes: model.linear_bytes(weights) as f64,
            output_flops: model.output_flops_per_sample() as f64,
            output_bytes: model.output_bytes(weights) as f64,
            flops_per_ns: gpu.flops_per_ns(),
            bytes_per_ns: gpu.bytes_per_ns(),
            classes: classes.collect(),
        }
    }

    /// Nanoseconds of a step without its moves.
    pub(super) fn ns(&self, at: &Coefficients, work: &Work) -> f64 {
        self.linear_ns(at, work.tokens)
            + self.output_ns(at, work.samples)
            + attention_ns(&self.rates(at), at.mixed, work)
    }

    /// Fixed time, element-wise work and linear layers; nothing for no tokens.
    fn linear_ns(&self, at: &Coefficients, tokens: u32) -> f64 {
        if tokens == 0 {
            return 0.0;
        }
        let tokens = f64::from(tokens);
        let compute = self.linear_flops * tokens / (self.flops_per_ns * at.gemm);
        let read = self.linear_bytes / (self.bytes_per_ns * at.weights);
        at.step_ns + at.token_ns * tokens + corner(compute, read, at.sharpness)
    }

    /// Output layer and sampling; nothing for no samples.
    fn output_ns(&self, at: &Coefficients, samples: u32) -> f64 {
        if samples == 0 {
            return 0.0;
        }
        let samples = f64::from(samples);
        let compute = self.output_flops * samples / (self.flops_per_ns * at.gemm);
        let read = self.output_bytes / (self.bytes_per_ns * at.weights);
        at.sample_ns * samples + corner(compute, read, at.sharpness)
    }

    fn rates(&self, at: &Coefficients) -> Vec<ClassRate> {
        let classes = self.classes.iter().map(|class| ClassRate {
            window: class.window,
            pair_ns: class.pair_flops / (self.flops_per_ns * at.prefill),
            read_ns: class.row_bytes / (self.bytes_per_ns * at.decode),
            reread_ns: at.reread * class.row_bytes / (self.bytes_per_ns * at.decode),
        });
        classes.collect()
    }
}

/// Prices of one layer class, ns.
#[derive(Clone, Copy, Debug)]
struct ClassRate {
    window: Option<u32>,
    pair_ns: f64,
    read_ns: f64,
    reread_ns: f64,
}

fn attention_ns(rates: &[ClassRate], mixed: f64, work: &Work) -> f64 {
    if !work.walked.is_empty() {
        // K and V of the range are read once; every token is multiplied with every cell of it.
        let walks = rates.iter().zip(&work.walked).map(|(rate, cells)| {
            let read = rate.read_ns * *cells as f64;
            read.max(rate.pair_ns * *cells as f64 * f64::from(work.tokens))
        });
        return walks.sum();
    }
    let mut decode = 0.0;
    for (rate, reads) in rates.iter().zip(&work.decode_reads) {
        decode += rate.read_ns * *reads as f64;
    }
    for (rate, spared) in rates.iter().zip(&work.decode_spared) {
        decode -= rate.read_ns * cells_spared(*spared);
    }
    if work.prefills.is_empty() {
        return decode;
    }
    let mut prefill = 0.0;
    for rate in rates {
        for piece in &work.prefills {
            let before = rate.window.map_or(piece.context, |window| window.min(piece.context));
            prefill += rate.pair_ns * pairs_seen(*piece, rate.window) as f64;
            prefill += rate.reread_ns * f64::from(before);
        }
    }
    for (rate, spared) in rates.iter().zip(&work.context_spared) {
        prefill -= rate.reread_ns * cells_spared(*spared);
    }
    prefill + mixed * decode
}

/// Whole cells, of 32nds of cells.
pub(super) fn cells_spared(parts: u64) -> f64 {
    parts as f64 / 32.0
}

/// `(a^p + b^p)^(1/p)` without overflow.
fn corner(a: f64, b: f64, sharpness: f64) -> f64 {
    let most = a.max(b);
    if most <= 0.0 {
        return 0.0;
    }
    let ratio = a.min(b) / most;
    most * (1.0 + ratio.powf(sharpness)).powf(sharpness.recip())
}

/// Pairs of a new token and a cell that it sees, itself included: the sum of
/// `min(context + i, window)` over `i` from 1 to `tokens`.
pub fn pairs_seen(piece: Prefill, window: Option<u32>) -> u64 {
    let tokens = u64::from(piece.tokens);
    let context = u64::from(piece.context);
    let Some(window) = window.map(u64::from) else {
        return tokens * context + tokens * (tokens + 1) / 2;
    };
    let growing = window.saturating_sub(context).min(tokens);
    growing * context + growing * (growing + 1) / 2 + (tokens - growing) * window
}

/// A step priced by the formula. Pure, and safe to share between threads.
#[derive(Clone, Debug)]
pub struct Roofline {
    name: &'static str,
    shape: Shape,
    coefficients: Coefficients,
    rates: Vec<ClassRate>,
    moves: MoveCost,
    linear_ns: Vec<f64>,
    output_ns: Vec<f64>,
}

impl Roofline {
    /// The back-end `spec`: coefficients from the catalogue, see [`Coefficients::prior`].
    ///
    /// ```
    /// use sim::cost::{CostModel, Work, roofline::Roofline};
    /// let (model, weights) = sim::model::find("gemma3-27b-q4_0").unwrap();
    /// let gpu = sim::hardware::find("rtx8000").unwrap();
    /// let cost = Roofline::spec(&model, weights, sim::model::KvType::F16, &gpu);
    /// let one = Work { tokens: 1, sequences: 1, samples: 1, decodes: 1, ..Work::default() };
    /// assert_eq!(cost.name(), "spec");
    /// assert!(cost.step_ns(&one) > 20_000_000);
    /// ```
    pub fn spec(model: &Model, weights: WeightType, kv: KvType, gpu: &Gpu) -> Self {
        let coefficients = Coefficients::prior(model, gpu);
        Self::new("spec", model, weights, kv, gpu, coefficients)
    }

    /// The back-end `fitted`: coefficients from measured steps of this model, with these types,
    /// on this device.
    pub fn fitted(
        model: &Model,
        weights: WeightType,
        kv: KvType,
        gpu: &Gpu,
        coefficients: Coefficients,
    ) -> Self {
        Self::new("fitted", model, weights, kv, gpu, coefficients)
    }

    fn new(
        name: &'static str,
        model: &Model,
        weights: WeightType,
        kv: KvType,
        gpu: &Gpu,
        coefficients: Coefficients,
    ) -> Self {
        let shape = Shape::new(model, weights, kv, gpu);
        let linear = (0..=TOKENS_TABULATED).map(|tokens| shape.linear_ns(&coefficients, tokens));
        let output = (0..=SAMPLES_TABULATED).map(|samples| shape.output_ns(&coefficients, samples));
        Self {
            name,
            coefficients,
            rates: shape.rates(&coefficients),
            moves: MoveCost::new(model, kv, gpu),
            linear_ns: linear.collect(),
            output_ns: output.collect(),
            shape,
        }
    }

    /// The coefficients in use.
    pub fn coefficients(&self) -> &Coefficients {
        &self.coefficients
    }

    /// A step that samples so many sequences, whatever `work` says of them.
    pub(super) fn step_with_samples_ns(&self, work: &Work, samples: u32) -> u64 {
        let linear = match self.linear_ns.get(work.tokens as usize) {
            Some(ns) => *ns,
            None => self.shape.linear_ns(&self.coefficients, work.tokens),
        };
        let output = match self.output_ns.get(samples as usize) {
            Some(ns) => *ns,
            None => self.shape.output_ns(&self.coefficients, samples),
        };
        let attention = attention_ns(&self.rates, self.coefficients.mixed, work);
        let beside = self.moves.ns(&work.moves)
            + self.moves.scores_ns(&work.scored)
            + self.moves.turns_ns(&work.turned);
        (linear + output + attention + beside + 0.5) as u64
    }
}

impl CostModel for Roofline {
    fn name(&self) -> &str {
        self.name
    }

    fn step_ns(&self, work: &Work) -> u64 {
        self.step_with_samples_ns(work, work.samples)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cost::Moves;
    use crate::{hardware, model};

    fn spec(name: &str, gpu: &str) -> Roofline {
        let (model, weights) = model::find(name).unwrap();
        Roofline::spec(&model, weights, KvType::F16, &hardware::find(gpu).unwrap())
    }

    fn decode(sequences: u32, reads: &[u64]) -> Work {
        Work {
            tokens: sequences,
            sequences,
            samples: sequences,
            decodes: sequences,
            decode_reads: reads.to_vec(),
            ..Work::default()
        }
    }

    #[test]
    fn pairs_match_a_count_by_hand() {
        for window in [None, Some(1), Some(5), Some(16), Some(1000)] {
            for tokens in 0..20 {
                for context in 0..20 {
                    let counted: u64 =
                        (1..=tokens).map(|i| u64::from((context + i).min(window.unwrap_or(u32::MAX)))).sum();
                    let piece = Prefill { tokens, context };
                    assert_eq!(pairs_seen(piece, window), counted, "{piece:?} {window:?}");
                }
            }
        }
    }

    #[test]
    fn every_model_has_a_price_on_every_device() {
        for model in model::models() {
            for gpu in hardware::gpus() {
                let cost = Roofline::spec(&model, WeightType::Q4_0, KvType::Q8_0, &gpu);
                let reads = vec![1000; model.classes.len()];
                assert!(cost.step_ns(&decode(4, &reads)) > 100_000, "{}", model.name);
            }
        }
    }

    #[test]
    fn price_follows_the_sum_of_reads_of_each_class() {
        let cost = spec("gemma3-4b", "rtx4090");
        let at = |reads: &[u64]| cost.step_ns(&decode(8, reads)) as f64;
        let base = at(&[0, 0]);
        let [local, global] = [at(&[100_000, 0]) - base, at(&[0, 100_000]) - base];
        // 29 local layers, 5 global ones; 4096 bytes a cell and layer at 0.84 * 1008 GB/s
        assert!((local / global - 29.0 / 5.0).abs() < 1e-3);
        let expected = 100_000.0 * 5.0 * 4096.0 / (0.84 * 1008.0);
        assert!((global - expected).abs() < 2.0, "{global} {expected}");
    }

    #[test]
    fn what_coarse_cells_spare_is_taken_off_the_reads() {
        let cost = spec("gemma3-4b", "rtx4090");
        let at = |spared: &[u64], before: &[u64], prefills: &[Prefill]| {
            let work = Work {
                decode_spared: spared.to_vec(),
                context_spared: before.to_vec(),
                prefills: prefills.to_vec(),
                ..decode(8, &[100_000, 100_000])
            };
            cost.step_ns(&work) as f64
        };
        // 29 local layers, 5 global ones; 4096 bytes a cell and layer at 0.84 * 1008 GB/s. All at q4_0: 23 parts in 32.
        let cell_ns = 4096.0 / (0.84 * 1008.0);
        let parts = 23 * 100_000;
        let whole = at(&[], &[], &[]);
        for (spared, layers) in [([parts, 0], 29.0), ([0, parts], 5.0), ([parts, parts], 34.0)] {
            let expected = 71_875.0 * layers * cell_ns;
            let found = whole - at(&spared, &[0, 0], &[]);
            assert!((found - expected).abs() <= 1.0, "{spared:?}: {found} {expected}");
        }
        // Beside a prompt decoding takes 1.9 times as long, and the cells before the prompt are read once.
        let piece = [Prefill { tokens: 16, context: 4000 }];
        let whole = at(&[0, 0], &[0, 0], &piece);
        let expected = 1.9 * 71_875.0 * 34.0 * cell_ns;
        assert!((whole - at(&[parts, parts], &[0, 0], &piece) - expected).abs() <= 1.0);
        let expected = (1024.0 * 29.0 + 4000.0 * 5.0) * cell_ns * 15.0 / 32.0;
        assert!((whole - at(&[0, 0], &[15 * 1024, 15 * 4000], &piece) - expected).abs() <= 1.0);
    }

    #[test]
    fn the_table_and_the_formula_agree() {
        let (model, weights) = model::find("gemma3-12b").unwrap();
        let gpu = hardware::find("a100").unwrap();
        let cost = Roofline::spec(&model, weights, KvType::F16, &gpu);
        for tokens in [1, 7, 4096, 4097, 9000] {
            let mut work = decode(1, &[3, 5]);
            work.tokens = tokens;
            work.samples = tokens;
            work.prefills = vec![Prefill { tokens: tokens - 1, context: 77 }];
            let direct = cost.shape.ns(&cost.coefficients, &work);
            assert!((cost.step_ns(&work) as f64 - direct).abs() <= 1.0);
        }
    }

    #[test]
    fn an_empty_step_costs_nothing_and_moves_cost_by_their_bytes() {
        let cost = spec("llama-3.1-8b", "rtx4090");
        assert_eq!(cost.step_ns(&Work::default()), 0);
        let priced = |moves| cost.step_ns(&Work { moves, ..Work::default() }) as f64;
        let copied = priced(Moves { copied_cells: vec![1000], copies: 2, ..Moves::default() });
        let bytes = 1000.0 * 131_072.0;
        let expected = 2.0 * bytes / (0.8 * 1008.0) + 2.0 * 32.0 * 3000.0;
        assert!((copied - expected).abs() < 1.0, "{copied} {expected}");
        let beside = priced(Moves { copied_cells: vec![1000], ..Moves::default() });
        assert!(
            (copied - beside - 2.0 * 32.0 * 3000.0).abs() <= 1.0,
            "copies beside a step have no launches"
        );
        let granules = priced(Moves { mapped: vec![3], unmapped: vec![1], ..Moves::default() });
        assert_eq!(granules, 64.0 * (3.0 * 40_000.0 + 35_000.0), "a call for K and V of every layer");
        let rotated = priced(Moves { rotated_cells: vec![1000], ..Moves::default() });
        assert!((rotated - bytes / (0.8 * 1008.0)).abs() < 1.0);
        let rounded = Moves { requantised_cells: vec![1000], requantisations: 2, ..Moves::default() };
        assert_eq!(priced(rounded), copied, "all is read and written again");
        let swapped = priced(Moves { swapped_cells: vec![1000], ..Moves::default() });
        assert!((swapped - 10_000.0 - bytes / (0.8 * 31.5)).abs() < 1.0);
        let scored = cost.step_ns(&Work { scored: vec![5000], ..Work::default() }) as f64;
        let written_and_read = 5000.0 * 32.0 * 32.0 * 8.0 / (0.8 * 1008.0);
        assert!((scored - written_and_read - 2.0 * 32.0 * 3000.0).abs() < 1.0, "a score per layer and head");
        let turned = cost.step_ns(&Work { turned: vec![5000], ..Work::default() }) as f64;
        // Heads of 128 numbers, 8 of K; the catalogue's RTX 4090.
        let gpu = hardware::find("rtx4090").unwrap();
        let (angles, pairs) = (4.0 * 128.0 / (1008.0 * gpu.efficiency.decode), 8.0 * 64.0 * 6.0);
        let operations = pairs * 16.0 / (gpu.tflops * 1000.0 * gpu.efficiency.prefill);
        assert!((turned - 5000.0 * 32.0 * (angles + operations)).abs() < 1.0, "{turned}");
    }
}

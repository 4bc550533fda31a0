//! The backend on the CPU.
//!
//! Every number that comes out is made of dot products whose order of additions depends on their
//! length alone (`dot`). So no bit of the logits depends on where tokens lie, on who else is in the
//! batch, on how a prompt is cut into chunks, or on threads and vector units.

#![allow(
    clippy::needless_range_loop,
    reason = "tiles are arrays by row and input; closures of adapters may not be compiled for the vector unit"
)]

mod ahead;
mod attention;
pub(crate) mod check;
mod dot;
pub(crate) mod format;
mod lanes;
mod math;
mod peak;
mod product;
mod rope;
mod rounded;
mod slab;
mod whole;

use std::collections::BTreeMap;
use std::sync::Arc;

use policies::{Effect, KvBits, Plan, Run, SeqId};
use rayon::prelude::*;

use self::attention::{Attention, Gathered, fit};
use self::check::{HostKey, Places, SLOTS, check_plan};
pub use self::lanes::Isa;
use self::math::{AddNorm, Gate, Norm, NormHeads};
pub(crate) use self::peak::{OPERATIONS_PER_ROUND, multiply_and_add};
use self::product::{decode_row, product};
use self::rope::{PerKind, Turns, push_turn, rotate};
use self::slab::Slab;
use crate::backend::{Backend, Batch, Output, Wanted};
use crate::cache::{CacheShape, KvType};
use crate::config::Config;
use crate::error::EngineError;
use crate::memory;
use crate::weights::{Data, Layer, Matrix, Weights};

/// Rows that go through the output layer at once; their logits take a megabyte each.
const SAMPLED: usize = 32;

/// K and V of one layer.
struct LayerCache {
    k: Slab,
    v: Slab,
}

/// What went to host memory: K and V of every layer of the class.
type Host = BTreeMap<HostKey, Vec<(Slab, Slab)>>;

/// Weights and cache in main memory.
pub struct Cpu {
    isa: Isa,
    weights: Arc<Weights>,
    shape: CacheShape,
    cache: Vec<LayerCache>,
    host: Host,
    scratch: Scratch,
}

/// Buffers that are kept from step to step.
struct Scratch {
    places: Places,
    /// Turns of the batch's rows.
    turns: PerKind<Turns>,
    /// Turns of all indices so far, where K is rotated as it is read.
    all_turns: PerKind<Turns>,
    gathered: Gathered,
    /// The residual stream, `[row, hidden]`.
    stream: Vec<f32>,
    /// What a norm makes of it, and what goes back to it.
    hidden: Vec<f32>,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    attended: Vec<f32>,
    gate: Vec<f32>,
    /// Products before their rows and columns change places.
    raw: [Vec<f32>; 3],
    logits: Vec<f32>,
}

impl Cpu {
    /// A cache of this shape over these weights.
    ///
    /// # Errors
    /// [`EngineError::Shape`] if the weights do not have the shapes that their config says, or K and
    /// V cannot be stored as asked; [`EngineError::Memory`] if there is no room for the cache.
    pub fn new(weights: Arc<Weights>, shape: CacheShape) -> Result<Cpu, EngineError> {
        let config = &weights.config;
        check_weights(&weights)?;
        check_shape(config, &shape)?;
        let bytes = |&class: &usize| {
            let rows = u64::from(shape.cells[class]) * config.kv_heads as u64;
            rows * (shape.k.bytes(config.head_dim) + shape.v.bytes(config.head_dim)) as u64
        };
        memory::check("the KV cache", shape.class_of.iter().map(bytes).sum())?;
        let layer = |&class: &usize| {
            let cells = shape.cells[class] as usize;
            let slab = |kind| Slab::new(kind, cells, config.kv_heads, config.head_dim);
            Ok(LayerCache { k: slab(shape.k)?, v: slab(shape.v)? })
        };
        let cache = shape.class_of.iter().map(layer).collect::<Result<_, EngineError>>()?;
        let scratch = Scratch::new(config.head_dim);
        Ok(Cpu { isa: Isa::detect(), cache, weights, shape, host: Host::new(), scratch })
    }

    /// The same on a vector unit of choice: equal in every bit.
    ///
    /// # Errors
    /// Those of [`new`](Cpu::new).
    pub fn on(isa: Isa, weights: Arc<Weights>, shape: CacheShape) -> Result<Cpu, EngineError> {
        Ok(Cpu { isa, ..Cpu::new(weights, shape)? })
    }

    /// Layers of a class.
    fn layers_of(&self, class: usize) -> impl Iterator<Item = usize> + use<'_> {
        (0..self.shape.class_of.len()).filter(move |&layer| self.shape.class_of[layer] == class)
    }

    /// Rotates K of some cells on by `delta` positions.
    fn rotate(&mut self, class: usize, run: Run, delta: i32) {
        let weights = self.weights.clone();
        let config = &weights.config;
        if delta == 0 || !self.shape.rotated {
            return;
        }
        let mut head = vec![0.0; config.head_dim];
        let layers: Vec<usize> = self.layers_of(class).collect();
        for layer in layers {
            let mut turn = Vec::new();
            push_turn(&mut turn, f64::from(delta), config.rope(config.layers[layer]), config.head_dim);
            let k = &mut self.cache[layer].k;
            let rows = run.start as usize * config.kv_heads..run.cells().end as usize * config.kv_heads;
            for row in rows {
                k.decode(self.isa, row, &mut head);
                rotate(&mut head, turn.split_at(config.head_dim / 2));
                k.encode(row, &head);
            }
        }
    }

    /// Rounds K and V of some cells to a coarser type, in place. What is stored as coarsely stays as it is.
    fn round(&mut self, class: usize, run: Run, to: KvBits) -> Result<(), EngineError> {
        let (kv_heads, head_dim) = (self.weights.config.kv_heads, self.weights.config.head_dim);
        let kind = match to {
            KvBits::Q8_0 => KvType::Q8_0,
            KvBits::Q4_0 => KvType::Q4_0,
        };
        let mut coarse = Slab::new(kind, 1, 1, head_dim)?;
        let mut head = vec![0.0; head_dim];
        let layers: Vec<usize> = self.layers_of(class).collect();
        for layer in layers {
            let LayerCache { k, v } = &mut self.cache[layer];
            for (slab, stored) in [(k, self.shape.k), (v, self.shape.v)] {
                if stored == kind || stored == KvType::Q4_0 {
                    continue;
                }
                for row in run.start as usize * kv_heads..run.cells().end as usize * kv_heads {
                    slab.decode(self.isa, row, &mut head);
                    coarse.encode(0, &head);
                    coarse.decode(self.isa, 0, &mut head);
                    slab.encode(row, &head);
                }
            }
        }
        Ok(())
    }

    /// Multiplies; `out` becomes `[n, rows]`.
    fn product(&self, matrix: &Matrix, x: &[f32], n: usize, raw: &mut [f32], out: &mut [f32]) {
        if n == 1 {
            product(self.isa, matrix, x, n, out);
        } else {
            let raw = &mut raw[..n * matrix.rows];
            product(self.isa, matrix, x, n, raw);
            swap_axes(raw, n, out);
        }
    }

    /// Embeds the tokens of a batch.
    fn embed(&self, batch: &Batch, stream: &mut [f32]) {
        let weights = &self.weights;
        let embed = |(row, &token): (&mut [f32], &u32)| {
            decode_row(self.isa, &weights.embedding, token as usize, row);
            row.iter_mut().for_each(|x| *x *= weights.embedding_scale);
        };
        stream.par_chunks_mut(weights.config.hidden).zip(&batch.tokens).with_min_len(16).for_each(embed);
    }

    fn norm(&self, x: &[f32], weight: &[f32], out: &mut [f32]) {
        let (width, eps) = (weight.len(), self.weights.config.rms_eps as f32);
        x.par_chunks(16 * width)
            .zip(out.par_chunks_mut(16 * width))
            .for_each(|(x, out)| self.isa.run(Norm { x, weight, eps, out }));
    }

    fn add_normed(&self, x: &[f32], weight: &[f32], sum: &mut [f32]) {
        let (width, eps) = (weight.len(), self.weights.config.rms_eps as f32);
        x.par_chunks(16 * width)
            .zip(sum.par_chunks_mut(16 * width))
            .for_each(|(x, sum)| self.isa.run(AddNorm { x, weight, eps, sum }));
    }

    /// Computes Q, K and V of all rows, and stores K and V.
    fn project(&mut self, index: usize, batch: &Batch, s: &mut Scratch) {
        let weights = self.weights.clone();
        let (config, layer) = (&weights.config, &weights.layers[index]);
        let n = batch.tokens.len();
        let [raw_q, raw_k, raw_v] = &mut s.raw;
        let hidden = &s.hidden;
        rayon::join(
            || self.product(&layer.q, hidden, n, raw_q, &mut s.q),
            || {
                rayon::join(
                    || self.product(&layer.k, hidden, n, raw_k, &mut s.k),
                    || self.product(&layer.v, hidden, n, raw_v, &mut s.v),
                )
            },
        );
        let (turns, eps) = (s.turns.of(config.layers[index]), config.rms_eps as f32);
        let heads = |(row, (q, k)): (usize, (&mut [f32], &mut [f32]))| {
            let turn = Some(turns.get(row, config.head_dim));
            let k_turn = turn.filter(|_| self.shape.rotated);
            self.isa.run(NormHeads { heads: q, weight: &layer.q_norm, eps, turn });
            self.isa.run(NormHeads { heads: k, weight: &layer.k_norm, eps, turn: k_turn });
        };
        let (query_width, kv_width) = (config.query_width(), config.kv_width());
        s.q.par_chunks_mut(query_width)
            .zip(s.k.par_chunks_mut(kv_width))
            .enumerate()
            .with_min_len(8)
            .for_each(heads);
        let class = self.shape.class_of[index];
        let cache = &mut self.cache[index];
        for (row, &(span, token)) in s.places.rows.iter().enumerate() {
            let view = &batch.spans[span].views[class];
            let cell = s.places.cells(class, span)[(token - view.first) as usize] as usize;
            for head in 0..config.kv_heads {
                let at = row * kv_width + head * config.head_dim;
                cache.k.encode(cell * config.kv_heads + head, &s.k[at..at + config.head_dim]);
                cache.v.encode(cell * config.kv_heads + head, &s.v[at..at + config.head_dim]);
            }
        }
    }

    /// One layer, from the residual stream to the residual stream.
    fn layer(&mut self, index: usize, batch: &Batch, s: &mut Scratch) -> Result<(), EngineError> {
        let weights = self.weights.clone();
        let (config, layer) = (&weights.config, &weights.layers[index]);
        let n = batch.tokens.len();
        self.norm(&s.stream, &layer.input_norm, &mut s.hidden);
        self.project(index, batch, s);
        let kind = config.layers[index];
        let attention = Attention {
            isa: self.isa,
            config,
            kind,
            batch,
            places: &s.places,
            class: self.shape.class_of[index],
            k: &self.cache[index].k,
            v: &self.cache[index].v,
            turns: (!self.shape.rotated).then(|| s.all_turns.of(kind)),
        };
        attention.run(&s.q, &mut s.gathered, &mut s.attended)?;
        self.product(&layer.o, &s.attended, n, &mut s.raw[0], &mut s.hidden);
        self.add_normed(&s.hidden, &layer.post_attention_norm, &mut s.stream);
        self.norm(&s.stream, &layer.pre_ffn_norm, &mut s.hidden);
        self.mlp(layer, n, s);
        self.add_normed(&s.hidden, &layer.post_ffn_norm, &mut s.stream);
        Ok(())
    }

    /// The gated MLP, from and to `hidden`.
    fn mlp(&self, layer: &Layer, n: usize, s: &mut Scratch) {
        // Gate and up stay `[ffn, row]` until they are multiplied.
        let [gate, up, raw] = &mut s.raw;
        let len = layer.gate.rows * n;
        let (gate, up) = (&mut gate[..len], &mut up[..len]);
        let hidden = &s.hidden;
        rayon::join(
            || product(self.isa, &layer.gate, hidden, n, gate),
            || product(self.isa, &layer.up, hidden, n, up),
        );
        gate.par_chunks_mut(4096)
            .zip(up.par_chunks(4096))
            .for_each(|(gate, up)| self.isa.run(Gate { gate, up }));
        if n > 1 {
            swap_axes(gate, n, &mut s.gate);
        }
        let inner = if n > 1 { &s.gate } else { &*gate };
        self.product(&layer.down, inner, n, raw, &mut s.hidden);
    }

    /// Logits of the rows that sample.
    fn sample(&self, batch: &Batch, s: &mut Scratch, output: &mut Output) -> Result<(), EngineError> {
        let weights = &self.weights;
        let (hidden, vocab) = (weights.config.hidden, weights.embedding.rows);
        let sampling: Vec<usize> =
            batch.spans.iter().flat_map(|span| span.rows.end - span.samples..span.rows.end).collect();
        if batch.wanted == Wanted::Logits {
            let numbers = sampling.len() * vocab;
            output
                .logits
                .try_reserve(numbers)
                .map_err(|_| EngineError::Memory { what: "logits", bytes: 4 * numbers as u64 })?;
        }
        for rows in sampling.chunks(SAMPLED) {
            let n = rows.len();
            fit(&mut s.logits, n * vocab)?;
            fit(&mut s.raw[0], n * vocab)?;
            for (&row, out) in rows.iter().zip(s.hidden.chunks_exact_mut(hidden)) {
                let (x, eps) = (&s.stream[row * hidden..(row + 1) * hidden], weights.config.rms_eps as f32);
                self.isa.run(Norm { x, weight: &weights.norm, eps, out });
            }
            self.product(&weights.embedding, &s.hidden[..n * hidden], n, &mut s.raw[0], &mut s.logits);
            output.argmax.extend(s.logits.chunks_exact(vocab).map(argmax));
            if batch.wanted == Wanted::Logits {
                output.logits.extend_from_slice(&s.logits);
            }
        }
        Ok(())
    }

    fn compute(&mut self, batch: &Batch, s: &mut Scratch, output: &mut Output) -> Result<(), EngineError> {
        s.places.read(batch, &self.shape, self.weights.embedding.rows)?;
        if batch.tokens.is_empty() {
            return Ok(());
        }
        s.fit(&self.weights.config, batch, self.shape.rotated)?;
        self.embed(batch, &mut s.stream);
        for index in 0..self.cache.len() {
            self.layer(index, batch, s)?;
        }
        self.sample(batch, s, output)
    }
}

impl Scratch {
    fn new(head_dim: usize) -> Scratch {
        Scratch {
            places: Places::default(),
            turns: PerKind::default(),
            all_turns: PerKind::default(),
            gathered: Gathered::new(head_dim),
            stream: Vec::new(),
            hidden: Vec::new(),
            q: Vec::new(),
            k: Vec::new(),
            v: Vec::new(),
            attended: Vec::new(),
            gate: Vec::new(),
            raw: [const { Vec::new() }; 3],
            logits: Vec::new(),
        }
    }

    /// Makes buffers as large as a batch needs them, and tables of its positions.
    fn fit(&mut self, config: &Config, batch: &Batch, rotated: bool) -> Result<(), EngineError> {
        let n = batch.tokens.len();
        let (query_width, kv_width) = (config.query_width(), config.kv_width());
        fit(&mut self.stream, n * config.hidden)?;
        fit(&mut self.hidden, n * config.hidden)?;
        fit(&mut self.q, n * query_width)?;
        fit(&mut self.k, n * kv_width)?;
        fit(&mut self.v, n * kv_width)?;
        fit(&mut self.attended, n * query_width)?;
        fit(&mut self.gate, n * config.ffn)?;
        let widest = config.hidden.max(query_width).max(kv_width).max(config.ffn);
        for raw in &mut self.raw {
            fit(raw, n * widest)?;
        }
        let rows = &self.places.rows;
        for (turns, rope) in self.turns.both(config) {
            let offset = |span: usize| if rotated { batch.spans[span].offset } else { 0 };
            let positions = rows.iter().map(|&(span, token)| token + offset(span));
            turns.set(positions, rope, config.head_dim)?;
        }
        if !rotated {
            let len = rows.iter().map(|&(_, token)| token as usize + 1).max().unwrap_or(0);
            for (turns, rope) in self.all_turns.both(config) {
                turns.grow(len, rope, config.head_dim)?;
            }
        }
        Ok(())
    }
}

/// Multiplies a matrix by as many inputs, `[n, cols]`, as `x` holds, into `[rows, n]`, on a vector unit.
///
/// # Panics
/// If the lengths do not agree.
pub fn multiply(isa: Isa, matrix: &Matrix, x: &[f32], out: &mut [f32]) {
    let n = x.len() / matrix.cols;
    assert_eq!((x.len(), out.len()), (n * matrix.cols, n * matrix.rows), "lengths of input and output");
    product(isa, matrix, x, n, out);
}

/// `[rows, n]` to `[n, rows]`.
fn swap_axes(from: &[f32], n: usize, to: &mut [f32]) {
    const TOKENS: usize = 16;
    let rows = to.len() / n;
    to.par_chunks_mut(TOKENS * rows).enumerate().for_each(|(part, to)| {
        let (first, tokens) = (part * TOKENS, to.len() / rows);
        for row in 0..rows {
            for (token, &x) in from[row * n + first..][..tokens].iter().enumerate() {
                to[token * rows + row] = x;
            }
        }
    });
}

/// The first of the largest numbers.
fn argmax(numbers: &[f32]) -> u32 {
    const PART: usize = 16_384;
    let largest = |a: f32, b: f32| if b > a { b } else { a };
    let largest_of = |part: &[f32]| {
        // Many at once, so that none waits for the one before it.
        let (many, rest) = part.as_chunks::<32>();
        let mut most = [f32::NEG_INFINITY; 32];
        for numbers in many {
            for i in 0..32 {
                most[i] = largest(most[i], numbers[i]);
            }
        }
        rest.iter().chain(&most).copied().fold(f32::NEG_INFINITY, largest)
    };
    let parts: Vec<f32> = numbers.par_chunks(PART).map(largest_of).collect();
    let most = parts.iter().copied().fold(f32::NEG_INFINITY, largest);
    let part = parts.iter().position(|&number| number == most).unwrap_or(0) * PART;
    let within = numbers.get(part..).unwrap_or_default().iter().position(|&number| number == most);
    (part + within.unwrap_or(0)) as u32
}

/// Whether every matrix and norm is as large as the config says.
fn check_weights(weights: &Weights) -> Result<(), EngineError> {
    let config = &weights.config;
    let fault = |what: String| EngineError::Shape { name: config.name.clone(), what };
    let (hidden, head_dim) = (config.hidden, config.head_dim);
    if [hidden, head_dim, config.ffn, config.vocab, config.window, config.kv_heads].contains(&0)
        || !head_dim.is_multiple_of(2)
        || config.query_heads == 0
        || !config.query_heads.is_multiple_of(config.kv_heads)
    {
        return Err(fault(
            "sizes are zero, head_dim is odd, or query heads do not share KV heads evenly".to_owned(),
        ));
    }
    let matrix = |name: &str, matrix: &Matrix, rows: usize, cols: usize| {
        let numbers = match &matrix.data {
            Data::F32(numbers) => numbers.len(),
            Data::Bf16(numbers) => numbers.len(),
            Data::F16(numbers) => numbers.len(),
            Data::Q8_0(bytes) if cols.is_multiple_of(32) => bytes.len() / 34 * 32,
            Data::Q4_0(bytes) if cols.is_multiple_of(32) => bytes.len() / 18 * 32,
            Data::Q6K(bytes) if cols.is_multiple_of(256) => bytes.len() / 210 * 256,
            Data::Tiles(tiles) => tiles.numbers(),
            _ => 0,
        };
        if (matrix.rows, matrix.cols, numbers) != (rows, cols, rows * cols) {
            let has = (matrix.rows, matrix.cols);
            return Err(fault(format!(
                "{name} is {has:?} with {numbers} numbers, expected {:?}",
                (rows, cols)
            )));
        }
        Ok(())
    };
    let norm = |name: &str, norm: &[f32], len: usize| {
        if norm.len() != len {
            return Err(fault(format!("{name} has {} numbers, expected {len}", norm.len())));
        }
        Ok(())
    };
    if weights.layers.len() != config.layers.len() {
        return Err(fault(format!("{} layers, expected {}", weights.layers.len(), config.layers.len())));
    }
    matrix("the embedding", &weights.embedding, config.vocab, hidden)?;
    norm("the last norm", &weights.norm, hidden)?;
    for layer in &weights.layers {
        norm("the input norm", &layer.input_norm, hidden)?;
        norm("the norm after attention", &layer.post_attention_norm, hidden)?;
        norm("the norm before the MLP", &layer.pre_ffn_norm, hidden)?;
        norm("the norm after the MLP", &layer.post_ffn_norm, hidden)?;
        norm("the norm of Q", &layer.q_norm, head_dim)?;
        norm("the norm of K", &layer.k_norm, head_dim)?;
        matrix("Q", &layer.q, config.query_width(), hidden)?;
        matrix("K", &layer.k, config.kv_width(), hidden)?;
        matrix("V", &layer.v, config.kv_width(), hidden)?;
        matrix("O", &layer.o, hidden, config.query_width())?;
        matrix("gate", &layer.gate, config.ffn, hidden)?;
        matrix("up", &layer.up, config.ffn, hidden)?;
        matrix("down", &layer.down, hidden, config.ffn)?;
    }
    Ok(())
}

/// Whether a cache of this shape can be made for this model.
fn check_shape(config: &Config, shape: &CacheShape) -> Result<(), EngineError> {
    let fault = |what: String| Err(EngineError::Shape { name: config.name.clone(), what });
    if shape.class_of.len() != config.layers.len() {
        return fault(format!(
            "a cache of {} layers, expected {}",
            shape.class_of.len(),
            config.layers.len()
        ));
    }
    if let Some(class) = shape.class_of.iter().find(|&&class| class >= shape.cells.len()) {
        return fault(format!("a layer of class {class}; there are {}", shape.cells.len()));
    }
    for kind in [shape.k, shape.v] {
        if matches!(kind, KvType::Q8_0 | KvType::Q4_0) && !config.head_dim.is_multiple_of(32) {
            let head_dim = config.head_dim;
            return fault(format!("{kind:?} stores blocks of 32 numbers, and heads have {head_dim}"));
        }
    }
    Ok(())
}

impl Cpu {
    /// Copies cells to host memory, under the names of tokens of a request.
    fn send_out(&mut self, class: u8, request: u64, first: u32, run: Run) {
        for (cell, token) in run.cells().zip(first..) {
            let cut = |layer: usize| {
                let cache = &self.cache[layer];
                (cache.k.cut(cell as usize), cache.v.cut(cell as usize))
            };
            let payload = self.layers_of(usize::from(class)).map(cut).collect();
            self.host.insert((class, request, token), payload);
        }
    }

    /// Copies them back.
    fn bring_back(&mut self, class: u8, request: u64, first: u32, run: Run) {
        let layers: Vec<usize> = self.layers_of(usize::from(class)).collect();
        for (cell, token) in run.cells().zip(first..) {
            let payload = self.host.get(&(class, request, token)).expect("the plan has been checked");
            for (&layer, (k, v)) in layers.iter().zip(payload) {
                self.cache[layer].k.paste(cell as usize, k);
                self.cache[layer].v.paste(cell as usize, v);
            }
        }
    }
}

impl Backend for Cpu {
    fn device(&self) -> String {
        let activations = if self.weights.is_tiled() { ", activations in q8_0" } else { "" };
        format!("CPU ({}{activations})", self.isa.name())
    }

    fn config(&self) -> &Config {
        &self.weights.config
    }

    fn apply(&mut self, plan: &Plan, request_of: &dyn Fn(SeqId) -> u64) -> Result<(), EngineError> {
        check_plan(plan, &self.shape, &self.host, request_of)?;
        let head_dim = self.weights.config.head_dim;
        let rounds = |effect: &Effect| matches!(effect, Effect::Requantise { .. });
        if !head_dim.is_multiple_of(32) && plan.effects().iter().any(rounds) {
            return Err(EngineError::Batch(format!(
                "K and V are rounded in blocks of 32 numbers, and heads have {head_dim}"
            )));
        }
        let mut back = Vec::new();
        for effect in plan.effects() {
            match *effect {
                Effect::Write { .. } | Effect::Map { .. } | Effect::Unmap { .. } => {}
                Effect::Copy { class, from, to, len, .. } => {
                    let (from, to, len) = (from as usize, to as usize, len as usize);
                    let layers = self.cache.par_iter_mut().zip(&self.shape.class_of);
                    layers.filter(|(_, of)| **of == class.index()).for_each(|(cache, _)| {
                        cache.k.copy(from, to, len);
                        cache.v.copy(from, to, len);
                    });
                }
                Effect::Rotate { class, run, delta } => self.rotate(class.index(), run, delta),
                Effect::Requantise { class, run, to } => self.round(class.index(), run, to)?,
                Effect::SwapOut { class, seq, first, run } => {
                    self.send_out(class.0, request_of(seq), first, run);
                }
                Effect::SwapIn { class, seq, first, run } => {
                    back.push((class.0, request_of(seq)));
                    self.bring_back(class.0, request_of(seq), first, run);
                }
                Effect::Offload { class, run, slot } => self.send_out(class.0, SLOTS, slot, run),
                Effect::Fetch { class, slot, run } => self.bring_back(class.0, SLOTS, slot, run),
            }
        }
        if back.is_empty() {
            return Ok(());
        }
        // A request that is back needs nothing of what it left, not even what it now shares.
        self.host.retain(|&(class, request, _), _| !back.contains(&(class, request)));
        Ok(())
    }

    fn step(&mut self, batch: &Batch, output: &mut Output) -> Result<(), EngineError> {
        output.argmax.clear();
        output.logits.clear();
        let empty = Scratch::new(self.weights.config.head_dim);
        let mut scratch = std::mem::replace(&mut self.scratch, empty);
        // Into the pool once, not with every product: handing work over from outside costs two wake-ups.
        let done = rayon::scope(|_| self.compute(batch, &mut scratch, output));
        self.scratch = scratch;
        done
    }

    fn restart(&mut self) {
        self.host.clear();
    }
}

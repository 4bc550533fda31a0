//! The backend on the CPU.

use std::collections::BTreeMap;
use std::sync::Arc;

use half::f16;
use policies::{Cell, Effect, KvBits, Plan, Run, SeqId};

use crate::backend::{Backend, Batch, Output, Span, Wanted};
use crate::cache::{CacheShape, KvType};
use crate::config::{Config, LayerKind, Rope};
use crate::error::EngineError;
use crate::weights::{Data, Matrix, Weights};

/// K and V of one layer: `[cell][kv_head][head_dim]` each.
struct LayerCache {
    k: Vec<f32>,
    v: Vec<f32>,
}

/// What went to host memory, by class, request and token: K and V of the layers of the class.
type Host = BTreeMap<(u8, u64, u32), Vec<(Vec<f32>, Vec<f32>)>>;

/// Weights and cache in main memory.
pub struct Cpu {
    weights: Arc<Weights>,
    shape: CacheShape,
    cache: Vec<LayerCache>,
    host: Host,
}

impl Cpu {
    /// A cache of this shape over these weights.
    ///
    /// # Errors
    /// [`EngineError::Shape`] for a type of K and V that is not implemented.
    pub fn new(weights: Arc<Weights>, shape: CacheShape) -> Result<Cpu, EngineError> {
        if shape.k != KvType::F32 || shape.v != KvType::F32 || !shape.rotated {
            return Err(EngineError::Shape {
                name: weights.config.name.clone(),
                what: "only K and V in f32, rotated".to_owned(),
            });
        }
        let width = weights.config.kv_width();
        let cache = shape.class_of.iter().map(|&class| {
            let numbers = shape.cells[class] as usize * width;
            LayerCache { k: vec![0.0; numbers], v: vec![0.0; numbers] }
        });
        Ok(Cpu { cache: cache.collect(), weights, shape, host: Host::new() })
    }

    fn layers_of(&self, class: u8) -> Vec<usize> {
        (0..self.shape.class_of.len())
            .filter(|&layer| self.shape.class_of[layer] == usize::from(class))
            .collect()
    }

    fn check(&self, class: u8, start: Cell, len: u32) -> Result<(), EngineError> {
        let cells = self.shape.cells.get(usize::from(class)).copied().unwrap_or(0);
        if u64::from(start) + u64::from(len) > u64::from(cells) {
            return Err(EngineError::Batch(format!("class {class}: cells {start}+{len} of {cells}")));
        }
        Ok(())
    }

    fn rotate(&mut self, class: u8, run: Run, delta: i32) {
        let config = &self.weights.config;
        let (width, head) = (config.kv_width(), config.head_dim);
        for layer in self.layers_of(class) {
            let rope = config.rope(config.layers[layer]);
            for cell in run.cells() {
                let at = cell as usize * width;
                for k in self.cache[layer].k[at..at + width].chunks_exact_mut(head) {
                    rotate(k, f64::from(delta), rope);
                }
            }
        }
    }
}

/// Rotates pairs `(i, i + head_dim / 2)` to a position, or on by one.
fn rotate(head: &mut [f32], position: f64, rope: Rope) {
    let half = head.len() / 2;
    for i in 0..half {
        let angle = position / rope.factor * rope.theta.powf(-(i as f64) / half as f64);
        let (sin, cos) = (angle.sin() as f32, angle.cos() as f32);
        let (a, b) = (head[i], head[i + half]);
        head[i] = a * cos - b * sin;
        head[i + half] = b * cos + a * sin;
    }
}

/// Rounds a block of numbers as GGUF's types of 8 and 4 bits store it: a scale in 16 bits, set by the
/// number furthest from 0, and so many steps of it.
fn round(block: &mut [f32], to: KvBits) {
    let furthest = block.iter().fold(0.0_f32, |far, &x| if x.abs() > far.abs() { x } else { far });
    let (step, least, most) = match to {
        KvBits::Q8_0 => (furthest.abs() / 127.0, -127.0, 127.0),
        KvBits::Q4_0 => (furthest / -8.0, -8.0, 7.0),
    };
    let inverse = if step == 0.0 { 0.0 } else { 1.0 / step };
    let scale = f16::from_f32(step).to_f32();
    for x in block {
        let steps = match to {
            KvBits::Q8_0 => (*x * inverse).round(),
            KvBits::Q4_0 => (*x * inverse + 0.5).floor(),
        };
        *x = steps.clamp(least, most) * scale;
    }
}

fn rms(x: &[f32], weight: &[f32], eps: f64) -> Vec<f32> {
    let mean = x.iter().map(|x| x * x).sum::<f32>() / x.len() as f32;
    let scale = 1.0 / (mean + eps as f32).sqrt();
    x.iter().zip(weight).map(|(x, w)| x * scale * w).collect()
}

fn row(matrix: &Matrix, row: usize) -> Vec<f32> {
    let range = row * matrix.cols..(row + 1) * matrix.cols;
    match &matrix.data {
        Data::F32(data) => data[range].to_vec(),
        Data::Bf16(data) => data[range].iter().map(|x| x.to_f32()).collect(),
        Data::F16(data) => data[range].iter().map(|x| x.to_f32()).collect(),
        Data::Q8_0(_) | Data::Q4_0(_) | Data::Q6K(_) => unimplemented!("quantised weights"),
    }
}

fn times(matrix: &Matrix, x: &[f32]) -> Vec<f32> {
    let dot = |r: usize| row(matrix, r).iter().zip(x).map(|(a, b)| a * b).sum();
    (0..matrix.rows).map(dot).collect()
}

fn gelu(x: f32) -> f32 {
    0.5 * x * (1.0 + (0.797_884_6 * (x + 0.044_715 * x * x * x)).tanh())
}

impl Backend for Cpu {
    fn device(&self) -> String {
        "CPU".to_owned()
    }

    fn config(&self) -> &Config {
        &self.weights.config
    }

    fn apply(&mut self, plan: &Plan, request_of: &dyn Fn(SeqId) -> u64) -> Result<(), EngineError> {
        let width = self.weights.config.kv_width();
        let range = |cell: Cell| cell as usize * width..(cell as usize + 1) * width;
        for effect in plan.effects() {
            match *effect {
                Effect::Write { .. } => {}
                Effect::Copy { class, from, to, len, .. } => {
                    self.check(class.0, from.max(to), len)?;
                    for layer in self.layers_of(class.0) {
                        let source = from as usize * width..(from + len) as usize * width;
                        self.cache[layer].k.copy_within(source.clone(), to as usize * width);
                        self.cache[layer].v.copy_within(source, to as usize * width);
                    }
                }
                Effect::Rotate { class, run, delta } => {
                    self.check(class.0, run.start, run.len)?;
                    self.rotate(class.0, run, delta);
                }
                Effect::Requantise { class, run, to } => {
                    self.check(class.0, run.start, run.len)?;
                    let numbers = run.start as usize * width..run.cells().end as usize * width;
                    for layer in self.layers_of(class.0) {
                        let LayerCache { k, v } = &mut self.cache[layer];
                        for row in [k, v] {
                            row[numbers.clone()].chunks_mut(32).for_each(|block| round(block, to));
                        }
                    }
                }
                Effect::SwapOut { class, seq, first, run } => {
                    self.check(class.0, run.start, run.len)?;
                    for (cell, token) in run.cells().zip(first..) {
                        let layers = self.layers_of(class.0);
                        let rows = layers.iter().map(|&layer| {
                            let cache = &self.cache[layer];
                            (cache.k[range(cell)].to_vec(), cache.v[range(cell)].to_vec())
                        });
                        self.host.insert((class.0, request_of(seq), token), rows.collect());
                    }
                }
                Effect::SwapIn { class, seq, first, run } => {
                    self.check(class.0, run.start, run.len)?;
                    for (cell, token) in run.cells().zip(first..) {
                        let Some(rows) = self.host.remove(&(class.0, request_of(seq), token)) else {
                            continue;
                        };
                        for (layer, (k, v)) in self.layers_of(class.0).into_iter().zip(rows) {
                            self.cache[layer].k[range(cell)].copy_from_slice(&k);
                            self.cache[layer].v[range(cell)].copy_from_slice(&v);
                        }
                    }
                }
            }
        }
        Ok(())
    }

    fn step(&mut self, batch: &Batch, output: &mut Output) -> Result<(), EngineError> {
        let weights = self.weights.clone();
        let config = &weights.config;
        output.argmax.clear();
        output.logits.clear();
        let scaled = |&token: &u32| {
            row(&weights.embedding, token as usize).iter().map(|x| x * weights.embedding_scale).collect()
        };
        let mut rows: Vec<Vec<f32>> = batch.tokens.iter().map(scaled).collect();
        for (index, layer) in weights.layers.iter().enumerate() {
            let eps = config.rms_eps;
            let mut queries = Vec::new();
            for span in &batch.spans {
                let view = &span.views[self.shape.class_of[index]];
                let cells: Vec<Cell> = view.cells().collect();
                for (new, r) in span.rows.clone().enumerate() {
                    let h = rms(&rows[r], &layer.input_norm, eps);
                    let (mut q, mut k) = (times(&layer.q, &h), times(&layer.k, &h));
                    let v = times(&layer.v, &h);
                    let token = span.first + new as u32;
                    let position = f64::from(token + span.offset);
                    let rope = config.rope(config.layers[index]);
                    for (heads, norm) in [(&mut q, &layer.q_norm), (&mut k, &layer.k_norm)] {
                        for head in heads.chunks_exact_mut(config.head_dim) {
                            let normed = rms(head, norm, eps);
                            head.copy_from_slice(&normed);
                            rotate(head, position, rope);
                        }
                    }
                    let cell = cells[(token - view.first) as usize] as usize * config.kv_width();
                    self.cache[index].k[cell..cell + k.len()].copy_from_slice(&k);
                    self.cache[index].v[cell..cell + v.len()].copy_from_slice(&v);
                    queries.push(q);
                }
            }
            for span in &batch.spans {
                let attended = self.attend(index, span, &queries);
                for (r, attended) in span.rows.clone().zip(attended) {
                    let o = rms(&times(&layer.o, &attended), &layer.post_attention_norm, eps);
                    rows[r].iter_mut().zip(o).for_each(|(x, o)| *x += o);
                    let h = rms(&rows[r], &layer.pre_ffn_norm, eps);
                    let (gate, up) = (times(&layer.gate, &h), times(&layer.up, &h));
                    let inner: Vec<f32> = gate.iter().zip(up).map(|(gate, up)| gelu(*gate) * up).collect();
                    let down = rms(&times(&layer.down, &inner), &layer.post_ffn_norm, eps);
                    rows[r].iter_mut().zip(down).for_each(|(x, down)| *x += down);
                }
            }
        }
        for span in &batch.spans {
            for sampling in &rows[span.rows.end - span.samples..span.rows.end] {
                let logits = times(&weights.embedding, &rms(sampling, &weights.norm, config.rms_eps));
                let best =
                    (0..logits.len()).fold(0, |best, i| if logits[i] > logits[best] { i } else { best });
                output.argmax.push(best as u32);
                if batch.wanted == Wanted::Logits {
                    output.logits.extend(logits);
                }
            }
        }
        Ok(())
    }

    fn restart(&mut self) {
        self.host.clear();
    }
}

impl Cpu {
    /// Attention of a span's new tokens in one layer, in logical order.
    fn attend(&self, layer: usize, span: &Span, queries: &[Vec<f32>]) -> Vec<Vec<f32>> {
        let config = &self.weights.config;
        let (width, head) = (config.kv_width(), config.head_dim);
        let view = &span.views[self.shape.class_of[layer]];
        let cells: Vec<Cell> = view.cells().collect();
        let scale = config.query_scalar.powf(-0.5) as f32;
        let window = match config.layers[layer] {
            LayerKind::Local => config.window as u32,
            LayerKind::Global => u32::MAX,
        };
        let one = |(new, r): (usize, usize)| {
            let token = span.first + new as u32;
            let from = (token + 1).saturating_sub(window).max(view.first);
            let seen = &cells[(from - view.first) as usize..=(token - view.first) as usize];
            let mut attended = Vec::with_capacity(queries[r].len());
            for (h, q) in queries[r].chunks_exact(head).enumerate() {
                let kv = h / (config.query_heads / config.kv_heads) * head;
                let at = |cell: Cell| cell as usize * width + kv;
                let dot = |&cell: &Cell| {
                    let k = &self.cache[layer].k[at(cell)..at(cell) + head];
                    q.iter().zip(k).map(|(q, k)| q * k).sum::<f32>() * scale
                };
                let mut scores: Vec<f32> = seen.iter().map(dot).collect();
                let most = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                scores.iter_mut().for_each(|score| *score = (*score - most).exp());
                let sum: f32 = scores.iter().sum();
                let mut out = vec![0.0; head];
                for (score, &cell) in scores.iter().zip(seen) {
                    let v = &self.cache[layer].v[at(cell)..at(cell) + head];
                    out.iter_mut().zip(v).for_each(|(out, v)| *out += score / sum * v);
                }
                attended.extend(out);
            }
            attended
        };
        span.rows.clone().enumerate().map(one).collect()
    }
}

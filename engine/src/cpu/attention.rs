//! Attention of a batch's rows in one layer.
//!
//! A score is one dot product, the sum of exponentials has the order of [`super::dot`], and the
//! weighted sum of V adds one token after another, all by index in the sequence. Where a token lies,
//! who else is in the batch, and how work is shared out changes none of that.

#![allow(clippy::needless_range_loop, reason = "tiles are indexed by row and input alike")]

use std::cell::RefCell;

use policies::{Cell, Run};
use rayon::prelude::*;

use super::check::Places;
use super::dot::{tile, zeros};
use super::format::{BLOCK, Bf16, F16, F32, Format, Q4_0, Q8_0, eight};
use super::lanes::{Isa, Kernel, LANES, Lanes, sum};
use super::math::Softmax;
use super::rope::{Turns, rotate};
use super::slab::{Numbers, Slab, on_units};
use crate::backend::Batch;
use crate::ballot::Ballot;
use crate::config::{Config, LayerKind};
use crate::error::EngineError;

/// Tokens whose scores a thread computes at once where few rows share many threads.
const PART: usize = 256;
/// Tokens whose V is added to all of a head before the next ones are read.
const STRIP: usize = 64;
/// New tokens of a sequence from which on its K and V are decoded once for all of them.
const MANY: usize = 4;

/// Where tokens lie.
#[derive(Clone, Copy)]
enum Place<'a> {
    /// Anywhere.
    Cells(&'a [Cell]),
    /// Side by side.
    Range { start: usize, len: usize },
}

impl Place<'_> {
    #[inline(always)]
    fn len(self) -> usize {
        match self {
            Place::Cells(cells) => cells.len(),
            Place::Range { len, .. } => len,
        }
    }

    #[inline(always)]
    fn cell(self, i: usize) -> usize {
        match self {
            Place::Cells(cells) => cells[i] as usize,
            Place::Range { start, .. } => start + i,
        }
    }
}

/// One head of some cells.
#[derive(Clone, Copy)]
struct Head<'a> {
    slab: &'a Slab,
    head: usize,
    place: Place<'a>,
}

/// The rows of a [`Head`], their format known.
struct HeadRows<'a, F: Format> {
    units: &'a [F::Unit],
    head: Head<'a>,
}

impl<'a, F: Format> HeadRows<'a, F> {
    #[inline(always)]
    fn row(&self, i: usize) -> &'a [F::Unit] {
        let len = self.head.slab.head_dim / F::NUMBERS;
        let row = self.head.place.cell(i) * self.head.slab.heads + self.head.head;
        &self.units[row * len..(row + 1) * len]
    }
}

/// Scores of neighbouring tokens, `[token, query]`.
struct Scores<'a, F: Format> {
    k: HeadRows<'a, F>,
    /// `[query, head_dim]`.
    q: &'a [f32],
    scale: f32,
    /// First token.
    first: usize,
    out: &'a mut [f32],
}

impl<F: Format> Kernel for Scores<'_, F> {
    #[inline(always)]
    fn run<L: Lanes>(mut self, lanes: L) {
        let queries = self.q.len() / self.k.head.slab.head_dim;
        let tokens = self.out.len() / queries;
        let mut i = 0;
        while i + 2 <= tokens {
            self.queries::<L, 2>(lanes, i, queries);
            i += 2;
        }
        if i < tokens {
            self.queries::<L, 1>(lanes, i, queries);
        }
    }
}

impl<F: Format> Scores<'_, F> {
    #[inline(always)]
    fn queries<L: Lanes, const R: usize>(&mut self, lanes: L, i: usize, queries: usize) {
        let mut rows: [&[F::Unit]; R] = [&[]; R];
        for r in 0..R {
            rows[r] = self.k.row(self.first + i + r);
        }
        let mut query = 0;
        while query < queries {
            query += match queries - query {
                1 => self.tile::<L, R, 1>(lanes, rows, i, query, queries),
                2 | 3 => self.tile::<L, R, 2>(lanes, rows, i, query, queries),
                _ => self.tile::<L, R, 4>(lanes, rows, i, query, queries),
            };
        }
    }

    #[inline(always)]
    fn tile<L: Lanes, const R: usize, const T: usize>(
        &mut self,
        lanes: L,
        rows: [&[F::Unit]; R],
        i: usize,
        query: usize,
        queries: usize,
    ) -> usize {
        let head_dim = self.k.head.slab.head_dim;
        let mut inputs: [&[f32]; T] = [&[]; T];
        for t in 0..T {
            inputs[t] = &self.q[(query + t) * head_dim..(query + t + 1) * head_dim];
        }
        let mut sums = zeros::<L, R, T>(lanes);
        tile::<L, F, R, T>(lanes, rows, inputs, &mut sums);
        for r in 0..R {
            for t in 0..T {
                self.out[(i + r) * queries + query + t] = sum(lanes, sums[r][t]) * self.scale;
            }
        }
        T
    }
}

/// Adds V of all tokens, weighted, to blocks of 32 numbers, `[block, query, 32]`.
struct Mix<'a, F: Format> {
    v: HeadRows<'a, F>,
    /// `[query, token]`.
    weights: &'a [f32],
    queries: usize,
    /// First block of the head.
    first: usize,
    out: &'a mut [f32],
}

impl<F: Format> Kernel for Mix<'_, F> {
    #[inline(always)]
    fn run<L: Lanes>(mut self, lanes: L) {
        let tokens = self.v.head.place.len();
        let blocks = self.out.len() / (self.queries * BLOCK);
        for start in (0..tokens).step_by(STRIP) {
            let strip = start..(start + STRIP).min(tokens);
            for block in 0..blocks {
                let mut query = 0;
                while query < self.queries {
                    query += match self.queries - query {
                        1 => self.add::<L, 1>(lanes, strip.clone(), block, query),
                        2 | 3 => self.add::<L, 2>(lanes, strip.clone(), block, query),
                        _ => self.add::<L, 4>(lanes, strip.clone(), block, query),
                    };
                }
            }
        }
    }
}

impl<F: Format> Mix<'_, F> {
    /// Adds a strip of tokens to one block of `T` queries. Returns `T`.
    #[inline(always)]
    fn add<L: Lanes, const T: usize>(
        &mut self,
        lanes: L,
        strip: std::ops::Range<usize>,
        block: usize,
        query: usize,
    ) -> usize {
        let tokens = self.v.head.place.len();
        let from = (block * self.queries + query) * BLOCK;
        let out = &mut self.out[from..from + T * BLOCK].as_chunks_mut::<BLOCK>().0[..T];
        let is_whole = (self.first + block + 1) * BLOCK <= self.v.head.slab.head_dim;
        for s in [0, 2] {
            let mut sums = [[lanes.splat(0.0); 2]; T];
            for t in 0..T {
                sums[t] = [lanes.load(eight(&out[t], s)), lanes.load(eight(&out[t], s + 1))];
            }
            for i in strip.clone() {
                let row = self.v.row(i);
                let v = if is_whole {
                    let numbers = &F::blocks(row)[self.first + block];
                    let scale = F::scale(lanes, numbers);
                    [F::vector(lanes, numbers, scale, s), F::vector(lanes, numbers, scale, s + 1)]
                } else {
                    let mut numbers = [0.0; BLOCK];
                    F::rest(row, &mut numbers);
                    [lanes.load(eight(&numbers, s)), lanes.load(eight(&numbers, s + 1))]
                };
                for t in 0..T {
                    let weight = lanes.splat(self.weights[(query + t) * tokens + i]);
                    sums[t][0] = lanes.fma(weight, v[0], sums[t][0]);
                    sums[t][1] = lanes.fma(weight, v[1], sums[t][1]);
                }
            }
            for t in 0..T {
                let eights = out[t].as_chunks_mut::<LANES>().0;
                eights[s] = lanes.store(sums[t][0]);
                eights[s + 1] = lanes.store(sums[t][1]);
            }
        }
        T
    }
}

/// What a thread needs for one row and KV head; reused.
#[derive(Default)]
struct Scratch {
    /// `[token, query]`.
    raw: Vec<f32>,
    /// `[query, token]`.
    weights: Vec<f32>,
    /// Of each query.
    sums: Vec<f32>,
    /// `[block, query, 32]`.
    mixed: Vec<f32>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// K and V of one head of one sequence, decoded; reused.
pub(crate) struct Gathered {
    k: Slab,
    v: Slab,
}

impl Gathered {
    /// Nothing yet.
    pub fn new(head_dim: usize) -> Gathered {
        let empty = Slab { numbers: Numbers::F32(Vec::new()), heads: 1, head_dim };
        Gathered { k: empty.clone(), v: empty }
    }
}

/// One layer's attention over one batch.
pub(crate) struct Attention<'a> {
    pub isa: Isa,
    pub config: &'a Config,
    pub kind: LayerKind,
    pub batch: &'a Batch,
    pub places: &'a Places,
    pub class: usize,
    pub k: &'a Slab,
    pub v: &'a Slab,
    /// Turns by index, if K is rotated as it is read.
    pub turns: Option<&'a Turns>,
}

impl Attention<'_> {
    /// Replaces `out`, `[row, query_width]`, for the queries `q` of the same form, normed and rotated.
    pub fn run(&self, q: &[f32], gathered: &mut Gathered, out: &mut [f32]) -> Result<(), EngineError> {
        let config = self.config;
        let width = config.query_width() / config.kv_heads;
        let walk = self.batch.walks.get(self.class).copied().flatten().filter(|_| self.turns.is_none());
        let is_gathered = |span: usize| {
            let is_packed = !(self.k.is_f32() && self.v.is_f32());
            let many = self.batch.spans[span].rows.len() >= MANY;
            self.turns.is_some() || (walk.is_none() && many && is_packed)
        };
        let one = |(i, out): (usize, &mut [f32]), share| {
            let (row, head) = (i / config.kv_heads, i % config.kv_heads);
            let (span, token) = self.places.rows[row];
            if !is_gathered(span) {
                let place = Place::Cells(self.seen(span, token));
                let (k, v) = (Head { slab: self.k, head, place }, Head { slab: self.v, head, place });
                self.attend(k, v, walk, &q[i * width..(i + 1) * width], out, share, self.vote(span, token));
            }
        };
        let heads_direct = self.batch.spans.iter().enumerate().filter(|(span, _)| !is_gathered(*span));
        let heads_direct = heads_direct.map(|(_, span)| span.rows.len()).sum::<usize>() * config.kv_heads;
        if heads_direct >= 2 * rayon::current_num_threads() {
            out.par_chunks_mut(width).enumerate().for_each(|task| one(task, false));
        } else if heads_direct > 0 {
            out.chunks_mut(width).enumerate().for_each(|task| one(task, true));
        }
        for span in (0..self.batch.spans.len()).filter(|&span| is_gathered(span)) {
            self.gather_and_attend(span, q, gathered, out)?;
        }
        Ok(())
    }

    /// Where it is wanted to be known what a token looks at, and the token.
    fn vote(&self, span: usize, token: u32) -> Option<(&Ballot, u32)> {
        let ballot = self.batch.spans[span].ballot.as_ref()?;
        (self.kind == LayerKind::Global).then_some((ballot, token))
    }

    /// Cells that a token reads, in logical order.
    fn seen(&self, span: usize, token: u32) -> &[Cell] {
        let first = self.batch.spans[span].views[self.class].first;
        let window = match self.kind {
            LayerKind::Local => self.config.window as u32,
            LayerKind::Global => u32::MAX,
        };
        let from = (token + 1).saturating_sub(window).max(first);
        &self.places.cells(self.class, span)[(from - first) as usize..=(token - first) as usize]
    }

    /// Attention of a sequence's new tokens, K and V being decoded (and K rotated) once for all.
    fn gather_and_attend(
        &self,
        index: usize,
        q: &[f32],
        gathered: &mut Gathered,
        out: &mut [f32],
    ) -> Result<(), EngineError> {
        let span = &self.batch.spans[index];
        if span.rows.is_empty() {
            return Ok(());
        }
        let view = &span.views[self.class];
        let all = self.places.cells(self.class, index);
        let base = all.len() - (span.rows.len() - 1) - self.seen(index, span.first).len();
        let cells = &all[base..];
        let (query_width, group) =
            (self.config.query_width(), self.config.query_width() / self.config.kv_heads);
        for head in 0..self.config.kv_heads {
            self.gather(
                self.k,
                head,
                cells,
                self.turns.map(|turns| (turns, view.first as usize + base)),
                &mut gathered.k,
            )?;
            self.gather(self.v, head, cells, None, &mut gathered.v)?;
            let one = |(new, out): (usize, &mut [f32]), share| {
                let len = self.seen(index, span.first + new as u32).len();
                let end = cells.len() - (span.rows.len() - 1 - new);
                let place = Place::Range { start: end - len, len };
                let k = Head { slab: &gathered.k, head: 0, place };
                let v = Head { slab: &gathered.v, head: 0, place };
                let at = (span.rows.start + new) * query_width + head * group;
                let out = &mut out[head * group..(head + 1) * group];
                self.attend(
                    k,
                    v,
                    None,
                    &q[at..at + group],
                    out,
                    share,
                    self.vote(index, span.first + new as u32),
                );
            };
            let out = &mut out[span.rows.start * query_width..span.rows.end * query_width];
            if span.rows.len() >= 2 * rayon::current_num_threads() {
                out.par_chunks_mut(query_width).enumerate().for_each(|task| one(task, false));
            } else {
                out.chunks_mut(query_width).enumerate().for_each(|task| one(task, true));
            }
        }
        Ok(())
    }

    /// Decodes one head of some cells into a slab of f32, rotated to indices from a first one on.
    fn gather(
        &self,
        slab: &Slab,
        head: usize,
        cells: &[Cell],
        turns: Option<(&Turns, usize)>,
        to: &mut Slab,
    ) -> Result<(), EngineError> {
        let head_dim = slab.head_dim;
        let Numbers::F32(numbers) = &mut to.numbers else { unreachable!("gathered numbers are f32") };
        fit(numbers, cells.len() * head_dim)?;
        numbers.par_chunks_mut(head_dim).zip(cells).enumerate().with_min_len(16).for_each(
            |(i, (out, &cell))| {
                slab.decode(self.isa, cell as usize * slab.heads + head, out);
                if let Some((turns, first)) = turns {
                    rotate(out, turns.get(first + i, head_dim));
                }
            },
        );
        Ok(())
    }

    /// Attention of the queries of one row that share a KV head. With `share`, the work is spread
    /// over threads.
    #[allow(clippy::too_many_arguments, reason = "what a task reads, and where it writes")]
    fn attend(
        &self,
        k: Head<'_>,
        v: Head<'_>,
        walk: Option<Run>,
        q: &[f32],
        out: &mut [f32],
        share: bool,
        vote: Option<(&Ballot, u32)>,
    ) {
        let head_dim = self.config.head_dim;
        let (queries, tokens) = (q.len() / head_dim, k.place.len());
        // Taken, not borrowed: while this waits for other threads, it may do another's work.
        let mut scratch = SCRATCH.take();
        let Scratch { raw, weights, sums, mixed } = &mut scratch;
        let scored = match walk {
            Some(run) => Place::Range { start: run.start as usize, len: run.len as usize },
            None => k.place,
        };
        raw.resize(scored.len() * queries, 0.0);
        let scale = self.config.query_scalar.powf(-0.5) as f32;
        let score = |(part, out): (usize, &mut [f32])| {
            let (head, first) = (Head { place: scored, ..k }, part * PART);
            on_units!(&k.slab.numbers, |units: F| {
                let k = HeadRows::<F> { units, head };
                self.isa.run(Scores { k, q, scale, first, out });
            });
        };
        if share {
            raw.par_chunks_mut(PART * queries).enumerate().for_each(score);
        } else {
            raw.chunks_mut(PART * queries).enumerate().for_each(score);
        }
        let start = walk.map_or(0, |run| run.start as usize);
        weights.resize(queries * tokens, 0.0);
        sums.resize(queries, 0.0);
        for (query, (weights, sum)) in weights.chunks_exact_mut(tokens).zip(&mut *sums).enumerate() {
            for (i, weight) in weights.iter_mut().enumerate() {
                let at = if walk.is_some() { k.place.cell(i) - start } else { i };
                *weight = raw[at * queries + query];
            }
            self.isa.run(Softmax { scores: weights, sum });
        }
        if let Some((ballot, token)) = vote {
            ballot.add(token, token as usize + 1 - tokens, weights, sums);
        }
        let blocks = head_dim.div_ceil(BLOCK);
        mixed.clear();
        mixed.resize(blocks * queries * BLOCK, 0.0);
        let blocks_of_a_part = if share { 2 } else { blocks };
        let mix = |(part, out): (usize, &mut [f32])| {
            on_units!(&v.slab.numbers, |units: F| {
                let v = HeadRows::<F> { units, head: v };
                let first = part * blocks_of_a_part;
                self.isa.run(Mix { v, weights, queries, first, out });
            });
        };
        let part = blocks_of_a_part * queries * BLOCK;
        if share {
            mixed.par_chunks_mut(part).enumerate().for_each(mix);
        } else {
            mixed.chunks_mut(part).enumerate().for_each(mix);
        }
        for (i, out) in out.iter_mut().enumerate() {
            let (query, at) = (i / head_dim, i % head_dim);
            *out = mixed[(at / BLOCK * queries + query) * BLOCK + at % BLOCK] / sums[query];
        }
        SCRATCH.set(scratch);
    }
}

/// Makes a buffer so long. What is in it is left to whoever fills it.
pub(crate) fn fit(buffer: &mut Vec<f32>, len: usize) -> Result<(), EngineError> {
    let more = len.saturating_sub(buffer.len());
    let bytes = 4 * len as u64;
    buffer.try_reserve(more).map_err(|_| EngineError::Memory { what: "a buffer of the step", bytes })?;
    buffer.resize(len, 0.0);
    Ok(())
}

//! One step as a chain of launches.

use super::driver::{Args, Stream};
use super::gemm::Gemm;
use super::input::{DESCRIPTOR, Frame};
use super::kernels::{ActOut, Kernels, MOST_BLOCKS, grid};
use super::model::{DeviceLayer, Kind, Linear, Model};
use super::slabs::{self, Slabs};
use super::work::{self, ARGMAX_PARTS, Act, FEW, Form, LOGIT_ROWS, Work};
use crate::cache::CacheShape;
use crate::config::LayerKind;
use crate::error::EngineError;

/// Everything that the launches of a step need.
pub(crate) struct Step<'a> {
    pub(crate) model: &'a Model,
    pub(crate) kernels: &'a Kernels,
    pub(crate) stream: &'a Stream,
    pub(crate) gemm: Option<&'a mut Gemm>,
    pub(crate) slabs: &'a Slabs,
    pub(crate) shape: &'a CacheShape,
    pub(crate) work: &'a Work,
    /// Address of the batch's words.
    pub(crate) words: u64,
    pub(crate) frame: &'a Frame,
    /// Whether kernels may start before those before them end.
    pub(crate) early: bool,
}

impl Step<'_> {
    /// Queues a whole step; of the logits, those of its last rows stay.
    pub(crate) fn all(&mut self) -> Result<(), EngineError> {
        self.layers()?;
        for first in (0..self.frame.samples).step_by(LOGIT_ROWS) {
            self.head(first, LOGIT_ROWS.min(self.frame.samples - first))?;
        }
        Ok(())
    }

    /// Queues everything up to the normed inputs of the output layer.
    pub(crate) fn layers(&mut self) -> Result<(), EngineError> {
        let (model, rows) = (self.model, self.frame.rows);
        let Some(first) = model.layers.first() else { return Ok(()) };
        self.embed(first)?;
        for (index, layer) in model.layers.iter().enumerate() {
            let next = model.layers.get(index + 1);
            let (work, slabs) = (self.work, self.slabs);
            let splits = self.linear(&layer.qkv, &work.hidden, rows)?;
            self.store(index, layer, splits)?;
            self.attend(index, layer)?;
            let splits = self.linear(&layer.o, &work.attended, rows)?;
            let form = self.form(&layer.gate_up, rows);
            self.add_norm(splits, layer.post_attention_norm.at(), layer.pre_ffn_norm.at(), form)?;
            self.gate_up(layer)?;
            let splits = self.linear(&layer.down, &work.inner, rows)?;
            let (norm, form) = match next {
                Some(next) => (next.input_norm.at(), self.form(&next.qkv, rows)),
                None => (model.norm.at(), self.form(&model.embedding, self.frame.samples.min(LOGIT_ROWS))),
            };
            debug_assert_eq!(slabs.k.len(), model.layers.len());
            self.add_norm(splits, layer.post_ffn_norm.at(), norm, form)?;
        }
        Ok(())
    }

    /// Queues the output layer for the samples `first..first + count`, and the most likely tokens.
    pub(crate) fn head(&mut self, first: usize, count: usize) -> Result<(), EngineError> {
        let (model, work, frame) = (self.model, self.work, self.frame);
        let form = self.form(&model.embedding, count);
        // Where all rows sample and fit, the last layer has already left what is needed.
        if frame.samples != frame.rows || frame.samples > LOGIT_ROWS {
            let args = Args::new()
                .at(work.x.at())
                .at(self.word(frame.layout.samples + first))
                .at(model.norm.at())
                .float(model.config.rms_eps as f32);
            let args = work.hidden.out(form).push(args).int(model.config.hidden as u32);
            self.launch("norm_rows", [count, 1, 1], self.norm_block(), args)?;
        }
        self.product(&model.embedding, &work.hidden, count, work.logits.at(), 1)?;
        let args = Args::new().at(work.logits.at()).int(model.config.vocab as u32).at(work.argmax_parts.at());
        self.launch("argmax_part", [ARGMAX_PARTS, count, 1], 256, args)?;
        let out = work.argmax.at() + 4 * first as u64;
        let args = Args::new().at(work.argmax_parts.at()).int(ARGMAX_PARTS as u32).at(out);
        self.launch("argmax_final", [count, 1, 1], 128, args)
    }

    fn launch(&self, name: &str, blocks: [usize; 3], block: usize, args: Args) -> Result<(), EngineError> {
        let mut shape = grid(blocks, block);
        shape.early = self.early;
        self.kernels.launch(self.stream, name, shape, args)
    }

    /// Address of a word of the batch.
    fn word(&self, index: usize) -> u64 {
        self.words + 4 * index as u64
    }

    fn norm_block(&self) -> usize {
        if self.model.config.hidden <= 4096 { 512 } else { 1024 }
    }

    /// Whether a library computes the products of so many rows.
    fn uses_gemm(&self, kind: Kind, rows: usize) -> bool {
        rows > FEW && kind != Kind::F32 && self.gemm.is_some()
    }

    fn form(&self, linear: &Linear, rows: usize) -> Form {
        match linear.kind {
            Kind::F32 => Form::Full,
            Kind::Bf16 => Form::Half,
            Kind::Q8 | Kind::Q4 if self.uses_gemm(linear.kind, rows) => Form::Half,
            Kind::Q8 | Kind::Q4 => Form::Quants,
        }
    }

    fn embed(&self, first: &DeviceLayer) -> Result<(), EngineError> {
        let (model, work, frame) = (self.model, self.work, self.frame);
        let args = Args::new()
            .at(model.embedding.numbers.at())
            .at(model.embedding.scales_at())
            .at(self.word(frame.layout.tokens))
            .float(model.embedding_scale)
            .at(first.input_norm.at())
            .float(model.config.rms_eps as f32)
            .at(work.x.at());
        let out = work.hidden.out(self.form(&first.qkv, frame.rows));
        let args = out.push(args).int(model.config.hidden as u32);
        let name = format!("embed_{}", model.embedding.kind.name());
        // The first kernel of a step follows copies, so it waits for all before it.
        self.kernels.launch(self.stream, &name, grid([frame.rows, 1, 1], self.norm_block()), args)
    }

    fn add_norm(&self, splits: usize, post: u64, next: u64, form: Form) -> Result<(), EngineError> {
        let (work, config) = (self.work, &self.model.config);
        let args = Args::new()
            .at(work.y.at())
            .int(splits as u32)
            .at(post)
            .at(next)
            .float(config.rms_eps as f32)
            .at(work.x.at());
        let args = work.hidden.out(form).push(args).int(config.hidden as u32);
        self.launch("add_norm", [self.frame.rows, 1, 1], self.norm_block(), args)
    }

    /// Queues a linear layer into `y`; gives the splits that it is in.
    fn linear(&mut self, linear: &Linear, inputs: &Act, rows: usize) -> Result<usize, EngineError> {
        let few = !self.uses_gemm(linear.kind, rows);
        let splits = work::splits(linear, self.model.gpu.info().processors as usize);
        // Many rows through the kernels for few fill the device without.
        let splits = if few && rows <= FEW { splits } else { 1 };
        self.product(linear, inputs, rows, self.work.y.at(), splits)?;
        Ok(splits)
    }

    /// Queues `out[splits][rows][outputs] = inputs * weights^T`.
    fn product(
        &mut self,
        linear: &Linear,
        inputs: &Act,
        rows: usize,
        out: u64,
        splits: usize,
    ) -> Result<(), EngineError> {
        let at = inputs.out(self.form(linear, rows));
        let sizes = [linear.rows, linear.cols, rows];
        if self.uses_gemm(linear.kind, rows) {
            let weights = self.widen(linear)?;
            let stream = self.stream;
            let gemm = self.gemm.as_mut().expect("uses_gemm says that there is one");
            return gemm.multiply(stream, weights, at.half, out, sizes);
        }
        if linear.kind == Kind::F32 {
            let args = Args::new().at(linear.numbers.at()).at(at.full).at(out);
            return self.launch(
                "lin_plain_f32",
                [linear.rows.div_ceil(4), rows.div_ceil(8), 1],
                128,
                sized(args, sizes),
            );
        }
        let (columns, height) = tile(rows, linear.kind.is_quantised());
        let args = self.weights_and_inputs(linear, at).at(out);
        let warps = work::warps(work::chunks(linear).div_ceil(splits));
        let name = format!("lin_{}_{columns}", linear.kind.name());
        let blocks = [linear.rows.div_ceil(height), splits, rows.div_ceil(columns)];
        self.launch(&name, blocks, 32 * warps, sized(args, sizes))
    }

    fn weights_and_inputs(&self, linear: &Linear, at: ActOut) -> Args {
        let (x, scales) = if linear.kind.is_quantised() { (at.quants, at.scales) } else { (at.half, 0) };
        Args::new().at(linear.numbers.at()).at(linear.scales_at()).at(x).at(scales)
    }

    /// Address of a matrix in bf16: its own, or of a copy that is made now.
    fn widen(&self, linear: &Linear) -> Result<u64, EngineError> {
        let Some(wide) = self.work.widened.as_ref().filter(|_| linear.kind.is_quantised()) else {
            return Ok(linear.numbers.at());
        };
        let name = format!("dequant_{}", linear.kind.name());
        for first in (0..linear.rows).step_by(MOST_BLOCKS) {
            let rows = MOST_BLOCKS.min(linear.rows - first);
            let (numbers, scales) = linear.kind.bytes(first, linear.cols);
            let args = Args::new()
                .at(linear.numbers.at() + numbers as u64)
                .at(linear.scales_at() + scales as u64)
                .at(wide.at() + (first * linear.cols * 2) as u64)
                .int(rows as u32)
                .int(linear.cols as u32);
            self.launch(&name, [linear.cols.div_ceil(256), rows, 1], 256, args)?;
        }
        Ok(wide.at())
    }

    /// Queues gate-up and the gated product.
    fn gate_up(&mut self, layer: &DeviceLayer) -> Result<(), EngineError> {
        let (work, rows, ffn) = (self.work, self.frame.rows, self.model.config.ffn);
        let form = self.form(&layer.down, rows);
        if layer.gate_up.kind == Kind::F32 || self.uses_gemm(layer.gate_up.kind, rows) {
            self.product(&layer.gate_up, &work.hidden, rows, work.y.at(), 1)?;
            let args = work.inner.out(form).push(Args::new().at(work.y.at())).int(ffn as u32);
            return self.launch("glu_plain", [ffn.div_ceil(256), rows, 1], 256, args);
        }
        let (columns, height) = tile(rows, layer.gate_up.kind.is_quantised());
        let at = work.hidden.out(self.form(&layer.gate_up, rows));
        let straight = if form == Form::Quants { Form::Full } else { form };
        let out = work.inner.out(straight);
        let args = self.weights_and_inputs(&layer.gate_up, at).at(out.full).at(out.half);
        let warps = work::warps(work::chunks(&layer.gate_up));
        let name = format!("glu_{}_{columns}", layer.gate_up.kind.name());
        let blocks = [ffn.div_ceil(height / 2), 1, rows.div_ceil(columns)];
        self.launch(&name, blocks, 32 * warps, sized(args, [ffn, layer.gate_up.cols, rows]))?;
        self.quantise(&work.inner, form)
    }

    /// Quantises inputs that a kernel left in f32, where that is the form wanted.
    fn quantise(&self, act: &Act, form: Form) -> Result<(), EngineError> {
        if form != Form::Quants {
            return Ok(());
        }
        let (from, to) = (act.out(Form::Full), act.out(Form::Quants));
        let args =
            Args::new().at(from.full).at(to.quants).at(to.scales).int(to.padded as u32).int(act.cols as u32);
        self.launch("act_quant", [act.cols.div_ceil(256), self.frame.rows, 1], 256, args)
    }

    /// Queues the norms and rotation of Q and K, and stores K and V.
    fn store(&self, index: usize, layer: &DeviceLayer, splits: usize) -> Result<(), EngineError> {
        let (config, frame, slabs) = (&self.model.config, self.frame, self.slabs);
        let heads = config.query_heads + 2 * config.kv_heads;
        let class = self.shape.class_of[index];
        let args = Args::new()
            .at(self.work.y.at())
            .int(splits as u32)
            .int(frame.rows as u32)
            .int(config.query_heads as u32)
            .int(config.kv_heads as u32)
            .int(config.head_dim as u32)
            .at(layer.q_norm.at())
            .at(layer.k_norm.at())
            .float(config.rms_eps as f32)
            .at(slabs.rope(config.layers[index]))
            .at(self.word(frame.layout.positions))
            .at(self.word(frame.layout.cells[class]))
            .at(self.work.q.at())
            .at(slabs.k[index].at())
            .at(slabs.v[index].at())
            .int(slabs::code(self.shape.k))
            .int(slabs::code(self.shape.v))
            .int(slabs.k_record as u32)
            .int(slabs.v_record as u32);
        self.launch("qk_rope_store", [heads.div_ceil(4), frame.rows, 1], 128, args)
    }

    /// The name that the fast attention kernels share, if they can compute this.
    fn fast_attention(&self) -> Option<String> {
        let config = &self.model.config;
        let group = config.query_heads / config.kv_heads;
        let name = slabs::name(self.shape.k).filter(|_| self.shape.k == self.shape.v)?;
        let fits = matches!(group, 1 | 2 | 4 | 8) && matches!(config.head_dim, 32 | 64 | 128 | 256);
        fits.then(|| format!("{name}_{}", config.head_dim))
    }

    /// Queues attention of every row of a layer.
    fn attend(&self, index: usize, layer: &DeviceLayer) -> Result<(), EngineError> {
        let form = self.form(&layer.o, self.frame.rows);
        let straight = if form == Form::Quants { Form::Full } else { form };
        let frame = self.frame;
        let Some(kind) = self.fast_attention() else {
            let all = frame.decoding + frame.prefilling;
            self.attend_plainly(index, straight, all)?;
            return self.quantise(&self.work.attended, form);
        };
        if frame.prefilling == 0 {
            return self.attend_rows(index, &kind, form);
        }
        // Rows of both kinds of sequences end in one buffer, which is quantised as a whole.
        if frame.decoding > 0 {
            self.attend_rows(index, &kind, straight)?;
        }
        self.attend_prefill(index, &kind, straight)?;
        self.quantise(&self.work.attended, form)
    }

    fn class_words(&self, index: usize) -> (usize, u64, u64) {
        let (class, layout) = (self.shape.class_of[index], &self.frame.layout);
        let walk = if self.frame.walked[class] { self.word(layout.walks[class]) } else { 0 };
        (class, self.word(layout.sequences[class]), walk)
    }

    fn window(&self, index: usize) -> u32 {
        match self.model.config.layers[index] {
            LayerKind::Local => self.model.config.window as u32,
            LayerKind::Global => u32::MAX,
        }
    }

    fn score_scale(&self) -> f32 {
        self.model.config.query_scalar.powf(-0.5) as f32
    }

    /// Arguments that all attention kernels but the plain one begin with.
    fn attention_args(&self, index: usize, sequences: u64, walk: u64) -> Args {
        let (slabs, config) = (self.slabs, &self.model.config);
        Args::new()
            .at(self.work.q.at())
            .at(slabs.k[index].at())
            .at(slabs.v[index].at())
            .int(slabs.k_record as u32)
            .int(slabs.v_record as u32)
            .at(sequences)
            .at(self.word(self.frame.layout.tables))
            .at(walk)
            .int(config.query_heads as u32)
            .int(config.kv_heads as u32)
            .int(self.window(index))
            .float(self.score_scale())
    }

    /// Attention of sequences of one row, cut into parts that are merged.
    fn attend_rows(&self, index: usize, kind: &str, form: Form) -> Result<(), EngineError> {
        let (work, config, frame) = (self.work, &self.model.config, self.frame);
        let (class, sequences, walk) = self.class_words(index);
        let mut context = frame.contexts[class].max(1).next_power_of_two();
        if walk == 0 {
            context = context.min(self.window(index) as usize);
        }
        let processors = self.model.gpu.info().processors as usize;
        let splits = work::attention_splits(processors, config.kv_heads, frame.decoding, context);
        let args = self.attention_args(index, sequences, walk).at(work.parts.at()).at(work.scales.at());
        let what = if walk == 0 { "decode" } else { "scan" };
        self.launch(&format!("attn_{what}_{kind}"), [splits, config.kv_heads, frame.decoding], 128, args)?;
        let args = Args::new()
            .at(work.parts.at())
            .at(work.scales.at())
            .at(sequences)
            .int(splits as u32)
            .int(config.query_heads as u32)
            .int(config.head_dim as u32);
        let args = work.attended.out(form).push(args);
        self.launch("attn_merge", [config.query_heads, frame.decoding, 1], config.head_dim, args)
    }

    /// Attention of sequences of several rows.
    fn attend_prefill(&self, index: usize, kind: &str, form: Form) -> Result<(), EngineError> {
        let (config, frame) = (&self.model.config, self.frame);
        let (_, sequences, walk) = self.class_words(index);
        let sequences = sequences + (4 * DESCRIPTOR * frame.decoding) as u64;
        let out = self.work.attended.out(form);
        let args = self.attention_args(index, sequences, walk).at(out.full).at(out.half);
        let what = if walk == 0 { "prefill" } else { "prefill_scan" };
        let group = config.query_heads / config.kv_heads;
        let blocks = [(frame.longest * group).div_ceil(64), config.kv_heads, frame.prefilling];
        self.launch(&format!("attn_{what}_{kind}"), blocks, 128, args)
    }

    /// Attention of any rows over K and V of any types, in f32.
    fn attend_plainly(&self, index: usize, form: Form, sequences: usize) -> Result<(), EngineError> {
        let (slabs, config) = (self.slabs, &self.model.config);
        let (class, at, _) = self.class_words(index);
        if self.frame.walked[class] {
            return Err(EngineError::Batch(
                "cells are walked only where K and V are bf16, q8_0 or q4_0".to_owned(),
            ));
        }
        let out = self.work.attended.out(form);
        let args = Args::new()
            .at(self.work.q.at())
            .at(slabs.k[index].at())
            .at(slabs.v[index].at())
            .int(slabs::code(self.shape.k))
            .int(slabs::code(self.shape.v))
            .int(slabs.k_record as u32)
            .int(slabs.v_record as u32)
            .at(at)
            .at(self.word(self.frame.layout.tables))
            .int(config.query_heads as u32)
            .int(config.kv_heads as u32)
            .int(config.head_dim as u32)
            .int(self.window(index))
            .float(self.score_scale())
            .at(out.full)
            .at(out.half);
        self.launch("attn_plain", [config.query_heads, self.frame.longest.max(1), sequences], 128, args)
    }
}

/// Appends outputs, inputs and rows.
fn sized(args: Args, [rows, cols, n]: [usize; 3]) -> Args {
    args.int(rows as u32).int(cols as u32).int(n as u32)
}

/// Columns that one kernel for few columns computes at once, and rows of weights of one block.
fn tile(rows: usize, is_quantised: bool) -> (usize, usize) {
    match rows {
        0..=8 => (8, 32),
        9..=16 => (16, 32),
        _ if is_quantised => (32, 32),
        _ => (32, 64),
    }
}

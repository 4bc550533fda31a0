//! What a decode step costs, beside what reading its bytes costs on the same device.

use std::sync::Arc;
use std::time::Instant;

use policies::{ClassId, Effect, Plan, Run, Why};
use serde::Serialize;

use super::driver::{Args, Buffer, Event, Stream};
use super::kernels::{Gpu, grid};
use super::model::Model;
use super::slabs::record;
use super::{Cuda, Options};
use crate::backend::{Backend, Batch, Output, Span, View};
use crate::cache::{CacheShape, KvType};
use crate::config::{Config, LayerKind};
use crate::error::EngineError;

/// Bytes that a bandwidth measurement copies at once: many times any cache.
const COPY: usize = 2 << 30;

/// One measured size.
#[derive(Clone, Copy, Debug)]
pub struct BenchCase {
    /// Sequences that decode.
    pub batch: usize,
    /// Tokens of each, the new one included.
    pub context: usize,
    /// How K and V are stored.
    pub kv: KvType,
    /// Steps that are timed.
    pub steps: usize,
}

/// Order statistics of repeated measurements.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Spread {
    /// Smallest.
    pub min: f64,
    /// Lower quartile.
    pub lower: f64,
    /// Median.
    pub median: f64,
    /// Upper quartile.
    pub upper: f64,
    /// Largest.
    pub max: f64,
}

impl Spread {
    /// Of at least one number.
    pub fn of(mut numbers: Vec<f64>) -> Spread {
        numbers.sort_by(f64::total_cmp);
        let at = |part: f64| numbers[((numbers.len() - 1) as f64 * part).round() as usize];
        Spread { min: at(0.0), lower: at(0.25), median: at(0.5), upper: at(0.75), max: at(1.0) }
    }
}

/// What a prompt cost that was computed in one step.
#[derive(Clone, Debug, Serialize)]
pub struct MeasuredPrompt {
    /// Its tokens.
    pub tokens: usize,
    /// Whether cuBLASLt computed the products.
    pub library: bool,
    /// Seconds of the step as its caller sees it.
    pub step_seconds: Spread,
    /// Tokens a second, of the median step.
    pub tokens_per_second: f64,
    /// Operations a second in linear layers, of the median step, in units of 1e12.
    pub tflop_per_second: f64,
}

/// What a size cost.
#[derive(Clone, Debug, Serialize)]
pub struct Measured {
    /// Model.
    pub model: String,
    /// Device.
    pub device: String,
    /// Sequences that decode.
    pub batch: usize,
    /// Tokens of each.
    pub context: usize,
    /// Linear layers, as they are stored.
    pub weights: &'static str,
    /// K and V, as they are stored.
    pub kv: String,
    /// Bytes of weights and cache that a step has to read.
    pub bytes_per_step: u64,
    /// Graphs that steps were replayed from; 0 where all were launched one kernel at a time.
    pub graphs: usize,
    /// Whether kernels might start before those before them ended.
    pub early: bool,
    /// Seconds of a step as its caller sees it: upload, launch, result.
    pub step_seconds: Spread,
    /// Seconds of a step on the device alone, mean of a row of replays.
    pub device_seconds: f64,
    /// Tokens a second, of the median step.
    pub tokens_per_second: f64,
    /// Bytes a second, of the median step, in units of 1e9.
    pub gb_per_second: f64,
    /// Bytes a second that a copy on the device moved, read and written, in units of 1e9.
    pub copy_gb_per_second: f64,
    /// Share of the copy's bandwidth that the step reached.
    pub share_of_roofline: f64,
}

/// Bytes a second that a copy within the device moves, reads and writes both counted.
///
/// # Errors
/// If there is no room, or the device fails.
pub fn copy_bandwidth(gpu: &Gpu) -> Result<Spread, EngineError> {
    let bytes = COPY.min(gpu.free_memory()? as usize / 4);
    let device = &gpu.device;
    let (from, to) = (Buffer::new(device, "a copy", bytes)?, Buffer::new(device, "a copy", bytes)?);
    let stream = Stream::new(device)?;
    fill(gpu, &stream, &from, 1)?;
    let (start, end) = (Event::new(device)?, Event::new(device)?);
    let mut rates = Vec::new();
    for turn in 0..12 {
        start.record(&stream)?;
        stream.copy(to.at(), from.at(), bytes)?;
        end.record(&stream)?;
        let seconds = end.seconds_since(&start)?;
        // The first turns wake the memory up.
        if turn >= 2 {
            rates.push(2.0 * bytes as f64 / seconds);
        }
    }
    Ok(Spread::of(rates))
}

/// Fills memory with bf16 numbers of variance 1: on zeros, a device runs faster than on data.
fn fill(gpu: &Gpu, stream: &Stream, buffer: &Buffer, key: u64) -> Result<(), EngineError> {
    let args = Args::new().at(buffer.at()).long(buffer.bytes() as u64 / 2).long(key).float(1.0);
    gpu.kernels.launch(stream, "synth_bf16", grid([16 * gpu.info().processors as usize, 1, 1], 256), args)
}

/// A cache of two classes for sequences of a context: local layers hold a window each.
///
/// # Errors
/// [`EngineError::Memory`] for more cells than can be counted, which no device has room for.
fn shape(config: &Config, case: BenchCase) -> Result<CacheShape, EngineError> {
    let class_of: Vec<usize> =
        config.layers.iter().map(|&kind| usize::from(kind == LayerKind::Global)).collect();
    let local = case.batch.saturating_mul(config.window.min(case.context));
    let global = case.batch.saturating_mul(case.context);
    let cells = [local, global].map(u32::try_from);
    let [Ok(local), Ok(global)] = cells else {
        let bytes = (global as u64).saturating_mul(2 * record(config, case.kv) as u64);
        return Err(EngineError::Memory { what: "the cache of one layer", bytes });
    };
    Ok(CacheShape { class_of, cells: vec![local, global], k: case.kv, v: case.kv, rotated: true })
}

/// A batch in which every sequence decodes its last token; each lies in one run.
fn batch(config: &Config, case: BenchCase) -> Batch {
    let view = |seq: usize, cells: usize| View {
        first: (case.context - cells) as u32,
        runs: vec![Run { start: (seq * cells) as u32, len: cells as u32 }],
    };
    let span = |seq: usize| Span {
        rows: seq..seq + 1,
        first: case.context as u32 - 1,
        samples: 1,
        views: vec![view(seq, config.window.min(case.context)), view(seq, case.context)],
        ..Span::default()
    };
    let tokens = (0..case.batch).map(|seq| (17 + 31 * seq as u32) % config.vocab as u32).collect();
    Batch { tokens, spans: (0..case.batch).map(span).collect(), ..Batch::default() }
}

/// Bytes that a step must read: all weights, and K and V of what every sequence sees.
fn bytes_per_step(model: &Model, case: BenchCase, record: usize) -> u64 {
    let config = &model.config;
    let seen = |kind: &LayerKind| match kind {
        LayerKind::Local => config.window.min(case.context),
        LayerKind::Global => case.context,
    };
    let tokens: usize = config.layers.iter().map(seen).sum();
    model.step_bytes() + (case.batch * tokens * 2 * record) as u64
}

/// Measures decode steps of one size.
///
/// # Errors
/// [`EngineError::Memory`] if the cache does not fit, or a device that fails.
pub fn bench_decode(
    model: &Arc<Model>,
    case: BenchCase,
    options: Options,
    copy: Spread,
) -> Result<Measured, EngineError> {
    let config = model.config.clone();
    let mut cuda = Cuda::new(model.clone(), shape(&config, case)?, options)?;
    cuda.fill_cache()?;
    let step_seconds = time_steps(&mut cuda, &batch(&config, case), case.steps)?;
    let device_seconds = cuda.device_seconds(case.steps)?;
    let bytes = bytes_per_step(model, case, cuda.slabs.k_record);
    Ok(Measured {
        model: config.name.clone(),
        device: cuda.device(),
        batch: case.batch,
        context: case.context,
        weights: model.weights_name(),
        kv: format!("{:?}", case.kv).to_lowercase(),
        bytes_per_step: bytes,
        graphs: cuda.graphs(),
        early: cuda.starts_early(),
        step_seconds,
        device_seconds,
        tokens_per_second: case.batch as f64 / step_seconds.median,
        gb_per_second: bytes as f64 / step_seconds.median / 1e9,
        copy_gb_per_second: copy.median / 1e9,
        share_of_roofline: bytes as f64 / step_seconds.median / copy.median,
    })
}

/// Seconds of a step, warm, with other tokens every time.
fn time_steps(cuda: &mut Cuda, batch: &Batch, steps: usize) -> Result<Spread, EngineError> {
    let vocab = cuda.model.config.vocab as u32;
    let mut output = Output::default();
    for _ in 0..5 {
        cuda.step(batch, &mut output)?;
    }
    let mut seconds = Vec::with_capacity(steps);
    for step in 0..steps.max(1) {
        let mut batch = batch.clone();
        for token in &mut batch.tokens {
            *token = (*token + 7919 * step as u32) % vocab;
        }
        let start = Instant::now();
        cuda.step(&batch, &mut output)?;
        seconds.push(start.elapsed().as_secs_f64());
    }
    Ok(Spread::of(seconds))
}

/// Measures prompts of so many tokens, each computed in one step.
///
/// # Errors
/// As [`bench_decode`].
pub fn bench_prompt(
    model: &Arc<Model>,
    tokens: usize,
    kv: KvType,
    steps: usize,
    options: Options,
) -> Result<MeasuredPrompt, EngineError> {
    let config = &model.config;
    let class_of = config.layers.iter().map(|&kind| usize::from(kind == LayerKind::Global)).collect();
    let shape = CacheShape { class_of, cells: vec![tokens as u32; 2], k: kv, v: kv, rotated: true };
    let mut cuda = Cuda::new(model.clone(), shape, options)?;
    let view = View { first: 0, runs: vec![Run { start: 0, len: tokens as u32 }] };
    let span = Span { rows: 0..tokens, samples: 1, views: vec![view.clone(), view], ..Span::default() };
    let token = |at: usize| (17 + 31 * at as u32) % config.vocab as u32;
    let batch = Batch { tokens: (0..tokens).map(token).collect(), spans: vec![span], ..Batch::default() };
    let step_seconds = time_steps(&mut cuda, &batch, steps)?;
    let flops = 2.0 * model.layer_weights() as f64 * tokens as f64;
    Ok(MeasuredPrompt {
        tokens,
        library: cuda.has_library(),
        step_seconds,
        tokens_per_second: tokens as f64 / step_seconds.median,
        tflop_per_second: flops / step_seconds.median / 1e12,
    })
}

/// What moving cells within the cache cost.
#[derive(Clone, Debug, Serialize)]
pub struct MeasuredMoves {
    /// Cells that were moved, in all layers.
    pub cells: usize,
    /// Cells of a command.
    pub piece: usize,
    /// Bytes that a copy of these cells reads and writes.
    pub bytes: u64,
    /// Seconds of the plan as its caller sees it: commands into pairs, upload, launches, until all is done.
    pub seconds: Spread,
    /// Seconds on the device alone, median: from the upload of the pairs to the end of the copies.
    pub device_seconds: f64,
    /// Bytes a second, of the median plan, in units of 1e9.
    pub gb_per_second: f64,
    /// Share of the bandwidth of a copy of one large piece.
    pub share_of_copy: f64,
}

/// Measures a defragmentation: every second piece of a cache is free, and those between move down into one run.
///
/// # Errors
/// As [`bench_decode`].
pub fn bench_moves(
    model: &Arc<Model>,
    [cells, piece]: [usize; 2],
    kv: KvType,
    times: usize,
    copy: Spread,
) -> Result<MeasuredMoves, EngineError> {
    let config = &model.config;
    let (pieces, piece) = (cells.div_ceil(piece.max(1)), piece.max(1));
    let all = 2 * pieces * piece;
    let bytes_of_cell = 2 * record(config, kv) * config.layers.len();
    let Ok(room) = u32::try_from(all) else {
        return Err(EngineError::Memory { what: "the cache", bytes: (all * bytes_of_cell) as u64 });
    };
    let class_of = vec![0; config.layers.len()];
    let shape = CacheShape { class_of, cells: vec![room], k: kv, v: kv, rotated: true };
    let mut cuda = Cuda::new(model.clone(), shape, Options::default())?;
    cuda.fill_cache()?;
    let mut plan = Plan::new();
    for index in 0..pieces as u32 {
        let len = piece as u32;
        let (from, to) = ((2 * index + 1) * len, index * len);
        plan.push(Effect::Copy { class: ClassId(0), from, to, len, why: Why::Defrag });
    }
    let (start, end) = (Event::new(&model.gpu.device)?, Event::new(&model.gpu.device)?);
    let (mut seconds, mut device) = (Vec::new(), Vec::new());
    for turn in 0..times.max(1) + 2 {
        let clock = Instant::now();
        start.record(&cuda.stream)?;
        cuda.apply(&plan, &|_| 0)?;
        end.record(&cuda.stream)?;
        let on_device = end.seconds_since(&start)?;
        // The first turns make room for the pairs.
        if turn >= 2 {
            seconds.push(clock.elapsed().as_secs_f64());
            device.push(on_device);
        }
    }
    let seconds = Spread::of(seconds);
    let bytes = (2 * pieces * piece * bytes_of_cell) as u64;
    Ok(MeasuredMoves {
        cells: pieces * piece,
        piece,
        bytes,
        seconds,
        device_seconds: Spread::of(device).median,
        gb_per_second: bytes as f64 / seconds.median / 1e9,
        share_of_copy: bytes as f64 / seconds.median / copy.median,
    })
}

impl Cuda {
    /// Fills the cache with numbers of variance 1, or codes of all kinds.
    fn fill_cache(&self) -> Result<(), EngineError> {
        let mut buffers = self.slabs.k.iter().chain(&self.slabs.v).enumerate();
        buffers.try_for_each(|(key, buffer)| fill(&self.model.gpu, &self.stream, buffer, key as u64))
    }

    /// Seconds of a replay of the graph that was captured last, mean of a row of them; 0 without one.
    fn device_seconds(&mut self, replays: usize) -> Result<f64, EngineError> {
        let graph = self.graphs.values().find_map(|captured| match captured {
            super::Captured::Graph(graph) => Some(graph),
            super::Captured::Seen => None,
        });
        let Some(graph) = graph else { return Ok(0.0) };
        let device = &self.model.gpu.device;
        let (start, end) = (Event::new(device)?, Event::new(device)?);
        self.stream.replay(graph)?;
        start.record(&self.stream)?;
        for _ in 0..replays {
            self.stream.replay(graph)?;
        }
        end.record(&self.stream)?;
        Ok(end.seconds_since(&start)? / replays as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_cells_than_can_be_counted_have_no_room() {
        let config = Config::preset("gemma3-1b").expect("the preset exists");
        let case = |batch, context| BenchCase { batch, context, kv: KvType::Bf16, steps: 1 };
        let cells = |batch, context| shape(&config, case(batch, context)).map(|shape| shape.cells);
        assert_eq!(cells(131_071, 32_768).expect("they can"), [67_108_352, 4_294_934_528]);
        // 2^32 of them.
        assert!(matches!(cells(131_072, 32_768), Err(EngineError::Memory { .. })));
        assert!(matches!(cells(usize::MAX, 2), Err(EngineError::Memory { .. })));
    }

    #[test]
    fn the_spread_of_five_numbers_is_the_five_in_order() {
        let spread = Spread::of(vec![5.0, 1.0, 4.0, 2.0, 3.0]);
        assert_eq!(
            [spread.min, spread.lower, spread.median, spread.upper, spread.max],
            [1.0, 2.0, 3.0, 4.0, 5.0]
        );
    }
}

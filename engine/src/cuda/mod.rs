//! The backend on CUDA: one binary that finds the GPU and its driver at run time.
//!
//! [`open`] finds a device and loads the kernels of `engine/kernels`, compiled before or by NVRTC now.
//! [`Model`] holds weights on it and [`Cuda`] a cache over them. Decode batches are padded to a few
//! sizes and captured into CUDA graphs, each at the second time that it is needed.

mod bench;
pub mod cases;
mod compile;
mod driver;
mod gemm;
pub mod images;
mod input;
mod kernels;
mod model;
mod plan;
mod rig;
mod selftest;
mod slabs;
mod step;
mod swap;
mod work;

use std::collections::BTreeMap;
use std::sync::Arc;

use policies::{Plan, SeqId};

use crate::backend::{Backend, Batch, Output, Wanted};
use crate::cache::CacheShape;
use crate::config::Config;
use crate::error::EngineError;

pub use bench::{BenchCase, Measured, MeasuredMoves, MeasuredPrompt, Spread};
pub use bench::{bench_decode, bench_moves, bench_prompt, copy_bandwidth};
pub use compile::{Compiled, SOURCE, compile, nvrtc_version};
pub use driver::DeviceInfo;
pub use kernels::{Gpu, names as kernel_names, open};
pub use model::{Made, Model, Precision};
pub use selftest::{Effort, Outcome, selftest};

use driver::{Buffer, Event, Graph, Pinned, Stream};
use gemm::Gemm;
use input::Frame;
use slabs::Slabs;
use step::Step;
use swap::Host;
use work::{LOGIT_ROWS, Work};

/// Words of a batch that fit at first.
const FIRST_WORDS: usize = 1 << 16;
/// Rows that fit at first.
const FIRST_ROWS: usize = 32;

/// How a backend computes. The results do not depend on any of it but the library.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Whether decode steps are captured into graphs.
    pub graphs: bool,
    /// Whether cuBLASLt computes batches of many rows, if it is found.
    pub cublaslt: bool,
    /// Whether kernels may start before those before them end, where the device can do it.
    pub early: bool,
}

impl Default for Options {
    fn default() -> Options {
        Options { graphs: true, cublaslt: true, early: true }
    }
}

/// What decides the launches of a decode step: rows, and per class the context that attention is
/// cut for and whether it walks.
type GraphKey = (usize, Vec<(usize, bool)>);

/// What is known of a decode step's launches.
enum Captured {
    /// They ran once.
    Seen,
    /// They are a graph.
    Graph(Graph),
}

/// Weights and a cache on a CUDA device.
pub struct Cuda {
    model: Arc<Model>,
    shape: CacheShape,
    options: Options,
    // Freed in this order: what refers to memory before the memory.
    graphs: BTreeMap<GraphKey, Captured>,
    gemm: Option<Gemm>,
    slabs: Slabs,
    work: Work,
    host: Host,
    /// Where cells that are rounded are in between.
    between: Buffer,
    /// The batch's words: here, pinned, and on the device.
    words: Vec<u32>,
    staged: Pinned,
    uploaded: Buffer,
    results: Pinned,
    /// When `staged` has been read.
    was_read: Event,
    stream: Stream,
}

impl Cuda {
    /// A cache of this shape over a model's weights.
    ///
    /// # Errors
    /// [`EngineError::Memory`] if it does not fit, [`EngineError::Shape`] for K that is not rotated.
    pub fn new(model: Arc<Model>, shape: CacheShape, options: Options) -> Result<Cuda, EngineError> {
        let config = &model.config;
        let wrong = |what: &str| EngineError::Shape { name: config.name.clone(), what: what.to_owned() };
        if !shape.rotated {
            return Err(wrong("on CUDA, K is stored rotated"));
        }
        if shape.class_of.len() != config.layers.len() {
            return Err(wrong("the cache has another number of layers"));
        }
        let device = &model.gpu.device;
        let stream = Stream::new(device)?;
        let may_use = options.cublaslt && device.info.arch >= 80;
        let gemm = if may_use { Gemm::open(&stream)? } else { None };
        let slabs = Slabs::new(device, config, &shape)?;
        let work = Work::new(&model, FIRST_ROWS)?;
        let staged = Pinned::new(device, FIRST_WORDS * 4)?;
        let uploaded = Buffer::new(device, "the batch", FIRST_WORDS * 4)?;
        let results = Pinned::new(device, (LOGIT_ROWS * config.vocab + FIRST_ROWS) * 4)?;
        let host = Host::new(device)?;
        let between = Buffer::new(device, "room for rounding", 0)?;
        let was_read = Event::new(device)?;
        Ok(Cuda {
            model,
            shape,
            options,
            graphs: BTreeMap::new(),
            gemm,
            slabs,
            work,
            host,
            between,
            words: Vec::new(),
            staged,
            uploaded,
            results,
            was_read,
            stream,
        })
    }

    /// Whether batches of many rows are computed by cuBLASLt.
    pub fn has_library(&self) -> bool {
        self.gemm.is_some()
    }

    /// Whether kernels may start before those before them end: not where the device cannot, nor once a graph of
    /// such launches was refused.
    pub fn starts_early(&self) -> bool {
        self.options.early && self.model.gpu.info().arch >= 90
    }

    /// Graphs that have been captured.
    pub fn graphs(&self) -> usize {
        self.graphs.values().filter(|captured| matches!(captured, Captured::Graph(_))).count()
    }

    /// Makes room for so many rows and words.
    fn reserve(&mut self, rows: usize) -> Result<(), EngineError> {
        let device = &self.model.gpu.device;
        let vocab = self.model.config.vocab;
        if rows > self.work.rows {
            self.stream.synchronize()?;
            self.graphs.clear();
            let rows = rows.next_power_of_two();
            self.work = Work::new(&self.model, rows)?;
            self.results = Pinned::new(device, (LOGIT_ROWS * vocab + rows) * 4)?;
        }
        if self.words.len() * 4 > self.staged.bytes() {
            self.stream.synchronize()?;
            self.graphs.clear();
            let bytes = (self.words.len() * 4).next_power_of_two();
            self.staged = Pinned::new(device, bytes)?;
            self.uploaded = Buffer::new(device, "the batch", bytes)?;
        }
        Ok(())
    }

    /// Uploads the words.
    fn upload(&mut self) -> Result<(), EngineError> {
        self.was_read.wait()?;
        self.staged.words()[..self.words.len()].copy_from_slice(&self.words);
        self.stream.upload(&self.uploaded, 0, &self.staged, 0, self.words.len() * 4)?;
        self.was_read.record(&self.stream)
    }

    /// The launches of a step.
    fn chain<'a>(&'a mut self, frame: &'a Frame) -> Step<'a> {
        let early = self.starts_early();
        Step {
            model: &self.model,
            kernels: &self.model.gpu.kernels,
            stream: &self.stream,
            gemm: self.gemm.as_mut(),
            slabs: &self.slabs,
            shape: &self.shape,
            work: &self.work,
            words: self.uploaded.at(),
            frame,
            early,
        }
    }

    /// The launches of a step as a graph.
    fn capture(&mut self, frame: &Frame) -> Result<Graph, EngineError> {
        let mut step = self.chain(frame);
        let stream = step.stream;
        stream.capture(|| step.all())
    }

    /// Runs a decode step's launches: as they are at first, as a graph from then on.
    fn replay(&mut self, frame: &Frame) -> Result<(), EngineError> {
        let classes = frame.contexts.iter().zip(&frame.walked);
        let key = (
            frame.rows,
            classes.map(|(&context, &walk)| (context.max(1).next_power_of_two(), walk)).collect(),
        );
        match self.graphs.get(&key) {
            None => {
                self.chain(frame).all()?;
                self.graphs.insert(key, Captured::Seen);
            }
            Some(Captured::Graph(graph)) => self.stream.replay(graph)?,
            Some(Captured::Seen) => {
                let graph = match self.capture(frame) {
                    // Not every driver and device captures early starts.
                    Err(EngineError::Device(_)) if self.starts_early() => {
                        self.options.early = false;
                        self.capture(frame)?
                    }
                    captured => captured?,
                };
                self.stream.replay(&graph)?;
                self.graphs.insert(key, Captured::Graph(graph));
            }
        }
        Ok(())
    }

    /// Copies the logits of the last rows that were computed into `to`.
    fn read_logits(&mut self, rows: usize, to: &mut Vec<f32>) -> Result<(), EngineError> {
        let numbers = rows * self.model.config.vocab;
        self.stream.download(&self.results, 0, &self.work.logits, 0, numbers * 4)?;
        self.stream.synchronize()?;
        to.extend(self.results.words()[..numbers].iter().map(|&bits| f32::from_bits(bits)));
        Ok(())
    }
}

impl Backend for Cuda {
    fn device(&self) -> String {
        let info = self.model.gpu.info();
        format!("{} (sm_{}, {} GiB)", info.name, info.arch, info.memory >> 30)
    }

    fn config(&self) -> &Config {
        &self.model.config
    }

    fn apply(&mut self, plan: &Plan, request_of: &dyn Fn(SeqId) -> u64) -> Result<(), EngineError> {
        plan::apply(self, plan, request_of)
    }

    fn step(&mut self, batch: &Batch, output: &mut Output) -> Result<(), EngineError> {
        output.argmax.clear();
        output.logits.clear();
        if batch.tokens.is_empty() {
            return Ok(());
        }
        let mut words = std::mem::take(&mut self.words);
        let frame = input::describe(batch, &self.model.config, &self.shape, &mut words);
        self.words = words;
        let frame = frame?;
        self.reserve(frame.rows)?;
        self.upload()?;
        let wants_logits = batch.wanted == Wanted::Logits;
        let fits = frame.samples <= LOGIT_ROWS;
        if self.options.graphs
            && frame.is_decode
            && frame.rows <= input::MOST_BUCKETED
            && (fits || !wants_logits)
        {
            self.replay(&frame)?;
            if wants_logits {
                self.read_logits(frame.wanted, &mut output.logits)?;
            }
        } else if fits || !wants_logits {
            self.chain(&frame).all()?;
            if wants_logits {
                self.read_logits(frame.wanted, &mut output.logits)?;
            }
        } else {
            self.chain(&frame).layers()?;
            for first in (0..frame.wanted).step_by(LOGIT_ROWS) {
                let rows = LOGIT_ROWS.min(frame.wanted - first);
                self.chain(&frame).head(first, rows)?;
                self.read_logits(rows, &mut output.logits)?;
            }
        }
        if frame.wanted > 0 {
            self.stream.download(&self.results, 0, &self.work.argmax, 0, frame.wanted * 4)?;
        }
        self.stream.synchronize()?;
        output.argmax.extend_from_slice(&self.results.words()[..frame.wanted]);
        Ok(())
    }

    fn restart(&mut self) {
        self.host.clear();
    }
}

impl Drop for Cuda {
    fn drop(&mut self) {
        // Nothing may be in flight when memory is freed.
        let _ = self.model.gpu.device.synchronize();
    }
}

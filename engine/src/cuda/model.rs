//! Weights on a device.

use half::bf16;

use super::driver::{Args, Buffer, Stream};
use super::kernels::{Gpu, MOST_BLOCKS, grid};
use crate::config::Config;
use crate::error::EngineError;
use crate::load::blocks::{Block, dequantize};
use crate::synthetic;
use crate::weights::{Data, Layer, Matrix, Weights};

/// How a matrix lies on the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    F32,
    Bf16,
    Q8,
    Q4,
}

impl Kind {
    /// The part of a kernel's name.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Kind::F32 => "f32",
            Kind::Bf16 => "bf16",
            Kind::Q8 => "q8_0",
            Kind::Q4 => "q4_0",
        }
    }

    pub(crate) fn is_quantised(self) -> bool {
        matches!(self, Kind::Q8 | Kind::Q4)
    }

    /// Bytes of a matrix: numbers, and scales.
    pub(crate) fn bytes(self, rows: usize, cols: usize) -> (usize, usize) {
        let padded = rows * cols.next_multiple_of(128);
        match self {
            Kind::F32 => (rows * cols * 4, 0),
            Kind::Bf16 => (rows * cols * 2, 0),
            Kind::Q8 => (padded, padded / 16),
            Kind::Q4 => (padded / 2, padded / 16),
        }
    }
}

/// A matrix of weights.
pub(crate) struct Linear {
    pub(crate) kind: Kind,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) numbers: Buffer,
    pub(crate) scales: Option<Buffer>,
}

impl Linear {
    /// Address of the scales, 0 where there are none.
    pub(crate) fn scales_at(&self) -> u64 {
        self.scales.as_ref().map_or(0, Buffer::at)
    }

    /// Bytes that computing with the matrix reads.
    pub(crate) fn bytes(&self) -> u64 {
        (self.numbers.bytes() + self.scales.as_ref().map_or(0, Buffer::bytes)) as u64
    }
}

/// One decoder layer.
pub(crate) struct DeviceLayer {
    pub(crate) input_norm: Buffer,
    pub(crate) post_attention_norm: Buffer,
    pub(crate) pre_ffn_norm: Buffer,
    pub(crate) post_ffn_norm: Buffer,
    pub(crate) q_norm: Buffer,
    pub(crate) k_norm: Buffer,
    pub(crate) qkv: Linear,
    pub(crate) o: Linear,
    pub(crate) gate_up: Linear,
    pub(crate) down: Linear,
}

/// The weights of a model on a device.
pub struct Model {
    pub(crate) gpu: Gpu,
    pub(crate) config: Config,
    pub(crate) embedding: Linear,
    pub(crate) embedding_scale: f32,
    pub(crate) layers: Vec<DeviceLayer>,
    pub(crate) norm: Buffer,
}

/// How matrices of floating-point numbers, and of q6_K, are held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Precision {
    /// bf16; q8_0 and q4_0 stay what they are.
    #[default]
    Half,
    /// f32, q8_0 and q4_0 widened, too: to compare with a reference.
    Full,
}

/// How made-up matrices are held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Made {
    /// bf16.
    #[default]
    Bf16,
    /// q8_0.
    Q8,
    /// q4_0.
    Q4,
}

impl Model {
    /// Copies weights to a device.
    ///
    /// # Errors
    /// [`EngineError::Memory`] if they do not fit, [`EngineError::Shape`] for shapes that the kernels
    /// do not take.
    pub fn upload(gpu: &Gpu, weights: &Weights, precision: Precision) -> Result<Model, EngineError> {
        let config = &weights.config;
        check_shape(config)?;
        let loader = Loader { gpu, stream: Stream::new(&gpu.device)?, precision };
        let layer = |layer: &Layer| {
            Ok(DeviceLayer {
                input_norm: loader.norm(&layer.input_norm)?,
                post_attention_norm: loader.norm(&layer.post_attention_norm)?,
                pre_ffn_norm: loader.norm(&layer.pre_ffn_norm)?,
                post_ffn_norm: loader.norm(&layer.post_ffn_norm)?,
                q_norm: loader.norm(&layer.q_norm)?,
                k_norm: loader.norm(&layer.k_norm)?,
                qkv: loader.linear(&[&layer.q, &layer.k, &layer.v])?,
                o: loader.linear(&[&layer.o])?,
                gate_up: loader.linear(&[&layer.gate, &layer.up])?,
                down: loader.linear(&[&layer.down])?,
            })
        };
        Ok(Model {
            gpu: gpu.clone(),
            config: config.clone(),
            embedding: loader.linear(&[&weights.embedding])?,
            embedding_scale: weights.embedding_scale,
            layers: weights.layers.iter().map(layer).collect::<Result<_, EngineError>>()?,
            norm: loader.norm(&weights.norm)?,
        })
    }

    /// Makes the weights of [`synthetic::weights`] on the device, in bf16.
    ///
    /// # Errors
    /// As [`Model::upload`].
    pub fn synthetic(gpu: &Gpu, config: &Config, seed: u64) -> Result<Model, EngineError> {
        Model::made_up(gpu, config, seed, Made::Bf16)
    }

    /// Makes weights on the device; packed ones hold any numbers, to measure times with.
    ///
    /// # Errors
    /// As [`Model::upload`].
    pub fn made_up(gpu: &Gpu, config: &Config, seed: u64, made: Made) -> Result<Model, EngineError> {
        check_shape(config)?;
        let stream = Stream::new(&gpu.device)?;
        let kind = match made {
            Made::Bf16 => Kind::Bf16,
            Made::Q8 => Kind::Q8,
            Made::Q4 => Kind::Q4,
        };
        let mut maker = Maker { gpu, stream, seed, tensor: 0, kind };
        let (hidden, ffn) = (config.hidden, config.ffn);
        let (query, kv) = (config.query_width(), config.kv_width());
        let embedding = maker.linear(&[config.vocab], hidden)?;
        let mut layers = Vec::with_capacity(config.layers.len());
        for _ in &config.layers {
            layers.push(DeviceLayer {
                input_norm: maker.norm(hidden)?,
                post_attention_norm: maker.norm(hidden)?,
                pre_ffn_norm: maker.norm(hidden)?,
                post_ffn_norm: maker.norm(hidden)?,
                q_norm: maker.norm(config.head_dim)?,
                k_norm: maker.norm(config.head_dim)?,
                qkv: maker.linear(&[query, kv, kv], hidden)?,
                o: maker.linear(&[hidden], query)?,
                gate_up: maker.linear(&[ffn, ffn], hidden)?,
                down: maker.linear(&[hidden], ffn)?,
            });
        }
        let norm = maker.norm(hidden)?;
        maker.stream.synchronize()?;
        let embedding_scale = bf16::from_f32((hidden as f32).sqrt()).to_f32();
        Ok(Model { gpu: gpu.clone(), config: config.clone(), embedding, embedding_scale, layers, norm })
    }

    /// How the linear layers are stored.
    pub fn weights_name(&self) -> &'static str {
        self.layers.first().map_or("", |layer| layer.down.kind.name())
    }

    /// Weights of all linear layers but the output layer.
    pub fn layer_weights(&self) -> u64 {
        let of = |linear: &Linear| (linear.rows * linear.cols) as u64;
        let of_layer =
            |layer: &DeviceLayer| of(&layer.qkv) + of(&layer.o) + of(&layer.gate_up) + of(&layer.down);
        self.layers.iter().map(of_layer).sum()
    }

    /// Bytes that one decode step reads of the weights: every linear layer and the output layer.
    pub fn step_bytes(&self) -> u64 {
        let of_layer = |layer: &DeviceLayer| {
            layer.qkv.bytes() + layer.o.bytes() + layer.gate_up.bytes() + layer.down.bytes()
        };
        self.layers.iter().map(of_layer).sum::<u64>() + self.embedding.bytes()
    }
}

/// Widths that the kernels can take.
fn check_shape(config: &Config) -> Result<(), EngineError> {
    config.check()?;
    let widths = [config.hidden, config.ffn, config.query_width()];
    let what = if widths.iter().any(|width| !width.is_multiple_of(32)) {
        "the CUDA kernels need widths that 32 divides"
    } else if config.hidden > 8192 {
        "the CUDA kernels take a residual stream of at most 8192 numbers"
    } else if !config.head_dim.is_multiple_of(32) || config.head_dim > 256 {
        "the CUDA kernels need heads of at most 256 numbers that 32 divides"
    } else {
        return Ok(());
    };
    Err(EngineError::Shape { name: config.name.clone(), what: what.to_owned() })
}

/// Copies host weights to the device.
struct Loader<'a> {
    gpu: &'a Gpu,
    stream: Stream,
    precision: Precision,
}

impl Loader<'_> {
    fn norm(&self, numbers: &[f32]) -> Result<Buffer, EngineError> {
        let buffer = Buffer::new(&self.gpu.device, "the weights", size_of_val(numbers))?;
        buffer.put(0, numbers)?;
        Ok(buffer)
    }

    fn kind(&self, matrix: &Matrix) -> Kind {
        match (self.precision, &matrix.data) {
            (Precision::Full, _) => Kind::F32,
            (Precision::Half, Data::Q8_0(_)) => Kind::Q8,
            (Precision::Half, Data::Q4_0(_)) => Kind::Q4,
            (Precision::Half, _) => Kind::Bf16,
        }
    }

    /// Several matrices of as many inputs as one: rows after rows.
    fn linear(&self, parts: &[&Matrix]) -> Result<Linear, EngineError> {
        let cols = parts[0].cols;
        let rows = parts.iter().map(|part| part.rows).sum();
        let first = self.kind(parts[0]);
        let kind = if parts.iter().all(|part| self.kind(part) == first) { first } else { Kind::Bf16 };
        let linear = empty(self.gpu, kind, rows, cols)?;
        let mut above = 0;
        for part in parts {
            match kind {
                Kind::F32 => linear.numbers.put(above * cols * 4, &floats(part))?,
                Kind::Bf16 => match &part.data {
                    Data::Bf16(numbers) => linear.numbers.put(above * cols * 2, numbers)?,
                    _ => {
                        let numbers: Vec<bf16> = floats(part).into_iter().map(bf16::from_f32).collect();
                        linear.numbers.put(above * cols * 2, &numbers)?;
                    }
                },
                Kind::Q8 | Kind::Q4 => self.repack(&linear, above, part)?,
            }
            above += part.rows;
        }
        Ok(linear)
    }

    fn repack(&self, linear: &Linear, above: usize, part: &Matrix) -> Result<(), EngineError> {
        let (Data::Q8_0(blocks) | Data::Q4_0(blocks)) = &part.data else {
            unreachable!("only quantised matrices are repacked")
        };
        let raw = Buffer::new(&self.gpu.device, "the weights", blocks.len())?;
        raw.put(0, blocks)?;
        let padded = part.cols.next_multiple_of(128);
        let (row_bytes, name) = (blocks.len() / part.rows, format!("repack_{}", linear.kind.name()));
        for first in (0..part.rows).step_by(MOST_BLOCKS) {
            let rows = MOST_BLOCKS.min(part.rows - first);
            let (quants, scales) = linear.kind.bytes(above + first, part.cols);
            let args = Args::new()
                .at(raw.at() + (first * row_bytes) as u64)
                .at(linear.numbers.at() + quants as u64)
                .at(linear.scales_at() + scales as u64)
                .int(rows as u32)
                .int(part.cols as u32);
            let shape = grid([(padded / 32).div_ceil(64), rows, 1], 64);
            self.gpu.kernels.launch(&self.stream, &name, shape, args)?;
        }
        self.stream.synchronize()
    }
}

/// A matrix whose numbers are unset; padding is zero.
fn empty(gpu: &Gpu, kind: Kind, rows: usize, cols: usize) -> Result<Linear, EngineError> {
    let (numbers, scales) = kind.bytes(rows, cols);
    let numbers = Buffer::new(&gpu.device, "the weights", numbers)?;
    let scales = (scales > 0).then(|| Buffer::new(&gpu.device, "the weights", scales)).transpose()?;
    if let Some(scales) = &scales {
        numbers.fill(0)?;
        scales.fill(0)?;
    }
    Ok(Linear { kind, rows, cols, numbers, scales })
}

/// The numbers of a matrix, whatever it holds.
pub(crate) fn floats(matrix: &Matrix) -> Vec<f32> {
    let (block, bytes) = match &matrix.data {
        Data::F32(numbers) => return numbers.to_vec(),
        Data::Bf16(numbers) => return numbers.iter().map(|x| x.to_f32()).collect(),
        Data::F16(numbers) => return numbers.iter().map(|x| x.to_f32()).collect(),
        Data::Q8_0(bytes) => (Block::Q8_0, bytes),
        Data::Q4_0(bytes) => (Block::Q4_0, bytes),
        Data::Q6K(bytes) => (Block::Q6K, bytes),
        Data::Tiles(tiles) => {
            let mut numbers = vec![0.0; matrix.rows * matrix.cols];
            let rows = numbers.chunks_exact_mut(matrix.cols.max(1));
            rows.enumerate().for_each(|(row, out)| tiles.decode_row(row, out));
            return numbers;
        }
    };
    let mut numbers = Vec::with_capacity(matrix.rows * matrix.cols);
    dequantize(block, bytes, &mut numbers);
    numbers
}

/// Both bytes of an f16 of about 0.0004.
const SMALL_SCALE: u8 = 0x0e;

/// Makes synthetic weights on the device, tensor after tensor.
struct Maker<'a> {
    gpu: &'a Gpu,
    stream: Stream,
    seed: u64,
    tensor: u64,
    kind: Kind,
}

impl Maker<'_> {
    fn key(&mut self) -> u64 {
        self.tensor += 1;
        synthetic::hash(self.seed, self.tensor)
    }

    fn fill(&mut self, name: &str, at: u64, count: usize, scale: Option<f32>) -> Result<(), EngineError> {
        let args = Args::new().at(at).long(count as u64).long(self.key());
        let args = match scale {
            Some(scale) => args.float(scale),
            None => args,
        };
        let blocks = count.div_ceil(256).min(16 * self.gpu.info().processors as usize);
        self.gpu.kernels.launch(&self.stream, name, grid([blocks, 1, 1], 256), args)
    }

    fn norm(&mut self, len: usize) -> Result<Buffer, EngineError> {
        let buffer = Buffer::new(&self.gpu.device, "the weights", len * 4)?;
        self.fill("synth_norm", buffer.at(), len, None)?;
        Ok(buffer)
    }

    /// Tensors of these rows, one after another.
    fn linear(&mut self, parts: &[usize], cols: usize) -> Result<Linear, EngineError> {
        let linear = empty(self.gpu, self.kind, parts.iter().sum(), cols)?;
        let scale = 1.0 / (cols as f32).sqrt();
        if let Some(scales) = &linear.scales {
            // Codes of all kinds, and one small f16 as the scale of every block.
            self.fill("synth_bf16", linear.numbers.at(), linear.numbers.bytes() / 2, Some(scale))?;
            scales.fill(SMALL_SCALE)?;
            return Ok(linear);
        }
        let mut above = 0;
        for rows in parts {
            let at = linear.numbers.at() + (above * cols * 2) as u64;
            self.fill("synth_bf16", at, rows * cols, Some(scale))?;
            above += rows;
        }
        Ok(linear)
    }
}

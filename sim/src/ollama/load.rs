//! What the runner really allocates, device by device, and whether the driver lets it.
//!
//! The runner is told how many layers each device gets, in order. Block `i` goes to the first
//! device whose share of the layers, summed from the first device, lies beyond `i`; with a
//! partial fit the first blocks and the output layer stay in main memory. The output layer counts
//! as one more layer behind the last, so it is always on the last device, and the vision tower
//! follows it. (The estimator had charged vision to the first device and output to any.)
//!
//! | kind | bytes | basis |
//! | --- | --- | --- |
//! | weights | of the blocks on the device | shapes |
//! | kv | padded cells, real block sizes (Q8_0 34/32) | shapes |
//! | output, vision | all of it, connector included | shapes |
//! | context | 457 MiB | Ollama's own constant |
//! | graph | largest of: logits of a batch and scores of a batch against the longest class on the device (`4*batch*...`, 32-bit; no scores with flash attention), one image (where vision is) | the estimator's formulas, term by term, never measured |

use super::dealt::dealt;
use super::file::ModelFile;
use super::place::{Fit, Placement, place};
use super::{OllamaError, Options};
use crate::host::Host;
use crate::memory::{Memory, RESERVE_BYTES, Sizing};
use crate::model::KvType;
use policies::ollama::{PAD, PAD_FLASH};

/// Bytes by kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bytes {
    /// Weights of blocks.
    pub weights: u64,
    /// Cells.
    pub kv: u64,
    /// Compute graph.
    pub graph: u64,
    /// Vision tower and connector.
    pub vision: u64,
    /// Output layer; in main memory the embedding, too.
    pub output: u64,
    /// CUDA context.
    pub context: u64,
}

impl Bytes {
    /// Sum of all kinds.
    pub fn total(&self) -> u64 {
        self.tensors() + self.kv + self.graph + self.context
    }

    /// Weights of every kind.
    pub fn tensors(&self) -> u64 {
        self.weights + self.vision + self.output
    }
}

/// A device that the runner uses.
#[derive(Clone, Debug, PartialEq)]
pub struct Device {
    /// Place in the host's list.
    pub index: usize,
    /// Name of the GPU.
    pub name: String,
    /// Whether it drives the display.
    pub display: bool,
    /// Bytes free before loading.
    pub free_bytes: u64,
    /// Blocks, per layer class: local, global.
    pub class_layers: [u32; 2],
    /// Whether the output layer (and vision, if the model sees) is here.
    pub has_output: bool,
    /// What the estimator believes.
    pub estimated_bytes: u64,
    /// What is allocated.
    pub bytes: Bytes,
    /// Part of it that lies in main memory, because the device is full.
    pub spilled_bytes: u64,
}

impl Device {
    /// Bytes that are asked for beyond what is free.
    pub fn excess_bytes(&self) -> u64 {
        self.bytes.total().saturating_sub(self.free_bytes)
    }

    /// Part of the device's bytes that lies in main memory, 0 to 1.
    pub fn spilled_share(&self) -> f64 {
        self.spilled_bytes as f64 / self.bytes.total().max(1) as f64
    }
}

/// Why the model cannot be loaded: the server answers every request with this.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum LoadError {
    /// The weights of a device do not fit.
    #[error("unable to allocate memory from device CUDA{device} for model weights")]
    Weights {
        /// Number of the device as the runner sees it.
        device: usize,
        /// Bytes that are missing in all.
        missing_bytes: u64,
    },
    /// Cells or compute graph do not fit.
    #[error("allocating {mib:.2} MiB on device {device}: cudaMalloc failed: out of memory")]
    Buffer {
        /// Number of the device as the runner sees it.
        device: usize,
        /// MiB that were asked for.
        mib: f64,
        /// Bytes that are missing in all.
        missing_bytes: u64,
    },
    /// What is meant for main memory does not fit there.
    #[error("model requires more system memory ({need:.1} GiB) than is available ({have:.1} GiB)")]
    Ram {
        /// GiB needed.
        need: f64,
        /// GiB that there are.
        have: f64,
    },
}

/// A model on a host.
#[derive(Clone, Debug, PartialEq)]
pub struct Loaded {
    /// The scheduler's decision and the estimate behind it. Its `devices` count visible devices.
    pub placement: Placement,
    /// The devices of the runner, in its order, with what is on each.
    pub devices: Vec<Device>,
    /// What is meant to be in main memory: the embedding and, with a partial fit, blocks.
    pub ram: Bytes,
    /// Blocks in main memory, per layer class.
    pub ram_layers: [u32; 2],
    /// Whether the output layer is in main memory.
    pub ram_has_output: bool,
    /// Type of K and V in effect.
    pub kv: KvType,
    /// A quantised cache was asked for without flash attention, and refused.
    pub kv_type_ignored: bool,
    /// Cells per layer class.
    pub cells: Vec<u32>,
    /// Bytes of main memory that are left for programs once the model is there.
    pub ram_left_bytes: u64,
    /// Why the server cannot start; none if it can.
    pub error: Option<LoadError>,
}

impl Loaded {
    /// Sequences at once.
    pub fn parallel(&self) -> u32 {
        self.placement.parallel
    }

    /// How the model fits, in the scheduler's eyes.
    pub fn fit(&self) -> Fit {
        self.placement.fit
    }

    /// Bytes in main memory because a device is full.
    pub fn spilled_bytes(&self) -> u64 {
        self.devices.iter().map(|device| device.spilled_bytes).sum()
    }

    /// Sums over all devices and main memory.
    pub fn memory(&self) -> Memory {
        let all = || self.devices.iter().map(|device| &device.bytes).chain([&self.ram]);
        let sum = |of: fn(&Bytes) -> u64| all().map(of).sum();
        Memory {
            cells: self.cells.clone(),
            cache_bytes: sum(|bytes| bytes.kv),
            weight_bytes: sum(Bytes::tensors),
            graph_bytes: sum(|bytes| bytes.graph),
            reserve_bytes: sum(|bytes| bytes.context),
            device_bytes: self.devices.iter().map(|device| device.free_bytes).sum(),
        }
    }
}

/// Places `file` on `host` and allocates it. That it does not fit is in [`Loaded::error`].
///
/// # Errors
///
/// `NoSuchDevice` or `Twice` for a list of visible devices that makes no sense; those of
/// [`place`].
///
/// ```
/// use sim::ollama::{ModelFile, Options, load};
/// let (model, weights) = sim::model::find("gemma3-27b-q4_0-qat").unwrap();
/// let file = ModelFile::new(&model, weights.into()).unwrap();
/// let host = sim::host::find("rtx8000+gtx1660super").unwrap();
/// let options = Options { num_ctx: 4096, num_parallel: 2, spread: true, ..Options::default() };
/// let loaded = load(&host, &file, &options).unwrap();
/// assert!(loaded.devices[1].spilled_bytes > 2 << 30);
/// ```
pub fn load(host: &Host, file: &ModelFile, options: &Options) -> Result<Loaded, OllamaError> {
    let visible = visible(host, options)?;
    let free: Vec<u64> = visible.iter().map(|&index| host.gpus[index].free_bytes).collect();
    let placement = match &options.shares {
        None => place(file, &free, options)?,
        Some(shares) => dealt(file, &free, options, shares)?,
    };
    let kv = options.kv_in_effect();
    let pad = if options.flash_attention { PAD_FLASH } else { PAD };
    let sizing = Sizing::PerSlot {
        slots: placement.parallel,
        num_ctx: options.num_ctx,
        num_batch: options.num_batch,
        pad,
        own_batch: false,
    };
    let own = || sizing.per_slot_cells(&file.model, 1).expect("cells are sized per slot");
    let cells: Vec<u64> = options.cells.clone().unwrap_or_else(own).into_iter().map(u64::from).collect();
    let graph = Graph::new(file, options, &cells);
    let row_bytes = file.model.kv_bytes_per_layer(kv);

    let mut parts = vec![Part::default(); placement.devices.len() + 1];
    let places = assign(file.blocks.len(), &placement.estimate.layers);
    let (output, blocks) = places.split_last().expect("there is a place for the output layer");
    for (layer, place) in blocks.iter().enumerate() {
        let class = file.class_of(layer);
        let part = &mut parts[*place];
        part.layers[class] += 1;
        part.bytes.weights += file.blocks[layer];
        part.bytes.kv += cells[class] * row_bytes;
    }
    let last = &mut parts[*output];
    last.has_output = true;
    last.bytes.output = file.output_bytes;
    last.bytes.vision = file.vision.map_or(0, |vision| vision.weight_bytes + vision.connector_bytes);
    for part in &mut parts {
        part.bytes.graph = graph.bytes(part);
    }
    let mut in_ram = parts.pop().expect("main memory is the last part");
    in_ram.bytes.output += file.embedding_bytes;

    let device = |(place, part): (usize, Part)| {
        let index = visible[placement.devices[place]];
        let at = &host.gpus[index];
        let bytes = Bytes { context: RESERVE_BYTES, ..part.bytes };
        Device {
            index,
            name: at.gpu.name.clone(),
            display: at.display,
            free_bytes: at.free_bytes,
            class_layers: part.layers,
            has_output: part.has_output,
            estimated_bytes: placement.estimate.bytes[place],
            bytes,
            spilled_bytes: 0,
        }
    };
    let devices: Vec<Device> = parts.into_iter().enumerate().map(device).collect();
    let mut loaded = Loaded {
        devices,
        ram: in_ram.bytes,
        ram_layers: in_ram.layers,
        ram_has_output: in_ram.has_output,
        kv,
        kv_type_ignored: kv != options.kv,
        cells: cells.into_iter().map(|cells| u32::try_from(cells).unwrap_or(u32::MAX)).collect(),
        ram_left_bytes: 0,
        error: None,
        placement,
    };
    loaded.ask_the_driver(host, options.sysmem_fallback);
    Ok(loaded)
}

/// Numbers of the GPUs that the server discovers.
fn visible(host: &Host, options: &Options) -> Result<Vec<usize>, OllamaError> {
    let all = host.gpus.len();
    let Some(list) = &options.visible_devices else { return Ok((0..all).collect()) };
    for (at, &index) in list.iter().enumerate() {
        if index >= all {
            return Err(OllamaError::NoSuchDevice { index, host: host.name.clone(), devices: all });
        }
        if list[..at].contains(&index) {
            return Err(OllamaError::Twice { index });
        }
    }
    Ok(list.clone())
}

/// Where each block and, at the end, the output layer goes, by the runner's rule: a device of the
/// list, or one past it for main memory.
fn assign(blocks: usize, layers_of: &[u32]) -> Vec<usize> {
    let on_devices: usize = layers_of.iter().map(|&layers| layers as usize).sum();
    let first = blocks.saturating_sub(on_devices);
    let in_ram = layers_of.len();
    let place = |layer: usize| {
        let mut end = first;
        let reaches = |layers: &u32| {
            end += *layers as usize;
            layer < end
        };
        if layer < first { in_ram } else { layers_of.iter().position(reaches).unwrap_or(in_ram) }
    };
    (0..=blocks).map(place).collect()
}

/// What lands on one device, or in main memory.
#[derive(Clone, Debug, Default)]
struct Part {
    layers: [u32; 2],
    has_output: bool,
    bytes: Bytes,
}

/// Parts of the compute graph.
struct Graph {
    logits_bytes: u64,
    /// Per class.
    scores_bytes: [u64; 2],
    image_bytes: u64,
}

impl Graph {
    fn new(file: &ModelFile, options: &Options, cells: &[u64]) -> Self {
        let model = &file.model;
        let [hidden, heads, head_dim] = [model.hidden, model.query_heads, model.head_dim].map(u64::from);
        let batch = u64::from(options.num_batch);
        let scores = |cells: u64| {
            let matrix = if options.flash_attention { 0 } else { cells + cells * heads };
            4 * batch * (2 + matrix + 2 * hidden + 2 * head_dim * heads)
        };
        Self {
            logits_bytes: 4 * batch * (hidden + file.vocab()),
            scores_bytes: [scores(cells[0]), scores(cells[1])],
            image_bytes: file.vision.map_or(0, |vision| vision.graph_bytes),
        }
    }

    /// One buffer serves all graphs of a device, so the largest counts.
    fn bytes(&self, part: &Part) -> u64 {
        let classes = part.layers.iter().zip(self.scores_bytes);
        let scores = classes.filter(|(layers, _)| **layers > 0).map(|(_, bytes)| bytes).max();
        let last = if part.has_output { self.logits_bytes.max(self.image_bytes) } else { 0 };
        scores.unwrap_or(0).max(last)
    }
}

impl Loaded {
    /// Allocates: what does not fit into a device goes to main memory if the driver may do that,
    /// up to its limit over all devices; otherwise the server cannot start.
    fn ask_the_driver(&mut self, host: &Host, sysmem_fallback: bool) {
        let ram_free = host.ram_free_bytes();
        let mut limit = if sysmem_fallback { host.fallback_bytes() } else { 0 };
        limit = limit.min(ram_free.saturating_sub(self.ram.total()));
        if self.ram.total() > ram_free {
            let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
            self.error = Some(LoadError::Ram { need: gib(self.ram.total()), have: gib(ram_free) });
        }
        for (number, device) in self.devices.iter_mut().enumerate() {
            let excess = device.excess_bytes();
            if excess > limit {
                self.error.get_or_insert(refusal(number, device, limit));
                break;
            }
            device.spilled_bytes = excess;
            limit -= excess;
        }
        self.ram_left_bytes = ram_free.saturating_sub(self.ram.total()).saturating_sub(self.spilled_bytes());
    }
}

/// Which allocation fails, in the order in which they are made: weights, cells, graph.
fn refusal(number: usize, device: &Device, fallback_bytes: u64) -> LoadError {
    let have = device.free_bytes.saturating_add(fallback_bytes);
    let missing_bytes = device.bytes.total() - have;
    let Bytes { kv, graph, context, .. } = device.bytes;
    let tensors = context + device.bytes.tensors();
    if tensors > have {
        return LoadError::Weights { device: number, missing_bytes };
    }
    let bytes = if tensors + kv > have { kv } else { graph };
    LoadError::Buffer { device: number, mib: bytes as f64 / f64::from(1 << 20), missing_bytes }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_share_one_limit_of_fallback() {
        let mut host = crate::host::find("rtx8000+gtx1660super").unwrap();
        let (model, weights) = crate::model::find("gemma3-27b-q4_0-qat").unwrap();
        let file = ModelFile::new(&model, weights.into()).unwrap();
        let options = Options { num_ctx: 4096, num_parallel: 2, spread: true, ..Options::default() };
        let mut loaded = load(&host, &file, &options).unwrap();
        for device in &mut loaded.devices {
            device.free_bytes = device.bytes.total() - (1 << 30);
        }
        for (limit_gib, spilled) in [(2.0, [1 << 30; 2]), (1.5, [1 << 30, 0]), (0.5, [0; 2])] {
            host.fallback_share = limit_gib / host.ram_gib;
            (loaded.error, loaded.devices[0].spilled_bytes, loaded.devices[1].spilled_bytes) = (None, 0, 0);
            loaded.ask_the_driver(&host, true);
            assert_eq!([loaded.devices[0].spilled_bytes, loaded.devices[1].spilled_bytes], spilled);
            assert_eq!(loaded.error.is_none(), limit_gib == 2.0, "{limit_gib}");
        }
    }

    #[test]
    fn layers_go_to_devices_in_order_and_the_rest_to_main_memory() {
        assert_eq!(assign(4, &[2, 3]), [0, 0, 1, 1, 1]);
        assert_eq!(assign(4, &[5]), [0; 5]);
        assert_eq!(assign(4, &[0, 5]), [1; 5]);
        // Three of four blocks on devices: the first stays out, and so does the output layer.
        assert_eq!(assign(4, &[1, 2]), [2, 0, 1, 1, 2]);
        assert_eq!(assign(4, &[4]), [0, 0, 0, 0, 1]);
        assert_eq!(assign(2, &[]), [0; 3]);
    }
}

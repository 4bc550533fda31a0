//! How many cells a device has room for.
//!
//! Memory = reserve + weights + compute graph + cells. The truth is what the engine reports: take
//! its cell counts with [`Sizing::Cells`] where you have them. The other ways follow the engines'
//! own rules, and their graph formulas are estimates.

use crate::hardware::Gpu;
use crate::model::{KvType, Model, ModelClass, WeightType};
use policies::ollama;
use serde::{Deserialize, Serialize};

/// What a CUDA context and the driver take before any tensor exists (Ollama's `minMemory`).
pub const RESERVE_BYTES: u64 = 457 << 20;

/// Bytes per logit at the peak of vLLM's sampler: 16-bit logits, three 32-bit copies (logits,
/// sorted, probabilities) and 64-bit indices. One run of vLLM 0.19 (RTX 4090, 256 sequences,
/// Llama 3.1 8B) had 2588 blocks; with this number and the reserve above the formula says 2605.
const SAMPLER_BYTES_PER_LOGIT: u64 = 22;

/// Cells per sequence beside its window, so that block policies need not share a window's last
/// block: two blocks of 64.
const WINDOW_SLACK: u64 = 128;

/// How an engine decides the size of its cache.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Sizing {
    /// Ollama and llama-server: a context per slot, whatever the memory.
    /// Global: `round_up(slots * num_ctx)`. Local: `round_up(slots * window + num_batch)`, or
    /// `round_up(slots * num_ctx)` if `num_ctx` is below the window (kvcache/causal.go, 0.6.6).
    PerSlot {
        /// Sequences served at once (`OLLAMA_NUM_PARALLEL`).
        slots: u32,
        /// Context per slot in tokens.
        num_ctx: u32,
        /// Tokens per step.
        num_batch: u32,
        /// Cell counts are multiples of this: 32, with flash attention 256.
        pad: u32,
        /// A batch for every slot, as before Ollama 0.6.3: `slots * (window + num_batch)`.
        own_batch: bool,
    },
    /// vLLM: what is left of a part of the memory. Where a model has windows, the classes share it
    /// so that as many sequences as possible, at most `sequences`, have a full window and half of
    /// `num_ctx` each: local classes get `n * (window + 128) + num_batch` cells, global classes the
    /// rest. The 128 let a window begin and end inside a block.
    Fill {
        /// Part of the memory that may be used in all, 0 to 1 (`--gpu-memory-utilization`).
        fraction: f64,
        /// Sequences served at once (`--max-num-seqs`).
        sequences: u32,
        /// Longest context of a sequence in tokens (`--max-model-len`).
        num_ctx: u32,
        /// Tokens per step (`--max-num-batched-tokens`).
        num_batch: u32,
        /// Cell counts are multiples of this (the block size).
        pad: u32,
    },
    /// Cells per layer class, as the engine reported them.
    Cells(Vec<u32>),
}

/// Where the bytes of a device go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// Cells per layer class.
    pub cells: Vec<u32>,
    /// Bytes of all cells.
    pub cache_bytes: u64,
    /// Bytes of the weights.
    pub weight_bytes: u64,
    /// Bytes of intermediate results, estimated.
    pub graph_bytes: u64,
    /// Bytes that programs cannot have: driver, context, display.
    pub reserve_bytes: u64,
    /// Bytes of the device.
    pub device_bytes: u64,
}

impl Memory {
    /// Bytes needed in all.
    pub fn needed_bytes(&self) -> u64 {
        [self.cache_bytes, self.weight_bytes, self.graph_bytes]
            .into_iter()
            .fold(self.reserve_bytes, u64::saturating_add)
    }
}

/// Why there is no room, or no answer.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum MemoryError {
    /// It does not fit.
    #[error(
        "{gpu} has {have:.2} GiB, {model} needs {need:.2}: weights {weights:.2}, cells {cells:.2}, \
         compute graph {graph:.2}, reserve {reserve:.2}"
    )]
    TooSmall {
        /// The device.
        gpu: String,
        /// The model.
        model: String,
        /// GiB that there are.
        have: f64,
        /// GiB needed; for `Fill` with the smallest cache that makes sense (one block).
        need: f64,
        /// GiB of weights.
        weights: f64,
        /// GiB of cells.
        cells: f64,
        /// GiB of intermediate results.
        graph: f64,
        /// GiB reserved.
        reserve: f64,
    },
    /// A list of cells does not match the model.
    #[error("{model} has {classes} layer classes, but cells are given for {given}")]
    Classes {
        /// The model.
        model: String,
        /// Layer classes of the model.
        classes: usize,
        /// Length of the list.
        given: usize,
    },
    /// A setting makes no sense.
    #[error("{field} must be {rule}")]
    Setting {
        /// Which one.
        field: &'static str,
        /// What it must be.
        rule: &'static str,
    },
}

impl Sizing {
    /// Cells per layer class by the rule of [`Sizing::PerSlot`], none for the other rules; for policies
    /// that hand out blocks of `block_size` cells. A context is then whole blocks, and a window gets a
    /// block at both ends, since it may begin and end inside one.
    pub fn per_slot_cells(&self, model: &Model, block_size: u32) -> Option<Vec<u32>> {
        let Sizing::PerSlot { slots, num_ctx, num_batch, pad, own_batch } = *self else { return None };
        let rule = if own_batch { ollama::Sizing::OwnBatch } else { ollama::Sizing::SharedBatch };
        let kind = |window: Option<u32>| match window {
            Some(window) => ollama::Kind::Swa { window },
            None => ollama::Kind::Causal,
        };
        let more = |window: Option<u32>| match window {
            _ if block_size <= 1 => 0,
            Some(window) if num_ctx > window => block_size.saturating_mul(2),
            _ => num_ctx.checked_next_multiple_of(block_size).unwrap_or(num_ctx) - num_ctx,
        };
        let cells = |class: &ModelClass| {
            let exact = ollama::cells(kind(class.window), slots, num_ctx, num_batch, pad, rule);
            exact.saturating_add(more(class.window).saturating_mul(slots))
        };
        Some(model.classes.iter().map(cells).collect())
    }
}

/// Bytes of intermediate results in Ollama's estimator (fs/ggml `GraphSize`, Gemma 3, all layers
/// on one device): the larger of logits for every token and of attention scores, 32-bit.
pub fn graph_bytes_ollama(model: &Model, context: u64, num_batch: u64) -> u64 {
    let batch = num_batch.min(context);
    let hidden = u64::from(model.hidden);
    let heads = u64::from(model.query_heads);
    let head_dim = u64::from(model.head_dim);
    let logits = hidden + u64::from(model.vocab);
    let scores = [context, context.saturating_mul(heads), 2 * hidden, 2 * head_dim * heads]
        .into_iter()
        .fold(2, u64::saturating_add);
    batch.saturating_mul(4).saturating_mul(logits.max(scores))
}

/// Bytes of intermediate results of an engine with fused attention, as vLLM's profile run meets
/// them: the larger of 16-bit activations of a full step and of sampling for all sequences.
pub fn graph_bytes_fused(model: &Model, num_batch: u64, sequences: u64) -> u64 {
    let row = 2 * u64::from(model.hidden) + 3 * u64::from(model.ffn);
    let activations = num_batch.saturating_mul(2 * row);
    let sampler = sequences.saturating_mul(u64::from(model.vocab) * SAMPLER_BYTES_PER_LOGIT);
    activations.max(sampler)
}

/// Cells per layer class for `model` on `gpu`, and where the bytes go. `reserve_bytes` is what
/// programs cannot have: [`RESERVE_BYTES`], more on a device that drives a display.
///
/// # Errors
///
/// `TooSmall` with all parts, `Classes` if a list of cells has the wrong length, `Setting` for a
/// zero where there must be none.
///
/// ```
/// use sim::memory::{RESERVE_BYTES, Sizing, fit};
/// let (model, weights) = sim::model::find("gemma3-4b-q4_0").unwrap();
/// let gpu = sim::hardware::find("gtx1660super").unwrap();
/// let sizing = Sizing::PerSlot { slots: 2, num_ctx: 4096, num_batch: 512, pad: 32, own_batch: false };
/// let kv = sim::model::KvType::F16;
/// let memory = fit(&model, weights, kv, &gpu, RESERVE_BYTES, &sizing).unwrap();
/// assert_eq!(memory.cells, [2560, 8192]);
/// ```
pub fn fit(
    model: &Model,
    weights: WeightType,
    kv: KvType,
    gpu: &Gpu,
    reserve_bytes: u64,
    sizing: &Sizing,
) -> Result<Memory, MemoryError> {
    fit_blocks(model, weights, kv, gpu, reserve_bytes, sizing, 1)
}

/// The same for a policy that hands out blocks of `block_size` cells; see [`Sizing::per_slot_cells`].
///
/// # Errors
///
/// As [`fit`].
pub fn fit_blocks(
    model: &Model,
    weights: WeightType,
    kv: KvType,
    gpu: &Gpu,
    reserve_bytes: u64,
    sizing: &Sizing,
    block_size: u32,
) -> Result<Memory, MemoryError> {
    let mut memory = Memory {
        cells: Vec::new(),
        cache_bytes: 0,
        weight_bytes: model.weight_bytes(weights),
        graph_bytes: 0,
        reserve_bytes,
        device_bytes: gpu.memory_bytes(),
    };
    let row_bytes = model.kv_bytes_per_cell(kv);
    let mut usable_bytes = memory.device_bytes;
    let cells: Vec<u64> = match *sizing {
        Sizing::PerSlot { slots, num_ctx, num_batch, pad, .. } => {
            check_positive(&[("slots", slots), ("num_ctx", num_ctx)])?;
            check_positive(&[("num_batch", num_batch), ("pad", pad)])?;
            let context = u64::from(slots) * u64::from(num_ctx);
            memory.graph_bytes = graph_bytes_ollama(model, context, u64::from(num_batch));
            let cells = sizing.per_slot_cells(model, block_size).expect("cells are sized per slot");
            cells.into_iter().map(u64::from).collect()
        }
        Sizing::Fill { fraction, sequences, num_ctx, num_batch, pad } => {
            if !(fraction > 0.0 && fraction <= 1.0) {
                return Err(MemoryError::Setting { field: "fraction", rule: "above 0 and at most 1" });
            }
            check_positive(&[("sequences", sequences), ("num_batch", num_batch)])?;
            check_positive(&[("pad", pad)])?;
            let [sequences, num_batch, pad] = [sequences, num_batch, pad].map(u64::from);
            memory.graph_bytes = graph_bytes_fused(model, num_batch, sequences);
            usable_bytes = (usable_bytes as f64 * fraction) as u64;
            let left_bytes = usable_bytes.saturating_sub(memory.needed_bytes());
            share(model, &row_bytes, left_bytes, (sequences, u64::from(num_ctx), num_batch))
                .into_iter()
                .map(|cells| (cells / pad).max(1) * pad)
                .collect()
        }
        Sizing::Cells(ref cells) => {
            if cells.len() != model.classes.len() {
                return Err(MemoryError::Classes {
                    model: model.name.clone(),
                    classes: model.classes.len(),
                    given: cells.len(),
                });
            }
            cells.iter().map(|cells| u64::from(*cells)).collect()
        }
    };
    let bytes = cells.iter().zip(&row_bytes);
    memory.cache_bytes =
        bytes.fold(0, |sum: u64, (cells, bytes)| sum.saturating_add(cells.saturating_mul(*bytes)));
    if memory.needed_bytes() > usable_bytes {
        return Err(MemoryError::TooSmall {
            gpu: gpu.name.clone(),
            model: model.name.clone(),
            have: gib(usable_bytes),
            need: gib(memory.needed_bytes()),
            weights: gib(memory.weight_bytes),
            cells: gib(memory.cache_bytes),
            graph: gib(memory.graph_bytes),
            reserve: gib(memory.reserve_bytes),
        });
    }
    let cells = cells.into_iter().map(|cells| u32::try_from(cells).unwrap_or(u32::MAX));
    memory.cells = cells.collect();
    Ok(memory)
}

/// Shares `left` bytes among the classes by the rule of `Fill`, before rounding down.
fn share(
    model: &Model,
    row_bytes: &[u64],
    left: u64,
    (sequences, num_ctx, num_batch): (u64, u64, u64),
) -> Vec<u64> {
    let windows = || model.classes.iter().map(|class| class.window.map(u64::from));
    let rows = || windows().zip(row_bytes);
    let global_row: u64 = rows().filter(|(window, _)| window.is_none()).map(|(_, bytes)| bytes).sum();
    let local_row: u64 = rows().filter(|(window, _)| window.is_some()).map(|(_, bytes)| bytes).sum();
    let window_bytes: u64 = rows().filter_map(|(window, bytes)| Some((window? + WINDOW_SLACK) * bytes)).sum();
    let batch_bytes = local_row * num_batch;
    let sequence_bytes = (window_bytes + global_row * (num_ctx / 2)).max(1);
    let most = if global_row == 0 { u64::MAX } else { left.saturating_sub(batch_bytes) / sequence_bytes };
    let served = most.clamp(1, sequences);
    let local_want = served.saturating_mul(window_bytes).saturating_add(batch_bytes);
    let local_bytes = local_want.min(left);
    let local_part = local_bytes as f64 / local_want.max(1) as f64;
    let local_cells = |window: u64| served * (window + WINDOW_SLACK) + num_batch;
    windows()
        .map(|window| match window {
            Some(window) => (local_cells(window) as f64 * local_part) as u64,
            None => (left - local_bytes) / global_row.max(1),
        })
        .collect()
}

fn check_positive(settings: &[(&'static str, u32)]) -> Result<(), MemoryError> {
    match settings.iter().find(|(_, value)| *value == 0) {
        Some((field, _)) => Err(MemoryError::Setting { field, rule: "at least 1" }),
        None => Ok(()),
    }
}

fn gib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 30)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{hardware, model};

    fn ollama(slots: u32, num_ctx: u32) -> Sizing {
        Sizing::PerSlot { slots, num_ctx, num_batch: 512, pad: 32, own_batch: false }
    }

    fn at(name: &str, gpu: &str, sizing: &Sizing) -> Result<Memory, MemoryError> {
        let (model, weights) = model::find(name).unwrap();
        let gpu = hardware::find(gpu).unwrap();
        fit(&model, weights, KvType::F16, &gpu, RESERVE_BYTES, sizing)
    }

    #[test]
    fn a_cache_per_slot_has_the_sizes_that_ollama_logs() {
        for (name, mib) in [("gemma3-1b", 65), ("gemma3-4b", 450), ("gemma3-12b", 1312), ("gemma3-27b", 1680)]
        {
            let memory = at(name, "h200", &ollama(2, 4096)).unwrap();
            assert_eq!(memory.cache_bytes >> 20, mib, "{name}");
        }
        let memory = at("gemma3-4b", "h200", &ollama(2, 4096)).unwrap();
        assert_eq!(memory.cells, [2560, 8192]);
        assert_eq!(memory.graph_bytes >> 20, 517);
        let short = at("gemma3-4b", "h200", &ollama(3, 1000)).unwrap();
        assert_eq!(short.cells, [3008, 3008]);
    }

    #[test]
    fn fill_comes_within_one_percent_of_a_real_vllm() {
        let sizing =
            Sizing::Fill { fraction: 0.9, sequences: 256, num_ctx: 32_768, num_batch: 2048, pad: 16 };
        let cells = at("llama-3.1-8b", "rtx4090", &sizing).unwrap().cells;
        let off = f64::from(cells[0]) / (2588.0 * 16.0) - 1.0;
        assert!(off.abs() < 0.01, "{off}");
    }

    #[test]
    fn fill_lets_both_classes_run_out_together() {
        let fill =
            |sequences| Sizing::Fill { fraction: 0.9, sequences, num_ctx: 8192, num_batch: 2048, pad: 16 };
        let few = at("gemma3-4b", "rtx4090", &fill(4)).unwrap();
        assert_eq!(few.cells[0], 4 * (1024 + 128) + 2048);
        let many = at("gemma3-4b", "rtx4090", &fill(256)).unwrap();
        let served = (many.cells[0] - 2048) / (1024 + 128);
        let with_half_a_context = many.cells[1] / 4096;
        // What is left over after whole sequences goes to the global class.
        assert!((served..served + 4).contains(&with_half_a_context), "{served} {with_half_a_context}");
        assert!(served < 256 && many.needed_bytes() <= many.device_bytes * 9 / 10);
    }

    #[test]
    fn what_does_not_fit_says_how_much_is_missing() {
        let error = at("gemma3-27b-q4_0", "gtx1660super", &ollama(1, 4096)).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("gtx1660super has 6.00 GiB"), "{text}");
        assert!(text.contains("weights 14.49"), "{text}");
        let fill = Sizing::Fill { fraction: 0.9, sequences: 1, num_ctx: 4096, num_batch: 512, pad: 16 };
        let error = at("gemma3-27b-q4_0", "gtx1660super", &fill).unwrap_err();
        assert!(matches!(error, MemoryError::TooSmall { .. }), "{error}");
        let error = at("gemma3-4b", "h100", &Sizing::Cells(vec![1])).unwrap_err();
        assert!(matches!(error, MemoryError::Classes { .. }), "{error}");
        let error = at("gemma3-4b", "h100", &ollama(0, 4096)).unwrap_err();
        assert_eq!(error.to_string(), "slots must be at least 1");
    }
}

//! Ollama's estimate of what a model needs on a list of devices.
//!
//! Layers are dealt out one by one, in turns, to the devices that still have room; a device that
//! cannot take its layer leaves the round. Every device in the round pays a minimum, a buffer of
//! one layer and the compute graph; the first pays for vision, too. The numbers are beliefs: cells
//! are not padded, a window larger than the context is not cut, Q8_0 counts as one byte, and the
//! runner then assigns the output layer and vision differently (see [`load`](mod@super::load)).

use super::file::ModelFile;
use crate::memory::RESERVE_BYTES;
use crate::model::KvType;

/// What a sequence count and a context ask of a model, in the estimator's own formulas.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Demand {
    /// Bytes of K and V of one layer, per class: local, global.
    pub kv_bytes: [u64; 2],
    /// Bytes of the compute graph where only a part of the model is on the devices, or several
    /// share it.
    pub graph_partial_bytes: u64,
    /// Bytes of the compute graph where one device has the whole model.
    pub graph_full_bytes: u64,
}

impl Demand {
    /// For `parallel` sequences of `num_ctx` tokens each.
    pub fn new(file: &ModelFile, num_ctx: u32, num_batch: u32, parallel: u32, kv: KvType) -> Self {
        let model = &file.model;
        let [parallel, num_ctx, num_batch] = [parallel, num_ctx, num_batch].map(u64::from);
        let context = parallel * num_ctx;
        let batch = num_batch.min(context);
        let [hidden, heads, head_dim] = [model.hidden, model.query_heads, model.head_dim].map(u64::from);
        let vocab = file.vocab();
        // Halves of a byte per number.
        let halves = match kv {
            KvType::F32 => 8,
            KvType::F16 => 4,
            KvType::Q8_0 => 2,
            KvType::Q4_0 => 1,
        };
        let row_bytes = 2 * head_dim * u64::from(model.kv_heads) * halves / 2;
        let window = u64::from(model.classes[0].window.unwrap_or(u32::MAX));
        let scores = context + context * heads;
        let width = head_dim * heads;
        let full = (hidden + vocab).max(2 + scores + 2 * hidden + 2 * width);
        let logits_partial = 4 * batch * (hidden + vocab) + hidden * vocab * 105 / 128;
        let layers_partial = 4 * batch * (2 * hidden + 1 + 2 * width + scores)
            + 4 * head_dim * context * 8
            + hidden * width * 9 / 16;
        Self {
            kv_bytes: [(parallel * window + batch) * row_bytes, context * row_bytes],
            graph_partial_bytes: logits_partial.max(layers_partial),
            graph_full_bytes: 4 * batch * full,
        }
    }

    /// Bytes of K and V of all layers.
    pub fn kv_total_bytes(&self, file: &ModelFile) -> u64 {
        (0..file.blocks.len()).map(|layer| self.kv_bytes[file.class_of(layer)]).sum()
    }
}

/// What the estimator says of a list of devices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Estimate {
    /// Layers per device, the output layer counted as one.
    pub layers: Vec<u32>,
    /// Bytes per device. Empty if no device can take a layer.
    pub bytes: Vec<u64>,
    /// Bytes of the compute graph, counted on every device that has layers.
    pub graph_bytes: u64,
    /// Bytes on all devices.
    pub vram_bytes: u64,
    /// The same and what is left for main memory.
    pub total_bytes: u64,
    /// Whether everything is on the devices.
    pub is_full: bool,
}

impl Estimate {
    /// Layers on all devices, the output layer counted as one.
    pub fn layers_total(&self) -> u32 {
        self.layers.iter().sum()
    }
}

/// A device while layers are dealt out.
struct Player {
    free: u64,
    bytes: u64,
    layers: u32,
}

/// Estimates `demand` on devices with `free` bytes each, `overhead_bytes` of them untouchable.
pub fn estimate(file: &ModelFile, free: &[u64], overhead_bytes: u64, demand: &Demand) -> Estimate {
    let sizes: Vec<u64> = (0..file.blocks.len())
        .map(|layer| file.blocks[layer] + demand.kv_bytes[file.class_of(layer)])
        .collect();
    let buffer = sizes[0];
    let graph_full = if free.len() > 1 { demand.graph_partial_bytes } else { demand.graph_full_bytes };
    let graph = demand.graph_partial_bytes.max(graph_full);
    let vision = file.vision.map_or(0, |vision| vision.weight_bytes + vision.graph_bytes);

    let mut players: Vec<Player> = free.iter().map(|&free| Player { free, bytes: 0, layers: 0 }).collect();
    let mut round: Vec<usize> = Vec::new();
    for (index, player) in players.iter_mut().enumerate() {
        let first = if round.is_empty() { vision } else { 0 };
        if player.free >= overhead_bytes + first + graph + RESERVE_BYTES + 2 * buffer {
            player.bytes = RESERVE_BYTES + buffer + first;
            round.push(index);
        }
    }
    let has_room = |player: &Player, size| player.free > overhead_bytes + player.bytes + graph + size;
    let give = |player: &mut Player, size| {
        player.bytes += size;
        player.layers += 1;
    };
    let mut dealt = 0;
    for (layer, &size) in sizes.iter().enumerate() {
        while !round.is_empty() {
            let turn = layer % round.len();
            let player = &mut players[round[turn]];
            if has_room(player, size) {
                give(player, size);
                dealt += 1;
                break;
            }
            round.remove(turn);
        }
    }
    // Blocks left over are counted with the size of the last one.
    let mut overflow = (sizes.len() - dealt) as u64 * sizes[sizes.len() - 1];
    let takes_output = (1..=round.len()).rev().map(|among| round[dealt % among]);
    match takes_output.into_iter().find(|&index| has_room(&players[index], file.output_bytes)) {
        Some(index) => {
            give(&mut players[index], file.output_bytes);
            dealt += 1;
        }
        None => overflow += file.output_bytes,
    }
    let is_full = dealt == sizes.len() + 1;
    let graph_bytes = if is_full { graph_full } else { demand.graph_partial_bytes };
    for player in players.iter_mut().filter(|player| player.layers > 0) {
        player.bytes += graph_bytes;
    }
    let vram_bytes: u64 = players.iter().map(|player| player.bytes).sum();
    let total_bytes = vram_bytes + overflow;
    if dealt == 0 {
        let layers = vec![0; free.len()];
        return Estimate { layers, bytes: Vec::new(), graph_bytes: 0, vram_bytes: 0, total_bytes, is_full };
    }
    Estimate {
        layers: players.iter().map(|player| player.layers).collect(),
        bytes: players.iter().map(|player| player.bytes).collect(),
        graph_bytes,
        vram_bytes,
        total_bytes,
        is_full,
    }
}

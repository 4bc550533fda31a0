//! The price of copies, rotations and transfers, and of scores; the same in all back-ends.
//!
//! Copy: `2*bytes/(BW*copy) + launches`; rotation of K: the same bytes, half of them read and half written;
//! rounding of K and V in place: as a copy; transfer: `latency + bytes/(PCIe*pcie)`. All at the spec sheet's
//! rates times the catalogue's efficiencies: nothing here is fitted. Copies beside a step have no launches:
//! they take the same bytes of the bandwidth that the step's own kernels live on. Mapping a granule: a driver
//! call for K and one for V of every layer of the class, one after the other and before the step. Scores that
//! a policy wants: a kernel that never writes its scores (FlashAttention) has to, in f32 for each query head and
//! layer, and another adds them up: `8*heads/(BW*copy)` per pair of a query and a token, and two launches a layer.
//!
//! A key that is rotated as it is read: the sines and cosines of its position, in f32 for half of a head each, once
//! for all heads of a layer, and six operations for each pair of numbers of each KV head:
//! `4*hd/(BW*decode) + 3*hd*Hkv/(peak*prefill/16)` per layer. That is a kernel that rotates in its registers, as
//! KVQuant's does (arXiv 2401.18079), with a table that no cache holds. Rotations do not run on matrix units, whose
//! rate the peak is: an A100 has 19.5 of 312 TFLOP/s beside them, others more. A program that rotates all keys
//! in a pass before attention, as StreamingLLM's does, reads and writes K once more: several times as much.

use super::Moves;
use crate::hardware::Gpu;
use crate::model::{KvType, Model};

/// Launch of one small kernel, back to back with others on a stream. An estimate.
const LAUNCH_NS: f64 = 3000.0;
/// Start of a transfer over PCIe. An estimate.
pub(super) const TRANSFER_NS: f64 = 10_000.0;

/// `cuMemMap` and `cuMemSetAccess` of one granule, and `cuMemUnmap`. Priors: calls of the driver take tens of
/// microseconds; nobody has measured them here.
const MAP_NS: f64 = 40_000.0;
const UNMAP_NS: f64 = 35_000.0;

/// Part of the peak that operations beside matrix products reach: that of an A100, by its data sheet.
const VECTOR: f64 = 1.0 / 16.0;

/// Prices [`Moves`] for one model on one device.
#[derive(Clone, Debug)]
pub struct MoveCost {
    classes: Vec<ClassCost>,
}

#[derive(Clone, Debug)]
struct ClassCost {
    layers: f64,
    copy_ns: f64,
    rotate_ns: f64,
    swap_ns: f64,
    score_ns: f64,
    turn_ns: f64,
}

impl MoveCost {
    /// Nanoseconds per cell of each layer class, from the sizes of `model` and the rates of `gpu`.
    pub fn new(model: &Model, kv: KvType, gpu: &Gpu) -> Self {
        let copy_rate = gpu.bytes_per_ns() * gpu.efficiency.copy;
        let swap_rate = gpu.pcie * gpu.efficiency.pcie;
        let rows = model.kv_bytes_per_cell(kv);
        let (head_dim, kv_heads) = (f64::from(model.head_dim), f64::from(model.kv_heads));
        let turn_ns = 4.0 * head_dim / (gpu.bytes_per_ns() * gpu.efficiency.decode)
            + 3.0 * head_dim * kv_heads / (gpu.flops_per_ns() * gpu.efficiency.prefill * VECTOR);
        let classes = model.classes.iter().zip(rows).map(|(class, bytes)| {
            let bytes = bytes as f64;
            ClassCost {
                layers: f64::from(class.layers),
                copy_ns: 2.0 * bytes / copy_rate,
                rotate_ns: bytes / copy_rate,
                swap_ns: bytes / swap_rate,
                score_ns: 8.0 * f64::from(model.query_heads) * f64::from(class.layers) / copy_rate,
                turn_ns: turn_ns * f64::from(class.layers),
            }
        });
        Self { classes: classes.collect() }
    }

    /// Nanoseconds of all moves, one after the other.
    pub fn ns(&self, moves: &Moves) -> f64 {
        if moves.copies == 0
            && moves.rotations == 0
            && moves.requantisations == 0
            && moves.copied_cells.is_empty()
            && moves.rotated_cells.is_empty()
            && moves.requantised_cells.is_empty()
            && moves.swapped_cells.is_empty()
            && moves.mapped.is_empty()
            && moves.unmapped.is_empty()
        {
            return 0.0;
        }
        let copies = self.sum(&moves.copied_cells, |class| class.copy_ns);
        let rotations = self.sum(&moves.rotated_cells, |class| class.rotate_ns);
        let roundings = self.sum(&moves.requantised_cells, |class| class.copy_ns);
        let swaps = self.sum(&moves.swapped_cells, |class| class.swap_ns);
        let launches = self.launches(moves.copies, &moves.copied_cells)
            + self.launches(moves.rotations, &moves.rotated_cells)
            + self.launches(moves.requantisations, &moves.requantised_cells);
        let transfer = if swaps > 0.0 { TRANSFER_NS } else { 0.0 };
        let driver = self.sum(&moves.mapped, |class| 2.0 * class.layers * MAP_NS)
            + self.sum(&moves.unmapped, |class| 2.0 * class.layers * UNMAP_NS);
        copies + rotations + roundings + swaps + launches * LAUNCH_NS + transfer + driver
    }

    /// Nanoseconds of scores that a policy wants, from the [pairs](super::Work::scored) of each class.
    pub fn scores_ns(&self, pairs: &[u64]) -> f64 {
        self.sum(pairs, |class| class.score_ns) + self.launches(2, pairs) * LAUNCH_NS
    }

    /// Nanoseconds that reads take longer where keys are rotated as they are read, from
    /// [their number](super::Work::turned).
    pub fn turns_ns(&self, keys: &[u64]) -> f64 {
        self.sum(keys, |class| class.turn_ns)
    }

    fn sum(&self, cells: &[u64], price: impl Fn(&ClassCost) -> f64) -> f64 {
        let pairs = self.classes.iter().zip(cells);
        pairs.map(|(class, cells)| price(class) * *cells as f64).sum()
    }

    /// Commands times layers. Commands are not told apart by class, so a command counts the mean
    /// number of layers of the classes in which anything moved.
    fn launches(&self, commands: u64, cells: &[u64]) -> f64 {
        let moved = || self.classes.iter().zip(cells).filter(|(_, cells)| **cells > 0);
        let classes = moved().count();
        if classes == 0 {
            return 0.0;
        }
        let layers: f64 = moved().map(|(class, _)| class.layers).sum();
        commands as f64 * layers / classes as f64
    }
}

//! The back-end `table`: interpolation of a measured profile.
//!
//! A step is the sum of its kernels, each looked up between the measured points. It holds inside
//! the measured grid, for the measured model and device, and has no term for the host: an engine
//! that cannot hide its scheduler behind the device is slower.
//!
//! What a policy spares by storing cells coarser is not taken off: the profile knows one type of K and V.
//!
//! Attention with several pieces of prompts: the profile has one piece per batch, so the piece
//! with the most work is looked up together with the decoding sequences, and every other piece
//! adds its own time less that of the smallest measured piece (the launch is shared). Decoding
//! sequences enter by their number and mean length, so the sum of cells read is exact.

use super::moves::MoveCost;
use super::profile::{Profile, ProfileError};
use super::roofline::pairs_seen;
use super::{CostModel, Prefill, Work};
use crate::hardware::Gpu;
use crate::model::{KvType, Model};

/// Steps of up to this many tokens are priced by a table made beforehand.
const TOKENS_TABULATED: u32 = 4096;
/// The same for sequences that need logits.
const SAMPLES_TABULATED: u32 = 1024;

/// A step priced by a profile. Pure, and safe to share between threads.
#[derive(Clone, Debug)]
pub struct Table {
    profile: Profile,
    layers: u32,
    moves: MoveCost,
    dense_ns: Vec<f64>,
    sample_ns: Vec<f64>,
    smallest_piece_ns: f64,
}

impl Table {
    /// A cost model for `model`, of whose layers the profile has one. `kv` and `gpu` price moves.
    ///
    /// # Errors
    ///
    /// `Classes` if the model has several layer classes or a window: the profile has neither.
    pub fn new(profile: Profile, model: &Model, kv: KvType, gpu: &Gpu) -> Result<Self, ProfileError> {
        if model.classes.len() != 1 || model.classes.iter().any(|class| class.window.is_some()) {
            return Err(ProfileError::Classes { model: model.name.clone() });
        }
        let layers = model.layers();
        let dense = (0..=TOKENS_TABULATED).map(|tokens| dense_ns(&profile, layers, tokens));
        let samples = (0..=SAMPLES_TABULATED).map(|samples| sample_ns(&profile, samples));
        Ok(Self {
            layers,
            moves: MoveCost::new(model, kv, gpu),
            dense_ns: dense.collect(),
            sample_ns: samples.collect(),
            smallest_piece_ns: profile.prefill.at([0.0, 0.0]),
            profile,
        })
    }

    /// Attention of one layer, ns.
    fn attention_ns(&self, work: &Work) -> f64 {
        if let Some(walked) = work.walked.first() {
            // The profile has no such kernel: as if the step's tokens were one prompt after the range.
            let context = u32::try_from(*walked).unwrap_or(u32::MAX);
            return self.piece_ns(Prefill { tokens: work.tokens, context }, 0.0, 0.0);
        }
        let sequences = f64::from(work.decodes);
        let reads = work.decode_reads.first().copied().unwrap_or(0) as f64;
        let cells = if work.decodes == 0 { 0.0 } else { reads / sequences };
        let most_work = |piece: &&Prefill| pairs_seen(**piece, None);
        let Some(largest) = work.prefills.iter().max_by_key(most_work) else {
            return self.decode_ns(sequences, cells);
        };
        let others: f64 = work.prefills.iter().map(|piece| self.extra_ns(*piece)).sum();
        let others = others - self.extra_ns(*largest);
        self.piece_ns(*largest, sequences, cells) + others
    }

    /// Nothing but decoding. Beyond the grid in proportion to the cells read.
    fn decode_ns(&self, sequences: f64, cells: f64) -> f64 {
        if sequences < 1.0 {
            return 0.0;
        }
        let grid = &self.profile.decode;
        let beyond = beyond(grid.axis(0), sequences) * beyond(grid.axis(1), cells);
        grid.at([sequences, cells]) * beyond
    }

    /// What one more piece adds to a batch that has one already.
    fn extra_ns(&self, piece: Prefill) -> f64 {
        (self.piece_ns(piece, 0.0, 0.0) - self.smallest_piece_ns).max(0.0)
    }

    /// One piece with `sequences` decoding beside it. Beyond the grid: a longer piece or context
    /// in proportion, more or longer sequences as decoding alone would add.
    fn piece_ns(&self, piece: Prefill, sequences: f64, cells: f64) -> f64 {
        let tokens = f64::from(piece.tokens);
        let before = f64::from(piece.context);
        if sequences < 1.0 {
            let grid = &self.profile.prefill;
            let beyond = beyond(grid.axis(0), tokens) * beyond(grid.axis(1), before);
            return grid.at([tokens, before]) * beyond;
        }
        let grid = &self.profile.mixed;
        let longer = beyond(grid.axis(0), tokens) * beyond(grid.axis(1), before);
        let inside = grid.at([tokens, before, sequences, cells]);
        let sequences_inside = sequences / beyond(grid.axis(2), sequences);
        let cells_inside = cells / beyond(grid.axis(3), cells);
        let more = self.decode_ns(sequences, cells) - self.decode_ns(sequences_inside, cells_inside);
        inside * longer + more
    }
}

/// How many times the end of the axis `x` is, at least 1.
fn beyond(axis: &[f64], x: f64) -> f64 {
    match axis.last() {
        Some(last) if x > *last => x / last,
        _ => 1.0,
    }
}

fn dense_ns(profile: &Profile, layers: u32, tokens: u32) -> f64 {
    if tokens == 0 {
        return 0.0;
    }
    let kernels = profile
        .dense
        .iter()
        .map(|(layer, curve)| f64::from(Profile::runs_per_step(layer, layers)) * curve.at(f64::from(tokens)));
    kernels.sum()
}

fn sample_ns(profile: &Profile, samples: u32) -> f64 {
    if samples == 0 {
        return 0.0;
    }
    profile.per_sequence.values().map(|curve| curve.at(f64::from(samples))).sum()
}

impl CostModel for Table {
    fn name(&self) -> &str {
        "table"
    }

    fn step_ns(&self, work: &Work) -> u64 {
        let dense = match self.dense_ns.get(work.tokens as usize) {
            Some(ns) => *ns,
            None => dense_ns(&self.profile, self.layers, work.tokens),
        };
        let samples = match self.sample_ns.get(work.samples as usize) {
            Some(ns) => *ns,
            None => sample_ns(&self.profile, work.samples),
        };
        let attention = f64::from(self.layers) * self.attention_ns(work);
        let beside = self.moves.ns(&work.moves)
            + self.moves.scores_ns(&work.scored)
            + self.moves.turns_ns(&work.turned);
        (dense + samples + attention + beside + 0.5) as u64
    }
}

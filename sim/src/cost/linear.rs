//! The back-end `linear`: a step's time as a sum of measured rates, none of them negative.
//!
//! ```text
//! t = fixed + sum over ranges of the batch size: rate * tokens within the range
//!   + (any sample ? sampling : 0) + rate * samples + rate * sequences
//!   + sum over layer classes: rate * pairs of prompts + rate * cells read by decoding
//!                             + rate * cells re-read before prompts + rate * pairs walked in vain
//!   + moves
//! moves = sum over classes: rate * copied + rate * rotated + rate * transferred cells
//!       + rate * copy launches + rate * rotate launches + (any transfer ? start : 0)
//! ```
//!
//! Ranges of the batch size let its share of the time bend: weights are read once per step, so the
//! second token costs less than the first, and from some size on arithmetic is what counts. Pairs
//! are (token, cell) pairs under the causal and the window mask; where attention walks a range of cells
//! with an owner test, pairs of a token and a cell of the range that it does not read are walked in vain.
//! A command is one launch for each
//! layer of its class; commands are not told apart by class, so one counts the mean number of layers
//! of the classes in which anything moved. There is no physics beyond the
//! features: it holds for the engine, model, types and device that were measured, near the sizes
//! that were measured. A rounding of K and V has no rate of its own; it counts as two rotations of K. Nor have
//! scores that a policy wants: the engine's own attention has them at hand, and they cost nothing here. A key that is
//! rotated as it is read counts as a rotation of K: the engine decodes and rotates it into a buffer of its own. What a
//! policy spares by storing cells coarser is nothing here: the engine stores all cells in one type and reads them whole.

mod fit;
mod fitted;
mod operating;

pub use fit::{Fit, FitOptions, Kind, LinearError, Measured, fit};
pub use fitted::{Calibration, Coefficient, Errors, Made, Point};
pub use operating::Operating;

use super::roofline::pairs_seen;
use super::{CostModel, Moves, Work};
use crate::model::Model;
use serde::{Deserialize, Serialize};

/// Features of every step, beside those per range and per class: fixed, sampling, samples, sequences.
const PLAIN: usize = 4;
/// Features of computing, per class.
const PER_CLASS: usize = 4;
/// Features of moves, per class.
const MOVES_PER_CLASS: usize = 3;
/// Features of moves beside those per class: commands of either kind, a transfer at all.
const MOVES_PLAIN: usize = 3;

/// Which features there are, in which order: those of computing first, those of moves last.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Layout {
    /// Where ranges of the batch size begin, rising; a range counts the tokens above its begin up to
    /// the next one's.
    pub ranges: Vec<u32>,
    /// Per layer class, its name.
    pub classes: Vec<String>,
    /// Per layer class, its layers.
    pub layers: Vec<u32>,
    /// Per layer class, the tokens that it sees; 0: all.
    pub windows: Vec<u32>,
}

impl Layout {
    /// The features for a model whose steps have up to `tokens_max` tokens: ranges that begin at 0
    /// and at powers of 4.
    pub fn new(model: &Model, tokens_max: u32) -> Self {
        let powers = (1..16).map(|power| 4u32.pow(power)).take_while(|&begin| begin < tokens_max);
        Self {
            ranges: std::iter::once(0).chain(powers).collect(),
            classes: model.classes.iter().map(|class| class.name.clone()).collect(),
            layers: model.classes.iter().map(|class| class.layers).collect(),
            windows: model.classes.iter().map(|class| class.window.unwrap_or(0)).collect(),
        }
    }

    /// Number of features.
    pub fn len(&self) -> usize {
        self.computing() + MOVES_PER_CLASS * self.classes.len() + MOVES_PLAIN
    }

    /// Whether there is none; never so.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// Number of features of computing; those of moves follow.
    pub fn computing(&self) -> usize {
        PLAIN + self.ranges.len() + PER_CLASS * self.classes.len()
    }

    /// What each coefficient is the time of.
    pub fn names(&self) -> Vec<String> {
        let mut names: Vec<String> =
            ["step", "step that samples", "sample", "sequence"].map(str::to_owned).to_vec();
        for (at, begin) in self.ranges.iter().enumerate() {
            names.push(match self.ranges.get(at + 1) {
                Some(next) => format!("token {} to {next}", begin + 1),
                None => format!("token from {} on", begin + 1),
            });
        }
        for class in &self.classes {
            let parts = ["prompt pair", "decode read", "context re-read", "pair in vain"];
            names.extend(parts.map(|part| format!("{part}, {class}")));
        }
        for class in &self.classes {
            names.extend(
                ["copied cell", "rotated cell", "swapped cell"].map(|part| format!("{part}, {class}")),
            );
        }
        names.extend(["copy launch", "rotate launch", "step that swaps"].map(str::to_owned));
        names
    }

    /// The features of a step, in the order of [`names`](Layout::names).
    pub fn features(&self, work: &Work) -> Vec<f64> {
        let mut features = Vec::with_capacity(self.len());
        self.each_feature(work, |feature| features.push(feature));
        features
    }

    #[inline]
    fn each_feature(&self, work: &Work, mut each: impl FnMut(f64)) {
        let is_any = |count: u32| if count > 0 { 1.0 } else { 0.0 };
        let tokens = work.tokens;
        each(is_any(tokens));
        each(is_any(work.samples));
        each(f64::from(work.samples));
        each(f64::from(work.sequences));
        for (at, &begin) in self.ranges.iter().enumerate() {
            let end = self.ranges.get(at + 1).copied().unwrap_or(u32::MAX);
            each(f64::from(tokens.min(end).saturating_sub(begin)));
        }
        for (class, &window) in self.windows.iter().enumerate() {
            let (mut pairs, mut before) = (0, 0);
            let window = (window > 0).then_some(window);
            for piece in &work.prefills {
                pairs += pairs_seen(*piece, window);
                before += u64::from(window.map_or(piece.context, |window| window.min(piece.context)));
            }
            let reads = of_class(&work.decode_reads, class);
            each(pairs as f64);
            each(reads);
            each(before as f64);
            let walked = of_class(&work.walked, class) * f64::from(tokens);
            each((walked - pairs as f64 - reads).max(0.0));
        }
        self.each_move(&work.moves, &work.turned, each);
    }

    #[inline]
    fn each_move(&self, moves: &Moves, turned: &[u64], mut each: impl FnMut(f64)) {
        for class in 0..self.windows.len() {
            each(of_class(&moves.copied_cells, class));
            let rounded = 2.0 * of_class(&moves.requantised_cells, class);
            each(of_class(&moves.rotated_cells, class) + rounded + of_class(turned, class));
            each(of_class(&moves.swapped_cells, class));
        }
        each(moves.copies as f64 * self.layers_moved(&moves.copied_cells));
        each(moves.rotations as f64 * self.layers_moved(&moves.rotated_cells));
        each(if moves.swapped_cells.iter().any(|&cells| cells > 0) { 1.0 } else { 0.0 });
    }

    /// The mean number of layers of the classes in which cells moved; 0 where none did.
    #[inline]
    fn layers_moved(&self, cells: &[u64]) -> f64 {
        let moved = || self.layers.iter().zip(cells).filter(|(_, cells)| **cells > 0);
        let layers: u32 = moved().map(|(layers, _)| layers).sum();
        f64::from(layers) / (moved().count() as f64).max(1.0)
    }
}

fn of_class(cells: &[u64], class: usize) -> f64 {
    cells.get(class).copied().unwrap_or(0) as f64
}

/// A step priced by rates. Pure, and safe to share between threads.
#[derive(Clone, Debug, PartialEq)]
pub struct Linear {
    layout: Layout,
    /// Time of one unit of each feature, ns.
    rates: Vec<f64>,
}

impl Linear {
    /// Rates in the order of [`Layout::names`], ns.
    ///
    /// # Panics
    /// If there are not as many as features.
    pub fn new(layout: Layout, rates: Vec<f64>) -> Self {
        assert_eq!(rates.len(), layout.len(), "one rate per feature");
        Self { layout, rates }
    }

    /// Nanoseconds of a step without its moves.
    pub fn compute_ns(&self, work: &Work) -> f64 {
        self.sum(&self.rates[..self.layout.computing()], work)
    }

    /// Nanoseconds of moves.
    pub fn moves_ns(&self, moves: &Moves) -> f64 {
        let mut rates = self.rates[self.layout.computing()..].iter();
        let mut sum = 0.0;
        self.layout.each_move(moves, &[], |feature| sum += feature * rates.next().unwrap_or(&0.0));
        sum
    }

    /// Nanoseconds of a step, not rounded.
    pub fn ns(&self, work: &Work) -> f64 {
        self.sum(&self.rates, work)
    }

    /// Features beyond the rates count nothing.
    fn sum(&self, rates: &[f64], work: &Work) -> f64 {
        let (mut rates, mut sum) = (rates.iter(), 0.0);
        self.layout.each_feature(work, |feature| sum += feature * rates.next().unwrap_or(&0.0));
        sum
    }

    /// Time of one unit of each feature, ns.
    pub fn rates(&self) -> &[f64] {
        &self.rates
    }

    /// Which features there are.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }
}

impl CostModel for Linear {
    fn name(&self) -> &str {
        "linear"
    }

    fn step_ns(&self, work: &Work) -> u64 {
        (self.ns(work) + 0.5) as u64
    }
}

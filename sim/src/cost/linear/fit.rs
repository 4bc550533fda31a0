//! From measured steps to rates: non-negative least squares on relative errors, and a bootstrap.
//!
//! The residual of a step is ln(predicted / measured) with a soft-L1 loss, by reweighting: a wild
//! measurement counts like a near one. A small ridge toward nothing decides between features that
//! always go together. Computing and moves are measured, and fitted, apart.
//!
//! A bootstrap draw takes rounds anew (whole rounds, so that a machine that was slow for a while
//! shows), and steps anew within each kind.

use super::{Layout, Linear};
use crate::cost::Work;
use crate::cost::nnls::nnls;
use nalgebra::{DMatrix, DVector};
use serde::{Deserialize, Serialize};
use traces::random::SplitMix64;

/// Fewer steps of computing than this are no calibration.
const MEASURED_MIN: usize = 8;
/// Relative error of a measured step that is nothing special.
const NOISE: f64 = 0.03;
/// Ridge beside columns of length 1.
const RIDGE: f64 = 1e-5;
/// Rounds of reweighting: from nothing, and from the rates of all steps.
const REWEIGHTINGS: usize = 8;

/// What a step does most of all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Every sequence decodes.
    Decode,
    /// Pieces of prompts alone.
    Prefill,
    /// Both.
    Mixed,
    /// Copies, rotations or transfers, and no computing.
    Moves,
}

impl Kind {
    /// All kinds.
    pub const ALL: [Kind; 4] = [Kind::Decode, Kind::Prefill, Kind::Mixed, Kind::Moves];

    /// The kind of a step.
    pub fn of(work: &Work) -> Kind {
        match (work.decodes, work.prefills.is_empty()) {
            (0, true) => Kind::Moves,
            (_, true) => Kind::Decode,
            (0, false) => Kind::Prefill,
            (_, false) => Kind::Mixed,
        }
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Decode => "decode",
            Kind::Prefill => "prefill",
            Kind::Mixed => "mixed",
            Kind::Moves => "moves",
        }
    }
}

/// A step that was measured.
#[derive(Clone, Debug, PartialEq)]
pub struct Measured {
    /// What it did: computing, or moves.
    pub work: Work,
    /// What it took in each round, ns; all steps have the same rounds.
    pub rounds_ns: Vec<f64>,
    /// How much it counts, 1 for an ordinary step ([`Operating::weights`](super::Operating::weights)).
    pub weight: f64,
    /// Whether it is kept from the fit, to be predicted by it.
    pub held_out: bool,
}

impl Measured {
    /// The mean over its rounds, ns: the time that many such steps add up to, on a machine that is slow
    /// for some of them. Rounds of more than twice the median are accidents, and left out.
    pub fn ns(&self) -> f64 {
        mean(&self.rounds_ns)
    }

    /// How far rounds lie from their median, as a share of it: 1.48 times the median distance, which
    /// is the standard deviation where errors are normal.
    pub fn spread(&self) -> f64 {
        let ns = median(self.rounds_ns.clone());
        1.4826 * median(self.rounds_ns.iter().map(|round| (round / ns - 1.0).abs()).collect())
    }
}

/// The median; of an even number the lower of the two in the middle. 0 of nothing.
pub(super) fn median(mut numbers: Vec<f64>) -> f64 {
    numbers.sort_unstable_by(f64::total_cmp);
    numbers.get(numbers.len().saturating_sub(1) / 2).copied().unwrap_or(0.0)
}

/// The mean of those up to twice the median. 0 of nothing.
fn mean(numbers: &[f64]) -> f64 {
    let most = 2.0 * median(numbers.to_vec());
    let ordinary = numbers.iter().filter(|&&number| number <= most);
    ordinary.clone().sum::<f64>() / (ordinary.count() as f64).max(1.0)
}

/// How to fit.
#[derive(Clone, Copy, Debug)]
pub struct FitOptions {
    /// Bootstrap draws; 200 is plenty.
    pub draws: usize,
    /// Parts of the cross-validation.
    pub folds: usize,
    /// Seed of draws and parts.
    pub seed: u64,
}

impl Default for FitOptions {
    fn default() -> Self {
        Self { draws: 200, folds: 5, seed: 0 }
    }
}

/// What a fit finds.
#[derive(Clone, Debug, PartialEq)]
pub struct Fit {
    /// The most likely rates.
    pub linear: Linear,
    /// Rates of every bootstrap draw.
    pub draws: Vec<Vec<f64>>,
    /// ln(measured / predicted) of steps of computing that a draw left out, rising.
    pub errors: Vec<f64>,
    /// Per measured step, what is predicted of it by a fit that has not seen it.
    pub unseen_ns: Vec<f64>,
}

/// Why there are no rates.
#[derive(Debug, thiserror::Error)]
pub enum LinearError {
    /// Too few steps.
    #[error("{given} measured steps of computing, at least {least} are needed")]
    TooFew {
        /// Steps given.
        given: usize,
        /// Steps needed.
        least: usize,
    },
    /// A step that says nothing.
    #[error("measured step {index}: {what}")]
    Measured {
        /// Index, from 0.
        index: usize,
        /// What is wrong.
        what: &'static str,
    },
    /// The numbers are such that no rates explain them.
    #[error("no rates can be found: the measured numbers leave the range of numbers")]
    Numbers,
    /// The calibration is of something else.
    #[error("the calibration is for {what} {fitted}, not for {asked}")]
    Mismatch {
        /// `model`, `weights`, `KV type`, `GPU` or `device`.
        what: &'static str,
        /// What was measured.
        fitted: String,
        /// What is to be priced.
        asked: String,
    },
    /// The text is not TOML, or its fields are not those of a calibration.
    #[error("calibration: {0}")]
    Toml(#[from] toml::de::Error),
    /// The fields contradict each other.
    #[error("calibration: {0}")]
    Content(String),
    /// The calibration cannot be written.
    #[error("calibration: {0}")]
    Write(#[from] toml::ser::Error),
}

/// Finds the rates that explain measured steps, how sure they are, and how well they predict what
/// they have not seen. Equal input gives equal results.
///
/// # Errors
/// `TooFew`, or `Measured` for a step that says nothing.
pub fn fit(measured: &[Measured], layout: &Layout, options: &FitOptions) -> Result<Fit, LinearError> {
    check(measured)?;
    let steps: Vec<Step> = measured.iter().map(|measured| Step::new(measured, layout)).collect();
    let seen: Vec<usize> = (0..steps.len()).filter(|&at| !measured[at].held_out).collect();
    let whole =
        |chosen: &[usize]| -> Vec<(usize, f64)> { chosen.iter().map(|&at| (at, steps[at].ns)).collect() };
    let rates = solve(&steps, &whole(&seen), layout)?;
    let mut unseen_ns: Vec<f64> = steps.iter().map(|step| step.predict(&rates)).collect();
    let mut random = SplitMix64::new(options.seed);
    for part in parts(&seen, options.folds, &mut random) {
        let rest: Vec<usize> = seen.iter().copied().filter(|at| !part.contains(at)).collect();
        let rates = solve(&steps, &whole(&rest), layout)?;
        part.iter().for_each(|&at| unseen_ns[at] = steps[at].predict(&rates));
    }
    let (mut draws, mut errors) = (Vec::new(), Vec::new());
    for _ in 0..options.draws {
        let drawn = draw(measured, &seen, &mut random);
        let Ok(rates) = solve(&steps, &drawn, layout) else { continue };
        let is_left_out = |at: &&usize| drawn.iter().all(|(taken, _)| taken != *at);
        let computed = seen.iter().filter(|&&at| steps[at].kind != Kind::Moves);
        errors
            .extend(computed.filter(is_left_out).map(|&at| (steps[at].ns / steps[at].predict(&rates)).ln()));
        draws.push(rates);
    }
    errors.retain(|error| error.is_finite());
    errors.sort_unstable_by(f64::total_cmp);
    Ok(Fit { linear: Linear::new(layout.clone(), rates), draws, errors, unseen_ns })
}

fn check(measured: &[Measured]) -> Result<(), LinearError> {
    let rounds = measured.first().map_or(0, |first| first.rounds_ns.len());
    for (index, step) in measured.iter().enumerate() {
        let what = if step.work.tokens == 0 && step.work.moves.is_empty() {
            "it does nothing"
        } else if step.work.tokens > 0 && !step.work.moves.is_empty() {
            "it computes and moves at once"
        } else if step.rounds_ns.is_empty() {
            "no round of it was measured"
        } else if step.rounds_ns.len() != rounds {
            "it has other rounds than the first"
        } else if !step.rounds_ns.iter().all(|round| round.is_finite() && *round > 0.0) {
            "it takes no time, or no finite one"
        } else if !(step.weight.is_finite() && step.weight >= 0.0) {
            "the weight is not a number from 0 up"
        } else {
            continue;
        };
        return Err(LinearError::Measured { index, what });
    }
    let given = measured.iter().filter(|step| step.work.tokens > 0 && !step.held_out).count();
    if given < MEASURED_MIN {
        return Err(LinearError::TooFew { given, least: MEASURED_MIN });
    }
    Ok(())
}

/// A measured step as the solver sees it.
struct Step {
    kind: Kind,
    features: Vec<f64>,
    ns: f64,
    weight: f64,
}

impl Step {
    fn new(measured: &Measured, layout: &Layout) -> Self {
        Step {
            kind: Kind::of(&measured.work),
            features: layout.features(&measured.work),
            ns: measured.ns(),
            weight: measured.weight,
        }
    }

    fn predict(&self, rates: &[f64]) -> f64 {
        self.features.iter().zip(rates).map(|(feature, rate)| feature * rate).sum()
    }
}

/// Rates for chosen steps, each with the time that it is said to take.
fn solve(steps: &[Step], chosen: &[(usize, f64)], layout: &Layout) -> Result<Vec<f64>, LinearError> {
    let of = |is_moves: bool| -> Vec<(&Step, f64)> {
        let chosen = chosen.iter().map(|&(at, ns)| (&steps[at], ns));
        chosen.filter(|(step, _)| (step.kind == Kind::Moves) == is_moves).collect()
    };
    let (computing, all) = (layout.computing(), layout.len());
    let mut rates = solve_columns(&of(false), 0..computing)?;
    rates.extend(solve_columns(&of(true), computing..all)?);
    Ok(rates)
}

fn solve_columns(steps: &[(&Step, f64)], columns: std::ops::Range<usize>) -> Result<Vec<f64>, LinearError> {
    let size = columns.len();
    if steps.is_empty() {
        return Ok(vec![0.0; size]);
    }
    // Rows are shares of the measured time, columns have length 1.
    let mut rows = DMatrix::from_fn(steps.len(), size, |row, column| {
        steps[row].0.features[columns.start + column] / steps[row].1
    });
    let lengths: Vec<f64> = rows.column_iter().map(|column| column.norm()).collect();
    for (mut column, &length) in rows.column_iter_mut().zip(&lengths) {
        if length > 0.0 {
            column /= length;
        }
    }
    let mut weights: Vec<f64> = steps.iter().map(|(step, _)| step.weight).collect();
    let mut solution = DVector::zeros(size);
    for _ in 0..REWEIGHTINGS {
        let mut weighted = rows.clone();
        for (mut row, weight) in weighted.row_iter_mut().zip(&weights) {
            row *= *weight;
        }
        let gram = rows.tr_mul(&weighted) + DMatrix::identity(size, size) * RIDGE;
        let rhs = weighted.row_sum_tr();
        solution = nnls(&gram, &rhs).ok_or(LinearError::Numbers)?;
        let ratios = &rows * &solution;
        for ((weight, ratio), (step, _)) in weights.iter_mut().zip(ratios.iter()).zip(steps) {
            *weight = step.weight * log_share(*ratio) / (1.0 + (log(*ratio) / NOISE).powi(2)).sqrt();
        }
    }
    let rate = |(number, &length): (&f64, &f64)| if length > 0.0 { number / length } else { 0.0 };
    Ok(solution.iter().zip(&lengths).map(rate).collect())
}

/// ln of predicted over measured, kept from running away.
fn log(ratio: f64) -> f64 {
    ratio.clamp(1e-3, 1e3).ln()
}

/// What turns the square of a relative error into that of a logarithm.
fn log_share(ratio: f64) -> f64 {
    let off = ratio.clamp(1e-3, 1e3) - 1.0;
    if off.abs() < 1e-6 { 1.0 } else { (log(ratio) / off).powi(2) }
}

/// Deals steps out to parts of about equal size.
fn parts(seen: &[usize], count: usize, random: &mut SplitMix64) -> Vec<Vec<usize>> {
    let mut order = seen.to_vec();
    for last in (1..order.len()).rev() {
        order.swap(last, below(random, last + 1));
    }
    let count = count.min(order.len());
    (0..count).map(|part| order.iter().copied().skip(part).step_by(count).collect()).collect()
}

/// A bootstrap draw: steps with their means over the rounds drawn.
fn draw(measured: &[Measured], seen: &[usize], random: &mut SplitMix64) -> Vec<(usize, f64)> {
    let rounds = measured[seen[0]].rounds_ns.len();
    let drawn: Vec<usize> = (0..rounds).map(|_| below(random, rounds)).collect();
    let mut chosen = Vec::with_capacity(seen.len());
    for kind in Kind::ALL {
        let of_kind: Vec<usize> =
            seen.iter().copied().filter(|&at| Kind::of(&measured[at].work) == kind).collect();
        for _ in 0..of_kind.len() {
            let at = of_kind[below(random, of_kind.len())];
            let rounds_ns: Vec<f64> = drawn.iter().map(|&round| measured[at].rounds_ns[round]).collect();
            chosen.push((at, mean(&rounds_ns)));
        }
    }
    chosen
}

/// An index below `end`, at least 1.
fn below(random: &mut SplitMix64, end: usize) -> usize {
    (random.bits() % end as u64) as usize
}

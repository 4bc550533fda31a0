//! The file of a calibration: what was measured on what, the rates, and how sure they are.

use super::fit::{Fit, Kind, LinearError, Measured, median};
use super::{Layout, Linear};
use crate::cost::{CostModel, Work};
use crate::hardware::Gpu;
use crate::model::{KvType, Model, WeightType};
use serde::{Deserialize, Serialize};

/// Quantiles of the errors that a calibration keeps.
const QUANTILES: usize = 101;
/// Mean relative error of decode steps that a calibration should not exceed, as a share.
const GATE_DECODE: f64 = 0.05;
/// The same for steps with prompts.
const GATE_PROMPTS: f64 = 0.08;

/// What was measured, on what, and how.
#[derive(Clone, Debug, PartialEq)]
pub struct Made {
    /// The model.
    pub model: Model,
    /// How its weights were stored.
    pub weights: WeightType,
    /// How K and V were stored.
    pub kv: KvType,
    /// The device of the catalogue in whose place it stands: `cpu` for every processor.
    pub gpu: String,
    /// The device, in words.
    pub device: String,
    /// Threads that computed.
    pub threads: u32,
    /// Seed of the order, of the tokens and of the bootstrap.
    pub seed: u64,
}

/// A calibration of the engine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Calibration {
    /// How its weights were stored.
    pub weights: WeightType,
    /// How K and V were stored.
    pub kv: KvType,
    /// The device of the catalogue in whose place it stands.
    pub gpu: String,
    /// The device, in words.
    pub device: String,
    /// Threads that computed.
    pub threads: u32,
    /// Times that every step was measured.
    pub rounds: u32,
    /// Median spread of a step over the rounds, as a share of its time.
    pub noise: f64,
    /// Spread of whole rounds: how unevenly the machine ran while it was measured, as a share.
    pub drift: f64,
    /// Seed of the order, of the tokens and of the bootstrap.
    pub seed: u64,
    /// Quantiles 0, 1 ... 100 % of ln(measured / predicted) at steps that a draw left out.
    pub errors: Vec<f64>,
    /// Rates of every bootstrap draw, in the order of the coefficients, ns.
    pub draws: Vec<Vec<f64>>,
    /// Mean relative errors.
    pub held_out: Errors,
    /// The same by cross-validation, for the steps that the rates were fitted on.
    pub cross_validated: Errors,
    /// Which features there are.
    pub layout: Layout,
    /// The model.
    pub model: Model,
    /// The rates.
    pub coefficient: Vec<Coefficient>,
    /// The measured steps.
    pub point: Vec<Point>,
}

/// Mean relative errors by kind, as shares; none where no such step was measured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Errors {
    /// Of decode steps.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decode: Option<f64>,
    /// Of steps with prompts alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefill: Option<f64>,
    /// Of steps with both.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mixed: Option<f64>,
    /// Of moves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moves: Option<f64>,
}

impl Errors {
    /// The error of a kind.
    pub fn of(&self, kind: Kind) -> Option<f64> {
        match kind {
            Kind::Decode => self.decode,
            Kind::Prefill => self.prefill,
            Kind::Mixed => self.mixed,
            Kind::Moves => self.moves,
        }
    }

    /// What the error of a kind should not exceed; moves have no gate.
    pub fn gate(kind: Kind) -> Option<f64> {
        match kind {
            Kind::Decode => Some(GATE_DECODE),
            Kind::Prefill | Kind::Mixed => Some(GATE_PROMPTS),
            Kind::Moves => None,
        }
    }

    /// Means over some of the points, weighted by what they stand for.
    fn new<'a>(points: impl Iterator<Item = &'a Point> + Clone) -> Self {
        let of = |kind| {
            let chosen = points.clone().filter(|point| point.kind == kind);
            let (sum, weights) = chosen.fold((0.0, 0.0), |(sum, weights), point| {
                (sum + point.weight * point.error().abs(), weights + point.weight)
            });
            (weights > 0.0).then(|| sum / weights)
        };
        Errors {
            decode: of(Kind::Decode),
            prefill: of(Kind::Prefill),
            mixed: of(Kind::Mixed),
            moves: of(Kind::Moves),
        }
    }
}

/// The time of one unit of a feature.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Coefficient {
    /// The feature, in words.
    pub name: String,
    /// Time, ns.
    pub ns: f64,
    /// 2.5 % of the draws lie below this, ns.
    pub low_ns: f64,
    /// 2.5 % of the draws lie above this, ns.
    pub high_ns: f64,
}

/// A measured step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Point {
    /// What it does.
    pub kind: Kind,
    /// Whether the rates were fitted without it.
    pub held_out: bool,
    /// Mean time over the rounds, ns.
    pub ns: f64,
    /// Spread over the rounds, as a share.
    pub spread: f64,
    /// What is predicted by rates that have not seen it, ns.
    pub predicted_ns: f64,
    /// How much it counts.
    pub weight: f64,
    /// What it does, exactly.
    pub work: Work,
}

impl Point {
    /// Predicted over measured, less 1.
    pub fn error(&self) -> f64 {
        self.predicted_ns / self.ns - 1.0
    }
}

impl Calibration {
    /// Puts together what was measured and what a fit made of it.
    pub fn new(made: Made, measured: &[Measured], fit: &Fit) -> Self {
        let point = |(measured, &predicted_ns): (&Measured, &f64)| Point {
            kind: Kind::of(&measured.work),
            held_out: measured.held_out,
            ns: measured.ns(),
            spread: measured.spread(),
            predicted_ns,
            weight: measured.weight,
            work: measured.work.clone(),
        };
        let points: Vec<Point> = measured.iter().zip(&fit.unseen_ns).map(point).collect();
        let names = fit.linear.layout().names().into_iter();
        let coefficient = names.zip(fit.linear.rates()).enumerate().map(|(at, (name, &ns))| {
            let mut drawn: Vec<f64> = fit.draws.iter().map(|draw| draw[at]).collect();
            drawn.sort_unstable_by(f64::total_cmp);
            let quantile = |share: f64| {
                let last = drawn.len().saturating_sub(1) as f64;
                drawn.get((last * share).round() as usize).copied().unwrap_or(ns)
            };
            Coefficient { name, ns, low_ns: quantile(0.025), high_ns: quantile(0.975) }
        });
        let quantile = |index: usize| short(fit.errors[index * (fit.errors.len() - 1) / (QUANTILES - 1)]);
        let errors = if fit.errors.is_empty() { Vec::new() } else { (0..QUANTILES).map(quantile).collect() };
        Calibration {
            weights: made.weights,
            kv: made.kv,
            gpu: made.gpu,
            device: made.device,
            threads: made.threads,
            rounds: measured.first().map_or(0, |first| first.rounds_ns.len() as u32),
            noise: median(points.iter().map(|point| point.spread).collect()),
            drift: drift(measured),
            seed: made.seed,
            errors,
            draws: fit.draws.iter().map(|draw| draw.iter().copied().map(short).collect()).collect(),
            held_out: Errors::new(points.iter().filter(|point| point.held_out)),
            cross_validated: Errors::new(points.iter().filter(|point| !point.held_out)),
            layout: fit.linear.layout().clone(),
            model: made.model,
            coefficient: coefficient.collect(),
            point: points,
        }
    }

    /// Reads a calibration that [`Calibration::to_toml`] wrote.
    ///
    /// # Errors
    /// `Toml` with line and column, `Content` if its parts contradict each other.
    pub fn from_toml(text: &str) -> Result<Self, LinearError> {
        let read: Self = toml::from_str(text)?;
        read.check_content().map_err(LinearError::Content)?;
        Ok(read)
    }

    fn check_content(&self) -> Result<(), String> {
        let of_model = Layout::new(&self.model, 1);
        if (&self.layout.classes, &self.layout.layers, &self.layout.windows)
            != (&of_model.classes, &of_model.layers, &of_model.windows)
        {
            return Err("the classes of the layout are not those of the model".to_owned());
        }
        if !self.layout.ranges.is_sorted_by(|a, b| a < b) || self.layout.ranges.first() != Some(&0) {
            return Err("the ranges of the layout do not rise from 0".to_owned());
        }
        let names = self.layout.names();
        if !self.coefficient.iter().map(|coefficient| &coefficient.name).eq(&names) {
            return Err(format!("expected {} coefficients: {}", names.len(), names.join("; ")));
        }
        let is_rate = |number: &f64| number.is_finite() && *number >= 0.0;
        if let Some(wrong) = self.coefficient.iter().find(|coefficient| !is_rate(&coefficient.ns)) {
            return Err(format!("coefficient {:?} is not a number from 0 up", wrong.name));
        }
        let is_draw = |draw: &Vec<f64>| draw.len() == names.len() && draw.iter().all(is_rate);
        if let Some(at) = self.draws.iter().position(|draw| !is_draw(draw)) {
            return Err(format!("draw {at} is not {} numbers from 0 up", names.len()));
        }
        if !(self.errors.is_empty() || self.errors.len() == QUANTILES)
            || self.errors.iter().any(|error| !error.is_finite())
        {
            return Err(format!("expected {QUANTILES} quantiles of errors, or none"));
        }
        Ok(())
    }

    /// The calibration as TOML.
    ///
    /// # Errors
    /// `Write` for what TOML cannot hold.
    pub fn to_toml(&self) -> Result<String, LinearError> {
        Ok(toml::to_string(self)?)
    }

    /// The cost model with the most likely rates.
    ///
    /// # Errors
    /// `Mismatch` if the calibration is of another model, type or device.
    pub fn cost(
        &self,
        model: &Model,
        weights: WeightType,
        kv: KvType,
        gpu: &Gpu,
    ) -> Result<Linear, LinearError> {
        self.check(model, weights, kv, gpu)?;
        let rates = self.coefficient.iter().map(|coefficient| coefficient.ns);
        Ok(Linear::new(self.layout.clone(), rates.collect()))
    }

    /// One cost model per bootstrap draw: simulate with each to see how a metric spreads.
    pub fn resampled(&self) -> Vec<Linear> {
        self.draws.iter().map(|rates| Linear::new(self.layout.clone(), rates.clone())).collect()
    }

    /// Bounds between which a step lies with probability `level` (0.95, say), if it resembles the
    /// measured ones; none without a bootstrap.
    pub fn interval_ns(&self, cost: &Linear, work: &Work, level: f64) -> Option<(u64, u64)> {
        let last = self.errors.len().checked_sub(1)?;
        let tail = ((1.0 - level.clamp(0.0, 1.0)) / 2.0 * last as f64).floor() as usize;
        let (low, high) = (self.errors.get(tail)?, self.errors.get(last - tail.min(last))?);
        let ns = cost.step_ns(work) as f64;
        Some(((ns * low.exp()) as u64, (ns * high.exp()) as u64))
    }

    /// Whether a device in words is the one that was measured.
    ///
    /// # Errors
    /// `Mismatch` if it is another.
    pub fn check_device(&self, device: &str) -> Result<(), LinearError> {
        same("device", &self.device, device)
    }

    fn check(&self, model: &Model, weights: WeightType, kv: KvType, gpu: &Gpu) -> Result<(), LinearError> {
        same("model", &self.model.name, &model.name)?;
        same("weights", self.weights.name(), weights.name())?;
        same("KV type", self.kv.name(), kv.name())?;
        same("GPU", &self.gpu, &gpu.name)?;
        if self.model != *model {
            let (what, fitted) = ("model", format!("{} of another shape", self.model.name));
            return Err(LinearError::Mismatch { what, fitted, asked: format!("{model:?}") });
        }
        Ok(())
    }
}

fn same(what: &'static str, fitted: &str, asked: &str) -> Result<(), LinearError> {
    if fitted == asked {
        return Ok(());
    }
    Err(LinearError::Mismatch { what, fitted: fitted.to_owned(), asked: asked.to_owned() })
}

/// Six significant digits: the file has thousands of such numbers.
fn short(number: f64) -> f64 {
    if number == 0.0 || !number.is_finite() {
        return number;
    }
    let scale = 10f64.powi(5 - number.abs().log10().floor() as i32);
    (number * scale).round() / scale
}

/// How unevenly rounds ran: the spread of the median step of each.
fn drift(measured: &[Measured]) -> f64 {
    let rounds = measured.first().map_or(0, |first| first.rounds_ns.len());
    let pace = |round: usize| {
        let steps = measured.iter().map(|step| step.rounds_ns[round] / step.ns());
        median(steps.collect())
    };
    Measured {
        work: Work::default(),
        rounds_ns: (0..rounds).map(pace).collect(),
        weight: 1.0,
        held_out: false,
    }
    .spread()
}

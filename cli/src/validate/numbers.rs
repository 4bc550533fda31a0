//! What is compared: numbers of a run, measured ones beside predicted ones.

use sim::Totals;
use sim::cost::CostModel;
use sim::cost::linear::{Kind, Linear};
use traces::Quantiles;

use super::run::Recorded;

/// Shares of the draws below and above an interval.
const TAIL: f64 = 0.025;

/// A number that a run has.
pub struct Metric {
    /// Name in tables and files.
    pub name: &'static str,
    /// Most that the prediction may be off, as a share.
    pub gate: Option<f64>,
    pub of: fn(&Totals) -> f64,
}

fn ms(quantiles: &Quantiles, q: f64) -> f64 {
    quantiles.quantile(q).map_or(f64::NAN, |ns| ns as f64 / 1e6)
}

fn mean_ms(quantiles: &Quantiles) -> f64 {
    quantiles.mean().map_or(f64::NAN, |ns| ns / 1e6)
}

/// All numbers, in the order of the table.
pub const METRICS: &[Metric] = &[
    Metric {
        name: "throughput tok/s",
        gate: None,
        of: |totals| match totals.duration_ns() {
            0 => f64::NAN,
            ns => totals.completed_tokens as f64 / (ns as f64 / 1e9),
        },
    },
    Metric { name: "ttft mean ms", gate: Some(0.05), of: |totals| mean_ms(&totals.ttft) },
    Metric { name: "ttft p99 ms", gate: None, of: |totals| ms(&totals.ttft, 0.99) },
    Metric { name: "tpot mean ms", gate: Some(0.03), of: |totals| mean_ms(&totals.tpot) },
    Metric { name: "tpot p99 ms", gate: None, of: |totals| ms(&totals.tpot, 0.99) },
    Metric { name: "latency mean ms", gate: Some(0.03), of: |totals| mean_ms(&totals.latency) },
    Metric { name: "latency p99 ms", gate: None, of: |totals| ms(&totals.latency, 0.99) },
    Metric { name: "steps", gate: None, of: |totals| totals.steps as f64 },
    Metric { name: "moves ms", gate: None, of: |totals| totals.stall_ns as f64 / 1e6 },
    Metric { name: "defrag passes", gate: None, of: |totals| totals.defrag_passes as f64 },
    Metric { name: "preemptions", gate: None, of: |totals| totals.preemptions as f64 },
    Metric { name: "crashes", gate: None, of: |totals| totals.crashes as f64 },
];

/// The number by which policies are ranked, and whether more is better.
pub const RANKED: [(usize, bool); 2] = [(0, true), (5, false)];

/// A number of a case.
#[derive(Clone, Debug)]
pub struct Compared {
    /// Mean over the repeated runs.
    pub measured: f64,
    /// Least and most of them.
    pub runs: (f64, f64),
    pub predicted: f64,
    /// 95 % of the simulations with drawn rates lie between these.
    pub interval: Option<(f64, f64)>,
}

impl Compared {
    pub fn new(measured: &[f64], predicted: f64, mut draws: Vec<f64>) -> Self {
        draws.retain(|draw| draw.is_finite());
        draws.sort_by(f64::total_cmp);
        let tail = (draws.len() as f64 * TAIL) as usize;
        let interval = draws.get(tail).copied().zip(draws.iter().rev().nth(tail).copied());
        Compared {
            measured: measured.iter().sum::<f64>() / measured.len() as f64,
            runs: (
                measured.iter().copied().fold(f64::INFINITY, f64::min),
                measured.iter().copied().fold(f64::NEG_INFINITY, f64::max),
            ),
            predicted,
            interval,
        }
    }

    /// How far the prediction is off, as a share of what was measured; none where nothing was.
    pub fn error(&self) -> Option<f64> {
        let error = self.predicted / self.measured - 1.0;
        if self.predicted == self.measured {
            Some(0.0)
        } else {
            Some(error).filter(|error| error.is_finite())
        }
    }

    /// Whether the prediction keeps to a gate.
    pub fn keeps(&self, gate: f64) -> Option<bool> {
        self.error().map(|error| error.abs() <= gate)
    }
}

/// How well the time model prices the engine's own steps.
#[derive(Clone, Debug, Default)]
pub struct TimeErrors {
    /// Of the sum of all steps, as a share.
    pub total: f64,
    /// Mean of the absolute relative errors of the steps of each kind, if there are any.
    pub of_kind: Vec<(Kind, Option<f64>)>,
}

impl TimeErrors {
    pub fn new<'a>(steps: impl Iterator<Item = &'a Recorded> + Clone, cost: &Linear) -> Self {
        let price = |step: &Recorded| (cost.step_ns(&step.work) as f64, step.step_ns.max(1) as f64);
        let sums = steps.clone().map(price).fold((0.0, 0.0), |sum, step| (sum.0 + step.0, sum.1 + step.1));
        let of = |kind: Kind| {
            let errors = steps.clone().filter(|step| Kind::of(&step.work) == kind).map(|step| {
                let (predicted, measured) = price(step);
                (predicted / measured - 1.0).abs()
            });
            let (count, sum) = errors.fold((0, 0.0), |(count, sum), error| (count + 1, sum + error));
            (kind, (count > 0).then(|| sum / f64::from(count)))
        };
        TimeErrors { total: sums.0 / sums.1 - 1.0, of_kind: Kind::ALL.into_iter().map(of).collect() }
    }
}

/// Whether two policies can be told apart by repeated runs: their ranges do not overlap.
pub fn differ(a: &Compared, b: &Compared) -> bool {
    a.runs.0 > b.runs.1 || b.runs.0 > a.runs.1
}

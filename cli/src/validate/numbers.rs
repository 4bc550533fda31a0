//! What is compared: numbers of a run, measured ones beside predicted ones.

use report::stats::{Difference, interval, paired_difference};
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
    Metric { name: "ttft p99 ms", gate: Some(0.08), of: |totals| ms(&totals.ttft, 0.99) },
    Metric { name: "tpot mean ms", gate: Some(0.03), of: |totals| mean_ms(&totals.tpot) },
    Metric { name: "tpot p99 ms", gate: Some(0.08), of: |totals| ms(&totals.tpot, 0.99) },
    Metric { name: "latency mean ms", gate: Some(0.03), of: |totals| mean_ms(&totals.latency) },
    Metric { name: "latency p99 ms", gate: Some(0.08), of: |totals| ms(&totals.latency, 0.99) },
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
    /// That of every run.
    pub runs: Vec<f64>,
    pub predicted: f64,
    /// 95 % of the simulations with drawn rates lie between these.
    pub interval: Option<(f64, f64)>,
}

/// Whether a prediction keeps to a gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It does.
    Pass,
    /// It does not.
    Fail,
    /// It does not keep to it by the mean of the runs, but the runs differ so much that it may.
    Unsure,
    /// There is nothing to compare it with.
    Nothing,
}

impl Compared {
    pub fn new(runs: Vec<f64>, predicted: f64, mut draws: Vec<f64>) -> Self {
        draws.retain(|draw| draw.is_finite());
        draws.sort_by(f64::total_cmp);
        let tail = (draws.len() as f64 * TAIL) as usize;
        let interval = draws.get(tail).copied().zip(draws.iter().rev().nth(tail).copied());
        Compared { measured: runs.iter().sum::<f64>() / runs.len() as f64, runs, predicted, interval }
    }

    /// The least and the most of the runs.
    pub fn range(&self) -> (f64, f64) {
        self.runs
            .iter()
            .fold((f64::INFINITY, f64::NEG_INFINITY), |(least, most), &run| (least.min(run), most.max(run)))
    }

    /// Half the 95 % interval of the measured mean, as a share of it; none for a single run.
    pub fn half_width(&self) -> Option<f64> {
        let share = interval(&self.runs)?.half_width / self.measured;
        Some(share).filter(|share| share.is_finite())
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
    pub fn keeps(&self, gate: f64) -> Verdict {
        match self.error().map(f64::abs) {
            None => Verdict::Nothing,
            Some(error) if error <= gate => Verdict::Pass,
            Some(error) if error - self.half_width().unwrap_or(0.0) <= gate => Verdict::Unsure,
            Some(_) => Verdict::Fail,
        }
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

/// Whether two policies can be told apart: the 95 % interval of their difference, run by run, is without
/// zero. Single runs count for what they are.
pub fn differ(a: &Compared, b: &Compared) -> bool {
    match paired_difference(&a.runs, &b.runs) {
        Some(Difference::Exact { value, .. }) => value != 0.0,
        Some(Difference::Spread(interval)) => !interval.covers_zero(),
        None => a.measured != b.measured,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compared(runs: &[f64], predicted: f64) -> Compared {
        Compared::new(runs.to_vec(), predicted, Vec::new())
    }

    #[test]
    fn a_gate_is_missed_only_where_the_runs_agree_that_it_is() {
        assert_eq!(compared(&[100.0, 101.0, 99.0], 102.0).keeps(0.03), Verdict::Pass);
        assert_eq!(compared(&[100.0, 101.0, 99.0], 110.0).keeps(0.03), Verdict::Fail);
        assert_eq!(compared(&[80.0, 120.0, 100.0], 110.0).keeps(0.03), Verdict::Unsure);
        assert_eq!(compared(&[100.0], 110.0).keeps(0.03), Verdict::Fail);
        assert_eq!(compared(&[0.0, 0.0], 0.0).keeps(0.03), Verdict::Pass);
        assert_eq!(compared(&[0.0, 0.0], 1.0).keeps(0.03), Verdict::Nothing);
    }

    #[test]
    fn policies_differ_if_they_do_run_by_run() {
        let slow_machine_for_a_while = compared(&[10.0, 20.0, 10.0], 0.0);
        assert!(differ(&slow_machine_for_a_while, &compared(&[11.0, 21.1, 11.05], 0.0)));
        assert!(!differ(&slow_machine_for_a_while, &compared(&[11.0, 19.0, 10.0], 0.0)));
        assert!(differ(&compared(&[1.0], 0.0), &compared(&[2.0], 0.0)));
        assert!(!differ(&compared(&[1.0, 2.0], 0.0), &compared(&[1.0, 2.0], 0.0)));
    }
}

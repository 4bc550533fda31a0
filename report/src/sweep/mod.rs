//! A sweep taken apart: what was varied, what came of every point, and what follows from it.
//!
//! A *name* is a policy, or a row of the sweep where it has rows. A *knob* is a setting that varies, or several
//! that only ever vary together. A *setting* is a value for every knob, a *point* a name under a setting on a
//! trace, and it has a run per seed. Everything is compared under equal settings, on the same trace and seed.

mod front;
mod heat;
mod knobs;
mod ranking;
mod sensitivity;

use std::collections::BTreeMap;

use crate::metric::{METRICS, Metric, metric};
use crate::row::Summary;
use crate::stats;

pub use front::{Front, Pair, fronts};
pub use heat::{Heat, HeatPanel, heat};
pub use knobs::Knob;
pub use ranking::{Flip, Place, Ranking, flips, rankings};
pub use sensitivity::{Change, Factor, Sensitivity, ValueEffect, sensitivities};

/// One simulation of a sweep.
#[derive(Clone, Debug, PartialEq)]
pub struct Trial {
    /// Row of the sweep, else the policy.
    pub name: String,
    /// Its workload, as results call it.
    pub trace: String,
    /// Seed of the workload.
    pub seed: u64,
    /// Values of the settings that vary, in the order of their keys.
    pub values: Vec<String>,
    /// What came of it.
    pub outcome: Outcome,
}

/// What came of a simulation.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// Its row.
    Done(Box<Summary>),
    /// It failed.
    Failed,
    /// It was not run yet.
    Missing,
}

/// A name under a setting on a trace.
#[derive(Clone, Debug)]
pub struct Point<'a> {
    /// Number of the name.
    pub name: usize,
    /// Number of the trace.
    pub trace: usize,
    /// Number of the value of every knob.
    pub setting: Vec<usize>,
    /// Results by seed; a model that could not be loaded leaves none.
    pub runs: BTreeMap<u64, &'a Summary>,
    /// Simulations that failed, or whose model could not be loaded.
    pub failed: usize,
    /// Simulations that are missing.
    pub missing: usize,
}

impl Point<'_> {
    /// A metric over the seeds that have one.
    pub fn samples(&self, metric: &Metric) -> Vec<f64> {
        self.runs.values().filter_map(|row| metric.value(row)).collect()
    }

    /// Mean of a metric and, where seeds differ, half the width of its 95 % interval.
    pub fn estimate(&self, metric: &Metric) -> Option<(f64, Option<f64>)> {
        let samples = self.samples(metric);
        let half_width = stats::interval(&samples).map(|i| i.half_width).filter(|w| *w > 0.0);
        Some((stats::mean(&samples)?, half_width))
    }
}

/// All points of a sweep.
pub struct Grid<'a> {
    /// What names are: `policy` or `row`.
    pub kind: &'static str,
    /// Names in the order of the list.
    pub names: Vec<&'a str>,
    /// Traces in the order of the list.
    pub traces: Vec<&'a str>,
    /// What varies beside them.
    pub knobs: Vec<Knob>,
    /// In the order of the list.
    pub points: Vec<Point<'a>>,
    /// What is compared.
    pub target: &'static Metric,
    /// Number of the name that others are compared with.
    pub reference: usize,
    /// Per name, whether it is a bound: it can neither win nor move anything.
    pub is_bound: Vec<bool>,
}

impl<'a> Grid<'a> {
    /// Sorts trials by what they are; `keys` name their values. Without a target it is goodput, or throughput where
    /// nobody kept the SLO. A reference that nothing is called is the first name.
    pub fn new(
        keys: &[String],
        trials: &'a [Trial],
        reference: Option<&str>,
        bounds: &[String],
        target: Option<&'static Metric>,
    ) -> Grid<'a> {
        let (knobs, settings) = knobs::knobs(keys, trials);
        let (mut names, mut traces): (Vec<&str>, Vec<&str>) = (Vec::new(), Vec::new());
        let mut points: Vec<Point> = Vec::new();
        let mut found: BTreeMap<(usize, usize, Vec<usize>), usize> = BTreeMap::new();
        let mut bound = BTreeMap::new();
        for (trial, setting) in trials.iter().zip(settings) {
            let (name, trace) = (number_of(&mut names, &trial.name), number_of(&mut traces, &trial.trace));
            let at = *found.entry((name, trace, setting.clone())).or_insert_with(|| {
                let runs = BTreeMap::new();
                points.push(Point { name, trace, setting, runs, failed: 0, missing: 0 });
                points.len() - 1
            });
            let point = &mut points[at];
            match &trial.outcome {
                Outcome::Done(row) if row.load_error.is_empty() => {
                    point.runs.entry(trial.seed).or_insert(row);
                }
                Outcome::Done(_) | Outcome::Failed => point.failed += 1,
                Outcome::Missing => point.missing += 1,
            }
            if let Outcome::Done(row) = &trial.outcome {
                let is_bound = bounds.iter().any(|bound| *bound == row.policy || *bound == trial.name);
                *bound.entry(name).or_insert(true) &= is_bound;
            }
        }
        let is_named = trials.iter().any(|t| matches!(&t.outcome, Outcome::Done(row) if !row.row.is_empty()));
        let by_policy = |reference: &str| {
            let is_it = |t: &&Trial| matches!(&t.outcome, Outcome::Done(row) if row.policy == reference);
            let trial = trials.iter().find(is_it)?;
            names.iter().position(|name| *name == trial.name)
        };
        let known = |reference: &str| names.iter().position(|name| *name == reference);
        let reference = reference.and_then(|r| known(r).or_else(|| by_policy(r))).unwrap_or(0);
        let is_bound = (0..names.len()).map(|name| bound.get(&name).copied().unwrap_or(false)).collect();
        let target = target.or_else(|| default_target(trials)).unwrap_or(&METRICS[0]);
        let kind = if is_named { "row" } else { "policy" };
        Grid { kind, names, traces, knobs, points, target, reference, is_bound }
    }

    /// A setting in words: `num_ctx 512, victim lcf`; empty where nothing varies.
    pub fn setting(&self, setting: &[usize]) -> String {
        let parts = self.knobs.iter().zip(setting).flat_map(|(knob, &value)| knob.told(value));
        parts.collect::<Vec<_>>().join(", ")
    }

    /// Whether more of the target is better.
    pub fn is_higher_better(&self) -> bool {
        self.target.better != Some(stats::Better::Lower)
    }

    /// How much of the best a value reaches, 0 to 1; none where the best is nothing.
    pub(crate) fn share(&self, value: f64, best: f64) -> Option<f64> {
        let (part, whole) = if self.is_higher_better() { (value, best) } else { (best, value) };
        // The best of what is wished low is zero: only another zero reaches it.
        let share = if part == whole { 1.0 } else { part / whole };
        let is_nothing = value == 0.0 && best == 0.0;
        (!is_nothing && share.is_finite()).then_some(share)
    }

    /// The better of two values of the target.
    pub(crate) fn better(&self, a: f64, b: f64) -> f64 {
        if self.is_higher_better() { a.max(b) } else { a.min(b) }
    }
}

/// Goodput where an SLO was kept by anyone, else throughput.
fn default_target(trials: &[Trial]) -> Option<&'static Metric> {
    let is_any = |metric: &&'static Metric| {
        trials.iter().any(|trial| match &trial.outcome {
            Outcome::Done(row) => metric.value(row).is_some_and(|value| value > 0.0),
            _ => false,
        })
    };
    let mut prizes = ["goodput_requests_per_s", "throughput_tokens_per_s"].into_iter().filter_map(metric);
    prizes.clone().find(is_any).or_else(|| prizes.next_back())
}

/// Where a text stands in a list; at its end, if it was not there.
fn number_of<'a>(known: &mut Vec<&'a str>, text: &'a str) -> usize {
    known.iter().position(|one| *one == text).unwrap_or_else(|| {
        known.push(text);
        known.len() - 1
    })
}

/// The middle of some values; of two in the middle their mean. None without values.
pub(crate) fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let upper = *sorted.get(sorted.len() / 2)?;
    Some(if sorted.len().is_multiple_of(2) { (sorted[sorted.len() / 2 - 1] + upper) / 2.0 } else { upper })
}

//! What advice is to achieve: nothing lost, cut or corrupted, limits on latencies, then low latency.

use std::cmp::Ordering;

use report::Summary;
use report::number::{Unit, human};
use serde::Serialize;
use sim::Totals;

use crate::trouble::{Source, Trouble, usage};

/// Latencies that differ by less count as equal, so that nothing is changed for nothing.
const EQUAL_LATENCY: f64 = 1.005;

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Metric {
    Ttft,
    Tpot,
    Latency,
}

/// Which of its values counts.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Statistic {
    /// 0 to 1.
    Quantile(f64),
    Mean,
}

/// The most that a latency may be.
#[derive(Clone, Debug)]
pub struct Limit {
    /// As it was written: `ttft_p99=2s`.
    pub text: String,
    /// Name of the latency: `ttft_p99`.
    pub name: String,
    metric: Metric,
    statistic: Statistic,
    /// The limit, ms.
    pub most_ms: f64,
}

/// A list of limits.
#[derive(Clone, Debug)]
pub struct Objective {
    /// The limits, in the order given.
    pub limits: Vec<Limit>,
}

impl Objective {
    /// Reads `ttft_p99=2s,tpot_p99=80ms`.
    ///
    /// # Errors
    /// A limit that is none; the message points at it.
    pub fn parse(text: &str) -> Result<Self, Trouble> {
        let before = "--slo ";
        let source = Source::new("command line".into(), format!("{before}{text}"));
        let mut start = before.len();
        let mut limits: Vec<Limit> = Vec::new();
        for part in text.split(',') {
            let at = start..start + part.len();
            start = at.end + 1;
            let limit = Limit::parse(part).map_err(|message| usage(source.point(at.clone(), &message)))?;
            if limits.iter().any(|other| other.name == limit.name) {
                return Err(usage(source.point(at, &format!("{} has two limits", limit.name))));
            }
            limits.push(limit);
        }
        Ok(Objective { limits })
    }

    /// The limit of a latency, ms; none where there is none.
    pub fn most_ms(&self, prefix: &str) -> Option<f64> {
        let limits = self.limits.iter().filter(|limit| limit.name.starts_with(prefix));
        limits.map(|limit| limit.most_ms).min_by(f64::total_cmp)
    }

    /// In words.
    pub fn words(&self) -> String {
        let limits = self
            .limits
            .iter()
            .map(|limit| format!("{} at most {}", limit.name, human(limit.most_ms, Unit::Milliseconds)));
        let harm = "no lost request, no cut prompt or context, no foreign K/V".to_owned();
        std::iter::once(harm).chain(limits).collect::<Vec<_>>().join("; ")
    }
}

impl Limit {
    fn parse(text: &str) -> Result<Self, String> {
        let expected = "expected {ttft|tpot|latency}_{pN|mean}={N}{s|ms}, as ttft_p99=2s";
        let text = text.trim();
        let wrong = || format!("{text:?} is no limit; {expected}");
        let (name, value) = text.split_once('=').ok_or_else(wrong)?;
        let (metric, statistic) = name.split_once('_').ok_or_else(wrong)?;
        let metric = match metric {
            "ttft" => Metric::Ttft,
            "tpot" => Metric::Tpot,
            "latency" => Metric::Latency,
            _ => return Err(wrong()),
        };
        let statistic = match statistic.strip_prefix('p') {
            None if statistic == "mean" => Statistic::Mean,
            None => return Err(wrong()),
            Some(percent) => {
                let percent: f64 = percent.parse().map_err(|_| wrong())?;
                if !(percent > 0.0 && percent < 100.0) {
                    return Err(wrong());
                }
                Statistic::Quantile(percent / 100.0)
            }
        };
        let (number, factor) = match value.strip_suffix("ms") {
            Some(number) => (number, 1.0),
            None => (value.strip_suffix('s').ok_or_else(wrong)?, 1e3),
        };
        let number: f64 = number.trim().parse().map_err(|_| wrong())?;
        let most_ms = number * factor;
        if !(most_ms.is_finite() && most_ms > 0.0) {
            return Err(wrong());
        }
        Ok(Limit { text: text.to_owned(), name: name.to_owned(), metric, statistic, most_ms })
    }

    /// The latency of a run, ms; infinite where nothing was measured because nothing was answered.
    fn measure(&self, totals: &Totals) -> f64 {
        let quantiles = match self.metric {
            Metric::Ttft => &totals.ttft,
            Metric::Tpot => &totals.tpot,
            Metric::Latency => &totals.latency,
        };
        let ns = match self.statistic {
            Statistic::Mean => quantiles.mean(),
            Statistic::Quantile(q) => quantiles.quantile(q).map(|ns| ns as f64),
        };
        match ns {
            Some(ns) => ns / 1e6,
            // No request has two output tokens: there is no time between tokens to be too long.
            None if totals.completed > 0 => 0.0,
            None => f64::INFINITY,
        }
    }
}

/// What one simulation leaves for the judgement.
#[derive(Clone, Debug)]
pub struct Run {
    summary: Summary,
    /// Per limit the latency, ms.
    measured_ms: Vec<f64>,
}

impl Run {
    /// The run under an objective.
    pub fn new(summary: Summary, totals: &Totals, objective: &Objective) -> Self {
        let measured_ms = objective.limits.iter().map(|limit| limit.measure(totals)).collect();
        Run { summary, measured_ms }
    }
}

/// Simulated numbers of a setting: counts summed over seeds, latencies and rates as means over seeds. No
/// [`Summary`], which says what one seed did: a sum of several has no seed, no hash of events, no duration.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Numbers {
    pub requests: u64,
    pub completed: u64,
    pub failed: u64,
    pub rejected: u64,
    pub unfinished: u64,
    pub truncated: u64,
    pub shifted: u64,
    pub stopped_at_limit: u64,
    pub crashes: u64,
    pub corrupted_steps: u64,
    pub preemptions: u64,
    pub defrag_passes: u64,
    pub cells_copied: u64,
    pub freezes: u64,
    pub spilled_gib: f64,
    pub memory_gib: String,
    pub ttft_p50_ms: Option<f64>,
    pub ttft_p99_ms: Option<f64>,
    pub tpot_p99_ms: Option<f64>,
    pub latency_mean_ms: Option<f64>,
    pub goodput_requests_per_s: f64,
    pub throughput_tokens_per_s: f64,
}

impl Numbers {
    /// Requests without an answer.
    pub fn lost(&self) -> u64 {
        self.failed + self.rejected + self.unfinished
    }

    /// Requests whose prompt, context or answer was cut by the context limit.
    pub fn cut(&self) -> u64 {
        self.truncated + self.shifted + self.stopped_at_limit
    }
}

/// How well a setting does, over all its seeds.
#[derive(Clone, Debug)]
pub struct Score {
    /// The numbers.
    pub numbers: Numbers,
    /// Per limit the largest latency of any seed, ms.
    pub worst_ms: Vec<f64>,
    /// Mean latency per seed, ms.
    pub latencies_ms: Vec<f64>,
    /// By how much the limits are exceeded most, as a share; 0 where all are kept.
    over: f64,
    /// Whether K and V are stored in fewer bits than 16.
    quantised: u8,
}

impl Score {
    /// The score of a setting from a run for each seed.
    pub fn new(runs: &[&Run], objective: &Objective) -> Self {
        let sum = |of: fn(&Summary) -> u64| runs.iter().map(|run| of(&run.summary)).sum::<u64>();
        let mean = |of: fn(&Summary) -> Option<f64>| {
            let values: Vec<f64> = runs.iter().filter_map(|run| of(&run.summary)).collect();
            report::stats::mean(&values)
        };
        let rate = |of: fn(&Summary) -> f64| {
            let values: Vec<f64> = runs.iter().map(|run| of(&run.summary)).collect();
            report::stats::mean(&values).unwrap_or(0.0)
        };
        let first = runs.first().map(|run| &run.summary);
        let numbers = Numbers {
            requests: sum(|row| row.requests),
            completed: sum(|row| row.completed),
            failed: sum(|row| row.failed),
            rejected: sum(|row| row.rejected),
            unfinished: sum(|row| row.unfinished),
            truncated: sum(|row| row.truncated),
            shifted: sum(|row| row.shifted),
            stopped_at_limit: sum(|row| row.stopped_at_limit),
            crashes: sum(|row| row.crashes),
            corrupted_steps: sum(|row| row.corrupted_steps),
            preemptions: sum(|row| row.preemptions),
            defrag_passes: sum(|row| row.defrag_passes),
            cells_copied: sum(|row| row.cells_copied),
            freezes: sum(|row| row.freezes),
            spilled_gib: first.map_or(0.0, |row| row.spilled_gib),
            memory_gib: first.map_or(String::new(), |row| row.memory_gib.clone()),
            ttft_p50_ms: mean(|row| row.ttft_p50_ms),
            ttft_p99_ms: mean(|row| row.ttft_p99_ms),
            tpot_p99_ms: mean(|row| row.tpot_p99_ms),
            latency_mean_ms: mean(|row| row.latency_mean_ms),
            goodput_requests_per_s: rate(|row| row.goodput_requests_per_s),
            throughput_tokens_per_s: rate(|row| row.throughput_tokens_per_s),
        };
        let worst = |limit: usize| runs.iter().map(|run| run.measured_ms[limit]).fold(0.0, f64::max);
        let worst_ms: Vec<f64> = (0..objective.limits.len()).map(worst).collect();
        let over = objective.limits.iter().zip(&worst_ms);
        let over = over.map(|(limit, ms)| ms / limit.most_ms - 1.0).fold(0.0, f64::max);
        let latency = |run: &&Run| run.summary.latency_mean_ms.unwrap_or(f64::INFINITY);
        let kv = first.map_or("", |row| row.kv_cache_type.as_str());
        let quantised = match kv {
            "q8_0" => 1,
            "q4_0" => 2,
            _ => 0,
        };
        Score { numbers, worst_ms, latencies_ms: runs.iter().map(latency).collect(), over, quantised }
    }

    /// Requests without an answer.
    pub fn lost(&self) -> u64 {
        self.numbers.lost()
    }

    /// Requests whose prompt, context or answer was cut by the context limit.
    pub fn cut(&self) -> u64 {
        self.numbers.cut()
    }

    /// Mean latency, ms.
    pub fn latency_ms(&self) -> f64 {
        self.numbers.latency_mean_ms.unwrap_or(f64::INFINITY)
    }

    fn latency_bucket(&self) -> f64 {
        let latency = self.latency_ms();
        if latency.is_finite() && latency > 0.0 {
            (latency.ln() / EQUAL_LATENCY.ln()).floor()
        } else {
            latency
        }
    }

    /// The parts of the objective that are not kept, in its order.
    pub fn violations(&self, objective: &Objective) -> Vec<String> {
        let mut missed = Vec::new();
        if self.lost() > 0 {
            missed.push("no lost request".to_owned());
        }
        if self.cut() > 0 {
            missed.push("no cut prompt or context".to_owned());
        }
        if self.numbers.corrupted_steps > 0 {
            missed.push("no foreign K/V".to_owned());
        }
        let limits = objective.limits.iter().zip(&self.worst_ms);
        missed.extend(limits.filter(|(limit, ms)| **ms > limit.most_ms).map(|(limit, _)| limit.text.clone()));
        missed
    }

    /// Whether the whole objective is kept.
    pub fn qualifies(&self) -> bool {
        self.lost() == 0 && self.cut() == 0 && self.numbers.corrupted_steps == 0 && self.over <= 0.0
    }

    /// The better one is less: by lost requests, cut ones, foreign K and V, excess over the limits,
    /// bits of K and V, mean latency.
    pub fn compare(&self, other: &Score) -> Ordering {
        let counts = |score: &Score| (score.lost(), score.cut(), score.numbers.corrupted_steps);
        counts(self)
            .cmp(&counts(other))
            .then(self.over.total_cmp(&other.over))
            .then(self.quantised.cmp(&other.quantised))
            .then(self.latency_bucket().total_cmp(&other.latency_bucket()))
    }

    /// Whether it is no worse than another in any part of the objective; latencies may differ by a little.
    pub fn is_as_good_as(&self, other: &Score) -> bool {
        self.lost() <= other.lost()
            && self.cut() <= other.cut()
            && self.numbers.corrupted_steps <= other.numbers.corrupted_steps
            && self.over <= other.over
            && self.quantised <= other.quantised
            && self.latency_ms() <= other.latency_ms() * EQUAL_LATENCY
    }

    /// By how much this is worse than `best` in the first part of the objective in which they differ, as
    /// a share of that of `best`, and which part that is.
    pub fn regret(&self, best: &Score) -> (f64, &'static str) {
        let share = |of: f64, best: f64| if best > 0.0 { of / best - 1.0 } else { f64::INFINITY };
        let (a, b) = (&self.numbers, &best.numbers);
        let parts = [
            (self.lost() as f64, best.lost() as f64, "lost requests"),
            (self.cut() as f64, best.cut() as f64, "cut prompts and contexts"),
            (a.corrupted_steps as f64, b.corrupted_steps as f64, "steps with foreign K/V"),
            (1.0 + self.over, 1.0 + best.over, "excess over the limits"),
            (f64::from(self.quantised), f64::from(best.quantised), "bits of K/V"),
        ];
        match parts.into_iter().find(|(mine, theirs, _)| mine > theirs) {
            Some((mine, theirs, what)) => (share(mine, theirs), what),
            None => (share(self.latency_ms(), best.latency_ms()).max(0.0), "mean latency"),
        }
    }
}

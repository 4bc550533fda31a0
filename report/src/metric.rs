//! The metrics that are compared, as one table: what each is called, counts, means and wishes for.

use crate::number::{Unit, human, human_with};
use crate::row::Summary;
use crate::stats::Better;

/// One metric of a [`Summary`].
#[derive(Debug)]
pub struct Metric {
    /// Column of `summary.csv` it is read from, or a word for several.
    pub key: &'static str,
    /// Short name.
    pub title: &'static str,
    /// Unit, where the number does not carry it; empty otherwise.
    pub per: &'static str,
    /// How its numbers are written.
    pub unit: Unit,
    /// Which direction is wished for; none where more is neither better nor worse.
    pub better: Option<Better>,
    /// What it means, in one sentence.
    pub about: &'static str,
    value: fn(&Summary) -> Option<f64>,
}

impl Metric {
    /// Its value in one row; none where it was not measured or is not finite.
    pub fn value(&self, row: &Summary) -> Option<f64> {
        (self.value)(row).filter(|x| x.is_finite())
    }

    /// A mean and, where there is one, half the width of its interval, for people.
    pub(crate) fn number(&self, (mean, half_width): (f64, Option<f64>)) -> String {
        half_width.map_or_else(|| human(mean, self.unit), |half| human_with(mean, half, self.unit))
    }

    /// The same with what it is per.
    pub(crate) fn words(&self, estimate: (f64, Option<f64>)) -> String {
        let text = self.number(estimate);
        if self.per.is_empty() { text } else { format!("{text} {}", self.per) }
    }
}

/// Every metric of the comparison table, in its order where rows have no names; some have to be asked for.
pub const METRICS: &[Metric] = &[
    Metric {
        key: "completed",
        title: "completed",
        per: "",
        unit: Unit::Count,
        better: Some(Better::Higher),
        about: "Requests answered, of all requests of the trace.",
        value: |row| Some(row.completed as f64),
    },
    Metric {
        key: "failed",
        title: "failed",
        per: "",
        unit: Unit::Count,
        better: Some(Better::Lower),
        about: "Requests lost after they had been accepted.",
        value: |row| Some(row.failed as f64),
    },
    Metric {
        key: "crashes",
        title: "crashes",
        per: "",
        unit: Unit::Count,
        better: Some(Better::Lower),
        about: "Crashes of the server: everything in flight is lost and the model is loaded again.",
        value: |row| Some(row.crashes as f64),
    },
    Metric {
        key: "rejected",
        title: "rejected",
        per: "",
        unit: Unit::Count,
        better: Some(Better::Lower),
        about: "Requests refused on arrival.",
        value: |row| Some(row.rejected as f64),
    },
    Metric {
        key: "unfinished",
        title: "unfinished",
        per: "",
        unit: Unit::Count,
        better: Some(Better::Lower),
        about: "Requests still under way when the run was cut off.",
        value: |row| Some(row.unfinished as f64),
    },
    Metric {
        key: "truncated",
        title: "truncated",
        per: "",
        unit: Unit::Count,
        better: Some(Better::Lower),
        about: "Requests whose prompt was cut to fit the context.",
        value: |row| Some(row.truncated as f64),
    },
    Metric {
        key: "shifted",
        title: "shifted",
        per: "",
        unit: Unit::Count,
        better: Some(Better::Lower),
        about: "Requests whose context was shifted at least once: they forgot tokens.",
        value: |row| Some(row.shifted as f64),
    },
    Metric {
        key: "shifts",
        title: "shifts",
        per: "",
        unit: Unit::Count,
        better: Some(Better::Lower),
        about: "Context shifts, counted each time.",
        value: |row| Some(row.shifts as f64),
    },
    Metric {
        key: "stopped_at_limit",
        title: "stopped at limit",
        per: "",
        unit: Unit::Count,
        better: Some(Better::Lower),
        about: "Requests whose answer ended early because their context was full.",
        value: |row| Some(row.stopped_at_limit as f64),
    },
    Metric {
        key: "preempted",
        title: "preempted",
        per: "",
        unit: Unit::Count,
        better: Some(Better::Lower),
        about: "Requests that lost their cells at least once and had to wait again.",
        value: |row| Some(row.preempted as f64),
    },
    Metric {
        key: "recomputed",
        title: "computed again",
        per: "",
        unit: Unit::Share,
        better: Some(Better::Lower),
        about: "Tokens computed a second time / prompt and output tokens: what preemption costs.",
        value: |row| share(row.recomputed_tokens, row.prompt_tokens + row.output_tokens),
    },
    Metric {
        key: "found",
        title: "found",
        per: "",
        unit: Unit::Share,
        better: Some(Better::Higher),
        about: "Prompt tokens found in the cache / prompt tokens.",
        value: |row| share(row.cached_tokens, row.prompt_tokens),
    },
    Metric {
        key: "throughput_tokens_per_s",
        title: "throughput",
        per: "tokens/s",
        unit: Unit::Plain,
        better: Some(Better::Higher),
        about: "Output tokens of completed requests per second.",
        value: |row| Some(row.throughput_tokens_per_s),
    },
    Metric {
        key: "goodput_requests_per_s",
        title: "goodput",
        per: "requests/s",
        unit: Unit::Plain,
        better: Some(Better::Higher),
        about: "Requests per second that kept the whole SLO.",
        value: |row| Some(row.goodput_requests_per_s),
    },
    Metric {
        key: "ttft_p50_ms",
        title: "TTFT p50",
        per: "",
        unit: Unit::Milliseconds,
        better: Some(Better::Lower),
        about: "Median time from arrival to the first token, waiting included. Requests without \
                a first token do not count, so a policy that loses requests can look fast.",
        value: |row| row.ttft_p50_ms,
    },
    Metric {
        key: "ttft_p99_ms",
        title: "TTFT p99",
        per: "",
        unit: Unit::Milliseconds,
        better: Some(Better::Lower),
        about: "99th percentile of the time to first token; the same caution.",
        value: |row| row.ttft_p99_ms,
    },
    Metric {
        key: "tpot_p50_ms",
        title: "TPOT p50",
        per: "",
        unit: Unit::Milliseconds,
        better: Some(Better::Lower),
        about: "Median time per output token after the first.",
        value: |row| row.tpot_p50_ms,
    },
    Metric {
        key: "tpot_p99_ms",
        title: "TPOT p99",
        per: "",
        unit: Unit::Milliseconds,
        better: Some(Better::Lower),
        about: "99th percentile of the time per output token after the first.",
        value: |row| row.tpot_p99_ms,
    },
    Metric {
        key: "defrag_passes",
        title: "defrag passes",
        per: "",
        unit: Unit::Count,
        better: None,
        about: "Compaction passes.",
        value: |row| Some(row.defrag_passes as f64),
    },
    Metric {
        key: "cells_copied",
        title: "cells copied",
        per: "",
        unit: Unit::Cells,
        better: None,
        about: "Cells the policy copied, over all layer classes.",
        value: |row| Some(row.cells_copied as f64),
    },
    Metric {
        key: "cells_swapped",
        title: "cells swapped",
        per: "",
        unit: Unit::Cells,
        better: None,
        about: "Cells that went to main memory or came back, over all layer classes.",
        value: |row| Some(row.cells_swapped as f64),
    },
    Metric {
        key: "corrupted_steps",
        title: "corrupted steps",
        per: "",
        unit: Unit::Count,
        better: Some(Better::Lower),
        about: "Steps in which a sequence read K and V that belong to another sequence.",
        value: |row| Some(row.corrupted_steps as f64),
    },
    Metric {
        key: "freezes",
        title: "freezes",
        per: "",
        unit: Unit::Count,
        better: Some(Better::Lower),
        about: "Steps that kept the GPU with the display waiting for system memory longer than a person overlooks.",
        value: |row| Some(row.freezes as f64),
    },
    Metric {
        key: "utilisation_mean",
        title: "utilisation",
        per: "",
        unit: Unit::Share,
        better: None,
        about: "Live cells / cells, mean over time, by bytes over the layer classes.",
        value: |row| Some(row.utilisation_mean),
    },
    Metric {
        key: "fragmentation_internal_mean",
        title: "frag. internal",
        per: "",
        unit: Unit::Share,
        better: Some(Better::Lower),
        about: "Cells held but not live / cells held, mean over time: reserved or rounded up in vain.",
        value: |row| Some(row.fragmentation_internal_mean),
    },
    Metric {
        key: "fragmentation_external_mean",
        title: "frag. external",
        per: "",
        unit: Unit::Share,
        better: Some(Better::Lower),
        about: "1 - placeable / free in the worst layer class, mean over time: free, yet of no use \
                to one request because it lies in pieces.",
        value: |row| Some(row.fragmentation_external_mean),
    },
    Metric {
        key: "high_water_mean",
        title: "high water",
        per: "",
        unit: Unit::Share,
        better: Some(Better::Lower),
        about: "Cells up to the highest one in use / cells, mean over time, by bytes over the layer classes: what \
                attention walks where it walks a range.",
        value: |row| row.high_water_mean,
    },
    Metric {
        key: "sequence_runs_mean",
        title: "runs per sequence",
        per: "",
        unit: Unit::Plain,
        better: Some(Better::Lower),
        about: "Runs of cells that the tokens of a sequence lie in, mean over time and layer classes: 1 where each \
                lies in one piece.",
        value: |row| row.sequence_runs_mean,
    },
    Metric {
        key: "spilled_gib",
        title: "spilled",
        per: "GiB",
        unit: Unit::Plain,
        better: Some(Better::Lower),
        about: "Bytes that found no room on a GPU and lie in system memory, behind PCIe.",
        value: |row| Some(row.spilled_gib),
    },
    Metric {
        key: "leaked_gib",
        title: "leaked",
        per: "GiB",
        unit: Unit::Plain,
        // A crash gives it back, so less is not better.
        better: None,
        about: "Most bytes that processed images had leaked at one time; a crash gives them back.",
        value: |row| Some(row.leaked_gib),
    },
];

/// Measured columns that the comparison table leaves out.
pub const MORE: &[Metric] = &[
    Metric {
        key: "ttft_mean_ms",
        title: "TTFT mean",
        per: "",
        unit: Unit::Milliseconds,
        better: Some(Better::Lower),
        about: "Mean time to first token; the same caution as for its median.",
        value: |row| row.ttft_mean_ms,
    },
    Metric {
        key: "tpot_mean_ms",
        title: "TPOT mean",
        per: "",
        unit: Unit::Milliseconds,
        better: Some(Better::Lower),
        about: "Mean time per output token after the first.",
        value: |row| row.tpot_mean_ms,
    },
    Metric {
        key: "latency_mean_ms",
        title: "latency mean",
        per: "",
        unit: Unit::Milliseconds,
        better: Some(Better::Lower),
        about: "Mean time from arrival to the last token, of completed requests.",
        value: |row| row.latency_mean_ms,
    },
    Metric {
        key: "latency_p99_ms",
        title: "latency p99",
        per: "",
        unit: Unit::Milliseconds,
        better: Some(Better::Lower),
        about: "99th percentile of the time from arrival to the last token, of completed requests.",
        value: |row| row.latency_p99_ms,
    },
    Metric {
        key: "held_peak",
        title: "peak share",
        per: "",
        unit: Unit::Share,
        better: Some(Better::Lower),
        about: "Largest share of the bytes of the cache that was held at one time.",
        value: |row| Some(row.held_peak),
    },
    Metric {
        key: "held_peak_gib",
        title: "peak memory",
        per: "GiB",
        unit: Unit::Plain,
        better: Some(Better::Lower),
        about: "Most bytes of K and V that were held at one time, over all layer classes.",
        value: |row| row.held_peak_gib,
    },
    Metric {
        key: "preemptions",
        title: "preemptions",
        per: "",
        unit: Unit::Count,
        better: Some(Better::Lower),
        about: "Preemptions, counted each time.",
        value: |row| Some(row.preemptions as f64),
    },
    Metric {
        key: "recomputed_tokens",
        title: "recomputed tokens",
        per: "",
        unit: Unit::Count,
        better: Some(Better::Lower),
        about: "Tokens computed a second time.",
        value: |row| Some(row.recomputed_tokens as f64),
    },
    Metric {
        key: "stall_s",
        title: "stalls",
        per: "",
        unit: Unit::Seconds,
        better: Some(Better::Lower),
        about: "Time steps were longer because of copies, rotations and transfers.",
        value: |row| Some(row.stall_s),
    },
];

fn share(part: u64, whole: u64) -> Option<f64> {
    (whole > 0).then(|| part as f64 / whole as f64)
}

/// Share of requests that did not get a whole answer.
pub const LOSS: Metric = Metric {
    key: "loss",
    title: "lost or cut requests",
    per: "",
    unit: Unit::Share,
    better: Some(Better::Lower),
    about: "Failed, rejected, unfinished, truncated, shifted and early stopped requests / requests. \
            A request to which two of these happened counts twice; the sum is cut at 100 %.",
    value: |row| {
        let lost =
            [row.failed, row.rejected, row.unfinished, row.truncated, row.shifted, row.stopped_at_limit];
        let lost: f64 = lost.iter().map(|n| *n as f64).sum();
        (row.requests > 0).then(|| (lost / row.requests as f64).min(1.0))
    },
};

/// Metrics that few experiments have anything to say about: where all are zero, tables of policies
/// do not even say so.
const SELDOM: [&str; 6] = ["crashes", "shifts", "corrupted_steps", "freezes", "spilled_gib", "leaked_gib"];

/// Metrics that have a column only where `columns` asks for it.
const ASKED_FOR: [&str; 5] =
    ["recomputed", "found", "cells_swapped", "high_water_mean", "sequence_runs_mean"];

/// What the cache did; with named rows it stands before the times it explains.
const WORK: [&str; 4] = ["defrag_passes", "cells_copied", "corrupted_steps", "freezes"];

impl Metric {
    /// Whether tables of policies pass over it in silence where it is zero everywhere.
    pub(crate) fn is_seldom(&self) -> bool {
        SELDOM.contains(&self.key)
    }

    fn is_asked_for(&self) -> bool {
        ASKED_FOR.contains(&self.key)
    }
}

/// [`METRICS`] in the order of a table, without those that have to be asked for; with named rows, what went
/// wrong comes before rates and times.
pub fn in_order(named: bool) -> Vec<&'static Metric> {
    let is_work = |m: &&Metric| named && WORK.contains(&m.key);
    let mut metrics: Vec<&Metric> = METRICS.iter().filter(|m| !m.is_asked_for() && !is_work(m)).collect();
    let rates = metrics.iter().position(|m| m.key == "throughput_tokens_per_s");
    let at = rates.unwrap_or(metrics.len());
    metrics.splice(at..at, METRICS.iter().filter(is_work));
    metrics
}

/// All metrics: those of the comparison table, [`MORE`], and [`LOSS`].
pub fn all() -> impl Iterator<Item = &'static Metric> {
    METRICS.iter().chain(MORE).chain([&LOSS])
}

/// The metric with this key.
pub fn metric(key: &str) -> Option<&'static Metric> {
    all().find(|metric| metric.key == key)
}

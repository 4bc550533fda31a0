//! What each row of an ablation does to the failure of the reference, in words and from the numbers.

use super::memory::needs;
use super::why::why;
use super::words::finding;
use super::{Comparison, Group};
use crate::metric::{Metric, metric};
use crate::number::{Unit, brief, fixed};
use crate::row::Summary;
use crate::stats::{self, Better, Verdict};

/// What a change of settings does to crashes and lost requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// No crash in any seed, and so no request lost to one, where the reference has some; where the
    /// reference only loses requests, none lost.
    Cures,
    /// Fewer; the interval of the paired difference excludes zero.
    Helps,
    /// The intervals cover zero, or every seed is equal.
    NothingShown,
    /// Fewer of one and more of the other, both shown.
    Mixed,
    /// More; the interval excludes zero.
    Worsens,
    /// The model cannot be loaded.
    DoesNotStart,
}

impl Effect {
    /// Every effect, in the order in which they are told.
    pub const ALL: [Effect; 6] = [
        Effect::Cures,
        Effect::Helps,
        Effect::Mixed,
        Effect::NothingShown,
        Effect::Worsens,
        Effect::DoesNotStart,
    ];

    /// As printed beside one row.
    pub fn word(self) -> &'static str {
        match self {
            Effect::Cures => "cures it",
            Effect::Helps => "helps, no cure",
            Effect::NothingShown => "no effect shown",
            Effect::Mixed => "helps and harms",
            Effect::Worsens => "makes it worse",
            Effect::DoesNotStart => "does not start",
        }
    }

    /// One word, for styles.
    pub fn key(self) -> &'static str {
        match self {
            Effect::Cures => "cures",
            Effect::Helps => "helps",
            Effect::NothingShown => "nothing",
            Effect::Mixed => "mixed",
            Effect::Worsens => "worse",
            Effect::DoesNotStart => "stopped",
        }
    }

    /// Behind the names of one row or of many.
    fn verb(self, many: bool) -> &'static str {
        match (self, many) {
            (Effect::Cures, false) => "cures it",
            (Effect::Cures, true) => "cure it",
            (Effect::Helps, false) => "helps but does not cure it",
            (Effect::Helps, true) => "help but do not cure it",
            (Effect::NothingShown, false) => "shows no effect",
            (Effect::NothingShown, true) => "show no effect",
            (Effect::Mixed, false) => "helps in one respect and harms in another",
            (Effect::Mixed, true) => "help in one respect and harm in another",
            (Effect::Worsens, false) => "makes it worse",
            (Effect::Worsens, true) => "make it worse",
            (Effect::DoesNotStart, false) => "does not start",
            (Effect::DoesNotStart, true) => "do not start",
        }
    }
}

/// One row against the reference.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Number of its group.
    pub group: usize,
    /// Its label.
    pub label: String,
    /// What it does.
    pub effect: Effect,
    /// Whether intervals show the effect; a cure may be luck where crashes are rare.
    pub is_shown: bool,
    /// Crashes and lost requests per run, with the differences.
    pub found: String,
    /// What else differs, shown by its interval; memory needs none.
    pub aside: Vec<String>,
    /// By what mechanism, sentence by sentence; empty where no rule applies.
    pub why: Vec<String>,
}

/// What every change to the reference does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ablation {
    /// One sentence per trace: which changes work, which do nothing, which do harm.
    pub overall: Vec<String>,
    /// Every row but the reference, in order.
    pub changes: Vec<Change>,
}

impl Ablation {
    /// The short form: the sentences, then a line per row.
    pub fn lines(&self) -> Vec<String> {
        let line = |c: &Change| format!("{}: {}: {}", c.label, c.effect.word(), c.found);
        self.overall.iter().cloned().chain(self.changes.iter().map(line)).collect()
    }
}

/// The two metrics that decide.
const DECIDING: [&str; 2] = ["crashes", "failed"];

/// What else is told where it is shown.
const ASIDE: [&str; 12] = [
    "rejected",
    "unfinished",
    "truncated",
    "shifted",
    "stopped_at_limit",
    "preempted",
    "corrupted_steps",
    "freezes",
    "throughput_tokens_per_s",
    "ttft_p99_ms",
    "tpot_p99_ms",
    "leaked_gib",
];

impl Comparison<'_> {
    /// What each row does to the failure of the reference; none where rows have no names, where
    /// there is no second row, or where nothing crashes, is lost or fails to load.
    pub fn ablation(&self) -> Option<Ablation> {
        let is_bad = |row: &Summary| row.crashes + row.failed > 0 || !row.load_error.is_empty();
        if !self.is_named || !self.groups.iter().any(|g| g.rows.iter().any(|row| is_bad(row))) {
            return None;
        }
        let pairs: Vec<(usize, usize)> =
            (0..self.groups.len()).filter_map(|g| Some((g, self.reference_of(g)?))).collect();
        let changes: Vec<Change> = pairs.iter().map(|(g, r)| self.change(*g, *r)).collect();
        if changes.is_empty() {
            return None;
        }
        let mut references: Vec<usize> = Vec::new();
        for (_, r) in &pairs {
            if !references.contains(r) {
                references.push(*r);
            }
        }
        let overall = references.iter().map(|r| {
            let own: Vec<&Change> =
                changes.iter().zip(&pairs).filter(|(_, pair)| pair.1 == *r).map(|(c, _)| c).collect();
            overall(&self.groups[*r], &own)
        });
        Some(Ablation { overall: overall.collect(), changes })
    }

    /// The group of the reference that the first change is measured against, for pictures.
    pub(crate) fn reference_group(&self) -> Option<usize> {
        (0..self.groups.len()).find_map(|g| self.reference_of(g))
    }

    fn change(&self, group: usize, reference: usize) -> Change {
        let (a, b) = (&self.groups[group], &self.groups[reference]);
        let cuts_fewer = metric("truncated").is_some_and(|m| verdict(a, b, m) == Verdict::Better);
        let change = |effect, is_shown, found, aside| Change {
            group,
            label: a.label.clone(),
            effect,
            is_shown,
            found,
            aside,
            why: why(a.rows[0], b.rows[0], cuts_fewer),
        };
        if let Some(failed) = a.rows.iter().find(|row| !row.load_error.is_empty()) {
            let found = format!("the model cannot be loaded: {}", failed.load_error);
            return change(Effect::DoesNotStart, true, found, Vec::new());
        }
        let metrics: Vec<&Metric> = DECIDING.into_iter().filter_map(metric).collect();
        let verdicts: Vec<Verdict> = metrics.iter().map(|m| verdict(a, b, m)).collect();
        let has = |verdict| verdicts.contains(&verdict);
        // Only what crashes can lose requests to a crash.
        let lacks = |g: &Group, m: &Metric| g.samples(m).iter().all(|x| *x == 0.0);
        let deciding = metrics.iter().zip(&verdicts).find(|(m, _)| !lacks(b, m));
        let is_cured = deciding.is_some_and(|(m, _)| lacks(a, m));
        let effect = match (has(Verdict::Better), has(Verdict::Worse)) {
            (_, false) if is_cured => Effect::Cures,
            (true, true) => Effect::Mixed,
            (true, false) => Effect::Helps,
            (false, true) => Effect::Worsens,
            (false, false) => Effect::NothingShown,
        };
        let is_shown = match deciding {
            Some((_, verdict)) if effect == Effect::Cures => *verdict == Verdict::Better,
            _ => has(Verdict::Better) || has(Verdict::Worse),
        };
        let mut found: Vec<String> = metrics.iter().filter_map(|m| told(a, b, m)).collect();
        if a.rows.len() == 1 || b.rows.len() == 1 {
            found.push("one run each, so no interval".to_owned());
        } else if effect == Effect::Cures && !is_shown {
            found.push("the reference fails too seldom to be sure".to_owned());
        }
        if effect == Effect::Cures && metrics.iter().any(|m| !lacks(a, m)) {
            found.push("what it still loses, it does not lose to a crash".to_owned());
        }
        change(effect, is_shown, found.join("; "), aside(a, b))
    }
}

fn verdict(a: &Group, b: &Group, metric: &Metric) -> Verdict {
    let (x, y) = a.pairs(b, metric);
    let difference = stats::paired_difference(&x, &y);
    difference.map_or(Verdict::NoDifferenceShown, |d| d.verdict(metric.better.unwrap_or(Better::Lower)))
}

/// `crashes 0 per run against 0.533 (in 0 of 15 runs against 8): -0.53 [-0.82, -0.25], better`.
fn told(a: &Group, b: &Group, metric: &Metric) -> Option<String> {
    let title = if metric.key == "failed" { "lost requests" } else { metric.title };
    let mean = |g: &Group| Some(brief(g.estimate(metric)?.0));
    let hit = |g: &Group| g.samples(metric).iter().filter(|x| **x > 0.0).count();
    let runs = match metric.key {
        "crashes" => {
            format!(" (in {} of {} runs against {} of {})", hit(a), a.rows.len(), hit(b), b.rows.len())
        }
        _ => String::new(),
    };
    let (x, y) = a.pairs(b, metric);
    let finding = finding(&x, &y, metric).map_or(String::new(), |said| format!(": {said}"));
    Some(format!("{title} {} per run against {}{runs}{finding}", mean(a)?, mean(b)?))
}

/// Side effects: what else is shown to differ, and memory.
fn aside(a: &Group, b: &Group) -> Vec<String> {
    let mut said = Vec::new();
    for metric in ASIDE.into_iter().filter_map(metric) {
        if verdict(a, b, metric) == Verdict::NoDifferenceShown {
            continue;
        }
        let (x, y) = a.pairs(b, metric);
        let mean = |values: &[f64]| brief(stats::mean(values).unwrap_or_default());
        let is_zero = |values: &[f64]| values.iter().all(|v| *v == 0.0);
        let per = if metric.per.is_empty() { String::new() } else { format!(" {}", metric.per) };
        let is_count = metric.unit == Unit::Count || metric.key == "leaked_gib";
        match (is_count && is_zero(&x), is_count && is_zero(&y)) {
            (true, _) => said.push(format!("{} gone ({}{per} per run before)", metric.title, mean(&y))),
            (_, true) => said.push(format!("{} new: {}{per} per run", metric.title, mean(&x))),
            _ => said.extend(finding(&x, &y, metric).map(|found| format!("{} {found}", metric.title))),
        }
    }
    said.extend(memory(a.rows[0], b.rows[0]));
    said
}

/// Differences of a tenth of a GiB or more; memory does not vary from seed to seed.
fn memory(row: &Summary, reference: &Summary) -> Vec<String> {
    let (new, old) = (needs(&row.memory_gib), needs(&reference.memory_gib));
    let mut said = Vec::new();
    for need in &new {
        let before = old.iter().find(|n| n.device == need.device);
        let before = before.map_or(0.0, |n| n.needed);
        if (need.needed - before).abs() >= 0.1 {
            let word = if need.needed > before { "more" } else { "less" };
            let (new, old) = (fixed(need.needed, 1), fixed(before, 1));
            said.push(format!("{word} memory on {}, {new} GiB instead of {old}", need.device));
        }
    }
    if !new.is_empty() {
        let gone = old.iter().filter(|n| n.needed > 0.0 && !new.iter().any(|m| m.device == n.device));
        said.extend(gone.map(|n| format!("{} no longer used, {} GiB before", n.device, fixed(n.needed, 1))));
    }
    if (row.spilled_gib - reference.spilled_gib).abs() >= 0.1 {
        let (new, old) = (fixed(row.spilled_gib, 1), fixed(reference.spilled_gib, 1));
        said.push(match row.spilled_gib {
            0.0 => format!("nothing in system memory, {old} GiB before"),
            _ => format!("{new} GiB in system memory instead of {old}"),
        });
    }
    said
}

/// `Of 5 changes to A (0.5 crashes and 1.2 lost requests per run, 16 seeds), B and C cure it; …`
fn overall(reference: &Group, changes: &[&Change]) -> String {
    let rate = |key| metric(key).and_then(|m| reference.estimate(m)).map_or(0.0, |(mean, _)| mean);
    let seeds = match reference.rows.len() {
        1 => "one run".to_owned(),
        n => format!("{n} seeds"),
    };
    let label = |c: &&&Change| match (c.effect, c.is_shown) {
        (Effect::Cures, false) => format!("{} (not shown beyond chance)", quoted(&c.label)),
        _ => quoted(&c.label),
    };
    let part = |effect: Effect| {
        let own: Vec<String> = changes.iter().filter(|c| c.effect == effect).map(|c| label(&c)).collect();
        let names = listed(&own)?;
        Some(format!("{names} {}", effect.verb(own.len() > 1)))
    };
    let mut parts: Vec<String> = Effect::ALL.into_iter().filter_map(part).collect();
    if !changes.iter().any(|c| c.effect == Effect::Cures) {
        parts.insert(0, "nothing cures it".to_owned());
    }
    format!(
        "Of {} to {} ({} crashes and {} lost requests per run, {seeds}): {}.",
        if changes.len() == 1 { "one change".to_owned() } else { format!("{} changes", changes.len()) },
        quoted(&reference.label),
        brief(rate("crashes")),
        brief(rate("failed")),
        parts.join("; ")
    )
}

/// A name that a list would tear apart stands in quotation marks, and so does one of many words.
fn quoted(name: &str) -> String {
    let is_plain = !name.contains(',') && name.split_whitespace().count() <= 2;
    if is_plain { name.to_owned() } else { format!("\"{name}\"") }
}

/// `a`, `a and b`, `a, b and c`.
fn listed(names: &[String]) -> Option<String> {
    let (last, rest) = names.split_last()?;
    Some(if rest.is_empty() { last.clone() } else { format!("{} and {last}", rest.join(", ")) })
}

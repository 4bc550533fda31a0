//! What may be said of a comparison, in sentences.

use std::cmp::Reverse;

use super::{CELLS, Comparison, Group, TRACE};
use crate::metric::{LOSS, Metric, metric};
use crate::number::{Unit, change, fixed, human, signed};
use crate::stats::{self, Better, Difference};

impl Comparison<'_> {
    /// One sentence per group against the reference, with a 95 % interval for every difference.
    pub fn verdicts(&self) -> Vec<String> {
        let sentence = |g| self.verdict(g, self.reference_of(g)?);
        (0..self.groups.len()).filter_map(sentence).collect()
    }

    /// The group that a group is measured against: the reference under the same setting, or, where
    /// only one name was run, that name under its first setting. Rows with names differ in their
    /// settings on purpose: only the trace has to be the same.
    pub(super) fn reference_of(&self, group: usize) -> Option<usize> {
        let g = &self.groups[group];
        if self.names.len() == 1 {
            return (group > 0 && g.settings[TRACE] == self.groups[0].settings[TRACE]).then_some(0);
        }
        if Some(g.name) == self.reference {
            return None;
        }
        let named = |r: &usize| Some(self.groups[*r].name) == self.reference;
        let candidates = (0..self.groups.len()).filter(named);
        if self.is_named {
            let on_trace = candidates.filter(|r| self.groups[*r].settings[TRACE] == g.settings[TRACE]);
            let alike = |r: &usize| {
                let pairs = self.groups[*r].settings.iter().zip(&g.settings);
                (pairs.filter(|(a, b)| a == b).count(), Reverse(*r))
            };
            return on_trace.max_by_key(alike);
        }
        let same = |r: &usize| self.groups[*r].settings[..CELLS] == g.settings[..CELLS];
        let candidates: Vec<usize> = candidates.filter(same).collect();
        match candidates[..] {
            [only] => Some(only),
            _ => candidates.into_iter().find(|r| self.groups[*r].settings[CELLS] == g.settings[CELLS]),
        }
    }

    fn verdict(&self, group: usize, reference: usize) -> Option<String> {
        let (a, b) = (&self.groups[group], &self.groups[reference]);
        let keys =
            ["goodput_requests_per_s", "throughput_tokens_per_s", LOSS.key, "ttft_p99_ms", "tpot_p99_ms"];
        let told: Vec<&Metric> = match self.columns.as_slice() {
            [] => keys.into_iter().filter_map(metric).collect(),
            asked => asked.iter().copied().filter(|metric| metric.better.is_some()).collect(),
        };
        let mut parts = Vec::new();
        let mut seeds = 0;
        for metric in told {
            let (x, y) = a.pairs(b, metric);
            if x.iter().chain(&y).all(|v| *v == 0.0) {
                continue;
            }
            seeds = seeds.max(x.len());
            if let Some(finding) = finding(&x, &y, metric) {
                parts.push(format!("{} {finding}", metric.title));
            }
        }
        if parts.is_empty() {
            return None;
        }
        let runs = match seeds {
            1 => "one run each, so no interval".to_owned(),
            n => format!("{n} paired seeds"),
        };
        // A trace that both have is named once.
        let first = if a.settings[TRACE] == b.settings[TRACE] { &a.on_trace } else { &a.label };
        Some(format!("{first} over {} ({runs}): {}", b.label, parts.join("; ")))
    }

    /// Who wins, in words, one sentence or two per trace: by goodput where an SLO was kept by
    /// anyone, else by throughput. Upper bounds do not compete.
    pub fn winner(&self) -> Vec<String> {
        let rivals = self.rivals();
        if rivals.is_empty() {
            return vec!["There are no results to compare.".to_owned()];
        }
        let many = rivals.len() > 1;
        let per_trace = rivals.iter().map(|groups| {
            let on = if many { self.groups[groups[0]].settings[TRACE].as_str() } else { "" };
            let said = self.winner_among(groups);
            if on.is_empty() { said } else { format!("{on}: {said}") }
        });
        per_trace.collect()
    }

    fn winner_among(&self, rivals: &[usize]) -> String {
        let prizes = ["goodput_requests_per_s", "throughput_tokens_per_s"];
        let prizes = prizes.into_iter().filter_map(metric);
        let is_any = |m: &&Metric| {
            rivals.iter().any(|g| self.groups[*g].estimate(m).is_some_and(|(mean, _)| mean > 0.0))
        };
        let Some(prize) = prizes.into_iter().find(is_any) else {
            return format!("No {} completed any output, so nobody wins.", self.kind());
        };
        let ranked = self.ranked(rivals, prize, Better::Higher);
        let ahead = self.ahead(rivals, prize);
        let name = |g: usize| self.groups[g].on_trace.as_str();
        let value = |g: usize| amount(&self.groups[g], prize);
        let Some(&(first, _)) = ranked.first() else {
            return String::new();
        };
        let one_run = ranked.iter().all(|(g, _)| self.groups[*g].rows.len() < 2);
        let mut said = if rivals.len() == 1 {
            format!(
                "Only {} was run, so there is nothing to compare: {} {}.",
                name(first),
                prize.title,
                value(first)
            )
        } else if ahead.len() > 1 {
            let shown: Vec<String> =
                ahead.iter().take(6).map(|g| format!("{} ({})", name(*g), value(*g))).collect();
            let more = if ahead.len() > 6 { format!(" and {} more", ahead.len() - 6) } else { String::new() };
            let verb = if one_run { "Equal in" } else { "No difference shown in" };
            format!("{verb} {}: {}{more}.", prize.title, shown.join(", "))
        } else {
            let next = ranked.get(1).map(|(g, _)| *g);
            let lead = next.and_then(|n| {
                let (x, y) = self.groups[first].pairs(&self.groups[n], prize);
                Some(format!(", {} than {}, the next best", finding(&x, &y, prize)?, name(n)))
            });
            let lead = lead.unwrap_or_default().replace(", better than", " better than");
            format!("{} has the highest {}: {}{lead}.", name(first), prize.title, value(first))
        };
        if one_run && rivals.len() > 1 {
            said += " One run each gives no interval: this holds for this trace as replayed, not beyond it.";
        }
        said += &self.losses(rivals, first);
        let trace = &self.groups[first].settings[TRACE];
        for bound in &self.groups {
            if self.is_bound(bound) && bound.settings[TRACE] == *trace && bound.estimate(prize).is_some() {
                said += &format!(" The bound {} reaches {}.", bound.on_trace, amount(bound, prize));
            }
        }
        said
    }

    fn losses(&self, rivals: &[usize], winner: usize) -> String {
        let share = |g: usize| self.groups[g].estimate(&LOSS).map(|(mean, _)| mean);
        let least = self.ranked(rivals, &LOSS, Better::Lower).first().copied();
        match (share(winner), least) {
            (Some(0.0), _) => format!(" {} lost or cut no request.", self.groups[winner].on_trace),
            (Some(lost), Some((g, fewest))) => {
                let mut said = format!(
                    " {} lost or cut {} of its requests",
                    self.groups[winner].on_trace,
                    human(lost, Unit::Share)
                );
                if fewest < lost {
                    said +=
                        &format!("; the fewest, {}, {}", human(fewest, Unit::Share), self.groups[g].on_trace);
                }
                said + "."
            }
            _ => String::new(),
        }
    }
}

/// A metric of a group with its unit, for people.
fn amount(group: &Group, metric: &Metric) -> String {
    group.estimate(metric).map_or_else(|| "-".to_owned(), |estimate| metric.words(estimate))
}

/// A difference `a - b` in words: `+12.3 % [9.8, 14.9], better`. Rates and times are relative to
/// the mean of `b`, counts and shares are not.
pub(crate) fn finding(a: &[f64], b: &[f64], metric: &Metric) -> Option<String> {
    let base = stats::mean(b)?;
    let relative = base != 0.0 && !matches!(metric.unit, Unit::Count | Unit::Cells | Unit::Share);
    let factor = match metric.unit {
        _ if relative => 100.0 / base.abs(),
        Unit::Share => 100.0,
        _ => 1.0,
    };
    let suffix = match metric.unit {
        _ if relative => " %",
        Unit::Share => " points",
        Unit::Milliseconds => " ms",
        _ => "",
    };
    let text = |value: f64| match relative {
        true => change(value * factor / 100.0),
        false => format!("{}{suffix}", signed(value * factor)),
    };
    let Some(difference) = stats::paired_difference(a, b) else {
        let value = stats::mean(a)? - base;
        return Some(if value == 0.0 { "equal".to_owned() } else { text(value) });
    };
    let verdict = metric.better.map(|better| difference.verdict(better));
    let word = verdict.map_or(String::new(), |v| format!(", {}", v.word()));
    Some(match difference {
        Difference::Exact { value: 0.0, samples } => format!("equal in all {samples} seeds"),
        Difference::Exact { value, samples } => {
            format!("{} (alike in all {samples} seeds){word}", text(value))
        }
        Difference::Spread(i) => {
            let (low, high) = (i.low() * factor, i.high() * factor);
            let places = places_for(high - low);
            let [low, high] = [low, high].map(|end| fixed(end, places));
            let sign = if i.mean > 0.0 { "+" } else { "" };
            format!("{sign}{}{suffix} [{low}, {high}]{word}", fixed(i.mean * factor, places))
        }
    })
}

/// Decimal places that show a width with two digits or so.
fn places_for(width: f64) -> usize {
    match width {
        w if w >= 10.0 => 0,
        w if w >= 1.0 => 1,
        w if w >= 0.1 => 2,
        _ => 3,
    }
}

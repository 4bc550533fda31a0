//! Who is first on each trace, by how much, and where that changes from trace to trace.
//!
//! A trace's settings are those under which every ranked name has a result. A name's sample is the mean of the
//! target over these, one per seed, so that samples of two names are paired by settings and seeds.

use std::collections::BTreeMap;

use super::{Grid, Point};
use crate::compare::finding;
use crate::metric::{LOSS, Metric, metric};
use crate::row::Summary;
use crate::stats::{self, Better, Difference, Verdict};

/// The order of the names on one trace.
#[derive(Clone, Debug, PartialEq)]
pub struct Ranking {
    /// Number of the trace.
    pub trace: usize,
    /// Settings that count, and settings that there are.
    pub settings: (usize, usize),
    /// Seeds.
    pub seeds: usize,
    /// The best first.
    pub places: Vec<Place>,
    /// Names without a place: no setting has results of them and of all others.
    pub unranked: Vec<usize>,
    /// Names in front: the first that is no bound, and those not shown to differ from it.
    pub ahead: Vec<usize>,
}

/// A name in a ranking.
#[derive(Clone, Debug, PartialEq)]
pub struct Place {
    /// Number of the name.
    pub name: usize,
    /// Means of the target over the settings, by seed.
    pub samples: Vec<f64>,
    /// Their mean, and half its 95 % interval where seeds differ.
    pub mean: (f64, Option<f64>),
    /// Relative difference to the reference and the ends of its 95 % interval; none for the reference itself, and
    /// where the reference has nothing.
    pub change: Option<(f64, Option<(f64, f64)>)>,
    /// The difference in words; none for the reference.
    pub found: Option<String>,
    /// What may be said of it.
    pub verdict: Option<Verdict>,
    /// Mean of the share of requests that were lost or cut.
    pub loss: Option<f64>,
    /// Mean 99th percentile of the time to first token, ms.
    pub ttft_ms: Option<f64>,
    /// Its best setting, and the target there: whatever others do.
    pub best: Option<(Vec<usize>, f64)>,
}

/// Results by setting and seed.
type Runs<'g> = BTreeMap<(&'g [usize], u64), &'g Summary>;

/// A ranking per trace that has results.
pub fn rankings(grid: &Grid) -> Vec<Ranking> {
    (0..grid.traces.len()).filter_map(|trace| ranking(grid, trace)).collect()
}

fn ranking(grid: &Grid, trace: usize) -> Option<Ranking> {
    let mut runs: Vec<Runs> = vec![Runs::new(); grid.names.len()];
    let mut settings: Vec<&[usize]> = Vec::new();
    for point in grid.points.iter().filter(|point| point.trace == trace) {
        settings.push(&point.setting);
        let measured = point.runs.iter().filter(|(_, row)| grid.target.value(row).is_some());
        runs[point.name].extend(measured.map(|(seed, row)| ((&point.setting[..], *seed), *row)));
    }
    let (mut ranked, mut unranked): (Vec<usize>, Vec<usize>) =
        (0..grid.names.len()).partition(|name| !runs[*name].is_empty());
    let common = loop {
        let first = runs.get(*ranked.first()?)?;
        let in_all = |key: &&(&[usize], u64)| ranked.iter().all(|name| runs[*name].contains_key(*key));
        let common: Vec<(&[usize], u64)> = first.keys().filter(in_all).copied().collect();
        if !common.is_empty() {
            break common;
        }
        // Without the one that has least, the others may have something in common.
        let least = ranked.iter().rev().min_by_key(|name| runs[**name].len()).copied()?;
        ranked.retain(|name| *name != least);
        unranked.push(least);
    };
    unranked.sort_unstable();
    let mut seeds: Vec<u64> = common.iter().map(|(_, seed)| *seed).collect();
    seeds.sort_unstable();
    seeds.dedup();
    let samples = |name: usize, metric: &Metric| -> Vec<f64> {
        let of = |seed: &u64| {
            let own = common.iter().filter(|key| key.1 == *seed).filter_map(|key| runs[name].get(key));
            stats::mean(&own.filter_map(|row| metric.value(row)).collect::<Vec<_>>())
        };
        seeds.iter().filter_map(of).collect()
    };
    let reference = ranked.contains(&grid.reference).then(|| samples(grid.reference, grid.target));
    let mut places: Vec<Place> = Vec::new();
    for &name in &ranked {
        let own = samples(name, grid.target);
        let against = reference.as_ref().filter(|_| name != grid.reference);
        let difference = against.and_then(|b| stats::paired_difference(&own, b));
        let better = grid.target.better.unwrap_or(Better::Higher);
        let half = stats::interval(&own).map(|i| i.half_width).filter(|w| *w > 0.0);
        places.push(Place {
            name,
            mean: (stats::mean(&own)?, half),
            change: against.and_then(|b| change(&own, b)),
            found: against.and_then(|b| finding(&own, b, grid.target)),
            verdict: difference.map(|difference| difference.verdict(better)),
            loss: stats::mean(&samples(name, &LOSS)),
            ttft_ms: metric("ttft_p99_ms").and_then(|metric| stats::mean(&samples(name, metric))),
            best: best(grid, trace, name),
            samples: own,
        });
    }
    places.sort_by(|a, b| {
        let rising = a.mean.0.total_cmp(&b.mean.0);
        let order = if grid.is_higher_better() { rising.reverse() } else { rising };
        order.then(a.name.cmp(&b.name))
    });
    let mut counted: Vec<&[usize]> = common.iter().map(|(setting, _)| *setting).collect();
    counted.dedup();
    settings.sort_unstable();
    settings.dedup();
    let ahead = ahead(grid, &places);
    let settings = (counted.len(), settings.len());
    Some(Ranking { trace, settings, seeds: seeds.len(), places, unranked, ahead })
}

/// Mean difference relative to the mean of `b`, with the ends of its interval.
fn change(a: &[f64], b: &[f64]) -> Option<(f64, Option<(f64, f64)>)> {
    let base = stats::mean(b).filter(|base| *base != 0.0)?.abs();
    let mean = (stats::mean(a)? - stats::mean(b)?) / base;
    let ends = match stats::paired_difference(a, b) {
        Some(Difference::Spread(i)) => Some((i.low() / base, i.high() / base)),
        _ => None,
    };
    Some((mean, ends))
}

fn best(grid: &Grid, trace: usize, name: usize) -> Option<(Vec<usize>, f64)> {
    let own = grid.points.iter().filter(|point| point.trace == trace && point.name == name);
    let valued = |point: &Point| Some((point.setting.clone(), point.estimate(grid.target)?.0));
    own.filter_map(valued).reduce(|best, next| {
        let is_better = next.1 != best.1 && grid.better(next.1, best.1) == next.1;
        if is_better { next } else { best }
    })
}

fn ahead(grid: &Grid, places: &[Place]) -> Vec<usize> {
    let rivals: Vec<&Place> = places.iter().filter(|place| !grid.is_bound[place.name]).collect();
    let Some(first) = rivals.first() else { return Vec::new() };
    let better = grid.target.better.unwrap_or(Better::Higher);
    let is_ahead = |place: &&&Place| match stats::paired_difference(&place.samples, &first.samples) {
        Some(difference) => difference.verdict(better) == Verdict::NoDifferenceShown,
        None => place.mean.0 == first.mean.0,
    };
    rivals.iter().filter(is_ahead).map(|place| place.name).collect()
}

/// Two names whose order is one on a trace and the other on another one, each shown by an interval without zero.
#[derive(Clone, Debug, PartialEq)]
pub struct Flip {
    /// The two names.
    pub names: (usize, usize),
    /// The trace on which the first of them is ahead, and by how much of the second, with the interval.
    pub first: (usize, f64, (f64, f64)),
    /// The trace on which the second is ahead, and by how much of the first, with the interval.
    pub second: (usize, f64, (f64, f64)),
}

impl Flip {
    /// The smaller of both leads.
    fn size(&self) -> f64 {
        self.first.1.abs().min(self.second.1.abs())
    }
}

/// The pairs that change places, the largest first, each once with the traces that show it best; and of how many
/// pairs. Bounds are nobody's rivals.
pub fn flips(grid: &Grid, rankings: &[Ranking]) -> (Vec<Flip>, usize) {
    let higher = grid.is_higher_better();
    // How far the first is ahead of the second, relative to the second.
    let lead = |ranking: &Ranking, a: usize, b: usize| {
        let of = |name: usize| ranking.places.iter().find(|place| place.name == name);
        let (mean, ends) = change(&of(a)?.samples, &of(b)?.samples)?;
        let (low, high) = ends?;
        let (mean, low, high) = if higher { (mean, low, high) } else { (-mean, -high, -low) };
        (low > 0.0).then_some((ranking.trace, mean, (low, high)))
    };
    let rivals: Vec<usize> = (0..grid.names.len()).filter(|name| !grid.is_bound[*name]).collect();
    let (mut found, mut pairs) = (Vec::new(), 0);
    for (at, &a) in rivals.iter().enumerate() {
        for &b in &rivals[at + 1..] {
            pairs += 1;
            let most = |a: usize, b: usize| {
                let leads = rankings.iter().filter_map(|ranking| lead(ranking, a, b));
                leads.reduce(|best, next| if next.1 > best.1 { next } else { best })
            };
            if let (Some(first), Some(second)) = (most(a, b), most(b, a)) {
                found.push(Flip { names: (a, b), first, second });
            }
        }
    }
    found.sort_by(|a, b| b.size().total_cmp(&a.size()).then(a.names.cmp(&b.names)));
    (found, pairs)
}

//! What matters: how far the target moves between the values of one factor, all else equal.
//!
//! A *combination* is a choice of everything else: trace, name and the other knobs. In each, the means over the
//! seeds that all of its values share are compared. What the worst value loses against the best is taken per
//! combination; the change from one value to another per combination and seed, so that it has an interval.

use std::collections::BTreeMap;

use super::{Grid, Point, median};
use crate::stats;

/// What is varied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Factor {
    /// The policy, or the row.
    Name,
    /// The knob with this number.
    Knob(usize),
}

/// What a factor moves.
#[derive(Clone, Debug, PartialEq)]
pub struct Sensitivity {
    /// The factor.
    pub factor: Factor,
    /// Combinations of everything else with results under two or more of its values.
    pub combinations: usize,
    /// What its worst value loses against its best, 0 to 1: the median over combinations.
    pub median: f64,
    /// The least and the most of that.
    pub range: (f64, f64),
    /// Its values that have results, in order.
    pub values: Vec<ValueEffect>,
    /// From the value that is best on the whole to the one that is worst.
    pub change: Option<Change>,
}

/// What a value does.
#[derive(Clone, Debug, PartialEq)]
pub struct ValueEffect {
    /// Number of the value, or of the name.
    pub value: usize,
    /// Mean share of the best of each combination that it reaches, 0 to 1.
    pub share: f64,
    /// Combinations in which it is best, alone or with others.
    pub wins: usize,
    /// Combinations that have it.
    pub of: usize,
    /// The target against that under the first value; none for the first itself.
    pub against_first: Option<Change>,
}

/// A relative change of the target from one value to another.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    /// The values.
    pub from: usize,
    /// See `from`.
    pub to: usize,
    /// Median over combinations, mean over seeds: -0.2 is a fifth less.
    pub mean: f64,
    /// Half its 95 % interval over seeds, where they differ.
    pub half_width: Option<f64>,
    /// Seeds.
    pub seeds: usize,
}

/// One combination: results per value.
pub(super) type Combination<'g> = BTreeMap<usize, &'g Point<'g>>;

/// Every factor that was varied alone somewhere, what moves the target most first; of all names, or of one only.
pub fn sensitivities(grid: &Grid, name: Option<usize>) -> Vec<Sensitivity> {
    let by_name = name.is_none().then_some(Factor::Name);
    let factors = by_name.into_iter().chain((0..grid.knobs.len()).map(Factor::Knob));
    let mut all: Vec<Sensitivity> = factors.filter_map(|factor| sensitivity(grid, factor, name)).collect();
    all.sort_by(|a, b| b.median.total_cmp(&a.median).then(a.factor.cmp(&b.factor)));
    all
}

fn sensitivity(grid: &Grid, factor: Factor, only: Option<usize>) -> Option<Sensitivity> {
    let mut groups: BTreeMap<Vec<usize>, Combination> = BTreeMap::new();
    for point in &grid.points {
        let is_rival = !grid.is_bound[point.name] && only.is_none_or(|name| name == point.name);
        if !is_rival || point.samples(grid.target).is_empty() {
            continue;
        }
        let mut rest = vec![point.trace];
        let value = match factor {
            Factor::Name => {
                rest.extend(&point.setting);
                point.name
            }
            Factor::Knob(knob) => {
                rest.push(point.name);
                rest.extend(point.setting.iter().enumerate().filter(|(k, _)| *k != knob).map(|(_, v)| v));
                point.setting[knob]
            }
        };
        groups.entry(rest).or_default().insert(value, point);
    }
    let combinations: Vec<Vec<(usize, f64)>> =
        groups.values().filter_map(|group| means(grid, group)).collect();
    let mut losses = Vec::new();
    let mut effects: BTreeMap<usize, (f64, usize, usize)> = BTreeMap::new();
    for combination in &combinations {
        let best = combination.iter().map(|(_, mean)| *mean).reduce(|a, b| grid.better(a, b))?;
        let shares: Vec<(usize, f64)> =
            combination.iter().filter_map(|(value, mean)| Some((*value, grid.share(*mean, best)?))).collect();
        // Where all are nothing, nothing is lost.
        let Some(worst) = shares.iter().map(|(_, share)| *share).reduce(f64::min) else { continue };
        losses.push(1.0 - worst);
        for (value, share) in shares {
            let (sum, wins, of) = effects.entry(value).or_default();
            (*sum, *wins, *of) = (*sum + share, *wins + usize::from(share == 1.0), *of + 1);
        }
    }
    let first = effects.keys().next().copied()?;
    let against_first = |value| (value != first).then(|| change(grid, &groups, first, value)).flatten();
    let effect = |(&value, &(sum, wins, of)): (&usize, &(f64, usize, usize))| ValueEffect {
        value,
        share: sum / of as f64,
        wins,
        of,
        against_first: against_first(value),
    };
    let values: Vec<ValueEffect> = effects.iter().map(effect).collect();
    let on_the_whole =
        standing(grid, &combinations, values.len()).or_else(|| standing(grid, &combinations, 0))?;
    let highest = on_the_whole.iter().reduce(|a, b| if b.1 > a.1 { b } else { a })?.0;
    let lowest = on_the_whole.iter().reduce(|a, b| if b.1 < a.1 { b } else { a })?.0;
    let range = losses.iter().fold((1.0, 0.0), |(low, high), loss| (loss.min(low), loss.max(high)));
    Some(Sensitivity {
        factor,
        combinations: losses.len(),
        median: median(&losses)?,
        range,
        change: (highest != lowest).then(|| change(grid, &groups, highest, lowest)).flatten(),
        values,
    })
}

/// Mean share of the best per value, over the combinations with at least so many values: shares of some combinations
/// and of others are no fair comparison where a value lacks the hard ones.
fn standing(grid: &Grid, combinations: &[Vec<(usize, f64)>], least: usize) -> Option<Vec<(usize, f64)>> {
    let mut shares: BTreeMap<usize, Vec<f64>> = BTreeMap::new();
    for combination in combinations.iter().filter(|combination| combination.len() >= least) {
        let best = combination.iter().map(|(_, mean)| *mean).reduce(|a, b| grid.better(a, b))?;
        for (value, mean) in combination {
            if let Some(share) = grid.share(*mean, best) {
                shares.entry(*value).or_default().push(share);
            }
        }
    }
    let means = shares.into_iter().filter_map(|(value, shares)| Some((value, stats::mean(&shares)?)));
    let means: Vec<(usize, f64)> = means.collect();
    (!means.is_empty()).then_some(means)
}

/// Mean of the target per value over the seeds that all of them have; none where there is nothing to compare.
fn means(grid: &Grid, group: &Combination) -> Option<Vec<(usize, f64)>> {
    if group.len() < 2 {
        return None;
    }
    let value = |point: &Point, seed: u64| grid.target.value(point.runs.get(&seed)?);
    let seeds = group.values().next()?.runs.keys().copied();
    let shared: Vec<u64> = seeds.filter(|seed| group.values().all(|p| value(p, *seed).is_some())).collect();
    let mean = |point: &Point| {
        stats::mean(&shared.iter().filter_map(|seed| value(point, *seed)).collect::<Vec<_>>())
    };
    group.iter().map(|(number, point)| Some((*number, mean(point)?))).collect()
}

/// The change from one value to another.
pub(super) fn change(
    grid: &Grid,
    groups: &BTreeMap<Vec<usize>, Combination>,
    from: usize,
    to: usize,
) -> Option<Change> {
    let mut by_seed: BTreeMap<u64, Vec<f64>> = BTreeMap::new();
    for group in groups.values() {
        let (Some(a), Some(b)) = (group.get(&from), group.get(&to)) else { continue };
        for (seed, row) in &a.runs {
            let base = grid.target.value(row).filter(|base| *base != 0.0);
            let other = b.runs.get(seed).and_then(|row| grid.target.value(row));
            if let (Some(base), Some(other)) = (base, other) {
                by_seed.entry(*seed).or_default().push(other / base - 1.0);
            }
        }
    }
    let samples: Vec<f64> = by_seed.values().filter_map(|changes| median(changes)).collect();
    let half_width = stats::interval(&samples).map(|i| i.half_width);
    Some(Change { from, to, mean: stats::mean(&samples)?, half_width, seeds: samples.len() })
}

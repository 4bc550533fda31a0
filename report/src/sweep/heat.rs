//! Two knobs at a time: for each pair of their values, how much of the best is reached.
//!
//! The others are not averaged over, as numbers of different traces or models have no common scale: in each
//! combination of the rest every mean over seeds is divided by the best that any name reaches under any pair, and of
//! these shares the median is shown.

use std::collections::{BTreeMap, BTreeSet};

use super::sensitivity::{Combination, change};
use super::{Change, Factor, Grid, Point, Sensitivity, median};

/// Values that a side may have.
const SIDE_MAX: usize = 24;

/// The pairs of values of two knobs.
#[derive(Clone, Debug, PartialEq)]
pub struct Heat {
    /// The knob across, the more sensitive one.
    pub across: usize,
    /// The knob upwards.
    pub up: usize,
    /// Combinations of the rest that are looked at, per panel at most.
    pub combinations: usize,
    /// One per name.
    pub panels: Vec<HeatPanel>,
}

/// The pairs under one name.
#[derive(Clone, Debug, PartialEq)]
pub struct HeatPanel {
    /// Number of the name.
    pub name: usize,
    /// Per value upwards, per value across.
    pub cells: Vec<Vec<HeatCell>>,
    /// The best pair: values across and upwards.
    pub best: Option<(usize, usize)>,
    /// The worst one.
    pub worst: Option<(usize, usize)>,
    /// The target from the best pair to the worst.
    pub change: Option<Change>,
}

/// A pair of values.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HeatCell {
    /// Median over the rest of the share of the best that is reached; none without a result.
    pub share: Option<f64>,
    /// Mean target where there is one combination of the rest only.
    pub value: Option<f64>,
    /// Simulations that failed.
    pub failed: usize,
    /// Simulations that are missing.
    pub missing: usize,
}

/// The two most sensitive knobs of numbers that were varied against each other: of their pairs at least half were
/// run. None where there are no such two.
pub fn heat(grid: &Grid, sensitivities: &[Sensitivity]) -> Option<Heat> {
    let knobs: Vec<usize> = sensitivities
        .iter()
        .filter_map(|one| match one.factor {
            Factor::Knob(knob) => Some(knob),
            Factor::Name => None,
        })
        .filter(|&knob| grid.knobs[knob].is_numeric() && grid.knobs[knob].values.len() <= SIDE_MAX)
        .collect();
    let pairs = knobs.iter().enumerate().flat_map(|(at, &a)| knobs[at + 1..].iter().map(move |&b| (a, b)));
    let (across, up) = pairs.into_iter().find(|&(a, b)| is_crossed(grid, a, b))?;
    let rest_of = |point: &Point| {
        let others = point.setting.iter().enumerate().filter(|(k, _)| *k != across && *k != up);
        let mut rest = vec![point.trace];
        rest.extend(others.map(|(_, value)| *value));
        rest
    };
    let mut best: BTreeMap<Vec<usize>, f64> = BTreeMap::new();
    for point in grid.points.iter().filter(|point| !grid.is_bound[point.name]) {
        if let Some((mean, _)) = point.estimate(grid.target) {
            best.entry(rest_of(point)).and_modify(|best| *best = grid.better(*best, mean)).or_insert(mean);
        }
    }
    let (columns, rows) = (grid.knobs[across].values.len(), grid.knobs[up].values.len());
    let mut panels = Vec::new();
    let mut combinations = 0;
    for name in 0..grid.names.len() {
        let mut shares: Vec<Vec<(Vec<f64>, Vec<f64>)>> = vec![vec![Default::default(); columns]; rows];
        let mut cells = vec![vec![HeatCell::default(); columns]; rows];
        let mut groups: BTreeMap<Vec<usize>, Combination> = BTreeMap::new();
        for point in grid.points.iter().filter(|point| point.name == name) {
            let (x, y) = (point.setting[across], point.setting[up]);
            cells[y][x].failed += point.failed;
            cells[y][x].missing += point.missing;
            let Some((mean, _)) = point.estimate(grid.target) else { continue };
            if let Some(share) = best.get(&rest_of(point)).and_then(|best| grid.share(mean, *best)) {
                shares[y][x].0.push(share);
            }
            shares[y][x].1.push(mean);
            groups.entry(rest_of(point)).or_default().insert(y * columns + x, point);
        }
        for (cell, (shares, means)) in cells.iter_mut().flatten().zip(shares.into_iter().flatten()) {
            combinations = combinations.max(means.len());
            cell.share = median(&shares);
            cell.value = means.first().copied().filter(|_| means.len() == 1);
        }
        let shown = |at: usize| Some((at, cells[at / columns][at % columns].share?));
        let shown: Vec<(usize, f64)> = (0..rows * columns).filter_map(shown).collect();
        let best = shown.iter().reduce(|a, b| if b.1 > a.1 { b } else { a }).map(|(at, _)| *at);
        let worst = shown.iter().reduce(|a, b| if b.1 < a.1 { b } else { a }).map(|(at, _)| *at);
        let apart = best.zip(worst).filter(|(a, b)| a != b);
        let change = apart.and_then(|(a, b)| change(grid, &groups, a, b));
        let pair = |at: usize| (at % columns, at / columns);
        if best.is_some() || cells.iter().flatten().any(|cell| cell.failed > 0) {
            panels.push(HeatPanel { name, cells, best: best.map(pair), worst: worst.map(pair), change });
        }
    }
    Some(Heat { across, up, combinations, panels }).filter(|heat| !heat.panels.is_empty())
}

fn is_crossed(grid: &Grid, a: usize, b: usize) -> bool {
    let pairs: BTreeSet<(usize, usize)> =
        grid.points.iter().map(|point| (point.setting[a], point.setting[b])).collect();
    let all = grid.knobs[a].values.len() * grid.knobs[b].values.len();
    pairs.len() * 2 >= all && pairs.len() >= 4
}

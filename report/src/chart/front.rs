//! From the rows of a table to a front: a point for each setting, and those that none beats in both columns.

use std::collections::BTreeMap;

use super::{Chart, ChartError, Groups, axis, is_wide};
use crate::metric::{Metric, all, metric};
use crate::order::number;
use crate::plot::{AxisSpec, Frame, ParetoPoint, Wish, frontier, pareto};
use crate::sheet::Sheet;
use crate::stats;

/// Points of a front that are told in words.
const TOLD_MAX: usize = 24;

/// Both numbers of every row, by seed.
type BySeed<'a> = BTreeMap<&'a str, Vec<[f64; 2]>>;

/// What is drawn, and the settings of the front in words, the best across first.
#[derive(Clone, Debug, PartialEq)]
pub struct FrontDrawing {
    /// All settings that have both numbers.
    pub points: Vec<ParetoPoint>,
    /// The front in words, a line for each setting.
    pub told: Vec<String>,
    frame: Frame,
    axes: [AxisSpec; 2],
    wish: Wish,
}

impl FrontDrawing {
    /// The picture as SVG.
    pub fn svg(&self) -> String {
        let [across, upwards] = &self.axes;
        pareto(&self.frame, across, upwards, self.wish, &self.points)
    }
}

/// Compares the settings of a table by two columns: means over the seeds of all rows for which `is_chosen` holds. A
/// setting for which `is_bound` holds is drawn, but beats nobody.
///
/// # Errors
///
/// Where the choice gives no picture.
pub fn front(
    sheet: &Sheet,
    chart: &Chart,
    is_chosen: impl Fn(&[String]) -> bool,
    is_bound: impl Fn(&[String]) -> bool,
) -> Result<FrontDrawing, ChartError> {
    let (x, y) = (wished(sheet, chart.x)?, wished(sheet, chart.y)?);
    let wish = Wish { x: x.1, y: y.1 };
    let measured = |row: &&Vec<String>| !row[chart.x].is_empty() && !row[chart.y].is_empty();
    let rows = || sheet.rows.iter().filter(|row| is_chosen(row)).filter(measured);
    let columns: Vec<usize> = (0..sheet.columns.len()).filter(|column| sheet.is_setting(*column)).collect();
    let first = rows().next();
    let varies = |column: &usize| first.is_some_and(|first| rows().any(|row| row[*column] != first[*column]));
    let varied: Vec<usize> = columns.into_iter().filter(varies).collect();
    let (settings, curves) = (Groups::of(rows(), &varied), Groups::of(rows(), &chart.curve_by));
    let (names, curve_names) = (settings.names(sheet, &varied), curves.names(sheet, &chart.curve_by));
    let seed = sheet.index("seed");
    // Per setting one of its rows, and by seed what was measured.
    let mut samples: BTreeMap<usize, (&Vec<String>, BySeed<'_>)> = BTreeMap::new();
    for (line, row) in sheet.rows.iter().enumerate().filter(|(_, row)| is_chosen(row) && measured(row)) {
        let value = |column: usize| {
            number(&row[column]).ok_or_else(|| ChartError::NotANumber {
                line: line + 2,
                column: sheet.columns[column].clone(),
                value: row[column].clone(),
            })
        };
        let both = [value(chart.x)?, value(chart.y)?];
        let place = settings.place(row, &varied).unwrap_or_default();
        let seed = seed.map_or("", |seed| row[seed].as_str());
        let (_, by_seed) = samples.entry(place).or_insert_with(|| (row, BTreeMap::new()));
        by_seed.entry(seed).or_default().push(both);
    }
    let mut points: Vec<ParetoPoint> = Vec::new();
    let mut labels = Vec::new();
    for (place, (row, by_seed)) in &samples {
        let estimate = |axis: usize| {
            let of_seed = |all: &Vec<[f64; 2]>| {
                let values: Vec<f64> = all.iter().map(|both| both[axis]).collect();
                stats::mean(&values)
            };
            let means: Vec<f64> = by_seed.values().filter_map(of_seed).collect();
            let half = stats::interval(&means).map(|i| i.half_width).filter(|w| *w > 0.0);
            stats::mean(&means).map(|mean| (mean, half))
        };
        let (Some((at_x, x_half_width)), Some((at_y, y_half_width))) = (estimate(0), estimate(1)) else {
            continue;
        };
        let curve = curves.place(row, &chart.curve_by).unwrap_or_default();
        let name = curve_names.get(curve).cloned().unwrap_or_default();
        points.push(ParetoPoint {
            label: name.clone(),
            policy: name,
            x: at_x,
            x_half_width,
            y: at_y,
            y_half_width,
            is_bound: is_bound(row),
        });
        labels.push(names.get(*place).cloned().unwrap_or_default());
    }
    if points.is_empty() {
        let name = |column: usize| sheet.columns[column].clone();
        return Err(ChartError::Empty { x: name(chart.x), y: name(chart.y) });
    }
    let best = frontier(&points, wish);
    let told = best.iter().take(TOLD_MAX).map(|&i| {
        let point = &points[i];
        let across = x.0.words((point.x, point.x_half_width));
        let upwards = y.0.words((point.y, point.y_half_width));
        let label = if labels[i].is_empty() { "all rows" } else { &labels[i] };
        format!("{label}: {} {across}, {} {upwards}", x.0.title, y.0.title)
    });
    let mut told: Vec<String> = told.collect();
    if best.len() > TOLD_MAX {
        told.push(format!("and {} more", best.len() - TOLD_MAX));
    }
    let log = |asked: Option<bool>, values: &[f64], least: usize, ratio: f64| {
        asked.unwrap_or_else(|| is_wide(values, least, ratio))
    };
    let values = |of: fn(&ParetoPoint) -> f64| points.iter().map(of).collect::<Vec<f64>>();
    let axes = [
        axis(x.0.key, log(chart.log_x, &values(|point| point.x), 4, 50.0)).close_up(),
        axis(y.0.key, log(chart.log_y, &values(|point| point.y), 3, 100.0)).close_up(),
    ];
    let heading = format!("{} against {}", y.0.title, x.0.title);
    let frame = Frame { title: heading, width: 900, height: 520 };
    Ok(FrontDrawing { points, told, frame, axes, wish })
}

/// The metric of a column, and which way of it is better.
fn wished(sheet: &Sheet, column: usize) -> Result<(&'static Metric, stats::Better), ChartError> {
    let name = &sheet.columns[column];
    let found = metric(name).and_then(|metric| Some((metric, metric.better?)));
    found.ok_or_else(|| {
        let known = all().filter(|metric| metric.better.is_some() && sheet.index(metric.key).is_some());
        let known: Vec<&str> = known.map(|metric| metric.key).collect();
        ChartError::NoWish { column: name.clone(), known: known.join(", ") }
    })
}

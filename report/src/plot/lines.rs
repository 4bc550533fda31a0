//! Lines, steps, distribution functions and histograms of any series.

use std::fmt::Write;

use super::Frame;
use super::axis::{Axis, AxisSpec};
use super::scene::{Anchor, Grid, Panel, Point, SMALL, Sample, Scene, path, text_width};
use super::style::{Dash, Marker, QUIET, Style, style};
use crate::number::Unit;

/// Points under one name.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Series {
    /// Name in the legend.
    pub name: String,
    /// Points in the units of the axes; lines join them in this order.
    pub points: Vec<(f64, f64)>,
    /// Whether it is drawn thin, grey and dashed, as something to compare with.
    pub is_guide: bool,
}

impl Series {
    /// A series with this name.
    pub fn new(name: &str, points: Vec<(f64, f64)>) -> Series {
        Series { name: name.to_owned(), points, is_guide: false }
    }

    /// A thin grey line to compare with.
    pub fn guide(name: &str, points: Vec<(f64, f64)>) -> Series {
        Series { name: name.to_owned(), points, is_guide: true }
    }
}

/// Points of a line beyond which it is thinned out: more are not seen.
const POINTS_MAX: usize = 400;

/// Lines between the points.
pub fn line_chart(frame: &Frame, x: &AxisSpec, y: &AxisSpec, series: &[Series]) -> String {
    chart(frame, x, y, None, series, false)
}

/// Lines that hold each value until the next point.
pub fn step_chart(frame: &Frame, x: &AxisSpec, y: &AxisSpec, series: &[Series]) -> String {
    chart(frame, x, y, None, series, true)
}

/// Cumulative distribution of samples, one curve per name.
pub fn cdf(frame: &Frame, x: &AxisSpec, samples: &[(String, Vec<f64>)]) -> String {
    let curves = samples.iter().map(|(name, values)| Series::new(name, cumulative(values)));
    cdf_with_guides(frame, x, &curves.collect::<Vec<_>>())
}

/// Cumulative curves that are already made, for example to stand beside guides.
pub(crate) fn cdf_with_guides(frame: &Frame, x: &AxisSpec, series: &[Series]) -> String {
    let y = AxisSpec::linear("share of requests", Unit::Share);
    let shares = Axis::linear(&y, 0.0, 1.0, 4).with_ticks(&[0.0, 0.25, 0.5, 0.75, 0.9, 1.0]);
    chart(frame, x, &y, Some(shares), series, true)
}

/// Points (value, share of samples up to it) in rising order; at most 400 of them.
pub(crate) fn cumulative(values: &[f64]) -> Vec<(f64, f64)> {
    let mut values: Vec<f64> = values.iter().copied().filter(|x| x.is_finite()).collect();
    values.sort_by(f64::total_cmp);
    let n = values.len();
    let points = n.min(POINTS_MAX);
    let pick = |i: usize| {
        let rank = if points < n { (i + 1) * n / points - 1 } else { i };
        (values[rank], (rank + 1) as f64 / n as f64)
    };
    let first = values.first().map(|x| (*x, 0.0));
    first.into_iter().chain((0..points).map(pick)).collect()
}

/// Numbers of samples per bin, one outline per name; bins are even along the axis.
pub fn histogram(frame: &Frame, x: &AxisSpec, samples: &[(String, Vec<f64>)]) -> String {
    let all = samples.iter().flat_map(|(_, values)| values.iter().copied());
    let axis = Axis::fit(x, all, 6);
    let bins = 48;
    let edge = |i: usize| axis.at(i as f64 / f64::from(bins));
    let outlines = samples.iter().map(|(name, values)| {
        let mut counts = vec![0_u64; bins as usize];
        for value in values.iter().filter(|x| x.is_finite()) {
            let bin = (axis.fraction(*value) * f64::from(bins)) as usize;
            if let Some(count) = counts.get_mut(bin.min(bins as usize - 1)) {
                *count += 1;
            }
        }
        let tops = counts.iter().enumerate().map(|(i, count)| (edge(i), *count as f64));
        let outline =
            if values.is_empty() { Vec::new() } else { tops.chain([(edge(bins as usize), 0.0)]).collect() };
        Series::new(name, outline)
    });
    let series: Vec<Series> = outlines.collect();
    let y = AxisSpec::linear("requests", Unit::Count);
    let plot = Plot { frame, x, y: &y, steps: true, filled: true };
    let heights = series.iter().flat_map(|s| s.points.iter().map(|p| p.1));
    let heights = Axis::fit(&y, heights, 5);
    plot.draw(axis, heights, &series)
}

fn chart(
    frame: &Frame,
    x: &AxisSpec,
    y: &AxisSpec,
    fixed_y: Option<Axis>,
    series: &[Series],
    steps: bool,
) -> String {
    let points = || series.iter().flat_map(|s| &s.points);
    let x_axis = Axis::fit(x, points().map(|p| p.0), 7);
    let y_axis = fixed_y.unwrap_or_else(|| Axis::fit(y, points().map(|p| p.1), 5));
    Plot { frame, x, y, steps, filled: false }.draw(x_axis, y_axis, series)
}

struct Plot<'a> {
    frame: &'a Frame,
    x: &'a AxisSpec,
    y: &'a AxisSpec,
    steps: bool,
    filled: bool,
}

impl Plot<'_> {
    fn draw(&self, x: Axis, y: Axis, series: &[Series]) -> String {
        let (width, height) = self.frame.size();
        let mut scene = Scene::new(width, height, &self.frame.title);
        let marked = !self.filled && series.iter().filter(|s| !s.is_guide).count() > 1;
        let styles = styles(series, marked);
        let entries: Vec<(String, Style)> =
            series.iter().zip(&styles).map(|(s, style)| (legend_name(s), *style)).collect();
        let alone = entries.len() == 1 && series[0].name.is_empty();
        let sample = if self.filled { Sample::Box } else { Sample::Line };
        let below = if alone { 36.0 } else { scene.legend(34.0, &entries, sample) };
        let panel = Panel {
            left: 44.0 + text_width(&"0".repeat(y.label_width()), SMALL),
            top: below + 6.0,
            right: f64::from(width) - 22.0,
            bottom: f64::from(height) - 50.0,
            x_title: x.title(&self.x.label),
            y_title: y.title(&self.y.label),
            x,
            y,
            x_labels: true,
            y_labels: true,
            grid: Grid::Both,
        };
        for (i, (s, style)) in series.iter().zip(&styles).enumerate() {
            let line = self.series(&mut scene, &panel, s, *style);
            // Each series begins at another place, so that equal lines show both markers.
            let shift = 0.25 + (i % 5) as f64 * 0.15;
            for at in spaced(&line, &panel, shift) {
                scene.mark(at, *style, 4.0);
            }
        }
        if series.iter().all(|s| !s.points.iter().any(is_finite)) {
            no_data(&mut scene, &panel);
        }
        scene.panels.push(panel);
        scene.draw()
    }

    /// Draws one series and returns its line in pixels.
    fn series(&self, scene: &mut Scene, panel: &Panel, series: &Series, style: Style) -> Vec<Point> {
        let finite: Vec<(f64, f64)> = series.points.iter().copied().filter(is_finite).collect();
        let thin = thin(&finite);
        let points: Vec<Point> = thin.iter().map(|(x, y)| panel.pixel(*x, *y)).collect();
        let line = if self.steps { stairs(&points) } else { points };
        if let (true, Some(first), Some(last)) = (self.filled, line.first(), line.last()) {
            let floor = panel.bottom - 1.0;
            let mut area = vec![(first.0, floor)];
            area.extend(&line);
            area.push((last.0, floor));
            let mut data = String::new();
            path(&mut data, &area);
            let fill = style.colour.hex();
            let _ = writeln!(scene.areas, "<path d=\"{data}Z\" fill=\"{fill}\" fill-opacity=\"0.25\"/>");
        }
        let width = if series.is_guide { 1.2 } else { 2.0 };
        let dash = if self.filled { Dash::Solid } else { style.dash };
        scene.line(line.clone(), Style { dash, ..style }, width, &series.name);
        line
    }
}

/// Guides take no place in the order of colours.
fn styles(series: &[Series], marked: bool) -> Vec<Style> {
    let mut next = 0;
    let guide = Style { colour: QUIET, dash: Dash::Dotted, marker: Marker::None };
    let mut styles = Vec::new();
    for s in series {
        let own = style(next);
        let marker = if marked { own.marker } else { Marker::None };
        styles.push(if s.is_guide { guide } else { Style { marker, ..own } });
        next += usize::from(!s.is_guide);
    }
    styles
}

fn legend_name(series: &Series) -> String {
    let empty = !series.points.iter().any(is_finite);
    if empty { format!("{} (no data)", series.name) } else { series.name.clone() }
}

pub(super) fn is_finite(point: &(f64, f64)) -> bool {
    point.0.is_finite() && point.1.is_finite()
}

pub(super) fn no_data(scene: &mut Scene, panel: &Panel) {
    let at = ((panel.left + panel.right) / 2.0, (panel.top + panel.bottom) / 2.0);
    scene.text(at, "no data", 14.0, QUIET, Anchor::Middle, false);
}

/// Each value held until the next point.
pub(super) fn stairs(points: &[Point]) -> Vec<Point> {
    let mut out: Vec<Point> = Vec::with_capacity(points.len() * 2);
    for point in points {
        if let Some(last) = out.last().copied()
            && last.1 != point.1
        {
            out.push((point.0, last.1));
        }
        out.push(*point);
    }
    out
}

/// A long line with the lowest and the highest point of each stretch, so that no peak is lost.
pub(super) fn thin(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    if points.len() <= POINTS_MAX {
        return points.to_vec();
    }
    let stretch = points.len().div_ceil(POINTS_MAX / 2);
    let mut out = Vec::with_capacity(POINTS_MAX + 2);
    out.extend(points.first());
    for part in points.chunks(stretch) {
        let by_height = |a: &&(f64, f64), b: &&(f64, f64)| a.1.total_cmp(&b.1);
        let low = part.iter().min_by(by_height);
        let high = part.iter().max_by(by_height);
        if let (Some(low), Some(high)) = (low, high) {
            out.extend(if low.0 <= high.0 { [*low, *high] } else { [*high, *low] });
        }
    }
    out.extend(points.last());
    out
}

/// Where markers stand on a line: some places spread along its length, the first of them after
/// this share of a gap.
fn spaced(line: &[Point], panel: &Panel, shift: f64) -> Vec<Point> {
    let length = |a: &Point, b: &Point| (a.0 - b.0).hypot(a.1 - b.1);
    let total: f64 = line.windows(2).map(|w| length(&w[0], &w[1])).sum();
    let gap = (total / 5.5).max((panel.right - panel.left) / 8.0);
    let mut marks = Vec::new();
    let mut next = gap * shift;
    let mut walked = 0.0;
    for pair in line.windows(2) {
        let step = length(&pair[0], &pair[1]);
        while step > 0.0 && walked + step >= next && marks.len() < 12 {
            let part = (next - walked) / step;
            let (a, b) = (pair[0], pair[1]);
            marks.push((a.0 + (b.0 - a.0) * part, a.1 + (b.1 - a.1) * part));
            next += gap;
        }
        walked += step;
    }
    if marks.is_empty() { line.last().copied().into_iter().collect() } else { marks }
}

//! The cache over time: how full it is, and how much of it is of no use.

use super::Frame;
use super::axis::{Axis, AxisSpec};
use super::lines::{no_data, stairs, thin};
use super::scene::{Anchor, Grid, Panel, Point, SMALL, Sample, Scene};
use super::style::{INK, Style, style};
use crate::number::Unit;
use crate::row::TimelineRow;

/// One row of panels: what it is called, its unit, and how it is read.
struct Measure {
    title: &'static str,
    unit: Unit,
    read: fn(&TimelineRow) -> f64,
}

const MEASURES: [Measure; 4] = [
    Measure {
        title: "utilisation: live / cells",
        unit: Unit::Share,
        read: |row| share(row.live_cells, row.cells),
    },
    Measure {
        title: "internal fragmentation: (held - live) / held",
        unit: Unit::Share,
        read: |row| share(row.held_cells.saturating_sub(row.live_cells), row.held_cells),
    },
    Measure {
        title: "external fragmentation: 1 - placeable / free",
        unit: Unit::Share,
        read: |row| share(row.free_cells.saturating_sub(row.placeable_cells), row.free_cells),
    },
    Measure { title: "requests waiting", unit: Unit::Count, read: |row| f64::from(row.waiting) },
];

fn share(part: u32, whole: u32) -> f64 {
    if whole == 0 { 0.0 } else { f64::from(part) / f64::from(whole) }
}

/// The layer classes of a timeline, in order of appearance.
pub fn classes(rows: &[TimelineRow]) -> Vec<&str> {
    let mut classes: Vec<&str> = Vec::new();
    for row in rows {
        if !classes.contains(&row.class.as_str()) {
            classes.push(&row.class);
        }
    }
    classes
}

/// Utilisation, internal and external fragmentation, and the queue of one layer class over time:
/// a panel each, a line per policy (or row, where rows have names). Of several seeds the lowest is
/// drawn. Policies without rows keep their place in the order of colours.
pub fn timeline(frame: &Frame, rows: &[TimelineRow], class: &str, policies: &[&str]) -> String {
    let (width, height) = frame.size();
    let mut scene = Scene::new(width, height, &frame.title);
    let seed = rows.iter().map(|row| row.seed).min();
    let is_drawn =
        |row: &&TimelineRow| row.class == class && Some(row.seed) == seed && row.time_s.is_finite();
    let drawn: Vec<&TimelineRow> = rows.iter().filter(is_drawn).collect();
    let of = |policy: &str| -> Vec<&TimelineRow> {
        let mut own: Vec<&TimelineRow> = drawn.iter().filter(|row| row.name() == policy).copied().collect();
        own.sort_by(|a, b| a.time_s.total_cmp(&b.time_s));
        own
    };
    let lines: Vec<Vec<&TimelineRow>> = policies.iter().map(|policy| of(policy)).collect();
    let bare = |i: usize| Style { marker: super::style::Marker::None, ..style(i) };
    let entries: Vec<(String, Style)> =
        policies.iter().enumerate().map(|(i, policy)| ((*policy).to_owned(), bare(i))).collect();
    let top = scene.legend(34.0, &entries, Sample::Line) + 4.0;
    let measures: Vec<&Measure> = MEASURES
        .iter()
        .filter(|m| m.unit == Unit::Share || drawn.iter().any(|row| (m.read)(row) > 0.0))
        .collect();
    let time = AxisSpec::linear("time", Unit::Seconds);
    let end = drawn.iter().map(|row| row.time_s).fold(0.0, f64::max);
    let begin = drawn.iter().map(|row| row.time_s).fold(0.0, f64::min);
    let pitch = (f64::from(height) - 50.0 - top) / measures.len().max(1) as f64;
    for (i, measure) in measures.iter().enumerate() {
        let spec = AxisSpec::linear(measure.title, measure.unit);
        let y = match measure.unit {
            Unit::Share => Axis::linear(&spec, 0.0, 1.0, 2),
            _ => Axis::fit(&spec, drawn.iter().map(|row| (measure.read)(row)), 2),
        };
        let is_last = i + 1 == measures.len();
        let x = Axis::linear(&time, begin, end, 7);
        let panel = Panel {
            left: 60.0,
            top: top + pitch * i as f64 + 20.0,
            right: f64::from(width) - 22.0,
            bottom: top + pitch * (i + 1) as f64 - 4.0,
            x_title: if is_last { x.title("time") } else { String::new() },
            y_title: String::new(),
            x,
            y,
            x_labels: is_last,
            y_labels: true,
            grid: Grid::Both,
        };
        scene.text((panel.left, panel.top - 9.0), measure.title, SMALL, INK, Anchor::Start, false);
        for (p, own) in lines.iter().enumerate() {
            let points: Vec<(f64, f64)> = own.iter().map(|row| (row.time_s, (measure.read)(row))).collect();
            let pixels: Vec<Point> = thin(&points).iter().map(|(t, v)| panel.pixel(*t, *v)).collect();
            scene.line(stairs(&pixels), bare(p), 1.5, policies[p]);
        }
        if drawn.is_empty() {
            no_data(&mut scene, &panel);
        }
        scene.panels.push(panel);
    }
    scene.draw()
}

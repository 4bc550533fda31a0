//! A ranking: the value of everybody with its interval, and beside it the difference to the reference.

use super::Frame;
use super::axis::{Axis, AxisSpec};
use super::bars::{Tone, bar};
use super::lines::no_data;
use super::scene::{Anchor, Grid, Panel, SMALL, Scene, shorten, text_width};
use super::style::{Dash, INK, Marker, QUIET, Style};
use crate::number::{Unit, change, human};

/// A row of a ranking.
#[derive(Clone, Debug, PartialEq)]
pub struct PlaceRow {
    /// Name beside the bar.
    pub label: String,
    /// What may be said of it against the reference, as a colour.
    pub tone: Tone,
    /// Mean, and half its 95 % interval.
    pub value: (f64, Option<f64>),
    /// Relative difference to the reference, and the ends of its 95 % interval.
    pub change: Option<(f64, Option<(f64, f64)>)>,
}

/// Height of a row, in pixels.
const PITCH: f64 = 26.0;
/// Characters of a name that are shown.
const NAME_MAX: usize = 30;

/// A bar per row from zero, and its relative difference to the reference as a point with an interval about zero.
/// At least as high as the rows need.
pub fn places(frame: &Frame, axis: &AxisSpec, reference: &str, rows: &[PlaceRow]) -> String {
    // Few rows need less than a chart.
    let (width, least) = (frame.size().0, frame.height.clamp(120, 8000));
    let needed = 92.0 + PITCH * rows.len() as f64;
    let height = least.max(needed.min(8000.0) as u32);
    let mut scene = Scene::new(width, height, &frame.title);
    let names: Vec<String> = rows.iter().map(|row| shorten(&row.label, NAME_MAX)).collect();
    let widest = names.iter().map(|name| text_width(name, SMALL)).fold(60.0, f64::max);
    let left = 22.0 + widest.min(f64::from(width) * 0.4);
    let (top, bottom) = (60.0, f64::from(height) - 30.0);
    let pitch = ((bottom - top) / rows.len().max(1) as f64).min(PITCH * 1.3);
    let bottom = top + pitch * rows.len().max(1) as f64;
    let middle = |i: usize| top + pitch * (i as f64 + 0.5);
    for (i, (row, name)) in rows.iter().zip(&names).enumerate() {
        let is_reference = row.tone == Tone::Reference;
        scene.text((left - 10.0, middle(i)), name, SMALL, INK, Anchor::End, is_reference);
    }
    let has_changes = rows.iter().any(|row| row.change.is_some());
    let (gap, inside) = (30.0, f64::from(width) - left - 20.0);
    let first = if has_changes { (inside - gap) * 0.5 } else { inside };
    let values = panel((left, left + first), (top, bottom), bars_axis(axis, first, rows));
    let title = shorten(&axis.label, (first / (SMALL * 0.58)) as usize);
    scene.text((left, top - 13.0), &title, SMALL, INK, Anchor::Start, true);
    for (i, row) in rows.iter().enumerate() {
        bar(&mut scene, &values, middle(i), row.value, row.tone.colour());
        let end = values.pixel(row.value.0 + row.value.1.unwrap_or(0.0), 0.0).0;
        let text = human(row.value.0, axis.unit);
        scene.text((end + 7.0, middle(i)), &text, SMALL, INK, Anchor::Start, false);
    }
    if rows.is_empty() {
        no_data(&mut scene, &values);
    }
    scene.panels.push(values);
    if has_changes {
        let from = left + first + gap;
        let title = shorten(
            &format!("difference to {reference}"),
            ((inside - first - gap) / (SMALL * 0.58)) as usize,
        );
        scene.text((from, top - 13.0), &title, SMALL, INK, Anchor::Start, true);
        changes(&mut scene, (from, f64::from(width) - 20.0), (top, bottom), pitch, rows);
    }
    scene.draw()
}

fn panel((left, right): (f64, f64), (top, bottom): (f64, f64), x: Axis) -> Panel {
    let y = Axis::linear(&AxisSpec::linear("", Unit::Plain), 0.0, 1.0, 1);
    let (x_title, y_title) = (String::new(), String::new());
    let grid = Grid::Vertical;
    Panel { left, top, right, bottom, x, y, x_title, y_title, x_labels: true, y_labels: false, grid }
}

fn bars_axis(spec: &AxisSpec, width: f64, rows: &[PlaceRow]) -> Axis {
    let ends = rows.iter().map(|row| row.value.0 + row.value.1.unwrap_or(0.0)).filter(|end| end.is_finite());
    let largest = ends.fold(0.0, f64::max);
    // The number stands behind the bar and its interval, inside the panel.
    let room = (width / (width - 62.0).max(8.0)).min(2.0);
    Axis::linear(spec, 0.0, if largest > 0.0 { largest * room } else { 1.0 }, 4)
}

/// Points about a line at zero. What is very much worse than the others would hide how they differ, so the axis ends
/// at -100 % and is as long to the other side as the points need.
fn changes(scene: &mut Scene, across: (f64, f64), down: (f64, f64), pitch: f64, rows: &[PlaceRow]) {
    let ends = rows.iter().filter_map(|row| row.change).flat_map(|(mean, ends)| {
        let (low, high) = ends.unwrap_or((mean, mean));
        [mean, low.max(-1.2), high.min(mean.abs() * 3.0 + 1.0)]
    });
    let ends: Vec<f64> = ends.filter(|end| end.is_finite()).collect();
    let (low, high) =
        ends.iter().fold((0.0_f64, 0.0_f64), |(low, high), end| (low.min(*end), high.max(*end)));
    let span = (high - low).max(0.002);
    // Numbers stand on the side where there is room: behind the interval.
    let room = span * 86.0 / (across.1 - across.0 - 92.0).max(40.0);
    let spec = AxisSpec::linear("", Unit::Share);
    let x = Axis::linear(&spec, low - span * 0.04, high + room, 4);
    let panel = panel(across, down, x);
    let zero = panel.pixel(0.0, 0.0).0;
    let line = Style { colour: QUIET, dash: Dash::Solid, marker: Marker::None };
    scene.line(vec![(zero, down.0), (zero, down.1)], line, 1.2, "the reference");
    for (i, row) in rows.iter().enumerate() {
        let y = down.0 + pitch * (i as f64 + 0.5);
        let Some((mean, ends)) = row.change.filter(|(mean, _)| mean.is_finite()) else {
            let text = if row.tone == Tone::Reference { "reference" } else { "-" };
            scene.text((zero + 8.0, y), text, SMALL, QUIET, Anchor::Start, false);
            continue;
        };
        let style = Style { colour: row.tone.colour(), dash: Dash::Solid, marker: Marker::Circle };
        let mut right = panel.pixel(mean, 0.0).0;
        if let Some((low, high)) = ends {
            let [a, b] = [low, high].map(|end| panel.pixel(end, 0.0).0);
            let ink = Style { colour: INK, ..style };
            scene.line(vec![(a, y), (b, y)], ink, 1.4, "");
            // What ends beyond the picture has no end in it.
            let is_cut = [low < panel.x.at(0.0), high > panel.x.at(1.0)];
            for (x, _) in [a, b].into_iter().zip(is_cut).filter(|(_, is_cut)| !is_cut) {
                scene.line(vec![(x, y - 4.0), (x, y + 4.0)], ink, 1.4, "");
            }
            right = right.max(b);
        }
        scene.mark((panel.pixel(mean, 0.0).0, y), style, 5.0);
        let mut at = right + 9.0;
        // The line at zero does not go through a number.
        let text = change(mean);
        if zero > at - 3.0 && zero < at + text_width(&text, SMALL) {
            at = zero + 6.0;
        }
        scene.text((at, y), &text, SMALL, INK, Anchor::Start, false);
    }
    scene.panels.push(panel);
}

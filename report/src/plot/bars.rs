//! Rows of an ablation: a bar with its interval per row and measure, measures beside each other.

use std::fmt::Write;

use super::Frame;
use super::axis::{Axis, AxisSpec};
use super::lines::no_data;
use super::scene::{Anchor, Grid, Panel, SMALL, Scene, shorten, text_width};
use super::style::{Dash, INK, Marker, QUIET, Rgb, Style};
use crate::number::{Unit, brief};

/// What a row is, for its colour; its note says it in words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tone {
    /// What the others are measured against.
    Reference,
    /// As wished.
    Good,
    /// Better, but not all that is wished.
    Fair,
    /// No different.
    Neutral,
    /// Better in one way and worse in another.
    Mixed,
    /// Worse.
    Bad,
}

impl Tone {
    pub(super) fn colour(self) -> Rgb {
        match self {
            Tone::Reference => Rgb(0x55, 0x55, 0x55),
            Tone::Good => Rgb(0x00, 0x9E, 0x73),
            Tone::Fair => Rgb(0x8F, 0xD3, 0xBD),
            Tone::Neutral => Rgb(0xB4, 0xB8, 0xBC),
            Tone::Mixed => Rgb(0xE6, 0x9F, 0x00),
            Tone::Bad => Rgb(0xD5, 0x5E, 0x00),
        }
    }
}

/// One row.
#[derive(Clone, Debug, PartialEq)]
pub struct RowBars {
    /// Name beside the bars.
    pub label: String,
    /// A few words below the name.
    pub note: String,
    /// Colour of its bars.
    pub tone: Tone,
    /// Per measure: mean, and half the 95 % interval where there is one. None where it was not
    /// measured.
    pub values: Vec<Option<(f64, Option<f64>)>>,
}

/// Height of a row, in pixels.
const PITCH: f64 = 38.0;
/// Characters of a name that are shown.
const NAME_MAX: usize = 56;

/// A panel per measure, a bar per row, with intervals and numbers; a dashed line goes down from
/// every value of the reference. At least as high as the rows need.
pub fn row_bars(frame: &Frame, measures: &[AxisSpec], rows: &[RowBars]) -> String {
    let (width, least) = frame.size();
    let needed = 96.0 + PITCH * rows.len() as f64;
    let height = least.max(needed.min(8000.0) as u32);
    let mut scene = Scene::new(width, height, &frame.title);
    let names: Vec<String> = rows.iter().map(|row| shorten(&row.label, NAME_MAX)).collect();
    let widest = names.iter().map(|name| text_width(name, SMALL)).fold(60.0, f64::max);
    let left = 22.0 + widest.min(f64::from(width) * 0.4);
    let gap = 26.0;
    let count = measures.len().max(1) as f64;
    let each = ((f64::from(width) - left - 20.0 - gap * (count - 1.0)) / count).max(8.0);
    let (top, bottom) = (62.0, f64::from(height) - 30.0);
    let pitch = ((bottom - top) / rows.len().max(1) as f64).min(PITCH * 1.3);
    let middle = |i: usize| top + pitch * (i as f64 + 0.5);
    for (i, row) in rows.iter().enumerate() {
        let is_reference = row.tone == Tone::Reference;
        if is_reference {
            let (y, w) = (middle(i) - pitch * 0.5, f64::from(width) - 16.0);
            let _ = writeln!(
                scene.areas,
                "<rect x=\"8\" y=\"{y:.1}\" width=\"{w:.1}\" height=\"{pitch:.1}\" fill=\"#000\" fill-opacity=\"0.05\"/>"
            );
        }
        let up = if row.note.is_empty() { 0.0 } else { 7.0 };
        scene.text((left - 10.0, middle(i) - up), &names[i], SMALL, INK, Anchor::End, is_reference);
        if !row.note.is_empty() {
            let note = shorten(&row.note, NAME_MAX);
            scene.text((left - 10.0, middle(i) + 8.0), &note, SMALL - 1.0, QUIET, Anchor::End, false);
        }
    }
    let reference = rows.iter().position(|row| row.tone == Tone::Reference);
    for (m, measure) in measures.iter().enumerate() {
        let value = |row: &RowBars| {
            let (mean, half) = row.values.get(m).copied().flatten()?;
            let half = half.filter(|half| half.is_finite() && *half > 0.0);
            mean.is_finite().then_some((mean, half))
        };
        let ends = rows.iter().filter_map(value).map(|(mean, half)| mean + half.unwrap_or(0.0));
        let largest = ends.fold(0.0, f64::max);
        // The number stands behind the bar and its interval, inside the panel.
        let room = (each / (each - 52.0).max(8.0)).min(2.0);
        let x = Axis::linear(measure, 0.0, if largest > 0.0 { largest * room } else { 1.0 }, 4);
        let from = left + (each + gap) * m as f64;
        let panel = Panel {
            left: from,
            top,
            right: from + each,
            bottom,
            x_title: String::new(),
            y_title: String::new(),
            x,
            y: Axis::linear(&AxisSpec::linear("", Unit::Plain), 0.0, 1.0, 1),
            x_labels: true,
            y_labels: false,
            grid: Grid::Vertical,
        };
        let title = shorten(&measure.label, (each / (SMALL * 0.58)) as usize);
        scene.text((from, top - 13.0), &title, SMALL, INK, Anchor::Start, true);
        let guide = reference.filter(|r| r + 1 < rows.len()).and_then(|r| value(&rows[r]));
        let guide = guide.map(|(mean, _)| panel.pixel(mean, 0.0).0);
        for (i, row) in rows.iter().enumerate() {
            let y = middle(i);
            let Some((mean, half)) = value(row) else {
                scene.text((panel.left + 6.0, y), "-", SMALL, QUIET, Anchor::Start, false);
                continue;
            };
            bar(&mut scene, &panel, y, (mean, half), row.tone.colour());
            let end = panel.pixel(mean + half.unwrap_or(0.0), 0.0).0;
            let text = brief(mean);
            let mut at = end + 7.0;
            // The line of the reference does not go through a number.
            if guide.is_some_and(|x| x > at - 4.0 && x < at + text_width(&text, SMALL) + 2.0) {
                at = guide.unwrap_or(at) + 6.0;
            }
            scene.text((at, y), &text, SMALL, INK, Anchor::Start, false);
        }
        if let (Some(r), Some(x)) = (reference, guide) {
            let style = Style { colour: Tone::Reference.colour(), dash: Dash::Dotted, marker: Marker::None };
            scene.line(vec![(x, middle(r)), (x, panel.bottom)], style, 1.2, "value of the reference");
        }
        if rows.is_empty() {
            no_data(&mut scene, &panel);
        }
        scene.panels.push(panel);
    }
    scene.draw()
}

pub(super) fn bar(scene: &mut Scene, panel: &Panel, y: f64, (mean, half): (f64, Option<f64>), colour: Rgb) {
    let (start, end) = (panel.pixel(0.0, 0.0).0, panel.pixel(mean, 0.0).0);
    // Zero is a line, not nothing.
    let width = (end - start).max(1.5);
    let _ = writeln!(
        scene.areas,
        "<rect x=\"{start:.1}\" y=\"{:.1}\" width=\"{width:.1}\" height=\"16\" fill=\"{}\"/>",
        y - 8.0,
        colour.hex()
    );
    if let Some(half) = half {
        let style = Style { colour: INK, dash: Dash::Solid, marker: Marker::None };
        let ends = [(mean - half).max(0.0), mean + half].map(|value| panel.pixel(value, 0.0).0);
        scene.line(vec![(ends[0], y), (ends[1], y)], style, 1.4, "");
        for x in ends {
            scene.line(vec![(x, y - 4.0), (x, y + 4.0)], style, 1.4, "");
        }
    }
}

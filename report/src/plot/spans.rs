//! Sensitivity bars: how much is lost by the worst choice, in the median and at the ends of the range.

use std::fmt::Write;

use super::Frame;
use super::axis::{Axis, AxisSpec};
use super::lines::no_data;
use super::scene::{Anchor, Grid, Panel, SMALL, Scene, shorten, text_width};
use super::style::{Dash, INK, Marker, QUIET, Rgb, Style};
use crate::number::{Unit, human};

/// A bar.
#[derive(Clone, Debug, PartialEq)]
pub struct Span {
    /// What is varied.
    pub label: String,
    /// A few words below it.
    pub note: String,
    /// The median, 0 to 1.
    pub median: f64,
    /// The least and the most.
    pub range: (f64, f64),
}

const PITCH: f64 = 44.0;
const BAR: Rgb = Rgb(0x00, 0x72, 0xB2);
const NAME_MAX: usize = 44;

/// A bar per entry from 0 to the median, with a thin line over the range. At least as high as the bars need.
pub fn spans(frame: &Frame, axis: &str, spans: &[Span]) -> String {
    // Few bars need less than a chart.
    let (width, least) = (frame.size().0, frame.height.clamp(120, 8000));
    let needed = 100.0 + PITCH * spans.len() as f64;
    let height = least.max(needed.min(8000.0) as u32);
    let mut scene = Scene::new(width, height, &frame.title);
    let texts = |span: &Span| [shorten(&span.label, NAME_MAX), shorten(&span.note, NAME_MAX)];
    let widest = spans.iter().flat_map(texts).map(|text| text_width(&text, SMALL)).fold(60.0, f64::max);
    let left = 22.0 + widest.min(f64::from(width) * 0.42);
    let spec = AxisSpec::linear(axis, Unit::Share);
    let ends = spans.iter().flat_map(|span| [span.median, span.range.1]).filter(|end| end.is_finite());
    let largest = ends.fold(0.0_f64, f64::max);
    let inside = f64::from(width) - left - 24.0;
    let room = (inside / (inside - 150.0).max(20.0)).min(2.0);
    let top = 44.0;
    let panel = Panel {
        left,
        top,
        right: f64::from(width) - 24.0,
        bottom: top + PITCH * spans.len().max(1) as f64,
        x: Axis::linear(&spec, 0.0, if largest > 0.0 { largest * room } else { 0.01 }, 6),
        y: Axis::linear(&AxisSpec::linear("", Unit::Plain), 0.0, 1.0, 1),
        x_title: axis.to_owned(),
        y_title: String::new(),
        x_labels: true,
        y_labels: false,
        grid: Grid::Vertical,
    };
    for (i, span) in spans.iter().enumerate() {
        let y = top + PITCH * (i as f64 + 0.5);
        let [name, note] = texts(span);
        let up = if note.is_empty() { 0.0 } else { 8.0 };
        scene.text((left - 10.0, y - up), &name, SMALL, INK, Anchor::End, true);
        scene.text((left - 10.0, y + 8.0), &note, SMALL - 1.0, QUIET, Anchor::End, false);
        let at = |share: f64| panel.pixel(share, 0.0).0;
        let (low, high) = span.range;
        // Zero is a line, not nothing.
        let bar = (at(span.median) - panel.left).max(1.5);
        let _ = writeln!(
            scene.areas,
            "<rect x=\"{:.1}\" y=\"{:.1}\" width=\"{bar:.1}\" height=\"18\" fill=\"{}\"/>",
            panel.left,
            y - 9.0,
            BAR.hex()
        );
        let style = Style { colour: INK, dash: Dash::Solid, marker: Marker::None };
        scene.line(vec![(at(low), y), (at(high), y)], style, 1.4, "the range over combinations");
        for x in [at(low), at(high)] {
            scene.line(vec![(x, y - 5.0), (x, y + 5.0)], style, 1.4, "");
        }
        let [median, low, high] = [span.median, low, high].map(|share| human(share, Unit::Share));
        let text = if low == high { median } else { format!("{median} ({low} to {high})") };
        let end = at(span.range.1.max(span.median));
        scene.text((end + 9.0, y), &text, SMALL, INK, Anchor::Start, false);
    }
    if spans.is_empty() {
        no_data(&mut scene, &panel);
    }
    scene.panels.push(panel);
    scene.draw()
}

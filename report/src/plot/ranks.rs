//! Places from trace to trace: a line per name, so that lines that cross are orders that flip.

use super::Frame;
use super::scene::{Anchor, SMALL, Scene, room, shorten, text_width};
use super::style::{Dash, GRID, INK, Marker, QUIET, Style, style};

/// The places of one name.
#[derive(Clone, Debug, PartialEq)]
pub struct Ranks {
    /// The name.
    pub label: String,
    /// Number of its style, as in other plots.
    pub style: usize,
    /// Place on each trace, from 0; none where it has no place.
    pub places: Vec<Option<usize>>,
}

const PITCH: f64 = 24.0;

/// A column per trace, the best on top. At least as high as the names need.
pub fn ranks(frame: &Frame, traces: &[String], names: &[Ranks]) -> String {
    let (width, least) = frame.size();
    let most = names.iter().flat_map(|name| &name.places).flatten().max().map_or(0, |place| place + 1);
    let height = least.max((118.0 + PITCH * most as f64).min(8000.0) as u32);
    let mut scene = Scene::new(width, height, &frame.title);
    let widest = names.iter().map(|name| text_width(&shorten(&name.label, 26), SMALL)).fold(40.0, f64::max);
    let side = (widest + 42.0).min(f64::from(width) * 0.3);
    let (left, right) = (side, f64::from(width) - side);
    let (top, bottom) = (70.0, f64::from(height) - 24.0);
    let gap = (right - left) / (traces.len().saturating_sub(1)).max(1) as f64;
    let x = |trace: usize| if traces.len() > 1 { left + gap * trace as f64 } else { (left + right) / 2.0 };
    let pitch = (bottom - top) / most.max(1) as f64;
    let y = |place: usize| top + pitch * (place as f64 + 0.5);
    for (t, trace) in traces.iter().enumerate() {
        let line = Style { colour: GRID, dash: Dash::Solid, marker: Marker::None };
        scene.line(vec![(x(t), top), (x(t), bottom)], line, 1.0, "");
        let text = shorten(trace, room(gap.min(side * 2.0) - 8.0).max(6));
        scene.text((x(t), top - 16.0), &text, SMALL, INK, Anchor::Middle, true);
    }
    for name in names {
        let at = |(trace, place): (usize, &Option<usize>)| place.map(|place| (x(trace), y(place)));
        let points: Vec<Option<(f64, f64)>> = name.places.iter().enumerate().map(at).collect();
        // A trace without a place interrupts the line.
        for part in points.split(Option::is_none).filter(|part| part.len() > 1) {
            scene.line(part.iter().flatten().copied().collect(), style(name.style), 2.0, &name.label);
        }
        for point in points.iter().flatten() {
            scene.mark(*point, style(name.style), 5.0);
        }
    }
    let ends = [(0, Anchor::End, -14.0), (traces.len().saturating_sub(1), Anchor::Start, 14.0)];
    for (trace, anchor, away) in ends {
        for (name, place) in names.iter().filter_map(|n| Some((n, n.places.get(trace).copied().flatten()?))) {
            let text = shorten(&name.label, room(side - 44.0).max(4));
            let at = x(trace) + away;
            let number = format!("{}", place + 1);
            let out = if away < 0.0 { -6.0 } else { 6.0 };
            scene.text((at + out * 2.5, y(place)), &text, SMALL, INK, anchor, false);
            scene.text((at, y(place)), &number, SMALL - 2.0, QUIET, anchor, false);
        }
    }
    if most == 0 {
        let at = (f64::from(width) / 2.0, (top + bottom) / 2.0);
        scene.text(at, "no data", 14.0, QUIET, Anchor::Middle, false);
    }
    scene.draw()
}

//! Heat maps: two knobs across and upwards, a panel per name, one scale of colours for all.

use std::fmt::Write;

use super::Frame;
use super::scene::{Anchor, SMALL, Scene, escape, room, shorten, text_width};
use super::style::{INK, QUIET, Rgb};
use crate::number::{Unit, human};

/// A knob and its values in order.
#[derive(Clone, Debug, PartialEq)]
pub struct HeatSide {
    /// Name of the knob.
    pub label: String,
    /// Its values.
    pub values: Vec<String>,
}

/// The pairs of values under one name.
#[derive(Clone, Debug, PartialEq)]
pub struct HeatMap {
    /// Written above it.
    pub title: String,
    /// Per value upwards, per value across.
    pub tiles: Vec<Vec<Tile>>,
}

/// A pair of values.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tile {
    /// Share of the best, 0 to 1; none without a result.
    pub share: Option<f64>,
    /// Whether a simulation failed.
    pub is_failed: bool,
    /// Said on hovering.
    pub about: String,
}

/// Pale and warm to dark and cold: darker is better, also in grey.
const RAMP: [Rgb; 6] = [
    Rgb(0xFF, 0xF7, 0xCC),
    Rgb(0xC7, 0xE9, 0xB4),
    Rgb(0x7F, 0xCD, 0xBB),
    Rgb(0x2C, 0x9F, 0xBF),
    Rgb(0x22, 0x5E, 0xA8),
    Rgb(0x10, 0x2A, 0x6B),
];
const FAILED: Rgb = Rgb(0xD5, 0x5E, 0x00);
const EMPTY: Rgb = Rgb(0xEC, 0xEE, 0xF0);
const WHITE: Rgb = Rgb(0xFF, 0xFF, 0xFF);

fn ramp(part: f64) -> Rgb {
    let at = part.clamp(0.0, 1.0) * (RAMP.len() - 1) as f64;
    let first = (at as usize).min(RAMP.len() - 2);
    let (a, b, share) = (RAMP[first], RAMP[first + 1], at - first as f64);
    let mix = |a: u8, b: u8| (f64::from(a) + (f64::from(b) - f64::from(a)) * share).round() as u8;
    Rgb(mix(a.0, b.0), mix(a.1, b.1), mix(a.2, b.2))
}

/// Where the scale begins: a round share below all that is shown.
fn lowest(maps: &[HeatMap]) -> f64 {
    let shares = maps.iter().flat_map(|map| map.tiles.iter().flatten()).filter_map(|tile| tile.share);
    let least = shares.filter(|share| share.is_finite()).fold(1.0, f64::min);
    let step = match 1.0 - least {
        span if span > 0.25 => 0.1,
        span if span > 0.05 => 0.05,
        _ => 0.01,
    };
    ((least / step - 1e-9).floor() * step).clamp(0.0, 1.0 - step)
}

/// A panel per map, wrapped to the width; at least as high as they need.
pub fn heat_maps(frame: &Frame, across: &HeatSide, up: &HeatSide, maps: &[HeatMap]) -> String {
    let (width, least) = frame.size();
    let labels = up.values.iter().map(|value| text_width(&shorten(value, 14), SMALL)).fold(8.0, f64::max);
    let side = labels + 34.0;
    let (columns, rows) = (across.values.len().max(1), up.values.len().max(1));
    // A column is as wide as its value, if three panels then find room side by side.
    let widest = across.values.iter().map(|v| text_width(&shorten(v, 14), SMALL) + 10.0).fold(40.0, f64::max);
    let wanted = side + widest * columns as f64 + 22.0;
    let inside = f64::from(width) - 24.0;
    let beside = ((inside / wanted) as usize).clamp(1, 4).min(maps.len().max(1));
    let each = (inside / beside as f64).min(wanted.max(inside / 3.0));
    let tile = ((each - side - 22.0) / columns as f64, 26.0);
    let (top, below) = (78.0, 58.0);
    let high = 26.0 + tile.1 * rows as f64 + below;
    let lines = maps.len().div_ceil(beside).max(1);
    let height = least.max((top + high * lines as f64).min(8000.0) as u32);
    let mut scene = Scene::new(width, height, &frame.title);
    let low = lowest(maps);
    legend(&mut scene, low, maps);
    for (i, map) in maps.iter().enumerate() {
        let (x, y) = (12.0 + each * (i % beside) as f64, top + high * (i / beside) as f64);
        let origin = (x + side, y + 22.0);
        let title = shorten(&map.title, room(each - side - 8.0));
        scene.text((origin.0, y + 8.0), &title, SMALL, INK, Anchor::Start, true);
        draw_map(&mut scene, origin, tile, (columns, rows), low, map);
        for (r, value) in up.values.iter().enumerate() {
            let at = (origin.0 - 8.0, origin.1 + tile.1 * ((rows - r) as f64 - 0.5));
            scene.text(at, &shorten(value, 14), SMALL, INK, Anchor::End, false);
        }
        let bottom = origin.1 + tile.1 * rows as f64;
        let most = room(tile.0 - 4.0);
        for (c, value) in across.values.iter().enumerate() {
            let at = (origin.0 + tile.0 * (c as f64 + 0.5), bottom + 11.0);
            scene.text(at, &shorten(value, most.max(3)), SMALL, INK, Anchor::Middle, false);
        }
        let middle = origin.0 + tile.0 * columns as f64 / 2.0;
        let label = shorten(&across.label, room(each - 20.0));
        scene.text((middle, bottom + 29.0), &label, SMALL, QUIET, Anchor::Middle, false);
        let label = shorten(&up.label, room(tile.1 * rows as f64 + 36.0));
        scene.upright((x + 8.0, origin.1 + tile.1 * rows as f64 / 2.0), &label, QUIET, false);
    }
    if maps.is_empty() {
        scene.text((f64::from(width) / 2.0, 130.0), "no data", 14.0, QUIET, Anchor::Middle, false);
    }
    scene.draw()
}

fn draw_map(
    scene: &mut Scene,
    origin: (f64, f64),
    tile: (f64, f64),
    (columns, rows): (usize, usize),
    low: f64,
    map: &HeatMap,
) {
    for r in 0..rows {
        for c in 0..columns {
            let one = map.tiles.get(r).and_then(|row| row.get(c)).cloned().unwrap_or_default();
            let (x, y) = (origin.0 + tile.0 * c as f64, origin.1 + tile.1 * (rows - r - 1) as f64);
            let share = one.share.filter(|share| share.is_finite());
            let part = share.map(|share| (share - low) / (1.0 - low));
            let fill = part.map_or(EMPTY, ramp);
            let (w, h) = (tile.0 - 1.5, tile.1 - 1.5);
            let _ = writeln!(
                scene.areas,
                "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{w:.1}\" height=\"{h:.1}\" fill=\"{}\"><title>{}</title></rect>",
                fill.hex(),
                escape(&one.about)
            );
            let ink = if part.is_some_and(|part| part > 0.55) { WHITE } else { INK };
            if let Some(share) = share
                && tile.0 >= 30.0
            {
                let text = format!("{:.1}", share.clamp(-1e9, 1e9) * 100.0);
                let text = text.strip_suffix(".0").unwrap_or(&text);
                let at = (x + w / 2.0, y + h / 2.0);
                scene.text(at, text, SMALL, ink, Anchor::Middle, (share - 1.0).abs() < 1e-9);
            }
            if one.is_failed {
                cross(scene, (x + w - 7.0, y + 7.0), share.is_none().then_some((x + w / 2.0, y + h / 2.0)));
            }
        }
    }
}

/// A cross in the corner; where nothing else is in the tile, a large one in its middle.
fn cross(scene: &mut Scene, corner: (f64, f64), middle: Option<(f64, f64)>) {
    let ((x, y), r) = middle.map_or((corner, 3.5), |middle| (middle, 6.0));
    let _ = writeln!(
        scene.areas,
        "<path d=\"M{:.1} {:.1}l{d} {d}m0 -{d}l-{d} {d}\" fill=\"none\" stroke=\"{}\" stroke-width=\"2.2\"/>",
        x - r,
        y - r,
        FAILED.hex(),
        d = r * 2.0
    );
}

/// The scale from its low end to 100 %, and what marks mean where they are used.
fn legend(scene: &mut Scene, low: f64, maps: &[HeatMap]) {
    let (x, y, w, steps) = (12.0, 36.0, 240.0, 48);
    for step in 0..steps {
        let at = x + w * f64::from(step) / f64::from(steps);
        let _ = writeln!(
            scene.areas,
            "<rect x=\"{at:.1}\" y=\"{y}\" width=\"{:.1}\" height=\"12\" fill=\"{}\" shape-rendering=\"crispEdges\"/>",
            w / f64::from(steps),
            ramp((f64::from(step) + 0.5) / f64::from(steps)).hex()
        );
    }
    for part in [0.0, 0.5, 1.0] {
        let share = low + (1.0 - low) * part;
        let anchor = [Anchor::Start, Anchor::Middle, Anchor::End][(part * 2.0) as usize];
        let text = human((share * 1000.0).round() / 1000.0, Unit::Share);
        scene.text((x + w * part, y + 21.0), &text, SMALL - 1.0, QUIET, anchor, false);
    }
    let mut at = x + w + 24.0;
    let mut entry = |scene: &mut Scene, text: &str| {
        scene.text((at + 20.0, y + 6.0), text, SMALL, INK, Anchor::Start, false);
        at += 20.0 + text_width(text, SMALL) + 24.0;
        at - 44.0 - text_width(text, SMALL)
    };
    let tiles = || maps.iter().flat_map(|map| map.tiles.iter().flatten());
    if tiles().any(|tile| tile.is_failed) {
        let x = entry(scene, "a simulation failed");
        cross(scene, (x + 8.0, y + 6.0), Some((x + 8.0, y + 6.0)));
    }
    if tiles().any(|tile| tile.share.is_none()) {
        let x = entry(scene, "no result");
        let _ = writeln!(
            scene.areas,
            "<rect x=\"{:.1}\" y=\"{y}\" width=\"14\" height=\"12\" fill=\"{}\"/>",
            x,
            EMPTY.hex()
        );
    }
}

//! What became of the requests: one stacked bar per policy.

use super::Frame;
use super::axis::{Axis, AxisSpec};
use super::lines::no_data;
use super::scene::{Anchor, Grid, Item, Panel, SMALL, Sample, Scene, shorten, text_width};
use super::style::{Dash, INK, Marker, Rgb, Style};
use crate::number::{Unit, human};

/// Requests of one policy by how they ended; means over seeds need not be whole.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Outcomes {
    /// Name beside the bar.
    pub label: String,
    /// Answered whole.
    pub completed: f64,
    /// Answered, but with a cut prompt, a shifted context, or an answer that ended early.
    pub cut: f64,
    /// Lost after they were accepted.
    pub failed: f64,
    /// Refused on arrival.
    pub rejected: f64,
    /// Still under way at the end.
    pub unfinished: f64,
}

const KINDS: [(&str, Rgb); 5] = [
    ("completed", Rgb(0x00, 0x9E, 0x73)),
    ("completed, but cut", Rgb(0x8F, 0xD3, 0xBD)),
    ("failed", Rgb(0xD5, 0x5E, 0x00)),
    ("rejected", Rgb(0xE6, 0x9F, 0x00)),
    ("unfinished", Rgb(0xA8, 0xA8, 0xA8)),
];

impl Outcomes {
    fn parts(&self) -> [f64; 5] {
        let parts = [self.completed, self.cut, self.failed, self.rejected, self.unfinished];
        parts.map(|part| if part.is_finite() { part.clamp(0.0, 1e15) } else { 0.0 })
    }
}

/// Height of the plot with this many bars, in pixels.
fn height(bars: usize) -> u32 {
    u32::try_from(bars).unwrap_or(u32::MAX).saturating_mul(34).saturating_add(126)
}

/// One bar per entry, divided by outcome, as shares of its requests. At least as high as the frame.
pub fn outcomes(frame: &Frame, bars: &[Outcomes]) -> String {
    let (width, least) = frame.size();
    let height = least.max(height(bars.len()).min(8000));
    let mut scene = Scene::new(width, height, &frame.title);
    let seen = |kind: usize| kind == 0 || bars.iter().any(|bar| bar.parts()[kind] > 0.0);
    let entries = (0..KINDS.len()).filter(|k| seen(*k)).map(|k| {
        (KINDS[k].0.to_owned(), Style { colour: KINDS[k].1, dash: Dash::Solid, marker: Marker::None })
    });
    let top = scene.legend(34.0, &entries.collect::<Vec<_>>(), Sample::Box);
    // Of a plot of 600 pixels, names may take 26 characters.
    let name_max = width as usize * 26 / 600;
    let names: Vec<String> = bars.iter().map(|bar| shorten(&bar.label, name_max)).collect();
    let longest = names.iter().map(|n| text_width(n, SMALL)).fold(0.0, f64::max);
    let x = AxisSpec::linear("share of requests", Unit::Share);
    let panel = Panel {
        left: 20.0 + longest.max(20.0),
        top: top + 8.0,
        right: f64::from(width) - 28.0,
        bottom: f64::from(height) - 50.0,
        x_title: x.label.clone(),
        y_title: String::new(),
        x: Axis::linear(&x, 0.0, 1.0, 5),
        y: Axis::linear(&AxisSpec::linear("", Unit::Plain), 0.0, 1.0, 1),
        x_labels: true,
        y_labels: false,
        grid: Grid::Vertical,
    };
    let pitch = ((panel.bottom - panel.top) / bars.len().max(1) as f64).min(54.0);
    for (i, bar) in bars.iter().enumerate() {
        let middle = panel.top + pitch * (i as f64 + 0.5);
        scene.text((panel.left - 8.0, middle), &names[i], SMALL, INK, Anchor::End, false);
        draw_bar(&mut scene, &panel, bar, middle, (pitch * 0.36).clamp(2.0, 16.0));
    }
    if bars.is_empty() {
        no_data(&mut scene, &panel);
    }
    scene.panels.push(panel);
    scene.draw()
}

fn draw_bar(scene: &mut Scene, panel: &Panel, bar: &Outcomes, middle: f64, half: f64) {
    let parts = bar.parts();
    let total: f64 = parts.iter().sum();
    if total <= 0.0 {
        scene.text((panel.left + 8.0, middle), "no requests", SMALL, INK, Anchor::Start, false);
        return;
    }
    let mut before = 0.0;
    for (part, (_, colour)) in parts.iter().zip(KINDS) {
        let from = panel.pixel(before / total, 0.0).0;
        before += part;
        let mut to = panel.pixel(before / total, 0.0).0;
        if *part <= 0.0 {
            continue;
        }
        // One lost request of a million is still a lost request.
        to = to.max(from + 2.0).min(panel.right - 1.0);
        scene.items.push(Item::Bar {
            from: (from.min(to - 2.0), middle - half),
            to: (to, middle + half),
            colour,
        });
        let text = human(*part, Unit::Count);
        if text_width(&text, SMALL) + 8.0 < to - from && half > 6.0 {
            let dark = colour == KINDS[0].1 || colour == KINDS[2].1;
            let ink = if dark { Rgb(255, 255, 255) } else { INK };
            scene.text(((from + to) / 2.0, middle), &text, SMALL, ink, Anchor::Middle, false);
        }
    }
}

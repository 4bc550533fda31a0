//! Small multiples: the same axes in every panel, a curve per name, intervals where there are several samples.

use std::fmt::Write;

use super::Frame;
use super::axis::{Axis, AxisSpec, Scale};
use super::scene::{Anchor, Grid, Panel, SMALL, Sample, Scene, room, shorten, text_width, wrap};
use super::style::{Dash, GRID, INK, QUIET, Style, style};
use crate::number::Unit;

/// What lies across.
#[derive(Clone, Debug, PartialEq)]
pub enum Across {
    /// Numbers on an axis; curves are lines.
    Numbers(AxisSpec),
    /// A name, and words in order; x is the number of the word, and curves are bars or points beside each other.
    Words(String, Vec<String>),
}

/// Everything in a picture of small multiples.
#[derive(Clone, Debug, PartialEq)]
pub struct Multiples {
    /// The axis across.
    pub across: Across,
    /// The axis upwards.
    pub up: AxisSpec,
    /// What a line of panels has in common, in words; one empty text where there is one line.
    pub rows: Vec<String>,
    /// What a column of panels has in common, likewise.
    pub columns: Vec<String>,
    /// Whether lines join the points of a curve where numbers lie across.
    pub is_joined: bool,
    /// Names of the curves, and the numbers of their styles; one empty name where there is one curve.
    pub curves: Vec<(String, usize)>,
    /// All points.
    pub points: Vec<MultiplePoint>,
}

/// A point.
#[derive(Clone, Debug, PartialEq)]
pub struct MultiplePoint {
    /// Line and column of its panel.
    pub panel: (usize, usize),
    /// Its curve.
    pub curve: usize,
    /// Across.
    pub x: f64,
    /// Upwards: the mean.
    pub y: f64,
    /// Half the 95 % interval of `y`.
    pub half_width: Option<f64>,
}

/// Lines that the name of a line or a column of panels may take.
const TITLE_LINES_MAX: usize = 6;
/// From one of these lines to the next, pixels.
const TITLE_PITCH: f64 = 15.0;

/// Draws all panels. Points of a curve are joined in the order of x.
pub fn multiples(frame: &Frame, plot: &Multiples) -> String {
    let (width, height) = frame.size();
    let mut scene = Scene::new(width, height, &frame.title);
    let alone = plot.curves.len() == 1 && plot.curves[0].0.is_empty();
    let is_bars = plot.is_bars(width);
    let styles: Vec<Style> = plot.curves.iter().map(|(_, number)| style(*number)).collect();
    let entries: Vec<(String, Style)> =
        plot.curves.iter().map(|c| c.0.clone()).zip(styles.iter().copied()).collect();
    let sample = match plot.across {
        Across::Words(..) if is_bars => Sample::Box,
        Across::Words(..) => Sample::Mark,
        Across::Numbers(_) if plot.is_joined => Sample::Line,
        Across::Numbers(_) => Sample::Mark,
    };
    let top = if alone { 34.0 } else { scene.legend(34.0, &entries, sample) };
    let (rows, columns) = (plot.rows.len().max(1), plot.columns.len().max(1));
    let (x, y) = plot.axes(width, height, rows, columns);
    let left = 44.0 + text_width(&"0".repeat(y.label_width()), SMALL);
    let gap = (30.0, 20.0);
    let below = plot.below((f64::from(width) - left) / columns as f64 - 30.0);
    // As narrow as a column of panels can become.
    let narrow =
        (f64::from(width) - left - 34.0 - TITLE_PITCH * (TITLE_LINES_MAX - 1) as f64) / columns as f64;
    let titles = wrapped(&plot.columns, narrow - gap.0);
    let top = top + margin(&titles).map_or(10.0, |lines| 14.0 + lines);
    let pitch = (f64::from(height) - top - below + gap.1) / rows as f64;
    let sides = wrapped(&plot.rows, pitch - gap.1);
    let right = f64::from(width) - margin(&sides).map_or(20.0, |lines| 20.0 + lines);
    let each = (
        ((right - left - gap.0 * (columns - 1) as f64) / columns as f64).max(10.0),
        ((f64::from(height) - top - below - gap.1 * (rows - 1) as f64) / rows as f64).max(10.0),
    );
    for row in 0..rows {
        for column in 0..columns {
            let at = (left + (each.0 + gap.0) * column as f64, top + (each.1 + gap.1) * row as f64);
            let is_words = matches!(plot.across, Across::Words(..));
            let is_last = row + 1 == rows;
            let panel = Panel {
                left: at.0,
                top: at.1,
                right: at.0 + each.0,
                bottom: at.1 + each.1,
                x: x.clone(),
                y: y.clone(),
                x_title: String::new(),
                y_title: String::new(),
                x_labels: is_last && !is_words,
                y_labels: column == 0,
                grid: if is_words { Grid::Horizontal } else { Grid::Both },
            };
            if row == 0 {
                let lines = titles.get(column).map_or(&[][..], Vec::as_slice);
                for (above, line) in lines.iter().rev().enumerate() {
                    let down = panel.top - 12.0 - TITLE_PITCH * above as f64;
                    let middle = ((panel.left + panel.right) / 2.0, down);
                    scene.text(middle, line, SMALL, INK, Anchor::Middle, true);
                }
            }
            plot.draw_panel(&mut scene, &panel, (row, column), &styles, is_bars);
            if let (true, Across::Words(_, words)) = (is_last, &plot.across) {
                name_words(&mut scene, &panel, words);
            }
            scene.panels.push(panel);
        }
    }
    plot.titles(&mut scene, &y, (left, right), (top, f64::from(height)), each.1 + gap.1);
    for (row, lines) in sides.iter().enumerate() {
        let middle = top + (each.1 + gap.1) * row as f64 + each.1 / 2.0;
        for (line, text) in lines.iter().enumerate() {
            scene.upright((right + 18.0 + TITLE_PITCH * line as f64, middle), text, INK, true);
        }
    }
    scene.draw()
}

impl Multiples {
    /// Bars are drawn where they can begin at zero and none of them is too thin to see.
    fn is_bars(&self, width: u32) -> bool {
        let Across::Words(_, words) = &self.across else { return false };
        let all = (words.len() * self.columns.len() * (self.curves.len() + 1)).max(1);
        let is_positive = self.points.iter().all(|point| point.y >= 0.0);
        self.up.scale == Scale::Linear && is_positive && f64::from(width) / all as f64 >= 9.0
    }

    fn axes(&self, width: u32, height: u32, rows: usize, columns: usize) -> (Axis, Axis) {
        let ticks = |pixels: f64, each: f64| ((pixels / each) as usize).clamp(2, 8);
        let across = ticks((f64::from(width) - 100.0) / columns as f64, 76.0);
        let x = match &self.across {
            Across::Numbers(spec) => Axis::fit(spec, self.points.iter().map(|point| point.x), across),
            Across::Words(_, words) => {
                let spec = AxisSpec::linear("", Unit::Plain);
                Axis::linear(&spec, -0.5, words.len().max(1) as f64 - 0.5, 2).with_ticks(&[])
            }
        };
        let up = ticks((f64::from(height) - 140.0) / rows as f64, 46.0);
        let ends = self.points.iter().flat_map(|point| {
            let half = point.half_width.unwrap_or(0.0);
            // An interval may reach below zero where nothing measured can.
            let low = if point.y >= 0.0 { (point.y - half).max(0.0) } else { point.y - half };
            [point.y, low, point.y + half]
        });
        (x, Axis::fit(&self.up, ends, up))
    }

    /// Room below panels of this width: for words that stand slanted more than for numbers.
    fn below(&self, width: f64) -> f64 {
        match &self.across {
            Across::Words(_, words) if is_slanted(words, width) => 44.0 + longest(words) * 0.6,
            _ => 54.0,
        }
    }

    fn draw_panel(
        &self,
        scene: &mut Scene,
        panel: &Panel,
        at: (usize, usize),
        styles: &[Style],
        is_bars: bool,
    ) {
        let own: Vec<&MultiplePoint> = self
            .points
            .iter()
            .filter(|point| point.panel == at && point.x.is_finite() && point.y.is_finite())
            .collect();
        if own.is_empty() {
            let middle = ((panel.left + panel.right) / 2.0, (panel.top + panel.bottom) / 2.0);
            scene.text(middle, "no data", 14.0, QUIET, Anchor::Middle, false);
            return;
        }
        let unit = panel.pixel(1.0, 0.0).0 - panel.pixel(0.0, 0.0).0;
        let pitch = unit * 0.8 / self.curves.len().max(1) as f64;
        for (curve, style) in styles.iter().enumerate() {
            let mut points: Vec<&&MultiplePoint> = own.iter().filter(|point| point.curve == curve).collect();
            points.sort_by(|a, b| a.x.total_cmp(&b.x));
            let beside = match self.across {
                Across::Words(..) => pitch * (curve as f64 - (self.curves.len() as f64 - 1.0) / 2.0),
                // Intervals that lie on each other cannot be told apart: a few pixels do.
                Across::Numbers(_)
                    if self.is_joined && own.iter().any(|point| point.half_width.is_some()) =>
                {
                    let step = (16.0 / self.curves.len().max(1) as f64).min(3.0);
                    step * (curve as f64 - (self.curves.len() as f64 - 1.0) / 2.0)
                }
                Across::Numbers(_) => 0.0,
            };
            let place = |x: f64, y: f64| {
                let (px, py) = panel.pixel(x, y);
                (px + beside, py)
            };
            if let (Across::Numbers(_), true) = (&self.across, self.is_joined) {
                let line = points.iter().map(|point| place(point.x, point.y)).collect();
                scene.line(line, *style, 2.0, &self.curves[curve].0);
            }
            for point in points {
                let (x, y) = place(point.x, point.y);
                if is_bars {
                    let (w, floor) = ((pitch - 2.0).clamp(1.5, 60.0), panel.bottom - 1.0);
                    let _ = writeln!(
                        scene.areas,
                        "<rect x=\"{:.1}\" y=\"{y:.1}\" width=\"{w:.1}\" height=\"{:.1}\" fill=\"{}\"/>",
                        x - w / 2.0,
                        (floor - y).max(1.0),
                        style.colour.hex()
                    );
                } else {
                    scene.mark((x, y), *style, 4.0);
                }
                if let Some(half) = point.half_width.filter(|half| half.is_finite() && *half > 0.0) {
                    let low = if point.y >= 0.0 { (point.y - half).max(0.0) } else { point.y - half };
                    let ends = [place(point.x, low), place(point.x, point.y + half)];
                    let ink = Style {
                        colour: if is_bars { INK } else { style.colour },
                        dash: Dash::Solid,
                        ..*style
                    };
                    scene.line(ends.to_vec(), ink, 1.3, "");
                    for (x, y) in ends {
                        scene.line(vec![(x - 3.5, y), (x + 3.5, y)], ink, 1.3, "");
                    }
                }
            }
        }
        if let (Across::Words(_, words), false) = (&self.across, is_bars) {
            let bare = Style { colour: GRID, dash: Dash::Solid, ..style(0) };
            for word in 1..words.len() {
                let x = panel.pixel(word as f64 - 0.5, 0.0).0;
                scene.line(vec![(x, panel.top), (x, panel.bottom)], bare, 1.0, "");
            }
        }
    }

    /// Names of the axes once for all panels.
    fn titles(&self, scene: &mut Scene, y: &Axis, across: (f64, f64), down: (f64, f64), pitch: f64) {
        let x_title = match &self.across {
            Across::Numbers(spec) => {
                let xs = self.points.iter().map(|point| point.x);
                Axis::fit(spec, xs, 6).title(&spec.label)
            }
            Across::Words(name, _) => name.clone(),
        };
        let middle = (across.0 + across.1) / 2.0;
        let x_title = shorten(&x_title, room(across.1 - across.0));
        scene.text((middle, down.1 - 14.0), &x_title, SMALL, QUIET, Anchor::Middle, false);
        let bottom = down.0 + pitch * self.rows.len().max(1) as f64;
        let y_title = shorten(&y.title(&self.up.label), room(bottom - down.0));
        scene.upright((14.0, (down.0 + bottom) / 2.0), &y_title, QUIET, false);
    }
}

/// Names of lines or columns of panels, bold, for as many pixels each.
fn wrapped(names: &[String], pixels: f64) -> Vec<Vec<String>> {
    names.iter().map(|name| wrap(name, room(pixels * 0.92), TITLE_LINES_MAX)).collect()
}

/// Room across the lines of names, pixels; none where there are no names.
fn margin(names: &[Vec<String>]) -> Option<f64> {
    let lines = names.iter().filter(|lines| lines.iter().any(|line| !line.is_empty())).map(Vec::len).max()?;
    Some(TITLE_PITCH * lines as f64)
}

/// Words below a panel.
fn name_words(scene: &mut Scene, panel: &Panel, words: &[String]) {
    let width = panel.right - panel.left;
    let unit = width / words.len().max(1) as f64;
    for (i, word) in words.iter().enumerate() {
        let x = panel.left + unit * (i as f64 + 0.5);
        let text = shorten(word, 28);
        if is_slanted(words, width) {
            scene.slanted((x + 4.0, panel.bottom + 12.0), &text, INK);
        } else {
            scene.text((x, panel.bottom + 14.0), &text, SMALL, INK, Anchor::Middle, false);
        }
    }
}

fn longest(words: &[String]) -> f64 {
    words.iter().map(|word| text_width(&shorten(word, 28), SMALL)).fold(0.0, f64::max)
}

/// Words that do not fit side by side rise.
fn is_slanted(words: &[String], width: f64) -> bool {
    longest(words) + 8.0 > width / words.len().max(1) as f64
}

//! A scene of plain shapes in pixels: what is drawn, not how.

use std::fmt::Write;

use super::axis::Axis;
use super::style::{Dash, INK, Marker, Rgb, Style};

/// A point in pixels from the top left corner.
pub(crate) type Point = (f64, f64);

/// Pixels per character and per size of the font: sans-serif fonts need 0.5 to 0.62.
const CHARACTER: f64 = 0.58;
/// Size of tick labels and legends.
pub(crate) const SMALL: f64 = 12.0;

/// A picture before it is drawn.
pub(crate) struct Scene {
    pub(crate) width: u32,
    pub(crate) height: u32,
    /// Said by screen readers and on hovering.
    pub(crate) title: String,
    pub(crate) panels: Vec<Panel>,
    /// SVG text that stands behind everything but the grid.
    pub(crate) areas: String,
    pub(crate) items: Vec<Item>,
}

/// A pair of axes.
pub(crate) struct Panel {
    pub(crate) left: f64,
    pub(crate) top: f64,
    pub(crate) right: f64,
    pub(crate) bottom: f64,
    pub(crate) x: Axis,
    pub(crate) y: Axis,
    pub(crate) x_title: String,
    pub(crate) y_title: String,
    /// Whether ticks are labelled; the grid is drawn in any case.
    pub(crate) x_labels: bool,
    pub(crate) y_labels: bool,
    pub(crate) grid: Grid,
}

/// Which lines of the grid are drawn.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Grid {
    Both,
    Vertical,
    Horizontal,
    None,
}

impl Panel {
    /// Where a point of data lies, in pixels.
    pub(crate) fn pixel(&self, x: f64, y: f64) -> Point {
        // The library's last pixel lies inside the area.
        let across = self.x.fraction(x) * (self.right - self.left - 1.0);
        let down = self.y.fraction(y) * (self.bottom - self.top - 1.0);
        (self.left + across, self.bottom - 1.0 - down)
    }
}

/// A shape in pixels.
pub(crate) enum Item {
    Line { points: Vec<Point>, colour: Rgb, dash: Dash, width: f64, name: String },
    Mark { at: Point, colour: Rgb, marker: Marker, size: f64 },
    Bar { from: Point, to: Point, colour: Rgb },
    Label { at: Point, text: String, size: f64, colour: Rgb, anchor: Anchor, bold: bool },
}

/// Which side of a text is at its point; vertically it is always the middle.
#[derive(Clone, Copy)]
pub(crate) enum Anchor {
    Start,
    Middle,
    End,
}

/// Estimated width of a text in pixels.
pub(crate) fn text_width(text: &str, size: f64) -> f64 {
    text.chars().count() as f64 * size * CHARACTER
}

/// Characters of small text that fit into this many pixels.
pub(crate) fn room(pixels: f64) -> usize {
    (pixels / (SMALL * CHARACTER)).max(0.0) as usize
}

/// The text, shortened in its middle to this many characters: the ends of policy specs differ.
pub(crate) fn shorten(text: &str, most: usize) -> String {
    let text: String = text.chars().map(printable).collect();
    let count = text.chars().count();
    if count <= most {
        return text;
    }
    let tail = (most.saturating_sub(3)) / 2;
    let head = most.saturating_sub(3) - tail;
    let first: String = text.chars().take(head).collect();
    let last: String = text.chars().skip(count - tail).collect();
    format!("{first}...{last}")
}

/// The text in lines of about this many characters, broken behind commas and semicolons where that will do. What
/// goes beyond `lines_max` is shortened into the last line.
pub(crate) fn wrap(text: &str, most: usize, lines_max: usize) -> Vec<String> {
    let most = most.max(8);
    let text: Vec<char> = text.chars().map(printable).collect();
    let (mut lines, mut rest) = (Vec::new(), text.as_slice());
    while rest.len() > most && lines.len() + 1 < lines_max {
        let is_end = |c: &char| matches!(c, ',' | ';');
        let at = rest[..most].iter().rposition(is_end).map_or(most, |at| at + 1);
        let (line, after) = rest.split_at(at);
        lines.push(line.iter().collect());
        rest = after.strip_prefix(&[' ']).unwrap_or(after);
    }
    lines.push(shorten(&rest.iter().collect::<String>(), most));
    lines
}

/// XML knows no control characters, not even written out.
fn printable(c: char) -> char {
    if c.is_control() || matches!(c, '\u{FFFE}' | '\u{FFFF}') { ' ' } else { c }
}

/// Text as XML wants it: five characters written out, control characters replaced.
pub(crate) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '<' => out += "&lt;",
            '>' => out += "&gt;",
            '&' => out += "&amp;",
            '"' => out += "&quot;",
            '\'' => out += "&#39;",
            c => out.push(printable(c)),
        }
    }
    out
}

impl Scene {
    pub(crate) fn new(width: u32, height: u32, title: &str) -> Scene {
        let mut scene = Scene {
            width,
            height,
            title: title.to_owned(),
            panels: Vec::new(),
            areas: String::new(),
            items: Vec::new(),
        };
        let most = (f64::from(width) / (16.0 * CHARACTER)) as usize;
        let text = shorten(title, most.saturating_sub(3));
        scene.text((12.0, 18.0), &text, 16.0, INK, Anchor::Start, true);
        scene
    }

    pub(crate) fn text(&mut self, at: Point, text: &str, size: f64, colour: Rgb, anchor: Anchor, bold: bool) {
        self.items.push(Item::Label { at, text: text.to_owned(), size, colour, anchor, bold });
    }

    /// A text that reads upwards, its middle at the point.
    pub(crate) fn upright(&mut self, at: Point, text: &str, colour: Rgb, bold: bool) {
        self.turned(at, text, colour, bold, -90, "middle");
    }

    /// A text that rises to its end, which is at the point.
    pub(crate) fn slanted(&mut self, at: Point, text: &str, colour: Rgb) {
        self.turned(at, text, colour, false, -35, "end");
    }

    fn turned(&mut self, (x, y): Point, text: &str, colour: Rgb, bold: bool, degrees: i32, anchor: &str) {
        let weight = if bold { " font-weight=\"bold\"" } else { "" };
        // Writing to a string cannot fail.
        let _ = writeln!(
            self.areas,
            "<text x=\"{x:.1}\" y=\"{y:.1}\" font-family=\"sans-serif\" font-size=\"{SMALL}\" fill=\"{}\" \
             text-anchor=\"{anchor}\" dominant-baseline=\"middle\"{weight} \
             transform=\"rotate({degrees} {x:.1} {y:.1})\">{}</text>",
            colour.hex(),
            escape(text)
        );
    }

    pub(crate) fn line(&mut self, points: Vec<Point>, style: Style, width: f64, name: &str) {
        let (colour, dash) = (style.colour, style.dash);
        self.items.push(Item::Line { points, colour, dash, width, name: name.to_owned() });
    }

    pub(crate) fn mark(&mut self, at: Point, style: Style, size: f64) {
        self.items.push(Item::Mark { at, colour: style.colour, marker: style.marker, size });
    }

    /// Draws a legend from `top` down, wrapped to the width; returns where it ends.
    pub(crate) fn legend(&mut self, top: f64, entries: &[(String, Style)], sample: Sample) -> f64 {
        let (mut x, mut y) = (12.0, top + 9.0);
        let swatch = if sample == Sample::Line { 30.0 } else { 14.0 };
        for (name, style) in entries {
            let name = shorten(name, room(f64::from(self.width) - swatch - 34.0).max(44));
            let width = swatch + 6.0 + text_width(&name, SMALL) + 16.0;
            if x > 12.0 && x + width > f64::from(self.width) {
                (x, y) = (12.0, y + 18.0);
            }
            match sample {
                Sample::Line => {
                    self.line(vec![(x, y), (x + swatch, y)], *style, 2.0, "");
                    self.mark((x + swatch / 2.0, y), *style, 4.0);
                }
                Sample::Mark => self.mark((x + swatch / 2.0, y), *style, 5.0),
                Sample::Box => {
                    let (from, to) = ((x, y - 6.0), (x + swatch, y + 6.0));
                    self.items.push(Item::Bar { from, to, colour: style.colour });
                }
            }
            self.text((x + swatch + 6.0, y), &name, SMALL, INK, Anchor::Start, false);
            x += width;
        }
        if entries.is_empty() { top } else { y + 12.0 }
    }
}

/// What stands beside a name in a legend.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sample {
    Line,
    Mark,
    Box,
}

/// Appends points as path data, in tenths of a pixel.
pub(crate) fn path(out: &mut String, points: &[Point]) {
    for (i, (x, y)) in points.iter().enumerate() {
        let command = if i == 0 { 'M' } else { 'L' };
        let _ = write!(out, "{command}{} {}", tenths(*x), tenths(*y));
    }
}

fn tenths(value: f64) -> String {
    let text = format!("{value:.1}");
    text.strip_suffix(".0").map(str::to_owned).unwrap_or(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_break_behind_commas_and_lose_nothing_that_has_room() {
        assert_eq!(wrap("num_ctx=512", 30, 3), ["num_ctx=512"]);
        assert_eq!(wrap("", 30, 3), [""]);
        let two = wrap("num_ctx=512, watermark=0.05, victim=lcf", 30, 3);
        assert_eq!(two, ["num_ctx=512, watermark=0.05,", "victim=lcf"]);
        assert_eq!(wrap("memory=local=2048;global=2048", 20, 3), ["memory=local=2048;", "global=2048"]);
        assert_eq!(wrap(&"x".repeat(25), 10, 3), ["x".repeat(10), "x".repeat(10), "x".repeat(5)]);
        let short = wrap(&"x".repeat(99), 10, 3);
        assert_eq!((short.len(), short[2].as_str()), (3, "xxxx...xxx"));
    }
}

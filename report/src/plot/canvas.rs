//! A scene of plain shapes, and its drawing: the only file that calls the plotting library.
//!
//! The library draws axes, bars, markers and text. Lines and areas are written as SVG paths
//! directly, because it knows neither dashes nor fractions of a pixel.

use std::fmt::Write;
use std::io;

use plotters::chart::{ChartBuilder, LabelAreaPosition};
use plotters::coord::Shift;
use plotters::drawing::{DrawingArea, DrawingAreaErrorKind, IntoDrawingArea};
use plotters::element::{Circle, PathElement, Polygon, Rectangle, Text};
use plotters::prelude::SVGBackend;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{Color, FontStyle, FontTransform, IntoFont, RGBColor, ShapeStyle, TextStyle};

use super::axis::Axis;
use super::style::{AXIS, Dash, GRID, INK, Marker, QUIET, Rgb, Style};

/// A point in pixels from the top left corner.
pub(crate) type Point = (f64, f64);

/// Pixels per character and per size of the font: sans-serif fonts need 0.5 to 0.62.
const CHARACTER: f64 = 0.58;
/// The backend divides sizes by this.
const FONT: f64 = 1.24;
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
    Line {
        points: Vec<Point>,
        colour: Rgb,
        dash: Dash,
        width: f64,
        name: String,
    },
    Mark {
        at: Point,
        colour: Rgb,
        marker: Marker,
        size: f64,
    },
    Bar {
        from: Point,
        to: Point,
        colour: Rgb,
    },
    Label {
        at: Point,
        text: String,
        size: f64,
        colour: Rgb,
        anchor: Anchor,
        bold: bool,
    },
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
fn room(pixels: f64) -> usize {
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

/// XML knows no control characters, not even written out.
fn printable(c: char) -> char {
    if c.is_control() || matches!(c, '\u{FFFE}' | '\u{FFFF}') {
        ' '
    } else {
        c
    }
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

    pub(crate) fn text(
        &mut self,
        at: Point,
        text: &str,
        size: f64,
        colour: Rgb,
        anchor: Anchor,
        bold: bool,
    ) {
        self.items.push(Item::Label {
            at,
            text: text.to_owned(),
            size,
            colour,
            anchor,
            bold,
        });
    }

    pub(crate) fn line(&mut self, points: Vec<Point>, style: Style, width: f64, name: &str) {
        let (colour, dash) = (style.colour, style.dash);
        self.items.push(Item::Line {
            points,
            colour,
            dash,
            width,
            name: name.to_owned(),
        });
    }

    pub(crate) fn mark(&mut self, at: Point, style: Style, size: f64) {
        self.items.push(Item::Mark {
            at,
            colour: style.colour,
            marker: style.marker,
            size,
        });
    }

    /// Draws a legend from `top` down, wrapped to the width; returns where it ends.
    pub(crate) fn legend(&mut self, top: f64, entries: &[(String, Style)], sample: Sample) -> f64 {
        let (mut x, mut y) = (12.0, top + 9.0);
        let swatch = if sample == Sample::Line { 30.0 } else { 14.0 };
        for (name, style) in entries {
            let name = shorten(name, 44);
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
                    self.items.push(Item::Bar {
                        from,
                        to,
                        colour: style.colour,
                    });
                }
            }
            self.text(
                (x + swatch + 6.0, y),
                &name,
                SMALL,
                INK,
                Anchor::Start,
                false,
            );
            x += width;
        }
        if entries.is_empty() { top } else { y + 12.0 }
    }

    /// The picture as one SVG element. Without room or with a library that fails, a picture that
    /// says so.
    pub(crate) fn draw(&self) -> String {
        let mut body = String::new();
        let back = self.layer(|root| {
            self.panels
                .iter()
                .try_for_each(|panel| draw_panel(root, panel))
        });
        let front = self.layer(|root| self.items.iter().try_for_each(|item| draw_item(root, item)));
        match (back, front) {
            (Ok(back), Ok(front)) => {
                body += &back;
                body += &self.areas;
                self.items
                    .iter()
                    .for_each(|item| draw_line(&mut body, item));
                body += &front;
            }
            (Err(error), _) | (_, Err(error)) => {
                let error = escape(&format!("This plot could not be drawn: {error}"));
                body = format!("<text x=\"12\" y=\"40\" font-size=\"13\">{error}</text>\n");
            }
        }
        let (w, h, title) = (self.width, self.height, escape(&self.title));
        format!(
            "<svg width=\"{w}\" height=\"{h}\" viewBox=\"0 0 {w} {h}\" role=\"img\" \
             aria-label=\"{title}\" xmlns=\"http://www.w3.org/2000/svg\">\n<title>{title}</title>\n\
             <rect width=\"{w}\" height=\"{h}\" fill=\"#FFFFFF\"/>\n{body}</svg>\n"
        )
    }

    fn layer(&self, draw: impl Fn(&Root) -> Result<(), Trouble>) -> Result<String, Trouble> {
        let mut svg = String::new();
        {
            let root = SVGBackend::with_string(&mut svg, (self.width, self.height));
            let root = root.into_drawing_area();
            draw(&root)?;
            root.present()?;
        }
        let start = svg.find('>').map_or(0, |i| i + 1);
        let end = svg.rfind("</svg>").unwrap_or(svg.len());
        Ok(svg
            .get(start..end)
            .unwrap_or_default()
            .trim_start()
            .to_owned())
    }
}

/// What stands beside a name in a legend.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sample {
    Line,
    Mark,
    Box,
}

type Root<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Trouble = DrawingAreaErrorKind<io::Error>;

fn rgb(colour: Rgb) -> RGBColor {
    RGBColor(colour.0, colour.1, colour.2)
}

fn font(size: f64, colour: Rgb, bold: bool) -> TextStyle<'static> {
    let style = if bold {
        FontStyle::Bold
    } else {
        FontStyle::Normal
    };
    ("sans-serif", size * FONT, style)
        .into_font()
        .color(&rgb(colour))
}

fn whole(point: Point) -> (i32, i32) {
    (point.0.round() as i32, point.1.round() as i32)
}

fn draw_panel(root: &Root, panel: &Panel) -> Result<(), Trouble> {
    let (left, below) = (
        if panel.y_labels { 90.0 } else { 0.0 },
        if panel.x_labels { 26.0 } else { 0.0 },
    );
    let corner = whole((panel.left - left, panel.top));
    let size = whole((
        panel.right - panel.left + left,
        panel.bottom - panel.top + below,
    ));
    if panel.right - panel.left < 4.0 || panel.bottom - panel.top < 4.0 {
        return Ok(());
    }
    let area = root.clone().shrink(corner, size);
    let mut chart = ChartBuilder::on(&area)
        .set_label_area_size(LabelAreaPosition::Left, left as i32)
        .set_label_area_size(LabelAreaPosition::Bottom, below as i32)
        .build_cartesian_2d(panel.x.clone(), panel.y.clone())?;
    let mut mesh = chart.configure_mesh();
    mesh.bold_line_style(rgb(GRID))
        .light_line_style(rgb(GRID).mix(0.0))
        .axis_style(rgb(AXIS))
        .label_style(font(SMALL, INK, false))
        .set_all_tick_mark_size(4);
    match panel.grid {
        Grid::Both => {}
        Grid::Vertical => {
            mesh.disable_y_mesh();
        }
        Grid::None => {
            mesh.disable_mesh();
        }
    }
    mesh.draw()?;
    let middle = Pos::new(HPos::Center, VPos::Center);
    let style = font(SMALL, QUIET, false).pos(middle);
    if !panel.x_title.is_empty() {
        let at = ((panel.left + panel.right) / 2.0, panel.bottom + 36.0);
        let title = shorten(&panel.x_title, room(panel.right - panel.left));
        root.draw(&Text::new(title, whole(at), style.clone()))?;
    }
    if !panel.y_title.is_empty() {
        let at = (14.0, (panel.top + panel.bottom) / 2.0);
        let style = style.transform(FontTransform::Rotate270);
        let title = shorten(&panel.y_title, room(panel.bottom - panel.top + 40.0));
        root.draw(&Text::new(title, whole(at), style))?;
    }
    Ok(())
}

fn draw_item(root: &Root, item: &Item) -> Result<(), Trouble> {
    match item {
        Item::Line { .. } => Ok(()),
        Item::Mark {
            at,
            colour,
            marker,
            size,
        } => draw_mark(root, *at, *colour, *marker, *size),
        Item::Bar { from, to, colour } => root.draw(&Rectangle::new(
            [whole(*from), whole(*to)],
            rgb(*colour).filled(),
        )),
        Item::Label {
            at,
            text,
            size,
            colour,
            anchor,
            bold,
        } => {
            let side = match anchor {
                Anchor::Start => HPos::Left,
                Anchor::Middle => HPos::Center,
                Anchor::End => HPos::Right,
            };
            let style = font(*size, *colour, *bold).pos(Pos::new(side, VPos::Center));
            root.draw(&Text::new(shorten(text, 400), whole(*at), style))
        }
    }
}

fn draw_mark(
    root: &Root,
    at: Point,
    colour: Rgb,
    marker: Marker,
    size: f64,
) -> Result<(), Trouble> {
    let fill = rgb(colour).filled();
    let stroke = ShapeStyle::from(rgb(colour)).stroke_width(2);
    let around = |offsets: &[Point]| -> Vec<(i32, i32)> {
        offsets
            .iter()
            .map(|(x, y)| whole((at.0 + x * size, at.1 + y * size)))
            .collect()
    };
    match marker {
        Marker::None => Ok(()),
        Marker::Circle => root.draw(&Circle::new(whole(at), size.round() as i32, fill)),
        Marker::Square => {
            let s = 0.9;
            root.draw(&Polygon::new(
                around(&[(-s, -s), (s, -s), (s, s), (-s, s)]),
                fill,
            ))
        }
        Marker::Triangle => root.draw(&Polygon::new(
            around(&[(0.0, -1.2), (1.1, 0.8), (-1.1, 0.8)]),
            fill,
        )),
        Marker::Diamond => {
            let s = 1.25;
            root.draw(&Polygon::new(
                around(&[(0.0, -s), (s, 0.0), (0.0, s), (-s, 0.0)]),
                fill,
            ))
        }
        Marker::Cross => {
            root.draw(&PathElement::new(
                around(&[(-1.0, -1.0), (1.0, 1.0)]),
                stroke,
            ))?;
            root.draw(&PathElement::new(
                around(&[(-1.0, 1.0), (1.0, -1.0)]),
                stroke,
            ))
        }
        Marker::Plus => {
            root.draw(&PathElement::new(
                around(&[(-1.2, 0.0), (1.2, 0.0)]),
                stroke,
            ))?;
            root.draw(&PathElement::new(
                around(&[(0.0, -1.2), (0.0, 1.2)]),
                stroke,
            ))
        }
    }
}

/// Appends a line as a path, in tenths of a pixel.
fn draw_line(out: &mut String, item: &Item) {
    let Item::Line {
        points,
        colour,
        dash,
        width,
        name,
    } = item
    else {
        return;
    };
    if points.len() < 2 {
        return;
    }
    let mut data = String::new();
    path(&mut data, points);
    let dash = match dash.array() {
        "" => String::new(),
        array => format!(" stroke-dasharray=\"{array}\""),
    };
    let name = if name.is_empty() {
        String::new()
    } else {
        format!("<title>{}</title>", escape(name))
    };
    let colour = colour.hex();
    // Writing to a string cannot fail.
    let _ = writeln!(
        out,
        "<path d=\"{data}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"{width}\" \
         stroke-linejoin=\"round\"{dash}>{name}</path>"
    );
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

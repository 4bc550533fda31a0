//! The drawing of a scene: the only file that calls the plotting library, but for the axes it asks
//! `axis.rs` about.
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

use super::scene::{Anchor, Grid, Item, Panel, Point, SMALL, Scene, escape, path, room, shorten};
use super::style::{AXIS, GRID, INK, Marker, QUIET, Rgb};

/// The backend divides sizes by this.
const FONT: f64 = 1.24;
impl Scene {
    /// The picture as one SVG element. Without room or with a library that fails, a picture that
    /// says so.
    pub(crate) fn draw(&self) -> String {
        let mut body = String::new();
        let back = self.layer(|root| self.panels.iter().try_for_each(|panel| draw_panel(root, panel)));
        let front = self.layer(|root| self.items.iter().try_for_each(|item| draw_item(root, item)));
        match (back, front) {
            (Ok(back), Ok(front)) => {
                body += &back;
                body += &self.areas;
                self.items.iter().for_each(|item| draw_line(&mut body, item));
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
        Ok(svg.get(start..end).unwrap_or_default().trim_start().to_owned())
    }
}

type Root<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Trouble = DrawingAreaErrorKind<io::Error>;

fn rgb(colour: Rgb) -> RGBColor {
    RGBColor(colour.0, colour.1, colour.2)
}

fn font(size: f64, colour: Rgb, bold: bool) -> TextStyle<'static> {
    let style = if bold { FontStyle::Bold } else { FontStyle::Normal };
    ("sans-serif", size * FONT, style).into_font().color(&rgb(colour))
}

fn whole(point: Point) -> (i32, i32) {
    (point.0.round() as i32, point.1.round() as i32)
}

fn draw_panel(root: &Root, panel: &Panel) -> Result<(), Trouble> {
    let (left, below) = (if panel.y_labels { 90.0 } else { 0.0 }, if panel.x_labels { 26.0 } else { 0.0 });
    let corner = whole((panel.left - left, panel.top));
    let size = whole((panel.right - panel.left + left, panel.bottom - panel.top + below));
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
        Grid::Horizontal => {
            mesh.disable_x_mesh();
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
        Item::Mark { at, colour, marker, size } => draw_mark(root, *at, *colour, *marker, *size),
        Item::Bar { from, to, colour } => {
            root.draw(&Rectangle::new([whole(*from), whole(*to)], rgb(*colour).filled()))
        }
        Item::Label { at, text, size, colour, anchor, bold } => {
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

fn draw_mark(root: &Root, at: Point, colour: Rgb, marker: Marker, size: f64) -> Result<(), Trouble> {
    let fill = rgb(colour).filled();
    let stroke = ShapeStyle::from(rgb(colour)).stroke_width(2);
    let around = |offsets: &[Point]| -> Vec<(i32, i32)> {
        offsets.iter().map(|(x, y)| whole((at.0 + x * size, at.1 + y * size))).collect()
    };
    match marker {
        Marker::None => Ok(()),
        Marker::Circle => root.draw(&Circle::new(whole(at), size.round() as i32, fill)),
        Marker::Square => {
            let s = 0.9;
            root.draw(&Polygon::new(around(&[(-s, -s), (s, -s), (s, s), (-s, s)]), fill))
        }
        Marker::Triangle => root.draw(&Polygon::new(around(&[(0.0, -1.2), (1.1, 0.8), (-1.1, 0.8)]), fill)),
        Marker::Diamond => {
            let s = 1.25;
            root.draw(&Polygon::new(around(&[(0.0, -s), (s, 0.0), (0.0, s), (-s, 0.0)]), fill))
        }
        Marker::Cross => {
            root.draw(&PathElement::new(around(&[(-1.0, -1.0), (1.0, 1.0)]), stroke))?;
            root.draw(&PathElement::new(around(&[(-1.0, 1.0), (1.0, -1.0)]), stroke))
        }
        Marker::Plus => {
            root.draw(&PathElement::new(around(&[(-1.2, 0.0), (1.2, 0.0)]), stroke))?;
            root.draw(&PathElement::new(around(&[(0.0, -1.2), (0.0, 1.2)]), stroke))
        }
    }
}

/// Appends a line as a path, in tenths of a pixel.
fn draw_line(out: &mut String, item: &Item) {
    let Item::Line { points, colour, dash, width, name } = item else {
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
    let name = if name.is_empty() { String::new() } else { format!("<title>{}</title>", escape(name)) };
    let colour = colour.hex();
    // Writing to a string cannot fail.
    let _ = writeln!(
        out,
        "<path d=\"{data}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"{width}\" \
         stroke-linejoin=\"round\"{dash}>{name}</path>"
    );
}

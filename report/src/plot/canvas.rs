//! A scene of plain shapes, and its drawing: the only file that calls the plotting library.

use std::fmt::Write;

use plotters::chart::{ChartBuilder, LabelAreaPosition};
use plotters::coord::Shift;
use plotters::drawing::{DrawingArea, DrawingAreaErrorKind, IntoDrawingArea};
use plotters::element::{Circle, PathElement, Polygon, Rectangle, Text};
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{Color, FontStyle, FontTransform, IntoFont, RGBColor, ShapeStyle, TextStyle};
use plotters_svg::SVGBackend;

use super::axis::Axis;
use super::style::{Dash, Marker, Rgb, Style};

//! The cell map: which request held which cells, address by address, over time.

use std::fmt::Write;

use super::Frame;
use super::axis::{Axis, AxisSpec};
use super::lines::no_data;
use super::pieces::caption;
use super::scene::{Anchor, Grid, Panel, SMALL, Scene, text_width};
use super::style::{AXIS, INK, Rgb};
use crate::number::Unit;
use crate::row::{CellMap, Held};

/// Colours of requests: none is grey or nearly white, and neighbours in this list differ.
const REQUESTS: [Rgb; 16] = [
    Rgb(0x4E, 0x79, 0xA7),
    Rgb(0xF2, 0x8E, 0x2B),
    Rgb(0x59, 0xA1, 0x4F),
    Rgb(0xC9, 0x5B, 0x8C),
    Rgb(0x76, 0xB7, 0xB2),
    Rgb(0xE1, 0x57, 0x59),
    Rgb(0x8C, 0x6B, 0xB1),
    Rgb(0xD4, 0xB1, 0x2C),
    Rgb(0x2F, 0x5D, 0x8A),
    Rgb(0xA0, 0x5A, 0x2C),
    Rgb(0x8C, 0xC4, 0x6B),
    Rgb(0xB0, 0x3A, 0x48),
    Rgb(0x5B, 0xA8, 0xD6),
    Rgb(0xE7, 0x9A, 0x8A),
    Rgb(0x2E, 0x7D, 0x6B),
    Rgb(0xB7, 0x8F, 0xD1),
];

/// Pictures larger than this are drawn with half as many rows and columns.
const BYTES_MAX: usize = 260_000;

/// Units per pixel across; addresses have a unit per row.
const ACROSS: f64 = 4.0;

/// Address over time, a colour per request; wasted cells are pale and hatched, cached ones grey,
/// free ones white; cells with another request's K and V are black with bright stripes. A caption says when the free cells lay in most pieces. Equal neighbours are
/// drawn as one; a map that is still too large is drawn at half its resolution.
pub fn cell_map(frame: &Frame, map: &CellMap) -> String {
    cell_map_within(frame, map, BYTES_MAX)
}

/// The same, with about this many bytes at most for the cells: a page may hold many maps.
pub(crate) fn cell_map_within(frame: &Frame, map: &CellMap, bytes_max: usize) -> String {
    let (width, height) = frame.size();
    let mut scene = Scene::new(width, height, &frame.title);
    let mut grid = Cells::new(map);
    let top = legend(&mut scene, 34.0, &pattern_id(map), grid.has_foreign());
    let (left, right) = (0.0, f64::from(width) - 22.0);
    let panel = panel(map, &grid, (left, right), (top + 24.0, f64::from(height) - 50.0), 7);
    caption(&mut scene, &panel, &grid);
    scene.areas += &grid.picture_within(&panel, &pattern_id(map), bytes_max);
    if grid.columns.is_empty() || grid.rows == 0 {
        no_data(&mut scene, &panel);
    }
    scene.panels.push(panel);
    scene.draw()
}

/// Axes of a map whose labels begin at the left end: cells upwards, time across.
pub(super) fn panel(
    map: &CellMap,
    cells: &Cells,
    across: (f64, f64),
    down: (f64, f64),
    ticks: usize,
) -> Panel {
    let y = Axis::linear(&AxisSpec::linear("cell", Unit::Cells), 0.0, f64::from(map.cells), 5);
    let (begin, end) = (cells.edges.first().copied(), cells.edges.last().copied());
    let time = AxisSpec::linear("time", Unit::Seconds);
    let x = Axis::linear(&time, begin.unwrap_or(0.0), end.unwrap_or(1.0), ticks);
    // The name of the axis of addresses stands at the edge of the picture, and once is enough.
    let is_first = across.0 == 0.0;
    Panel {
        left: across.0 + if is_first { 44.0 } else { 22.0 } + text_width(&"0".repeat(y.label_width()), SMALL),
        top: down.0,
        right: across.1,
        bottom: down.1,
        x_title: x.title("time"),
        y_title: if is_first { "cell (address)".to_owned() } else { String::new() },
        x,
        y,
        x_labels: true,
        y_labels: true,
        grid: Grid::None,
    }
}

fn colour(request: u64) -> Rgb {
    // An odd factor: of 32 requests that arrive one after another, no two share a colour.
    let many = REQUESTS.len() as u64;
    let colour = REQUESTS[(request.wrapping_mul(7) % many) as usize];
    if (request / many).is_multiple_of(2) { colour } else { colour.paler(0.3) }
}

fn wasted(request: u64) -> Rgb {
    colour(request).paler(0.66)
}

/// One page may hold many maps, and an id may stand in it once.
pub(super) fn pattern_id(map: &CellMap) -> String {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for byte in map.name().bytes().chain([0]).chain(map.class.bytes()) {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    format!("hatch-{hash:016x}")
}

/// What the map holds, and where its columns begin and end, in seconds.
pub(super) struct Cells {
    pub(super) rows: usize,
    pub(super) columns: Vec<Vec<Held>>,
    /// One more than columns.
    pub(super) edges: Vec<f64>,
}

impl Cells {
    pub(super) fn new(map: &CellMap) -> Cells {
        let rows = map.rows as usize;
        let mut edges: Vec<f64> = map.columns.iter().map(|c| c.time_ns as f64 / 1e9).collect();
        // The last moment is as long as the mean one.
        if let (Some(first), Some(last)) = (edges.first().copied(), edges.last().copied()) {
            let mean = (last - first) / (edges.len() - 1).max(1) as f64;
            edges.push(last + if mean > 0.0 { mean } else { 1.0 });
        }
        let column = |ranges: &[Held]| {
            let given = ranges.iter().copied().chain(std::iter::repeat(Held::Free));
            given.take(rows).collect()
        };
        Cells { rows, columns: map.columns.iter().map(|c| column(&c.ranges)).collect(), edges }
    }

    /// Whether any cell has K and V of another request in it.
    pub(super) fn has_foreign(&self) -> bool {
        self.columns.iter().flatten().any(|held| matches!(held, Held::Foreign(_)))
    }

    /// The picture with about this many bytes at most, at a lower resolution if it must be.
    pub(super) fn picture_within(&mut self, panel: &Panel, hatch: &str, bytes_max: usize) -> String {
        let mut picture = self.picture(panel, hatch);
        while picture.len() > bytes_max.min(BYTES_MAX) && self.halve() {
            picture = self.picture(panel, hatch);
        }
        picture
    }

    /// Halves both directions: of four neighbours the most frequent stays, or one with another
    /// request's K and V in it. False if it cannot.
    fn halve(&mut self) -> bool {
        if self.rows < 4 || self.columns.len() < 4 {
            return false;
        }
        let rows = self.rows.div_ceil(2);
        let merged = self.columns.chunks(2).map(|pair| {
            let block = |r: usize| {
                let of = |column: &Vec<Held>| column[2 * r..(2 * r + 2).min(column.len())].to_vec();
                most_frequent(&pair.iter().flat_map(of).collect::<Vec<Held>>())
            };
            (0..rows).map(block).collect()
        });
        self.columns = merged.collect();
        let end = self.edges.last().copied();
        self.edges = self.edges[..self.edges.len() - 1].iter().copied().step_by(2).chain(end).collect();
        self.rows = rows;
        true
    }

    /// Rectangles of equal content: columns from and to, rows from and to.
    fn rectangles(&self) -> Vec<(Held, [usize; 4])> {
        let mut done = Vec::new();
        let mut open: Vec<(Held, [usize; 4])> = Vec::new();
        for (c, column) in self.columns.iter().enumerate() {
            let mut next = Vec::new();
            let mut from = 0;
            for part in column.chunk_by(|a, b| a == b) {
                let (held, to) = (part[0], from + part.len());
                if held != Held::Free {
                    let same = |(h, [_, _, a, b]): &(Held, [usize; 4])| (*h, *a, *b) == (held, from, to);
                    let grown = match open.iter().position(same) {
                        Some(i) => open.swap_remove(i).1[0],
                        None => c,
                    };
                    next.push((held, [grown, c + 1, from, to]));
                }
                from = to;
            }
            done.append(&mut open);
            open = next;
        }
        done.append(&mut open);
        done
    }

    fn picture(&self, panel: &Panel, hatch: &str) -> String {
        if self.columns.is_empty() || self.rows == 0 {
            return String::new();
        }
        let across: Vec<i64> = self
            .edges
            .iter()
            .map(|t| ((panel.pixel(*t, 0.0).0 - panel.left) * ACROSS).round() as i64)
            .collect();
        let mut layers: Vec<Layer> = Vec::new();
        let mut add =
            |fill: String, rectangle: [i64; 4]| match layers.iter_mut().find(|layer| layer.fill == fill) {
                Some(layer) => layer.rectangles.push(rectangle),
                None => layers.push(Layer { fill, rectangles: vec![rectangle] }),
            };
        let mut hatched = Vec::new();
        let mut foreign = Vec::new();
        for (held, [c0, c1, r0, r1]) in self.rectangles() {
            let row = |r: usize| i64::try_from(self.rows - r).unwrap_or(0);
            let rectangle = [across[c0], across[c1], row(r1), row(r0)];
            match held {
                Held::Free => {}
                Held::Cached => add(CACHED.hex(), rectangle),
                Held::Live(request) => add(colour(request).hex(), rectangle),
                Held::Wasted(request) => {
                    add(wasted(request).hex(), rectangle);
                    hatched.push(rectangle);
                }
                Held::Foreign(_) => foreign.push(rectangle),
            }
        }
        layers.sort_by(|a, b| a.fill.cmp(&b.fill));
        layers.push(Layer { fill: format!("url(#{hatch})"), rectangles: hatched });
        let stripes = match foreign.is_empty() {
            true => String::new(),
            false => {
                let scale = format!("scale({ACROSS} {:.5}) ", self.rows as f64 / (panel.bottom - panel.top));
                stripes(&format!("{hatch}-foreign"), &scale)
            }
        };
        // Behind its stripes, so that a single cell is still conspicuous.
        layers.push(Layer { fill: FOREIGN.hex(), rectangles: foreign.clone() });
        layers.push(Layer { fill: format!("url(#{hatch}-foreign)"), rectangles: foreign });
        let (left, top) = (panel.left.round(), panel.top.round());
        let (sx, sy) = (1.0 / ACROSS, (panel.bottom - panel.top) / self.rows as f64);
        let mut out = format!(
            "<defs><pattern id=\"{hatch}\" width=\"5\" height=\"5\" patternUnits=\"userSpaceOnUse\" \
             patternTransform=\"scale({ACROSS} {:.5}) rotate(45)\"><path d=\"M0 0V5\" stroke=\"#000\" \
             stroke-opacity=\".55\" stroke-width=\"1.5\"/></pattern></defs>\n{stripes}\
             <g transform=\"translate({left} {top}) scale({sx} {sy:.5})\" shape-rendering=\"crispEdges\">\n",
            1.0 / sy
        );
        layers.iter().for_each(|layer| layer.write(&mut out));
        // Free cells are white, so the edge of the map must be drawn.
        let (w, h) = (panel.right - panel.left - 1.0, panel.bottom - panel.top - 1.0);
        let _ = writeln!(
            out,
            "</g>\n<rect x=\"{left}\" y=\"{top}\" width=\"{w:.1}\" height=\"{h:.1}\" fill=\"none\" stroke=\"{}\"/>",
            AXIS.hex()
        );
        out
    }
}

const CACHED: Rgb = Rgb(0xCF, 0xD3, 0xD8);

/// Black and bright: no request has these colours, and they differ in grey too.
const FOREIGN: Rgb = Rgb(0x11, 0x11, 0x11);
const STRIPE: Rgb = Rgb(0xFF, 0xD9, 0x2F);

/// The stripes of cells with another request's K and V, against those of unused ones.
fn stripes(id: &str, scale: &str) -> String {
    format!(
        "<defs><pattern id=\"{id}\" width=\"7\" height=\"7\" patternUnits=\"userSpaceOnUse\" \
         patternTransform=\"{scale}rotate(-45)\"><path d=\"M0 0V7\" stroke=\"{}\" stroke-width=\"3\"/>\
         </pattern></defs>\n",
        STRIPE.hex()
    )
}

fn most_frequent(block: &[Held]) -> Held {
    if let Some(foreign) = block.iter().find(|held| matches!(held, Held::Foreign(_))) {
        return *foreign;
    }
    let count = |held: &Held| block.iter().filter(|h| *h == held).count();
    let mut best = Held::Free;
    let mut most = 0;
    for held in block {
        if count(held) > most {
            (best, most) = (*held, count(held));
        }
    }
    best
}

/// All rectangles of one colour: one path.
struct Layer {
    fill: String,
    rectangles: Vec<[i64; 4]>,
}

impl Layer {
    fn write(&self, out: &mut String) {
        if self.rectangles.is_empty() {
            return;
        }
        let _ = write!(out, "<path fill=\"{}\" d=\"", self.fill);
        let (mut x, mut y) = (0, 0);
        for [x0, x1, y0, y1] in &self.rectangles {
            let (w, h, dy) = (x1 - x0, y1 - y0, y0 - y);
            let space = if dy < 0 { "" } else { " " };
            let _ = write!(out, "m{}{space}{dy}h{w}v{h}h{}z", x0 - x, -w);
            (x, y) = (*x0, *y0);
        }
        *out += "\"/>\n";
    }
}

/// Four swatches in a row, or five, wrapped to the width; returns where they end.
pub(super) fn legend(scene: &mut Scene, top: f64, hatch: &str, has_foreign: bool) -> f64 {
    let (mut x, mut y) = (12.0, top + 9.0);
    let entries =
        ["in use (colour: request)", "held, unused", "kept for reuse", "free", "K/V of another request"];
    let count = if has_foreign { entries.len() } else { entries.len() - 1 };
    for (kind, name) in entries.into_iter().take(count).enumerate() {
        let width = 42.0 + text_width(name, SMALL);
        if x > 12.0 && x + width > f64::from(scene.width) {
            (x, y) = (12.0, y + 18.0);
        }
        let mut swatch = |dx: f64, w: f64, fill: &str| {
            let _ = writeln!(
                scene.areas,
                "<rect x=\"{:.1}\" y=\"{:.1}\" width=\"{w}\" height=\"12\" fill=\"{fill}\"/>",
                x + dx,
                y - 6.0
            );
        };
        match kind {
            0 => (0..3).for_each(|i| swatch(8.0 * i as f64, 8.0, &colour(i).hex())),
            1 => {
                (0..3).for_each(|i| swatch(8.0 * i as f64, 8.0, &wasted(i).hex()));
                // The hatch of the map is scaled with it: this is a plain one.
                let _ = writeln!(
                    scene.areas,
                    "<defs><pattern id=\"{hatch}-key\" width=\"5\" height=\"5\" patternUnits=\"userSpaceOnUse\" \
                     patternTransform=\"rotate(45)\"><path d=\"M0 0V5\" stroke=\"#000\" stroke-opacity=\".55\" \
                     stroke-width=\"1.5\"/></pattern></defs>"
                );
                let _ = writeln!(
                    scene.areas,
                    "<rect x=\"{x:.1}\" y=\"{:.1}\" width=\"24\" height=\"12\" fill=\"url(#{hatch}-key)\"/>",
                    y - 6.0
                );
            }
            2 => swatch(0.0, 24.0, &CACHED.hex()),
            4 => {
                swatch(0.0, 24.0, &FOREIGN.hex());
                swatch(0.0, 24.0, &format!("url(#{hatch}-foreign-key)"));
                scene.areas += &stripes(&format!("{hatch}-foreign-key"), "");
            }
            _ => {
                let _ = writeln!(
                    scene.areas,
                    "<rect x=\"{:.1}\" y=\"{:.1}\" width=\"23\" height=\"11\" fill=\"#FFF\" stroke=\"#9A9EA2\"/>",
                    x + 0.5,
                    y - 5.5
                );
            }
        }
        scene.text((x + 30.0, y), name, SMALL, INK, Anchor::Start, false);
        x += width;
    }
    y + 12.0
}

//! From the rows of a table to small multiples: who is in which panel and curve, and what is averaged.
//!
//! Rows of one panel, curve, x and seed are averaged; the mean over seeds has the 95 % interval of these samples.

mod front;

use std::collections::{BTreeMap, BTreeSet};

use crate::metric::metric;
use crate::number::Unit;
use crate::order::{natural, number};
use crate::plot::{Across, AxisSpec, Frame, MultiplePoint, Multiples};
use crate::sheet::Sheet;
use crate::stats::{self, Better};

pub use front::{FrontDrawing, front};

/// Panels in a line, and lines of panels.
const PANELS_MAX: usize = 12;
/// Curves whose styles differ.
const CURVES_MAX: usize = 48;
/// Words on an axis.
const WORDS_MAX: usize = 60;

/// Which columns are drawn, by their numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chart {
    /// Across.
    pub x: usize,
    /// Upwards.
    pub y: usize,
    /// What a curve has in common.
    pub curve_by: Vec<usize>,
    /// What a line of panels has in common.
    pub row_by: Vec<usize>,
    /// What a column of panels has in common.
    pub col_by: Vec<usize>,
    /// Whether the axis across is one of powers of ten; none where the values decide.
    pub log_x: Option<bool>,
    /// Whether the axis upwards is, likewise.
    pub log_y: Option<bool>,
}

/// A choice that gives no picture.
#[derive(Debug, thiserror::Error)]
pub enum ChartError {
    /// More panels, curves or words than anybody could look at.
    #[error("{count} {what} by {by}; expected at most {most}: choose some with --filter-by")]
    TooMany {
        /// What there are too many of.
        what: &'static str,
        /// The columns that make them.
        by: String,
        /// How many there are.
        count: usize,
        /// How many there may be.
        most: usize,
    },
    /// A value that should be a number.
    #[error("line {line}: {column} is {value:?}, not a number")]
    NotANumber {
        /// The line of the file; the header is line 1.
        line: usize,
        /// The column.
        column: String,
        /// What stands there.
        value: String,
    },
    /// A column of which neither more nor less is better.
    #[error("{column}: nobody wishes for more or for less of it; expected one of {known}")]
    NoWish {
        /// The column.
        column: String,
        /// Columns that would do.
        known: String,
    },
    /// No row has both values.
    #[error("no row is left that has both {x} and {y}")]
    Empty {
        /// The column across.
        x: String,
        /// The column upwards.
        y: String,
    },
}

/// What is drawn, its frame, and sentences that a reader should know.
#[derive(Clone, Debug, PartialEq)]
pub struct Drawing {
    /// The picture.
    pub plot: Multiples,
    /// Title and size.
    pub frame: Frame,
    /// What is averaged without being asked for, and what an axis cannot show.
    pub notes: Vec<String>,
}

/// Values of some columns together, in order.
struct Groups {
    texts: Vec<Vec<String>>,
    places: BTreeMap<Vec<String>, usize>,
}

impl Groups {
    /// Numbers by size; words as they come in the table, as other plots have them.
    fn of<'a>(rows: impl Iterator<Item = &'a Vec<String>>, columns: &[usize]) -> Groups {
        let mut texts: Vec<Vec<String>> = Vec::new();
        let mut known = BTreeSet::new();
        for row in rows {
            let key: Vec<String> = columns.iter().map(|column| row[*column].clone()).collect();
            if known.insert(key.clone()) {
                texts.push(key);
            }
        }
        let begins_with_digit =
            |text: &String| text.is_empty() || text.starts_with(|c: char| c.is_ascii_digit());
        let sorted: Vec<bool> = (0..columns.len())
            .map(|i| texts.iter().all(|key| begins_with_digit(&key[i]) || number(&key[i]).is_some()))
            .collect();
        let first: Vec<BTreeMap<String, usize>> = (0..columns.len())
            .map(|i| {
                let mut places = BTreeMap::new();
                for key in &texts {
                    let next = places.len();
                    places.entry(key[i].clone()).or_insert(next);
                }
                places
            })
            .collect();
        texts.sort_by(|a, b| {
            let order = |i: usize| match sorted[i] {
                true => natural(&a[i], &b[i]),
                false => first[i].get(&a[i]).cmp(&first[i].get(&b[i])),
            };
            (0..columns.len()).map(order).fold(std::cmp::Ordering::Equal, std::cmp::Ordering::then)
        });
        let places = texts.iter().cloned().enumerate().map(|(place, key)| (key, place)).collect();
        Groups { texts, places }
    }

    fn place(&self, row: &[String], columns: &[usize]) -> Option<usize> {
        let key: Vec<String> = columns.iter().map(|column| row[*column].clone()).collect();
        self.places.get(&key).copied()
    }

    /// Names of the groups: `num_ctx=512, victim=lcf`; what says who it was stands without its column.
    fn names(&self, sheet: &Sheet, columns: &[usize]) -> Vec<String> {
        let part = |(text, column): (&String, &usize)| match (text.as_str(), sheet.columns[*column].as_str())
        {
            ("", column) => format!("no {column}"),
            (text, "row" | "policy" | "trace") => text.to_owned(),
            (text, column) => format!("{column}={text}"),
        };
        let name = |key: &Vec<String>| key.iter().zip(columns).map(part).collect::<Vec<_>>().join(", ");
        self.texts.iter().map(name).collect()
    }
}

/// Draws rows of a table: those for which `is_chosen` holds.
///
/// # Errors
///
/// Where the choice gives no picture.
pub fn chart(
    sheet: &Sheet,
    chart: &Chart,
    is_chosen: impl Fn(&[String]) -> bool,
) -> Result<Drawing, ChartError> {
    let name = |column: usize| sheet.columns[column].clone();
    let measured = |row: &&Vec<String>| !row[chart.x].is_empty() && !row[chart.y].is_empty();
    let chosen: Vec<(usize, &Vec<String>)> =
        sheet.rows.iter().enumerate().filter(|(_, row)| is_chosen(row) && measured(row)).collect();
    if chosen.is_empty() {
        return Err(ChartError::Empty { x: name(chart.x), y: name(chart.y) });
    }
    let rows = || chosen.iter().map(|(_, row)| *row);
    let is_words = rows().any(|row| number(&row[chart.x]).is_none());
    let xs = Groups::of(rows(), &[chart.x]);
    let groups = |what, columns: &[usize], most: usize| {
        let groups = Groups::of(rows(), columns);
        let count = groups.texts.len();
        let by = columns.iter().map(|column| name(*column)).collect::<Vec<_>>().join(", ");
        if count > most { Err(ChartError::TooMany { what, by, count, most }) } else { Ok(groups) }
    };
    let curves = groups("curves", &chart.curve_by, CURVES_MAX)?;
    let lines = groups("lines of panels", &chart.row_by, PANELS_MAX)?;
    let columns = groups("columns of panels", &chart.col_by, PANELS_MAX)?;
    if is_words {
        groups("words", &[chart.x], WORDS_MAX)?;
    }
    let seed = sheet.index("seed").filter(|seed| *seed != chart.x);
    let mut samples: BTreeMap<[usize; 4], BTreeMap<&str, Vec<f64>>> = BTreeMap::new();
    let mut averaged: BTreeMap<([usize; 4], &str), Vec<&Vec<String>>> = BTreeMap::new();
    for (line, row) in &chosen {
        let value = number(&row[chart.y]).ok_or_else(|| ChartError::NotANumber {
            line: line + 2,
            column: name(chart.y),
            value: row[chart.y].clone(),
        })?;
        let places = [
            lines.place(row, &chart.row_by),
            columns.place(row, &chart.col_by),
            curves.place(row, &chart.curve_by),
            xs.place(row, &[chart.x]),
        ];
        let key = places.map(Option::unwrap_or_default);
        let seed = seed.map_or("", |seed| &row[seed]);
        samples.entry(key).or_default().entry(seed).or_default().push(value);
        averaged.entry((key, seed)).or_default().push(row);
    }
    let points = samples.iter().filter_map(|(&[line, column, curve, x], by_seed)| {
        let means: Vec<f64> = by_seed.values().filter_map(|values| stats::mean(values)).collect();
        let across = if is_words { x as f64 } else { number(&xs.texts[x][0])? };
        let half_width = stats::interval(&means).map(|i| i.half_width).filter(|w| *w > 0.0);
        Some(MultiplePoint { panel: (line, column), curve, x: across, y: stats::mean(&means)?, half_width })
    });
    let points: Vec<MultiplePoint> = points.collect();
    let mut notes = Vec::new();
    let differing = (0..sheet.columns.len()).filter(|&column| {
        let differs = |rows: &&Vec<&Vec<String>>| rows.iter().any(|row| row[column] != rows[0][column]);
        sheet.is_setting(column) && averaged.values().any(|rows| differs(&rows))
    });
    let differing: Vec<String> = differing.map(name).collect();
    if !differing.is_empty() {
        notes.push(format!(
            "averaged over {}; --curve-by, --row-by, --col-by or --filter-by tell apart",
            differing.join(", ")
        ));
    }
    let mut axis = |column: usize, log: Option<bool>, values: &[f64], least: usize, ratio: f64| {
        let is_log = log.unwrap_or_else(|| is_wide(values, least, ratio));
        let below = values.iter().filter(|value| **value <= 0.0).count();
        if is_log && below > 0 {
            notes.push(format!("{}: {below} values of zero or less are drawn at the low end", name(column)));
        }
        axis(&sheet.columns[column], is_log)
    };
    let up = axis(chart.y, chart.log_y, &points.iter().map(|p| p.y).collect::<Vec<_>>(), 3, 100.0);
    let across = if is_words {
        Across::Words(name(chart.x), xs.texts.iter().map(|key| key[0].clone()).collect())
    } else {
        Across::Numbers(axis(chart.x, chart.log_x, &points.iter().map(|p| p.x).collect::<Vec<_>>(), 4, 50.0))
    };
    // Few names keep the colours that they have in the whole table.
    let all = Groups::of(sheet.rows.iter(), &chart.curve_by);
    let style = |(at, key): (usize, &Vec<String>)| match all.texts.len() {
        0..=8 => all.places.get(key).copied().unwrap_or(at),
        _ => at,
    };
    let names = curves.names(sheet, &chart.curve_by).into_iter();
    let plot = Multiples {
        curves: names.zip(curves.texts.iter().enumerate().map(style)).collect(),
        rows: lines.names(sheet, &chart.row_by),
        columns: columns.names(sheet, &chart.col_by),
        // What was measured across is no order in which to go from one to the next.
        is_joined: sheet.is_setting(chart.x) || ["time_s", "seed"].contains(&sheet.columns[chart.x].as_str()),
        points,
        across,
        up,
    };
    let title = format!("{} by {}", title(&name(chart.y)), title(&name(chart.x)));
    Ok(Drawing { frame: frame(&title, &plot), plot, notes })
}

/// Whether values call for powers of ten: all above zero, several, and far apart.
fn is_wide(values: &[f64], least: usize, ratio: f64) -> bool {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.dedup();
    match (sorted.first(), sorted.last()) {
        (Some(low), Some(high)) => *low > 0.0 && sorted.len() >= least && high / low >= ratio,
        _ => false,
    }
}

fn title(column: &str) -> String {
    metric(column).map_or(column, |metric| metric.title).to_owned()
}

fn axis(column: &str, is_log: bool) -> AxisSpec {
    let (label, unit) = match metric(column) {
        Some(metric) => {
            let per = if metric.per.is_empty() { String::new() } else { format!(", {}", metric.per) };
            let wish = match metric.better {
                Some(Better::Higher) => " (higher is better)",
                Some(Better::Lower) => " (lower is better)",
                None => "",
            };
            (format!("{}{per}{wish}", metric.title), metric.unit)
        }
        None => (column.to_owned(), unit(column)),
    };
    if is_log { AxisSpec::log(&label, unit) } else { AxisSpec::linear(&label, unit) }
}

/// What the name of a column says of its values.
fn unit(column: &str) -> Unit {
    match column {
        _ if column.ends_with("_ms") => Unit::Milliseconds,
        _ if column.ends_with("_per_s") => Unit::Plain,
        _ if column.ends_with("_s") => Unit::Seconds,
        _ => Unit::Plain,
    }
}

fn frame(title: &str, plot: &Multiples) -> Frame {
    let (columns, rows) = (plot.columns.len() as u32, plot.rows.len() as u32);
    let width = if columns > 1 { (130 + 330 * columns).min(1800) } else { 900 };
    let legend =
        plot.curves.iter().map(|(name, _)| name.chars().count() as u32 * 7 + 60).sum::<u32>() / width * 18;
    let height = if rows > 1 { 110 + 240 * rows } else { 480 };
    Frame { title: title.to_owned(), width, height: height + legend }
}

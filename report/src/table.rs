//! Tables for standard output in five formats, for results and catalogues alike.

use std::str::FromStr;

use comfy_table::{Cell, CellAlignment, LineStyle, Table as Grid, TableStyle};
use serde::Serialize;

use crate::number::{Unit, human, thousands};

/// How a table is printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// Columns lined up with spaces and lines, for a terminal.
    #[default]
    Table,
    /// A Markdown table, for issues and notes.
    Md,
    /// Comma-separated values with a header.
    Csv,
    /// One array of objects.
    Json,
    /// One object per line.
    Jsonl,
}

impl Format {
    /// Every format, in the order of the help text.
    pub const ALL: [Format; 5] = [Format::Table, Format::Md, Format::Csv, Format::Json, Format::Jsonl];

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Format::Table => "table",
            Format::Md => "md",
            Format::Csv => "csv",
            Format::Json => "json",
            Format::Jsonl => "jsonl",
        }
    }
}

/// A word that names no format.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown format {0:?}: expected table, md, csv, json or jsonl")]
pub struct UnknownFormat(String);

impl FromStr for Format {
    type Err = UnknownFormat;

    fn from_str(word: &str) -> Result<Format, UnknownFormat> {
        let found = Format::ALL.into_iter().find(|format| format.name() == word);
        found.ok_or_else(|| UnknownFormat(word.to_owned()))
    }
}

/// A table that could not be written out.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    /// A value has no place in CSV.
    #[error("cannot write the table as CSV: {0}")]
    Csv(#[from] csv::Error),
    /// A value has no place in JSON.
    #[error("cannot write the table as JSON: {0}")]
    Json(#[from] serde_json::Error),
}

/// What stands in one place of a [`Table`].
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Words; printed as they are.
    Text(String),
    /// Numbers already written for people, such as a mean with its interval; set to the right.
    Figures(String),
    /// A number, raw in CSV and JSON, for people in tables.
    Number(f64, Unit),
    /// A whole number, likewise.
    Count(u64),
    /// Nothing: empty in CSV, null in JSON, `-` in tables.
    Empty,
}

impl From<&str> for Value {
    fn from(text: &str) -> Value {
        Value::Text(text.to_owned())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Value {
        Value::Text(text)
    }
}

impl From<u64> for Value {
    fn from(count: u64) -> Value {
        Value::Count(count)
    }
}

impl From<u32> for Value {
    fn from(count: u32) -> Value {
        Value::Count(u64::from(count))
    }
}

impl From<f64> for Value {
    fn from(number: f64) -> Value {
        Value::Number(number, Unit::Plain)
    }
}

impl<T: Into<Value>> From<Option<T>> for Value {
    fn from(value: Option<T>) -> Value {
        value.map_or(Value::Empty, Into::into)
    }
}

impl Value {
    fn for_people(&self) -> String {
        match self {
            Value::Text(text) | Value::Figures(text) => one_line(text),
            Value::Number(number, unit) => human(*number, *unit),
            Value::Count(count) => thousands(&count.to_string()),
            Value::Empty => "-".to_owned(),
        }
    }

    fn raw(&self) -> String {
        match self {
            Value::Text(text) | Value::Figures(text) => text.clone(),
            Value::Number(number, _) => number.to_string(),
            Value::Count(count) => count.to_string(),
            Value::Empty => String::new(),
        }
    }

    fn json(&self) -> serde_json::Value {
        match self {
            Value::Text(text) | Value::Figures(text) => text.as_str().into(),
            Value::Number(number, _) => (*number).into(),
            Value::Count(count) => (*count).into(),
            Value::Empty => serde_json::Value::Null,
        }
    }
}

/// Headers and rows of any table, such as the list of policies.
///
/// ```
/// use report::table::{Format, Table};
/// let mut table = Table::new(["name", "cells"]);
/// table.row(["paged".into(), 16384_u64.into()]);
/// assert_eq!(table.render(Format::Csv)?, "name,cells\npaged,16384\n");
/// assert_eq!(table.render(Format::Jsonl)?, "{\"name\":\"paged\",\"cells\":16384}\n");
/// # Ok::<(), report::table::TableError>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Table {
    headers: Vec<String>,
    rows: Vec<Vec<Value>>,
    leading: usize,
    width_max: Option<usize>,
}

impl Table {
    /// An empty table with these column names. A line break in a name is kept in
    /// [`Format::Table`] and is a space everywhere else.
    pub fn new<S: Into<String>>(headers: impl IntoIterator<Item = S>) -> Table {
        Table { headers: headers.into_iter().map(Into::into).collect(), ..Table::default() }
    }

    /// Adds a row. Missing values at its end are [`Value::Empty`]; values beyond the last column
    /// are dropped.
    pub fn row(&mut self, values: impl IntoIterator<Item = Value>) -> &mut Table {
        let mut row: Vec<Value> = values.into_iter().collect();
        row.resize(self.headers.len(), Value::Empty);
        self.rows.push(row);
        self
    }

    /// Lets [`Format::Table`] be at most `characters` wide: columns that do not fit are printed as
    /// further tables below, each beginning with the first `leading` columns.
    pub fn fold(&mut self, characters: usize, leading: usize) -> &mut Table {
        self.width_max = Some(characters);
        self.leading = leading;
        self
    }

    /// The table as text that ends with a line break.
    pub fn render(&self, format: Format) -> Result<String, TableError> {
        match format {
            Format::Table => Ok(self.terminal()),
            Format::Md => Ok(self.markdown()),
            Format::Csv => self.csv(),
            Format::Json => self.json(),
            Format::Jsonl => self.jsonl(),
        }
    }

    fn terminal(&self) -> String {
        let all: Vec<usize> = (0..self.headers.len()).collect();
        let (lead, rest) = all.split_at(self.leading.min(all.len()));
        let mut out = String::new();
        let mut columns = lead.to_vec();
        for &column in rest {
            let mut wider = columns.clone();
            wider.push(column);
            let fits = self.width_max.is_none_or(|max| self.width_of(&wider) <= max);
            if !fits && columns.len() > lead.len() {
                out += &self.grid(&columns);
                out.push('\n');
                columns = lead.to_vec();
            }
            columns.push(column);
        }
        out + &self.grid(&columns)
    }

    /// Width of the grid with these columns: two spaces inside and none outside each.
    fn width_of(&self, columns: &[usize]) -> usize {
        let width = |text: &str| text.lines().map(|l| l.chars().count()).max().unwrap_or(0);
        let cells = columns.iter().map(|&c| {
            let values = self.rows.iter().map(|row| width(&row[c].for_people()));
            values.chain([width(&self.headers[c])]).max().unwrap_or(0)
        });
        cells.map(|w| w + 2).sum()
    }

    fn grid(&self, columns: &[usize]) -> String {
        let mut grid = Grid::new();
        let rule = LineStyle::none().fill('─').junction('─');
        grid.load_style(TableStyle::new().header_separator(rule));
        let cell = |text: String, c: usize| {
            let side = if self.is_numeric(c) { CellAlignment::Right } else { CellAlignment::Left };
            Cell::new(text).set_alignment(side)
        };
        grid.set_header(columns.iter().map(|&c| cell(self.headers[c].clone(), c)));
        for row in &self.rows {
            grid.add_row(columns.iter().map(|&c| cell(row[c].for_people(), c)));
        }
        grid.lines().map(|line| line.trim_end().to_owned() + "\n").collect()
    }

    fn is_numeric(&self, column: usize) -> bool {
        let is_text = |row: &Vec<Value>| matches!(row[column], Value::Text(_));
        let is_filled = |row: &Vec<Value>| row[column] != Value::Empty;
        self.rows.iter().any(is_filled) && !self.rows.iter().any(is_text)
    }

    fn markdown(&self) -> String {
        let cell = |text: &str| one_line(text).replace('|', "\\|").replace('<', "&lt;");
        let line = |cells: Vec<String>| format!("| {} |\n", cells.join(" | "));
        let mut out = line(self.headers.iter().map(|h| cell(h)).collect());
        let rule = |c| if self.is_numeric(c) { "---:" } else { "---" }.to_owned();
        out += &line((0..self.headers.len()).map(rule).collect());
        for row in &self.rows {
            out += &line(row.iter().map(|v| cell(&v.for_people())).collect());
        }
        out
    }

    fn csv(&self) -> Result<String, TableError> {
        let mut writer = csv::Writer::from_writer(Vec::new());
        writer.write_record(self.headers.iter().map(|h| one_line(h)))?;
        for row in &self.rows {
            writer.write_record(row.iter().map(Value::raw))?;
        }
        finish_csv(writer)
    }

    fn objects(&self) -> impl Iterator<Item = Result<String, serde_json::Error>> {
        self.rows.iter().map(|row| {
            let pairs = self.headers.iter().zip(row).map(|(header, value)| {
                let name = serde_json::to_string(&one_line(header))?;
                Ok(format!("{name}:{}", value.json()))
            });
            let pairs: Result<Vec<String>, serde_json::Error> = pairs.collect();
            Ok(format!("{{{}}}", pairs?.join(",")))
        })
    }

    fn json(&self) -> Result<String, TableError> {
        let objects: Result<Vec<String>, _> = self.objects().collect();
        Ok(array_of(&objects?))
    }

    fn jsonl(&self) -> Result<String, TableError> {
        let mut out = String::new();
        for object in self.objects() {
            out += &object?;
            out.push('\n');
        }
        Ok(out)
    }
}

/// Full rows in a format for machines: raw numbers, field names in the order of the struct.
pub(crate) fn machine_rows<T: Serialize>(
    rows: &[T],
    fields: &[&str],
    format: Format,
) -> Result<String, TableError> {
    if format == Format::Csv {
        let mut writer = csv::WriterBuilder::new().has_headers(false).from_writer(Vec::new());
        writer.write_record(fields)?;
        for row in rows {
            writer.serialize(row)?;
        }
        return finish_csv(writer);
    }
    let objects: Result<Vec<String>, _> = rows.iter().map(serde_json::to_string).collect();
    let objects = objects?;
    if format == Format::Json {
        return Ok(array_of(&objects));
    }
    Ok(objects.iter().map(|object| format!("{object}\n")).collect())
}

fn array_of(objects: &[String]) -> String {
    if objects.is_empty() {
        return "[]\n".to_owned();
    }
    format!("[\n  {}\n]\n", objects.join(",\n  "))
}

fn finish_csv(writer: csv::Writer<Vec<u8>>) -> Result<String, TableError> {
    let bytes = writer.into_inner().map_err(|e| csv::Error::from(e.into_error()))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The text without line breaks and other control characters, which would break a table.
pub(crate) fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

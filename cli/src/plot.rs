//! `kvlab plot`: small multiples of any columns of a CSV file of results.

use std::io::{Write, stderr, stdout};
use std::path::{Path, PathBuf};

use clap::ArgMatches;
use report::chart::{Chart, chart, front};
use report::files::write_text;
use report::order::number;
use report::plot::multiples;
use report::sheet::Sheet;

use crate::condition::Condition;
use crate::experiment::bounds;
use crate::settings::KEYS;
use crate::trouble::{Source, Trouble, usage};

/// `kvlab plot FILE.csv|DIR`.
pub fn plot(matches: &ArgMatches) -> Result<(), Trouble> {
    let path = file(Path::new(matches.get_one::<String>("file").expect("the file is required")))?;
    let sheet = Sheet::read(&path).map_err(usage)?;
    let sheet = sheet.split_variant(|key| KEYS.iter().any(|known| known.name == key));
    let one = |flag: &'static str| {
        let name = matches.get_one::<String>(flag).expect("the column is required");
        column(&sheet, flag, name, name)
    };
    let (x, y) = (one("x")?, one("y")?);
    if !sheet.is_numeric(y) {
        return Err(no_numbers(&sheet, y));
    }
    let [row_by, col_by] = [columns(&sheet, matches, "row-by")?, columns(&sheet, matches, "col-by")?];
    let [row_by, col_by] = [row_by, col_by].map(Option::unwrap_or_default);
    let curve_by = match columns(&sheet, matches, "curve-by")? {
        Some(columns) => columns,
        None => who(&sheet, &[&[x, y][..], &row_by, &col_by].concat()),
    };
    let filters = filters(&sheet, matches)?;
    let log = |flag: &str| matches.get_one::<bool>(flag).copied();
    let choice = Chart { x, y, curve_by, row_by, col_by, log_x: log("log-x"), log_y: log("log-y") };
    let is_chosen = |row: &[String]| filters.iter().all(|filter| filter.is_met(row));
    let wrong = |error| usage(format!("{}: {error}", path.display()));
    let (svg, notes) = if matches.get_flag("front") {
        let policy = sheet.index("policy");
        let is_bound =
            |row: &[String]| policy.is_some_and(|at| !bounds([row[at].as_str()].into_iter()).is_empty());
        let drawing = front(&sheet, &choice, is_chosen, is_bound).map_err(wrong)?;
        (drawing.svg(), drawing.told.iter().map(|told| format!("front: {told}")).collect())
    } else {
        let drawing = chart(&sheet, &choice, is_chosen).map_err(wrong)?;
        let notes: Vec<String> = drawing.notes.iter().map(|note| format!("note: {note}")).collect();
        (multiples(&drawing.frame, &drawing.plot), notes)
    };
    if !matches.get_flag("quiet") {
        for note in &notes {
            writeln!(stderr(), "{note}")?;
        }
    }
    match matches.get_one::<String>("out").map(PathBuf::from) {
        None => Ok(stdout().write_all(svg.as_bytes())?),
        Some(out) if out.extension().is_none_or(|end| end != "svg") => {
            Err(usage(format!("--out {}: plots are SVG; expected a name that ends in .svg", out.display())))
        }
        Some(out) => {
            write_text(&out, &svg).map_err(usage)?;
            if !matches.get_flag("quiet") {
                writeln!(stderr(), "plot: {}", out.display())?;
            }
            Ok(())
        }
    }
}

/// The file itself, or the summary of a folder.
fn file(path: &Path) -> Result<PathBuf, Trouble> {
    if !path.is_dir() {
        return Ok(path.to_owned());
    }
    let summary = path.join("summary.csv");
    if summary.is_file() {
        return Ok(summary);
    }
    Err(usage(format!(
        "there is no file {}; expected the folder of an experiment, or of a sweep after `kvlab collect`",
        summary.display()
    )))
}

/// Number of the column that a flag names in its text.
fn column(sheet: &Sheet, flag: &str, text: &str, name: &str) -> Result<usize, Trouble> {
    sheet.index(name).ok_or_else(|| {
        let before = format!("--{flag} ");
        let at = before.len() + text.find(name).unwrap_or(0);
        let source = Source::new("command line".into(), format!("{before}{text}"));
        let message = format!("there is no column {name:?}; the columns are {}", sheet.columns.join(", "));
        usage(source.point(at..at + name.len(), &message))
    })
}

/// The columns of a list; none where the flag is not given.
fn columns(sheet: &Sheet, matches: &ArgMatches, flag: &str) -> Result<Option<Vec<usize>>, Trouble> {
    let Some(text) = matches.get_one::<String>(flag) else { return Ok(None) };
    if text == "none" {
        return Ok(Some(Vec::new()));
    }
    let names = text.split(',').map(str::trim);
    names.map(|name| column(sheet, flag, text, name)).collect::<Result<_, _>>().map(Some)
}

fn no_numbers(sheet: &Sheet, y: usize) -> Trouble {
    let numeric = (0..sheet.columns.len()).filter(|column| sheet.is_numeric(*column));
    let numeric: Vec<&str> = numeric.map(|column| sheet.columns[column].as_str()).collect();
    let name = &sheet.columns[y];
    let (before, known) = ("--y ", numeric.join(", "));
    let source = Source::new("command line".into(), format!("{before}{name}"));
    let message = format!("{name:?} is no column of numbers; columns of numbers are {known}");
    usage(source.point(before.len()..before.len() + name.len(), &message))
}

/// The column that says who it was: rows, or else policies, where there are several and nothing else tells them
/// apart.
fn who(sheet: &Sheet, taken: &[usize]) -> Vec<usize> {
    let varies = |column: &usize| sheet.rows.iter().any(|row| row[*column] != sheet.rows[0][*column]);
    let known = ["row", "policy"].into_iter().filter_map(|name| sheet.index(name));
    known.filter(varies).take(1).filter(|column| !taken.contains(column)).collect()
}

/// A condition on a column.
struct Filter {
    condition: Condition,
    column: usize,
}

/// All conditions of the command line.
fn filters(sheet: &Sheet, matches: &ArgMatches) -> Result<Vec<Filter>, Trouble> {
    let texts = matches.get_many::<String>("filter-by").into_iter().flatten();
    let filter = |text: &String| {
        let condition = Condition::parse("--filter-by", text)?;
        let Some(column) = sheet.index(&condition.column) else {
            let known = sheet.columns.join(", ");
            let message = format!("there is no column {:?}; the columns are {known}", condition.column);
            return Err(condition.wrong_column(&message));
        };
        let is_order = !["==", "!="].contains(&condition.comparison.0);
        if is_order && number(&condition.value).is_none() {
            return Err(condition.wrong_value("expected a number; words can be == or != only"));
        }
        Ok(Filter { condition, column })
    };
    texts.map(filter).collect()
}

impl Filter {
    /// Numbers are compared by size, words by letters. What was not measured meets nothing but `!=`.
    fn is_met(&self, row: &[String]) -> bool {
        let (text, value) = (row[self.column].as_str(), self.condition.value.as_str());
        let order = match (number(text), number(value)) {
            (Some(a), Some(b)) => a.partial_cmp(&b),
            _ if !["==", "!="].contains(&self.condition.comparison.0) => None,
            _ => Some(text.cmp(value)),
        };
        order.is_some_and(|order| self.condition.is_met_by(order))
    }
}

//! `kvlab collect`: the results of a sweep put together: table, files, and the page.

use std::io::{Write, stderr, stdout};
use std::path::{Path, PathBuf};

use clap::ArgMatches;
use report::compare::Comparison;
use report::files;
use report::metric::Metric;
use report::sweep::Pair;
use report::table::Format;

use super::fail_if::FailIf;
use super::head::{Head, fronts_of, target_of};
use super::page::{Compared, draw};
use super::results::Results;
use super::store::Store;
use crate::arguments::format_of;
use crate::experiment::bounds;
use crate::tables::terminal_width;
use crate::trouble::{Trouble, usage};

/// What is printed, and what counts as trouble.
pub struct Wishes {
    /// Of the table.
    pub format: Format,
    /// Policy or row to compare with; that of the sweep where none is named.
    pub reference: Option<String>,
    /// What the page compares; that of the sweep where none is named.
    pub target: Option<&'static Metric>,
    /// What the page draws against each other; that of the sweep where nothing is named.
    pub fronts: Vec<Pair>,
    /// Conditions for exit code 3.
    pub fail_if: Vec<FailIf>,
    /// Whether to keep quiet on standard error.
    pub quiet: bool,
}

/// `kvlab collect DIR`.
pub fn collect(matches: &ArgMatches) -> Result<(), Trouble> {
    let dir = matches.get_one::<String>("dir").expect("the folder is required");
    let wishes = Wishes {
        format: format_of(matches),
        reference: matches.get_one::<String>("reference").cloned(),
        target: target_of(matches)?,
        fronts: fronts_of(matches)?,
        fail_if: FailIf::of_command(matches)?,
        quiet: matches.get_flag("quiet"),
    };
    put_together(Path::new(dir), &wishes)
}

/// Whether a folder is that of a sweep.
pub fn is_sweep(dir: &Path) -> bool {
    Store::open(dir).list().is_file()
}

/// The page of a sweep's folder, drawn again from its results.
pub fn redraw(dir: &Path, matches: &ArgMatches) -> Result<String, Trouble> {
    let store = Store::open(dir);
    let (head, results) = (Head::read(&store)?, Results::read(&store)?);
    let reference = matches.get_one::<String>("reference").cloned();
    let target = target_of(matches)?.map_or_else(|| head.target(&store), |target| Ok(Some(target)))?;
    let fronts = fronts_in(fronts_of(matches)?, &head, &store)?;
    let reference = reference_in(&results, reference, &head)?;
    let bounds = bounds(results.rows.iter().map(|row| row.policy.as_str()));
    draw(results, &head, Compared { reference, bounds, target, fronts })
}

/// The columns that were asked for, or those of the sweep.
fn fronts_in(asked: Vec<Pair>, head: &Head, store: &Store) -> Result<Vec<Pair>, Trouble> {
    if asked.is_empty() { head.fronts(store) } else { Ok(asked) }
}

/// The reference that was asked for, which has to have a result, or that of the sweep.
fn reference_in(results: &Results, asked: Option<String>, head: &Head) -> Result<Option<String>, Trouble> {
    let has = |name: &str| results.rows.iter().any(|row| row.row == *name || row.policy == *name);
    match asked {
        Some(name) if !has(&name) => Err(usage(format!("--reference: no result is called {name:?}"))),
        Some(name) => Ok(Some(name)),
        None => Ok(head.reference.clone()),
    }
}

/// Writes `summary.csv`, `tails.csv` and `report.html`, prints the comparison, and says what is missing.
pub fn put_together(dir: &Path, wishes: &Wishes) -> Result<(), Trouble> {
    let store = Store::open(dir);
    let (head, results) = (Head::read(&store)?, Results::read(&store)?);
    let target = wishes.target.map_or_else(|| head.target(&store), |target| Ok(Some(target)))?;
    let fronts = fronts_in(wishes.fronts.clone(), &head, &store)?;
    let reference = reference_in(&results, wishes.reference.clone(), &head)?;
    let rows = &results.rows;
    let bounds = bounds(rows.iter().map(|row| row.policy.as_str()));
    let mut comparison = Comparison::new(rows).bounds(&bounds);
    if let Some(reference) = &reference {
        comparison = comparison.reference(reference);
    }
    let width = (wishes.format == Format::Table).then(terminal_width).flatten();
    let table = comparison.render(wishes.format, width)?;
    let summary = files::write_summary(dir, rows)?;
    let [tails, page] = ["tails.csv", "report.html"].map(|name| dir.join(name));
    files::write_text(&tails, &results.tails.render(Format::Csv)?)?;
    let (checked, met) = (results.check(), FailIf::check(&wishes.fail_if, rows));
    files::write_text(&page, &draw(results, &head, Compared { reference, bounds, target, fronts })?)?;
    stdout().write_all(table.as_bytes())?;
    if !wishes.quiet {
        let names: Vec<PathBuf> = vec![summary, tails, page];
        let names: Vec<String> = names.iter().map(|name| name.display().to_string()).collect();
        writeln!(stderr(), "results: {}", names.join(", "))?;
    }
    checked?;
    met
}

//! `kvlab report`: the page of a folder of results, drawn again from what is in it.

use std::io::{Write, stderr};
use std::path::{Path, PathBuf};

use clap::ArgMatches;
use report::extras::{self, Extras};
use report::files::{read_rows, read_summary, write_text};
use report::page::{Page, page};
use report::{Summary, TimelineRow};

use crate::experiment::bounds;
use crate::sweep;
use crate::trouble::{Source, Trouble, usage};

/// Name of the resolved experiment in its folder.
pub const SETTINGS: &str = "run.toml";

/// `kvlab report DIR`.
pub fn report(matches: &ArgMatches) -> Result<(), Trouble> {
    let dir = Path::new(matches.get_one::<String>("dir").expect("the folder is required"));
    let is_experiment = dir.join(SETTINGS).is_file();
    let html = match (sweep::is_sweep(dir), is_experiment) {
        (true, true) => {
            let message = "has results of a sweep and of an experiment; expected a folder with one of them";
            return Err(usage(format!("{} {message}", dir.display())));
        }
        (true, false) => sweep::redraw(dir, matches)?,
        (false, true) if matches.contains_id("target") => {
            return Err(usage("--target: only the page of a sweep has a column that it compares"));
        }
        (false, true) if matches.contains_id("front") => {
            return Err(usage("--front: only the page of a sweep draws columns against each other"));
        }
        (false, true) => of_experiment(dir, matches.get_one::<String>("reference"))?,
        (false, false) => {
            let message =
                "has no run.toml and no sweep.jsonl; expected a folder that compare, run or sweep wrote";
            return Err(usage(format!("{} {message}", dir.display())));
        }
    };
    let out = matches.get_one::<String>("out").map_or_else(|| dir.join("report.html"), PathBuf::from);
    write_text(&out, &html).map_err(usage)?;
    if !matches.get_flag("quiet") {
        writeln!(stderr(), "report: {}", out.display())?;
    }
    Ok(())
}

/// The page of a folder that `kvlab compare` or `kvlab run` has filled.
pub fn of_experiment(dir: &Path, reference: Option<&String>) -> Result<String, Trouble> {
    let settings_toml = read_text(&dir.join(SETTINGS))?;
    let settings = settings(&dir.join(SETTINGS), &settings_toml)?;
    let text = |name: &str| settings.get(name).and_then(toml::Value::as_str).map(str::to_owned);
    let summaries = read_summary(&dir.join("summary.csv")).map_err(usage)?;
    if let Some(name) = reference
        && !summaries.iter().any(|row| row.row == *name || row.policy == *name)
    {
        return Err(usage(format!("--reference: no result is called {name:?}")));
    }
    // Pictures of single runs are those of the first seed.
    let seed = summaries.first().map(|row| row.seed);
    let path = dir.join("timeline.csv");
    let rows = read_rows::<TimelineRow>(&path).map_err(usage)?;
    let is_shown = |row: &Result<TimelineRow, _>| row.as_ref().map_or(true, |row| Some(row.seed) == seed);
    let timeline: Vec<TimelineRow> = rows.filter(is_shown).collect::<Result<_, _>>().map_err(usage)?;
    let Extras { command, maps, notes, tpot_ms, ttft_ms } = extras(dir)?;
    let html = page(&Page {
        title: text("title").unwrap_or_else(|| "Comparison of KV-cache policies".to_owned()),
        question: text("question").unwrap_or_else(|| "Which policy serves this workload best?".to_owned()),
        reference: reference.cloned().or_else(|| text("reference")),
        columns: list(&settings, "columns"),
        bounds: bounds(summaries.iter().map(|row: &Summary| row.policy.as_str())),
        summaries,
        timeline,
        ttft_ms,
        tpot_ms,
        maps,
        settings_toml,
        command,
        notes,
    });
    Ok(html?)
}

/// The values of a key that has one, several or none.
fn list(settings: &toml::Table, name: &str) -> Vec<String> {
    let values = match settings.get(name) {
        Some(toml::Value::Array(values)) => values.as_slice(),
        Some(value) => std::slice::from_ref(value),
        None => &[],
    };
    values.iter().filter_map(|value| Some(value.as_str()?.to_owned())).collect()
}

fn extras(dir: &Path) -> Result<Extras, Trouble> {
    let path = dir.join(extras::FILE);
    if !path.exists() {
        let again = "the results are of an earlier version; `kvlab compare run.toml` makes them again";
        return Err(usage(format!("there is no file {}: {again}", path.display())));
    }
    Extras::read(dir).map_err(usage)
}

fn read_text(path: &Path) -> Result<String, Trouble> {
    std::fs::read_to_string(path).map_err(|error| usage(format!("{}: {error}", path.display())))
}

fn settings(path: &Path, text: &str) -> Result<toml::Table, Trouble> {
    let source = Source::new(path.display().to_string(), text.to_owned());
    let wrong = |error: toml::de::Error| usage(source.point(error.span().unwrap_or(0..0), error.message()));
    text.parse().map_err(wrong)
}

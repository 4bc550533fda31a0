//! `kvlab compare` and `kvlab run`: run every case, print the table, write the files.

use std::io::{IsTerminal, Write, stderr, stdout};
use std::path::{Path, PathBuf};

use clap::ArgMatches;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use rayon::prelude::*;
use report::compare::Comparison;
use report::extras::Extras;
use report::metric::{all, metric};
use report::table::{Format, Table, Value};
use report::{Summary, files};

use crate::arguments::format_of;
use crate::experiment::{CaseResult, Experiment, join_requests};
use crate::redraw::{SETTINGS, of_experiment};
use crate::settings::Settings;
use crate::swap;
use crate::tables::terminal_width;
use crate::trouble::{Trouble, usage};

/// Everything that both commands need.
struct Session {
    settings: Settings,
    experiment: Experiment,
    out: Option<PathBuf>,
    quiet: bool,
    format: Format,
    /// Where the simulated server's log goes, of the first seed.
    log: Option<PathBuf>,
    /// The scenario or trace that was named.
    file: Option<PathBuf>,
}

impl Session {
    /// Reads settings; none if they were only to be printed.
    fn new(matches: &ArgMatches) -> Result<Option<Self>, Trouble> {
        let (settings, file) = Settings::of_command(matches, "kvlab ")?;
        if matches.get_flag("print-config") {
            Experiment::new(&settings)?;
            stdout().write_all(settings.to_toml().as_bytes())?;
            return Ok(None);
        }
        let experiment = Experiment::new(&settings)?;
        let name = file
            .as_deref()
            .and_then(Path::file_stem)
            .map_or("compare".into(), |stem| stem.to_string_lossy().into_owned());
        let out =
            matches.get_one::<String>("out").map_or_else(|| Path::new("kvlab-out").join(name), PathBuf::from);
        let out = (!matches.get_flag("no-files")).then_some(out);
        let (quiet, format) = (matches.get_flag("quiet"), format_of(matches));
        let log = matches.try_get_one::<String>("log").ok().flatten().map(PathBuf::from);
        Ok(Some(Session { settings, experiment, out, quiet, format, log, file }))
    }

    /// Runs every case, on all threads; the order of the results is that of the cases.
    fn run_cases(&self) -> Result<Vec<CaseResult>, Trouble> {
        let cases = self.experiment.cases();
        let bar = progress_bar(cases.len(), "runs", self.quiet);
        let parts = match &self.out {
            Some(dir) => {
                std::fs::create_dir_all(dir).map_err(|error| usage(format!("{}: {error}", dir.display())))?;
                let parts = tempfile::tempdir_in(dir)?;
                remove_on_interrupt(parts.path().to_path_buf())?;
                Some(parts)
            }
            None => None,
        };
        let part = |case: usize| parts.as_ref().map(|dir| dir.path().join(case.to_string()));
        let first_seed = self.experiment.seeds[0];
        let indices: Vec<usize> = (0..cases.len()).collect();
        let results: Result<Vec<CaseResult>, Trouble> = indices
            .into_par_iter()
            .map(|case| {
                let (setting, seed) = cases[case];
                let map = self.out.is_some() && seed == first_seed;
                let log = self.log.as_deref().filter(|_| seed == first_seed);
                let result = self.experiment.run(setting, seed, map, part(case).as_deref(), log);
                bar.inc(1);
                result
            })
            .collect();
        bar.finish_and_clear();
        let results = results?;
        if let (Some(dir), Some(_)) = (&self.out, &parts) {
            let parts: Vec<PathBuf> = (0..cases.len()).filter_map(part).collect();
            join_requests(dir, &parts)?;
        }
        Ok(results)
    }

    /// One row per setting and seed, also where a seed changes nothing and was not run again.
    fn summaries(&self, results: &[CaseResult]) -> Vec<Summary> {
        let mut rows = Vec::new();
        for ((setting, _), result) in self.experiment.cases().into_iter().zip(results) {
            if self.experiment.stands_for_all_seeds(setting) {
                let copies = self
                    .experiment
                    .seeds
                    .iter()
                    .map(|&seed| self.experiment.with_seed(result.summary.clone(), setting, seed));
                rows.extend(copies);
            } else {
                rows.push(result.summary.clone());
            }
        }
        rows
    }

    fn write_files(
        &self,
        dir: &Path,
        summaries: &[Summary],
        results: &[CaseResult],
    ) -> Result<PathBuf, Trouble> {
        files::write_text(&dir.join(SETTINGS), &self.experiment.toml)?;
        files::write_summary(dir, summaries)?;
        let mut writer = files::RowsWriter::create(dir)?;
        for row in results.iter().flat_map(|result| &result.timeline) {
            writer.write(row)?;
        }
        writer.finish()?;
        let first_seed = self.experiment.seeds[0];
        let label = |result: &CaseResult| result.summary.name().to_owned();
        let first: Vec<&CaseResult> =
            results.iter().filter(|result| result.summary.seed == first_seed).collect();
        let extras = Extras {
            command: command_line(),
            maps: first.iter().flat_map(|result| result.maps.clone()).collect(),
            notes: self.experiment.notes(),
            tpot_ms: first.iter().map(|result| (label(result), result.tpot_ms.clone())).collect(),
            ttft_ms: first.iter().map(|result| (label(result), result.ttft_ms.clone())).collect(),
        };
        extras.write(dir)?;
        // Drawn from the files alone, so that `kvlab report` can draw it again.
        let path = dir.join("report.html");
        files::write_text(&path, &of_experiment(dir, None)?)?;
        Ok(path)
    }
}

/// A bar for so many runs, with the time that is left; hidden where nobody looks.
pub fn progress_bar(length: usize, what: &str, quiet: bool) -> ProgressBar {
    let bar = ProgressBar::new(length as u64);
    if quiet || !stderr().is_terminal() {
        bar.set_draw_target(ProgressDrawTarget::hidden());
    }
    if let Ok(style) =
        ProgressStyle::with_template(&format!("{{bar:40}} {{pos}}/{{len}} {what}, {{eta}} left"))
    {
        bar.set_style(style);
    }
    bar
}

/// The command line as it was given, program name without its folder.
pub fn command_line() -> String {
    command_without(&[], &[])
}

/// The command line without some flags: `with_value` are followed by a value, `alone` are not.
pub fn command_without(with_value: &[&str], alone: &[&str]) -> String {
    let quote = |word: String| {
        let plain = word.chars().all(|c| c.is_alphanumeric() || "-_./=:,+".contains(c));
        if plain { word } else { format!("'{}'", word.replace('\'', "'\\''")) }
    };
    let (mut words, mut given) = (vec!["kvlab".to_owned()], std::env::args().skip(1));
    while let Some(word) = given.next() {
        let (flag, has_value) = word.split_once('=').map_or((word.as_str(), false), |(flag, _)| (flag, true));
        if with_value.contains(&flag) {
            if !has_value {
                given.next();
            }
        } else if !alone.contains(&flag) {
            words.push(quote(word));
        }
    }
    words.join(" ")
}

/// Ctrl-C leaves nothing half-written behind and exits with 130, as shells expect.
fn remove_on_interrupt(parts: PathBuf) -> Result<(), Trouble> {
    ctrlc::set_handler(move || {
        // The process ends either way; what cannot be removed stays.
        let _ = std::fs::remove_dir_all(&parts);
        std::process::exit(130);
    })?;
    Ok(())
}

/// A log is kept by one scheduler only, and must not be written over what the run reads.
fn check_log(session: &Session) -> Result<(), Trouble> {
    let Some(log) = &session.log else { return Ok(()) };
    if session.settings.all("scheduler").iter().any(|value| value.text != "runner") {
        return Err(usage("--log needs --scheduler runner: only the log of that server is known"));
    }
    let inputs = session.experiment.inputs().into_iter().chain(session.file.clone());
    for input in inputs {
        if let (Ok(input), Ok(log)) = (input.canonicalize(), log.canonicalize())
            && input == log
        {
            return Err(usage(format!(
                "{} is read by the run; expected another file for --log",
                log.display()
            )));
        }
    }
    Ok(())
}

/// A reference has to be among what is compared.
pub fn check_reference(settings: &Settings) -> Result<(), Trouble> {
    let Some(reference) = settings.one("reference") else { return Ok(()) };
    let policies = settings.all("policies");
    let rows = settings.row_names();
    let (what, names) = match rows.is_empty() {
        true => ("policies", policies.iter().map(|policy| policy.text.as_str()).collect()),
        false => ("rows", rows),
    };
    if names.contains(&reference.text.as_str()) {
        return Ok(());
    }
    Err(reference.wrong(format!("{:?} is not among the {what}: {}", reference.text, names.join(", "))))
}

/// The metrics that the table is asked for have to be known.
pub fn columns(settings: &Settings) -> Result<Vec<String>, Trouble> {
    let columns = settings.all("columns");
    if let Some(unknown) = columns.iter().find(|value| metric(&value.text).is_none()) {
        let known: Vec<&str> = all().map(|metric| metric.key).collect();
        return Err(unknown.wrong(format!("{:?} is not one of {}", unknown.text, known.join(", "))));
    }
    Ok(columns.into_iter().map(|value| value.text).collect())
}

/// Says so where the reference is not among the rows that were chosen.
fn note_reference(session: &Session) -> Result<(), Trouble> {
    if let Some(reference) = session.settings.one("reference")
        && !session.quiet
        && !session.experiment.has_name(&reference.text)
    {
        let first = session.experiment.first_name();
        writeln!(stderr(), "note: {:?} is not run; compared with {first:?}", reference.text)?;
    }
    Ok(())
}

/// `kvlab compare`.
pub fn compare(matches: &ArgMatches) -> Result<(), Trouble> {
    let Some(session) = Session::new(matches)? else { return Ok(()) };
    check_reference(&session.settings)?;
    let columns = columns(&session.settings)?;
    note_reference(&session)?;
    let engine = swap::scenario(&session.settings)?;
    let results = session.run_cases()?;
    let summaries = session.summaries(&results);
    let bounds = session.experiment.bounds();
    let mut comparison = Comparison::new(&summaries).bounds(&bounds).columns(&columns);
    if let Some(reference) = session.settings.one("reference") {
        comparison = comparison.reference(&reference.text);
    }
    let width = (session.format == Format::Table).then(terminal_width).flatten();
    let table = comparison.render(session.format, width)?;
    finish(&session, &summaries, &results)?;
    stdout().write_all(table.as_bytes())?;
    match engine {
        // It is for people; who reads the numbers by program asks `kvlab validate` for them.
        Some(engine) if matches!(session.format, Format::Table | Format::Md) => {
            swap_in(&session, &engine, &summaries)
        }
        _ => Ok(()),
    }
}

/// Ends with the reference and the winner on the engine, as far as its scenario has them.
fn swap_in(session: &Session, engine: &Settings, summaries: &[Summary]) -> Result<(), Trouble> {
    let names = engine.row_names();
    let first = session.experiment.first_name().to_owned();
    let reference = session.settings.one("reference").map_or(first, |value| value.text);
    let Some(winner) = swap::winner(summaries, &names).filter(|_| names.contains(&reference.as_str())) else {
        return Ok(());
    };
    let swapped = swap::swap_in(engine, &reference, winner, session.quiet)?;
    if let Some(dir) = &session.out {
        files::write_text(&dir.join("engine.csv"), &swapped.table.render(Format::Csv)?)?;
    }
    Ok(stdout().write_all(swap::text(&swapped, session.format)?.as_bytes())?)
}

/// `kvlab run`.
pub fn run(matches: &ArgMatches) -> Result<(), Trouble> {
    let Some(session) = Session::new(matches)? else { return Ok(()) };
    check_reference(&session.settings)?;
    columns(&session.settings)?;
    check_log(&session)?;
    if session.experiment.settings.len() > 1 {
        return Err(usage(format!(
            "run takes one policy and one value for every setting, these make {} cases; use `kvlab compare`, or --policies NAME",
            session.experiment.settings.len()
        )));
    }
    let results = session.run_cases()?;
    let summaries = session.summaries(&results);
    let text = if matches!(session.format, Format::Table | Format::Md) {
        every_number(&summaries)?.render(session.format)?
    } else {
        Comparison::new(&summaries).render(session.format, None)?
    };
    finish(&session, &summaries, &results)?;
    Ok(stdout().write_all(text.as_bytes())?)
}

/// One line per column of `summary.csv`, one column per seed.
fn every_number(summaries: &[Summary]) -> Result<Table, Trouble> {
    let mut writer = csv::Writer::from_writer(Vec::new());
    for row in summaries {
        writer.serialize(row)?;
    }
    let text = writer.into_inner().map_err(|error| error.into_error())?;
    let mut reader = csv::Reader::from_reader(text.as_slice());
    let names = reader.headers()?.clone();
    let rows = reader.records().collect::<Result<Vec<_>, _>>()?;
    let seeds = summaries.iter().map(|row| format!("seed {}", row.seed));
    let mut table = Table::new(std::iter::once("column".to_owned()).chain(seeds));
    for (index, name) in names.iter().enumerate() {
        let values = rows.iter().map(|row| Value::from(row.get(index).unwrap_or_default()));
        table.row(std::iter::once(Value::from(name)).chain(values));
    }
    Ok(table)
}

fn finish(session: &Session, summaries: &[Summary], results: &[CaseResult]) -> Result<(), Trouble> {
    if let Some(dir) = &session.out {
        let path = session.write_files(dir, summaries, results)?;
        if !session.quiet {
            writeln!(stderr(), "report: {}", path.display())?;
        }
    }
    Ok(())
}

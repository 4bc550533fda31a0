//! `kvlab trace show`, `convert` and `generate`.

use std::io::{Write, stderr, stdout};
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};

use clap::ArgMatches;
use report::files;
use report::page::{TracePage, trace_page};
use report::table::{Format, Table, Value};
use traces::{GenerateOptions, Quantiles, ReadOptions, Reader, TraceError, TraceStats, When, Workload};

use crate::arguments::format_of;
use crate::compare::command_line;
use crate::scale::Scale;
use crate::trouble::{Trouble, usage};

/// Arrivals kept for the plots of a trace.
const ARRIVALS_MAX: usize = 1_000_000;

/// Lengths in the histograms of a trace.
const LENGTHS_MAX: u64 = 100_000;

/// Dispatches the subcommands.
pub fn trace(matches: &ArgMatches) -> Result<(), Trouble> {
    match matches.subcommand() {
        Some(("show", matches)) => show(matches),
        Some(("convert", matches)) => convert(matches),
        Some(("generate", matches)) => generate(matches),
        _ => unreachable!("clap asks for a subcommand"),
    }
}

fn word<'a>(matches: &'a ArgMatches, name: &str) -> &'a str {
    matches.get_one::<String>(name).expect("the argument is required")
}

fn open(matches: &ArgMatches) -> Result<Reader, Trouble> {
    let format = matches
        .get_one::<String>("trace-format")
        .map(|text| text.parse().map_err(|error: TraceError| usage(error)));
    let options = ReadOptions {
        format: format.transpose()?,
        seed: matches.get_one("seed").copied().unwrap_or(0),
        limit: matches.get_one("limit").copied(),
        time_scale: matches.get_one("time-scale").copied().unwrap_or(1.0),
        session_rate_per_s: matches.get_one("session-rate").copied(),
        ..ReadOptions::default()
    };
    traces::open(Path::new(word(matches, "input")), &options).map_err(usage)
}

fn show(matches: &ArgMatches) -> Result<(), Trouble> {
    let dir = matches.get_one::<String>("out").map(PathBuf::from);
    if let Some(dir) = &dir {
        std::fs::create_dir_all(dir).map_err(|error| usage(format!("{}: {error}", dir.display())))?;
    }
    let mut reader = open(matches)?;
    let mut stats = TraceStats::default();
    let mut arrivals_s = Vec::new();
    for request in &mut reader {
        let request = request.map_err(usage)?;
        if let When::At { ns } = request.when
            && arrivals_s.len() < ARRIVALS_MAX
        {
            arrivals_s.push(ns as f64 / 1e9);
        }
        stats.record(&request);
    }
    let format = format_of(matches);
    let mut table = Table::new(["statistic", "value", "unit"]);
    let mut facts = vec![("format".to_owned(), reader.format().name().to_owned())];
    for row in stats.rows() {
        let rounded = row.value.map(|value| if format == Format::Table { significant(value) } else { value });
        table.row([Value::from(row.name.as_str()), Value::from(rounded), Value::from(row.unit)]);
        facts.push((
            row.name,
            row.value
                .map_or("-".into(), |value| format!("{} {}", significant(value), row.unit).trim().to_owned()),
        ));
    }
    stdout().write_all(table.render(format)?.as_bytes())?;
    let mended = reader.mended();
    let mut notes = Vec::new();
    if mended.zero_outputs > 0 {
        notes.push(format!(
            "{} requests without output were read as one token of output.",
            mended.zero_outputs
        ));
    }
    if stats.is_capped {
        notes.push(
            "Only the first part of the trace's prefix ids was remembered: sharing is a lower bound.".into(),
        );
    }
    if arrivals_s.len() == ARRIVALS_MAX {
        notes.push(format!("The arrival plots show the first {ARRIVALS_MAX} requests."));
    }
    if stats.requests > LENGTHS_MAX {
        notes
            .push(format!("The histograms stand for all requests by {LENGTHS_MAX} evenly spaced quantiles."));
    }
    for note in &notes {
        writeln!(stderr(), "note: {note}")?;
    }
    let Some(dir) = dir else { return Ok(()) };
    let contents = TracePage {
        title: word(matches, "input").to_owned(),
        facts,
        prompt_tokens: lengths(&stats.prompt.quantiles),
        output_tokens: lengths(&stats.output.quantiles),
        arrivals_s,
        sharing: stats
            .sharing
            .progress
            .points
            .iter()
            .map(|&(requests, share)| (requests as f64, share))
            .collect(),
        command: command_line(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        notes,
    };
    let path = dir.join("trace.html");
    files::write_text(&path, &trace_page(&contents)?)?;
    writeln!(stderr(), "plots: {}", path.display())?;
    Ok(())
}

/// Four significant digits.
fn significant(value: f64) -> f64 {
    if value == 0.0 || !value.is_finite() {
        return value;
    }
    let scale = 10f64.powi(3 - value.abs().log10().floor() as i32);
    if scale < 1.0 { value.round() } else { (value * scale).round() / scale }
}

/// Every length, or evenly spaced quantiles of very many.
fn lengths(quantiles: &Quantiles) -> Vec<f64> {
    quantiles.spaced(LENGTHS_MAX).into_iter().map(|tokens| tokens as f64).collect()
}

fn convert(matches: &ArgMatches) -> Result<(), Trouble> {
    let output = Path::new(word(matches, "output"));
    let scale = Scale {
        tokens: matches.get_one("tokens-by").copied().unwrap_or(NonZeroU32::MIN),
        time: matches.get_one("time-by").copied().unwrap_or(1.0),
    };
    if !(scale.time > 0.0 && scale.time.is_finite()) {
        return Err(usage(format!("--time-by is {}, expected a number above 0", scale.time)));
    }
    let scaled = open(matches)?.map(|request| {
        let wrong = |found| TraceError::Option {
            option: "tokens-by",
            found,
            expected: "a number that divides the blocks of shared prefixes",
        };
        request.and_then(|request| scale.apply(request).map_err(wrong))
    });
    let count = traces::write_csv_file(scaled, output).map_err(usage)?;
    writeln!(stderr(), "{count} requests: {}", output.display())?;
    Ok(())
}

fn generate(matches: &ArgMatches) -> Result<(), Trouble> {
    let workload: Workload = word(matches, "workload").parse().map_err(usage)?;
    let output = Path::new(word(matches, "output"));
    let options = GenerateOptions {
        requests: matches.get_one("requests").copied().unwrap_or(1000),
        seed: matches.get_one("seed").copied().unwrap_or(0),
        rate_per_s: matches.get_one("rate").copied(),
    };
    let requests = traces::generate(workload, &options).map_err(usage)?;
    let count = traces::write_csv_file(requests.map(Ok), output).map_err(usage)?;
    writeln!(stderr(), "{count} requests: {}", output.display())?;
    Ok(())
}

//! `kvlab diagnose`: logs in; what happened, why, and what to change out.

use std::fs::File;
use std::io::{IsTerminal, Read, Write, stderr, stdin, stdout};
use std::path::Path;

use clap::ArgMatches;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use logs::{Assume, Diagnosis, Facts, Kind, Level, Moment, Population, Recovered, Report, Scan, Tally};
use report::table::{Format, Table, Value};

use crate::arguments::maybe_format_of;
use crate::explain::{advice_line, say_topic};
use crate::paragraphs::{Paragraphs, width};
use crate::trouble::{Trouble, usage};

/// Letters of a curve, from none to most.
const CURVE: [char; 9] = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// Points of the curve that one letter stands for.
const POINTS_PER_LETTER: usize = 2;

/// `kvlab diagnose LOG`.
pub fn diagnose(matches: &ArgMatches) -> Result<(), Trouble> {
    let names: Vec<&String> = matches.get_many("log").into_iter().flatten().collect();
    let trace_out = matches.get_one::<String>("trace-out").map(Path::new);
    let assume = Assume {
        tokens_per_s: matches.get_one("tokens-per-s").copied(),
        prompt_tokens: match matches.get_one::<u64>("prompt-tokens") {
            Some(tokens) => {
                let tokens = u32::try_from(*tokens).ok().filter(|tokens| *tokens > 0);
                Some(tokens.ok_or_else(|| usage("--prompt-tokens: expected a whole number above 0"))?)
            }
            None => None,
        },
    };
    if assume.tokens_per_s.is_some_and(|speed| !speed.is_finite() || speed <= 0.0) {
        return Err(usage("--tokens-per-s: expected a finite number above 0"));
    }
    if let Some(out) = trace_out {
        refuse_to_overwrite(out, &names)?;
    }
    let mut scan = if trace_out.is_some() { Scan::with_requests() } else { Scan::new() };
    for name in &names {
        read(&mut scan, name, matches.get_flag("quiet"))?;
    }
    let report = scan.finish_with(&assume);
    let diagnosis = logs::diagnose(&report);
    let text = match maybe_format_of(matches) {
        None => words(&report, &diagnosis, &names, trace_out)?,
        Some(format @ (Format::Table | Format::Md)) => events(&report).render(format)?,
        Some(format) => rows(&report, &diagnosis).render(format)?,
    };
    stdout().write_all(text.as_bytes())?;
    match (trace_out, &report.requests) {
        (Some(out), Some(recovered)) => write_trace(out, recovered),
        _ => Ok(()),
    }
}

fn lines_of(count: u64) -> String {
    if count == 1 { "1 line".to_owned() } else { format!("{count} lines") }
}

fn refuse_to_overwrite(out: &Path, names: &[&String]) -> Result<(), Trouble> {
    let same = |name: &str| match (Path::new(name).canonicalize(), out.canonicalize()) {
        (Ok(log), Ok(out)) => log == out,
        _ => false,
    };
    match names.iter().find(|name| same(name)) {
        Some(name) => Err(usage(format!("{name} is both a log and --trace-out: expected another file"))),
        None => Ok(()),
    }
}

fn read(scan: &mut Scan, name: &str, quiet: bool) -> Result<(), Trouble> {
    let trouble = |error| usage(format!("{name}: {error}"));
    if name == "-" {
        return scan.read(stdin().lock()).map_err(|error| usage(format!("standard input: {error}")));
    }
    let file = File::open(name).map_err(trouble)?;
    let bytes = file.metadata().map_err(trouble)?.len();
    let bar = ProgressBar::new(bytes);
    if quiet || !stderr().is_terminal() {
        bar.set_draw_target(ProgressDrawTarget::hidden());
    }
    if let Ok(style) = ProgressStyle::with_template("{bar:40} {bytes}/{total_bytes}, {eta} left") {
        bar.set_style(style);
    }
    let read = scan.read(Counted { file, bar: &bar }).map_err(trouble);
    bar.finish_and_clear();
    read
}

/// A file whose bytes move the bar.
struct Counted<'a> {
    file: File,
    bar: &'a ProgressBar,
}

impl Read for Counted<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let count = self.file.read(buffer)?;
        self.bar.inc(count as u64);
        Ok(count)
    }
}

fn words(
    report: &Report,
    diagnosis: &Diagnosis,
    names: &[&String],
    trace_out: Option<&Path>,
) -> Result<String, Trouble> {
    let mut out = Paragraphs::new();
    out.paragraph(&format!("{}: ", diagnosis.verdict.name()), &diagnosis.headline);
    if let Some(warning) = &diagnosis.warning {
        out.paragraph("", warning);
    }
    out.lines("\n");
    let span = report.span.map_or("no times".to_owned(), |(first, last)| {
        format!("{} to {}", report.time(first), report.time(last))
    });
    out.paragraph("log     ", &format!("{}, {} bytes, {span}", lines_of(report.lines), report.bytes));
    if let Some(server) = server(&report.facts) {
        out.paragraph("server  ", &server);
    }
    if !report.tallies.is_empty() {
        let mut table = events(report);
        table.fold(width(), 1);
        out.lines("\n").lines(&table.render(Format::Table)?);
    }
    for length in &diagnosis.lengths {
        let times = if length.count == 1 { "once".to_owned() } else { format!("{} times", length.count) };
        out.heading(&format!("Length {} ({times})", length.length)).paragraph("  ", &length.words());
    }
    if let Some(topic) = diagnosis.topic {
        let own = [&diagnosis.version, &diagnosis.here, &diagnosis.caution];
        say_topic(&mut out, topic, &own.map(Option::as_deref));
    }
    if !diagnosis.also.is_empty() {
        out.heading("Also in this log");
        for (topic, lines) in &diagnosis.also {
            let event = report.tallies.iter().find(|tally| tally.kind.event().topic == Some(*topic));
            let name = event.map_or("", |tally| tally.kind.event().name);
            let lines = lines_of(*lines);
            out.paragraph("  - ", &format!("{} ({lines}): kvlab explain {name}", topic.name()));
        }
    }
    if let Some(compare) = &diagnosis.compare {
        out.heading("Next");
        let trace = trace_out.map_or("recovered.csv".to_owned(), |path| path.display().to_string());
        if compare.contains("TRACE") && trace_out.is_none() {
            let names: Vec<&str> = names.iter().map(|name| name.as_str()).collect();
            out.lines(&format!("  kvlab diagnose {} --trace-out {trace}\n", names.join(" ")));
        }
        out.lines(&format!("  {}\n", compare.replace("TRACE", &trace)));
        out.lines(&format!("  {}\n", advise(&report.facts, names)));
    }
    Ok(out.finish())
}

/// The command that chooses settings for the log's own requests; what the log does not say is in capitals.
fn advise(facts: &Facts, names: &[&String]) -> String {
    let logs: Vec<String> = names.iter().map(|name| format!("--server-log {name}")).collect();
    let is_modelled = facts.population().is_some_and(|population| population != Population::Before);
    let is_known = is_modelled || facts.has_llama_server || !facts.vllm.is_empty();
    let server = if is_known { "" } else { " --for SERVER" };
    let model = facts.model_name().map_or("MODEL".to_owned(), |name| format!("{name}-q4_0"));
    format!("kvlab advise {}{server} --model {model} --gpu GPU", logs.join(" "))
}

/// What the log tells of its server, in one line.
fn server(facts: &Facts) -> Option<String> {
    let mut parts = Vec::new();
    parts.extend(facts.ollama.last().map(|version| format!("Ollama {version}")));
    parts.extend(facts.vllm.last().map(|version| format!("vLLM {version}")));
    if facts.has_llama_server {
        parts.push("llama-server".to_owned());
    }
    let model = facts.model_name().map(str::to_owned).or_else(|| facts.architecture.clone());
    parts.extend(model);
    match (facts.parallel, facts.slot_context()) {
        (Some(slots), Some(context)) => parts.push(format!("num_parallel {slots}, num_ctx {context}")),
        (Some(slots), None) => parts.push(format!("num_parallel {slots}")),
        (None, _) => parts.extend(facts.context.map(|context| format!("context {context}"))),
    }
    parts.extend(facts.batch.map(|batch| format!("num_batch {batch}")));
    parts.extend(facts.flash.map(|flash| format!("flash attention {}", if flash { "on" } else { "off" })));
    parts.extend(facts.cache_type.as_ref().map(|name| format!("cache type {name}")));
    if facts.multiuser == Some(true) {
        parts.push("multi-user cache".to_owned());
    }
    parts.extend(facts.split.as_ref().map(|split| format!("layers split {split}")));
    parts.extend(facts.memory.as_ref().map(|memory| format!("estimated {memory}")));
    parts.extend(facts.available.as_ref().map(|memory| format!("of {memory}")));
    (!parts.is_empty()).then(|| parts.join(", "))
}

/// What is counted per hour: not what is said once at the start.
fn rate(report: &Report, tally: &Tally) -> Option<f64> {
    let is_fact = tally.kind.event().level == Level::Fact;
    let rate = tally.per_hour(report.span_ns()?).filter(|_| !is_fact)?;
    let scale = if rate < 10.0 { 100.0 } else { 10.0 };
    Some((rate * scale).round() / scale)
}

/// Events with their counts and times, for people.
fn events(report: &Report) -> Table {
    let headers = ["event", "level", "lines", "first", "last", "per_hour", "busiest_minute", "over_time"];
    let mut table = Table::new(headers);
    let time = |moment: Option<Moment>| Value::from(moment.map(|moment| report.time(moment)));
    for tally in &report.tallies {
        let event = tally.kind.event();
        let busiest = tally.busiest.filter(|_| event.level != Level::Fact);
        table.row([
            Value::from(event.name),
            Value::from(event.level.name()),
            Value::from(tally.count),
            time(tally.first),
            time(tally.last),
            Value::from(rate(report, tally)),
            Value::from(busiest.map(|(at, lines)| format!("{lines} at {}", report.time(at)))),
            Value::from(curve(tally)),
        ]);
    }
    table
}

/// The curve of a tally as letters; each reaches up to the most of this event.
fn curve(tally: &Tally) -> String {
    let sums: Vec<u64> = tally.curve.chunks(POINTS_PER_LETTER).map(|points| points.iter().sum()).collect();
    let most = sums.iter().copied().max().unwrap_or(0).max(1);
    let letter = |sum: u64| CURVE[usize::try_from((sum * 8).div_ceil(most)).unwrap_or(0).min(8)];
    sums.into_iter().map(letter).collect::<String>().trim_end().to_owned()
}

/// One row per event with everything that is known, for programs; one row where there is none.
fn rows(report: &Report, diagnosis: &Diagnosis) -> Table {
    let mut table = Table::new([
        "verdict",
        "headline",
        "trouble",
        "log_lines",
        "log_bytes",
        "span_s",
        "version",
        "event",
        "engine",
        "level",
        "count",
        "first",
        "last",
        "per_hour",
        "busiest_minute",
        "busiest_count",
        "length",
        "reading",
        "mechanism",
        "versions",
        "works",
        "does_not",
        "next",
    ]);
    let time = |moment: Option<Moment>| Value::from(moment.map(|moment| report.time_exact(moment)));
    let version = report.facts.ollama.last().or(report.facts.vllm.last()).map(ToString::to_string);
    let mut row = |tally: Option<&Tally>| {
        let event = tally.map(|tally| tally.kind.event());
        let length =
            diagnosis.lengths.first().filter(|_| tally.is_some_and(|tally| tally.kind == Kind::CacheSlot));
        let topic = diagnosis.topic;
        let busiest = tally.and_then(|tally| tally.busiest);
        table.row([
            Value::from(diagnosis.verdict.name()),
            Value::from(diagnosis.headline.as_str()),
            Value::from(topic.map(logs::Topic::name)),
            Value::from(report.lines),
            Value::from(report.bytes),
            Value::from(report.span_ns().map(|ns| ns as f64 / 1e9)),
            Value::from(version.clone()),
            Value::from(event.map(|event| event.name)),
            Value::from(event.map(|event| event.engine.name())),
            Value::from(event.map(|event| event.level.name())),
            Value::from(tally.map(|tally| tally.count)),
            time(tally.and_then(|tally| tally.first)),
            time(tally.and_then(|tally| tally.last)),
            Value::from(tally.and_then(|tally| rate(report, tally))),
            time(busiest.map(|(at, _)| at)),
            Value::from(busiest.map(|(_, lines)| lines)),
            Value::from(length.map(|length| length.length)),
            Value::from(length.and_then(|length| length.readings.first()).map(ToString::to_string)),
            Value::from(topic.map(logs::Topic::mechanism)),
            Value::from(topic.map(logs::Topic::versions)),
            advice_line(topic, true),
            advice_line(topic, false),
            Value::from(diagnosis.compare.clone()),
        ]);
    };
    if report.tallies.is_empty() {
        row(None);
    }
    report.tallies.iter().for_each(|tally| row(Some(tally)));
    table
}

fn write_trace(out: &Path, recovered: &Recovered) -> Result<(), Trouble> {
    if recovered.requests.is_empty() {
        return Err(usage(format!(
            "{}: not written, the log has no request; expected [GIN] lines, `loading cache slot`, or the timings of llama-server",
            out.display()
        )));
    }
    let count = traces::write_csv_file(recovered.requests.iter().cloned().map(Ok), out).map_err(usage)?;
    let mut say = stderr().lock();
    let [access, inner, both] = recovered.by_source;
    writeln!(say, "{count} requests: {}", out.display())?;
    writeln!(
        say,
        "note: {both} by access line and sizes, {access} by access line only, {inner} by sizes only"
    )?;
    let untimed = count.saturating_sub(recovered.timed);
    if untimed > 0 {
        writeln!(say, "note: {untimed} have no time and follow the one before them")?;
    }
    let guessed = count - recovered.prompts_known;
    writeln!(
        say,
        "note: prompts: {} from the log ({} of them without what was in the cache), {guessed} taken to be {} tokens",
        recovered.prompts_known, recovered.prompts_part, recovered.prompt_assumed
    )?;
    writeln!(
        say,
        "note: answers: {} from the log, {} from their duration at {:.1} tokens/s, {} taken to be {} tokens",
        recovered.outputs_known,
        recovered.outputs_from_duration,
        recovered.tokens_per_s,
        recovered.outputs_assumed,
        recovered.output_assumed
    )?;
    if recovered.refused > 0 {
        writeln!(say, "note: {} requests were refused (status 4xx) and are left out", recovered.refused)?;
    }
    if recovered.beyond > 0 {
        writeln!(
            say,
            "note: {} later requests are left out, the trace has the first {count}",
            recovered.beyond
        )?;
    }
    Ok(())
}

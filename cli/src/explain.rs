//! `kvlab explain`: what log lines mean, and what to change.

use std::io::{Read, Write, stdin, stdout};

use clap::ArgMatches;
use logs::{Answer, EVENTS, Explanation, Topic};
use report::table::{Format, Table, Value};

use crate::arguments::maybe_format_of;
use crate::paragraphs::{Paragraphs, width};
use crate::trouble::{Trouble, usage};

/// Bytes of text that are taken from standard input; more is a log, for `kvlab diagnose`.
const TEXT_BYTES_MAX: u64 = 16 << 20;

/// `kvlab explain [TEXT]`.
pub fn explain(matches: &ArgMatches) -> Result<(), Trouble> {
    let words: Vec<&String> = matches.get_many("text").into_iter().flatten().collect();
    let format = maybe_format_of(matches);
    let text = match words.as_slice() {
        [] => return list(format),
        [dash] if *dash == "-" => from_stdin()?,
        words => words.iter().map(|word| word.as_str()).collect::<Vec<_>>().join("\n"),
    };
    let mut answer = logs::explain(&text);
    if matches!(answer, Answer::Unknown) && words.len() > 1 {
        // Words of one line, without quotes.
        answer = logs::explain(&text.replace('\n', " "));
    }
    let known = match answer {
        Answer::Known(known) => known,
        Answer::Unknown => Vec::new(),
    };
    let out = match format {
        Some(format) => table(&known, format)?,
        None if known.is_empty() => unknown(),
        None => words_of(&known),
    };
    Ok(stdout().write_all(out.as_bytes())?)
}

fn from_stdin() -> Result<String, Trouble> {
    let mut bytes = Vec::new();
    let read = stdin().lock().take(TEXT_BYTES_MAX + 1).read_to_end(&mut bytes);
    read.map_err(|error| usage(format!("standard input: {error}")))?;
    if bytes.len() as u64 > TEXT_BYTES_MAX {
        return Err(usage("standard input: over 16 MiB; use `kvlab diagnose -` for whole logs"));
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Every event that is known.
fn list(format: Option<Format>) -> Result<(), Trouble> {
    let mut table = Table::new(["event", "level", "engine", "text"]);
    for event in EVENTS {
        table.row([event.name, event.level.name(), event.engine.name(), event.texts[0]].map(Value::from));
    }
    if format.is_none() {
        table.fold(width().max(110), 1);
    }
    Ok(stdout().write_all(table.render(format.unwrap_or_default())?.as_bytes())?)
}

fn unknown() -> String {
    let mut out = Paragraphs::new();
    out.paragraph("", "Nothing in this text is known. Known are (kvlab explain lists their texts):");
    let names: Vec<&str> = EVENTS.iter().map(|event| event.name).collect();
    out.paragraph("  ", &names.join(", "));
    out.finish()
}

fn words_of(known: &[Explanation]) -> String {
    let mut out = Paragraphs::new();
    for (index, one) in known.iter().enumerate() {
        let event = one.event;
        out.heading(&format!("{} ({}, {})", event.name, event.engine.name(), event.level.name()));
        if one.count == 0 {
            out.paragraph("  text: ", event.texts[0]);
        }
        out.paragraph("  ", event.meaning);
        for length in &one.lengths {
            out.paragraph("  ", &length.words());
        }
        // What several lines have in common is said once, below the last of them.
        let is_last = known[index + 1..].iter().all(|later| later.event.topic != event.topic);
        if let Some(topic) = event.topic.filter(|_| is_last) {
            say_topic(&mut out, topic, &[one.version.as_deref()]);
        }
    }
    out.finish()
}

/// Mechanism, versions (with what the log says of its own), what works and what does not.
pub fn say_topic(out: &mut Paragraphs, topic: Topic, own: &[Option<&str>]) {
    out.heading("Why").paragraph("  ", topic.mechanism());
    out.heading("Versions").paragraph("  ", topic.versions());
    for text in own.iter().flatten() {
        out.paragraph("  ", text);
    }
    for (heading, works) in [("What works", true), ("What does not", false)] {
        let list: Vec<_> = topic.advice().iter().filter(|advice| advice.effect.works() == works).collect();
        if list.is_empty() {
            continue;
        }
        out.heading(heading);
        for advice in list {
            out.paragraph("  - ", &format!("{} ({}): {}", advice.change, advice.effect.name(), advice.why));
        }
    }
}

/// The changes that work, or those that do not, in one line.
pub fn advice_line(topic: Option<Topic>, works: bool) -> Value {
    let list = topic.map_or(&[][..], Topic::advice).iter().filter(|advice| advice.effect.works() == works);
    let texts: Vec<String> =
        list.map(|advice| format!("{} ({}): {}", advice.change, advice.effect.name(), advice.why)).collect();
    if texts.is_empty() { Value::Empty } else { Value::from(texts.join("; ")) }
}

fn table(known: &[Explanation], format: Format) -> Result<String, Trouble> {
    let mut table = Table::new([
        "event",
        "engine",
        "level",
        "count",
        "meaning",
        "length",
        "reading",
        "mechanism",
        "versions",
        "works",
        "does_not",
    ]);
    for one in known {
        let event = one.event;
        let length = one.lengths.first();
        let reading = length.and_then(|length| length.readings.first());
        table.row([
            Value::from(event.name),
            Value::from(event.engine.name()),
            Value::from(event.level.name()),
            Value::from(one.count),
            Value::from(event.meaning),
            Value::from(length.map(|length| length.length)),
            Value::from(reading.map(ToString::to_string)),
            Value::from(event.topic.map(Topic::mechanism)),
            Value::from(event.topic.map(Topic::versions)),
            advice_line(event.topic, true),
            advice_line(event.topic, false),
        ]);
    }
    Ok(table.render(format)?)
}

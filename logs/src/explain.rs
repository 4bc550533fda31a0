//! A few pasted lines, a name or a number: what is known of it.

use crate::diagnosis::{Length, diagnose};
use crate::events::{EVENTS, Event, Kind};
use crate::length::{Known, readings};
use crate::scan::Scan;

/// Letters that a part of a text must have to be looked for.
const PART_MIN: usize = 4;

/// What is known of one event in a text.
#[derive(Clone, Debug)]
pub struct Explanation {
    /// The event.
    pub event: &'static Event,
    /// Lines that have it; 0 where it was asked for by name.
    pub count: u64,
    /// Lengths of caches in those lines, read.
    pub lengths: Vec<Length>,
    /// The version that the lines are from, in one sentence.
    pub version: Option<String>,
}

/// An answer to a text.
#[derive(Clone, Debug)]
pub enum Answer {
    /// Events of the table.
    Known(Vec<Explanation>),
    /// Nothing in the text is known.
    Unknown,
}

/// Explains log lines. A text without any known line may also be the name of an event, a part of
/// its text in any case, or a length (`2560`).
pub fn explain(text: &str) -> Answer {
    let mut scan = Scan::new();
    // Reading from memory cannot fail; a text that happens to look like damaged gzip is unknown.
    if scan.read(text.as_bytes()).is_err() {
        return Answer::Unknown;
    }
    let report = scan.finish();
    let diagnosis = diagnose(&report);
    let lengths = |kind| if kind == Kind::CacheSlot { diagnosis.lengths.clone() } else { Vec::new() };
    let seen: Vec<Explanation> = report
        .tallies
        .iter()
        .map(|tally| Explanation {
            event: tally.kind.event(),
            count: tally.count,
            lengths: lengths(tally.kind),
            version: diagnosis.version.clone(),
        })
        .collect();
    if !seen.is_empty() {
        return Answer::Known(seen);
    }
    let named = by_name(text.trim());
    if named.is_empty() { Answer::Unknown } else { Answer::Known(named) }
}

fn by_name(text: &str) -> Vec<Explanation> {
    let plain = |event, lengths| Explanation { event, count: 0, lengths, version: None };
    if let Ok(length) = text.trim_start_matches("length:").trim().parse::<u32>() {
        let readings = readings(length, &Known::default());
        if readings.is_empty() {
            return Vec::new();
        }
        return vec![plain(Kind::CacheSlot.event(), vec![Length { length, count: 1, readings }])];
    }
    let small = text.to_lowercase();
    if small.len() < PART_MIN {
        return Vec::new();
    }
    if let Some(event) = EVENTS.iter().find(|event| event.name == small) {
        return vec![plain(event, Vec::new())];
    }
    let has = |event: &&Event| {
        event.texts.iter().any(|text| {
            let text = text.to_lowercase();
            text.contains(&small) || (text.len() >= 3 * PART_MIN && small.contains(&text))
        })
    };
    EVENTS.iter().filter(has).map(|event| plain(event, Vec::new())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(text: &str) -> Vec<&'static str> {
        match explain(text) {
            Answer::Known(list) => list.iter().map(|one| one.event.name).collect(),
            Answer::Unknown => Vec::new(),
        }
    }

    #[test]
    fn pasted_lines_are_explained() {
        let text = "time=2025-04-20T10:11:12Z level=DEBUG source=causal.go:1 msg=\"defragmenting kv cache\"\r\n\
                    panic: failed to decode batch: could not find a kv cache slot (length: 6656)\n";
        let Answer::Known(list) = explain(text) else { panic!("the lines are known") };
        assert_eq!(list.iter().map(|one| one.event.name).collect::<Vec<_>>(), ["cache-slot", "defrag"]);
        assert_eq!(list[0].lengths[0].readings[0].to_string(), "6 slots x 1024 window + 512 batch");
        assert!(list[1].lengths.is_empty());
    }

    #[test]
    fn names_parts_and_lengths_are_looked_up() {
        assert_eq!(names("defrag"), ["defrag"]);
        assert_eq!(names("CONTEXT LIMIT HIT"), ["context-shift"]);
        assert_eq!(names("Error: COULD NOT FIND A KV CACHE SLOT"), ["cache-slot-runner"]);
        assert_eq!(names("2560"), ["cache-slot"]);
        assert_eq!(names("length: 4608"), ["cache-slot"]);
        assert_eq!(names("4"), [""; 0]);
        assert_eq!(names("hello world"), [""; 0]);
        assert_eq!(names(""), [""; 0]);
        assert_eq!(names("\u{1f}\u{8b}"), [""; 0]);
    }
}

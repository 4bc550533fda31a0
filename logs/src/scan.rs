//! One pass over a log: find the lines that matter, count them, take what they tell.
//!
//! One automaton looks for the texts of all events at once; only lines that have one are looked at
//! further. A line without a time has that of the nearest line above it that has one.

use std::borrow::Cow;
use std::io::{self, Read};
use std::sync::LazyLock;

use aho_corasick::{AhoCorasick, MatchKind};
use jiff::Timestamp;
use jiff::tz::Offset;
use memchr::{memchr, memchr_iter, memrchr};

use crate::clock::Clock;
use crate::events::{EVENTS, Kind, Level};
use crate::facts::Facts;
use crate::fields::{number_after, without_colours};
use crate::input::{Blocks, plain};
use crate::length::Known;
use crate::requests::{Assume, Recorder, Recovered};
use crate::tally::{Moment, Tally};

/// Different lengths that are remembered, each with what was known then.
const LENGTHS_MAX: usize = 16;

/// Bytes of the first block in which zone and year are looked for.
const LEARN_BYTES: usize = 256 << 10;

struct Patterns {
    automaton: AhoCorasick,
    kinds: Vec<Kind>,
}

static PATTERNS: LazyLock<Patterns> = LazyLock::new(|| {
    let pairs = || EVENTS.iter().flat_map(|event| event.texts.iter().map(|text| (event.kind, *text)));
    let automaton = AhoCorasick::builder()
        .match_kind(MatchKind::LeftmostLongest)
        .build(pairs().map(|(_, text)| text))
        .expect("the texts are few and short");
    Patterns { automaton, kinds: pairs().map(|(kind, _)| kind).collect() }
});

/// A length of the panic, what the log had told of the cache by then, and how often.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LengthSeen {
    pub(crate) length: u32,
    pub(crate) known: Known,
    pub(crate) count: u64,
}

/// Reads logs. Several read one after the other count as one.
pub struct Scan {
    clock: Clock,
    tallies: Vec<Tally>,
    facts: Facts,
    lengths: Vec<LengthSeen>,
    recorder: Option<Recorder>,
    lines: u64,
    bytes: u64,
    span: Option<(Moment, Moment)>,
    last_ns: Option<i64>,
}

impl Default for Scan {
    fn default() -> Self {
        Scan::new()
    }
}

impl Scan {
    /// Counts events.
    pub fn new() -> Self {
        Scan {
            clock: Clock::default(),
            tallies: EVENTS.iter().map(|event| Tally::new(event.kind)).collect(),
            facts: Facts::default(),
            lengths: Vec::new(),
            recorder: None,
            lines: 0,
            bytes: 0,
            span: None,
            last_ns: None,
        }
    }

    /// Counts events and collects requests.
    pub fn with_requests() -> Self {
        Scan { recorder: Some(Recorder::default()), ..Scan::new() }
    }

    /// Reads a log to its end: plain or gzip, UTF-8 or UTF-16, told from its first bytes. Memory is
    /// one buffer of 1 MiB; of longer lines only the first MiB is looked at.
    ///
    /// # Errors
    ///
    /// What the reader says, and damaged gzip. What was read before that counts.
    pub fn read(&mut self, read: impl Read) -> io::Result<()> {
        let mut blocks = Blocks::new(plain(read)?);
        let mut is_first = true;
        let ended = loop {
            match blocks.next() {
                Ok(Some(block)) => {
                    if std::mem::take(&mut is_first) {
                        self.clock.learn(&block[..block.len().min(LEARN_BYTES)]);
                        self.first_time(block);
                    }
                    self.block(block);
                }
                Ok(None) => break Ok(()),
                Err(error) => break Err(error),
            }
        };
        self.bytes += blocks.bytes();
        ended
    }

    /// What was read, with the requests completed by stated guesses.
    pub fn finish_with(mut self, assume: &Assume) -> Report {
        for tally in &mut self.tallies {
            tally.finish(self.span);
        }
        self.tallies.retain(|tally| tally.count > 0);
        let context = self.facts.slot_context();
        Report {
            lines: self.lines,
            bytes: self.bytes,
            span: self.span,
            tallies: self.tallies,
            facts: self.facts,
            lengths: self.lengths,
            requests: self.recorder.map(|recorder| recorder.finish(assume, context)),
            zone: self.clock.zone(),
            has_dates: self.clock.has_dates(),
            has_year: self.clock.has_year(),
        }
    }

    /// What was read.
    pub fn finish(self) -> Report {
        self.finish_with(&Assume::default())
    }

    fn saw(&mut self, ns: i64) {
        let moment = Moment { ns };
        self.last_ns = Some(ns);
        let (first, last) = self.span.unwrap_or((moment, moment));
        self.span = Some((first.min(moment), last.max(moment)));
    }

    fn first_time(&mut self, block: &[u8]) {
        let first = block.split(|byte| *byte == b'\n').find_map(|line| self.clock.read(line));
        if let Some(ns) = first {
            self.saw(ns);
        }
    }

    /// Looks for a time upwards from the end of some lines.
    fn time_above(&mut self, lines: &[u8]) {
        let mut end = lines.len();
        while end > 0 {
            let start = memrchr(b'\n', &lines[..end - 1]).map_or(0, |at| at + 1);
            if let Some(ns) = self.clock.read(&lines[start..end]) {
                self.saw(ns);
                return;
            }
            end = start;
        }
    }

    fn block(&mut self, block: &[u8]) {
        self.lines += memchr_iter(b'\n', block).count() as u64;
        self.lines += u64::from(block.last().is_some_and(|byte| *byte != b'\n'));
        let patterns = &*PATTERNS;
        // The line at hand, and the events that it has.
        let mut line = 0..0;
        let mut kinds = 0u64;
        // Times above this place are known.
        let mut known = 0;
        for found in patterns.automaton.find_iter(block) {
            if found.start() >= line.end {
                self.line(block, line.clone(), kinds, &mut known);
                let start =
                    memrchr(b'\n', &block[line.end..found.start()]).map_or(line.end, |at| line.end + at + 1);
                let end = memchr(b'\n', &block[found.end()..]).map_or(block.len(), |at| found.end() + at + 1);
                line = start..end;
                kinds = 0;
            }
            kinds |= 1 << patterns.kinds[found.pattern().as_usize()] as u64;
        }
        self.line(block, line, kinds, &mut known);
        self.time_above(&block[known..]);
    }

    fn line(&mut self, block: &[u8], range: std::ops::Range<usize>, kinds: u64, known: &mut usize) {
        if kinds == 0 {
            return;
        }
        let raw = block[range.clone()].trim_ascii_end();
        let plain = without_colours(raw);
        match self.clock.read(&plain) {
            Some(ns) => self.saw(ns),
            None => self.time_above(&block[*known..range.start]),
        }
        *known = range.end;
        // What is wrapped in JSON has its colours as escapes.
        let unwrapped = message(&plain);
        let text = without_colours(&unwrapped);
        let at_ns = self.last_ns;
        let mut rest = kinds;
        while rest != 0 {
            let event = &EVENTS[rest.trailing_zeros() as usize];
            rest &= rest - 1;
            self.tallies[event.kind as usize].add(at_ns);
            if event.level != Level::Traffic {
                self.facts.take(event.kind, &text);
            } else if event.kind == Kind::SlotLaunch {
                self.facts.has_llama_server = true;
            }
            if event.kind == Kind::CacheSlot {
                self.length(&text);
            }
            if let Some(recorder) = &mut self.recorder {
                recorder.take(event.kind, &text, at_ns);
            }
        }
    }

    fn length(&mut self, line: &[u8]) {
        let Some(length) = number_after(line, "kv cache slot (length:") else { return };
        let known = self.facts.known();
        if let Some(seen) = self.lengths.iter_mut().find(|seen| seen.length == length && seen.known == known)
        {
            seen.count += 1;
        } else if self.lengths.len() < LENGTHS_MAX {
            self.lengths.push(LengthSeen { length, known, count: 1 });
        }
    }
}

/// The text of a line that a container engine or journal has wrapped in JSON; other lines as they are.
fn message(line: &[u8]) -> Cow<'_, [u8]> {
    if line.first() != Some(&b'{') {
        return line.into();
    }
    let Ok(serde_json::Value::Object(mut fields)) = serde_json::from_slice(line) else { return line.into() };
    for name in ["log", "MESSAGE"] {
        if let Some(serde_json::Value::String(text)) = fields.remove(name) {
            return text.into_bytes().into();
        }
    }
    line.into()
}

/// What a log contains.
#[derive(Clone, Debug)]
pub struct Report {
    /// Lines.
    pub lines: u64,
    /// Bytes, after gzip was undone.
    pub bytes: u64,
    /// The earliest and the latest time.
    pub span: Option<(Moment, Moment)>,
    /// Events that were seen, in the order of [`EVENTS`].
    pub tallies: Vec<Tally>,
    /// What the log tells of its server.
    pub facts: Facts,
    /// The requests, where they were asked for.
    pub requests: Option<Recovered>,
    pub(crate) lengths: Vec<LengthSeen>,
    zone: Offset,
    has_dates: bool,
    has_year: bool,
}

impl Report {
    /// How often an event was seen.
    pub fn count(&self, kind: Kind) -> u64 {
        self.tallies.iter().find(|tally| tally.kind == kind).map_or(0, |tally| tally.count)
    }

    /// From the first to the last time, nanoseconds.
    pub fn span_ns(&self) -> Option<u64> {
        let (first, last) = self.span?;
        u64::try_from(i128::from(last.ns) - i128::from(first.ns)).ok()
    }

    /// A time for people, to the second, in the zone of the log.
    pub fn time(&self, moment: Moment) -> String {
        if !self.has_dates {
            let seconds = moment.ns.div_euclid(1_000_000_000);
            return format!("+{}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60);
        }
        let Ok(at) = Timestamp::from_nanosecond(moment.ns.into()) else { return "-".to_owned() };
        let format = if self.has_year { "%Y-%m-%d %H:%M:%S" } else { "%m-%d %H:%M:%S" };
        self.zone.to_datetime(at).strftime(format).to_string()
    }

    /// A time for machines: RFC 3339 in the zone of the log where it has dates.
    pub fn time_exact(&self, moment: Moment) -> String {
        if !self.has_dates || !self.has_year {
            return self.time(moment);
        }
        let at = Timestamp::from_nanosecond(moment.ns.into());
        at.map_or_else(|_| "-".to_owned(), |at| at.display_with_offset(self.zone).to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scan(text: &str) -> Report {
        let mut scan = Scan::with_requests();
        scan.read(text.as_bytes()).unwrap();
        scan.finish()
    }

    #[test]
    fn every_text_is_recognised_and_only_as_itself() {
        for event in EVENTS {
            for text in event.texts {
                let report = scan(&format!("time=2025-04-20T10:11:12Z level=INFO {text} tail\r\n"));
                let seen: Vec<Kind> = report.tallies.iter().map(|tally| tally.kind).collect();
                assert_eq!(seen, [event.kind], "{text}");
                assert_eq!(report.tallies[0].count, 1);
            }
        }
    }

    #[test]
    fn a_line_counts_once_for_each_of_its_events() {
        let report = scan(
            "msg=\"llama runner process has terminated: cudaMalloc failed: out of memory cudaMalloc failed: out of memory\"\n",
        );
        let counts: Vec<_> = report.tallies.iter().map(|tally| (tally.kind, tally.count)).collect();
        assert_eq!(counts, [(Kind::OutOfMemory, 1), (Kind::RunnerTerminated, 1)]);
    }

    #[test]
    fn lines_without_a_time_have_that_of_the_line_above() {
        let report = scan(
            "panic: could not find a kv cache slot (length: 2560)\n\
             time=2025-04-20T10:00:00Z level=INFO msg=\"loading cache slot\" prompt=5\n\
             nobody knows this line\n\
             time=2025-04-20T10:00:07Z level=INFO msg=\"nor this one\"\n\
             nor that\n\
             panic: could not find a kv cache slot (length: 2560)\n\
             panic: could not find a kv cache slot (length: 2560)\n\
             time=2025-04-20T11:00:00Z level=INFO msg=\"the end\"\n",
        );
        let tally = &report.tallies[0];
        assert_eq!(tally.count, 3);
        assert_eq!(report.time(tally.last.unwrap()), "2025-04-20 10:00:07");
        let (first, last) = report.span.unwrap();
        assert_eq!(
            (report.time(first), report.time_exact(last)),
            ("2025-04-20 10:00:00".into(), "2025-04-20T11:00:00+00:00".into())
        );
        assert_eq!(report.lines, 8);
    }

    #[test]
    fn a_length_is_kept_with_the_sizes_of_its_time() {
        let start = |parallel: u32, batch: u32| {
            format!(
                "msg=\"starting llama server\" cmd=\"ollama runner --ollama-engine --ctx-size 8192 --batch-size {batch} --parallel {parallel}\"\n"
            )
        };
        let panic = "panic: could not find a kv cache slot (length: 2560)\n";
        let text = start(2, 512) + panic + panic + &start(1, 1536) + panic + &start(2, 512) + panic;
        let seen: Vec<_> = scan(&text).lengths.iter().map(|seen| (seen.known.parallel, seen.count)).collect();
        assert_eq!(seen, [(Some(2), 3), (Some(1), 1)]);
    }

    #[test]
    fn lines_wrapped_in_json_are_read() {
        let report = scan(
            "{\"log\":\"time=2025-04-20T10:00:00Z level=WARN msg=\\\"truncating input prompt\\\" limit=2048 prompt=5065 keep=5 new=2048\\n\",\"stream\":\"stderr\",\"time\":\"2025-04-20T10:00:00.1Z\"}\n\
             {\"MESSAGE\":\"panic: failed to decode batch: could not find a kv cache slot (length: 4608)\"}\n",
        );
        assert_eq!(report.lengths[0].length, 4608);
        assert_eq!(report.requests.as_ref().unwrap().requests[0].prompt_tokens, 5065);
        assert_eq!(report.time(report.span.unwrap().0), "2025-04-20 10:00:00");
    }

    #[test]
    fn times_since_a_start_are_shown_as_such() {
        let report = scan(
            "107.50.716.540 W srv decode: failed to find free space in the KV cache, retrying with smaller batch size\n",
        );
        assert_eq!(report.time(report.tallies[0].first.unwrap()), "+1:47:50");
    }

    #[test]
    fn colours_do_not_hurt() {
        let report = scan(
            "[GIN] 2025/04/20 - 10:11:12 |\x1b[97;42m 200 \x1b[0m|      10s |  127.0.0.1 |\x1b[97;46m POST    \x1b[0m \"/api/chat\"\n",
        );
        assert_eq!(report.requests.unwrap().requests.len(), 1);
    }
}

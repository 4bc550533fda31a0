//! The time of a log line, in whatever form it is written.
//!
//! Known forms: `time=2025-04-20T10:11:12.123+02:00` (Ollama), `[GIN] 2025/04/20 - 10:11:12`,
//! `2025-04-20T08:11:12.123456789Z` and `2025-04-20 10:11:12` (containers, journals), `2025/04/20
//! 10:11:12` (Go), `Apr 20 10:11:12` (syslog), `04-20 10:11:12` (vLLM), `timestamp=1745136672` (old
//! llama-server), and `3.07.716.540 I ` (llama-server: minutes, seconds, ms and us since its start).
//!
//! A time without a zone is taken to be in the zone of the `time=` lines around it, one without a
//! year in the year of the last full one. Times since a start count only in logs that have no others.

use jiff::Timestamp;
use jiff::civil::{Date, DateTime, Time};
use jiff::fmt::strtime::BrokenDownTime;
use jiff::fmt::temporal::DateTimeParser;
use jiff::tz::Offset;
use memchr::memmem;

/// Bytes of a line in which its time must begin.
const HEAD_BYTES: usize = 160;

/// Bytes of a line in which a time by name (`timestamp=`) must begin.
const NAMED_BYTES: usize = 4096;

/// The year of logs that never say theirs; a leap year, so that every date exists.
const YEAR_UNKNOWN: i16 = 1972;

const MONTHS: &[u8] = b"JanFebMarAprMayJunJulAugSepOctNovDec";

/// What is known of the zone and year of a log so far.
#[derive(Debug, Default)]
pub(crate) struct Clock {
    zone: Option<Offset>,
    year: Option<i16>,
    /// Month of the last time without a year, to see the turn of the year.
    month: Option<i8>,
    has_full: bool,
    source: Option<Source>,
}

/// Whether a log has dates, or times since a start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    Dates,
    SinceStart,
}

/// A time as it is written, the forms that say most last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Form {
    SinceStart,
    NoYear,
    NoZone,
    Zone,
    Named,
}

#[derive(Clone, Copy, Debug)]
struct Found {
    form: Form,
    date: Option<Date>,
    month_day: (i8, i8),
    time: Time,
    offset: Option<Offset>,
    since_start_ns: i64,
}

impl Found {
    fn full(form: Form, at: DateTime, offset: Option<Offset>) -> Found {
        let date = at.date();
        Found {
            form,
            date: Some(date),
            month_day: (date.month(), date.day()),
            time: at.time(),
            offset,
            since_start_ns: 0,
        }
    }
}

impl Clock {
    /// Looks ahead in the first lines of a log for its zone, its year, and whether it has dates.
    pub(crate) fn learn(&mut self, lines: &[u8]) {
        let mut has_since_start = false;
        let mut has_dates = false;
        let mut year = None;
        for line in lines.split(|&byte| byte == b'\n') {
            let Some(found) = find(line) else { continue };
            has_since_start |= found.form == Form::SinceStart;
            has_dates |= found.form != Form::SinceStart;
            year = year.or(found.date.map(Date::year));
            if found.form == Form::Named && found.offset.is_some() {
                self.zone = self.zone.or(found.offset);
                break;
            }
        }
        self.year = self.year.or(year);
        if self.source.is_none() && (has_dates || has_since_start) {
            self.source = Some(if has_dates { Source::Dates } else { Source::SinceStart });
        }
    }

    /// The time of a line in nanoseconds since 1970, or since the start; none where it has none.
    pub(crate) fn read(&mut self, line: &[u8]) -> Option<i64> {
        let found = find(line)?;
        if found.form == Form::SinceStart {
            let source = *self.source.get_or_insert(Source::SinceStart);
            return (source == Source::SinceStart).then_some(found.since_start_ns);
        }
        if *self.source.get_or_insert(Source::Dates) == Source::SinceStart {
            return None;
        }
        let date = match found.date {
            Some(date) => {
                self.year = Some(date.year());
                self.has_full = true;
                self.month = Some(date.month());
                date
            }
            None => {
                let (month, day) = found.month_day;
                let mut year = self.year.unwrap_or(YEAR_UNKNOWN);
                if self.month.is_some_and(|last| last >= 11 && month <= 2) {
                    year = year.saturating_add(1);
                } else if self.month.is_some_and(|last| last <= 2 && month >= 11) {
                    // A line of the old year that was written late.
                    year = year.saturating_sub(1);
                }
                let date = Date::new(year, month, day).ok()?;
                self.year = Some(year);
                self.month = Some(month);
                date
            }
        };
        if found.form == Form::Named && found.offset.is_some() {
            self.zone = found.offset;
        }
        let offset = found.offset.or(self.zone).unwrap_or(Offset::UTC);
        let at = offset.to_timestamp(date.to_datetime(found.time)).ok()?;
        i64::try_from(at.as_nanosecond()).ok()
    }

    /// The zone in which times are shown.
    pub(crate) fn zone(&self) -> Offset {
        self.zone.unwrap_or(Offset::UTC)
    }

    /// Whether the log has dates.
    pub(crate) fn has_dates(&self) -> bool {
        self.source != Some(Source::SinceStart)
    }

    /// Whether the log ever says its year.
    pub(crate) fn has_year(&self) -> bool {
        self.has_full
    }
}

/// The time of a line that says most, and of those the first.
fn find(line: &[u8]) -> Option<Found> {
    let head = &line[..line.len().min(HEAD_BYTES)];
    let mut best: Option<Found> = None;
    let mut at = 0;
    while at < head.len() {
        let is_start = at == 0 || !head[at - 1].is_ascii_alphanumeric();
        let found = match head[at] {
            b'0'..=b'9' if is_start => by_number(line, at),
            b'A'..=b'S' if is_start => by_month(line, at),
            b't' if is_start && line[at..].starts_with(b"time=") => {
                at += b"time=".len();
                iso(line, at).map(|found| Found { form: Form::Named, ..found })
            }
            _ => None,
        };
        if let Some(found) = found {
            if found.form == Form::Named {
                return Some(found);
            }
            if best.is_none_or(|best| found.form > best.form) {
                best = Some(found);
            }
            // No two times overlap.
            at += 8;
        }
        at += 1;
    }
    best.or_else(|| by_name(line))
}

fn by_number(line: &[u8], at: usize) -> Option<Found> {
    let digits = line[at..].iter().take(9).take_while(|byte| byte.is_ascii_digit()).count();
    let after = *line.get(at + digits)?;
    match (digits, after) {
        (4, b'-') => iso(line, at),
        (4, b'/') => slashes(line, at),
        (2, b'-') => month_day(line, at),
        (1..=6, b'.') => since_start(line, at),
        _ => None,
    }
}

/// `2025-04-20T10:11:12.123+02:00`, with or without fraction and zone; a space instead of the T.
fn iso(line: &[u8], at: usize) -> Option<Found> {
    let text = &line[at..];
    let is_iso = text.len() >= 19 && text[4] == b'-' && text[7] == b'-' && matches!(text[10], b'T' | b' ');
    if !is_iso || text[13] != b':' || text[16] != b':' {
        return None;
    }
    let mut end = 19;
    if matches!(text.get(end), Some(b'.' | b',')) {
        let digits = text[end + 1..].iter().take(9).take_while(|byte| byte.is_ascii_digit()).count();
        if digits > 0 {
            end += 1 + digits;
        }
    }
    let zone = match text.get(end) {
        Some(b'Z') => 1,
        Some(b'+' | b'-') => {
            let sign = end + 1;
            text[sign..].iter().take(5).take_while(|byte| byte.is_ascii_digit() || **byte == b':').count() + 1
        }
        _ => 0,
    };
    static PARSER: DateTimeParser = DateTimeParser::new();
    let parsed = |end: usize| PARSER.parse_pieces(std::str::from_utf8(&text[..end]).ok()?).ok();
    let pieces = parsed(end + zone).or_else(|| parsed(end))?;
    let offset = pieces.to_numeric_offset();
    let form = if offset.is_some() { Form::Zone } else { Form::NoZone };
    Some(Found::full(form, pieces.date().to_datetime(pieces.time()?), offset))
}

/// `2025/04/20 - 10:11:12` and `2025/04/20 10:11:12`.
fn slashes(line: &[u8], at: usize) -> Option<Found> {
    let text = &line[at..];
    let gap = if text.get(10..13)? == b" - " { 13 } else { 11 };
    let mut iso_text = *b"0000-00-00T00:00:00";
    iso_text[..4].copy_from_slice(&text[..4]);
    iso_text[5..7].copy_from_slice(&text[5..7]);
    iso_text[8..10].copy_from_slice(&text[8..10]);
    iso_text[11..].copy_from_slice(text.get(gap..gap + 8)?);
    let is_like = text[7] == b'/' && text[gap - 1] == b' ';
    iso(&iso_text, 0).filter(|found| is_like && found.form == Form::NoZone)
}

/// `04-20 10:11:12`.
fn month_day(line: &[u8], at: usize) -> Option<Found> {
    if line.get(at + 5) != Some(&b' ') {
        return None;
    }
    without_year("%m-%d %H:%M:%S%.f", &line[at..])
}

/// `Apr 20 10:11:12`.
fn by_month(line: &[u8], at: usize) -> Option<Found> {
    let text = &line[at..];
    let is_month =
        text.len() >= 15 && text[3] == b' ' && MONTHS.chunks(3).any(|month| text.starts_with(month));
    if !is_month {
        return None;
    }
    without_year("%b %e %H:%M:%S%.f", text)
}

fn without_year(format: &str, text: &[u8]) -> Option<Found> {
    let (parsed, _) = BrokenDownTime::parse_prefix(format, ascii_head(text)).ok()?;
    Some(Found {
        form: Form::NoYear,
        date: None,
        month_day: (parsed.month()?, parsed.day()?),
        time: parsed.to_time().ok()?,
        offset: None,
        since_start_ns: 0,
    })
}

/// `3.07.716.540 I `: minutes, seconds, ms and us, and the first letter of a level.
fn since_start(line: &[u8], at: usize) -> Option<Found> {
    let text = line.get(at..)?;
    let text = &text[..text.len().min(24)];
    let end = text.iter().position(|byte| *byte == b' ')?;
    let level = text.get(end + 1..end + 3)?;
    if !(level[0].is_ascii_uppercase() && level[1] == b' ') {
        return None;
    }
    let mut parts = text[..end].split(|byte| *byte == b'.').map(number);
    let (minutes, seconds) = (parts.next()??, parts.next()??);
    let (millis, micros) = (parts.next()??, parts.next()??);
    if parts.next().is_some() || seconds > 59 || millis > 999 || micros > 999 {
        return None;
    }
    let ns = (minutes * 60 + seconds) * 1_000_000_000 + millis * 1_000_000 + micros * 1000;
    Some(Found {
        form: Form::SinceStart,
        date: None,
        month_day: (1, 1),
        time: Time::midnight(),
        offset: None,
        since_start_ns: i64::try_from(ns).ok()?,
    })
}

/// `timestamp=1745136672` and `"timestamp":1745136672`: seconds since 1970. `"time":"2025-...Z"`: the
/// time that a container engine adds to a line.
fn by_name(line: &[u8]) -> Option<Found> {
    let head = &line[..line.len().min(NAMED_BYTES)];
    if let Some(at) = memmem::rfind(head, b"\"time\":\"") {
        return iso(line, at + b"\"time\":\"".len());
    }
    let name = memmem::find(head, b"timestamp")? + b"timestamp".len();
    let rest = line.get(name..)?;
    let skip = rest.iter().take(3).take_while(|byte| matches!(byte, b'"' | b':' | b'=')).count();
    let rest = &rest[skip..];
    let digits = rest.iter().take(11).take_while(|byte| byte.is_ascii_digit()).count();
    let seconds = number(&rest[..digits]).filter(|_| digits == 10)?;
    let at = Timestamp::from_second(i64::try_from(seconds).ok()?).ok()?;
    Some(Found::full(Form::Zone, Offset::UTC.to_datetime(at), Some(Offset::UTC)))
}

fn number(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || digits.len() > 12 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    Some(digits.iter().fold(0, |sum, digit| sum * 10 + u64::from(digit - b'0')))
}

/// The first bytes of a text, up to the first that is not ASCII: times have no others.
fn ascii_head(text: &[u8]) -> &[u8] {
    let text = &text[..text.len().min(32)];
    let end = text.iter().position(|byte| !byte.is_ascii()).unwrap_or(text.len());
    &text[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> i64 {
        text.parse::<Timestamp>().unwrap().as_nanosecond().try_into().unwrap()
    }

    fn read(line: &str) -> Option<i64> {
        Clock::default().read(line.as_bytes())
    }

    #[test]
    fn every_form_is_read() {
        let cases = [
            ("time=2025-04-20T10:11:12.123+02:00 level=INFO msg=x", "2025-04-20T08:11:12.123Z"),
            ("time=2025-04-20T10:11:12Z level=INFO", "2025-04-20T10:11:12Z"),
            ("[GIN] 2025/04/20 - 10:11:12 | 200 | 1s |", "2025-04-20T10:11:12Z"),
            ("2025/04/20 10:11:12 routes.go:1186: INFO server config", "2025-04-20T10:11:12Z"),
            ("2025-04-20T08:11:12.123456789Z hello", "2025-04-20T08:11:12.123456789Z"),
            ("2025-04-20T10:11:12.123456+0200 host ollama[1]: hello", "2025-04-20T08:11:12.123456Z"),
            ("2025-04-20 10:11:12,250 - WARNING - hello", "2025-04-20T10:11:12.25Z"),
            ("{\"timestamp\":1745136672,\"msg\":\"x\"}", "2025-04-20T08:11:12Z"),
            (
                "{\"log\":\"panic: x\\n\",\"stream\":\"stderr\",\"time\":\"2025-04-20T08:11:12.5Z\"}",
                "2025-04-20T08:11:12.5Z",
            ),
            ("INFO [ print_timings] eval time | tid=\"1\" timestamp=1745136672 a=1", "2025-04-20T08:11:12Z"),
        ];
        for (line, text) in cases {
            assert_eq!(read(line), Some(at(text)), "{line}");
        }
    }

    #[test]
    fn times_that_are_none_are_not_read() {
        for line in [
            "",
            "hello",
            "version 1.2.3.4 is out",
            "0.5.13",
            "2025-13-20T10:11:12Z",
            "2025-04-20T25:11:12Z",
            "2025/04/31 - 10:11:12",
            "2025/04x20 10:11:12",
            "2025/04/20",
            "2025/04/20 - 10:11",
            "2025-04-20",
            "Max 20 10:11:12 host",
            "10-04 apples",
            "time=soon",
            "timestamp=17",
            "1.99.000.000 I x",
        ] {
            assert_eq!(read(line), None, "{line}");
        }
    }

    #[test]
    fn the_zone_and_year_come_from_full_times() {
        let mut clock = Clock::default();
        clock.learn(
            b"[GIN] 2025/04/20 - 10:11:12 | 200\nApr 20 10:11:13 host x\n\
              time=2025-04-20T10:11:14+02:00 level=INFO\n",
        );
        assert_eq!(clock.read(b"[GIN] 2025/04/20 - 10:11:12 | 200"), Some(at("2025-04-20T08:11:12Z")));
        assert_eq!(clock.read(b"Apr 20 10:11:13 host x"), Some(at("2025-04-20T08:11:13Z")));
        assert_eq!(clock.read(b"INFO 04-20 10:11:13 x"), Some(at("2025-04-20T08:11:13Z")));
        assert!(clock.has_year() && clock.has_dates());
    }

    #[test]
    fn the_inner_time_of_a_line_counts_before_its_prefix() {
        let mut clock = Clock::default();
        let line = b"Apr 20 10:11:59 host ollama[1]: time=2025-04-20T10:11:12.5+02:00 level=INFO";
        assert_eq!(clock.read(line), Some(at("2025-04-20T08:11:12.5Z")));
        let line = b"2025-04-20T08:11:12.25Z [GIN] 2025/04/20 - 10:11:12 | 200 |";
        assert_eq!(clock.read(line), Some(at("2025-04-20T08:11:12.25Z")));
        let line = b"2025-03-05 09:00:48 time=2025-03-05T07:00:48.490Z level=INFO msg=x";
        assert_eq!(clock.read(line), Some(at("2025-03-05T07:00:48.490Z")));
    }

    #[test]
    fn the_year_turns_where_months_fall() {
        let mut clock = Clock::default();
        let december = clock.read(b"Dec 31 23:59:59 host x").unwrap();
        let january = clock.read(b"Jan  1 00:00:01 host x").unwrap();
        assert_eq!(january - december, 2_000_000_000);
        let late = clock.read(b"Dec 31 23:59:59 host x").unwrap();
        let again = clock.read(b"Jan  1 00:00:01 host x").unwrap();
        assert_eq!((late, again), (december, january), "lines that were written late");
        assert!(!clock.has_year());
        let mut clock = Clock::default();
        clock.read(b"2024-12-31T23:59:58Z x");
        assert_eq!(clock.read(b"Jan  1 00:00:01 host x"), Some(at("2025-01-01T00:00:01Z")));
    }

    #[test]
    fn the_year_is_looked_for_ahead() {
        let mut clock = Clock::default();
        clock.learn(b"Apr 20 10:11:13 host x\nno time\n2025-04-20 10:11:14 y\n");
        assert_eq!(clock.read(b"Apr 20 10:11:13 host x"), Some(at("2025-04-20T10:11:13Z")));
    }

    #[test]
    fn times_since_a_start_count_where_there_are_no_dates() {
        let mut clock = Clock::default();
        assert_eq!(clock.read(b"[42751] 107.50.716.540 I srv x"), Some(6_470_716_540_000));
        assert!(!clock.has_dates());
        assert_eq!(clock.read(b"2025-04-20T08:11:12Z x"), None);
        let mut clock = Clock::default();
        clock.learn(b"0.00.100.200 I srv x\n2025-04-20T08:11:12Z x\n");
        assert_eq!(clock.read(b"0.00.100.200 I srv x"), None);
    }
}

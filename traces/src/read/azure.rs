//! Azure LLM inference traces (Patel et al., Splitwise, ISCA 2024): CSV, text timestamps.
//!
//! `TIMESTAMP,ContextTokens,GeneratedTokens`, with `2023-11-16 18:15:46.6805900` (the 2023
//! files) or `2024-05-10 00:00:00.009930+00:00` (2024). The first row is time 0. The files name
//! neither users nor prefixes, so each request stands alone.

use super::field::{self, SECOND};
use super::lines::Lines;
use super::{Rows, TIME_NS_MAX};
use crate::error::{Bad, TraceError, seconds, shortened};
use crate::request::{Prefix, Request, When};

const COLUMNS: [&str; 3] = ["TIMESTAMP", "ContextTokens", "GeneratedTokens"];
const TIME: &str = "TIMESTAMP";

pub(super) struct Azure {
    start: Option<u64>,
    last: (u64, u64),
}

impl Azure {
    pub(super) fn new(lines: &mut Lines) -> Result<Self, TraceError> {
        let file = lines.file().clone();
        let header = lines.next()?.ok_or(TraceError::Empty { file: file.clone() })?;
        if !header.split(',').map(str::trim_ascii).eq(COLUMNS) {
            return Err(TraceError::Columns {
                file,
                found: shortened(header),
                expected: COLUMNS.join(","),
                line: lines.number(),
            });
        }
        Ok(Azure { start: None, last: (0, 0) })
    }
}

impl Rows for Azure {
    fn next(&mut self, lines: &mut Lines) -> Result<Option<Request>, TraceError> {
        let Some(line) = lines.next()? else {
            return Ok(None);
        };
        let row = row(line);
        let number = lines.number();
        let (clock, prompt_tokens, output_tokens) = row.map_err(|bad| bad.at(lines.file(), number))?;
        let start = *self.start.get_or_insert(clock);
        let (last, last_line) = self.last;
        if clock < last {
            return Err(TraceError::OutOfOrder {
                file: lines.file().clone(),
                line: number,
                time: relative(clock, start),
                previous_line: last_line,
                previous_time: relative(last, start),
            });
        }
        self.last = (clock, number);
        let ns = clock - start;
        if ns > TIME_NS_MAX {
            let bad = Bad::new(TIME, seconds(ns), format!("at most {} s", seconds(TIME_NS_MAX)));
            return Err(bad.at(lines.file(), number));
        }
        Ok(Some(Request {
            id: 0,
            session: None,
            when: When::At { ns },
            prompt_tokens,
            output_tokens,
            prefix: Prefix::unknown(),
            images: Vec::new(),
        }))
    }
}

fn relative(clock: u64, start: u64) -> String {
    if clock < start { format!("-{}", seconds(start - clock)) } else { seconds(clock - start) }
}

fn row(line: &str) -> Result<(u64, u32, u32), Bad> {
    let mut fields = line.split(',').map(str::trim_ascii);
    let mut field = |name| fields.next().ok_or_else(|| Bad::new(name, "nothing", "a value"));
    let time = field(TIME)?;
    let prompt = field(COLUMNS[1])?;
    let output = field(COLUMNS[2])?;
    if let Some(extra) = fields.next() {
        return Err(Bad::new("fourth column", extra, "three columns"));
    }
    let clock = clock_ns(time.as_bytes())
        .ok_or_else(|| Bad::new(TIME, time, "a time like 2023-11-16 18:15:46.6805900"))?;
    Ok((clock, field::tokens(COLUMNS[1], prompt)?, field::tokens(COLUMNS[2], output)?))
}

/// Nanoseconds since 1970 (UTC) of `YYYY-MM-DD HH:MM:SS[.decimals][zone]`.
fn clock_ns(text: &[u8]) -> Option<u64> {
    let (date, rest) = text.split_at_checked(10)?;
    let (time, rest) = rest.split_at_checked(9)?;
    let two = |from: usize, text: &[u8]| field::digits(&text[from..from + 2]);
    let marks = [date[4], date[7], time[0], time[3], time[6]];
    if &marks != b"-- ::" && &marks != b"--T::" {
        return None;
    }
    let days = days_since_1970(field::digits(&date[..4])?, two(5, date)?, two(8, date)?)?;
    let (hour, minute, second) = (two(1, time)?, two(4, time)?, two(7, time)?);
    if hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    let (decimals, zone) = match rest.split_first() {
        Some((b'.', rest)) => {
            let end = rest.iter().position(|byte| !byte.is_ascii_digit()).unwrap_or(rest.len());
            rest.split_at(end)
        }
        _ => (&b"0"[..], rest),
    };
    let ns = (((days * 24 + hour) * 60 + minute) * 60 + second) * SECOND;
    let ns = ns + field::fraction_ns(decimals)?;
    match zone {
        b"" | b"Z" => Some(ns),
        [sign, h1, h2, b':', m1, m2] => {
            let hours = field::digits(&[*h1, *h2])?;
            let minutes = field::digits(&[*m1, *m2])?;
            let shift = (hours * 60 + minutes) * 60 * SECOND;
            match sign {
                b'+' => ns.checked_sub(shift),
                b'-' => ns.checked_add(shift),
                _ => None,
            }
        }
        _ => None,
    }
}

/// Days from 1970-01-01 to a day of the Gregorian calendar, up to the year 2500.
fn days_since_1970(year: u64, month: u64, day: u64) -> Option<u64> {
    const BEFORE_MONTH: [u64; 12] = [0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334];
    if !(1970..=2500).contains(&year) || !(1..=12).contains(&month) {
        return None;
    }
    let is_leap = year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let month_days = match month {
        2 => 28 + u64::from(is_leap),
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    };
    if !(1..=month_days).contains(&day) {
        return None;
    }
    let before = year - 1;
    let leap_days = before / 4 - before / 100 + before / 400 - 477;
    let in_year = BEFORE_MONTH[month as usize - 1] + u64::from(is_leap && month > 2) + day - 1;
    Some((year - 1970) * 365 + leap_days + in_year)
}

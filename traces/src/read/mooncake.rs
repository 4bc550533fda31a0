//! Mooncake traces (Qin et al., FAST 2025): JSON lines with chained ids of 512-token blocks.
//!
//! `{"timestamp": ms, "input_length": n, "output_length": n, "hash_ids": [...]}`; times are kept
//! as recorded. The conversation trace was recorded in ticks of 3 s, which would make every
//! tick a burst. Where it is so, each request is put at a uniformly drawn moment of its tick:
//! a file is taken to have ticks if, of its first [`PROBE_ROWS`] rows, at least [`PROBE_ROWS_MIN`]
//! stand after the first tick, and 99 of 100 of those within 3 ms of a multiple of 3 s. The
//! synthetic trace of the same source has no ticks and is left alone. Memory is one tick.

use std::collections::VecDeque;

use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use serde::Deserialize;

use super::field::Scalar;
use super::lines::Lines;
use super::{ReadOptions, Rows, TIME_NS_MAX};
use crate::error::{Bad, TraceError, seconds};
use crate::request::{Prefix, Request, When};

const BLOCK_TOKENS: u32 = 512;
const MILLISECOND: u64 = 1_000_000;
const TICK_MS: u64 = 3_000;
const NEAR_MS: u64 = 3;
/// Rows looked at to find out whether a file has ticks.
const PROBE_ROWS: usize = 256;
/// Least rows after the first tick that can show that it has.
const PROBE_ROWS_MIN: usize = 8;
/// Most block ids held at once, so that a hostile file cannot fill the memory.
const HELD_IDS_MAX: usize = 16 << 20;
/// Most requests in one tick.
const TICK_ROWS_MAX: usize = 1 << 20;

#[derive(Deserialize)]
struct Line<'a> {
    #[serde(borrow)]
    timestamp: Option<Scalar<'a>>,
    #[serde(borrow)]
    input_length: Option<Scalar<'a>>,
    #[serde(borrow)]
    output_length: Option<Scalar<'a>>,
    #[serde(default)]
    hash_ids: Vec<u64>,
}

struct Row {
    line: u64,
    ms: u64,
    request: Request,
}

pub(super) struct Mooncake {
    rng: ChaCha8Rng,
    has_ticks: bool,
    /// Rows parsed but not yet put in order.
    ahead: VecDeque<Row>,
    /// One tick's requests in order, ready to go.
    ready: VecDeque<Request>,
    last: (u64, u64),
}

impl Mooncake {
    pub(super) fn new(lines: &mut Lines, options: &ReadOptions) -> Result<Self, TraceError> {
        let mut mooncake = Mooncake {
            rng: options.rng(),
            has_ticks: false,
            ahead: VecDeque::new(),
            ready: VecDeque::new(),
            last: (0, 0),
        };
        let mut held_ids = 0;
        while mooncake.ahead.len() < PROBE_ROWS && held_ids < HELD_IDS_MAX {
            let Some(row) = mooncake.parse(lines)? else {
                break;
            };
            held_ids += row.request.prefix.ids.len();
            mooncake.ahead.push_back(row);
        }
        let later = mooncake.ahead.iter().map(|row| row.ms).filter(|ms| *ms > NEAR_MS);
        let (near, off): (Vec<u64>, Vec<u64>) = later.partition(|ms| is_near_tick(*ms));
        let rows = near.len() + off.len();
        mooncake.has_ticks = rows >= PROBE_ROWS_MIN && off.len() * 100 <= rows;
        Ok(mooncake)
    }

    fn parse(&mut self, lines: &mut Lines) -> Result<Option<Row>, TraceError> {
        let Some(text) = lines.next()? else {
            return Ok(None);
        };
        let parsed = serde_json::from_str::<Line<'_>>(text).map(Self::request);
        let (file, line) = (lines.file(), lines.number());
        let (ms, request) = parsed
            .map_err(|error| super::json_error(file, line, &error))?
            .map_err(|bad| bad.at(file, line))?;
        let (last_ms, last_line) = self.last;
        if ms < last_ms {
            return Err(TraceError::OutOfOrder {
                file: file.clone(),
                line,
                time: seconds(ms * MILLISECOND),
                previous_line: last_line,
                previous_time: seconds(last_ms * MILLISECOND),
            });
        }
        self.last = (ms, line);
        Ok(Some(Row { line, ms, request }))
    }

    fn request(line: Line<'_>) -> Result<(u64, Request), Bad> {
        let ms = Scalar::count("timestamp", line.timestamp.as_ref())?;
        if ms > TIME_NS_MAX / MILLISECOND {
            let expected = format!("at most {} ms", TIME_NS_MAX / MILLISECOND);
            return Err(Bad::new("timestamp", ms.to_string(), expected));
        }
        let prompt_tokens = Scalar::tokens("input_length", line.input_length.as_ref())?;
        let output_tokens = Scalar::tokens("output_length", line.output_length.as_ref())?;
        let blocks = prompt_tokens.div_ceil(BLOCK_TOKENS);
        let ids = line.hash_ids.len();
        if ids != 0 && ids != blocks as usize {
            let expected = format!("{blocks} ids for {prompt_tokens} tokens in blocks of 512");
            return Err(Bad::new("hash_ids", format!("{ids} ids"), expected));
        }
        let prefix = Prefix::chained(BLOCK_TOKENS, line.hash_ids);
        let when = When::At { ns: ms * MILLISECOND };
        let images = Vec::new();
        Ok((ms, Request { id: 0, session: None, when, prompt_tokens, output_tokens, prefix, images }))
    }

    fn take_row(&mut self, lines: &mut Lines) -> Result<Option<Row>, TraceError> {
        match self.ahead.pop_front() {
            Some(row) => Ok(Some(row)),
            None => self.parse(lines),
        }
    }

    /// Moves the rows of the next tick into `ready`, spread out and sorted.
    fn read_tick(&mut self, lines: &mut Lines) -> Result<(), TraceError> {
        let mut rows = Vec::new();
        let mut held_ids = 0;
        let mut tick = None;
        while let Some(row) = self.take_row(lines)? {
            if *tick.get_or_insert(tick_of(row.ms)) != tick_of(row.ms) {
                self.ahead.push_front(row);
                break;
            }
            held_ids += row.request.prefix.ids.len();
            if rows.len() == TICK_ROWS_MAX || held_ids > HELD_IDS_MAX {
                let found = format!("more than {} in one tick", rows.len());
                let expected = "fewer requests between two multiples of 3000 ms";
                return Err(Bad::new("timestamp", found, expected).at(lines.file(), row.line));
            }
            let ns = if is_near_tick(row.ms) {
                let offset = self.rng.random_range(0..TICK_MS * MILLISECOND);
                tick_of(row.ms) * TICK_MS * MILLISECOND + offset
            } else {
                row.ms * MILLISECOND
            };
            rows.push((ns, row));
        }
        rows.sort_by_key(|(ns, row)| (*ns, row.line));
        let requests = rows.into_iter();
        self.ready.extend(requests.map(|(ns, row)| Request { when: When::At { ns }, ..row.request }));
        Ok(())
    }
}

fn tick_of(ms: u64) -> u64 {
    (ms + NEAR_MS) / TICK_MS
}

fn is_near_tick(ms: u64) -> bool {
    (ms + NEAR_MS) % TICK_MS <= 2 * NEAR_MS
}

impl Rows for Mooncake {
    fn next(&mut self, lines: &mut Lines) -> Result<Option<Request>, TraceError> {
        if !self.has_ticks {
            return Ok(self.take_row(lines)?.map(|row| row.request));
        }
        if self.ready.is_empty() {
            self.read_tick(lines)?;
        }
        Ok(self.ready.pop_front())
    }

    fn uses_seed(&self) -> bool {
        self.has_ticks
    }
}

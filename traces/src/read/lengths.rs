//! Prompt and answer lengths without times (etalon, Vidur): CSV, one row per answer.
//!
//! Needs the columns `num_prefill_tokens` and `num_decode_tokens`; others are passed over.
//!
//! A prompt that is at least as long as the prompt and answer above it may continue that
//! conversation. Among shuffled rows this holds for 43 % of neighbours, in ShareGPT for 82 %.
//! So the first [`PROBE_ROWS`] rows decide: if it holds for at least [`CONTINUED_MIN`] of
//! neighbours, rows are joined into conversations by this rule; else each row stands alone.
//! It is an inference: some conversations that only happen to fit are joined.
//!
//! Everything about time is drawn (seeded): sessions start as a Poisson process, and a follow-up
//! waits log-normally long after the answer before it, with the median of 130 s of the turn
//! gaps in Mooncake's conversation trace, LN(4.869, 0.955), KS 0.038 there. Within a session
//! prompts share every full block of 16 tokens; a block that is not full counts as unknown.

use std::collections::VecDeque;

use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Exp1, StandardNormal};

use super::field::{self, float_seconds};
use super::lines::Lines;
use super::{ReadOptions, Rows, TIME_NS_MAX};
use crate::chain::{growing, mix, text_id};
use crate::error::{Bad, TraceError, shortened};
use crate::request::{Prefix, Request, When};

const PROMPT: &str = "num_prefill_tokens";
const OUTPUT: &str = "num_decode_tokens";
const BLOCK_TOKENS: u32 = 16;
/// Sessions per second where the options name no rate.
const SESSIONS_PER_S: f64 = 1.0;
/// Rows looked at to find out whether a file holds conversations.
const PROBE_ROWS: usize = 1024;
/// Least share of neighbours that look like one conversation.
const CONTINUED_MIN: f64 = 0.65;
/// Mean and deviation of the natural logarithm of a wait in seconds.
const WAIT_LN: (f64, f64) = (4.869, 0.955);

pub(super) struct Lengths {
    rng: ChaCha8Rng,
    rate: f64,
    /// Places of the two columns in a row, and number of columns.
    prompt_at: usize,
    output_at: usize,
    columns: usize,
    has_conversations: bool,
    ahead: VecDeque<(u32, u32)>,
    /// Tokens after the last answer of the session.
    context: Option<u64>,
    next_start_ns: f64,
    next_session: u64,
    scope: u64,
}

impl Lengths {
    pub(super) fn new(lines: &mut Lines, options: &ReadOptions) -> Result<Self, TraceError> {
        let file = lines.file().clone();
        let header = lines.next()?.ok_or(TraceError::Empty { file: file.clone() })?;
        let names: Vec<&str> = header.split(',').map(str::trim_ascii).collect();
        let place = |name| {
            let mut places = names.iter().enumerate().filter(|(_, found)| **found == name);
            places.next().map(|(place, _)| place).filter(|_| places.next().is_none())
        };
        let (Some(prompt_at), Some(output_at)) = (place(PROMPT), place(OUTPUT)) else {
            return Err(TraceError::Columns {
                file,
                found: shortened(header),
                expected: format!("{PROMPT} and {OUTPUT}, once each"),
                line: lines.number(),
            });
        };
        let columns = names.len();
        let mut lengths = Lengths {
            rng: options.rng(),
            rate: options.session_rate_per_s.unwrap_or(SESSIONS_PER_S),
            prompt_at,
            output_at,
            columns,
            has_conversations: false,
            ahead: VecDeque::new(),
            context: None,
            next_start_ns: 0.0,
            next_session: 0,
            scope: text_id(PROMPT),
        };
        while lengths.ahead.len() < PROBE_ROWS {
            let Some(row) = lengths.parse(lines)? else {
                break;
            };
            lengths.ahead.push_back(row);
        }
        let neighbours = lengths.ahead.iter().zip(lengths.ahead.iter().skip(1));
        let continued = neighbours.filter(|((prompt, output), (next, _))| *next >= prompt + output);
        let continued = continued.count() as f64;
        let pairs = lengths.ahead.len().saturating_sub(1) as f64;
        lengths.has_conversations = pairs > 0.0 && continued >= CONTINUED_MIN * pairs;
        Ok(lengths)
    }

    fn parse(&self, lines: &mut Lines) -> Result<Option<(u32, u32)>, TraceError> {
        let Some(line) = lines.next()? else {
            return Ok(None);
        };
        let row = self.row(line);
        row.map(Some).map_err(|bad| bad.at(lines.file(), lines.number()))
    }

    fn row(&self, line: &str) -> Result<(u32, u32), Bad> {
        let (mut prompt, mut output, mut columns) = ("", "", 0);
        for (place, text) in line.split(',').enumerate() {
            columns += 1;
            if place == self.prompt_at {
                prompt = text.trim_ascii();
            } else if place == self.output_at {
                output = text.trim_ascii();
            }
        }
        if columns != self.columns {
            let expected = format!("{} as in the header", self.columns);
            return Err(Bad::new("number of columns", columns.to_string(), expected));
        }
        Ok((field::tokens(PROMPT, prompt)?, field::tokens(OUTPUT, output)?))
    }

    fn request(&mut self, prompt_tokens: u32, output_tokens: u32) -> Request {
        let follows =
            self.has_conversations && self.context.is_some_and(|context| u64::from(prompt_tokens) >= context);
        let when = if follows {
            let deviate: f64 = self.rng.sample(StandardNormal);
            let wait = float_seconds((WAIT_LN.0 + WAIT_LN.1 * deviate).exp());
            When::After { wait_ns: wait.unwrap_or(TIME_NS_MAX) }
        } else {
            self.next_session += 1;
            let ns = self.next_start_ns as u64;
            let gap: f64 = self.rng.sample(Exp1);
            self.next_start_ns += gap / self.rate * 1e9;
            When::At { ns }
        };
        self.context = Some(u64::from(prompt_tokens) + u64::from(output_tokens));
        let session = self.has_conversations.then(|| self.next_session - 1);
        let prefix = match session {
            Some(session) => growing(mix(self.scope, session), BLOCK_TOKENS, prompt_tokens),
            None => Prefix::unknown(),
        };
        Request { id: 0, session, when, prompt_tokens, output_tokens, prefix, images: Vec::new() }
    }
}

impl Rows for Lengths {
    fn next(&mut self, lines: &mut Lines) -> Result<Option<Request>, TraceError> {
        let row = match self.ahead.pop_front() {
            Some(row) => Some(row),
            None => self.parse(lines)?,
        };
        Ok(row.map(|(prompt, output)| self.request(prompt, output)))
    }

    fn uses_seed(&self) -> bool {
        true
    }
}

//! Agent sessions (kv-cache-tester's Claude Code traces): one JSON line is one session.
//!
//! Closed loop. The files say nothing of when sessions start, so starts are drawn (Poisson,
//! seeded, the first at 0); every later request waits its `think_time` after the answer before
//! it, or, where that is missing, what the recorded clock leaves after `api_time`.
//!
//! - `hash_ids` are the full 64-token blocks of a prompt, numbered anew in each session: they are
//!   mixed with the session's id, so sessions share nothing.
//! - A request with `out` 0 (27 upstream) is read as one token of output, since its prompt was
//!   still computed.
//! - A sub-agent group is put in line: its requests follow one another in the session at the
//!   place of the group. Groups that ran side by side then run in turn, so the cache holds fewer
//!   sequences at once than it did. The wait of the next request of the session is shortened by
//!   what the groups took.
//! - A session whose requests repeat an earlier one exactly (18 upstream) is left out, unless
//!   `keep_duplicate_sessions` is set.
//!
//! Memory is one line and its requests, and a word for each of the first million sessions;
//! later ones are not looked at when repeats are sought.

use std::collections::{BTreeSet, VecDeque};

use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use rand_distr::Exp1;
use serde::Deserialize;

use super::field::{Scalar, in_token_range, tokens_expected};
use super::lines::Lines;
use super::{Mended, ReadOptions, Rows};
use crate::chain::{mix, text_id};
use crate::error::{Bad, TraceError};
use crate::request::{Prefix, Request, When};

/// Sessions per second where the options name no rate: one in five minutes.
const SESSIONS_PER_S: f64 = 1.0 / 300.0;
const BLOCK_TOKENS: u64 = 64;
const BLOCK_TOKENS_MAX: u64 = 1 << 16;
/// Sessions remembered to find repeats.
const SEEN_MAX: usize = 1_000_000;

#[derive(Deserialize)]
struct Line<'a> {
    #[serde(borrow)]
    id: Option<Scalar<'a>>,
    #[serde(borrow)]
    block_size: Option<Scalar<'a>>,
    #[serde(borrow)]
    requests: Vec<Step<'a>>,
}

/// A request, or a group of requests of a sub-agent.
#[derive(Deserialize)]
struct Step<'a> {
    #[serde(borrow)]
    t: Option<Scalar<'a>>,
    #[serde(borrow, rename = "in")]
    input: Option<Scalar<'a>>,
    #[serde(borrow, rename = "out")]
    output: Option<Scalar<'a>>,
    #[serde(borrow)]
    api_time: Option<Scalar<'a>>,
    #[serde(borrow)]
    think_time: Option<Scalar<'a>>,
    #[serde(default)]
    hash_ids: Vec<u64>,
    #[serde(borrow)]
    requests: Option<Vec<Step<'a>>>,
}

/// The session that is being laid out.
struct Session {
    number: u64,
    /// Mixed into every block id.
    scope: u64,
    block_tokens: u32,
    start_ns: u64,
    content: u64,
    zero_outputs: u64,
    requests: VecDeque<Request>,
}

pub(super) struct Agents {
    rng: ChaCha8Rng,
    rate: f64,
    keep_duplicates: bool,
    next_start_ns: f64,
    next_session: u64,
    seen: BTreeSet<u64>,
    ready: VecDeque<Request>,
    mended: Mended,
}

impl Agents {
    pub(super) fn new(options: &ReadOptions) -> Self {
        Agents {
            rng: options.rng(),
            rate: options.session_rate_per_s.unwrap_or(SESSIONS_PER_S),
            keep_duplicates: options.keep_duplicate_sessions,
            next_start_ns: 0.0,
            next_session: 0,
            seen: BTreeSet::new(),
            ready: VecDeque::new(),
            mended: Mended::default(),
        }
    }

    fn session(&self, line: Line<'_>) -> Result<Session, Bad> {
        let name = match &line.id {
            Some(Scalar::Text(text)) => text_id(text),
            None => 0,
            Some(other) => Scalar::count("id", Some(other))?,
        };
        let block_tokens = match &line.block_size {
            None => BLOCK_TOKENS,
            some => Scalar::count("block_size", some.as_ref())?,
        };
        if !(1..=BLOCK_TOKENS_MAX).contains(&block_tokens) {
            let expected = format!("1 to {BLOCK_TOKENS_MAX} tokens");
            return Err(Bad::new("block_size", block_tokens.to_string(), expected));
        }
        let mut session = Session {
            number: self.next_session,
            scope: mix(name, self.next_session),
            block_tokens: block_tokens as u32,
            start_ns: self.next_start_ns as u64,
            content: 0,
            zero_outputs: 0,
            requests: VecDeque::with_capacity(line.requests.len()),
        };
        let mut clock = Clock::default();
        let mut groups_ns = 0u64;
        for (index, step) in line.requests.into_iter().enumerate() {
            if let Some(group) = step.requests {
                let mut inner = Clock::default();
                for (inner_index, step) in group.into_iter().enumerate() {
                    let path = format!("requests[{index}].requests[{inner_index}]");
                    let wait = inner.wait_ns(&step, &path)?;
                    session.push(step, wait, &path)?;
                }
                groups_ns = groups_ns.saturating_add(inner.end_ns.unwrap_or(0));
            } else {
                let path = format!("requests[{index}]");
                let wait = clock.wait_ns(&step, &path)?.saturating_sub(groups_ns);
                groups_ns = 0;
                session.push(step, wait, &path)?;
            }
        }
        if session.requests.is_empty() {
            return Err(Bad::new("requests", "no request", "at least one request"));
        }
        Ok(session)
    }
}

/// When the request before ended, on the recorded clock.
#[derive(Default)]
struct Clock {
    end_ns: Option<u64>,
}

impl Clock {
    /// How long a request waited after the one before it.
    fn wait_ns(&mut self, step: &Step<'_>, path: &str) -> Result<u64, Bad> {
        let seconds = |field: &str, value: &Option<Scalar<'_>>| {
            Scalar::seconds(&format!("{path}.{field}"), value.as_ref())
        };
        let think = seconds("think_time", &step.think_time)?;
        let start = seconds("t", &step.t)?;
        let took = seconds("api_time", &step.api_time)?;
        let idle = start.zip(self.end_ns).map(|(start, end)| start.saturating_sub(end));
        self.end_ns = start.map(|start| start.saturating_add(took.unwrap_or(0)));
        Ok(think.or(idle).unwrap_or(0))
    }
}

impl Session {
    fn push(&mut self, step: Step<'_>, wait_ns: u64, path: &str) -> Result<(), Bad> {
        let prompt_tokens = Scalar::tokens(&format!("{path}.in"), step.input.as_ref())?;
        let output_field = format!("{path}.out");
        let output = Scalar::count(&output_field, step.output.as_ref())?;
        self.zero_outputs += u64::from(output == 0);
        let output_tokens = in_token_range(output.max(1))
            .ok_or_else(|| Bad::new(output_field, output.to_string(), tokens_expected()))?;
        let ids = step.hash_ids.len() as u64;
        if ids * u64::from(self.block_tokens) > u64::from(prompt_tokens) {
            let expected = format!(
                "at most {} full blocks in {prompt_tokens} tokens",
                prompt_tokens / self.block_tokens
            );
            return Err(Bad::new(format!("{path}.hash_ids"), format!("{ids} ids"), expected));
        }
        self.content = mix(mix(self.content, u64::from(prompt_tokens)), output);
        self.content = mix(mix(self.content, wait_ns), ids);
        for id in &step.hash_ids {
            self.content = mix(self.content, *id);
        }
        let when =
            if self.requests.is_empty() { When::At { ns: self.start_ns } } else { When::After { wait_ns } };
        self.requests.push_back(Request {
            id: 0,
            session: Some(self.number),
            when,
            prompt_tokens,
            output_tokens,
            prefix: Prefix::chained(
                self.block_tokens,
                step.hash_ids.iter().map(|id| mix(self.scope, *id)).collect(),
            ),
            images: Vec::new(),
        });
        Ok(())
    }
}

impl Rows for Agents {
    fn next(&mut self, lines: &mut Lines) -> Result<Option<Request>, TraceError> {
        while self.ready.is_empty() {
            let Some(text) = lines.next()? else {
                return Ok(None);
            };
            let parsed = serde_json::from_str::<Line<'_>>(text).map(|line| self.session(line));
            let (file, line) = (lines.file(), lines.number());
            let session = parsed
                .map_err(|error| super::json_error(file, line, &error))?
                .map_err(|bad| bad.at(file, line))?;
            if !self.keep_duplicates {
                if self.seen.contains(&session.content) {
                    self.mended.duplicate_sessions += 1;
                    continue;
                }
                if self.seen.len() < SEEN_MAX {
                    self.seen.insert(session.content);
                }
            }
            self.mended.zero_outputs += session.zero_outputs;
            self.ready = session.requests;
            self.next_session += 1;
            let gap: f64 = self.rng.sample(Exp1);
            self.next_start_ns += gap / self.rate * 1e9;
        }
        Ok(self.ready.pop_front())
    }

    fn uses_seed(&self) -> bool {
        true
    }

    fn mended(&self) -> Mended {
        self.mended
    }
}

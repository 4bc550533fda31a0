//! RAGPulse: JSON lines that name the components of each prompt, and tables of their lengths.
//!
//! Times are strings of whole seconds. The upstream file is two weeks in one, so the clock falls
//! once: where it falls by more than [`FALL_MIN_S`], a week is added, and week 1 starts at
//! 604,800 s. Follow-ups of a session stay at their recorded times (open loop).
//!
//! Components stand in the prompt as `sys_prompt`, `passages_ids`, `history`, `web_search`,
//! `user_input`. Their lengths differ, so ids are made of [`BLOCK_TOKENS`] tokens: an id mixes the
//! id before it with what its block covers, and prompts share ids as far as they begin with the
//! same components. Each prompt is 6 to 12 tokens longer than its components (a template): those,
//! and a last block that is not full, count as an unknown end.
//!
//! The tables are `1_sys_prompt.jsonl` to `5_web_search.jsonl`, each with or without `.gz`, in
//! the folder of the trace or in `tables_dir`; all of them are held in memory.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;

use serde::Deserialize;

use super::field::{self, SECOND, Scalar};
use super::lines::Lines;
use super::{Mended, ReadOptions, Rows, TIME_NS_MAX};
use crate::chain::{PieceChain, text_id};
use crate::error::{Bad, TraceError, seconds};
use crate::request::{Prefix, Request, When};

/// Tokens that one made id covers.
const BLOCK_TOKENS: u32 = 16;
const WEEK_S: u64 = 604_800;
/// A fall of the clock beyond this begins a new week; a smaller one is an error.
const FALL_MIN_S: u64 = 12 * 3_600;
/// Most components in the tables together.
const COMPONENTS_MAX: usize = 10_000_000;

/// File name without its end, and field of the id.
const TABLES: [(&str, &str); 5] = [
    ("1_sys_prompt", "sys_prompt_id"),
    ("2_passages", "passage_id"),
    ("3_history", "history_id"),
    ("4_user_input", "user_input_id"),
    ("5_web_search", "web_search_id"),
];

#[derive(Deserialize)]
struct Line<'a> {
    #[serde(borrow)]
    timestamp: Option<Scalar<'a>>,
    #[serde(borrow)]
    input_length: Option<Scalar<'a>>,
    #[serde(borrow)]
    output_length: Option<Scalar<'a>>,
    #[serde(borrow)]
    session_id: Option<Scalar<'a>>,
    hash_ids: Components,
}

#[derive(Deserialize)]
struct Components {
    #[serde(default)]
    sys_prompt: Vec<u64>,
    #[serde(default)]
    passages_ids: Vec<u64>,
    #[serde(default)]
    history: Vec<u64>,
    #[serde(default)]
    web_search: Vec<u64>,
    #[serde(default)]
    user_input: Vec<u64>,
}

impl Components {
    fn in_prompt_order(&self) -> impl Iterator<Item = u64> {
        [&self.sys_prompt, &self.passages_ids, &self.history, &self.web_search, &self.user_input]
            .into_iter()
            .flatten()
            .copied()
    }
}

pub(super) struct RagPulse {
    tokens_of: BTreeMap<u64, u32>,
    week: u64,
    /// Recorded time in seconds, and line, of the row before.
    last: (u64, u64),
}

impl RagPulse {
    pub(super) fn new(lines: &Lines, options: &ReadOptions) -> Result<Self, TraceError> {
        let Some(folder) = &options.tables_dir else {
            return Err(TraceError::Option {
                option: "tables_dir",
                found: format!("nothing, for {}", lines.file()),
                expected: "the folder of the five RAGPulse tables",
            });
        };
        let mut tokens_of = BTreeMap::new();
        for (stem, id_field) in TABLES {
            read_table(folder, stem, id_field, &mut tokens_of)?;
        }
        Ok(RagPulse { tokens_of, week: 0, last: (0, 0) })
    }

    fn request(&self, line: &Line<'_>) -> Result<(u64, Request), Bad> {
        let timestamp = match &line.timestamp {
            Some(Scalar::Text(text)) => field::whole("timestamp", text)?,
            other => Scalar::count("timestamp", other.as_ref())?,
        };
        let session = match &line.session_id {
            Some(Scalar::Text(text)) => Some(text_id(text)),
            None => None,
            Some(other) => Some(Scalar::count("session_id", Some(other))?),
        };
        let prompt_tokens = Scalar::tokens("input_length", line.input_length.as_ref())?;
        let output_tokens = Scalar::tokens("output_length", line.output_length.as_ref())?;
        let request = Request {
            id: 0,
            session,
            when: When::At { ns: 0 },
            prompt_tokens,
            output_tokens,
            prefix: self.prefix(&line.hash_ids, prompt_tokens)?,
            images: Vec::new(),
        };
        Ok((timestamp, request))
    }

    /// Chained ids of the full blocks that the components cover.
    fn prefix(&self, components: &Components, prompt_tokens: u32) -> Result<Prefix, Bad> {
        let mut chain = PieceChain::new(BLOCK_TOKENS);
        let mut total = 0u64;
        for component in components.in_prompt_order() {
            let Some(&tokens) = self.tokens_of.get(&component) else {
                let expected = "the id of a component in tables 1 to 5";
                return Err(Bad::new("hash_ids", component.to_string(), expected));
            };
            total += u64::from(tokens);
            if total > u64::from(prompt_tokens) {
                let found = format!("{total} tokens up to component {component}");
                let expected = format!("no more than the {prompt_tokens} tokens of the prompt");
                return Err(Bad::new("hash_ids", found, expected));
            }
            chain.push(component, tokens);
        }
        Ok(chain.finish())
    }

    /// The time since the start of the trace, with the weeks put one after the other.
    fn time_ns(&mut self, timestamp: u64, file: &Arc<str>, line: u64) -> Result<u64, TraceError> {
        let (last, last_line) = self.last;
        let week = self.week + u64::from(last > timestamp.saturating_add(FALL_MIN_S));
        let in_ns = |week: u64, timestamp: u64| {
            let time = week.checked_mul(WEEK_S)?.checked_add(timestamp)?.checked_mul(SECOND)?;
            Some(time).filter(|ns| *ns <= TIME_NS_MAX)
        };
        let Some(ns) = in_ns(week, timestamp) else {
            let expected = format!("at most {} s", TIME_NS_MAX / SECOND);
            return Err(Bad::new("timestamp", timestamp.to_string(), expected).at(file, line));
        };
        let last_ns = in_ns(self.week, last).unwrap_or(0);
        if ns < last_ns {
            return Err(TraceError::OutOfOrder {
                file: file.clone(),
                line,
                time: seconds(ns),
                previous_line: last_line,
                previous_time: seconds(last_ns),
            });
        }
        self.week = week;
        self.last = (timestamp, line);
        Ok(ns)
    }
}

impl Rows for RagPulse {
    fn next(&mut self, lines: &mut Lines) -> Result<Option<Request>, TraceError> {
        let Some(text) = lines.next()? else {
            return Ok(None);
        };
        let parsed = serde_json::from_str::<Line<'_>>(text).map(|line| self.request(&line));
        let (file, line) = (lines.file(), lines.number());
        let (timestamp, mut request) = parsed
            .map_err(|error| super::json_error(file, line, &error))?
            .map_err(|bad| bad.at(file, line))?;
        request.when = When::At { ns: self.time_ns(timestamp, file, line)? };
        Ok(Some(request))
    }

    fn mended(&self) -> Mended {
        Mended { clock_resets: self.week, ..Mended::default() }
    }
}

fn read_table(
    folder: &Path,
    stem: &str,
    id_field: &'static str,
    tokens_of: &mut BTreeMap<u64, u32>,
) -> Result<(), TraceError> {
    let plain = folder.join(format!("{stem}.jsonl"));
    let path = if plain.exists() { plain } else { folder.join(format!("{stem}.jsonl.gz")) };
    let name: Arc<str> = Arc::from(path.display().to_string());
    let file = File::open(&path).map_err(|source| {
        let message = format!("cannot open this RAGPulse table: {source}");
        let source = io::Error::new(source.kind(), message);
        TraceError::Io { file: name.clone(), source }
    })?;
    let mut lines = Lines::new(file, name)?;
    while let Some(text) = lines.next()? {
        let row = serde_json::from_str::<BTreeMap<&str, Scalar<'_>>>(text).map(|row| {
            let id = Scalar::count(id_field, row.get(id_field))?;
            Ok((id, Scalar::tokens("token_length", row.get("token_length"))?))
        });
        let (file, line) = (lines.file(), lines.number());
        let row: Result<(u64, u32), Bad> = row.map_err(|error| super::json_error(file, line, &error))?;
        let (id, tokens) = row.map_err(|bad| bad.at(file, line))?;
        tokens_of.insert(id, tokens);
        if tokens_of.len() > COMPONENTS_MAX {
            let expected = format!("at most {COMPONENTS_MAX} components");
            return Err(Bad::new(id_field, "one more", expected).at(file, line));
        }
    }
    Ok(())
}

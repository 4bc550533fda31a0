//! Readers: a trace file of any known format as a stream of requests, in constant memory.
//!
//! [`open`] tells the format from the first line (never from the name) and undoes gzip. Blank
//! lines, CRLF, a byte order mark and a missing last line end are tolerated in every format; a
//! line over [`LINE_BYTES_MAX`] bytes, text that is not UTF-8, and a file without requests are
//! errors. After an error a reader ends.
//!
//! | format | times | sessions | prefixes |
//! | --- | --- | --- | --- |
//! | [`Format::Azure`] | open loop, first row is 0 | none | unknown |
//! | [`Format::Mooncake`] | open loop, 3 s ticks spread out | none | 512 tokens, from the file |
//! | [`Format::RagPulse`] | open loop, weeks put one after the other | from the file | 16 tokens, from component ids |
//! | [`Format::Agents`] | closed loop, session starts drawn | one per line | 64 tokens, from the file |
//! | [`Format::Lengths`] | closed loop, session starts and waits drawn | inferred | 16 tokens, inferred |
//! | [`Format::Kvlab`] | both | from the file | from the file |
//!
//! # kvlab's own CSV
//!
//! ```text
//! arrival_s,wait_s,session,prompt_tokens,output_tokens,prefix_block,prefix_ids,images
//! 0.000000000,,7,600,20,256,17..19,40:260
//! ,12.500000000,7,700,20,256,17;18;20,40:260
//! 3.250000000,,,80,5,,,
//! ```
//!
//! Only `arrival_s`, `prompt_tokens` and `output_tokens` must be there; columns may stand in any
//! order; no others may be there; nothing is quoted. `arrival_s` is empty exactly where `wait_s`
//! is not: that row is sent so long after the end of the row directly above it, which has the
//! same session. `prefix_ids` are chained ids (see [`crate::Prefix`]) of `prefix_block` tokens
//! each, joined by `;`; `17..19` stands for 17, 18 and 19. `images` are `offset:tokens`, joined by `;`, by rising offset.

mod agents;
mod azure;
mod detect;
mod field;
mod kvlab;
mod lengths;
mod lines;
mod mooncake;
mod ragpulse;

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use crate::error::{Bad, TraceError, seconds, shortened_to};
use crate::request::{Request, When};

pub use field::{TIME_NS_MAX, TOKENS_MAX};
pub(crate) use kvlab::COLUMNS;
pub use lines::LINE_BYTES_MAX;
use lines::Lines;

/// The formats that can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Format {
    /// Azure LLM inference traces, 2023 and 2024: CSV with text timestamps.
    Azure,
    /// Mooncake traces: JSON lines with chained ids of 512 tokens.
    Mooncake,
    /// RAGPulse: JSON lines with ids of prompt components, and five tables of their lengths.
    RagPulse,
    /// Agent sessions (kv-cache-tester): one JSON line each, closed loop.
    Agents,
    /// Prompt and answer lengths without times (etalon, Vidur): CSV.
    Lengths,
    /// kvlab's own CSV, described in [`crate::read`].
    Kvlab,
}

impl Format {
    /// Every format.
    pub const ALL: [Format; 6] =
        [Format::Azure, Format::Mooncake, Format::RagPulse, Format::Agents, Format::Lengths, Format::Kvlab];

    /// The name used on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Format::Azure => "azure",
            Format::Mooncake => "mooncake",
            Format::RagPulse => "ragpulse",
            Format::Agents => "agents",
            Format::Lengths => "lengths",
            Format::Kvlab => "kvlab",
        }
    }
}

impl FromStr for Format {
    type Err = TraceError;

    fn from_str(text: &str) -> Result<Self, TraceError> {
        Format::ALL.into_iter().find(|format| format.name() == text).ok_or_else(|| TraceError::Option {
            option: "format",
            found: text.to_owned(),
            expected: "azure, mooncake, ragpulse, agents, lengths or kvlab",
        })
    }
}

/// How to read a trace.
#[derive(Clone, Debug)]
pub struct ReadOptions {
    /// The format; none to tell it from the first line.
    pub format: Option<Format>,
    /// Seed of whatever the file leaves open; [`Reader::uses_seed`] says whether it matters.
    pub seed: u64,
    /// Most requests to read; none for all.
    pub limit: Option<u64>,
    /// Factor on arrival times, finite and above 0; waits of closed-loop rows stay as they are.
    pub time_scale: f64,
    /// Session starts per second (Poisson; the first is at 0) for formats without times; none
    /// for one in five minutes (agents) or one per second (lengths).
    pub session_rate_per_s: Option<f64>,
    /// Folder of the RAGPulse tables 1 to 5; none for the folder of the trace.
    pub tables_dir: Option<PathBuf>,
    /// Whether to keep agent sessions whose requests repeat an earlier session exactly.
    pub keep_duplicate_sessions: bool,
}

impl Default for ReadOptions {
    fn default() -> Self {
        ReadOptions {
            format: None,
            seed: 0,
            limit: None,
            time_scale: 1.0,
            session_rate_per_s: None,
            tables_dir: None,
            keep_duplicate_sessions: false,
        }
    }
}

impl ReadOptions {
    fn check(&self) -> Result<(), TraceError> {
        let positive = |option, value: f64| {
            if value.is_finite() && value > 0.0 {
                return Ok(());
            }
            let expected = "a finite number above 0";
            Err(TraceError::Option { option, found: value.to_string(), expected })
        };
        positive("time_scale", self.time_scale)?;
        self.session_rate_per_s.map_or(Ok(()), |rate| positive("session_rate_per_s", rate))
    }

    fn rng(&self) -> ChaCha8Rng {
        ChaCha8Rng::seed_from_u64(self.seed)
    }
}

/// What a reader has mended or left out so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mended {
    /// Agent requests without output, read as one token of output.
    pub zero_outputs: u64,
    /// Agent sessions left out because an earlier one has the same requests.
    pub duplicate_sessions: u64,
    /// Times the clock fell back by a week's turn (RAGPulse) and was set forward.
    pub clock_resets: u64,
}

/// Reads the rows of one format.
trait Rows: Send {
    fn next(&mut self, lines: &mut Lines) -> Result<Option<Request>, TraceError>;

    fn uses_seed(&self) -> bool {
        false
    }

    fn mended(&self) -> Mended {
        Mended::default()
    }
}

/// A stream of requests out of a file. Open-loop requests come sorted by arrival; closed-loop
/// ones directly follow the previous request of their session.
pub struct Reader {
    lines: Lines,
    rows: Box<dyn Rows>,
    format: Format,
    time_scale: f64,
    limit: u64,
    next_id: u64,
    ended: bool,
}

/// Opens a trace file.
///
/// # Errors
///
/// Options that make no sense, a file that cannot be opened, an unknown format, a wrong header;
/// and whatever is wrong with the first rows where the format is settled by looking at them.
pub fn open(path: &Path, options: &ReadOptions) -> Result<Reader, TraceError> {
    let name = path.display().to_string();
    let file =
        File::open(path).map_err(|source| TraceError::Io { file: Arc::from(name.as_str()), source })?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new("."));
    let tables_dir = options.tables_dir.clone().unwrap_or_else(|| folder.to_owned());
    let options = ReadOptions { tables_dir: Some(tables_dir), ..options.clone() };
    Reader::from_read(file, &name, &options)
}

impl Reader {
    /// Reads a trace from anything that can be read; `name` stands for the file in errors.
    /// RAGPulse needs [`ReadOptions::tables_dir`] here.
    ///
    /// # Errors
    ///
    /// As for [`open`].
    pub fn from_read(
        read: impl Read + Send + 'static,
        name: &str,
        options: &ReadOptions,
    ) -> Result<Self, TraceError> {
        options.check()?;
        let mut lines = Lines::new(read, Arc::from(name))?;
        let format = match options.format {
            Some(format) => format,
            None => detect::format(&mut lines)?,
        };
        let rows: Box<dyn Rows> = match format {
            Format::Azure => Box::new(azure::Azure::new(&mut lines)?),
            Format::Mooncake => Box::new(mooncake::Mooncake::new(&mut lines, options)?),
            Format::RagPulse => Box::new(ragpulse::RagPulse::new(&lines, options)?),
            Format::Agents => Box::new(agents::Agents::new(options)),
            Format::Lengths => Box::new(lengths::Lengths::new(&mut lines, options)?),
            Format::Kvlab => Box::new(kvlab::Kvlab::new(&mut lines)?),
        };
        Ok(Reader {
            lines,
            rows,
            format,
            time_scale: options.time_scale,
            limit: options.limit.unwrap_or(u64::MAX),
            next_id: 0,
            ended: false,
        })
    }

    /// The format, told or found.
    pub fn format(&self) -> Format {
        self.format
    }

    /// Whether another seed would give other requests: spread ticks, drawn starts and waits.
    pub fn uses_seed(&self) -> bool {
        self.rows.uses_seed()
    }

    /// What has been mended or left out so far.
    pub fn mended(&self) -> Mended {
        self.rows.mended()
    }

    fn read(&mut self) -> Result<Option<Request>, TraceError> {
        let Some(mut request) = self.rows.next(&mut self.lines)? else {
            if self.next_id == 0 {
                return Err(TraceError::Empty { file: self.lines.file().clone() });
            }
            return Ok(None);
        };
        request.id = self.next_id;
        self.next_id += 1;
        if let When::At { ns } = &mut request.when {
            let scaled = if self.time_scale == 1.0 { *ns as f64 } else { *ns as f64 * self.time_scale };
            if scaled > TIME_NS_MAX as f64 {
                let expected = format!("at most {} s after scaling", seconds(TIME_NS_MAX));
                return Err(Bad::new("arrival", format!("{scaled:.3e} ns"), expected)
                    .at(self.lines.file(), self.lines.number()));
            }
            if self.time_scale != 1.0 {
                *ns = scaled.round() as u64;
            }
        }
        Ok(Some(request))
    }
}

impl Iterator for Reader {
    type Item = Result<Request, TraceError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended || self.next_id >= self.limit {
            return None;
        }
        let request = self.read().transpose();
        self.ended = !matches!(request, Some(Ok(_)));
        request
    }
}

/// Longest message of the JSON parser that is passed on; it may quote the file at length.
const MESSAGE_CHARS_MAX: usize = 160;

fn json_error(file: &Arc<str>, line: u64, error: &serde_json::Error) -> TraceError {
    // The parser counts lines in what it was given, which is one line of the file.
    let text = error.to_string();
    let text = text.rsplit_once(" at line ").map_or(text.as_str(), |(text, _)| text);
    let message = format!("column {}: {}", error.column(), shortened_to(text, MESSAGE_CHARS_MAX));
    TraceError::Json { file: file.clone(), line, message }
}

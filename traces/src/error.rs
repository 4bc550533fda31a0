//! What can be wrong with a trace: which file, which line, which field, what was found there.

use std::io;
use std::sync::Arc;

/// Trouble with a trace. Each message names the file and, where there is one, the line (from 1).
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// The file could not be opened, read or written.
    #[error("{file}: {source}")]
    Io {
        /// Name of the file.
        file: Arc<str>,
        /// What the system said.
        source: io::Error,
    },
    /// The compressed data end early or are damaged.
    #[error("{file}, after line {line}: the gzip data are damaged or cut short ({source})")]
    Gzip {
        /// Name of the file.
        file: Arc<str>,
        /// Last line that could be read whole.
        line: u64,
        /// What the decoder said.
        source: io::Error,
    },
    /// There is no line in it, or a header and no row.
    #[error("{file}: the trace is empty; expected at least one request")]
    Empty {
        /// Name of the file.
        file: Arc<str>,
    },
    /// The first line belongs to no format that can be read.
    #[error(
        "{file}: unknown format: the first line is {found:?}; expected a header or a JSON object of \
         one of: {expected}"
    )]
    UnknownFormat {
        /// Name of the file.
        file: Arc<str>,
        /// Beginning of the first line.
        found: String,
        /// The formats, by name.
        expected: String,
    },
    /// The header of a CSV file has wrong, missing or repeated columns.
    #[error("{file}, line {line}: wrong columns: found {found:?}; expected {expected}")]
    Columns {
        /// Name of the file.
        file: Arc<str>,
        /// Line of the header, from 1.
        line: u64,
        /// The column or header that is wrong, shortened.
        found: String,
        /// The columns that would do.
        expected: String,
    },
    /// One value is missing or out of range.
    #[error("{file}, line {line}, {field}: found {found:?}; expected {expected}")]
    Value {
        /// Name of the file.
        file: Arc<str>,
        /// Line, from 1.
        line: u64,
        /// Column of a CSV file, or path of a JSON field.
        field: String,
        /// What stands there, shortened to 40 characters.
        found: String,
        /// What would do.
        expected: String,
    },
    /// A line is not the JSON object that it should be.
    #[error("{file}, line {line}: not the expected JSON object: {message}")]
    Json {
        /// Name of the file.
        file: Arc<str>,
        /// Line, from 1.
        line: u64,
        /// What the parser said, with the column.
        message: String,
    },
    /// Arrival times fall.
    #[error(
        "{file}, line {line}: arrives at {time}, before line {previous_line} ({previous_time}); \
         expected rows in order of time"
    )]
    OutOfOrder {
        /// Name of the file.
        file: Arc<str>,
        /// Line that comes too early, from 1.
        line: u64,
        /// Its time, as seconds.
        time: String,
        /// The row before it, from 1.
        previous_line: u64,
        /// Time of the row before it, as seconds.
        previous_time: String,
    },
    /// A line is longer than [`crate::read::LINE_BYTES_MAX`].
    #[error("{file}, line {line}: longer than {limit} bytes")]
    LongLine {
        /// Name of the file.
        file: Arc<str>,
        /// Line, from 1.
        line: u64,
        /// The limit in bytes.
        limit: usize,
    },
    /// A line is not UTF-8 text.
    #[error("{file}, line {line}, byte {byte}: not UTF-8 text")]
    Utf8 {
        /// Name of the file.
        file: Arc<str>,
        /// Line, from 1.
        line: u64,
        /// Offset of the first wrong byte in the line, from 0.
        byte: usize,
    },
    /// An option of a reader or a generator makes no sense.
    #[error("option {option}: found {found:?}; expected {expected}")]
    Option {
        /// Name of the option.
        option: &'static str,
        /// What was given.
        found: String,
        /// What would do.
        expected: &'static str,
    },
}

/// Trouble with one value, before the file and the line are known.
#[derive(Debug)]
pub(crate) struct Bad {
    field: String,
    found: String,
    expected: String,
}

impl Bad {
    pub(crate) fn new(field: impl Into<String>, found: impl AsRef<str>, expected: impl Into<String>) -> Self {
        Bad { field: field.into(), found: shortened(found.as_ref()), expected: expected.into() }
    }

    pub(crate) fn at(self, file: &Arc<str>, line: u64) -> TraceError {
        let Bad { field, found, expected } = self;
        TraceError::Value { file: file.clone(), line, field, found, expected }
    }
}

/// The first 40 characters of a text, with an ellipsis where some are left out.
pub(crate) fn shortened(text: &str) -> String {
    shortened_to(text, 40)
}

/// The first `chars` characters of a text, with an ellipsis where some are left out.
pub(crate) fn shortened_to(text: &str, chars: usize) -> String {
    match text.char_indices().nth(chars) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}

/// Nanoseconds as seconds with nine decimals, the form that kvlab's own CSV uses.
pub(crate) fn seconds(ns: u64) -> String {
    format!("{}.{:09}", ns / 1_000_000_000, ns % 1_000_000_000)
}

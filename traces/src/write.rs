//! Writes requests as kvlab's own CSV, exact to the nanosecond (format: [`crate::read`]).

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::process;
use std::sync::Arc;

use flate2::Compression;
use flate2::write::GzEncoder;

use crate::error::{TraceError, seconds};
use crate::read::COLUMNS;
use crate::request::{Request, When};

/// Writes the header and every request to `out`, and returns how many requests that were.
/// Requests are written as they are; the reader is what checks them.
///
/// # Errors
///
/// What `out` says.
pub fn write_csv(requests: impl IntoIterator<Item = Request>, out: impl Write) -> io::Result<u64> {
    let mut rows = Rows::new(out)?;
    for request in requests {
        rows.write(&request)?;
    }
    rows.finish().map(|(count, _)| count)
}

/// Writes a trace file, gzip where the name ends in `.gz`, and returns how many requests it has.
/// The rows go to a temporary name beside it, which takes the place of `path` only when all of
/// them are written; on any trouble the temporary file is removed and `path` is as before.
///
/// # Errors
///
/// The first error among `requests`, or what the file system says.
pub fn write_csv_file(
    requests: impl IntoIterator<Item = Result<Request, TraceError>>,
    path: &Path,
) -> Result<u64, TraceError> {
    let name: Arc<str> = Arc::from(path.display().to_string());
    let trouble = |source| TraceError::Io { file: name.clone(), source };
    let file_name = path
        .file_name()
        .ok_or_else(|| trouble(io::Error::new(io::ErrorKind::InvalidInput, "expected the name of a file")))?;
    let temporary = path.with_file_name(format!(".{}.{}.tmp", file_name.to_string_lossy(), process::id()));
    let is_gzip = path.extension().is_some_and(|end| end == "gz");
    let written = write_to(requests, &temporary, is_gzip, &trouble)
        .and_then(|count| fs::rename(&temporary, path).map(|()| count).map_err(&trouble));
    if written.is_err() {
        // It may not exist at all; the first error is the one to tell.
        fs::remove_file(&temporary).ok();
    }
    written
}

fn write_to(
    requests: impl IntoIterator<Item = Result<Request, TraceError>>,
    path: &Path,
    is_gzip: bool,
    trouble: &impl Fn(io::Error) -> TraceError,
) -> Result<u64, TraceError> {
    let file = File::create(path).map_err(trouble)?;
    let (count, file) = if is_gzip {
        let out = GzEncoder::new(BufWriter::new(file), Compression::default());
        let (count, out) = write_all(requests, out, trouble)?;
        (count, out.finish().map_err(trouble)?)
    } else {
        write_all(requests, BufWriter::new(file), trouble)?
    };
    let file = file.into_inner().map_err(|error| trouble(error.into_error()))?;
    file.sync_all().map_err(trouble)?;
    Ok(count)
}

fn write_all<W: Write>(
    requests: impl IntoIterator<Item = Result<Request, TraceError>>,
    out: W,
    trouble: &impl Fn(io::Error) -> TraceError,
) -> Result<(u64, W), TraceError> {
    let mut rows = Rows::new(out).map_err(trouble)?;
    for request in requests {
        rows.write(&request?).map_err(trouble)?;
    }
    rows.finish().map_err(trouble)
}

/// Rows on their way out, through one reused buffer.
struct Rows<W> {
    out: W,
    line: String,
    count: u64,
}

impl<W: Write> Rows<W> {
    fn new(mut out: W) -> io::Result<Self> {
        writeln!(out, "{}", COLUMNS.join(","))?;
        Ok(Rows { out, line: String::new(), count: 0 })
    }

    fn write(&mut self, request: &Request) -> io::Result<()> {
        self.line.clear();
        if format_row(request, &mut self.line).is_err() {
            return Err(io::Error::other("a row could not be formatted"));
        }
        self.count += 1;
        self.out.write_all(self.line.as_bytes())
    }

    fn finish(mut self) -> io::Result<(u64, W)> {
        self.out.flush()?;
        Ok((self.count, self.out))
    }
}

fn format_row(request: &Request, line: &mut String) -> std::fmt::Result {
    match request.when {
        When::At { ns } => write!(line, "{},,", seconds(ns))?,
        When::After { wait_ns } => write!(line, ",{},", seconds(wait_ns))?,
    }
    if let Some(session) = request.session {
        write!(line, "{session}")?;
    }
    write!(line, ",{},{},", request.prompt_tokens, request.output_tokens)?;
    let prefix = &request.prefix;
    if !prefix.ids.is_empty() {
        write!(line, "{}", prefix.block_tokens)?;
    }
    line.push(',');
    let follows = |a: &u64, b: &u64| a.checked_add(1) == Some(*b);
    for (index, ids) in prefix.ids.chunk_by(follows).enumerate() {
        let joint = if index == 0 { "" } else { ";" };
        match ids {
            [first, .., last] => write!(line, "{joint}{first}..{last}")?,
            _ => write!(line, "{joint}{}", ids[0])?,
        }
    }
    line.push(',');
    for (index, image) in request.images.iter().enumerate() {
        let joint = if index == 0 { "" } else { ";" };
        write!(line, "{joint}{}:{}", image.at, image.tokens)?;
    }
    line.push('\n');
    Ok(())
}

//! Lines of a trace file, plain or gzip, one at a time and never longer than the limit.
//!
//! One buffer is reused for every line, so memory is the longest line seen so far.

use std::io::{self, BufRead, BufReader, Cursor, Read};
use std::sync::Arc;

use flate2::bufread::MultiGzDecoder;

use crate::error::TraceError;

/// Longest line, in bytes. Agent sessions are one line each; the longest known has 4.2 MB.
pub const LINE_BYTES_MAX: usize = 64 << 20;

const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];
const BYTE_ORDER_MARK: &[u8] = "\u{feff}".as_bytes();

pub(crate) struct Lines {
    file: Arc<str>,
    input: Box<dyn BufRead + Send>,
    is_gzip: bool,
    buffer: Vec<u8>,
    number: u64,
    /// The line in `buffer` is to be handed out once more.
    held: bool,
}

impl Lines {
    /// Looks at the first two bytes to tell gzip from plain text; the name does not matter.
    pub(crate) fn new(mut read: impl Read + Send + 'static, file: Arc<str>) -> Result<Self, TraceError> {
        let mut head = Vec::with_capacity(GZIP_MAGIC.len());
        read.by_ref()
            .take(GZIP_MAGIC.len() as u64)
            .read_to_end(&mut head)
            .map_err(|source| TraceError::Io { file: file.clone(), source })?;
        let is_gzip = head == GZIP_MAGIC;
        let whole = BufReader::with_capacity(64 << 10, Cursor::new(head).chain(read));
        let input: Box<dyn BufRead + Send> = if is_gzip {
            Box::new(BufReader::with_capacity(64 << 10, MultiGzDecoder::new(whole)))
        } else {
            Box::new(whole)
        };
        Ok(Lines { file, input, is_gzip, buffer: Vec::new(), number: 0, held: false })
    }

    /// Name of the file, as errors give it.
    pub(crate) fn file(&self) -> &Arc<str> {
        &self.file
    }

    /// Number of the line handed out last, from 1.
    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    /// Hands the same line out again at the next call.
    pub(crate) fn hold(&mut self) {
        self.held = true;
    }

    /// The next line that is not blank, without its end; none at the end of the file.
    pub(crate) fn next(&mut self) -> Result<Option<&str>, TraceError> {
        if !std::mem::take(&mut self.held) {
            loop {
                if !self.fill()? {
                    return Ok(None);
                }
                if !self.buffer.trim_ascii().is_empty() {
                    break;
                }
            }
        }
        match std::str::from_utf8(&self.buffer) {
            Ok(line) => Ok(Some(line)),
            Err(error) => Err(TraceError::Utf8 {
                file: self.file.clone(),
                line: self.number,
                byte: error.valid_up_to(),
            }),
        }
    }

    /// Reads one line into the buffer; false at the end of the file.
    fn fill(&mut self) -> Result<bool, TraceError> {
        self.buffer.clear();
        let limit = LINE_BYTES_MAX as u64 + 2;
        let input = &mut self.input;
        match input.take(limit).read_until(b'\n', &mut self.buffer) {
            Ok(0) => return Ok(false),
            Ok(_) => self.number += 1,
            Err(source) if self.is_gzip && is_damage(&source) => {
                return Err(TraceError::Gzip { file: self.file.clone(), line: self.number, source });
            }
            Err(source) => {
                return Err(TraceError::Io { file: self.file.clone(), source });
            }
        }
        if self.buffer.last() == Some(&b'\n') {
            self.buffer.pop();
            if self.buffer.last() == Some(&b'\r') {
                self.buffer.pop();
            }
        }
        if self.buffer.len() > LINE_BYTES_MAX {
            return Err(TraceError::LongLine {
                file: self.file.clone(),
                line: self.number,
                limit: LINE_BYTES_MAX,
            });
        }
        if self.number == 1 && self.buffer.starts_with(BYTE_ORDER_MARK) {
            self.buffer.drain(..BYTE_ORDER_MARK.len());
        }
        Ok(true)
    }
}

fn is_damage(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData
    )
}

//! Files that are whole or not there: written under a temporary name, then renamed.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::marker::PhantomData;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::de::{DeserializeOwned, Deserializer, Visitor, value};
use serde::{Deserialize, Serialize, forward_to_deserialize_any};

use crate::row::{RequestRow, Summary, TimelineRow};

/// A result file that could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The operating system refused.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The header lacks a column.
    #[error("{path}, line 1: column {column} is missing; the file is of another version or kind")]
    Column {
        /// The file.
        path: PathBuf,
        /// The first column that is missing.
        column: &'static str,
    },
    /// A line does not fit the header or a value does not fit its column.
    #[error("{path}, line {line}{}: {message}", column.as_ref().map(|c| format!(", column {c}")).unwrap_or_default())]
    Row {
        /// The file.
        path: PathBuf,
        /// The line, from 1; the header is line 1.
        line: u64,
        /// The column, where one value is to blame.
        column: Option<String>,
        /// What is wrong.
        message: String,
    },
    /// A JSON file is not what it should be.
    #[error("{path}: {message}")]
    Json {
        /// The file.
        path: PathBuf,
        /// What is wrong, with its line and column.
        message: String,
    },
}

impl FileError {
    pub(crate) fn io(path: &Path) -> impl Fn(io::Error) -> FileError + '_ {
        move |source| FileError::Io { path: path.to_owned(), source }
    }

    /// A complaint about a JSON file.
    pub(crate) fn json(path: &Path, error: &serde_json::Error) -> FileError {
        FileError::Json { path: path.to_owned(), message: error.to_string() }
    }

    pub(crate) fn csv(path: &Path, error: csv::Error, headers: &csv::StringRecord) -> FileError {
        let line = error.position().map_or(1, csv::Position::line);
        let row = |line, column, message| FileError::Row { path: path.to_owned(), line, column, message };
        match error.into_kind() {
            csv::ErrorKind::Io(source) => FileError::io(path)(source),
            csv::ErrorKind::Deserialize { err, .. } => {
                let field = err.field().and_then(|i| headers.get(usize::try_from(i).ok()?));
                row(line, field.map(str::to_owned), err.kind().to_string())
            }
            csv::ErrorKind::UnequalLengths { expected_len, len, .. } => {
                row(line, None, format!("{len} values under {expected_len} columns"))
            }
            csv::ErrorKind::Utf8 { err, .. } => {
                let field = headers.get(err.field()).map(str::to_owned);
                row(line, field, "not UTF-8".to_owned())
            }
            other => row(line, None, csv_message(&other)),
        }
    }
}

fn csv_message(kind: &csv::ErrorKind) -> String {
    match kind {
        csv::ErrorKind::Serialize(message) => message.clone(),
        other => format!("{other:?}"),
    }
}

/// A file under a temporary name in the directory it will live in. Dropped before
/// [`TemporaryFile::finish`], it leaves nothing behind.
pub struct TemporaryFile {
    path: PathBuf,
    temporary: PathBuf,
    file: Option<BufWriter<File>>,
}

impl TemporaryFile {
    /// Creates the temporary file.
    ///
    /// # Errors
    ///
    /// What the file system says.
    pub fn new(path: &Path) -> Result<TemporaryFile, FileError> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let temporary = path.with_file_name(format!(".{name}.{}.{count}.tmp", process::id()));
        let file = File::create(&temporary).map_err(FileError::io(path))?;
        Ok(TemporaryFile { path: path.to_owned(), temporary, file: Some(BufWriter::new(file)) })
    }

    /// Gives the file its name; what stood there before is replaced.
    ///
    /// # Errors
    ///
    /// What the file system says.
    pub fn finish(self) -> Result<(), FileError> {
        self.rename(File::sync_all)
    }

    /// The same without waiting for the disk: whole whatever becomes of the process, but a power cut
    /// may leave it empty. For files that are many, and can be made again.
    ///
    /// # Errors
    ///
    /// What the file system says.
    pub fn finish_unsynced(self) -> Result<(), FileError> {
        self.rename(|_| Ok(()))
    }

    fn rename(mut self, sync: fn(&File) -> io::Result<()>) -> Result<(), FileError> {
        let error = FileError::io(&self.path);
        if let Some(writer) = self.file.take() {
            let file = writer.into_inner().map_err(|e| error(e.into_error()))?;
            sync(&file).map_err(&error)?;
        }
        fs::rename(&self.temporary, &self.path).map_err(&error)
    }
}

impl Write for TemporaryFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.file {
            Some(file) => file.write(bytes),
            None => Ok(0),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.as_mut().map_or(Ok(()), Write::flush)
    }
}

impl Drop for TemporaryFile {
    fn drop(&mut self) {
        // After a rename there is nothing to remove, and in a drop nobody to tell.
        let _ = fs::remove_file(&self.temporary);
    }
}

/// Writes a text file whole or not at all; an older file of that name is replaced.
pub fn write_text(path: &Path, text: &str) -> Result<(), FileError> {
    let mut file = TemporaryFile::new(path)?;
    file.write_all(text.as_bytes()).map_err(FileError::io(path))?;
    file.finish()
}

/// Reads a JSON file.
///
/// # Errors
///
/// What the file system says, or the line and the column that are wrong.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T, FileError> {
    let text = fs::read_to_string(path).map_err(FileError::io(path))?;
    serde_json::from_str(&text).map_err(|error| FileError::json(path, &error))
}

/// Streams rows into a CSV file that appears under its name when [`RowsWriter::finish`] is called.
/// Dropped before that, it leaves nothing behind.
pub struct RowsWriter<T> {
    writer: csv::Writer<TemporaryFile>,
    path: PathBuf,
    rows: PhantomData<T>,
}

/// Streams `requests.csv`.
pub type RequestsWriter = RowsWriter<RequestRow>;

/// Streams `timeline.csv`.
pub type TimelineWriter = RowsWriter<TimelineRow>;

impl<T: Row> RowsWriter<T> {
    /// Begins the file in an existing directory; the header is written even if no row follows.
    pub fn create(dir: &Path) -> Result<RowsWriter<T>, FileError> {
        let path = dir.join(T::FILE);
        let file = TemporaryFile::new(&path)?;
        let mut writer = csv::WriterBuilder::new().has_headers(false).from_writer(file);
        let header = writer.write_record(fields::<T>());
        header.map_err(|e| FileError::csv(&path, e, &csv::StringRecord::new()))?;
        Ok(RowsWriter { writer, path, rows: PhantomData })
    }

    /// Adds a row.
    pub fn write(&mut self, row: &T) -> Result<(), FileError> {
        let written = self.writer.serialize(row);
        written.map_err(|e| FileError::csv(&self.path, e, &csv::StringRecord::new()))
    }

    /// Gives the file its name, which is returned; an older file of that name is replaced.
    pub fn finish(self) -> Result<PathBuf, FileError> {
        let file = self.writer.into_inner();
        let file = file.map_err(|e| FileError::io(&self.path)(e.into_error()))?;
        file.finish()?;
        Ok(self.path)
    }
}

/// A kind of row that has a file of its own in a result directory.
pub trait Row: Serialize + DeserializeOwned {
    /// Name of the file.
    const FILE: &'static str;
}

impl Row for Summary {
    const FILE: &'static str = "summary.csv";
}

impl Row for TimelineRow {
    const FILE: &'static str = "timeline.csv";
}

impl Row for RequestRow {
    const FILE: &'static str = "requests.csv";
}

/// Writes `summary.csv` into an existing directory and returns its path.
pub fn write_summary(dir: &Path, rows: &[Summary]) -> Result<PathBuf, FileError> {
    let mut writer = RowsWriter::<Summary>::create(dir)?;
    for row in rows {
        writer.write(row)?;
    }
    writer.finish()
}

/// Reads a `summary.csv`. Columns it does not know are ignored.
pub fn read_summary(path: &Path) -> Result<Vec<Summary>, FileError> {
    read_rows(path)?.collect()
}

/// Reads a `summary.csv`, `timeline.csv` or `requests.csv` row by row, so that files of any length
/// can be read in little memory. The header is checked before the first row is given.
pub fn read_rows<T: Row>(path: &Path) -> Result<impl Iterator<Item = Result<T, FileError>>, FileError> {
    let file = File::open(path).map_err(FileError::io(path))?;
    let mut reader = csv::Reader::from_reader(file);
    let none = csv::StringRecord::new();
    let headers = reader.headers().map_err(|e| FileError::csv(path, e, &none))?.clone();
    if let Some(column) = fields::<T>().iter().find(|field| !headers.iter().any(|h| h == **field)) {
        return Err(FileError::Column { path: path.to_owned(), column });
    }
    let path = path.to_owned();
    let rows = reader.into_deserialize::<T>();
    Ok(rows.map(move |row| row.map_err(|e| FileError::csv(&path, e, &headers))))
}

/// Names of a struct's fields in their order, as its `Deserialize` gives them away.
pub(crate) fn fields<T: DeserializeOwned>() -> &'static [&'static str] {
    struct Names<'a>(&'a mut &'static [&'static str]);

    impl<'de> Deserializer<'de> for Names<'_> {
        type Error = value::Error;

        fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, value::Error> {
            Err(serde::de::Error::custom("only the names of the fields are wanted"))
        }

        fn deserialize_struct<V: Visitor<'de>>(
            self,
            _: &'static str,
            fields: &'static [&'static str],
            visitor: V,
        ) -> Result<V::Value, value::Error> {
            *self.0 = fields;
            self.deserialize_any(visitor)
        }

        forward_to_deserialize_any! {
            bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf
            option unit unit_struct newtype_struct seq tuple tuple_struct map enum identifier
            ignored_any
        }
    }

    let mut names: &'static [&'static str] = &[];
    // Always an error, because there is nothing to read: the names are what is wanted.
    let _ = <T as Deserialize>::deserialize(Names(&mut names));
    names
}

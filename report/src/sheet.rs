//! Any CSV file with a header as texts by column, for plots that choose their columns.

use std::collections::BTreeSet;
use std::path::Path;

use crate::files::FileError;
use crate::order::number;

/// A table of texts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sheet {
    /// Names of the columns.
    pub columns: Vec<String>,
    /// Their values, line by line.
    pub rows: Vec<Vec<String>>,
    /// From this column on they were taken out of `variant`.
    variants_from: usize,
}

/// Columns of results that say what was set, and not what came of it.
pub const SETTINGS: [&str; 10] = [
    "row",
    "policy",
    "trace",
    "model",
    "gpu",
    "kv_cache_type",
    "scheduler",
    "num_ctx",
    "num_parallel",
    "num_batch",
];

impl Sheet {
    /// Reads a file.
    ///
    /// # Errors
    ///
    /// What the file system says, or the line that has another number of values than the header.
    pub fn read(path: &Path) -> Result<Sheet, FileError> {
        let file = std::fs::File::open(path).map_err(FileError::io(path))?;
        let mut reader = csv::Reader::from_reader(file);
        let none = csv::StringRecord::new();
        let headers = reader.headers().map_err(|e| FileError::csv(path, e, &none))?.clone();
        let mut rows = Vec::new();
        for record in reader.into_records() {
            let record = record.map_err(|e| FileError::csv(path, e, &headers))?;
            rows.push(record.iter().map(str::to_owned).collect());
        }
        let columns: Vec<String> = headers.iter().map(str::to_owned).collect();
        Ok(Sheet { variants_from: columns.len(), columns, rows })
    }

    /// Gives settings that stand in `variant` columns of their own. Their values may have semicolons and signs of
    /// equality in them, so `is_key` says what is a setting.
    pub fn split_variant(mut self, is_key: impl Fn(&str) -> bool) -> Sheet {
        let Some(variant) = self.index("variant") else { return self };
        let split: Vec<Vec<(String, String)>> =
            self.rows.iter().map(|row| parts(&row[variant], &is_key)).collect();
        let known: BTreeSet<&String> = split.iter().flatten().map(|(key, _)| key).collect();
        let new: Vec<String> = known.into_iter().filter(|key| self.index(key).is_none()).cloned().collect();
        for (row, parts) in self.rows.iter_mut().zip(&split) {
            let value =
                |key: &String| parts.iter().find(|(known, _)| known == key).map(|(_, value)| value.clone());
            row.extend(new.iter().map(|key| value(key).unwrap_or_default()));
        }
        self.variants_from = self.columns.len();
        self.columns.extend(new);
        self
    }

    /// Number of a column.
    pub fn index(&self, name: &str) -> Option<usize> {
        self.columns.iter().position(|column| column == name)
    }

    /// Whether a column has numbers, and nothing else where it has anything.
    pub fn is_numeric(&self, column: usize) -> bool {
        let mut texts =
            self.rows.iter().map(|row| row[column].as_str()).filter(|text| !text.is_empty()).peekable();
        texts.peek().is_some() && texts.all(|text| number(text).is_some())
    }

    /// Whether a column says what was set.
    pub(crate) fn is_setting(&self, column: usize) -> bool {
        column >= self.variants_from || SETTINGS.contains(&self.columns[column].as_str())
    }
}

/// `victim=lcf;memory=local=1;global=2` in its parts.
fn parts(variant: &str, is_key: &impl Fn(&str) -> bool) -> Vec<(String, String)> {
    let mut parts: Vec<(String, String)> = Vec::new();
    for piece in variant.split(';').filter(|piece| !piece.is_empty()) {
        match piece.split_once('=') {
            Some((key, value)) if is_key(key) => parts.push((key.to_owned(), value.to_owned())),
            _ => {
                if let Some((_, value)) = parts.last_mut() {
                    *value += ";";
                    *value += piece;
                }
            }
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_of_a_variant_become_columns() {
        let sheet = |variants: [&str; 2]| Sheet {
            columns: vec!["policy".to_owned(), "variant".to_owned()],
            rows: variants.map(|variant| vec!["paged".to_owned(), variant.to_owned()]).to_vec(),
            variants_from: 2,
        };
        let is_key = |key: &str| ["victim", "memory", "watermark", "policy"].contains(&key);
        let split =
            sheet(["memory=local=1;global=2;watermark=0", "victim=lcf;watermark=0.1"]).split_variant(is_key);
        assert_eq!(split.columns, ["policy", "variant", "memory", "victim", "watermark"]);
        assert_eq!(split.rows[0][2..], ["local=1;global=2", "", "0"]);
        assert_eq!(split.rows[1][2..], ["", "lcf", "0.1"]);
        assert!(split.is_numeric(4) && !split.is_numeric(3) && split.is_setting(3) && !split.is_setting(1));
        // A column that is there already is not made twice.
        assert_eq!(sheet(["policy=a", ""]).split_variant(is_key).columns, ["policy", "variant"]);
    }
}

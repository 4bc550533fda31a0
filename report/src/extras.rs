//! What the page of an experiment shows and no table beside it holds: `page.json`.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::files::{FileError, read_json, write_text};
use crate::row::CellMap;

/// Name of the file.
pub const FILE: &str = "page.json";

/// The content of `page.json`, the lowest seed's where seeds differ.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Extras {
    /// The command line that made the results.
    pub command: String,
    /// Who held which cells, one map per policy and layer class.
    pub maps: Vec<CellMap>,
    /// Sentences that a reader must know before believing the numbers.
    pub notes: Vec<String>,
    /// Evenly spaced quantiles of the time per output token per policy, or per row where rows have names, ms.
    pub tpot_ms: Vec<(String, Vec<f64>)>,
    /// Those of the time to first token, likewise.
    pub ttft_ms: Vec<(String, Vec<f64>)>,
}

impl Extras {
    /// Writes the file into an existing directory.
    ///
    /// # Errors
    ///
    /// What the file system says.
    pub fn write(&self, dir: &Path) -> Result<(), FileError> {
        let path = dir.join(FILE);
        let text = serde_json::to_string(self).map_err(|error| FileError::json(&path, &error))?;
        write_text(&path, &(text + "\n"))
    }

    /// Reads the file of a directory.
    ///
    /// # Errors
    ///
    /// What the file system says, or the line and the column that are wrong.
    pub fn read(dir: &Path) -> Result<Extras, FileError> {
        read_json(&dir.join(FILE))
    }
}

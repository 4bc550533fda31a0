//! One simulation of a sweep: what it is, and what it is called.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use report::{CellMap, Summary};
use serde::{Deserialize, Serialize};
use traces::Bins;

use crate::experiment::{Experiment, Simulated, at_seed};
use crate::settings::Settings;
use crate::trouble::{Trouble, usage};

/// Everything that makes a simulation. As JSON on one line it is what `kvlab sweep --list` prints and
/// `kvlab task` reads; fields and settings stand in the order of the alphabet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Spec {
    /// Files that have to be there, as the settings name them: relative ones start at the folder of the
    /// sweep, or at `--base` of a task.
    #[serde(default)]
    pub files: Vec<String>,
    /// Hash of what follows from content: settings, version, catalogues, and what is in the files, not
    /// where they lie. Empty where a person wrote the spec: not compared then.
    #[serde(default)]
    pub key: String,
    /// Whether the result has a small map of the cells, too: that of each name's first simulation in the list.
    /// What is simulated is the same, and so is the key.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub map: bool,
    /// Row of the sweep; empty where it has none.
    #[serde(default)]
    pub row: String,
    /// The value of every setting; what is missing has its default.
    pub settings: BTreeMap<String, String>,
}

impl Spec {
    /// The spec of an experiment of one case, whose settings are these.
    pub fn of(settings: &Settings, experiment: &Experiment) -> Result<Spec, Trouble> {
        let (setting, seed) = experiment.cases()[0];
        let (values, paths) = settings.to_values()?;
        let mut files = Vec::new();
        for path in paths {
            files.extend(files_in(settings.base(), &at_seed(&path, seed))?);
        }
        let names = Settings::without_folders(&values);
        let identity = serde_json::to_string(&(settings.row(), names, experiment.key(setting, seed)))?;
        let key = blake3::hash(identity.as_bytes()).to_hex()[..32].to_owned();
        Ok(Spec { files, key, map: false, row: settings.row().to_owned(), settings: values })
    }

    /// One line of JSON, with its line break.
    pub fn line(&self) -> Result<String, Trouble> {
        Ok(serde_json::to_string(self)? + "\n")
    }
}

/// A file itself; those in a folder, by name.
fn files_in(base: &Path, path: &Path) -> Result<Vec<String>, Trouble> {
    let at = base.join(path);
    if !at.is_dir() {
        return Ok(vec![path.display().to_string()]);
    }
    let wrong = |error| usage(format!("{}: {error}", at.display()));
    let mut files: Vec<PathBuf> = Vec::new();
    for entry in std::fs::read_dir(&at).map_err(wrong)? {
        let entry = entry.map_err(wrong)?;
        if entry.file_type().map_err(wrong)?.is_file() {
            files.push(path.join(entry.file_name()));
        }
    }
    files.sort();
    Ok(files.into_iter().map(|file| file.display().to_string()).collect())
}

/// What a simulation leaves behind. Nothing of the machine or of the time of day is in it, so the same
/// spec gives the same bytes everywhere.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Done {
    /// Key of the spec.
    pub key: String,
    /// Maps of the cells, one per layer class, where the spec asks for them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub map: Option<Vec<CellMap>>,
    /// Its row.
    pub row: String,
    /// Its settings, files without their folders.
    pub settings: BTreeMap<String, String>,
    /// The numbers.
    pub summary: Summary,
    /// The latencies.
    pub tails: Tails,
}

/// Latencies in bins that can be added up: least value of a bin in ns, and how many requests lie in it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tails {
    /// Arrival to last token of completed requests.
    pub latency_ns: Vec<(u64, u64)>,
    /// Time per output token of completed requests with two or more.
    pub tpot_ns: Vec<(u64, u64)>,
    /// Time to first token of requests that got one.
    pub ttft_ns: Vec<(u64, u64)>,
}

impl Done {
    /// The result of a spec.
    pub fn new(spec: &Spec, simulated: Simulated) -> Done {
        let Simulated { summary, totals, maps, .. } = simulated;
        let tails = Tails {
            latency_ns: Bins::of(&totals.latency).pairs(),
            tpot_ns: Bins::of(&totals.tpot).pairs(),
            ttft_ns: Bins::of(&totals.ttft).pairs(),
        };
        let settings = Settings::without_folders(&spec.settings);
        Done { key: spec.key.clone(), map: maps, row: spec.row.clone(), settings, summary, tails }
    }
}

/// What is kept of a simulation that failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Failed {
    /// Why.
    pub error: String,
    /// Key of the spec.
    pub key: String,
    /// Its row.
    pub row: String,
    /// Its settings, files without their folders.
    pub settings: BTreeMap<String, String>,
}

impl Failed {
    /// The failure of a spec.
    pub fn new(spec: &Spec, error: String) -> Failed {
        let settings = Settings::without_folders(&spec.settings);
        Failed { error, key: spec.key.clone(), row: spec.row.clone(), settings }
    }
}

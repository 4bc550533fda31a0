//! All results of a sweep, in the order of its list.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use report::sweep::{Outcome, Trial};
use report::table::Table;
use report::{CellMap, Summary};

use super::spec::{Failed, Spec, Tails};
use super::store::Store;
use super::tails::Group;
use crate::settings::{KEYS, Settings};
use crate::trouble::{Trouble, usage};

/// Settings that tell results apart by a column of their own.
const OWN_COLUMN: [&str; 11] = [
    "trace",
    "generate",
    "policies",
    "model",
    "gpu",
    "kv_cache_type",
    "scheduler",
    "num_ctx",
    "num_parallel",
    "num_batch",
    "seed0",
];

/// All results of a list.
pub struct Results {
    /// Rows of what has a result, in the order of the list.
    pub rows: Vec<Summary>,
    /// Latencies.
    pub tails: Table,
    /// Settings that vary within a row of the sweep, but for trace, policy and seed.
    pub keys: Vec<String>,
    /// Every simulation, whatever came of it.
    pub trials: Vec<Trial>,
    /// Settings that are the same for all.
    pub same: Vec<(String, String)>,
    /// Maps of the cells that the list asks for, as far as there are results.
    pub maps: Vec<CellMap>,
    /// Of what the maps are, in words.
    pub maps_of: String,
    missing: usize,
    failed: Vec<Failed>,
}

impl Results {
    /// Reads the list of a sweep and all results.
    pub fn read(store: &Store) -> Result<Results, Trouble> {
        let varied = Varied::read(&store.list())?;
        let keys = varied.knobs();
        let mut rows: Vec<Summary> = Vec::new();
        let (mut trials, mut missing, mut failed) = (Vec::new(), 0, Vec::new());
        let (mut maps, mut maps_of) = (Vec::new(), String::new());
        let mut tails = Tails::table();
        // Seeds vary fastest, so what belongs together stands together.
        let mut group: Option<(Spec, Group)> = None;
        for spec in specs(&store.list())? {
            let spec = spec?;
            let mut trial = trial(&spec, &keys);
            let Some(mut done) = store.done(&spec.key)? else {
                match store.failed(&spec.key)? {
                    Some(failure) => {
                        trial.outcome = Outcome::Failed;
                        failed.push(failure);
                    }
                    None => missing += 1,
                }
                trials.push(trial);
                continue;
            };
            done.summary.variant = varied.text(&spec);
            if let (true, Some(own)) = (spec.map, done.map.take()) {
                if maps.is_empty() {
                    maps_of = described(&trial, &keys);
                }
                maps.extend(own);
            }
            trial.outcome = Outcome::Done(Box::new(done.summary.clone()));
            trials.push(trial);
            match &mut group {
                Some((first, group)) if is_same_but_seed(first, &spec) => group.merge(&done.tails),
                _ => {
                    if let Some((_, group)) = group.take() {
                        group.rows_of(&mut tails);
                    }
                    group = Some((spec, Group::new(done.summary.clone(), &done.tails)));
                }
            }
            rows.push(done.summary);
        }
        if let Some((_, group)) = group {
            group.rows_of(&mut tails);
        }
        let same = varied.same();
        Ok(Results { rows, tails, keys, trials, same, maps, maps_of, missing, failed })
    }

    /// Trouble where not every simulation has a result.
    pub fn check(&self) -> Result<(), Trouble> {
        let mut said = Vec::new();
        let all = self.rows.len() + self.missing + self.failed.len();
        if let Some(first) = self.failed.first() {
            let error = first.error.trim_end();
            said.push(format!(
                "{} of {all} simulations failed, first {}: {error}",
                self.failed.len(),
                first.key
            ));
        }
        if self.missing > 0 {
            said.push(format!("{} of {all} simulations are missing; run the sweep again", self.missing));
        }
        if said.is_empty() { Ok(()) } else { Err(Trouble::Run(anyhow::Error::msg(said.join("\n")))) }
    }
}

/// The specs of a list, line by line.
fn specs(path: &Path) -> Result<impl Iterator<Item = Result<Spec, Trouble>>, Trouble> {
    let file = File::open(path);
    let file =
        file.map_err(|error| usage(format!("{}: {error}; expected the folder of a sweep", path.display())))?;
    let path = PathBuf::from(path);
    Ok(BufReader::new(file).lines().enumerate().map(move |(at, line)| {
        let wrong = |error: String| usage(format!("{}, line {}: {error}", path.display(), at + 1));
        let line = line.map_err(|error| wrong(error.to_string()))?;
        serde_json::from_str(&line).map_err(|error| wrong(error.to_string()))
    }))
}

fn is_same_but_seed(a: &Spec, b: &Spec) -> bool {
    let without = |spec: &Spec| {
        let mut settings = spec.settings.clone();
        settings.remove("seed0");
        settings
    };
    a.row == b.row && without(a) == without(b)
}

/// A simulation of which nothing is known yet.
fn trial(spec: &Spec, keys: &[String]) -> Trial {
    let named = Settings::without_folders(&spec.settings);
    let value = |key: &str| named.get(key).cloned().unwrap_or_default();
    let trace = match named.get("generate") {
        Some(workload) => format!("generate:{workload}"),
        None => value("trace"),
    };
    Trial {
        name: if spec.row.is_empty() { value("policies") } else { spec.row.clone() },
        trace,
        seed: value("seed0").parse().unwrap_or_default(),
        values: keys.iter().map(|key| value(key)).collect(),
        outcome: Outcome::Missing,
    }
}

/// What a simulation is beside its policy: `num_ctx 512 on chat-{seed}.csv, seed 0`.
fn described(trial: &Trial, keys: &[String]) -> String {
    let parts = keys.iter().zip(&trial.values).map(|(key, value)| format!("{key} {value}"));
    let parts = parts.collect::<Vec<_>>().join(", ");
    let on = if parts.is_empty() { String::new() } else { format!("{parts} on ") };
    format!("{on}{}, seed {}", trial.trace, trial.seed)
}

/// Which settings vary within each row.
#[derive(Default)]
struct Varied {
    /// Per row its first settings, and the keys that others have otherwise.
    rows: BTreeMap<String, (BTreeMap<String, String>, BTreeSet<String>)>,
    /// The settings that all have.
    same: Option<BTreeMap<String, String>>,
}

impl Varied {
    fn read(list: &Path) -> Result<Varied, Trouble> {
        let mut varied = Varied::default();
        for spec in specs(list)? {
            let spec = spec?;
            let same = varied.same.get_or_insert_with(|| spec.settings.clone());
            same.retain(|key, value| spec.settings.get(key) == Some(value));
            let (first, keys) =
                varied.rows.entry(spec.row).or_insert_with(|| (spec.settings.clone(), BTreeSet::new()));
            for (key, value) in &spec.settings {
                if first.get(key) != Some(value) && !keys.contains(key) {
                    keys.insert(key.clone());
                }
            }
        }
        Ok(varied)
    }

    /// What varies without a column, `victim=lcf;watermark=0.05`.
    fn text(&self, spec: &Spec) -> String {
        let keys = self.rows.get(&spec.row).into_iter().flat_map(|(_, keys)| keys);
        let keys = keys.filter(|key| !OWN_COLUMN.contains(&key.as_str()));
        let part = |key: &String| Some(format!("{key}={}", spec.settings.get(key)?));
        keys.filter_map(part).collect::<Vec<_>>().join(";")
    }

    /// All that varies within a row, but for trace and seed, and for policies where they are the names; in the order of
    /// settings.
    fn knobs(&self) -> Vec<String> {
        let is_named = self.rows.keys().any(|row| !row.is_empty());
        let is_knob = |key: &&str| match *key {
            "trace" | "generate" | "seed0" => false,
            "policies" => is_named,
            key => KEYS.iter().any(|known| known.name == key),
        };
        let varies = |key: &&str| self.rows.values().any(|(_, keys)| keys.contains(*key));
        KEYS.iter().map(|key| key.name).filter(is_knob).filter(varies).map(str::to_owned).collect()
    }

    fn same(&self) -> Vec<(String, String)> {
        let mut same = self.same.clone().unwrap_or_default();
        same.remove("seed0");
        let named = Settings::without_folders(&same);
        let told = KEYS.iter().filter_map(|key| Some((key.name.to_owned(), named.get(key.name)?.clone())));
        told.collect()
    }
}

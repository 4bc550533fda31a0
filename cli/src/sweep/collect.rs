//! `kvlab collect`: the results of a sweep put together, in the order of its list.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Write, stderr, stdout};
use std::path::{Path, PathBuf};

use clap::ArgMatches;
use report::compare::Comparison;
use report::table::{Format, Table, Value};
use report::{Summary, files};
use traces::Bins;

use super::fail_if::FailIf;
use super::spec::{Failed, Spec, Tails};
use super::store::Store;
use crate::arguments::format_of;
use crate::experiment::bounds;
use crate::tables::terminal_width;
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

/// What is printed, and what counts as trouble.
pub struct Wishes {
    /// Of the table.
    pub format: Format,
    /// Policy or row to compare with; the first where none is named.
    pub reference: Option<String>,
    /// Conditions for exit code 3.
    pub fail_if: Vec<FailIf>,
    /// Whether to keep quiet on standard error.
    pub quiet: bool,
}

/// `kvlab collect DIR`.
pub fn collect(matches: &ArgMatches) -> Result<(), Trouble> {
    let dir = matches.get_one::<String>("dir").expect("the folder is required");
    let wishes = Wishes {
        format: format_of(matches),
        reference: matches.get_one::<String>("reference").cloned(),
        fail_if: FailIf::of_command(matches)?,
        quiet: matches.get_flag("quiet"),
    };
    put_together(Path::new(dir), &wishes)
}

/// Writes `summary.csv` and `tails.csv`, prints the comparison, and says what is missing.
pub fn put_together(dir: &Path, wishes: &Wishes) -> Result<(), Trouble> {
    let results = Results::read(dir)?;
    let rows = &results.rows;
    let bounds = bounds(rows.iter().map(|row| row.policy.as_str()));
    let mut comparison = Comparison::new(rows).bounds(&bounds);
    if let Some(reference) = &wishes.reference {
        if !rows.iter().any(|row| row.row == *reference || row.policy == *reference) {
            return Err(usage(format!("--reference: no result is called {reference:?}")));
        }
        comparison = comparison.reference(reference);
    }
    let width = (wishes.format == Format::Table).then(terminal_width).flatten();
    let table = comparison.render(wishes.format, width)?;
    let summary = files::write_summary(dir, rows)?;
    files::write_text(&dir.join("tails.csv"), &results.tails.render(Format::Csv)?)?;
    stdout().write_all(table.as_bytes())?;
    if !wishes.quiet {
        writeln!(stderr(), "results: {}, {}", summary.display(), dir.join("tails.csv").display())?;
    }
    results.check()?;
    FailIf::check(&wishes.fail_if, rows)
}

/// All results of a list.
struct Results {
    rows: Vec<Summary>,
    tails: Table,
    missing: usize,
    failed: Vec<Failed>,
}

impl Results {
    fn read(dir: &Path) -> Result<Results, Trouble> {
        let store = Store::open(dir);
        let varied = Varied::read(&store.list())?;
        let mut rows: Vec<Summary> = Vec::new();
        let (mut missing, mut failed) = (0, Vec::new());
        let mut tails = Tails::table();
        // Seeds vary fastest, so what belongs together stands together.
        let mut group: Option<(Spec, Group)> = None;
        for spec in specs(&store.list())? {
            let spec = spec?;
            let Some(mut done) = store.done(&spec.key)? else {
                match store.failed(&spec.key)? {
                    Some(failure) => failed.push(failure),
                    None => missing += 1,
                }
                continue;
            };
            done.summary.variant = varied.text(&spec);
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
        Ok(Results { rows, tails, missing, failed })
    }

    /// Trouble where not every simulation has a result.
    fn check(&self) -> Result<(), Trouble> {
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

/// Which settings vary within each row and have no column.
#[derive(Default)]
struct Varied(BTreeMap<String, (BTreeMap<String, String>, Vec<String>)>);

impl Varied {
    fn read(list: &Path) -> Result<Varied, Trouble> {
        let mut varied = Varied::default();
        for spec in specs(list)? {
            let spec = spec?;
            let (first, keys) =
                varied.0.entry(spec.row).or_insert_with(|| (spec.settings.clone(), Vec::new()));
            for (key, value) in &spec.settings {
                let is_new = !OWN_COLUMN.contains(&key.as_str()) && !keys.contains(key);
                if is_new && first.get(key) != Some(value) {
                    keys.push(key.clone());
                }
            }
        }
        varied.0.values_mut().for_each(|(_, keys)| keys.sort());
        Ok(varied)
    }

    /// `victim=lcf;watermark=0.05`.
    fn text(&self, spec: &Spec) -> String {
        let keys = self.0.get(&spec.row).map(|(_, keys)| keys.as_slice()).unwrap_or_default();
        let part = |key: &String| Some(format!("{key}={}", spec.settings.get(key)?));
        keys.iter().filter_map(part).collect::<Vec<_>>().join(";")
    }
}

/// The latencies of all seeds of one setting.
struct Group {
    first: Summary,
    runs: u64,
    /// TTFT, TPOT and latency.
    bins: [Bins; 3],
}

impl Tails {
    fn by_name(&self) -> [(&'static str, &Vec<(u64, u64)>); 3] {
        [("ttft", &self.ttft_ns), ("tpot", &self.tpot_ns), ("latency", &self.latency_ns)]
    }

    fn table() -> Table {
        Table::new([
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
            "variant",
            "metric",
            "runs",
            "samples",
            "p50_ms",
            "p90_ms",
            "p99_ms",
            "p999_ms",
            "max_ms",
        ])
    }
}

impl Group {
    fn new(first: Summary, tails: &Tails) -> Group {
        let mut group = Group { first, runs: 0, bins: Default::default() };
        group.merge(tails);
        group
    }

    fn merge(&mut self, tails: &Tails) {
        self.runs += 1;
        for (bins, (_, pairs)) in self.bins.iter_mut().zip(tails.by_name()) {
            bins.merge(&Bins::from_pairs(pairs.iter().copied()));
        }
    }

    fn rows_of(&self, table: &mut Table) {
        let names = Tails::default();
        for (bins, (metric, _)) in self.bins.iter().zip(names.by_name()) {
            let Summary { row, policy, trace, model, gpu, kv_cache_type, scheduler, variant, .. } =
                &self.first;
            let texts = [row, policy, trace, model, gpu, kv_cache_type, scheduler];
            let numbers = [self.first.num_ctx, self.first.num_parallel, self.first.num_batch];
            let ms = |q| Value::from(bins.quantile(q).map(|ns| ns as f64 / 1e6));
            let values = texts.map(|text| Value::from(text.as_str())).into_iter();
            let values = values.chain(numbers.map(Value::from));
            let values = values.chain([Value::from(variant.as_str()), metric.into()]);
            let values = values.chain([self.runs.into(), bins.count().into()]);
            table.row(values.chain([0.5, 0.9, 0.99, 0.999, 1.0].map(ms)));
        }
    }
}

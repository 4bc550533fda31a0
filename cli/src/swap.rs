//! After a ranking: the reference and the winner on the engine itself, measured beside predicted.

use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;

use engine::cpu::Cpu;
use engine::quality::QualityError;
use engine::quality::corpus::Document;
use engine::quality::evaluate::Evaluation;
use engine::quality::summary::{self, Boundaries};
use engine::quality::variant::Variant;
use engine::serve::Source;
use engine::{Backend, EngineError};
use report::Summary;
use report::number::Unit;
use report::table::{Format, Table, Value};

use crate::calibrate::Sweep;
use crate::engine_setup::EngineSetup;
use crate::experiment::Experiment;
use crate::settings::Settings;
use crate::trouble::{Trouble, usage};
use crate::validate::{Bench, Case, Clock, METRICS, Rates, all_cases};

/// Documents whose exams are read for quality, their tokens before the exam and in it, and their seed.
const DOCUMENTS: u64 = 16;
const BODY: usize = 1024;
const EXAM: usize = 128;
const SEED: u64 = 2;
/// Runs of either row on the engine.
const REPEATS: u64 = 2;
/// Numbers of a run that are shown, by name.
const SHOWN: [&str; 4] = ["throughput tok/s", "ttft mean ms", "latency mean ms", "crashes"];

/// What the engine says of two rows.
pub struct Swapped {
    /// One line per number, measured beside predicted, then quality.
    pub table: Table,
    /// What the table shows, in words.
    pub words: String,
}

/// The row that serves best: fewest requests lost, then fewest corrupted steps, then the shortest mean
/// latency; only rows in `names` count.
pub fn winner<'a>(summaries: &'a [Summary], names: &[&str]) -> Option<&'a str> {
    let of = |name: &str| {
        let rows = summaries.iter().filter(|summary| summary.name() == name);
        rows.fold((0, 0, 0.0), |(lost, corrupted, latency), row| {
            let latency = latency + row.latency_mean_ms.unwrap_or(f64::INFINITY);
            (lost + row.failed + row.rejected + row.unfinished, corrupted + row.corrupted_steps, latency)
        })
    };
    let known = summaries.iter().map(Summary::name).filter(|name| names.contains(name));
    known.min_by(|a, b| {
        let (a, b) = (of(a), of(b));
        (a.0, a.1).cmp(&(b.0, b.1)).then(a.2.total_cmp(&b.2))
    })
}

/// Runs the scenario of an engine with two of its rows.
///
/// # Errors
/// A scenario that is wrong, or an engine that fails.
pub fn swap_in(settings: &Settings, reference: &str, winner: &str, quiet: bool) -> Result<Swapped, Trouble> {
    // More threads than one would wait for each other longer than they compute.
    let alone = rayon::ThreadPoolBuilder::new().num_threads(1).build()?;
    let engine = alone.install(EngineSetup::bundled)?;
    let (cases, policies, words) = alone.install(|| serve(settings, &engine, reference, winner, quiet))?;
    let quality = quality(&engine, &policies)?;
    Ok(Swapped { table: table(&cases, &quality), words })
}

/// Serves the workload with both rows: what is measured beside what is predicted, the policies, and words.
fn serve(
    settings: &Settings,
    engine: &EngineSetup,
    reference: &str,
    winner: &str,
    quiet: bool,
) -> Result<(Vec<Case>, Vec<String>, String), Trouble> {
    let mut settings = settings.clone();
    settings.set("rows", "--rows ", reference)?;
    let rates = Rates::Measured(Box::new(Sweep::of(&settings, engine, quiet)?));
    if winner != reference {
        settings.set("rows", "--rows ", &format!("{reference},{winner}"))?;
    }
    let experiment = Experiment::on_engine(&settings, engine)?;
    let seed = experiment.seeds[0];
    let source = Source::Hash(engine.weights.config.vocab);
    let bench = Bench { experiment: &experiment, engine, clock: Clock::Fast, source, seed };
    let (cases, _) = all_cases(&bench, rates, REPEATS, quiet)?;
    if let Some((case, what)) = cases.iter().find_map(|case| Some((case, case.unequal.as_ref()?))) {
        let name = &case.policy;
        return Err(anyhow::anyhow!("{name}: the simulator is not in step with the engine: {what}").into());
    }
    let policies = experiment.settings.iter().map(|setting| setting.policy().to_owned()).collect();
    let words = words(engine, &cases, &bench)?;
    Ok((cases, policies, words))
}

/// Recall and its standard error, divergence, and the share of tokens read from foreign cells, per policy.
fn quality(engine: &EngineSetup, policies: &[String]) -> Result<Vec<summary::Row>, Trouble> {
    let variant = |spec: &String| Variant::from_str(&format!("{spec}/f32/ctx=full")).map_err(usage);
    let variants = policies.iter().map(variant).collect::<Result<Vec<_>, _>>()?;
    let documents: Vec<Document> =
        (0..DOCUMENTS).map(|index| Document::new(SEED, index, BODY, EXAM)).collect();
    let weights = &engine.weights;
    let backend = |shape| -> Result<Box<dyn Backend>, EngineError> {
        Ok(Box::new(Cpu::new(Arc::clone(weights), shape)?))
    };
    let evaluation = Evaluation {
        config: &weights.config,
        backend: &backend,
        num_ctx: (BODY + EXAM) as u32,
        num_batch: 64,
        progress: &|_| (),
        is_interrupted: &|| false,
    };
    let outcome = evaluation.run(&documents, &variants).map_err(|error| match error {
        QualityError::Engine(error) => Trouble::from(error),
        error => usage(error),
    })?;
    let boundaries = Boundaries::new(BODY, EXAM, (BODY + EXAM) as u32);
    let row = |measured| summary::row(measured, &outcome.reference, boundaries);
    Ok(outcome.variants.iter().map(row).collect())
}

/// One line per number, two columns per row of the scenario.
fn table(cases: &[Case], quality: &[summary::Row]) -> Table {
    let columns = |case: &Case| [format!("{}: measured", case.policy), "predicted".to_owned()];
    let mut table = Table::new(std::iter::once("number".to_owned()).chain(cases.iter().flat_map(columns)));
    let number =
        |number: f64, unit| if number.is_finite() { Value::Number(number, unit) } else { Value::Empty };
    for (at, metric) in METRICS.iter().enumerate().filter(|(_, metric)| SHOWN.contains(&metric.name)) {
        let pair = |case: &Case| {
            let compared = &case.numbers[at];
            [compared.measured, compared.predicted].map(|value| number(value, Unit::Plain))
        };
        table.row(std::iter::once(metric.name.into()).chain(cases.iter().flat_map(pair)));
    }
    let lone = |value: Value| [value, Value::Empty];
    type Count = (&'static str, fn(&Case) -> u64);
    let counts: [Count; 2] =
        [("requests lost", |case| case.lost), ("corrupted steps", |case| case.corrupted_steps)];
    for (name, count) in counts {
        table.row(
            std::iter::once(name.into()).chain(cases.iter().flat_map(|case| lone(Value::Count(count(case))))),
        );
    }
    type Quality = (&'static str, Unit, fn(&summary::Row) -> f64);
    let qualities: [Quality; 3] = [
        ("recall of planted facts", Unit::Share, |row| row.recall.mean),
        ("KL to a full cache, nats", Unit::Plain, |row| row.kl.mean),
        ("tokens read from foreign cells", Unit::Share, |row| row.foreign.mean),
    ];
    for (name, unit, of) in qualities {
        let values = quality.iter().flat_map(|row| lone(number(of(row), unit)));
        table.row(std::iter::once(name.into()).chain(values));
    }
    table
}

fn words(engine: &EngineSetup, cases: &[Case], bench: &Bench<'_>) -> Result<String, Trouble> {
    let geometry = bench.experiment.settings[0].geometry();
    let backend = engine.backend(&geometry, bench.experiment.settings[0].kv()).map_err(usage)?;
    let errors = cases.iter().map(|case| {
        let latency = METRICS.iter().position(|metric| metric.name == "latency mean ms");
        let error = latency.and_then(|at| case.numbers[at].error()).unwrap_or(f64::NAN);
        format!("{} {:+.1} %", case.policy, error * 100.0)
    });
    let errors: Vec<String> = errors.collect();
    Ok(format!(
        "On the engine ({}, {}): the same scheduler and allocators, real computing. The simulator, told how long each \
         step took, did exactly the same batches, cells and events; with calibrated prices its mean latency is off by {}. \
         Recall and divergence are those of the policies on documents with planted facts.",
        engine.model.name,
        engine.device(&*backend),
        errors.join(", ")
    ))
}

/// The scenario that a comparison names, unless it says none.
pub fn scenario(settings: &Settings) -> Result<Option<Settings>, Trouble> {
    let Some(value) = settings.one("engine").filter(|value| value.text != "none") else { return Ok(None) };
    let path = settings.path(&value);
    if !Path::new(&path).is_file() {
        return Err(value.wrong(format!("there is no file {}", path.display())));
    }
    let mut engine = Settings::new();
    engine.read(&path)?;
    Ok(Some(engine))
}

/// As text under the comparison's own table.
pub fn text(swapped: &Swapped, format: Format) -> Result<String, Trouble> {
    Ok(format!("\n{}\n{}", swapped.words, swapped.table.render(format)?))
}

//! `kvlab validate`: a workload on the engine, and what the simulator says of it.

mod numbers;
mod run;
mod tables;

use std::io::{IsTerminal, Write, stderr, stdout};
use std::path::{Path, PathBuf};

use clap::ArgMatches;
use engine::serve::{Dialogue, Source};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use report::files::write_text;
use report::table::Format;
use sim::cost::linear::{Calibration, Linear};

use crate::arguments::format_of;
use crate::calibrate::Sweep;
use crate::engine_setup::EngineSetup;
use crate::experiment::Experiment;
use crate::settings::Settings;
use crate::trouble::{Trouble, usage};
use numbers::{Compared, TimeErrors, Verdict};
use run::Measured;

pub use numbers::METRICS;
pub use run::Bench;

/// Sets of rates that a prediction is repeated with for its interval.
const DRAWS: usize = 100;

/// Rounds of a calibration before every run on the engine, where it is made on the way.
const ROUNDS: u32 = 2;

/// Where the prices come from.
pub enum Rates {
    /// From a file.
    Given(Box<Calibration>),
    /// From steps that are timed between the runs, so that a machine which is slow for a while is slow
    /// for both.
    Measured(Box<Sweep>),
}

/// How time passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clock {
    /// Idle time is skipped; steps take as long as they take.
    Fast,
    /// Requests come when the trace says.
    Real,
}

/// A case, measured and predicted.
pub struct Case {
    pub trace: String,
    pub policy: String,
    pub scheduler: &'static str,
    /// In the order of [`METRICS`].
    pub numbers: Vec<Compared>,
    pub time: TimeErrors,
    /// What a replay of the engine's times does otherwise, if anything.
    pub unequal: Option<String>,
    pub strange: u64,
    pub corrupted_steps: u64,
    pub lost: u64,
    /// What its steps cost.
    pub cost: Linear,
    /// The runs on the engine.
    pub runs: Vec<Measured>,
}

/// `kvlab validate`.
pub fn validate(matches: &ArgMatches) -> Result<(), Trouble> {
    let settings = settings(matches)?;
    let repeats = *matches.get_one::<u64>("repeats").expect("the number has a default");
    if repeats == 0 {
        return Err(usage("--repeats 0: expected a number of at least 1"));
    }
    let calibration =
        matches.get_one::<String>("calibration").map(|path| read(Path::new(path))).transpose()?;
    let out = matches.get_one::<String>("out").map(PathBuf::from);
    if let Some(dir) = &out {
        std::fs::create_dir_all(dir).map_err(|error| usage(format!("{}: {error}", dir.display())))?;
    }
    let engine = EngineSetup::new(matches)?;
    let experiment = Experiment::on_engine(&settings, &engine)?;
    ctrlc::set_handler(|| std::process::exit(130))?;
    let quiet = matches.get_flag("quiet");
    let rates = match calibration {
        Some(calibration) => Rates::Given(Box::new(calibration)),
        None => Rates::Measured(Box::new(Sweep::of(&settings, &engine, quiet)?)),
    };
    let clock = match matches.get_one::<String>("clock").map(String::as_str) {
        Some("real") => Clock::Real,
        _ => Clock::Fast,
    };
    if clock == Clock::Real && engine.clock == engine::clock::Clock::Processor {
        return Err(usage("--clock real counts all time that passes: expected no --processor-time"));
    }
    let text = matches.get_one::<PathBuf>("text").map(|path| read_text(path, &engine)).transpose()?;
    let source = match &text {
        Some(tokens) => Source::Text(tokens),
        None => Source::Hash(engine.weights.config.vocab),
    };
    let bench = Bench { experiment: &experiment, engine: &engine, clock, source, seed: experiment.seeds[0] };
    let (cases, calibration) = all_cases(&bench, rates, repeats, quiet)?;
    if let Some(dir) = &out {
        write_text(&dir.join("validate.csv"), &tables::numbers(&cases).render(Format::Csv)?)?;
        write_text(&dir.join("errors.csv"), &tables::errors(&cases).render(Format::Csv)?)?;
        write_text(&dir.join("steps.csv"), &tables::steps(&cases).render(Format::Csv)?)?;
        write_text(&dir.join("calibration.toml"), &calibration.to_toml()?)?;
        write_text(&dir.join("run.toml"), &experiment.toml)?;
    }
    let text = tables::text(&cases, format_of(matches))?;
    stdout().write_all(text.as_bytes())?;
    judge(&cases, matches.get_flag("gate"))
}

fn settings(matches: &ArgMatches) -> Result<Settings, Trouble> {
    let (mut settings, _) = Settings::of_command(matches, "kvlab validate ")?;
    // What a step costs is what the calibration says.
    settings.set("cost", "--cost ", "spec")?;
    Ok(settings)
}

fn read(path: &Path) -> Result<Calibration, Trouble> {
    let wrong = |error: String| usage(format!("--calibration {}: {error}", path.display()));
    let text = std::fs::read_to_string(path).map_err(|error| wrong(error.to_string()))?;
    Calibration::from_toml(&text).map_err(|error| wrong(error.to_string()))
}

/// The tokens of a text.
fn read_text(path: &Path, engine: &EngineSetup) -> Result<Vec<u32>, Trouble> {
    let wrong = |what: String| usage(format!("--text {}: {what}", path.display()));
    let text = std::fs::read_to_string(path).map_err(|error| wrong(error.to_string()))?;
    let tokenizer = engine.tokenizer.as_ref();
    let tokenizer =
        tokenizer.ok_or_else(|| wrong("the model has no tokenizer, which a text needs".into()))?;
    let tokens = tokenizer.encode(&text, false).map_err(|error| wrong(error.to_string()))?;
    if tokens.is_empty() { Err(wrong("expected at least one token".into())) } else { Ok(tokens) }
}

/// A calibration of another processor, or with other threads, is worth nothing here.
fn check_device(calibration: &Calibration, bench: &Bench<'_>) -> Result<(), Trouble> {
    let device = bench.device(0)?;
    calibration.check_device(&device).map_err(|error| usage(format!("--calibration: {error}")))
}

fn cost(calibration: &Calibration, bench: &Bench<'_>, setting: usize) -> Result<Linear, Trouble> {
    let gpu = sim::hardware::find("cpu").expect("the catalogue has a CPU");
    let (engine, kv) = (bench.engine, bench.experiment.settings[setting].kv());
    calibration.cost(&engine.model, engine.weight_type, kv, &gpu).map_err(usage)
}

/// Every case on the engine, `repeats` times, what the simulator says of it, and by which rates.
///
/// # Errors
/// A calibration of something else, and whatever the engine says.
pub fn all_cases(
    bench: &Bench<'_>,
    mut rates: Rates,
    repeats: u64,
    quiet: bool,
) -> Result<(Vec<Case>, Calibration), Trouble> {
    let settings = bench.experiment.settings.len();
    let costs = |calibration: &Calibration| -> Result<Vec<Linear>, Trouble> {
        (0..settings).map(|setting| cost(calibration, bench, setting)).collect()
    };
    if let Rates::Given(calibration) = &rates {
        check_device(calibration, bench)?;
        costs(calibration)?;
    }
    let bar = ProgressBar::new(settings as u64 * repeats);
    if quiet || !stderr().is_terminal() {
        bar.set_draw_target(ProgressDrawTarget::hidden());
    }
    if let Ok(style) = ProgressStyle::with_template("{bar:40} {pos}/{len} runs on the engine, {eta} left") {
        bar.set_style(style);
    }
    // Round by round, so that a machine that gets slower does so for everyone.
    let mut runs: Vec<Vec<Measured>> = (0..settings).map(|_| Vec::new()).collect();
    for _ in 0..repeats {
        for (setting, runs) in runs.iter_mut().enumerate() {
            if let Rates::Measured(sweep) = &mut rates {
                sweep.rounds(ROUNDS)?;
            }
            let requests = bench.experiment.requests(setting, bench.seed)?;
            let dialogue = Dialogue::seeded(&requests, bench.source, bench.seed);
            runs.push(bench.measure(setting, &dialogue)?);
            bar.inc(1);
        }
    }
    bar.finish_and_clear();
    let calibration = match rates {
        Rates::Given(calibration) => *calibration,
        Rates::Measured(sweep) => sweep.fit()?,
    };
    let costs = costs(&calibration)?;
    let draws: Vec<Linear> = calibration.resampled().into_iter().take(DRAWS).collect();
    let cases = runs.into_iter().enumerate();
    let cases = cases.map(|(setting, runs)| case(bench, setting, runs, &costs[setting], &draws));
    Ok((cases.collect::<Result<_, _>>()?, calibration))
}

fn case(
    bench: &Bench<'_>,
    setting: usize,
    runs: Vec<Measured>,
    cost: &Linear,
    draws: &[Linear],
) -> Result<Case, Trouble> {
    let predicted = bench.predict(setting, cost)?.totals;
    let drawn = draws.iter().map(|draw| Ok(bench.predict(setting, draw)?.totals));
    let drawn = drawn.collect::<Result<Vec<_>, Trouble>>()?;
    let numbers = METRICS.iter().map(|metric| {
        let measured: Vec<f64> = runs.iter().map(|run| (metric.of)(&run.ran.totals)).collect();
        Compared::new(measured, (metric.of)(&predicted), drawn.iter().map(metric.of).collect())
    });
    let of = &bench.experiment.settings[setting];
    Ok(Case {
        trace: bench.experiment.workload_name(setting).to_owned(),
        policy: of.label().to_owned(),
        scheduler: of.scheduler_name(),
        numbers: numbers.collect(),
        time: TimeErrors::new(runs.iter().flat_map(|run| &run.steps), cost),
        unequal: runs.iter().find_map(|run| bench.lock_step(setting, run)),
        strange: runs.iter().map(|run| run.strange).max().unwrap_or(0),
        corrupted_steps: runs.iter().map(|run| run.ran.totals.corrupted_steps).max().unwrap_or(0),
        lost: runs.iter().map(|run| run.ran.totals.failed).max().unwrap_or(0),
        cost: cost.clone(),
        runs,
    })
}

/// Fails where the engine did something else than the simulator, and, if asked, where a gate was missed.
fn judge(cases: &[Case], gated: bool) -> Result<(), Trouble> {
    if let Some((case, what)) = cases.iter().find_map(|case| Some((case, case.unequal.as_ref()?))) {
        let name = &case.policy;
        return Err(anyhow::anyhow!("{name}: the simulator is not in step with the engine: {what}").into());
    }
    let missed = cases.iter().flat_map(|case| {
        let gates = METRICS.iter().zip(&case.numbers).filter_map(|(metric, number)| {
            let word = match number.keeps(metric.gate?) {
                Verdict::Fail => "missed",
                Verdict::Unsure => "not shown",
                Verdict::Pass | Verdict::Nothing => return None,
            };
            Some((metric.name, word))
        });
        gates.map(|(name, word)| format!("{} {}: {name} {word}", case.trace, case.policy))
    });
    let missed: Vec<String> = missed.collect();
    if gated && !missed.is_empty() {
        return Err(anyhow::anyhow!("gates: {}", missed.join("; ")).into());
    }
    Ok(())
}

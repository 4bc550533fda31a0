//! `kvlab calibrate`: time steps of the engine, fit the cost model to them, say how good it is.

mod design;
mod tables;

use std::io::{IsTerminal, Write, stderr, stdout};
use std::path::PathBuf;

use clap::ArgMatches;
use engine::measure::{Measurements, Options, StepShape, measure};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use policies::Geometry;
use policies::scheduler::Limits;
use sim::cost::CostModel;
use sim::cost::linear::{Calibration, FitOptions, Layout, Made, Measured, Operating, fit};

use crate::arguments::format_of;
use crate::engine_setup::EngineSetup;
use crate::experiment::{Experiment, Setting};
use crate::settings::Settings;
use crate::trouble::{Trouble, usage};
use design::Recorder;

/// Visits of every step.
const ROUNDS: u32 = 8;
const ROUNDS_QUICK: u32 = 4;
/// Steps taken from the workload, per setting of the experiment; half of them are held out.
const DRAWN: usize = 16;
const DRAWN_QUICK: usize = 6;
/// Models with larger weights are calibrated on the way by fewer steps.
const TINY_BYTES: u64 = 64 << 20;
/// Distance of the seed of a calibration that a validation makes for itself.
const OTHER_SEED: u64 = 1000;
/// Workload that stands in for none; only the limits matter then.
const NO_WORKLOAD: &str = "chat";

fn limits_in_words(setting: &Setting) -> String {
    let Limits { num_ctx, num_parallel, num_batch, .. } = setting.limits();
    let kv = setting.kv().name();
    format!("num_ctx {num_ctx}, num_parallel {num_parallel}, num_batch {num_batch}, {kv}")
}

/// What is to be measured, and where.
struct Plan {
    experiment: Experiment,
    engine: EngineSetup,
    geometry: Geometry,
    /// Whether the workload is the user's.
    has_workload: bool,
    seed: u64,
    quick: bool,
    quiet: bool,
}

/// A step, and whether it is kept from the fit.
struct Planned {
    step: StepShape,
    held_out: bool,
}

/// A calibration under way: rounds can be measured at any time, until it is fitted.
pub struct Sweep {
    plan: Plan,
    planned: Vec<Planned>,
    found: Measurements,
    device: String,
}

/// `kvlab calibrate`.
pub fn calibrate(matches: &ArgMatches) -> Result<(), Trouble> {
    let plan = Plan::new(matches)?;
    let out = PathBuf::from(matches.get_one::<String>("out").expect("the file has a default"));
    if out.is_dir() {
        return Err(usage(format!("--out {}: is a folder; expected a file", out.display())));
    }
    let (quick, quiet) = (plan.quick, plan.quiet);
    let mut sweep = Sweep::new(plan)?;
    sweep.rounds(if quick { ROUNDS_QUICK } else { ROUNDS })?;
    let calibration = sweep.fit()?;
    report::files::write_text(&out, &calibration.to_toml().map_err(anyhow::Error::from)?)?;
    let words = |planned: &Planned| design::words(&planned.step, &sweep.plan.geometry);
    let words: Vec<String> = sweep.planned.iter().map(words).collect();
    let text = tables::text(&calibration, &words, format_of(matches))?;
    stdout().write_all(text.as_bytes())?;
    if !quiet {
        writeln!(stderr(), "{}", tables::summary(&calibration, &sweep.found))?;
        writeln!(stderr(), "calibration: {}", out.display())?;
    }
    Ok(())
}

/// Mean length of the runs in the drawn steps of each setting, the least of those; 0 where none reads through
/// tables.
fn shortest_runs(drawn: &[Vec<StepShape>]) -> u32 {
    let mean = |steps: &Vec<StepShape>| {
        let lens: Vec<u32> = steps.iter().map(|step| step.run_len).filter(|&len| len > 0).collect();
        lens.iter().sum::<u32>().checked_div(lens.len() as u32)
    };
    drawn.iter().filter_map(mean).min().unwrap_or(0)
}

impl Sweep {
    /// A calibration for settings with a workload, by fewer steps unless the model is tiny.
    ///
    /// # Errors
    /// Settings that the engine cannot serve.
    pub fn of(settings: &Settings, engine: &EngineSetup, quiet: bool) -> Result<Sweep, Trouble> {
        let mut settings = settings.clone();
        settings.set("cost", "--cost ", "spec")?;
        let quick = engine.model.weight_bytes(engine.weight_type) > TINY_BYTES;
        let mut plan = Plan::of(&settings, engine.clone(), true, quick, quiet)?;
        // Steps are drawn from another draw of the workload than the one that is validated, where there is one.
        if settings.one("generate").is_some() {
            plan.seed = plan.seed.wrapping_add(OTHER_SEED);
        }
        Sweep::new(plan)
    }

    fn new(plan: Plan) -> Result<Sweep, Trouble> {
        let planned = plan.steps()?;
        Ok(Sweep { plan, planned, found: Measurements::default(), device: String::new() })
    }

    /// Times every step so many times more.
    ///
    /// # Errors
    /// No room for the cache.
    pub fn rounds(&mut self, rounds: u32) -> Result<(), Trouble> {
        let (plan, planned) = (&self.plan, &self.planned);
        let kv = plan.experiment.settings[0].kv();
        let mut backend = plan.engine.backend(&plan.geometry, kv).map_err(usage)?;
        self.device = plan.engine.device(&*backend);
        let steps: Vec<StepShape> = planned.iter().map(|planned| planned.step.clone()).collect();
        let bar = ProgressBar::new(u64::from(rounds) * steps.len() as u64);
        if plan.quiet || !stderr().is_terminal() {
            bar.set_draw_target(ProgressDrawTarget::hidden());
        }
        if let Ok(style) = ProgressStyle::with_template("{bar:40} {pos}/{len} visits, {eta} left") {
            bar.set_style(style);
        }
        let before = self.found.rounds_ns.first().map_or(0, Vec::len) as u64;
        let options = Options { rounds, seed: plan.seed.wrapping_add(before), clock: plan.engine.clock };
        let found = measure(&mut *backend, &plan.geometry, &steps, options, &mut |done, _| {
            bar.set_position(done as u64);
        })?;
        self.found.add(found);
        bar.finish_and_clear();
        Ok(())
    }

    /// The calibration by the rounds so far.
    ///
    /// # Errors
    /// Times that no rates explain.
    ///
    /// # Panics
    /// If no round was measured.
    pub fn fit(&self) -> Result<Calibration, Trouble> {
        let measured = self.planned.iter().zip(&self.found.rounds_ns).map(|(planned, rounds_ns)| Measured {
            work: design::work_of(&planned.step, &self.plan.geometry),
            rounds_ns: rounds_ns.clone(),
            weight: 1.0,
            held_out: planned.held_out,
        });
        self.plan.fit(measured.collect(), self.device.clone())
    }
}

impl Plan {
    fn new(matches: &ArgMatches) -> Result<Self, Trouble> {
        let (mut settings, _) = Settings::of_command(matches, "kvlab calibrate ")?;
        let has_workload = settings.one("trace").or(settings.one("generate")).is_some();
        if !has_workload {
            settings.set("generate", "", NO_WORKLOAD)?;
        }
        // Prices are what is looked for; those of the catalogue serve for the first dry run.
        settings.set("cost", "--cost ", "spec")?;
        let engine = EngineSetup::new(matches)?;
        let (quick, quiet) = (matches.get_flag("quick"), matches.get_flag("quiet"));
        Plan::of(&settings, engine, has_workload, quick, quiet)
    }

    fn of(
        settings: &Settings,
        engine: EngineSetup,
        has_workload: bool,
        quick: bool,
        quiet: bool,
    ) -> Result<Self, Trouble> {
        let experiment = Experiment::on_engine(settings, &engine)?;
        let first = &experiment.settings[0];
        if let Some(other) = experiment
            .settings
            .iter()
            .find(|other| (other.limits(), other.kv()) != (first.limits(), first.kv()))
        {
            return Err(usage(format!(
                "a calibration is for one set of limits and one type of cache; these settings have {} and {}",
                limits_in_words(first),
                limits_in_words(other)
            )));
        }
        // The classes are the same for all policies; blocks make some of them a little longer.
        let largest = experiment.settings.iter().map(|setting| setting.geometry());
        let cells =
            |geometry: &Geometry| geometry.classes.iter().map(|class| u64::from(class.cells)).sum::<u64>();
        let geometry = largest.max_by_key(cells).expect("there is a setting");
        Ok(Plan { seed: experiment.seeds[0], experiment, engine, geometry, has_workload, quick, quiet })
    }

    /// The sweep, every fifth step of it held out, and steps of the workload, every second held out.
    fn steps(&self) -> Result<Vec<Planned>, Trouble> {
        let mut drawn: Vec<Vec<StepShape>> = Vec::new();
        if self.has_workload {
            let most = if self.quick { DRAWN_QUICK } else { DRAWN };
            for setting in 0..self.experiment.settings.len() {
                let cost = self.experiment.cost(setting);
                drawn.push(self.dry_run(setting, cost, most)?.into_steps());
            }
        }
        let limits = self.experiment.settings[0].limits();
        let sweep = design::designed(&self.geometry, &limits, shortest_runs(&drawn), self.quick).into_iter();
        let mut planned: Vec<Planned> =
            sweep.enumerate().map(|(at, step)| Planned { step, held_out: at % 5 == 3 }).collect();
        for (at, step) in drawn.into_iter().flat_map(|steps| steps.into_iter().enumerate()) {
            if planned.iter().all(|known| known.step != step) {
                planned.push(Planned { step, held_out: at % 2 == 1 });
            }
        }
        Ok(planned)
    }

    fn dry_run<'a>(
        &self,
        setting: usize,
        cost: &'a dyn CostModel,
        most: usize,
    ) -> Result<Recorder<'a>, Trouble> {
        let mut recorder = Recorder::new(cost, self.geometry.clone(), most, self.seed);
        self.experiment.drive(setting, self.seed, &mut recorder)?;
        Ok(recorder)
    }

    /// Fits with all steps alike, looks where the workload then spends its time, and fits again.
    fn fit(&self, mut measured: Vec<Measured>, device: String) -> Result<Calibration, Trouble> {
        let layout = Layout::new(&self.engine.model, self.geometry.batch_max);
        if self.has_workload {
            let options = FitOptions { draws: 0, folds: 0, seed: self.seed };
            let first = fit(&measured, &layout, &options).map_err(anyhow::Error::from)?.linear;
            let mut operating = Operating::default();
            for setting in 0..self.experiment.settings.len() {
                operating.merge(self.dry_run(setting, &first, 0)?.operating);
            }
            // Steps that are fitted stand for the whole workload, and so do those that are held out.
            for held_out in [false, true] {
                let mut chosen: Vec<&mut Measured> =
                    measured.iter_mut().filter(|step| step.held_out == held_out).collect();
                let weights = operating.weights(chosen.iter().map(|step| &step.work));
                chosen.iter_mut().zip(weights).for_each(|(step, weight)| step.weight = weight);
            }
        }
        let options = FitOptions { seed: self.seed, ..FitOptions::default() };
        let fit = fit(&measured, &layout, &options).map_err(anyhow::Error::from)?;
        let made = Made {
            model: self.engine.model.clone(),
            weights: self.engine.weight_type,
            kv: self.experiment.settings[0].kv(),
            gpu: "cpu".to_owned(),
            device,
            threads: self.engine.threads as u32,
            seed: self.seed,
        };
        Ok(Calibration::new(made, &measured, &fit))
    }
}

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

/// `kvlab calibrate`.
pub fn calibrate(matches: &ArgMatches) -> Result<(), Trouble> {
    let plan = Plan::new(matches)?;
    let out = PathBuf::from(matches.get_one::<String>("out").expect("the file has a default"));
    if out.is_dir() {
        return Err(usage(format!("--out {}: is a folder; expected a file", out.display())));
    }
    let planned = plan.steps()?;
    let (measured, found, device) = plan.measure(&planned)?;
    let calibration = plan.fit(measured, device)?;
    report::files::write_text(&out, &calibration.to_toml().map_err(anyhow::Error::from)?)?;
    let words = |planned: &Planned| design::words(&planned.step, &plan.geometry);
    let words: Vec<String> = planned.iter().map(words).collect();
    let text = tables::text(&calibration, &words, format_of(matches))?;
    stdout().write_all(text.as_bytes())?;
    if !plan.quiet {
        writeln!(stderr(), "{}", tables::summary(&calibration, &found))?;
        writeln!(stderr(), "calibration: {}", out.display())?;
    }
    Ok(())
}

/// A calibration by fewer steps, for settings with a workload.
pub fn quick(settings: &Settings, engine: &EngineSetup, quiet: bool) -> Result<Calibration, Trouble> {
    let mut settings = settings.clone();
    settings.set("cost", "--cost ", "spec")?;
    let mut plan = Plan::of(&settings, engine.clone(), true, true, quiet)?;
    // Steps are drawn from another draw of the workload than the one that is validated, where there is one.
    if settings.one("generate").is_some() {
        plan.seed = plan.seed.wrapping_add(OTHER_SEED);
    }
    let (measured, _, device) = plan.measure(&plan.steps()?)?;
    plan.fit(measured, device)
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
        let limits = self.experiment.settings[0].limits();
        let sweep = design::designed(&self.geometry, &limits, self.quick).into_iter();
        let mut planned: Vec<Planned> =
            sweep.enumerate().map(|(at, step)| Planned { step, held_out: at % 5 == 3 }).collect();
        if self.has_workload {
            let most = if self.quick { DRAWN_QUICK } else { DRAWN };
            for setting in 0..self.experiment.settings.len() {
                let cost = self.experiment.cost(setting);
                let recorder = self.dry_run(setting, cost, most)?;
                for (at, step) in recorder.into_steps().into_iter().enumerate() {
                    if planned.iter().all(|known| known.step != step) {
                        planned.push(Planned { step, held_out: at % 2 == 1 });
                    }
                }
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

    /// Times every step; the device in words.
    fn measure(&self, planned: &[Planned]) -> Result<(Vec<Measured>, Measurements, String), Trouble> {
        let kv = self.experiment.settings[0].kv();
        let mut backend = self.engine.backend(&self.geometry, kv).map_err(usage)?;
        let device = self.engine.device(&*backend);
        let steps: Vec<StepShape> = planned.iter().map(|planned| planned.step.clone()).collect();
        let rounds = if self.quick { ROUNDS_QUICK } else { ROUNDS };
        let bar = ProgressBar::new(u64::from(rounds) * steps.len() as u64);
        if self.quiet || !stderr().is_terminal() {
            bar.set_draw_target(ProgressDrawTarget::hidden());
        }
        if let Ok(style) = ProgressStyle::with_template("{bar:40} {pos}/{len} visits, {eta} left") {
            bar.set_style(style);
        }
        let options = Options { rounds, seed: self.seed, clock: self.engine.clock };
        let found = measure(&mut *backend, &self.geometry, &steps, options, &mut |done, _| {
            bar.set_position(done as u64);
        })?;
        bar.finish_and_clear();
        let measured = planned.iter().zip(&found.rounds_ns).map(|(planned, rounds_ns)| Measured {
            work: design::work_of(&planned.step, &self.geometry),
            rounds_ns: rounds_ns.clone(),
            weight: 1.0,
            held_out: planned.held_out,
        });
        Ok((measured.collect(), found, device))
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

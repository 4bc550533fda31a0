//! Choices, simulated: each simulation once, on all threads, with the same result on any number of them.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use rayon::prelude::*;
use serde::Serialize;
use traces::Request;

use super::objective::{Objective, Run, Score};
use super::server::{Axis, Choice, Server};
use crate::compare::progress_bar;
use crate::experiment::{Experiment, Library, Machine, Shortage, Simulated};
use crate::scale::Scale;
use crate::settings::Settings;
use crate::trouble::{Trouble, usage};

/// Share of the requests that the rungs of the halving see: an eighth, a quarter, half, all.
const RUNGS: [u64; 4] = [8, 4, 2, 1];
/// Requests that a rung sees at least, if the trace has them.
const RUNG_REQUESTS_MIN: u64 = 32;
/// Choices that are ranked, and that no rung goes below.
pub const TOP: usize = 5;
/// Load that is tried at most, as a multiple of the trace's.
const LOAD_MAX: f64 = 8.0;
/// How closely the multiple is found.
const LOAD_STEP: f64 = 0.05;

/// What the candidates are simulated with.
pub struct Lab<'a> {
    pub server: Server,
    pub machine: Machine,
    pub axes: &'a [Axis],
    /// Everything that no candidate changes.
    pub base: Settings,
    pub objective: Objective,
    /// Seeds of the workload.
    pub seeds: Vec<u64>,
    /// Requests of the trace with the first seed.
    pub requests: u64,
    pub quiet: bool,
    library: Arc<Library>,
    runs: BTreeMap<String, Run>,
}

/// What fell to the memory filter, by what was short.
#[derive(Clone, Debug, Serialize)]
pub struct Fallen {
    /// The candidate that lacks least.
    pub nearest: Shortage,
    /// How many fell for the same device and part.
    pub candidates: usize,
}

/// What a rung did.
#[derive(Clone, Debug, Serialize)]
pub struct Rung {
    /// Leading requests of the trace.
    pub requests: u64,
    /// Seeds of the trace.
    pub seeds: usize,
    /// Candidates simulated.
    pub candidates: usize,
}

/// A choice with its score over the whole trace.
pub struct Judged<'a> {
    pub choice: Choice<'a>,
    pub score: Score,
}

/// What is short for a choice, or else the key of its first simulation.
type Looked = (Option<Shortage>, Option<String>);

impl<'a> Lab<'a> {
    /// A laboratory in which nothing has been simulated yet.
    pub fn new(
        server: Server,
        machine: Machine,
        axes: &'a [Axis],
        base: Settings,
        objective: Objective,
        quiet: bool,
    ) -> Self {
        let (library, runs) = (Arc::default(), BTreeMap::new());
        Lab { server, machine, axes, base, objective, seeds: Vec::new(), requests: 0, quiet, library, runs }
    }

    /// Simulations so far.
    pub fn simulations(&self) -> usize {
        self.runs.len()
    }

    /// Looks at the trace through an experiment that can run.
    fn look(&mut self, experiment: &Experiment) -> Result<(), Trouble> {
        self.seeds = experiment.cases().into_iter().map(|(_, seed)| seed).collect();
        self.requests = experiment.requests(0, self.seeds[0])?.len() as u64;
        Ok(())
    }

    fn settings(&self, choice: &Choice) -> Result<Settings, Trouble> {
        self.server.settings(&self.base, choice, &self.machine)
    }

    /// Why a choice has no room; none if it has.
    pub fn shortage(&self, choice: &Choice) -> Result<Option<Shortage>, Trouble> {
        match Experiment::with_library(&self.settings(choice)?, &self.library) {
            Ok(experiment) => Ok(experiment.settings[0].shortage()),
            Err(Trouble::NoRoom(shortage, _)) => Ok(Some(shortage)),
            Err(trouble) => Err(trouble),
        }
    }

    /// The candidates that fit, each kind of simulation once (of equal ones that with the fewest changes),
    /// and what fell. The third is how many were equal to another.
    pub fn filter(&mut self, all: Vec<Choice<'a>>) -> Result<(Vec<Choice<'a>>, Vec<Fallen>, usize), Trouble> {
        let looked: Vec<Result<Looked, Trouble>> = all
            .par_iter()
            .map(|choice| match Experiment::with_library(&self.settings(choice)?, &self.library) {
                Ok(experiment) => match experiment.settings[0].shortage() {
                    Some(shortage) => Ok((Some(shortage), None)),
                    None => {
                        let seed = experiment.cases()[0].1;
                        Ok((None, Some(experiment.key(0, seed))))
                    }
                },
                Err(Trouble::NoRoom(shortage, _)) => Ok((Some(shortage), None)),
                Err(trouble) => Err(trouble),
            })
            .collect();
        let mut fallen: Vec<Fallen> = Vec::new();
        let mut kept: BTreeMap<String, Choice> = BTreeMap::new();
        let mut order: Vec<String> = Vec::new();
        let mut equal = 0;
        for (choice, looked) in all.into_iter().zip(looked) {
            let (shortage, key) = looked?;
            if let Some(shortage) = shortage {
                let lacks = |shortage: &Shortage| shortage.needed_gib - shortage.there_gib;
                let same = |fallen: &&mut Fallen| {
                    fallen.nearest.device == shortage.device && fallen.nearest.part == shortage.part
                };
                match fallen.iter_mut().find(same) {
                    Some(fallen) => {
                        fallen.candidates += 1;
                        if lacks(&shortage) < lacks(&fallen.nearest) {
                            fallen.nearest = shortage;
                        }
                    }
                    None => fallen.push(Fallen { nearest: shortage, candidates: 1 }),
                }
            }
            let Some(key) = key else { continue };
            match kept.get_mut(&key) {
                Some(known) => {
                    equal += 1;
                    if choice.changes().len() < known.changes().len() {
                        *known = choice;
                    }
                }
                None => {
                    order.push(key.clone());
                    kept.insert(key, choice);
                }
            }
        }
        let fit: Vec<Choice> = order.iter().filter_map(|key| kept.remove(key)).collect();
        if let Some(first) = fit.first() {
            let experiment = Experiment::with_library(&self.settings(first)?, &self.library)?;
            self.look(&experiment)?;
        }
        Ok((fit, fallen, equal))
    }

    /// Scores of choices with some seeds under settings that are changed for all of them; what was simulated before is not
    /// simulated again.
    fn evaluate(
        &mut self,
        choices: &[Choice<'a>],
        change: impl Fn(&mut Settings) -> Result<(), Trouble> + Sync,
        seeds: &[u64],
    ) -> Result<Vec<Score>, Trouble> {
        let cases: Vec<(usize, u64)> =
            (0..choices.len()).flat_map(|at| seeds.iter().map(move |&seed| (at, seed))).collect();
        let made: Vec<Result<(String, Experiment, u64), Trouble>> = cases
            .par_iter()
            .map(|&(at, seed)| {
                let mut settings = self.settings(&choices[at])?.at_seed(seed);
                change(&mut settings)?;
                let experiment = Experiment::with_library(&settings, &self.library)?;
                let seed = experiment.cases()[0].1;
                Ok((experiment.key(0, seed), experiment, seed))
            })
            .collect();
        let made = made.into_iter().collect::<Result<Vec<_>, Trouble>>()?;
        let mut fresh: BTreeMap<&str, (&Experiment, u64)> = BTreeMap::new();
        for (key, experiment, seed) in &made {
            if !self.runs.contains_key(key) {
                fresh.insert(key, (experiment, *seed));
            }
        }
        let bar = progress_bar(fresh.len(), "simulations", self.quiet);
        let fresh: Vec<(&str, (&Experiment, u64))> = fresh.into_iter().collect();
        let done: Vec<Result<(String, Run), Trouble>> = fresh
            .par_iter()
            .map(|(key, (experiment, seed))| {
                let Simulated { summary, totals, .. } = experiment.simulate(0, *seed, false)?;
                bar.inc(1);
                Ok(((*key).to_owned(), Run::new(summary, &totals, &self.objective)))
            })
            .collect();
        bar.finish_and_clear();
        for run in done {
            let (key, run) = run?;
            self.runs.insert(key, run);
        }
        let scores = made.chunks(seeds.len()).map(|cases| {
            let runs: Vec<&Run> = cases.iter().filter_map(|(key, ..)| self.runs.get(key)).collect();
            Score::new(&runs, &self.objective)
        });
        Ok(scores.collect())
    }

    /// Scores of choices over the whole trace and all seeds.
    pub fn judge(&mut self, choices: Vec<Choice<'a>>) -> Result<Vec<Judged<'a>>, Trouble> {
        let seeds = self.seeds.clone();
        let scores = self.evaluate(&choices, |_| Ok(()), &seeds)?;
        Ok(choices.into_iter().zip(scores).map(|(choice, score)| Judged { choice, score }).collect())
    }

    /// Successive halving: the better half of each type of K and V goes on to twice the requests.
    pub fn halve(&mut self, mut alive: Vec<Choice<'a>>) -> Result<(Vec<Judged<'a>>, Vec<Rung>), Trouble> {
        let mut rungs = Vec::new();
        for share in RUNGS {
            let requests = self.requests.div_ceil(share);
            let is_last = share == 1;
            if !is_last && (requests < RUNG_REQUESTS_MIN || alive.len() <= TOP) {
                continue;
            }
            let count = self.seeds.len().div_ceil(share as usize);
            let seeds = self.seeds[..count].to_vec();
            let candidates = alive.len();
            rungs.push(Rung { requests, seeds: count, candidates });
            if is_last {
                break;
            }
            let limit = requests.to_string();
            let scores =
                self.evaluate(&alive, |settings| settings.set("limit", "--limit ", &limit), &seeds)?;
            let mut judged: Vec<Judged> =
                alive.drain(..).zip(scores).map(|(choice, score)| Judged { choice, score }).collect();
            rank(&mut judged);
            let mut strata: BTreeMap<&str, Vec<Choice>> = BTreeMap::new();
            for Judged { choice, .. } in judged {
                strata.entry(choice.text("kv_cache_type")).or_default().push(choice);
            }
            for (_, stratum) in strata {
                let keep = stratum.len().div_ceil(2).max(TOP.min(stratum.len()));
                alive.extend(stratum.into_iter().take(keep));
            }
        }
        let mut judged = self.judge(alive)?;
        rank(&mut judged);
        Ok((judged, rungs))
    }

    /// The multiple of the load up to which a choice keeps the objective: found by doubling and then
    /// halving the step, so that what lies between is believed to be kept. The second is whether the
    /// search ended at the largest multiple without a miss.
    pub fn safe_load(&mut self, choice: &Choice<'a>) -> Result<(f64, bool), Trouble> {
        let folder = tempfile::tempdir()?;
        let (mut safe, mut step, mut broken) = (1.0_f64, 1.0_f64, None::<f64>);
        while broken.is_none_or(|broken| broken - safe > LOAD_STEP * safe) {
            let load = match broken {
                None if safe >= LOAD_MAX => return Ok((safe, true)),
                None => (safe + step).min(LOAD_MAX),
                Some(broken) => (safe + broken) / 2.0,
            };
            if self.keeps_at(choice, load, folder.path())? {
                safe = load;
                step = load;
            } else {
                broken = Some(load);
            }
        }
        Ok((safe, false))
    }

    /// Whether a choice keeps the objective with arrivals and waits divided by `load`.
    fn keeps_at(&mut self, choice: &Choice<'a>, load: f64, folder: &Path) -> Result<bool, Trouble> {
        let scale = Scale { tokens: std::num::NonZeroU32::MIN, time: load };
        let settings = self.settings(choice)?;
        let mut scores = Vec::new();
        for seed in self.seeds.clone() {
            let path = folder.join(format!("load-{load}-{seed}.csv"));
            let experiment = Experiment::with_library(&settings.at_seed(seed), &self.library)?;
            let scaled = experiment.requests(0, seed)?.into_iter().map(|request| scale.apply(request));
            let scaled = scaled.collect::<Result<Vec<Request>, String>>().map_err(usage)?;
            traces::write_csv_file(scaled.into_iter().map(Ok), &path).map_err(usage)?;
            let trace = path.display().to_string();
            let change = |settings: &mut Settings| as_recorded(settings, &trace);
            scores.extend(self.evaluate(std::slice::from_ref(choice), change, &[seed])?);
            if !scores.iter().all(Score::qualifies) {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// Another trace, as it is.
fn as_recorded(settings: &mut Settings, trace: &str) -> Result<(), Trouble> {
    settings.forget(&["limit", "session_rate"]);
    for (key, value) in [("trace", trace), ("time_scale", "1"), ("trace_format", "auto")] {
        settings.set(key, "--trace ", value)?;
    }
    Ok(())
}

/// The best first; of equal ones that with fewer changes, then the earlier in the grid.
pub fn rank(judged: &mut [Judged]) {
    judged.sort_by(|a, b| {
        let changes = |judged: &Judged| judged.choice.changes().len();
        let order = a.score.compare(&b.score).then(changes(a).cmp(&changes(b)));
        order.then_with(|| a.choice.at.cmp(&b.choice.at))
    });
}

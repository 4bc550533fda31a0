//! From settings to cases, and one case from its trace to its numbers.

mod device;
mod library;
mod outputs;
mod resolve;
mod room;
mod setting;
mod summary;
mod workload;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use policies::scheduler::{ContinuousKnobs, RunnerKnobs};
use policies::{block_size, check_spec};
use report::{CellMap, Summary, TimelineRow};
use sim::cost::CostModel;
use sim::cost::fit::Fitted;
use sim::cost::linear::Calibration;
use sim::cost::profile::Profile;
use sim::sample::Sampler;
use sim::{Executor, Observer, Totals, replay};
use traces::{Request, Slo, TraceError};

use crate::engine_setup::EngineSetup;
use crate::settings::Settings;
use crate::trouble::{Trouble, usage};
use device::{Deployment, Seat};
pub use device::{Machine, machine};
pub use library::Library;
pub use outputs::join_requests;
use outputs::{LogSink, RequestSink, Watch, maps, spaced, spread, timeline};
use resolve::{common, families, limits, seeds, workloads};
pub use room::Shortage;
use workload::{Origin, SEED, file_name};
pub use workload::{Workloads, at_seed};

/// Samples of the timeline, and columns of the cell map.
const SAMPLES_MAX: usize = 240;
/// Address ranges of the cell map.
const MAP_ROWS: u32 = 192;
/// Address ranges and moments of the small map that a sweep keeps of a case.
const SMALL_MAP_SIDE: u32 = 96;
/// How fast weights are read from disk after a crash, bytes per second: one NVMe drive.
const LOAD_BYTES_PER_S: f64 = 2e9;

/// Which prices.
#[derive(Clone, Debug)]
enum Prices {
    Spec,
    Fitted(Box<Fitted>),
    Linear(Box<Calibration>),
    Profile(Box<Profile>),
}

/// What a policy is told, and what its plans say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Telling {
    /// As the settings say.
    AsSet,
    /// Every token as it is placed.
    Everything,
    /// The same, and plans say where every token is written: what an engine needs.
    Writes,
}

/// Everything that is fixed for a case but its seed.
#[derive(Clone, Debug)]
pub struct Setting {
    /// Row of the scenario; empty if it has none.
    row: String,
    workload: usize,
    seat: Seat,
    policy: String,
    scheduler: Family,
    /// What is the same for every case.
    common: Common,
}

#[derive(Clone, Copy, Debug)]
enum Family {
    Continuous(ContinuousKnobs),
    Runner(RunnerKnobs),
}

impl Family {
    fn name(self) -> &'static str {
        match self {
            Family::Continuous(_) => "continuous",
            Family::Runner(_) => "runner",
        }
    }
}

#[derive(Clone, Debug)]
struct Common {
    prices: Prices,
    slo: Slo,
    until_ns: Option<u64>,
    reload_ns: Option<u64>,
    host_bytes: Option<u64>,
    freeze_ns: u64,
    image_leak: bool,
    audit: bool,
}

/// The experiment, resolved and checked.
pub struct Experiment {
    /// The workloads.
    pub workloads: Vec<Workloads>,
    /// Settings in the order of the results.
    pub settings: Vec<Setting>,
    /// Seeds to report.
    pub seeds: Vec<u64>,
    /// The settings as a scenario.
    pub toml: String,
    /// What steps cost, per deployment.
    costs: Vec<Box<dyn CostModel>>,
}

/// What a case leaves behind.
pub struct CaseResult {
    /// Its row.
    pub summary: Summary,
    /// Its usage over time.
    pub timeline: Vec<TimelineRow>,
    /// Maps of its cells, one per class; only where asked for.
    pub maps: Vec<CellMap>,
    /// Evenly spaced quantiles of TTFT and TPOT, ms.
    pub ttft_ms: Vec<f64>,
    /// See `ttft_ms`.
    pub tpot_ms: Vec<f64>,
}

/// What a case of a sweep leaves behind.
pub struct Simulated {
    /// Its row.
    pub summary: Summary,
    /// Everything that was added up.
    pub totals: Totals,
    /// Small maps of its cells, one per class, where they were asked for.
    pub maps: Option<Vec<CellMap>>,
    /// How long it took, the trace already read.
    pub took: Duration,
}

impl Experiment {
    /// Resolves settings; everything that can be known to be wrong before a run is found here.
    pub fn new(settings: &Settings) -> Result<Self, Trouble> {
        Self::resolve(settings, None, None)
    }

    /// The same with traces that other experiments of this process read, too.
    pub fn with_library(settings: &Settings, library: &Arc<Library>) -> Result<Self, Trouble> {
        Self::resolve(settings, None, Some(library))
    }

    /// The same for the engine's own model and machine, whatever the settings `model` and `gpu` say.
    pub fn on_engine(settings: &Settings, engine: &EngineSetup) -> Result<Self, Trouble> {
        Self::resolve(settings, Some(engine), None)
    }

    fn resolve(
        settings: &Settings,
        engine: Option<&EngineSetup>,
        library: Option<&Arc<Library>>,
    ) -> Result<Self, Trouble> {
        let workloads = workloads(settings, library)?;
        // A cost model that does not fit the model or the device is found before anything runs.
        let mut costs = Vec::new();
        let rows = settings.by_row()?;
        let rows = rows.iter().map(|row| settings_of_row(row, engine, &mut costs));
        let rows: Vec<Setting> = rows.collect::<Result<Vec<_>, _>>()?.concat();
        let of_workload = |workload| rows.iter().map(move |row| Setting { workload, ..row.clone() });
        let all = (0..workloads.len()).flat_map(of_workload).collect();
        let seeds = seeds(settings, workloads.iter().any(|workload| workload.seeded))?;
        Ok(Experiment { workloads, settings: all, seeds, toml: settings.to_toml(), costs })
    }

    /// Number of runs, and for each the setting and the seed. A seed that changes nothing is run once.
    pub fn cases(&self) -> Vec<(usize, u64)> {
        let mut cases = Vec::new();
        for (index, setting) in self.settings.iter().enumerate() {
            let seeds =
                if self.workloads[setting.workload].seeded { &self.seeds[..] } else { &self.seeds[..1] };
            cases.extend(seeds.iter().map(|&seed| (index, seed)));
        }
        cases
    }

    /// Whether the results of a case stand for all seeds.
    pub fn stands_for_all_seeds(&self, setting: usize) -> bool {
        !self.workloads[self.settings[setting].workload].seeded
    }

    /// Runs a case. Rows of `requests.csv` go to `requests`, without a header; what the server being
    /// simulated would have written to its log goes to `log`.
    pub fn run(
        &self,
        setting: usize,
        seed: u64,
        map: bool,
        requests: Option<&Path>,
        log: Option<&Path>,
    ) -> Result<CaseResult, Trouble> {
        let setting = &self.settings[setting];
        let workload = &self.workloads[setting.workload];
        let cost = &*self.costs[setting.seat.cost];
        let mut watch = Watch {
            sampler: Sampler::new(SAMPLES_MAX, if map { MAP_ROWS } else { 0 }),
            sink: requests.map(|path| RequestSink::create(path, setting, seed)).transpose()?,
            log: log.map(|path| LogSink::create(path, setting)).transpose()?,
        };
        let requests = workload.requests(seed).map_err(usage)?;
        let setup = setting.replay(workload, seed, log.is_some(), Telling::AsSet)?;
        let totals = replay(setup, cost, requests, &mut watch).map_err(ended_early)?;
        let samples = watch.sampler.into_samples();
        watch.sink.map_or(Ok(()), RequestSink::finish)?;
        watch.log.map_or(Ok(()), LogSink::finish)?;
        let (high_water_mean, sequence_runs_mean) = spread(setting, &samples);
        let summary = self.summary(setting, seed, cost.name(), &totals);
        Ok(CaseResult {
            summary: Summary { high_water_mean, sequence_runs_mean, ..summary },
            timeline: timeline(setting, seed, &samples),
            maps: if map { maps(setting, &samples, MAP_ROWS) } else { Vec::new() },
            ttft_ms: spaced(&totals.ttft),
            tpot_ms: spaced(&totals.tpot),
        })
    }

    /// Runs a case over any executor, and shows it to nobody.
    pub fn drive(&self, setting: usize, seed: u64, executor: &mut dyn Executor) -> Result<Totals, Trouble> {
        self.drive_for(setting, seed, Telling::AsSet, executor, &mut sim::Nobody)
    }

    /// Runs a case over any executor.
    pub fn drive_for(
        &self,
        setting: usize,
        seed: u64,
        telling: Telling,
        executor: &mut dyn Executor,
        observer: &mut dyn Observer,
    ) -> Result<Totals, Trouble> {
        let setting = &self.settings[setting];
        let workload = &self.workloads[setting.workload];
        let requests = workload.requests(seed).map_err(usage)?;
        let setup = setting.replay(workload, seed, false, telling)?;
        sim::drive(setup, executor, requests, observer).map_err(ended_early)
    }

    /// Runs a case for its numbers alone, and for a small map of its cells where `map` says so.
    pub fn simulate(&self, setting: usize, seed: u64, map: bool) -> Result<Simulated, Trouble> {
        let setting = &self.settings[setting];
        let workload = &self.workloads[setting.workload];
        let cost = &*self.costs[setting.seat.cost];
        let requests = workload.requests(seed).map_err(usage)?;
        let start = Instant::now();
        let setup = setting.replay(workload, seed, false, Telling::AsSet)?;
        let (totals, maps) = if map {
            let mut sampler = Sampler::new(SMALL_MAP_SIDE as usize, SMALL_MAP_SIDE);
            let totals = replay(setup, cost, requests, &mut sampler).map_err(ended_early)?;
            (totals, Some(maps(setting, &sampler.into_samples(), SMALL_MAP_SIDE)))
        } else {
            (replay(setup, cost, requests, &mut sim::Nobody).map_err(ended_early)?, None)
        };
        let took = start.elapsed();
        Ok(Simulated { summary: self.summary(setting, seed, cost.name(), &totals), totals, maps, took })
    }

    /// Names a case by everything that its results follow from: equal keys, equal results.
    pub fn key(&self, setting: usize, seed: u64) -> String {
        let setting = &self.settings[setting];
        setting.key(&self.workloads[setting.workload], seed)
    }

    /// All requests of a case.
    pub fn requests(&self, setting: usize, seed: u64) -> Result<Vec<Request>, Trouble> {
        let workload = &self.workloads[self.settings[setting].workload];
        workload.requests(seed).map_err(usage)?.collect::<Result<_, _>>().map_err(usage)
    }

    /// Name of a case's workload.
    pub fn workload_name(&self, setting: usize) -> &str {
        &self.workloads[self.settings[setting].workload].name
    }

    /// What a step of a case costs.
    pub fn cost(&self, setting: usize) -> &dyn CostModel {
        &*self.costs[self.settings[setting].seat.cost]
    }

    /// The row of a case under another seed that gives the same results.
    pub fn with_seed(&self, mut summary: Summary, setting: usize, seed: u64) -> Summary {
        summary.seed = seed;
        summary.spec_key = self.key(setting, seed);
        summary
    }

    /// The policies that are bounds: they can hold what no device holds, or know what nobody knows.
    pub fn bounds(&self) -> Vec<String> {
        bounds(self.settings.iter().map(|setting| setting.policy.as_str()))
    }

    /// Name of what is compared first: a row, or else a policy.
    pub fn first_name(&self) -> &str {
        self.settings.first().map_or("", Setting::label)
    }

    /// Whether a row or a policy of this name is run.
    pub fn has_name(&self, name: &str) -> bool {
        self.settings.iter().any(|setting| setting.row == name || setting.policy == name)
    }

    /// The traces that are read.
    pub fn inputs(&self) -> Vec<PathBuf> {
        let paths = self.workloads.iter().filter_map(|workload| match &workload.origin {
            Origin::File { path, .. } => Some(path),
            Origin::Generated { .. } => None,
        });
        paths.flat_map(|path| self.seeds.iter().map(|&seed| at_seed(path, seed))).collect()
    }
}

/// Those of some policies that can hold what no device holds, or know what nobody knows; each once.
pub fn bounds<'a>(policies: impl Iterator<Item = &'a str>) -> Vec<String> {
    let is_bound = |spec: &&str| {
        spec.starts_with("unlimited")
            || spec.starts_with("clairvoyant")
            || spec.starts_with("contiguous:exact")
            || spec.contains("belady")
    };
    let mut bounds: Vec<String> = Vec::new();
    for name in policies.filter(is_bound) {
        if !bounds.iter().any(|bound| bound == name) {
            bounds.push(name.to_owned());
        }
    }
    bounds
}

/// Why a run has no results.
fn ended_early(error: sim::ReplayError<TraceError>) -> Trouble {
    match error {
        sim::ReplayError::Trace(error) => usage(error),
        error => Trouble::from(anyhow::Error::msg(error.to_string())),
    }
}

/// What a row makes of the first workload; its cost models go to the end of `costs`.
fn settings_of_row(
    settings: &Settings,
    engine: Option<&EngineSetup>,
    costs: &mut Vec<Box<dyn CostModel>>,
) -> Result<Vec<Setting>, Trouble> {
    let policies = settings.all("policies");
    for (index, policy) in policies.iter().enumerate() {
        if policies[..index].iter().any(|earlier| earlier.text == policy.text) {
            return Err(policy.wrong(format!("{} stands twice", policy.text)));
        }
        check_spec(&policy.text).map_err(|error| policy.wrong_at(error.at, error.message))?;
    }
    let common = common(settings)?;
    let families = families(settings)?;
    let mut all = Vec::new();
    for deployment in Deployment::all(settings, engine)? {
        let shared = deployment.cost(settings, &common.prices)?.map(|cost| {
            costs.push(cost);
            costs.len() - 1
        });
        for &scheduler in &families {
            for limits in limits(settings, scheduler)? {
                for policy in &policies {
                    let block = block_size(&policy.text).map_err(usage)?;
                    all.push(Setting {
                        row: settings.row().to_owned(),
                        workload: 0,
                        seat: deployment.seat(settings, scheduler, limits, block, shared, costs)?,
                        policy: policy.text.clone(),
                        scheduler,
                        common: common.clone(),
                    });
                }
            }
        }
    }
    Ok(all)
}

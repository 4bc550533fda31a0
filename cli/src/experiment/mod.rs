//! From settings to cases, and one case from its trace to its numbers.

mod device;
mod library;
mod outputs;
mod resolve;
mod room;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use policies::scheduler::{
    Continuous, ContinuousKnobs, Down, HostMemory, Limits, Runner, RunnerKnobs, Scheduler,
};
use policies::{Geometry, LayerClass, Reach, block_size, check_spec, make_policy};
use report::{CellMap, Summary, TimelineRow};
use sim::cost::CostModel;
use sim::cost::fit::Fitted;
use sim::cost::linear::Calibration;
use sim::cost::profile::Profile;
use sim::model::KvType;
use sim::sample::Sampler;
use sim::{Executor, Observer, Replay, Totals, replay};
use traces::{GenerateOptions, Quantiles, ReadOptions, Request, Slo, TraceError, Workload};

use crate::engine_setup::EngineSetup;
use crate::settings::Settings;
use crate::trouble::{Trouble, usage};
use device::{Deployment, Seat};
pub use device::{Machine, machine};
pub use library::Library;
use library::Requests;
pub use outputs::join_requests;
use outputs::{LogSink, RequestSink, Watch, maps, spaced, timeline};
use resolve::{common, families, limits, seeds, workloads};
pub use room::Shortage;

/// Samples of the timeline, and columns of the cell map.
const SAMPLES_MAX: usize = 240;
/// Address ranges of the cell map.
const MAP_ROWS: u32 = 192;
/// How fast weights are read from disk after a crash, bytes per second: one NVMe drive.
const LOAD_BYTES_PER_S: f64 = 2e9;

/// Where requests come from.
#[derive(Clone, Debug)]
enum Origin {
    File { path: PathBuf, options: ReadOptions },
    Generated { workload: Workload, options: GenerateOptions },
}

impl Origin {
    /// What decides how the content is read; the place of a file does not matter.
    fn options(&self) -> String {
        match self {
            Origin::File { options, .. } => format!("{options:?}"),
            Origin::Generated { workload, options } => format!("{workload:?} {options:?}"),
        }
    }
}

/// A workload of the experiment.
#[derive(Clone, Debug)]
pub struct Workloads {
    /// Name in the results.
    pub name: String,
    origin: Origin,
    /// Whether the seed changes anything.
    pub seeded: bool,
    /// Hash of the content, hexadecimal.
    digest: String,
    /// Where its requests are kept for the next run, if anywhere.
    library: Option<Arc<Library>>,
}

impl Workloads {
    /// A trace file; with `{seed}` in its name, one file per seed.
    fn file(
        name: &str,
        path: PathBuf,
        options: ReadOptions,
        seeds: &[u64],
        library: Option<&Arc<Library>>,
    ) -> Result<Self, Trouble> {
        let by_seed = name.contains(SEED);
        let paths: Vec<PathBuf> = if by_seed {
            seeds.iter().map(|&seed| at_seed(&path, seed)).collect()
        } else {
            vec![path.clone()]
        };
        let look = || -> Result<(String, bool), Trouble> {
            let mut hasher = blake3::Hasher::new();
            let mut seeded = by_seed;
            for path in &paths {
                seeded |= traces::open(path, &options).map_err(usage)?.uses_seed();
                let file = File::open(path).map_err(|error| usage(format!("{}: {error}", path.display())))?;
                hasher.update_reader(file)?;
            }
            Ok((hasher.finalize().to_hex()[..16].to_owned(), seeded))
        };
        let (digest, seeded) = match library {
            Some(library) => library.facts(&format!("{paths:?} {options:?}"), look)?,
            None => look()?,
        };
        let (name, library) = (file_name(name), library.cloned());
        Ok(Workloads { name, origin: Origin::File { path, options }, seeded, digest, library })
    }

    /// The requests, for a seed.
    fn requests(&self, seed: u64) -> Result<Requests, TraceError> {
        let Some(library) = &self.library else { return self.open(seed) };
        let seed = if self.seeded { seed } else { 0 };
        let name = format!("{:?} {seed}", (&self.digest, &self.origin));
        library.requests(name, || self.open(seed))
    }

    fn open(&self, seed: u64) -> Result<Requests, TraceError> {
        Ok(match &self.origin {
            Origin::File { path, options } => {
                let path = at_seed(path, seed);
                Box::new(traces::open(&path, &ReadOptions { seed, ..options.clone() })?)
            }
            Origin::Generated { workload, options } => {
                Box::new(traces::generate(*workload, &GenerateOptions { seed, ..*options })?.map(Ok))
            }
        })
    }
}

/// Stands for the seed in the name of a trace.
const SEED: &str = "{seed}";

/// The last part of a path, which names it in results.
fn file_name(path: &str) -> String {
    Path::new(path).file_name().map_or_else(|| path.to_owned(), |name| name.to_string_lossy().into_owned())
}

/// The path for a seed.
pub fn at_seed(path: &Path, seed: u64) -> PathBuf {
    PathBuf::from(path.to_string_lossy().replace(SEED, &seed.to_string()))
}

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
        Ok(CaseResult {
            summary: self.summary(setting, seed, cost.name(), &totals),
            timeline: timeline(setting, seed, &samples),
            maps: if map { maps(setting, &samples) } else { Vec::new() },
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

    /// Runs a case for its numbers alone. The third is how long that took, the trace already read.
    pub fn simulate(&self, setting: usize, seed: u64) -> Result<(Summary, Totals, Duration), Trouble> {
        let setting = &self.settings[setting];
        let workload = &self.workloads[setting.workload];
        let cost = &*self.costs[setting.seat.cost];
        let requests = workload.requests(seed).map_err(usage)?;
        let start = Instant::now();
        let setup = setting.replay(workload, seed, false, Telling::AsSet)?;
        let totals = replay(setup, cost, requests, &mut sim::Nobody).map_err(ended_early)?;
        let took = start.elapsed();
        Ok((self.summary(setting, seed, cost.name(), &totals), totals, took))
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

    /// Sentences that a reader has to know.
    pub fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        for workload in &self.workloads {
            if !workload.seeded {
                notes.push(format!(
                    "{} is replayed as recorded: seeds do not vary it, so there is one sample and no interval.",
                    workload.name
                ));
            }
        }
        let (mut seen, mut by_range): (Vec<&str>, Vec<&str>) = (Vec::new(), Vec::new());
        for setting in &self.settings {
            if seen.contains(&&*setting.policy) {
                continue;
            }
            seen.push(&setting.policy);
            let policy = make_policy(&setting.policy, &setting.geometry());
            if policy.is_ok_and(|policy| policy.reading().walks()) {
                by_range.push(&setting.policy);
            }
        }
        if !by_range.is_empty() {
            notes.push(format!(
                "{}: attention walks the used range of cells for the whole batch with an owner test, as Ollama and \
                 llama.cpp do, so every token pays for all cells below the high-water mark, holes and other \
                 sequences included; with the other policies a sequence reads its own cells only.",
                by_range.join(", ")
            ));
        }
        let ignored = self.settings.iter().filter(|setting| setting.seat.is_kv_type_ignored());
        let mut labels: Vec<&str> = Vec::new();
        for label in ignored.map(Setting::label) {
            if !labels.contains(&label) {
                labels.push(label);
            }
        }
        let ignored = labels;
        if !ignored.is_empty() {
            notes.push(format!(
                "{}: a quantised cache was asked for without flash attention, so Ollama keeps f16.",
                ignored.join(", ")
            ));
        }
        if self.settings.iter().any(|setting| setting.seat.is_placed()) {
            notes.push(
                "Layers are placed as Ollama 0.6.6 places them. Memory is what the runner really allocates, by \
                 formula: its compute graphs and what a Windows driver does with an excess were never measured."
                    .into(),
            );
        }
        if self.settings.iter().any(|setting| matches!(setting.common.prices, Prices::Spec)) {
            notes.push(
                "Step times come from the catalogue's data sheets and efficiencies (cost model spec): they are not \
                 calibrated on a device, so compare policies with each other, not with a stopwatch."
                    .into(),
            );
        }
        notes
    }

    fn summary(&self, setting: &Setting, seed: u64, cost_model: &str, totals: &Totals) -> Summary {
        let seconds = totals.duration_ns() as f64 / 1e9;
        let per_second = |count: u64| if seconds > 0.0 { count as f64 / seconds } else { 0.0 };
        let ms = |quantiles: &Quantiles, q: f64| quantiles.quantile(q).map(|ns| ns as f64 / 1e6);
        let mean_ms = |quantiles: &Quantiles| quantiles.mean().map(|ns| ns / 1e6);
        let seat = &setting.seat;
        let names = seat.deployment.model.classes.iter().map(|class| &class.name);
        let cells = names.zip(&seat.memory.cells).map(|(name, cells)| format!("{name}={cells}"));
        Summary {
            row: setting.row.clone(),
            policy: setting.policy.clone(),
            trace: self.workloads[setting.workload].name.clone(),
            seed,
            requests: totals.requests,
            completed: totals.completed,
            failed: totals.failed,
            rejected: totals.rejected,
            unfinished: totals.unfinished,
            truncated: totals.truncated,
            shifted: totals.shifted,
            preempted: totals.preempted,
            output_tokens: totals.output_tokens,
            duration_s: seconds,
            throughput_tokens_per_s: per_second(totals.completed_tokens),
            goodput_requests_per_s: per_second(totals.good),
            ttft_p50_ms: ms(&totals.ttft, 0.5),
            ttft_p99_ms: ms(&totals.ttft, 0.99),
            tpot_p50_ms: ms(&totals.tpot, 0.5),
            tpot_p99_ms: ms(&totals.tpot, 0.99),
            defrag_passes: totals.defrag_passes,
            cells_copied: totals.cells_copied,
            utilisation_mean: totals.utilisation(),
            fragmentation_internal_mean: totals.fragmentation_internal(),
            fragmentation_external_mean: totals.fragmentation_external(),
            ttft_mean_ms: mean_ms(&totals.ttft),
            tpot_mean_ms: mean_ms(&totals.tpot),
            latency_mean_ms: mean_ms(&totals.latency),
            latency_p99_ms: ms(&totals.latency, 0.99),
            preemptions: totals.preemptions,
            stopped_at_limit: totals.stopped_at_limit,
            truncated_tokens: totals.truncated_tokens,
            shifted_tokens: totals.shifted_tokens,
            recomputed_tokens: totals.recomputed_tokens,
            cached_tokens: totals.cached_tokens,
            crashes: totals.crashes,
            shifts: totals.shifts,
            corrupted_steps: totals.corrupted_steps,
            freezes: totals.freezes,
            frozen_s: totals.frozen_ns as f64 / 1e9,
            steps: totals.steps,
            stall_s: totals.stall_ns as f64 / 1e9,
            held_peak: totals.held_peak(),
            model: seat.deployment.model_name.clone(),
            gpu: seat.device.clone(),
            kv_cache_type: seat.kv.name().to_owned(),
            scheduler: setting.scheduler.name().to_owned(),
            num_ctx: seat.limits.num_ctx,
            num_parallel: seat.limits.num_parallel,
            num_batch: seat.limits.num_batch,
            cells: cells.collect::<Vec<_>>().join(";"),
            variant: String::new(),
            memory_gib: seat.memory_text(),
            memory_estimated_gib: seat.estimate_text(),
            spilled_gib: seat.spilled_gib(),
            leaked_gib: totals.leaked_bytes as f64 / f64::from(1 << 30),
            load_error: seat.load_error().unwrap_or_default(),
            cost_model: cost_model.to_owned(),
            kvlab_version: env!("CARGO_PKG_VERSION").to_owned(),
            spec_key: setting.key(&self.workloads[setting.workload], seed),
            event_hash: format!("{:016x}", totals.event_hash),
        }
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

impl Setting {
    /// What pictures call it: the row of the scenario, or else the policy.
    pub fn label(&self) -> &str {
        if self.row.is_empty() { &self.policy } else { &self.row }
    }

    /// What its policy is told.
    pub fn geometry(&self) -> Geometry {
        let class = |(class, &cells): (&sim::model::ModelClass, &u32)| LayerClass {
            name: class.name.clone(),
            layers: class.layers,
            reach: class.window.map_or(Reach::Full, Reach::Window),
            cells,
        };
        Geometry {
            classes: self
                .seat
                .deployment
                .model
                .classes
                .iter()
                .zip(&self.seat.memory.cells)
                .map(class)
                .collect(),
            context_max: self.seat.limits.num_ctx,
            batch_max: self.seat.limits.num_batch,
            sequences_max: self.seat.limits.num_parallel,
        }
    }

    /// What does not fit into the devices of its host.
    pub fn shortage(&self) -> Option<Shortage> {
        self.seat.shortage()
    }

    /// Limits of its scheduler.
    pub fn limits(&self) -> Limits {
        self.seat.limits
    }

    /// How K and V are stored.
    pub fn kv(&self) -> KvType {
        self.seat.kv
    }

    /// How long the model takes to load again after a crash, ns.
    pub fn reload_ns(&self) -> u64 {
        let load = self.seat.memory.weight_bytes as f64 / LOAD_BYTES_PER_S * 1e9;
        self.common.reload_ns.unwrap_or(load as u64)
    }

    /// Name of its policy.
    pub fn policy(&self) -> &str {
        &self.policy
    }

    /// Name of its scheduler.
    pub fn scheduler_name(&self) -> &'static str {
        self.scheduler.name()
    }

    fn replay(
        &self,
        workload: &Workloads,
        seed: u64,
        logs: bool,
        telling: Telling,
    ) -> Result<Replay, Trouble> {
        let mut policy = make_policy(&self.policy, &self.geometry()).map_err(usage)?;
        if policy.wants_future() {
            let told = sim::foresee(&mut *policy, workload.requests(seed).map_err(usage)?);
            told.map_err(|error| usage(format!("{}: {}: {error}", workload.name, self.policy)))?;
        }
        let mut limits = self.seat.limits;
        limits.fast_forward &= telling == Telling::AsSet;
        let writes = telling == Telling::Writes;
        let cell_bytes = self.seat.deployment.model.kv_bytes_per_cell(self.seat.kv);
        let scheduler: Box<dyn Scheduler> = match self.scheduler {
            _ if self.seat.load_error().is_some() => Box::new(Down::new(policy)),
            Family::Continuous(knobs) => {
                let scheduler = Continuous::new(policy, limits, knobs, writes);
                Box::new(match self.common.host_bytes {
                    Some(bytes) => scheduler.with_host(HostMemory { bytes, cell_bytes: cell_bytes.clone() }),
                    None => scheduler,
                })
            }
            Family::Runner(knobs) => {
                let runner = Runner::new(policy, limits, knobs, writes);
                Box::new(if logs { runner.with_log() } else { runner })
            }
        };
        Ok(Replay {
            scheduler,
            reload_ns: self.reload_ns(),
            cell_bytes,
            until_ns: self.common.until_ns,
            slo: self.common.slo,
            audit: self.common.audit,
            freeze_ns: Some(self.common.freeze_ns),
            leak: self.common.image_leak.then(|| self.seat.leak()),
        })
    }

    /// Names the case by what determines its results.
    fn key(&self, workload: &Workloads, seed: u64) -> String {
        let text = format!(
            "{} {:?} {seed} {:?} {} {:?} {:?} {:?} {:?} {:?} {:?}",
            env!("CARGO_PKG_VERSION"),
            (&workload.digest, workload.origin.options()),
            self.seat.identity(),
            self.policy,
            self.scheduler,
            Limits { fast_forward: true, ..self.seat.limits },
            self.common.prices,
            (self.common.slo, self.common.until_ns),
            (self.common.reload_ns, self.common.host_bytes),
            (self.common.freeze_ns, self.common.image_leak),
        );
        blake3::hash(text.as_bytes()).to_hex()[..16].to_owned()
    }
}

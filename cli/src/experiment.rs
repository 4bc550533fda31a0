//! From settings to cases, and one case from its trace to its numbers.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use policies::scheduler::{
    Continuous, ContinuousKnobs, Limits, OnFull, Preemption, Runner, RunnerKnobs, Scheduler,
};
use policies::{Geometry, LayerClass, Reach, Reading, check_spec, make_policy};
use report::files::TemporaryFile;
use report::{CellMap, Held, MapColumn, RequestRow, Summary, TimelineRow};
use sim::cost::CostModel;
use sim::cost::fit::Fitted;
use sim::cost::profile::Profile;
use sim::cost::roofline::Roofline;
use sim::cost::table::Table;
use sim::hardware::Gpu;
use sim::memory::{Memory, RESERVE_BYTES, Sizing, fit};
use sim::model::{KvType, Model, WeightType};
use sim::sample::{RangeState, Sample, Sampler};
use sim::{Replay, Totals, replay};
use traces::{
    Format, GenerateOptions, Outcome, Quantiles, ReadOptions, Request, Served, Slo, TraceError, Workload,
};

use crate::settings::{Settings, Value};
use crate::trouble::{Trouble, usage};

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
}

impl Workloads {
    /// A trace file; with `{seed}` in its name, one file per seed.
    fn file(name: &str, path: PathBuf, options: ReadOptions, seeds: &[u64]) -> Result<Self, Trouble> {
        let by_seed = name.contains(SEED);
        let paths: Vec<PathBuf> = if by_seed {
            seeds.iter().map(|&seed| at_seed(&path, seed)).collect()
        } else {
            vec![path.clone()]
        };
        let mut hasher = blake3::Hasher::new();
        let mut seeded = by_seed;
        for path in &paths {
            seeded |= traces::open(path, &options).map_err(usage)?.uses_seed();
            let file = File::open(path).map_err(|error| usage(format!("{}: {error}", path.display())))?;
            hasher.update_reader(file)?;
        }
        let digest = hasher.finalize().to_hex()[..16].to_owned();
        let name = file_name(name);
        Ok(Workloads { name, origin: Origin::File { path, options }, seeded, digest })
    }

    /// The requests, for a seed.
    fn requests(
        &self,
        seed: u64,
    ) -> Result<Box<dyn Iterator<Item = Result<Request, TraceError>>>, TraceError> {
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

fn at_seed(path: &Path, seed: u64) -> PathBuf {
    PathBuf::from(path.to_string_lossy().replace(SEED, &seed.to_string()))
}

/// One device with one model on it.
#[derive(Clone, Debug)]
struct Deployment {
    model: Model,
    weights: WeightType,
    model_name: String,
    gpu: Gpu,
    kv: KvType,
}

/// Which prices.
#[derive(Clone, Debug)]
enum Prices {
    Spec,
    Fitted(Box<Fitted>),
    Profile(PathBuf),
}

/// Everything that is fixed for a case but its seed.
#[derive(Clone, Debug)]
pub struct Setting {
    workload: usize,
    deployment: Deployment,
    policy: String,
    scheduler: Family,
    limits: Limits,
    memory: Memory,
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
    audit: bool,
}

/// The experiment, resolved and checked.
#[derive(Clone, Debug)]
pub struct Experiment {
    /// The workloads.
    pub workloads: Vec<Workloads>,
    /// Settings in the order of the results.
    pub settings: Vec<Setting>,
    /// Seeds to report.
    pub seeds: Vec<u64>,
    /// The settings as a scenario.
    pub toml: String,
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
        let workloads = workloads(settings)?;
        let policies = settings.all("policies");
        for policy in &policies {
            check_spec(&policy.text).map_err(|error| policy.wrong_at(error.at, error.message))?;
        }
        let common = common(settings)?;
        let mut all = Vec::new();
        for workload in 0..workloads.len() {
            for deployment in deployments(settings)? {
                for family in families(settings)? {
                    for limits in limits(settings, family)? {
                        let memory = memory(settings, &deployment, family, &limits)?;
                        for policy in &policies {
                            all.push(Setting {
                                workload,
                                deployment: deployment.clone(),
                                policy: policy.text.clone(),
                                scheduler: family,
                                limits,
                                memory: memory.clone(),
                                common: common.clone(),
                            });
                        }
                    }
                }
            }
        }
        let experiment = Experiment {
            seeds: seeds(settings, workloads.iter().any(|workload| workload.seeded))?,
            workloads,
            settings: all,
            toml: settings.to_toml(),
        };
        // A cost model that does not fit the model or the device is found before anything runs.
        for setting in &experiment.settings {
            setting.cost()?;
        }
        Ok(experiment)
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

    /// Runs a case. Rows of `requests.csv` go to `requests`, without a header.
    pub fn run(
        &self,
        setting: usize,
        seed: u64,
        map: bool,
        requests: Option<&Path>,
    ) -> Result<CaseResult, Trouble> {
        let setting = &self.settings[setting];
        let workload = &self.workloads[setting.workload];
        let cost = setting.cost()?;
        let sink = requests.map(RequestSink::create).transpose()?;
        let (policy, failure) = (setting.policy.clone(), std::sync::Arc::new(std::sync::Mutex::new(None)));
        let mut sampler = Sampler::new(SAMPLES_MAX, if map { MAP_ROWS } else { 0 });
        if let Some(mut sink) = sink {
            let failure = failure.clone();
            sampler = sampler.on_served(move |served| {
                if let Err(error) = sink.write(&policy, seed, served) {
                    failure.lock().expect("no writer has panicked").get_or_insert(error);
                }
            });
        }
        let replayed = replay(setting.replay(&*cost)?, workload.requests(seed).map_err(usage)?, &mut sampler);
        let totals = replayed.map_err(|error| match error {
            sim::ReplayError::Trace(error) => usage(error),
            error => Trouble::from(anyhow::Error::msg(error.to_string())),
        })?;
        let samples = sampler.into_samples();
        if let Some(error) = failure.lock().expect("no writer has panicked").take() {
            return Err(error.into());
        }
        Ok(CaseResult {
            summary: self.summary(setting, seed, cost.name(), &totals),
            timeline: timeline(setting, seed, &samples),
            maps: if map { maps(setting, &samples) } else { Vec::new() },
            ttft_ms: spaced(&totals.ttft),
            tpot_ms: spaced(&totals.tpot),
        })
    }

    /// The row of a case under another seed that gives the same results.
    pub fn with_seed(&self, mut summary: Summary, setting: usize, seed: u64) -> Summary {
        summary.seed = seed;
        summary.spec_key = self.settings[setting].key(&self.workloads[self.settings[setting].workload], seed);
        summary
    }

    /// The policies that are bounds: they can hold what no device holds, or know what nobody knows.
    pub fn bounds(&self) -> Vec<String> {
        let names = self.settings.iter().map(|setting| &setting.policy);
        let is_bound = |spec: &&String| {
            spec.starts_with("unlimited")
                || spec.starts_with("clairvoyant")
                || spec.starts_with("contiguous:exact")
        };
        let mut bounds: Vec<String> = names.filter(is_bound).cloned().collect();
        bounds.dedup();
        bounds
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
        let mut by_range: Vec<&str> = Vec::new();
        for setting in &self.settings {
            let policy = make_policy(&setting.policy, &setting.geometry());
            if policy.is_ok_and(|policy| policy.reading() == Reading::Range)
                && !by_range.contains(&&*setting.policy)
            {
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
        let Deployment { model_name, gpu, kv, .. } = &setting.deployment;
        let names = setting.deployment.model.classes.iter().map(|class| &class.name);
        let cells = names.zip(&setting.memory.cells).map(|(name, cells)| format!("{name}={cells}"));
        Summary {
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
            steps: totals.steps,
            stall_s: totals.stall_ns as f64 / 1e9,
            held_peak: totals.held_peak(),
            model: model_name.clone(),
            gpu: gpu.name.clone(),
            kv_cache_type: kv.name().to_owned(),
            scheduler: setting.scheduler.name().to_owned(),
            num_ctx: setting.limits.num_ctx,
            num_parallel: setting.limits.num_parallel,
            num_batch: setting.limits.num_batch,
            cells: cells.collect::<Vec<_>>().join(";"),
            cost_model: cost_model.to_owned(),
            kvlab_version: env!("CARGO_PKG_VERSION").to_owned(),
            spec_key: setting.key(&self.workloads[setting.workload], seed),
            event_hash: format!("{:016x}", totals.event_hash),
        }
    }
}

impl Setting {
    fn geometry(&self) -> Geometry {
        let class = |(class, &cells): (&sim::model::ModelClass, &u32)| LayerClass {
            name: class.name.clone(),
            reach: class.window.map_or(Reach::Full, Reach::Window),
            cells,
        };
        Geometry {
            classes: self.deployment.model.classes.iter().zip(&self.memory.cells).map(class).collect(),
            context_max: self.limits.num_ctx,
            batch_max: self.limits.num_batch,
            sequences_max: self.limits.num_parallel,
        }
    }

    fn cost(&self) -> Result<Box<dyn CostModel>, Trouble> {
        let Deployment { model, weights, gpu, kv, .. } = &self.deployment;
        Ok(match &self.common.prices {
            Prices::Spec => Box::new(Roofline::spec(model, *weights, *kv, gpu)),
            Prices::Fitted(fitted) => Box::new(fitted.cost(model, *weights, *kv, gpu).map_err(usage)?),
            Prices::Profile(path) => {
                let profile = Profile::read(path).map_err(usage)?;
                Box::new(Table::new(profile, model, *kv, gpu).map_err(usage)?)
            }
        })
    }

    fn replay<'a>(&self, cost: &'a dyn CostModel) -> Result<Replay<'a>, Trouble> {
        let policy = make_policy(&self.policy, &self.geometry()).map_err(usage)?;
        let scheduler: Box<dyn Scheduler> = match self.scheduler {
            Family::Continuous(knobs) => Box::new(Continuous::new(policy, self.limits, knobs, false)),
            Family::Runner(knobs) => Box::new(Runner::new(policy, self.limits, knobs, false)),
        };
        let load = self.memory.weight_bytes as f64 / LOAD_BYTES_PER_S * 1e9;
        Ok(Replay {
            scheduler,
            cost,
            reload_ns: self.common.reload_ns.unwrap_or(load as u64),
            cell_bytes: self.deployment.model.kv_bytes_per_cell(self.deployment.kv),
            until_ns: self.common.until_ns,
            slo: self.common.slo,
            audit: self.common.audit,
        })
    }

    /// Names the case by what determines its results.
    fn key(&self, workload: &Workloads, seed: u64) -> String {
        let Deployment { model, weights, gpu, kv, .. } = &self.deployment;
        let text = format!(
            "{} {:?} {seed} {model:?} {weights:?} {gpu:?} {kv:?} {} {:?} {:?} {:?} {:?} {:?} {:?}",
            env!("CARGO_PKG_VERSION"),
            (&workload.digest, workload.origin.options()),
            self.policy,
            self.scheduler,
            Limits { fast_forward: true, ..self.limits },
            self.memory.cells,
            self.common.prices,
            (self.common.slo, self.common.until_ns),
            self.common.reload_ns,
        );
        blake3::hash(text.as_bytes()).to_hex()[..16].to_owned()
    }
}

fn positive(value: &Value, text: &str) -> Result<f64, Trouble> {
    let number: f64 = value.parse(text)?;
    if number.is_finite() && number > 0.0 {
        Ok(number)
    } else {
        Err(value.wrong(format!("{:?} is not {text}", value.text)))
    }
}

fn counted(value: &Value, most: u32) -> Result<u32, Trouble> {
    let text = format!("a whole number from 1 to {most}");
    let number: u32 = value.parse(&text)?;
    if (1..=most).contains(&number) {
        Ok(number)
    } else {
        Err(value.wrong(format!("{:?} is not {text}", value.text)))
    }
}

fn choice<T: Copy>(value: &Value, words: &[(&str, T)]) -> Result<T, Trouble> {
    words.iter().find(|(word, _)| *word == value.text).map(|(_, meaning)| *meaning).ok_or_else(|| {
        let names: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
        value.wrong(format!("{:?} is not one of {}", value.text, names.join(", ")))
    })
}

fn switch(settings: &Settings, name: &str) -> Result<bool, Trouble> {
    choice(&settings.one(name).expect("the key has a default"), &[("true", true), ("false", false)])
}

fn workloads(settings: &Settings) -> Result<Vec<Workloads>, Trouble> {
    let rate = settings
        .one("rate")
        .map(|value| positive(&value, "a number of requests per second above 0"))
        .transpose()?;
    let requests: u64 = settings.get("requests", "a whole number")?;
    let limit: Option<u64> = settings.optional("limit", "a whole number")?;
    let mut all = Vec::new();
    for value in settings.all("generate") {
        let workload: Workload =
            value.text.parse().map_err(|error: TraceError| value.wrong(error.to_string()))?;
        let options = GenerateOptions {
            requests: limit.map_or(requests, |most| most.min(requests)),
            seed: 0,
            rate_per_s: rate,
        };
        traces::generate(workload, &options).map_err(usage)?;
        let digest = format!("{workload:?}");
        let name = format!("generate:{}", workload.name());
        all.push(Workloads { name, origin: Origin::Generated { workload, options }, seeded: true, digest });
    }
    let format = settings.one("trace_format").filter(|value| value.text != "auto");
    let format = format
        .map(|value| value.text.parse::<Format>().map_err(|error| value.wrong(error.to_string())))
        .transpose()?;
    let time_scale =
        positive(&settings.one("time_scale").expect("the key has a default"), "a factor above 0")?;
    let session_rate_per_s = settings
        .one("session_rate")
        .map(|value| positive(&value, "a number of sessions per second above 0"))
        .transpose()?;
    for value in settings.all("trace") {
        let options = ReadOptions { format, limit, time_scale, session_rate_per_s, ..ReadOptions::default() };
        let path = settings.path(&value);
        let by_seed = if value.text.contains(SEED) { seeds(settings, true)? } else { vec![0] };
        for file in by_seed.iter().map(|&seed| at_seed(&path, seed)) {
            if !file.is_file() {
                return Err(value.wrong(format!("there is no file {}", file.display())));
            }
        }
        all.push(Workloads::file(&value.text, path, options, &by_seed)?);
    }
    if all.is_empty() {
        return Err(usage("no workload: give a scenario, a trace (--trace FILE), or --generate chat"));
    }
    Ok(all)
}

fn deployments(settings: &Settings) -> Result<Vec<Deployment>, Trouble> {
    let mut all = Vec::new();
    for name in settings.all("model") {
        let (model, weights) = if name.text.ends_with(".toml") {
            let path = settings.path(&name);
            let text = std::fs::read_to_string(&path)
                .map_err(|error| name.wrong(format!("{}: {error}", path.display())))?;
            (
                Model::from_toml(&text).map_err(|error| usage(format!("{}: {error}", path.display())))?,
                WeightType::Bf16,
            )
        } else {
            sim::model::find(&name.text).map_err(|error| name.wrong(error.to_string()))?
        };
        for gpu_name in settings.all("gpu") {
            let gpu = if gpu_name.text.ends_with(".toml") {
                let path = settings.path(&gpu_name);
                let text = std::fs::read_to_string(&path)
                    .map_err(|error| gpu_name.wrong(format!("{}: {error}", path.display())))?;
                Gpu::from_toml(&text).map_err(|error| usage(format!("{}: {error}", path.display())))?
            } else {
                sim::hardware::find(&gpu_name.text).map_err(|error| gpu_name.wrong(error.to_string()))?
            };
            for kv in settings.all("kv_cache_type") {
                let kv: KvType = kv
                    .text
                    .parse()
                    .map_err(|_| kv.wrong(format!("{:?} is not one of {}", kv.text, KvType::NAMES)))?;
                let (model, gpu) = (model.clone(), gpu.clone());
                all.push(Deployment { model, weights, model_name: file_name(&name.text), gpu, kv });
            }
        }
    }
    Ok(all)
}

fn families(settings: &Settings) -> Result<Vec<Family>, Trouble> {
    let watermark = settings.one("watermark").expect("the key has a default");
    let share: f64 = watermark.parse("a share from 0 to 1")?;
    if !(0.0..=1.0).contains(&share) {
        return Err(watermark.wrong(format!("{:?} is not a share from 0 to 1", watermark.text)));
    }
    let preemption = settings.one("preemption").expect("the key has a default");
    let on_full = settings.one("on_full").expect("the key has a default");
    let continuous = ContinuousKnobs {
        chunked_prefill: switch(settings, "chunked_prefill")?,
        reserve_prompt: switch(settings, "reserve_prompt")?,
        watermark_permille: (share * 1000.0).round() as u32,
        preemption: choice(&preemption, &[("recompute", Preemption::Recompute), ("swap", Preemption::Swap)])?,
    };
    let failures = [
        ("crash", OnFull::Crash),
        ("fail-one", OnFull::FailOne),
        ("halve", OnFull::Halve),
        ("wait", OnFull::Wait),
    ];
    let runner = RunnerKnobs {
        num_keep: settings.get("num_keep", "a whole number")?,
        on_full: choice(&on_full, &failures)?,
        keep_slots: switch(settings, "keep_slots")?,
    };
    let words = [("continuous", Family::Continuous(continuous)), ("runner", Family::Runner(runner))];
    settings.all("scheduler").iter().map(|value| choice(value, &words)).collect()
}

fn limits(settings: &Settings, family: Family) -> Result<Vec<Limits>, Trouble> {
    let queue = settings.one("queue_max").expect("the key has a default");
    let queue_max = match (queue.text.as_str(), family) {
        ("none", _) | ("auto", Family::Continuous(_)) => None,
        ("auto", Family::Runner(_)) => Some(512),
        _ => Some(queue.parse("a whole number, none, or auto")?),
    };
    let mut all = Vec::new();
    for num_ctx in settings.all("num_ctx") {
        for num_parallel in settings.all("num_parallel") {
            for batch in settings.all("num_batch") {
                let (num_parallel, num_batch) = (counted(&num_parallel, 65_536)?, counted(&batch, 1 << 24)?);
                if num_batch < num_parallel {
                    return Err(batch.wrong(format!(
                        "num_batch {num_batch} is below num_parallel {num_parallel}; every sequence needs one token of a batch"
                    )));
                }
                all.push(Limits {
                    num_ctx: counted(&num_ctx, 1 << 24)?,
                    num_parallel,
                    num_batch,
                    queue_max,
                    maintain_cells: settings.get("maintain_cells", "a whole number")?,
                    fast_forward: switch(settings, "fast_forward")?,
                });
            }
        }
    }
    Ok(all)
}

fn memory(
    settings: &Settings,
    deployment: &Deployment,
    family: Family,
    limits: &Limits,
) -> Result<Memory, Trouble> {
    let value = settings.one("memory").expect("the key has a default");
    let utilization = settings.one("gpu_memory_utilization").expect("the key has a default");
    let fraction = positive(&utilization, "a share above 0, at most 1")?;
    if fraction > 1.0 {
        return Err(utilization.wrong(format!("{:?} is not a share above 0, at most 1", utilization.text)));
    }
    let Limits { num_ctx, num_parallel, num_batch, .. } = *limits;
    let sizing = match (value.text.as_str(), family) {
        ("per-slot", _) | ("auto", Family::Runner(_)) => {
            Sizing::PerSlot { slots: num_parallel, num_ctx, num_batch, pad: 32 }
        }
        ("fill", _) | ("auto", Family::Continuous(_)) => {
            Sizing::Fill { fraction, sequences: num_parallel, num_ctx, num_batch, pad: 256 }
        }
        _ => Sizing::Cells(explicit_cells(&value, &deployment.model)?),
    };
    let Deployment { model, weights, gpu, kv, .. } = deployment;
    fit(model, *weights, *kv, gpu, RESERVE_BYTES, &sizing).map_err(|error| value.wrong(error.to_string()))
}

/// `local=4608;global=16384`, in any order, every class once.
fn explicit_cells(value: &Value, model: &Model) -> Result<Vec<u32>, Trouble> {
    let names: Vec<&str> = model.classes.iter().map(|class| class.name.as_str()).collect();
    let expected = format!("per-slot, fill, auto, or {}=N", names.join("=N;"));
    let mut cells = vec![0; names.len()];
    let mut start = 0;
    for part in value.text.split(';') {
        let at = start..start + part.len();
        start = at.end + 1;
        let wrong = || value.wrong_at(at.clone(), format!("{part:?} is not understood; expected {expected}"));
        let (name, number) = part.split_once('=').ok_or_else(wrong)?;
        let class = names.iter().position(|known| *known == name.trim()).ok_or_else(wrong)?;
        cells[class] = number.trim().parse().map_err(|_| wrong())?;
        if !(1..=1 << 30).contains(&cells[class]) {
            return Err(value.wrong_at(at, format!("{} cells; expected 1 to {}", cells[class], 1 << 30)));
        }
    }
    match cells.iter().position(|&count| count == 0) {
        Some(class) => Err(value.wrong(format!("class {} has no cells; expected {expected}", names[class]))),
        None => Ok(cells),
    }
}

fn common(settings: &Settings) -> Result<Common, Trouble> {
    let cost = settings.one("cost").expect("the key has a default");
    let path = settings.path(&cost);
    let prices = match cost.text.as_str() {
        "spec" => Prices::Spec,
        _ if path.is_dir() => Prices::Profile(path),
        _ => {
            let text = std::fs::read_to_string(&path).map_err(|error| {
                cost.wrong(format!(
                    "{}: {error}; expected spec, a calibration file or a profile folder",
                    path.display()
                ))
            })?;
            let fitted =
                Fitted::from_toml(&text).map_err(|error| usage(format!("{}: {error}", path.display())))?;
            Prices::Fitted(Box::new(fitted))
        }
    };
    let ms = |name: &str| -> Result<u64, Trouble> {
        let value = settings.one(name).expect("the key has a default");
        Ok((positive(&value, "a number of milliseconds above 0")? * 1e6) as u64)
    };
    let reload = settings.one("reload_s").filter(|value| value.text != "auto");
    let until = settings.one("until_s");
    Ok(Common {
        prices,
        slo: Slo { ttft_ns: ms("slo_ttft_ms")?, tpot_ns: ms("slo_tpot_ms")? },
        until_ns: until
            .map(|value| positive(&value, "a number of seconds above 0").map(|s| (s * 1e9) as u64))
            .transpose()?,
        reload_ns: reload
            .map(|value| positive(&value, "a number of seconds above 0").map(|s| (s * 1e9) as u64))
            .transpose()?,
        audit: switch(settings, "audit")?,
    })
}

fn seeds(settings: &Settings, matter: bool) -> Result<Vec<u64>, Trouble> {
    let first: u64 = settings.get("seed0", "a whole number")?;
    let count = match settings.one("seeds") {
        Some(value) => counted(&value, 100_000)?,
        None if matter => 5,
        None => 1,
    };
    Ok((0..u64::from(count)).map(|i| first.wrapping_add(i)).collect())
}

/// Writes request rows without a header, to be joined later.
struct RequestSink {
    writer: csv::Writer<BufWriter<File>>,
}

impl RequestSink {
    fn create(path: &Path) -> Result<Self, Trouble> {
        let file = BufWriter::with_capacity(1 << 16, File::create(path)?);
        Ok(RequestSink { writer: csv::WriterBuilder::new().has_headers(false).from_writer(file) })
    }

    fn write(&mut self, policy: &str, seed: u64, served: &Served) -> Result<(), csv::Error> {
        let ms = |ns: Option<u64>| ns.map(|ns| ns as f64 / 1e6);
        let outcome = match served.outcome {
            Outcome::Completed => "completed",
            Outcome::Failed => "failed",
            Outcome::Rejected => "rejected",
            Outcome::Unfinished => "unfinished",
        };
        self.writer.serialize(RequestRow {
            policy: policy.to_owned(),
            seed,
            id: served.id,
            outcome: outcome.to_owned(),
            arrival_s: served.arrival_ns as f64 / 1e9,
            ttft_ms: ms(served.ttft_ns()),
            tpot_ms: ms(served.tpot_ns()),
            latency_ms: ms(served.latency_ns()),
            prompt_tokens: served.prompt_tokens,
            output_tokens: served.output_tokens,
            truncated_tokens: served.truncated_tokens,
            shifts: served.shifts,
            preemptions: served.preemptions,
            cached_tokens: served.cached_tokens,
        })
    }
}

impl Drop for RequestSink {
    fn drop(&mut self) {
        // A full disk shows when the parts are joined: they are read back then.
        let _ = self.writer.flush();
    }
}

/// Joins parts into `requests.csv`.
pub fn join_requests(dir: &Path, parts: &[PathBuf]) -> Result<(), Trouble> {
    let mut joined = TemporaryFile::new(&dir.join("requests.csv"))?;
    let mut header = csv::WriterBuilder::new().from_writer(Vec::new());
    header.write_record(REQUEST_COLUMNS)?;
    joined.write_all(&header.into_inner().map_err(|error| error.into_error())?)?;
    for part in parts {
        std::io::copy(&mut File::open(part)?, &mut joined)?;
    }
    joined.finish()?;
    Ok(())
}

/// Columns of [`RequestRow`], in order.
const REQUEST_COLUMNS: [&str; 14] = [
    "policy",
    "seed",
    "id",
    "outcome",
    "arrival_s",
    "ttft_ms",
    "tpot_ms",
    "latency_ms",
    "prompt_tokens",
    "output_tokens",
    "truncated_tokens",
    "shifts",
    "preemptions",
    "cached_tokens",
];

/// Up to 401 evenly spaced quantiles in milliseconds: they draw the same curve as all samples.
fn spaced(quantiles: &Quantiles) -> Vec<f64> {
    let count = quantiles.count().min(401);
    let at = |i: u64| if count < 2 { 0.5 } else { i as f64 / (count - 1) as f64 };
    (0..count).filter_map(|i| quantiles.quantile(at(i))).map(|ns| ns as f64 / 1e6).collect()
}

fn timeline(setting: &Setting, seed: u64, samples: &[Sample]) -> Vec<TimelineRow> {
    let mut rows = Vec::new();
    for sample in samples {
        for (class, state) in setting.deployment.model.classes.iter().zip(&sample.classes) {
            rows.push(TimelineRow {
                policy: setting.policy.clone(),
                seed,
                time_s: sample.time_ns as f64 / 1e9,
                class: class.name.clone(),
                cells: state.usage.cells,
                live_cells: state.live.min(u64::from(u32::MAX)) as u32,
                held_cells: state.usage.held,
                cached_cells: state.usage.cached,
                free_cells: state.usage.free,
                placeable_cells: state.usage.placeable,
                high_water_cells: state.shape.high_water,
                sequences: sample.sequences,
                waiting: sample.waiting,
            });
        }
    }
    rows
}

fn maps(setting: &Setting, samples: &[Sample]) -> Vec<CellMap> {
    let held = |state: &RangeState| match *state {
        RangeState::Free => Held::Free,
        RangeState::Cached => Held::Cached,
        RangeState::Live(request) => Held::Live(request),
        RangeState::Wasted(request) => Held::Wasted(request),
    };
    let classes = setting.deployment.model.classes.iter().zip(&setting.memory.cells).enumerate();
    let map = |(index, (class, &cells)): (usize, (&sim::model::ModelClass, &u32))| CellMap {
        policy: setting.policy.clone(),
        class: class.name.clone(),
        cells,
        rows: MAP_ROWS.min(cells),
        columns: samples
            .iter()
            .map(|sample| MapColumn {
                time_ns: sample.time_ns,
                ranges: sample.map[index].iter().map(held).collect(),
            })
            .collect(),
    };
    classes.map(map).collect()
}

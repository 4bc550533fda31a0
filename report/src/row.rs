//! The rows that runs leave behind: one summary, a timeline, and a map of the cells.

use serde::{Deserialize, Serialize};

use crate::map_text::MapText;

/// One row of `summary.csv`: one policy under one setting on one trace with one seed.
/// Units stand last in the names; an empty value means that nothing was measured.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Row of the scenario that the run belongs to; empty where the scenario has none.
    pub row: String,
    /// Policy spec, as given.
    pub policy: String,
    /// Trace file or generator.
    pub trace: String,
    /// Seed of the workload.
    pub seed: u64,
    /// Requests read from the trace: completed + failed + rejected + unfinished.
    pub requests: u64,
    /// Requests answered.
    pub completed: u64,
    /// Requests lost after they were accepted.
    pub failed: u64,
    /// Requests refused on arrival.
    pub rejected: u64,
    /// Requests still under way when the run was cut off.
    pub unfinished: u64,
    /// Requests whose prompt was cut to fit the context.
    pub truncated: u64,
    /// Requests whose context was shifted at least once.
    pub shifted: u64,
    /// Requests preempted at least once.
    pub preempted: u64,
    /// Prompt tokens of all requests, as sent.
    #[serde(default)]
    pub prompt_tokens: u64,
    /// Output tokens produced.
    pub output_tokens: u64,
    /// Virtual time from the first arrival to the end of the last request.
    pub duration_s: f64,
    /// Output tokens of completed requests per second.
    pub throughput_tokens_per_s: f64,
    /// Requests per second that kept the whole SLO.
    pub goodput_requests_per_s: f64,
    /// Median time to first token.
    pub ttft_p50_ms: Option<f64>,
    /// 99th percentile of the time to first token.
    pub ttft_p99_ms: Option<f64>,
    /// Median time per output token.
    pub tpot_p50_ms: Option<f64>,
    /// 99th percentile of the time per output token.
    pub tpot_p99_ms: Option<f64>,
    /// Compaction passes.
    pub defrag_passes: u64,
    /// Cells copied by the policy, over all classes.
    pub cells_copied: u64,
    /// Cells that went to main memory or came back, over all classes.
    #[serde(default)]
    pub cells_swapped: u64,
    /// Cells rounded to fewer bits, over all classes.
    #[serde(default)]
    pub cells_requantised: u64,
    /// Bytes of live cells / bytes of cells, both summed over the time in steps, 0 to 1.
    pub utilisation_mean: f64,
    /// Bytes held for nothing / bytes held, both summed over the time in steps, 0 to 1.
    pub fragmentation_internal_mean: f64,
    /// Mean over the time in steps of 1 - placeable / free in the worst class, 0 to 1.
    pub fragmentation_external_mean: f64,
    /// Mean time to first token.
    pub ttft_mean_ms: Option<f64>,
    /// Mean time per output token.
    pub tpot_mean_ms: Option<f64>,
    /// Mean time from arrival to the last token.
    pub latency_mean_ms: Option<f64>,
    /// 99th percentile of the time from arrival to the last token.
    pub latency_p99_ms: Option<f64>,
    /// Preemptions, counted each time.
    pub preemptions: u64,
    /// Requests whose output ended early at the context limit.
    pub stopped_at_limit: u64,
    /// Prompt tokens cut off.
    pub truncated_tokens: u64,
    /// Context tokens dropped by shifts.
    pub shifted_tokens: u64,
    /// Tokens computed a second time.
    pub recomputed_tokens: u64,
    /// Prompt tokens found in the cache.
    pub cached_tokens: u64,
    /// Crashes of the server (all requests in flight are lost, the model is loaded again).
    pub crashes: u64,
    /// Context shifts, counted each time.
    pub shifts: u64,
    /// Steps in which a sequence read K and V of another sequence.
    pub corrupted_steps: u64,
    /// Steps that kept the GPU with the display waiting for system memory longer than the freeze
    /// threshold.
    pub freezes: u64,
    /// Time of those steps.
    pub frozen_s: f64,
    /// Steps of the model.
    pub steps: u64,
    /// Time steps were longer because of copies, rotations and transfers.
    pub stall_s: f64,
    /// Largest share of all bytes of the cache that was held at one time, 0 to 1.
    pub held_peak: f64,
    /// Most bytes of K and V that were held at one time, GiB; none in results that an earlier kvlab left.
    #[serde(default)]
    pub held_peak_gib: Option<f64>,
    /// Cells up to the highest one in use / cells, by bytes, mean over the moments of the timeline, 0 to 1; none
    /// where no timeline is kept, as in sweeps.
    #[serde(default)]
    pub high_water_mean: Option<f64>,
    /// Runs of cells that the tokens of a sequence lie in, mean over classes and the same moments.
    #[serde(default)]
    pub sequence_runs_mean: Option<f64>,
    /// Model.
    pub model: String,
    /// GPU.
    pub gpu: String,
    /// Type of the cached K and V.
    pub kv_cache_type: String,
    /// Scheduler family.
    pub scheduler: String,
    /// Context limit of a request, tokens.
    pub num_ctx: u32,
    /// Requests served at once.
    pub num_parallel: u32,
    /// Tokens of a batch.
    pub num_batch: u32,
    /// Cells per layer class, `local=4608;global=16384`.
    pub cells: String,
    /// Settings that a sweep varied and that have no column of their own,
    /// `victim=lcf;watermark=0.05`; empty outside of sweeps.
    pub variant: String,
    /// Memory that each device really needs and can give, GiB: `rtx8000=20.4/46.5`, joined by
    /// semicolons; `cpu` where layers stay there.
    pub memory_gib: String,
    /// The same as the server's estimator sees it; empty where no estimator decides.
    pub memory_estimated_gib: String,
    /// Bytes that found no room on a GPU and lie in system memory, GiB.
    pub spilled_gib: f64,
    /// Most bytes that processed images had leaked at one time, GiB.
    pub leaked_gib: f64,
    /// Why the model could not be loaded; empty where it could.
    pub load_error: String,
    /// Back-end of the cost model.
    pub cost_model: String,
    /// Version of kvlab.
    pub kvlab_version: String,
    /// Key of the fully resolved experiment: equal keys, equal results.
    pub spec_key: String,
    /// Hash of every allocation event of the run, hexadecimal.
    pub event_hash: String,
}

impl Summary {
    /// What names the run beside others: its row of the scenario, else its policy.
    pub fn name(&self) -> &str {
        name(&self.row, &self.policy)
    }
}

impl TimelineRow {
    /// What names the run beside others: its row of the scenario, else its policy.
    pub fn name(&self) -> &str {
        name(&self.row, &self.policy)
    }
}

impl CellMap {
    /// What names the run beside others: its row of the scenario, else its policy.
    pub fn name(&self) -> &str {
        name(&self.row, &self.policy)
    }
}

fn name<'a>(row: &'a str, policy: &'a str) -> &'a str {
    if row.is_empty() { policy } else { row }
}

/// One row of `timeline.csv`: the state of one layer class at one moment of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TimelineRow {
    /// Row of the scenario that the run belongs to; empty where the scenario has none.
    pub row: String,
    /// Policy spec.
    pub policy: String,
    /// Seed of the workload.
    pub seed: u64,
    /// Virtual time.
    pub time_s: f64,
    /// Layer class.
    pub class: String,
    /// Cells of the class.
    pub cells: u32,
    /// Cells whose token may still be read.
    pub live_cells: u32,
    /// Cells that belong to a sequence, live or wasted.
    pub held_cells: u32,
    /// Cells that no sequence holds but whose content is kept for reuse.
    pub cached_cells: u32,
    /// Cells that hold nothing.
    pub free_cells: u32,
    /// Most cells that one request could be given now.
    pub placeable_cells: u32,
    /// One past the highest cell in use.
    pub high_water_cells: u32,
    /// Runs of cells that the sequences' tokens lie in; as many as sequences where each lies in one.
    pub sequence_runs: u32,
    /// Sequences that hold cells.
    pub sequences: u32,
    /// Requests waiting.
    pub waiting: u32,
}

/// One row of `requests.csv`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RequestRow {
    /// Row of the scenario that the run belongs to; empty where the scenario has none.
    pub row: String,
    /// Policy spec.
    pub policy: String,
    /// Seed of the workload.
    pub seed: u64,
    /// Number of the request in the trace.
    pub id: u64,
    /// `completed`, `failed`, `rejected` or `unfinished`.
    pub outcome: String,
    /// When it was sent.
    pub arrival_s: f64,
    /// Time to first token.
    pub ttft_ms: Option<f64>,
    /// Time per output token after the first.
    pub tpot_ms: Option<f64>,
    /// Arrival to last token.
    pub latency_ms: Option<f64>,
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
    /// Output tokens produced.
    pub output_tokens: u32,
    /// Prompt tokens cut off.
    pub truncated_tokens: u32,
    /// Context shifts.
    pub shifts: u32,
    /// Preemptions.
    pub preemptions: u32,
    /// Prompt tokens found in the cache.
    pub cached_tokens: u32,
}

/// Addresses of one layer class over time: what each cell range held at each sampled moment. As JSON it is
/// short (docs/results.md).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "MapText", try_from = "MapText")]
pub struct CellMap {
    /// Row of the scenario that the run belongs to; empty where the scenario has none.
    pub row: String,
    /// Policy spec.
    pub policy: String,
    /// Layer class.
    pub class: String,
    /// Cells of the class.
    pub cells: u32,
    /// Address ranges per column; row r covers cells [r * cells / rows, (r + 1) * cells / rows).
    pub rows: u32,
    /// Sampled moments in rising order.
    pub columns: Vec<MapColumn>,
}

/// One sampled moment of a [`CellMap`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MapColumn {
    /// Virtual time.
    pub time_ns: u64,
    /// One entry per row, from address 0 up: what most of the range held.
    pub ranges: Vec<Held>,
}

/// What a range of cells holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Held {
    /// Nothing.
    Free,
    /// Content that no sequence holds, kept for reuse.
    Cached,
    /// Tokens of a request, by its number in the trace.
    Live(u64),
    /// Held by a request but not used: reserved, rounded up, or past its window.
    Wasted(u64),
    /// Held by a request, but at least one of the cells has K and V of another request in it.
    Foreign(u64),
}

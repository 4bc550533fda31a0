//! The table of all settings: what each is called, its default, and who may set it how often.

use std::path::Path;

use super::Value;

/// One setting.
pub struct Key {
    /// Name in scenarios.
    pub name: &'static str,
    /// One line for people.
    pub about: &'static str,
    /// Value where nothing is said; none if there is none.
    pub default: Option<&'static str>,
    /// Whether several values make a grid.
    pub grid: bool,
    /// Whether rows of a scenario may set it: the workload is the same for all of them.
    pub in_rows: bool,
}

/// What is the same for a whole sweep, and no part of what one simulation of it is.
const WHOLE_SWEEP: [&str; 8] =
    ["title", "question", "rows", "reference", "columns", "engine", "seeds", "seed0"];

impl Key {
    /// Whether a sweep may vary it.
    pub(super) fn is_swept(&self) -> bool {
        !WHOLE_SWEEP.contains(&self.name)
    }

    /// A value, of a file only its name.
    pub(super) fn name_of(&self, value: &Value) -> String {
        let last = Path::new(&value.text).file_name().filter(|_| self.names_file(value));
        last.map_or_else(|| value.text.clone(), |last| last.to_string_lossy().into_owned())
    }

    /// Whether a value names a file or a folder.
    pub(super) fn names_file(&self, value: &Value) -> bool {
        match self.name {
            "trace" => true,
            "model" => [".toml", ".gguf", ".json"].iter().any(|end| value.text.ends_with(end)),
            "gpu" => value.text.ends_with(".toml"),
            "cost" => value.text != "spec",
            _ => false,
        }
    }
}

const fn key(name: &'static str, default: Option<&'static str>, about: &'static str) -> Key {
    Key { name, about, default, grid: false, in_rows: true }
}

const fn grid(name: &'static str, default: Option<&'static str>, about: &'static str) -> Key {
    Key { name, about, default, grid: true, in_rows: true }
}

/// The same key, for all rows at once.
const fn shared(key: Key) -> Key {
    Key { in_rows: false, ..key }
}

/// Every setting, in the order in which they are printed.
pub const KEYS: &[Key] = &[
    shared(key("title", None, "heading of the report")),
    shared(key("question", None, "the question that the experiment answers")),
    shared(grid(
        "trace",
        None,
        "trace files, any known format, gzip or not; {seed} in a name makes one file per seed",
    )),
    shared(grid(
        "generate",
        None,
        "workloads to generate instead: chat, azure-chat, image-chat, screenshots, code, rag, documents, agent, \
         seats:N, uniform:IN:OUT",
    )),
    shared(key("requests", Some("1000"), "requests to generate")),
    shared(key("rate", None, "mean requests per second to generate [default: that of the data]")),
    shared(key("limit", None, "requests to read from a trace [default: all]")),
    shared(key("time_scale", Some("1"), "factor on the arrival times of a trace")),
    shared(key("session_rate", None, "session starts per second for traces without times")),
    shared(key("trace_format", Some("auto"), "auto, or the name of a trace format")),
    key("until_s", None, "cut the run off at this virtual time, seconds"),
    shared(grid("rows", None, "rows of the scenario to run [default: all]")),
    grid(
        "policies",
        Some("contiguous,paged,shift,defrag,unlimited"),
        "policies to compare; see `kvlab policies`",
    ),
    shared(key("reference", None, "policy or row that the others are compared with [default: the first]")),
    shared(grid(
        "columns",
        None,
        "metrics of the table, as completed,found,ttft_p99_ms [default: all that have something to say]",
    )),
    shared(key(
        "engine",
        None,
        "scenario of the engine's own model; afterwards the reference and the winner run there; none: not",
    )),
    grid("model", Some("gemma3-12b-q4_0"), "models of the catalogue, TOML, GGUF or config.json files"),
    grid("gpu", Some("rtx4090"), "GPUs or hosts of the catalogues, a+b of GPU names, or TOML files"),
    grid("kv_cache_type", Some("f16"), "type of the cached K and V: f16, bf16, q8_0, q4_0, f32"),
    grid("scheduler", Some("continuous"), "continuous (vLLM's family) or runner (Ollama's)"),
    grid("num_ctx", Some("8192"), "context limit of a request, tokens"),
    grid("num_parallel", Some("16"), "requests served at once; on a host also auto (Ollama: 4, or 1)"),
    grid("num_batch", Some("512"), "tokens of a step, over all sequences"),
    key(
        "memory",
        Some("auto"),
        "cells: per-slot (Ollama; whole blocks for policies that have them), per-slot-0.6.2 (before 0.6.3), fill \
         (vLLM), or local=N;global=N [auto: by the scheduler]",
    ),
    key("gpu_memory_utilization", Some("0.9"), "share of the device's memory that `fill` may use"),
    key("pcie_gb_per_s", None, "bandwidth of the bus between GPU and main memory [default: that of the GPU]"),
    key("flash_attention", Some("false"), "per-slot: cells in multiples of 256, as a quantised cache needs"),
    key("visible_devices", Some("auto"), "host: numbers of the GPUs that the server may see, as 0,1"),
    key("sched_spread", Some("false"), "host: use every GPU even where one would do (OLLAMA_SCHED_SPREAD)"),
    key(
        "layer_split",
        Some("ollama"),
        "host: how layers are dealt to GPUs: ollama, or as llama-server does: free (by free memory), 3:1 (--tensor-split)",
    ),
    key("gpu_overhead_gib", Some("0"), "host: memory kept free on every GPU (OLLAMA_GPU_OVERHEAD)"),
    key("sysmem_fallback", Some("true"), "host: Windows may put what does not fit into main memory"),
    key("freeze_ms", Some("200"), "host: the display freezes when a step makes it wait so long, ms"),
    key(
        "image_leak",
        Some("false"),
        "every image leaks main memory, as in Ollama 0.6.6; on a host it may fill it",
    ),
    key("cost", Some("spec"), "cost model: spec, a calibration (TOML), or a folder with a measured profile"),
    shared(key("seeds", None, "how many seeds [default: 5, or 1 where the seed changes nothing]")),
    shared(key("seed0", Some("0"), "first seed")),
    key("slo_ttft_ms", Some("5000"), "goodput: longest time to first token, ms"),
    key("slo_tpot_ms", Some("200"), "goodput: longest time per output token, ms"),
    key(
        "queue_max",
        Some("auto"),
        "requests that may wait: a number, none, or auto (runner: 512, continuous: none)",
    ),
    key("on_full", Some("crash"), "runner: crash, fail-one, halve or wait when a batch finds no room"),
    key(
        "num_keep",
        Some("4"),
        "runner: leading prompt tokens that truncation and context shift keep, or prompt for all of it",
    ),
    key("multi_user", Some("false"), "runner: choose slots for many users (OLLAMA_MULTIUSER_CACHE)"),
    key("keep_slots", Some("true"), "runner: leave an idle slot its cells for a prompt that begins alike"),
    key("chunked_prefill", Some("true"), "continuous: compute long prompts in pieces"),
    key(
        "reserve",
        Some("auto"),
        "continuous: set aside at admission: none, prompt, full (to its end, by an oracle), or max (to the longest \
         end) [auto: prompt, or none where reserve_prompt is false]",
    ),
    key("reserve_prompt", Some("true"), "continuous: admit only what has cells for its whole prompt"),
    key("watermark", Some("0"), "continuous: share of the cells that admission leaves free, 0 to 1"),
    key("preemption", Some("recompute"), "continuous: recompute or swap"),
    key("victim", Some("lifo"), "continuous: who is preempted: lifo, fifo, random, lcf, mcf, srf or lrf"),
    key(
        "host_memory",
        Some("none"),
        "continuous: main memory for swapped sequences, GiB; what finds no room is computed again [none: no limit]",
    ),
    key(
        "pipeline",
        Some("0"),
        "continuous: steps that may still run while the next is formed; freed cells wait",
    ),
    key("maintain_cells", Some("256"), "cells that incremental compaction may copy between two steps"),
    key("reload_s", Some("auto"), "seconds to load the model after a crash [auto: weights at 2 GB/s]"),
    key("fast_forward", Some("true"), "tell the policy of tokens only when something can change"),
    key("audit", Some("false"), "check the policy's books after every step (slow)"),
];

/// The number of a key.
///
/// # Panics
///
/// If the table has no such key.
pub(super) fn index(name: &str) -> usize {
    KEYS.iter().position(|key| key.name == name).expect("the key is in the table")
}

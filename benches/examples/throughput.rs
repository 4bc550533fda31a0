//! How much a CPU-second simulates: requests, steps and output tokens on Azure conv 2023.
//!
//! `cargo run --release -p benches --example throughput [TRACE]`. The cache has 4096 blocks of 16
//! cells, 256 sequences run at once, and a step has 2048 tokens. CPU time is the process's own;
//! reading the trace is not part of it.

use std::path::PathBuf;
use std::time::Duration;

use benches::cheap::Cheap;
use policies::scheduler::{Continuous, ContinuousKnobs, Limits};
use policies::{Geometry, LayerClass, Reach, make_policy};
use sim::{Nobody, Replay, replay};
use traces::{ReadOptions, Request, Slo, TraceError};

/// CPU time of this process so far.
fn cpu_time() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |index: usize| fields.get(index).and_then(|field| field.parse::<u64>().ok()).unwrap_or(0);
    Duration::from_millis((ticks(11) + ticks(12)) * 10)
}

fn main() -> Result<(), TraceError> {
    let default = "../shared/traces/azure/AzureLLMInferenceTrace_conv.part0.csv.gz";
    let path = std::env::args().nth(1).map_or_else(|| PathBuf::from(default), PathBuf::from);
    if !path.exists() {
        println!("skipped: {} is not there; give the path of a trace", path.display());
        return Ok(());
    }
    let trace: Vec<Request> = traces::open(&path, &ReadOptions::default())?.collect::<Result<_, _>>()?;
    println!(
        "{:>28} {:>10} {:>10} {:>12} {:>10} {:>10}",
        "policy", "requests/s", "steps/s", "tokens/s", "ns/step", "runs"
    );
    for spec in [
        "paged:16",
        "paged:16+prefix",
        "contiguous:exact",
        "contiguous:max",
        "contiguous:pow2",
        "contiguous:run",
        "defrag",
        "unlimited",
        "clairvoyant",
    ] {
        for fast_forward in [true, false] {
            let (mut runs, mut requests, mut steps, mut tokens) = (0u64, 0, 0, 0);
            let started = cpu_time();
            while cpu_time() - started < Duration::from_secs(1) {
                let classes = vec![LayerClass {
                    name: "global".into(),
                    layers: 1,
                    reach: Reach::Full,
                    cells: 4096 * 16,
                }];
                let geometry = Geometry { classes, context_max: 16_384, batch_max: 2048, sequences_max: 256 };
                let policy = make_policy(spec, &geometry).expect("the spec is good");
                let limits = Limits {
                    num_ctx: 16_384,
                    num_parallel: 256,
                    num_batch: 2048,
                    queue_max: None,
                    maintain_cells: 256,
                    fast_forward,
                };
                let scheduler = Continuous::new(policy, limits, ContinuousKnobs::default(), false);
                let setup = Replay {
                    scheduler: Box::new(scheduler),
                    reload_ns: 0,
                    cell_bytes: vec![1],
                    until_ns: None,
                    slo: Slo { ttft_ns: 10_000_000_000, tpot_ns: 100_000_000 },
                    audit: false,
                    freeze_ns: None,
                    leak: None,
                };
                let totals =
                    replay(setup, &Cheap, trace.iter().cloned().map(Ok::<_, TraceError>), &mut Nobody)
                        .expect("a run");
                runs += 1;
                requests += totals.requests;
                steps += totals.steps;
                tokens += totals.output_tokens;
            }
            let seconds = (cpu_time() - started).as_secs_f64();
            let name = if fast_forward { spec.to_owned() } else { format!("{spec} (every token)") };
            println!(
                "{name:>28} {:>10.0} {:>10.0} {:>12.0} {:>10.0} {runs:>10}",
                requests as f64 / seconds,
                steps as f64 / seconds,
                tokens as f64 / seconds,
                seconds * 1e9 / steps as f64
            );
        }
    }
    Ok(())
}

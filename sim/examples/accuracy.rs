//! The simulator beside a real server: vLLM 0.19, Llama 3.1 8B, RTX 4090, 300 ShareGPT requests.
//!
//! `cargo run --release -p sim --example accuracy` prints predicted and measured means. The folder
//! with the run and the GPU's kernel profile is `vllm-4090` under `KVLAB_GOLDEN`, which is
//! `../shared/golden` unless set; where it is absent there is nothing to compare.

use std::convert::Infallible;
use std::path::{Path, PathBuf};

use policies::scheduler::{Continuous, ContinuousKnobs, Limits};
use policies::{Geometry, LayerClass, Reach, make_policy};
use serde::Deserialize;
use sim::cost::fit::{Sample, fit};
use sim::cost::profile::Profile;
use sim::cost::roofline::Roofline;
use sim::cost::table::Table;
use sim::cost::{CostModel, sweep};
use sim::model::{KvType, WeightType};
use sim::{Nobody, Replay, Totals, replay};
use traces::{Prefix, Quantiles, Request, Slo, When};

/// Blocks that the real server had, as it logged them.
const BLOCKS: u32 = 2588;

/// A line of the real run; times in seconds on one clock.
#[derive(Deserialize)]
struct Measured {
    input_toks: u32,
    output_toks: u32,
    queued_ts: f64,
    first_token_ts: f64,
    last_token_ts: f64,
}

/// Means of a run in milliseconds.
#[derive(Clone, Copy, Debug)]
pub struct Means {
    /// Arrival to first token.
    pub ttft_ms: f64,
    /// Time per output token after the first.
    pub tpot_ms: f64,
    /// Arrival to last token.
    pub latency_ms: f64,
    /// 99th percentile of the latency.
    pub latency_p99_ms: f64,
}

/// A prediction beside the measurement.
pub struct Prediction {
    /// What was simulated.
    pub name: &'static str,
    /// What came out.
    pub means: Means,
    /// Requests preempted, counted each time.
    pub preemptions: u64,
    /// Steps of the model.
    pub steps: u64,
}

impl Prediction {
    /// Relative errors of the means: TTFT, TPOT, latency, and the latency's 99th percentile.
    pub fn errors(&self, measured: &Means) -> [f64; 4] {
        [
            self.means.ttft_ms / measured.ttft_ms - 1.0,
            self.means.tpot_ms / measured.tpot_ms - 1.0,
            self.means.latency_ms / measured.latency_ms - 1.0,
            self.means.latency_p99_ms / measured.latency_p99_ms - 1.0,
        ]
    }
}

/// The folder of the run, if it is there.
pub fn folder() -> Option<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let golden =
        std::env::var_os("KVLAB_GOLDEN").map_or_else(|| root.join("../shared/golden"), PathBuf::from);
    let folder = golden.join("vllm-4090");
    folder.is_dir().then_some(folder)
}

fn means(totals: &Totals) -> Means {
    let mean = |quantiles: &Quantiles| quantiles.mean().unwrap_or(f64::NAN) / 1e6;
    let p99 = totals.latency.quantile(0.99).unwrap_or(0) as f64 / 1e6;
    Means {
        ttft_ms: mean(&totals.ttft),
        tpot_ms: mean(&totals.tpot),
        latency_ms: mean(&totals.latency),
        latency_p99_ms: p99,
    }
}

fn simulate(
    name: &'static str,
    cost: &dyn CostModel,
    policy: &str,
    blocks: u32,
    trace: &[Request],
) -> Prediction {
    let classes =
        vec![LayerClass { name: "global".into(), layers: 1, reach: Reach::Full, cells: blocks * 16 }];
    let geometry = Geometry { classes, context_max: 32_768, batch_max: 2048, sequences_max: 256 };
    let limits = Limits {
        num_ctx: 32_768,
        num_parallel: 256,
        num_batch: 2048,
        queue_max: None,
        maintain_cells: 0,
        fast_forward: true,
    };
    let policy = make_policy(policy, &geometry).expect("the spec is good");
    let setup = Replay {
        scheduler: Box::new(Continuous::new(policy, limits, ContinuousKnobs::default(), false)),
        reload_ns: 0,
        cell_bytes: vec![1],
        until_ns: None,
        slo: Slo { ttft_ns: 1, tpot_ns: 1 },
        audit: false,
        freeze_ns: None,
        leak: None,
    };
    let totals = replay(setup, cost, trace.iter().cloned().map(Ok::<_, Infallible>), &mut Nobody)
        .expect("a trace in memory");
    Prediction { name, means: means(&totals), preemptions: totals.preemptions, steps: totals.steps }
}

/// Reads the real run, and simulates it with every cost model and with some things left out.
pub fn compare(folder: &Path) -> Result<(Means, Vec<Prediction>), Box<dyn std::error::Error>> {
    let text = std::fs::read_to_string(folder.join("requests.jsonl"))?;
    let lines: Vec<Measured> = text.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    let first = lines.iter().map(|line| line.queued_ts).fold(f64::INFINITY, f64::min);
    let mut trace: Vec<Request> = Vec::new();
    let (mut ttft, mut tpot, mut latency) = (Quantiles::new(), Quantiles::new(), Quantiles::new());
    for line in &lines {
        let ns = |seconds: f64| (seconds * 1e9).round() as u64;
        trace.push(Request {
            id: 0,
            session: None,
            when: When::At { ns: ns(line.queued_ts - first) },
            prompt_tokens: line.input_toks,
            output_tokens: line.output_toks,
            prefix: Prefix::unknown(),
            images: Vec::new(),
        });
        ttft.record(ns(line.first_token_ts - line.queued_ts));
        latency.record(ns(line.last_token_ts - line.queued_ts));
        if line.output_toks > 1 {
            tpot.record(ns((line.last_token_ts - line.first_token_ts) / f64::from(line.output_toks - 1)));
        }
    }
    trace.sort_by_key(|request| match request.when {
        When::At { ns } => ns,
        When::After { .. } => u64::MAX,
    });
    for (id, request) in (0..).zip(&mut trace) {
        request.id = id;
    }
    let mean = |quantiles: &Quantiles| quantiles.mean().unwrap_or(f64::NAN) / 1e6;
    let measured = Means {
        ttft_ms: mean(&ttft),
        tpot_ms: mean(&tpot),
        latency_ms: mean(&latency),
        latency_p99_ms: latency.quantile(0.99).unwrap_or(0) as f64 / 1e6,
    };
    let (model, _) = sim::model::find("llama-3.1-8b")?;
    let gpu = sim::hardware::find("rtx4090")?;
    let (weights, kv) = (WeightType::Bf16, KvType::F16);
    let spec = Roofline::spec(&model, weights, kv, &gpu);
    let table = Table::new(Profile::read(folder)?, &model, kv, &gpu)?;
    let samples: Vec<Sample> = sweep::designed(&model)
        .into_iter()
        .map(|work| Sample { step_ns: table.step_ns(&work), work, weight: 1.0 })
        .collect();
    let fitted = fit(&samples, &model, weights, kv, &gpu)?.cost(&model, weights, kv, &gpu)?;
    let run = |name, cost: &dyn CostModel, policy, blocks| simulate(name, cost, policy, blocks, &trace);
    let predictions = vec![
        run("spec", &spec, "paged:16+prefix", BLOCKS),
        run("fitted, 15 steps", &fitted, "paged:16+prefix", BLOCKS),
        run("table", &table, "paged:16+prefix", BLOCKS),
        run("fitted, no reuse after preemption", &fitted, "paged:16", BLOCKS),
        run("fitted, 4.3 % more blocks", &fitted, "paged:16+prefix", 2700),
    ];
    Ok((measured, predictions))
}

#[cfg_attr(test, expect(dead_code, reason = "the test asks for the numbers, not for the print"))]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    let Some(folder) = folder() else {
        println!("skipped: no folder vllm-4090 under KVLAB_GOLDEN (default ../shared/golden)");
        return Ok(());
    };
    let (measured, predictions) = compare(&folder)?;
    println!(
        "{:<36} {:>18} {:>18} {:>18} {:>18}",
        "", "TTFT mean", "TPOT mean", "latency mean", "latency p99"
    );
    println!(
        "{:<36} {:>15.1} ms {:>15.2} ms {:>15.1} ms {:>15.1} ms",
        "measured: vLLM 0.19",
        measured.ttft_ms,
        measured.tpot_ms,
        measured.latency_ms,
        measured.latency_p99_ms
    );
    for prediction in &predictions {
        let Means { ttft_ms, tpot_ms, latency_ms, latency_p99_ms } = prediction.means;
        let errors = prediction.errors(&measured).map(|error| format!("{:+.1} %", error * 100.0));
        println!(
            "{:<36} {ttft_ms:>9.0} {:>8} {tpot_ms:>9.2} {:>8} {latency_ms:>9.0} {:>8} {latency_p99_ms:>9.0} {:>8}   {} steps, {} preemptions",
            prediction.name,
            errors[0],
            errors[1],
            errors[2],
            errors[3],
            prediction.steps,
            prediction.preemptions
        );
    }
    Ok(())
}

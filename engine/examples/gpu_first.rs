//! First contact with a GPU: opens it, tests the backend, measures bandwidth and decode steps, prints
//! one JSON. Arguments: `test`, `bench MODEL BATCHES CONTEXTS`, several in a row.

use std::sync::Arc;

use engine::Config;
use engine::cuda::{self, BenchCase, Effort, Model, Options};
use serde_json::json;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let gpu = match cuda::open(0) {
        Ok(gpu) => gpu,
        Err(error) => {
            eprintln!("{error}");
            std::process::exit(1);
        }
    };
    eprintln!("{:?}, NVRTC {:?}", gpu.info(), cuda::nvrtc_version().ok());
    let mut lines = Vec::new();
    let mut at = arguments.iter();
    while let Some(what) = at.next() {
        match what.as_str() {
            "brief" | "test" => {
                let effort = if what == "brief" { Effort::Brief } else { Effort::Whole };
                cuda::selftest(&gpu, effort, |outcome| {
                    let verdict = if outcome.passed { "ok  " } else { "FAIL" };
                    eprintln!(
                        "{verdict} {} ({:.3e} of {:.1e}; {}; {:.1} s)",
                        outcome.name, outcome.value, outcome.limit, outcome.note, outcome.seconds
                    );
                    lines.push(json!({ "test": outcome }));
                });
            }
            "bench" => {
                let numbers = |text: Option<&String>| -> Vec<usize> {
                    text.map(|text| text.split(',').filter_map(|n| n.parse().ok()).collect())
                        .unwrap_or_default()
                };
                let model = at.next().cloned().unwrap_or_default();
                let batches = numbers(at.next());
                let contexts = numbers(at.next());
                if let Err(error) = bench(&gpu, &model, &batches, &contexts, &mut lines) {
                    eprintln!("bench {model}: {error}");
                    lines.push(json!({ "failed": model, "error": error.to_string() }));
                }
            }
            other => eprintln!("no such part: {other}"),
        }
    }
    println!("{}", json!({ "device": format!("{:?}", gpu.info()), "lines": lines }));
}

fn bench(
    gpu: &cuda::Gpu,
    name: &str,
    batches: &[usize],
    contexts: &[usize],
    lines: &mut Vec<serde_json::Value>,
) -> Result<(), engine::EngineError> {
    let copy = cuda::copy_bandwidth(gpu)?;
    eprintln!("copy {:.1} GB/s ({:.1}..{:.1})", copy.median / 1e9, copy.min / 1e9, copy.max / 1e9);
    let start = std::time::Instant::now();
    let model = Arc::new(Model::synthetic(gpu, &Config::preset(name)?, 1)?);
    eprintln!(
        "{name}: {:.2} GB read per step, made in {:.1} s",
        model.step_bytes() as f64 / 1e9,
        start.elapsed().as_secs_f64()
    );
    for &context in contexts {
        for &batch in batches {
            let case = BenchCase { batch, context, steps: 40 };
            match cuda::bench_decode(&model, case, Options::default(), copy) {
                Ok(m) => {
                    eprintln!(
                        "{name} batch {batch} context {context}: {:.1} tok/s, {:.3} ms ({:.3}..{:.3}), device {:.3} ms, {:.0} GB/s, {:.1} %",
                        m.tokens_per_second,
                        m.step_seconds.median * 1e3,
                        m.step_seconds.min * 1e3,
                        m.step_seconds.max * 1e3,
                        m.device_seconds * 1e3,
                        m.gb_per_second,
                        m.share_of_roofline * 100.0
                    );
                    lines.push(json!({ "bench": m }));
                }
                Err(error) => eprintln!("{name} batch {batch} context {context}: {error}"),
            }
        }
    }
    Ok(())
}

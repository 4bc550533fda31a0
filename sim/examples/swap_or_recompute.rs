//! What a preempted sequence should do: go to host memory and come back, or be computed again.
//!
//! `cargo run --release -p sim --example swap_or_recompute` prints a table: per length of the context what either
//! adds to a run, and the bandwidth of the bus at which both cost the same. Two sequences run; the cells are too
//! few for both to end, so one is preempted once.

use std::convert::Infallible;

use policies::scheduler::{Continuous, ContinuousKnobs, Limits, Preemption};
use policies::{Geometry, LayerClass, Reach, make_policy};
use sim::cost::roofline::Roofline;
use sim::model::KvType;
use sim::{Nobody, Replay, Totals, hardware, model, replay};
use traces::{Prefix, Request, Slo, When};

/// Output tokens of either sequence.
const OUTPUT: u32 = 200;

/// Runs both sequences on an RTX 4090 with a bus of `pcie` GB/s; `cells` of them for tokens that all layers keep.
fn run(name: &str, context: u32, pcie: f64, preemption: Preemption, cells: u32) -> Totals {
    let (model, weights) = model::find(name).expect("a model of the catalogue");
    let gpu = hardware::Gpu { pcie, ..hardware::find("rtx4090").expect("a GPU of the catalogue") };
    let classes = model.classes.iter().map(|class| LayerClass {
        name: class.name.clone(),
        layers: class.layers,
        reach: class.window.map_or(Reach::Full, Reach::Window),
        cells: if class.window.is_some() { 4 * (context + OUTPUT) } else { cells },
    });
    let limits = Limits {
        num_ctx: context + OUTPUT,
        num_parallel: 2,
        num_batch: 2048,
        queue_max: None,
        maintain_cells: 0,
        fast_forward: true,
    };
    let geometry = Geometry {
        classes: classes.collect(),
        context_max: limits.num_ctx,
        batch_max: limits.num_batch,
        sequences_max: limits.num_parallel,
    };
    let policy = make_policy("paged:16", &geometry).expect("the spec is good");
    // A few cells stay free at admission, or the victim would come back before the other has ended.
    let knobs = ContinuousKnobs { preemption, watermark_permille: 2, ..ContinuousKnobs::default() };
    let setup = Replay {
        scheduler: Box::new(Continuous::new(policy, limits, knobs, false)),
        reload_ns: 0,
        cell_bytes: model.kv_bytes_per_cell(KvType::F16),
        until_ns: None,
        slo: Slo { ttft_ns: 1, tpot_ns: 1 },
        audit: false,
        freeze_ns: None,
        leak: None,
    };
    let trace = (0..2).map(|id| Request {
        id,
        session: None,
        when: When::At { ns: 0 },
        prompt_tokens: context,
        output_tokens: OUTPUT,
        prefix: Prefix::unknown(),
        images: Vec::new(),
    });
    let cost = Roofline::spec(&model, weights, KvType::F16, &gpu);
    replay(setup, &cost, trace.map(Ok::<_, Infallible>), &mut Nobody).expect("a trace in memory")
}

/// How long the run takes where one of two sequences with `context` tokens is preempted, ms.
pub fn run_ms(name: &str, context: u32, pcie: f64, preemption: Preemption) -> f64 {
    let totals = run(name, context, pcie, preemption, 2 * context + OUTPUT);
    assert_eq!((totals.completed, totals.preemptions), (2, 1), "one of two is preempted once");
    totals.last_end_ns as f64 / 1e6
}

/// The bandwidth of the bus, GB/s, at which swapping takes as long as computing again.
pub fn crossover(name: &str, context: u32) -> f64 {
    let recompute = run_ms(name, context, 1.0, Preemption::Recompute);
    let (mut low, mut high) = (0.01, 1000.0);
    for _ in 0..40 {
        let middle = f64::sqrt(low * high);
        if run_ms(name, context, middle, Preemption::Swap) > recompute {
            low = middle;
        } else {
            high = middle;
        }
    }
    high
}

fn main() {
    println!(
        "{:<16} {:>8} {:>14} {:>18} {:>18}",
        "model", "context", "recompute", "swap, 25 GB/s", "crossover"
    );
    for name in ["llama-3.1-8b", "gemma3-12b-q4_0"] {
        for context in [512, 2048, 8192, 32_768] {
            let recompute = run_ms(name, context, 25.0, Preemption::Recompute);
            let swap = run_ms(name, context, 25.0, Preemption::Swap);
            let crossover = crossover(name, context);
            println!("{name:<16} {context:>8} {recompute:>11.1} ms {swap:>15.1} ms {crossover:>13.2} GB/s");
        }
    }
}

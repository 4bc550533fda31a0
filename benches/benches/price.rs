//! How long does it take to price a step?
//!
//! The simulator's inner loop asks for a price once per step: `linear` (rates measured on the engine)
//! beside `spec` (the roofline), for Gemma 3's two layer classes.

use benches::short;
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use sim::cost::linear::{Layout, Linear};
use sim::cost::roofline::Roofline;
use sim::cost::{CostModel, Moves, Prefill, Work};
use sim::model::KvType;
use std::hint::black_box;

fn steps() -> Vec<(&'static str, Work)> {
    let decode = Work {
        tokens: 16,
        sequences: 16,
        samples: 16,
        decodes: 16,
        decode_reads: vec![16 * 512, 16 * 2000],
        ..Work::default()
    };
    let piece = |tokens, context| Prefill { tokens, context };
    let mixed = Work {
        tokens: 512,
        sequences: 18,
        prefills: vec![piece(300, 0), piece(196, 1700)],
        ..decode.clone()
    };
    let walked = Work { walked: vec![8192, 32_768], ..decode.clone() };
    let moves = Moves {
        copied_cells: vec![3000, 9000],
        copies: 40,
        rotated_cells: vec![0, 0],
        swapped_cells: vec![0, 0],
        ..Moves::default()
    };
    let moving = Work { moves, ..decode.clone() };
    vec![("decode", decode), ("mixed", mixed), ("walked", walked), ("moves", moving)]
}

fn price(criterion: &mut Criterion) {
    let (model, weights) = sim::model::find("gemma3-1b").expect("the catalogue has it");
    let gpu = sim::hardware::find("cpu").expect("the catalogue has it");
    let layout = Layout::new(&model, 512);
    let rates = (0..layout.len()).map(|at| 10.0 + at as f64).collect();
    let costs: [(&str, Box<dyn CostModel>); 2] = [
        ("linear", Box::new(Linear::new(layout, rates))),
        ("spec", Box::new(Roofline::spec(&model, weights, KvType::F16, &gpu))),
    ];
    let mut group = criterion.benchmark_group("price");
    for (step, work) in steps() {
        for (name, cost) in &costs {
            group.bench_function(BenchmarkId::new(*name, step), |bencher| {
                bencher.iter(|| cost.step_ns(black_box(&work)));
            });
        }
    }
    group.finish();
}

criterion_group!(name = benches; config = short(); targets = price);
criterion_main!(benches);

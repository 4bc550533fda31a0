//! How fast is the engine on the CPU, beside candle and beside what memory gives?
//!
//! Products have the shapes of Gemma 3 1B; one input is decode, 32 are prefill. Elements are
//! multiplications, bytes those of the weights. The bounds of the machine are printed first. Every vector unit that
//! the processor has is measured; the engine takes the first.

use std::sync::Arc;

use candle_core::quantized::{GgmlDType, QMatMul, QTensor};
use candle_core::{DType, Device, Module, Tensor};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use engine::cpu::{Cpu, Isa, multiply};
use engine::machine::Machine;
use engine::{Backend, Batch, CacheShape, Config, Data, KvType, Matrix, Output, Span, View, synthetic};
use half::bf16;
use policies::{Geometry, LayerClass, Reach, Run};
use traces::random::SplitMix64;

/// Rows and columns of a layer's gate and down.
const SHAPES: [(usize, usize); 2] = [(6912, 1152), (1152, 6912)];

fn numbers(len: usize) -> Vec<f32> {
    let mut random = SplitMix64::new(5);
    (0..len).map(|_| random.below(2001) as f32 / 1000.0 - 1.0).collect()
}

fn products(criterion: &mut Criterion) {
    // As kvlab does: this thread is the pool's first, and waits for no other to wake up.
    let pool = rayon::ThreadPoolBuilder::new().use_current_thread();
    pool.build_global().expect("nothing has used the pool before");
    let machine = Machine::measure().expect("half a gigabyte is there");
    eprintln!(
        "{} threads: read {:.1} GB/s, copy {:.1} GB/s, {:.0} GFLOP/s",
        machine.threads,
        machine.read_bytes_per_s / 1e9,
        machine.copy_bytes_per_s / 1e9,
        machine.flops / 1e9
    );
    for (rows, cols) in SHAPES {
        let weights = numbers(rows * cols);
        let full = Tensor::from_slice(&weights, (rows, cols), &Device::Cpu).expect("shapes agree");
        let quantised = |kind| QTensor::quantize(&full, kind).expect("the format is known");
        let bytes = |kind| quantised(kind).data().expect("it is in memory").to_vec();
        let half = weights.iter().map(|&x| bf16::from_f32(x)).collect();
        let data = [
            ("f32", 4 * rows * cols, Data::F32(weights.clone().into())),
            ("bf16", 2 * rows * cols, Data::Bf16(half)),
            ("q8_0", rows * cols / 32 * 34, Data::Q8_0(bytes(GgmlDType::Q8_0).into())),
            ("q4_0", rows * cols / 32 * 18, Data::Q4_0(bytes(GgmlDType::Q4_0).into())),
        ];
        let matrix = |data: &Data| Matrix { rows, cols, data: data.clone() };
        for n in [1, 32] {
            let mut group = criterion.benchmark_group(format!("product {rows}x{cols} by {n}"));
            let x = numbers(n * cols);
            let input = Tensor::from_slice(&x, (n, cols), &Device::Cpu).expect("shapes agree");
            for (name, bytes, data) in &data {
                group.throughput(if n == 1 {
                    Throughput::Bytes(*bytes as u64)
                } else {
                    Throughput::Elements((n * rows * cols) as u64)
                });
                let as_it_is = ("", matrix(data));
                let tiled = (", tiles", matrix(data).tiled());
                let ways = if name.starts_with('q') { vec![as_it_is, tiled] } else { vec![as_it_is] };
                let mut out = vec![0.0; n * rows];
                let units = Isa::all();
                // Without a vector unit there is the portable one alone.
                for &unit in &units[..(units.len() - 1).max(1)] {
                    for (how, matrix) in &ways {
                        let id = BenchmarkId::new(format!("{}{how}", unit.name()), name);
                        group.bench_function(id, |bencher| {
                            bencher.iter(|| multiply(unit, matrix, &x, &mut out));
                        });
                    }
                }
                let theirs: Box<dyn Fn() -> Tensor> = match *name {
                    "f32" => {
                        let weights = full.t().expect("a matrix");
                        let input = input.clone();
                        Box::new(move || input.matmul(&weights).expect("shapes agree"))
                    }
                    "bf16" => {
                        let weights = full.to_dtype(DType::BF16).expect("known").t().expect("a matrix");
                        let input = input.to_dtype(DType::BF16).expect("known");
                        Box::new(move || input.matmul(&weights).expect("shapes agree"))
                    }
                    name => {
                        let kind = if name == "q8_0" { GgmlDType::Q8_0 } else { GgmlDType::Q4_0 };
                        let weights = QMatMul::from_qtensor(quantised(kind)).expect("known");
                        let input = input.clone();
                        Box::new(move || weights.forward(&input).expect("shapes agree"))
                    }
                };
                group.bench_function(BenchmarkId::new("candle", name), |bencher| bencher.iter(&theirs));
            }
            group.finish();
        }
    }
}

fn steps(criterion: &mut Criterion) {
    let config = Config::preset("gemma3-270m").expect("a published size");
    let weights = Arc::new(synthetic::weights(&config, 1, false).expect("there is memory"));
    let cells = 4096;
    let class = |name: &str, reach| LayerClass { name: name.to_owned(), layers: 1, reach, cells };
    let geometry = Geometry {
        classes: vec![class("local", Reach::Window(512)), class("global", Reach::Full)],
        context_max: cells,
        batch_max: 512,
        sequences_max: 8,
    };
    let shape = CacheShape::new(&config, &geometry, KvType::Bf16).expect("two classes");
    let mut cpu = Cpu::new(weights, shape).expect("it fits");
    let mut output = Output::default();
    let mut group = criterion.benchmark_group("step of gemma3-270m, bf16");
    for (name, first, tokens) in [
        ("decode at 0", 0, 1),
        ("decode at 512", 512, 1),
        ("decode at 4000", 4000, 1),
        ("prefill of 64", 0, 64),
        ("prefill of 256", 0, 256),
    ] {
        let view = View { first: 0, runs: vec![Run { start: 0, len: first + tokens }] };
        let span =
            Span { rows: 0..tokens as usize, first, samples: 1, views: vec![view; 2], ..Span::default() };
        let batch = Batch { tokens: vec![7; tokens as usize], spans: vec![span], ..Batch::default() };
        group.throughput(Throughput::Elements(tokens.into()));
        group.bench_function(name, |bencher| {
            bencher.iter(|| cpu.step(&batch, &mut output).expect("the batch is good"));
        });
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = benches::short();
    targets = products, steps
}
criterion_main!(benches);

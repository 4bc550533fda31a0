//! How long does a policy take for a decode step, per sequence?
//!
//! 256 sequences get a token each; those that end are replaced, so a step also pays its share of
//! releases and prompts. Criterion's time is for the whole step, its elements are sequences.

use benches::load::{Load, SEQUENCES, geometry};
use benches::{SIZES, naive};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use policies::{ClassId, Geometry, POLICIES, Plan, Policy, make_policy};

/// Specs beside the defaults of all policies; `contiguous` is `contiguous:max`.
const VARIANTS: [&str; 11] = [
    "paged:16+prefix",
    "paged:16+prefix(fifo)",
    "paged:16+prefix(lfu)",
    "paged:16+prefix(s3fifo)",
    "paged:16+prefix(cost)",
    "paged:16+prefix(scan)",
    "paged:16+prefix(lru:cow)",
    "paged:16+prefix(lru)+tiered+swap",
    "radix:16",
    "contiguous:pow2",
    "contiguous:run",
];

/// Specs that are also measured with Gemma 3's two layer classes.
const TWO_CLASSES: [&str; 10] = [
    "paged",
    "contiguous",
    "contiguous:pow2",
    "contiguous:run",
    "buddy",
    "slab",
    "vmem",
    "shared",
    "vllm",
    "vllm:prefix=off",
];

type Make = fn(&Geometry) -> Box<dyn Policy>;

const NAIVE: [(&str, Make); 3] = [
    ("naive paged", |geometry| Box::new(naive::Paged::new(geometry, 16))),
    ("naive contiguous", |geometry| Box::new(naive::Lanes::new(geometry))),
    ("naive contiguous:run", |geometry| Box::new(naive::Runs::new(geometry))),
];

fn decode_step(criterion: &mut Criterion) {
    let specs: Vec<&str> = POLICIES.iter().map(|spec| spec.name).chain(VARIANTS).collect();
    for (group, gemma, writes) in
        [("global", false, false), ("global, writes", false, true), ("gemma3", true, false)]
    {
        let mut group = criterion.benchmark_group(format!("decode_step {group}"));
        group.throughput(Throughput::Elements(SEQUENCES.into()));
        for (cells, size) in SIZES {
            let geometry = geometry(cells, gemma);
            let mut bench = |name: &str, make: &dyn Fn() -> Box<dyn Policy>| {
                // Criterion calls the closure for every sample; the load goes on from one to the next.
                let mut load = None;
                group.bench_function(BenchmarkId::new(name, size), |bencher| {
                    let plan = || if writes { Plan::new() } else { Plan::without_writes() };
                    let load = load.get_or_insert_with(|| Load::new(make(), plan()));
                    bencher.iter(|| load.step());
                });
                if let Some(load) = load.filter(|load| load.cut > 0) {
                    let usage = load.policy().usage(ClassId(0));
                    let (cut, steps) = (load.cut, load.steps);
                    eprintln!(
                        "{name}, {size}: {cut} cut short in {steps} steps, {} of {cells} cells held",
                        usage.held
                    );
                }
            };
            let specs = if gemma {
                &TWO_CLASSES[..]
            } else if writes {
                &["paged"]
            } else {
                &specs[..]
            };
            for spec in specs {
                bench(spec, &|| make_policy(spec, &geometry).expect("the spec is good"));
            }
            let naive = if gemma {
                &[][..]
            } else if writes {
                &NAIVE[..1]
            } else {
                &NAIVE[..]
            };
            for (name, make) in naive {
                bench(name, &|| make(&geometry));
            }
        }
        group.finish();
    }
}

criterion_group! {
    name = benches;
    config = benches::short();
    targets = decode_step
}
criterion_main!(benches);

//! How long does a policy take for a decode step, per sequence?
//!
//! 256 sequences get a token each; those that end are replaced, so a step also pays its share of
//! releases and prompts. Criterion's time is for the whole step, its elements are sequences.

use benches::load::{Load, Prompts, SEQUENCES, geometry};
use benches::{SIZES, linear_prefix, naive};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use policies::{ClassId, Geometry, POLICIES, Plan, Policy, make_policy};

/// Specs beside the defaults of all policies; `contiguous` is `contiguous:max`.
const VARIANTS: [&str; 9] = [
    "paged:16+prefix(lru)+tiered+swap",
    "contiguous:pow2",
    "contiguous:exact",
    "contiguous:run",
    "defrag:threshold",
    "defrag:step",
    "defrag:background",
    "shift+unrotated",
    "ladder:16:q8_0",
];

/// More of them; like `tiered` and `vllm` they are also measured where every other prompt has been asked before.
const SHARED: [&str; 8] = [
    "paged:16+prefix",
    "paged:16+prefix(fifo)",
    "paged:16+prefix(lfu)",
    "paged:16+prefix(s3fifo)",
    "paged:16+prefix(cost)",
    "paged:16+prefix(scan)",
    "paged:16+prefix(lru:cow)",
    "radix:16",
];

/// Specs that are also measured with Gemma 3's two layer classes.
const TWO_CLASSES: [&str; 14] = [
    "paged",
    "paged:16+prefix",
    "tiered",
    "ladder",
    "defrag",
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

const NAIVE_PAGED: (&str, Make) = ("naive paged", |geometry| Box::new(naive::Paged::new(geometry, 16)));
const NAIVE_PREFIX: (&str, Make) =
    ("naive paged+prefix", |geometry| Box::new(linear_prefix::Prefix::new(geometry, 16)));
const NAIVE: [(&str, Make); 3] = [
    NAIVE_PAGED,
    ("naive contiguous", |geometry| Box::new(naive::Lanes::new(geometry))),
    ("naive contiguous:run", |geometry| Box::new(naive::Runs::new(geometry))),
];

/// One table of measurements.
struct Group<'a> {
    name: &'a str,
    /// Gemma 3's two classes instead of one that reads everything.
    gemma: bool,
    writes: bool,
    prompts: Prompts,
    specs: &'a [&'a str],
    naive: &'a [(&'a str, Make)],
}

fn decode_step(criterion: &mut Criterion) {
    let specs: Vec<&str> = POLICIES.iter().map(|spec| spec.name).chain(SHARED).chain(VARIANTS).collect();
    let shared: Vec<&str> = SHARED.into_iter().chain(["tiered", "vllm"]).collect();
    let global = Group {
        name: "global",
        gemma: false,
        writes: false,
        prompts: Prompts::Own,
        specs: &specs,
        naive: &NAIVE,
    };
    let groups = [
        Group { name: "global, writes", writes: true, specs: &["paged"], naive: &[NAIVE_PAGED], ..global },
        Group {
            name: "shared prompts",
            prompts: Prompts::Shared,
            specs: &shared,
            naive: &[NAIVE_PREFIX],
            ..global
        },
        Group { name: "gemma3", gemma: true, specs: &TWO_CLASSES, naive: &[NAIVE_PAGED], ..global },
        global,
    ];
    for Group { name: group, gemma, writes, prompts, specs, naive } in groups {
        let mut group = criterion.benchmark_group(format!("decode_step {group}"));
        group.throughput(Throughput::Elements(SEQUENCES.into()));
        for (cells, size) in SIZES {
            let geometry = geometry(cells, gemma);
            let mut bench = |name: &str, make: &dyn Fn() -> Box<dyn Policy>| {
                // Criterion calls the closure for every sample; the load goes on from one to the next.
                let mut load = None;
                group.bench_function(BenchmarkId::new(name, size), |bencher| {
                    let plan = || if writes { Plan::new() } else { Plan::without_writes() };
                    let load = load.get_or_insert_with(|| Load::new(make(), plan(), prompts));
                    bencher.iter(|| load.step());
                });
                let Some(load) = load else { return };
                if load.cut > 0 {
                    let usage = load.policy().usage(ClassId(0));
                    let (cut, steps) = (load.cut, load.steps);
                    eprintln!(
                        "{name}, {size}: {cut} cut short in {steps} steps, {} of {cells} cells held",
                        usage.held
                    );
                }
                if load.found > 0 {
                    eprintln!("{name}, {size}: {} of {} prompt tokens found", load.found, load.asked);
                }
            };
            for spec in specs {
                bench(spec, &|| make_policy(spec, &geometry).expect("the spec is good"));
            }
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

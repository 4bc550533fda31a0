//! How many requests does a whole simulation replay in a second?
//!
//! 2000 generated chat requests, 256 sequences at once, 2048 tokens per step; 4096 blocks of 16
//! cells, and the larger caches of the other benchmarks. Scheduler, cost model and metrics are
//! part of it. With fast forward the policy hears of tokens only where something can change;
//! results are the same. Naive is paging alone, at the smallest size: the other naive policies
//! look for the longest run every time a metric asks how much could be placed, for minutes.

use std::time::Duration;

use benches::cheap::Cheap;
use benches::naive;
use criterion::{BenchmarkId, Criterion, SamplingMode, Throughput, criterion_group, criterion_main};
use policies::scheduler::{Continuous, ContinuousKnobs, Limits};
use policies::{Geometry, LayerClass, Policy, Reach, make_policy};
use sim::{Nobody, Replay, Totals, replay};
use traces::{GenerateOptions, Request, Slo, TraceError, Workload, generate};

const REQUESTS: u64 = 2000;
const CONTEXT: u32 = 16_384;
const SEQUENCES: u32 = 256;
const BATCH: u32 = 2048;

/// Cells and their name. 64k is 4096 blocks of 16; 8k cannot hold one context and is left out.
const SIZES: [(u32, &str); 3] = [(65_536, "64k"), (131_072, "128k"), (1_638_400, "1.6M")];

type Make = fn(&Geometry) -> Box<dyn Policy>;

/// The policies, and whether they can be told of several tokens at once.
const POLICIES: [(&str, bool, Make); 4] = [
    ("paged", true, |geometry| make_policy("paged", geometry).expect("the spec is good")),
    ("contiguous", true, |geometry| make_policy("contiguous", geometry).expect("the spec is good")),
    ("contiguous:run", false, |geometry| make_policy("contiguous:run", geometry).expect("the spec is good")),
    ("naive paged", true, |geometry| Box::new(naive::Paged::new(geometry, 16))),
];

fn run(trace: &[Request], geometry: &Geometry, make: Make, fast_forward: bool) -> Totals {
    let limits = Limits {
        num_ctx: CONTEXT,
        num_parallel: SEQUENCES,
        num_batch: BATCH,
        queue_max: None,
        maintain_cells: 256,
        fast_forward,
    };
    let scheduler = Continuous::new(make(geometry), limits, ContinuousKnobs::default(), false);
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
    replay(setup, &Cheap, trace.iter().cloned().map(Ok::<_, TraceError>), &mut Nobody)
        .expect("the trace is in memory")
}

fn whole(criterion: &mut Criterion) {
    let options = GenerateOptions { requests: REQUESTS, seed: 1, rate_per_s: None };
    let trace = generate(Workload::AzureChat, &options).expect("the options are good").collect::<Vec<_>>();
    let mut group = criterion.benchmark_group("replay");
    group.throughput(Throughput::Elements(REQUESTS)).sampling_mode(SamplingMode::Flat);
    for (cells, size) in SIZES {
        let classes = vec![LayerClass { name: "global".into(), layers: 1, reach: Reach::Full, cells }];
        let geometry = Geometry { classes, context_max: CONTEXT, batch_max: BATCH, sequences_max: SEQUENCES };
        for (name, forwards, make) in POLICIES {
            for fast_forward in [true, false] {
                let too_slow = cells > SIZES[0].0 && name.starts_with("naive");
                if too_slow || (fast_forward && !forwards) {
                    continue;
                }
                let name = if fast_forward { name.to_owned() } else { format!("{name}, every token") };
                group.bench_function(BenchmarkId::new(name, size), |bencher| {
                    bencher.iter(|| run(&trace, &geometry, make, fast_forward));
                });
            }
        }
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(10)
        .nresamples(10_000)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1));
    targets = whole
}
criterion_main!(benches);

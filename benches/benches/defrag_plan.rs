//! How long does it take to plan a compaction, per moved cell?
//!
//! 64 sequences have decoded side by side and every other one, or a random half, has ended:
//! cells lie free between used ones, and the upper half moves down. Beside the policy two naive
//! planners make the same copies: one scans from both ends for every copy, one passes over all
//! cells once but keeps nothing that would find a hole later.

use std::time::Duration;

use benches::naive::Owned;
use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use policies::{
    Append, Budget, ClassId, Content, Effect, Geometry, Intent, LayerClass, Plan, Policy, Reach, SeqId,
    make_policy,
};
use traces::random::SplitMix64;

const SEQUENCES: u32 = 64;

/// Cells of the cache, its name, and how many of them the sequences held before half of them ended.
const SIZES: [(u32, &str, u32); 3] =
    [(8_192, "8k", 8_192), (131_072, "128k", 96_000), (1_638_400, "1.6M", 1_638_400)];

/// Sequences that have ended.
fn ended(kind: &str) -> Vec<SeqId> {
    let mut order: Vec<SeqId> = (0..SEQUENCES).map(SeqId).collect();
    match kind {
        "every other" => order.retain(|seq| seq.0 % 2 == 0),
        _ => {
            SplitMix64::new(7).shuffle(&mut order);
            order.truncate(SEQUENCES as usize / 2);
        }
    }
    order
}

fn fragmented(cells: u32, held: u32, ended: &[SeqId]) -> Box<dyn Policy> {
    let classes = vec![LayerClass { name: "global".into(), layers: 1, reach: Reach::Full, cells }];
    let geometry = Geometry { classes, context_max: held, batch_max: SEQUENCES, sequences_max: SEQUENCES };
    let mut policy = make_policy("defrag:threshold:0", &geometry).expect("the spec is good");
    let tokens = held / SEQUENCES;
    let intent = Intent { content: Content::own(0), prompt_tokens: 1, total_tokens: tokens };
    for seq in 0..SEQUENCES {
        policy.open(SeqId(seq), &intent);
    }
    let batch: Vec<Append> =
        (0..SEQUENCES).map(|seq| Append { seq: SeqId(seq), tokens: 1, restored: false }).collect();
    let mut plan = Plan::without_writes();
    for _ in 0..tokens {
        policy.place(&batch, &mut plan).expect("the cells suffice");
    }
    for &seq in ended {
        policy.release(seq);
    }
    policy
}

/// The same cells for the naive planners.
fn owned(policy: &dyn Policy, cells: u32, ended: &[SeqId]) -> Owned {
    let mut owned =
        Owned { owners: vec![None; cells as usize], tables: vec![Vec::new(); SEQUENCES as usize] };
    let mut runs = Vec::new();
    for seq in (0..SEQUENCES).map(SeqId).filter(|seq| !ended.contains(seq)) {
        policy.layout(ClassId(0), seq, &mut runs);
        for cell in runs.iter().flat_map(|run| run.cells()) {
            let table = &mut owned.tables[seq.index()];
            owned.owners[cell as usize] = Some((seq.0, table.len() as u32));
            table.push(cell);
        }
    }
    owned
}

fn maintain(policy: &mut dyn Policy) -> Plan {
    let mut plan = Plan::without_writes();
    policy.maintain(Budget { cells: u32::MAX }, &mut plan);
    plan
}

fn defrag_plan(criterion: &mut Criterion) {
    for kind in ["every other", "random half"] {
        let ended = ended(kind);
        let mut group = criterion.benchmark_group(format!("defrag_plan {kind}"));
        for (cells, size, held) in SIZES {
            let mut policy = fragmented(cells, held, &ended);
            let owned = owned(&*policy, cells, &ended);
            let plan = maintain(&mut *policy);
            let mut effects = Vec::new();
            let moves = owned.clone().compact_in_one_pass(&mut effects);
            assert_eq!(plan.effects(), effects, "the planners make the same copies");
            eprintln!("{kind}, {size}: {moves} cells moved in {} copies", effects.len());
            group.throughput(Throughput::Elements(moves.into()));
            group.bench_function(BenchmarkId::new("defrag:threshold:0", size), |bencher| {
                let setup = || fragmented(cells, held, &ended);
                bencher.iter_batched_ref(setup, |policy| maintain(&mut **policy), BatchSize::PerIteration);
            });
            let mut naive = |name: &str, planner: fn(&mut Owned, &mut Vec<Effect>) -> u32| {
                group.bench_function(BenchmarkId::new(name, size), |bencher| {
                    let compact = |owned: &mut Owned| {
                        let mut effects = Vec::new();
                        planner(owned, &mut effects);
                        effects
                    };
                    bencher.iter_batched_ref(|| owned.clone(), compact, BatchSize::PerIteration);
                });
            };
            naive("naive, one pass", Owned::compact_in_one_pass);
            // Minutes for one compaction of the largest cache.
            if cells < 1_000_000 {
                naive("naive, a scan per copy", Owned::compact_by_scans);
            }
        }
        group.finish();
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(10)
        .nresamples(10_000)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1));
    targets = defrag_plan
}
criterion_main!(benches);

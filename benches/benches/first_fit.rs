//! How long does it take to find, take and give back a run of free cells, 90 % of them used?
//!
//! Beside the tree of [`FreeMap`] a list of bools, searched from its beginning. `random`: holes of
//! 1 to 512 cells in random order, one of 512 at least. `worst`: every hole is too short but one
//! at the end (for a length of 1 nothing else is free at all).

use std::hint::black_box;
use std::ops::Range;
use std::time::Duration;

use benches::{SIZES, naive};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use policies::free::{Fit, FreeMap};
use traces::random::SplitMix64;

const LENGTHS: [u32; 3] = [1, 16, 512];

/// Holes of 1 to `longest` cells, small ones more often (the logarithm is uniform), in random
/// order among used cells, until a tenth of the cells is free; `last` free cells end the cache.
fn holes(cells: u32, longest: u32, must: &[u32], last: u32) -> Vec<Range<u32>> {
    let mut random = SplitMix64::new(u64::from(cells) + u64::from(longest));
    let mut lens = must.to_vec();
    let mut left = (cells / 10).saturating_sub(last + must.iter().sum::<u32>());
    while left > 0 && longest > 0 {
        let magnitude = random.below(longest.ilog2() + 1);
        let len = ((1 << magnitude) + random.below(1 << magnitude)).min(longest).min(left);
        lens.push(len);
        left -= len;
    }
    random.shuffle(&mut lens);
    // Used cells between the holes: at least one each, the rest spread by random cuts.
    let used = cells - last - lens.iter().sum::<u32>();
    let spare = used - (lens.len() as u32 + 1);
    let mut cuts: Vec<u32> = lens.iter().map(|_| random.below(spare + 1)).collect();
    cuts.sort_unstable();
    let (mut start, mut before) = (0, 0);
    let mut holes = Vec::with_capacity(lens.len() + 1);
    for (len, cut) in lens.into_iter().zip(cuts) {
        start += 1 + cut - before;
        before = cut;
        holes.push(start..start + len);
        start += len;
    }
    if last > 0 {
        holes.push(cells - last..cells);
    }
    holes
}

fn first_fit(criterion: &mut Criterion) {
    for kind in ["random", "worst"] {
        for len in LENGTHS {
            let mut group = criterion.benchmark_group(format!("first_fit {kind} {len}"));
            group.throughput(Throughput::Elements(1));
            for (cells, size) in SIZES {
                let holes = match kind {
                    "random" => holes(cells, 512, &[512], 0),
                    _ => holes(cells, len - 1, &[], len),
                };
                let mut map = FreeMap::new(cells, Fit::First);
                let mut used = vec![true; cells as usize];
                map.occupy(0..cells);
                for hole in holes {
                    used[hole.start as usize..hole.end as usize].fill(false);
                    map.vacate(hole);
                }
                assert_eq!(map.find(len), naive::first_fit(&used, len), "both find the same hole");
                group.bench_function(BenchmarkId::new("find", size), |bencher| {
                    bencher.iter(|| black_box(&map).find(black_box(len)));
                });
                group.bench_function(BenchmarkId::new("find, take, vacate", size), |bencher| {
                    bencher.iter(|| {
                        let start = map.take(black_box(len)).expect("a hole is long enough");
                        map.vacate(start..start + len);
                    });
                });
                group.bench_function(BenchmarkId::new("naive find", size), |bencher| {
                    bencher.iter(|| naive::first_fit(black_box(&used), black_box(len)));
                });
                group.bench_function(BenchmarkId::new("naive find, take, vacate", size), |bencher| {
                    bencher.iter(|| {
                        let start = naive::first_fit(&used, black_box(len)).expect("a hole is long enough");
                        let cells = start as usize..(start + len) as usize;
                        black_box(&mut used)[cells.clone()].fill(true);
                        black_box(&mut used)[cells].fill(false);
                    });
                });
            }
            group.finish();
        }
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(20)
        .nresamples(10_000)
        .warm_up_time(Duration::from_millis(100))
        .measurement_time(Duration::from_millis(300));
    targets = first_fit
}
criterion_main!(benches);

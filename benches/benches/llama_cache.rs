//! What do the indexes of the llama runner's cache save, against looking at every cell?
//!
//! 64 sequences get a token each and hold 70 % of the cells; at every step one of them may end and
//! is replaced by a new prompt. Criterion's time is for the whole step.

use benches::linear_llama::LinearCache;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use policies::llama_unified::{Part, UnifiedCache};
use policies::{Effect, SeqId};

const SEQUENCES: u32 = 64;
const LAYERS: u32 = 32;
const UBATCH: u32 = 512;

/// The two calls of the load.
trait Cache {
    fn new(cells: u32) -> Self;
    fn decode(&mut self, batch: &[Part], effects: &mut Vec<Effect>);
    fn clear(&mut self, seq: SeqId);
}

impl Cache for UnifiedCache {
    fn new(cells: u32) -> Self {
        UnifiedCache::new(cells, LAYERS, UBATCH, 32)
    }

    fn decode(&mut self, batch: &[Part], effects: &mut Vec<Effect>) {
        UnifiedCache::decode(self, batch, effects).expect("there is room");
    }

    fn clear(&mut self, seq: SeqId) {
        self.remove(seq, 0..i32::MAX);
    }
}

impl Cache for LinearCache {
    fn new(cells: u32) -> Self {
        LinearCache::new(cells, LAYERS, UBATCH, 32)
    }

    fn decode(&mut self, batch: &[Part], effects: &mut Vec<Effect>) {
        LinearCache::decode(self, batch, effects).expect("there is room");
    }

    fn clear(&mut self, seq: SeqId) {
        self.remove(seq, 0..i32::MAX);
    }
}

/// Sequences of every age, from 45 % to 95 % of an equal share.
struct Load<C> {
    cache: C,
    batch: Vec<Part>,
    effects: Vec<Effect>,
    least: u32,
    most: u32,
}

impl<C: Cache> Load<C> {
    fn new(cells: u32) -> Self {
        let share = cells / SEQUENCES;
        let (least, most) = (share * 45 / 100, share * 95 / 100);
        let mut load = Load { cache: C::new(cells), batch: Vec::new(), effects: Vec::new(), least, most };
        for seq in 0..SEQUENCES {
            // 37 has no factor in common with 64, so ages have nothing to do with numbers.
            let age = (most - least) * (seq * 37 % SEQUENCES) / SEQUENCES;
            load.batch.push(Part { seq: SeqId(seq), first: 0, tokens: 1 });
            load.start(seq as usize, least + age);
        }
        load
    }

    fn start(&mut self, id: usize, tokens: u32) {
        let seq = self.batch[id].seq;
        self.cache.clear(seq);
        self.cache.decode(&[Part { seq, first: 0, tokens }], &mut self.effects);
        self.batch[id].first = tokens as i32;
    }

    fn step(&mut self) {
        self.effects.clear();
        for id in 0..self.batch.len() {
            if self.batch[id].first as u32 >= self.most {
                self.start(id, self.least);
            }
        }
        self.cache.decode(&self.batch, &mut self.effects);
        self.batch.iter_mut().for_each(|part| part.first += 1);
    }
}

fn bench<C: Cache>(criterion: &mut Criterion, name: &str, sizes: &[(u32, &str)]) {
    let mut group = criterion.benchmark_group("llama_cache");
    group.throughput(Throughput::Elements(SEQUENCES.into()));
    for &(cells, size) in sizes {
        let mut load = None;
        group.bench_function(BenchmarkId::new(name, size), |bencher| {
            let load = load.get_or_insert_with(|| Load::<C>::new(cells));
            bencher.iter(|| load.step());
        });
    }
    group.finish();
}

fn llama_cache(criterion: &mut Criterion) {
    bench::<UnifiedCache>(criterion, "indexed", &benches::SIZES);
    bench::<LinearCache>(criterion, "linear", &benches::SIZES);
}

criterion_group! {
    name = benches;
    config = benches::short();
    targets = llama_cache
}
criterion_main!(benches);

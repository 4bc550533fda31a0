//! How long does the exact cache of Ollama take for a decode step, beside its own linear scan?
//!
//! Two loads, both with 131,072 cells: *slots*, 8 slots of 16,384 tokens with Gemma 3's two caches, in
//! which a slot that is full begins anew with half of its context as prompt; and *window*, 127
//! sequences that decode for ever in one cache with a window of 1,024. Criterion's time is for a
//! step of one token for every sequence, with its share of new prompts.

use benches::linear_ollama::{Effects, LinearWrapper};
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use policies::ollama::{END, GRAPH_NODES, Kind, PAD, Setup, Sizing, Token, Trim, Wrapper, cells};
use policies::{ClassId, Plan};

/// What both have.
trait Server {
    fn forward(&mut self, batch: &[Token]) -> bool;
    fn empty(&mut self, seq: u32);
}

struct Exact(Wrapper, Plan);

impl Server for Exact {
    fn forward(&mut self, batch: &[Token]) -> bool {
        self.1.clear();
        self.0.forward(batch, &mut self.1).is_ok()
    }

    fn empty(&mut self, seq: u32) {
        self.0.remove(seq, 0, END, &mut self.1).expect("nothing is shifted");
    }
}

struct Scan(LinearWrapper, Effects);

impl Server for Scan {
    fn forward(&mut self, batch: &[Token]) -> bool {
        self.1.effects.clear();
        self.0.forward(batch, &mut self.1).is_ok()
    }

    fn empty(&mut self, seq: u32) {
        self.0.remove(seq, 0, END, &mut self.1).expect("nothing is shifted");
    }
}

/// Sequences that decode side by side.
struct Load {
    server: Box<dyn Server>,
    next: Vec<i32>,
    /// Tokens at which a sequence begins anew.
    end: i32,
    batch: Vec<Token>,
}

/// Tokens of a prompt that are placed at once. A full batch of a lone prompt is what the cache has no room
/// for, because everyone else keeps a token too many.
const PROMPT_BATCH: i32 = 256;

impl Load {
    fn new(server: Box<dyn Server>, sequences: i32, end: i32) -> Load {
        let mut load = Load { server, next: vec![0; sequences as usize], end, batch: Vec::new() };
        for seq in 0..sequences {
            // Ends are spread evenly over the time from a prompt to the end.
            load.prompt(seq as u32, end / 2 + end / 2 * seq / sequences);
        }
        load
    }

    fn prompt(&mut self, seq: u32, tokens: i32) {
        let mut len = 0;
        while len < tokens {
            let end = tokens.min(len + PROMPT_BATCH);
            let batch: Vec<Token> = (len..end).map(|pos| Token { seq, pos }).collect();
            assert!(self.server.forward(&batch), "there is room");
            len = end;
        }
        self.next[seq as usize] = tokens;
        // Who waits keeps its last batch; that shall be one token.
        let pos = tokens;
        assert!(self.server.forward(&[Token { seq, pos }]), "there is room");
        self.next[seq as usize] += 1;
    }

    fn step(&mut self) {
        for seq in 0..self.next.len() {
            if self.next[seq] >= self.end {
                self.server.empty(seq as u32);
                self.prompt(seq as u32, self.end / 2);
            }
        }
        self.batch.clear();
        for (seq, next) in (0..).zip(&mut self.next) {
            self.batch.push(Token { seq, pos: *next });
            *next += 1;
        }
        assert!(self.server.forward(&self.batch), "there is room");
    }
}

fn setups(kinds: &[Kind], slots: u32, num_ctx: u32, num_batch: u32) -> Vec<Setup> {
    let setup = |(class, &kind): (u8, &Kind)| Setup {
        class: ClassId(class),
        kind,
        cells: cells(kind, slots, num_ctx, num_batch, PAD, Sizing::SharedBatch),
        pad: PAD,
        layers: 1,
        graph_nodes: GRAPH_NODES,
        shift: true,
        trim: Trim::Batch,
    };
    (0..).zip(kinds).map(setup).collect()
}

fn ollama_step(criterion: &mut Criterion) {
    let swa = Kind::Swa { window: 1024 };
    let mut group = criterion.benchmark_group("ollama_step");
    for (name, kinds, slots, num_ctx, num_batch) in
        [("slots", &[swa, Kind::Causal][..], 8, 16_384, 512), ("window", &[swa][..], 127, i32::MAX, 1024)]
    {
        let setups = setups(kinds, slots, num_ctx as u32, num_batch);
        assert_eq!(setups[setups.len() - 1].cells, 131_072);
        let end = if num_ctx == i32::MAX { i32::MAX } else { num_ctx - 1 };
        let make = |server: Box<dyn Server>| {
            if end == i32::MAX {
                let mut load = Load::new(server, slots as i32, 4000);
                load.end = end;
                load
            } else {
                Load::new(server, slots as i32, end)
            }
        };
        let (mut exact, mut scan) = (None, None);
        group.bench_function(BenchmarkId::new("exact", name), |bencher| {
            let load = exact.get_or_insert_with(|| {
                make(Box::new(Exact(Wrapper::new(setups.clone()), Plan::without_writes())))
            });
            bencher.iter(|| load.step());
        });
        group.bench_function(BenchmarkId::new("linear scan", name), |bencher| {
            let load = scan.get_or_insert_with(|| {
                make(Box::new(Scan(LinearWrapper::new(setups.clone()), Effects::default())))
            });
            bencher.iter(|| load.step());
        });
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = benches::short();
    targets = ollama_step
}
criterion_main!(benches);

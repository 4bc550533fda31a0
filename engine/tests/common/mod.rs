//! What the tests of the engine share: golden models, a way to drive a backend, placements.
#![allow(dead_code, reason = "every test uses some of it")]
#![allow(clippy::unwrap_used, reason = "helpers of tests may stop the test")]

pub mod device;
pub mod golden;
pub mod imitated;
pub mod imitation;
pub mod reference;

use std::collections::BTreeMap;
use std::sync::Arc;

use engine::cpu::Cpu;
use engine::{Backend, Batch, CacheShape, Config, KvType, LayerKind, Output, Span, View, Wanted, Weights};
use policies::{Cell, Geometry, LayerClass, Reach, push_run};
use traces::random::{STEP, scramble};

/// A geometry with a class for the local layers and one for the global ones, or one for all.
pub fn geometry(config: &Config, cells: &[u32]) -> Geometry {
    let count = |kind| config.layers.iter().filter(|&&layer| layer == kind).count() as u32;
    let class = |name: &str, layers, reach, cells| LayerClass { name: name.to_owned(), layers, reach, cells };
    let classes = match *cells {
        [all] => vec![class("all", config.layers.len() as u32, Reach::Full, all)],
        [local, global] => vec![
            class("local", count(LayerKind::Local), Reach::Window(config.window as u32), local),
            class("global", count(LayerKind::Global), Reach::Full, global),
        ],
        _ => unreachable!("one or two classes"),
    };
    Geometry { classes, context_max: 4096, batch_max: 512, sequences_max: 8 }
}

/// A CPU with f32 K and V.
pub fn cpu(weights: &Arc<Weights>, cells: &[u32]) -> Cpu {
    cpu_with(weights, cells, |_| {})
}

/// A CPU with a cache that is changed before it is made.
pub fn cpu_with(weights: &Arc<Weights>, cells: &[u32], edit: impl FnOnce(&mut CacheShape)) -> Cpu {
    let geometry = geometry(&weights.config, cells);
    let mut shape = CacheShape::new(&weights.config, &geometry, KvType::F32).unwrap();
    edit(&mut shape);
    Cpu::new(weights.clone(), shape).unwrap()
}

/// Sequences over hand-made placements: per class and sequence, the cell of every token.
#[derive(Clone, Default)]
pub struct Hand {
    cells: BTreeMap<(usize, u32), Vec<Cell>>,
    classes: usize,
    done: BTreeMap<u32, u32>,
}

impl Hand {
    /// A sequence is placed in `cells` in every class.
    pub fn place(&mut self, classes: usize, seq: u32, cells: impl IntoIterator<Item = Cell> + Clone) {
        self.classes = classes;
        for class in 0..classes {
            self.cells.insert((class, seq), cells.clone().into_iter().collect());
        }
    }

    /// The view of the first `len` tokens.
    pub fn view(&self, class: usize, seq: u32, first: u32, len: u32) -> View {
        let mut runs = Vec::new();
        for &cell in &self.cells[&(class, seq)][first as usize..len as usize] {
            push_run(&mut runs, cell, 1);
        }
        View { first, runs }
    }

    /// Computes the next tokens of some sequences and returns the logits of all rows.
    pub fn step(&mut self, backend: &mut dyn Backend, parts: &[(u32, &[u32])]) -> Vec<f32> {
        let mut batch = Batch { wanted: Wanted::Logits, ..Batch::default() };
        for &(seq, tokens) in parts {
            let first = self.done.get(&seq).copied().unwrap_or(0);
            let len = first + tokens.len() as u32;
            let views = (0..self.classes).map(|class| self.view(class, seq, 0, len)).collect();
            push_span(&mut batch, tokens, Span { first, views, ..Span::default() });
            self.done.insert(seq, len);
        }
        logits(backend, &batch)
    }

    /// Says that a sequence has so many tokens.
    pub fn set_len(&mut self, seq: u32, len: u32) {
        self.done.insert(seq, len);
    }
}

/// Appends tokens of a sequence, all of which sample, to a batch.
pub fn push_span(batch: &mut Batch, tokens: &[u32], span: Span) {
    let start = batch.tokens.len();
    batch.tokens.extend_from_slice(tokens);
    batch.spans.push(Span { rows: start..batch.tokens.len(), samples: tokens.len(), ..span });
}

/// Logits of a batch.
pub fn logits(backend: &mut dyn Backend, batch: &Batch) -> Vec<f32> {
    let mut output = Output::default();
    backend.step(batch, &mut output).unwrap();
    output.logits
}

/// Logits of a text, computed in chunks over cells 0, 1, 2 …
pub fn chunked(backend: &mut dyn Backend, classes: usize, tokens: &[u32], chunk: usize) -> Vec<f32> {
    let mut hand = Hand::default();
    hand.place(classes, 0, 0..tokens.len() as u32);
    tokens.chunks(chunk).flat_map(|tokens| hand.step(backend, &[(0, tokens)])).collect()
}

/// Largest difference, and the root of the mean square of all.
pub fn difference(a: &[f32], b: &[f32]) -> (f32, f32) {
    assert_eq!(a.len(), b.len());
    let most = a.iter().zip(b).fold(0.0, |most: f32, (a, b)| most.max((a - b).abs()));
    let square: f64 = a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)).sum();
    (most, (square / a.len() as f64).sqrt() as f32)
}

/// Fails unless two lists have the same bits.
pub fn assert_same_bits(a: &[f32], b: &[f32], what: &str) {
    assert_eq!(a.len(), b.len(), "{what}");
    if let Some(i) = (0..a.len()).find(|&i| a[i].to_bits() != b[i].to_bits()) {
        panic!("{what}: number {i} is {} and {}", a[i], b[i]);
    }
}

/// SplitMix64, for shuffles.
pub struct Random(pub u64);

impl Random {
    /// A number below `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(STEP);
        scramble(self.0) % end
    }

    /// Cells 0 to `len`, in any order.
    pub fn shuffled(&mut self, len: u32) -> Vec<Cell> {
        let mut cells: Vec<Cell> = (0..len).collect();
        for i in (1..cells.len()).rev() {
            cells.swap(i, self.below(i as u64 + 1) as usize);
        }
        cells
    }

    /// Tokens of a vocabulary.
    pub fn tokens(&mut self, len: usize, vocab: usize) -> Vec<u32> {
        (0..len).map(|_| self.below(vocab as u64) as u32).collect()
    }
}

//! The llama runner's cache by linear scan: every question is answered by looking at each cell.
//!
//! The rules are those of `policies::llama_unified`, written down a second time without any index:
//! no free map, no tables, one set of sequences per cell. The test beside it compares both call by
//! call, and the benchmark shows what the indexes save.
//!
//! Cost: O(cells) per call.

use std::collections::BTreeSet;
use std::ops::Range;

use policies::llama_unified::{NoSlot, Part, Work};
use policies::{Cell, ClassId, Effect, Run, SeqId, Why};

const CLASS: ClassId = ClassId(0);

/// One cell; free if it belongs to nobody.
#[derive(Clone, Debug, Default)]
struct State {
    pos: i32,
    delta: i32,
    seqs: BTreeSet<u32>,
}

impl State {
    fn is_free(&self) -> bool {
        self.seqs.is_empty()
    }

    /// Whether a call for positions of a sequence means this cell.
    fn is_meant(&self, seq: SeqId, positions: &Range<i32>) -> bool {
        let end = if positions.end < 0 { i32::MAX } else { positions.end };
        self.seqs.contains(&seq.0) && self.pos >= positions.start && self.pos < end
    }
}

/// The cache.
pub struct LinearCache {
    cells: Vec<State>,
    layers: usize,
    ubatch: usize,
    pad: usize,
    head: usize,
    attended: usize,
    wants_defrag: bool,
    work: Work,
}

impl LinearCache {
    /// All cells free; the arguments of the cache it is compared with.
    pub fn new(size: u32, layers: u32, ubatch: u32, pad: u32) -> Self {
        LinearCache {
            cells: vec![State::default(); size as usize],
            layers: layers as usize,
            ubatch: ubatch as usize,
            pad: pad as usize,
            head: 0,
            attended: 0,
            wants_defrag: false,
            work: Work::default(),
        }
    }

    /// Cells that hold a token.
    pub fn used(&self) -> usize {
        self.cells.iter().filter(|cell| !cell.is_free()).count()
    }

    /// Head and attended length.
    pub fn counts(&self) -> (u32, u32) {
        (self.head as u32, self.attended as u32)
    }

    /// What the last decode spent on compaction.
    pub fn work(&self) -> Work {
        self.work
    }

    /// Position and sequences of a cell; none if it is free.
    pub fn cell(&self, cell: Cell) -> Option<(u32, Vec<u32>)> {
        let state = &self.cells[cell as usize];
        (!state.is_free()).then(|| (state.pos as u32, state.seqs.iter().copied().collect()))
    }

    /// Gives cells to a batch, or to none of it.
    ///
    /// # Errors
    /// [`NoSlot`] if a micro-batch found no run of free cells.
    pub fn decode(&mut self, batch: &[Part], effects: &mut Vec<Effect>) -> Result<(), NoSlot> {
        self.work = Work::default();
        self.rotate(effects);
        // Cells of this batch, by the number of the token.
        let mut placed: Vec<usize> = Vec::new();
        if self.wants_defrag {
            self.defrag(&mut placed, effects);
        }
        let tokens = |(id, part): (usize, &Part)| {
            let seq = part.seq;
            (part.first..).take(part.tokens as usize).map(move |pos| (id, seq, pos))
        };
        let tokens: Vec<(usize, SeqId, i32)> = batch.iter().enumerate().flat_map(tokens).collect();
        for ubatch in tokens.chunks(self.ubatch) {
            if !self.find(ubatch.len()) {
                self.defrag(&mut placed, effects);
                if !self.find(ubatch.len()) {
                    for &cell in &placed {
                        self.cells[cell] = State::default();
                        self.head = self.head.min(cell);
                    }
                    return Err(NoSlot { tokens: ubatch.len() as u32 });
                }
            }
            let mut last = None;
            for (&(id, seq, pos), cell) in ubatch.iter().zip(self.head..) {
                self.cells[cell] = State { pos, delta: 0, seqs: BTreeSet::from([seq.0]) };
                placed.push(cell);
                match effects.last_mut().filter(|_| last == Some(id)) {
                    Some(Effect::Write { run, .. }) => run.len += 1,
                    _ => {
                        let run = Run { start: cell as Cell, len: 1 };
                        effects.push(Effect::Write { class: CLASS, seq, first: pos as u32, run });
                    }
                }
                last = Some(id);
            }
            let high_water = self.cells.iter().rposition(|cell| !cell.is_free()).map_or(0, |last| last + 1);
            let walked = high_water.div_ceil(self.pad) * self.pad;
            self.attended = walked.max(self.pad).min(self.cells.len());
        }
        Ok(())
    }

    fn rotate(&mut self, effects: &mut Vec<Effect>) {
        let mut before = None;
        for (cell, state) in (0..).zip(&mut self.cells) {
            let delta = std::mem::take(&mut state.delta);
            if delta == 0 || state.is_free() {
                continue;
            }
            match effects.last_mut().filter(|_| before == Some((cell - 1, delta))) {
                Some(Effect::Rotate { run, .. }) => run.len += 1,
                _ => effects.push(Effect::Rotate { class: CLASS, run: Run { start: cell, len: 1 }, delta }),
            }
            before = Some((cell, delta));
        }
    }

    /// Walks from the head, around the end, until as many cells are passed as there are.
    fn find(&mut self, tokens: usize) -> bool {
        let size = self.cells.len();
        if self.head > self.used() + 2 * tokens {
            self.head = 0;
        }
        if tokens > size {
            return false;
        }
        let mut passed = 0;
        loop {
            if self.head + tokens > size {
                passed += size - self.head;
                self.head = 0;
                continue;
            }
            let window = &self.cells[self.head..self.head + tokens];
            let Some(at) = window.iter().position(|cell| !cell.is_free()) else { return true };
            self.head += at + 1;
            passed += at + 1;
            if passed >= size {
                return false;
            }
        }
    }

    /// Hole by hole: so many of the highest cells, moved up in their order.
    fn defrag(&mut self, placed: &mut [usize], effects: &mut Vec<Effect>) {
        self.work.defrags += 1;
        let used = self.used();
        let mut moves = 0usize;
        let mut hole = 0;
        while hole < used {
            if !self.cells[hole].is_free() {
                hole += 1;
                continue;
            }
            let len = self.cells[hole..used].iter().take_while(|cell| cell.is_free()).count();
            let highest = (0..self.cells.len()).rev().filter(|&cell| !self.cells[cell].is_free());
            let mut sources: Vec<usize> = highest.take(len).collect();
            sources.sort_unstable();
            let mut before = None;
            for (from, to) in sources.into_iter().zip(hole..) {
                self.cells[to] = std::mem::take(&mut self.cells[from]);
                placed.iter_mut().filter(|cell| **cell == from).for_each(|cell| *cell = to);
                match effects.last_mut().filter(|_| before == Some(from.wrapping_sub(1))) {
                    Some(Effect::Copy { len, .. }) => *len += 1,
                    _ => {
                        let (from, to) = (from as Cell, to as Cell);
                        effects.push(Effect::Copy { class: CLASS, from, to, len: 1, why: Why::Defrag });
                        moves += 1;
                    }
                }
                before = Some(from);
            }
            hole += len;
        }
        self.wants_defrag = moves == 0;
        if moves > 0 {
            let most = ((65_536 - 2 * self.layers) / (6 * self.layers)).max(1);
            self.head = used;
            self.work.moves += moves as u32;
            self.work.graphs += moves.div_ceil(most) as u32;
        }
    }

    /// Takes positions from a sequence; the head goes down to the first cell that becomes free.
    pub fn remove(&mut self, seq: SeqId, positions: Range<i32>) {
        let mut first = None;
        for (cell, state) in self.cells.iter_mut().enumerate() {
            if state.is_meant(seq, &positions) {
                state.seqs.remove(&seq.0);
                if state.is_free() {
                    first = first.or(Some(cell));
                }
            }
        }
        self.head = self.head.min(first.unwrap_or(self.head));
    }

    /// Makes positions of one sequence another's as well.
    pub fn copy(&mut self, from: SeqId, to: SeqId, positions: Range<i32>) {
        if from != to {
            self.head = 0;
            for state in self.cells.iter_mut().filter(|state| state.is_meant(from, &positions)) {
                state.seqs.insert(to.0);
            }
        }
    }

    /// Adds `delta` to positions of a sequence, whoever else has the cells.
    pub fn shift(&mut self, seq: SeqId, positions: Range<i32>, delta: i32) {
        if delta == 0 || positions.start.max(0) == positions.end {
            return;
        }
        let mut first = None;
        for (cell, state) in self.cells.iter_mut().enumerate() {
            if state.is_meant(seq, &positions) {
                state.pos += delta;
                state.delta += delta;
                if state.pos < 0 {
                    *state = State::default();
                    first = first.or(Some(cell));
                }
            }
        }
        self.head = first.unwrap_or(0);
    }
}

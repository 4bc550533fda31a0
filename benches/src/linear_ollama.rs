//! Ollama's cache by linear scan: every rule as it is told, over a plain list of cells.
//!
//! The policies in `policies::ollama` are compared with it, operation by operation, and their speed
//! is measured against it. Nothing is remembered that a look at all cells can find out.
//!
//! Cost: O(cells) per operation and per sequence of a batch.

use std::collections::BTreeMap;

use policies::ollama::{END, Kind, Setup, Span, Token, Trim};
use policies::{Cell, Effect, Run, SeqId, Why};

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Place {
    pos: i32,
    seqs: Vec<u32>,
}

/// What an operation does beside the books.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Effects {
    /// Copies, rotations, writes.
    pub effects: Vec<Effect>,
    /// Compaction passes.
    pub defrags: u32,
    /// Compute graphs.
    pub graphs: u32,
}

/// One cache.
#[derive(Clone, Debug)]
pub struct Linear {
    setup: Setup,
    places: Vec<Place>,
    /// Bounds of every sequence that is known.
    pub ranges: BTreeMap<u32, Span>,
    /// First cell of the last batch.
    pub cur_loc: Cell,
    /// What attention walks.
    pub cur_range: Span,
}

fn widen(span: &mut Span, cell: Cell) {
    span.min = span.min.min(cell);
    span.max = span.max.max(cell);
}

impl Linear {
    /// An empty cache.
    pub fn new(setup: Setup) -> Self {
        Linear {
            setup,
            places: vec![Place::default(); setup.cells as usize],
            ranges: BTreeMap::new(),
            cur_loc: 0,
            cur_range: Span { min: 0, max: 0 },
        }
    }

    /// Position and owners of a cell.
    pub fn place(&self, cell: Cell) -> (i32, &[u32]) {
        let place = &self.places[cell as usize];
        (place.pos, &place.seqs)
    }

    /// Free cells, by counting.
    pub fn free(&self) -> u32 {
        self.places.iter().filter(|place| place.seqs.is_empty()).count() as u32
    }

    fn find(&self, len: u32) -> Option<Cell> {
        let mut row = 0;
        for (cell, place) in (0..).zip(&self.places) {
            row = if place.seqs.is_empty() { row + 1 } else { 0 };
            if row >= len {
                return Some(cell + 1 - len);
            }
        }
        None
    }

    fn evict(&mut self, batch: &[Token]) {
        let Kind::Swa { window } = self.setup.kind else { return };
        let mut low: BTreeMap<u32, i64> = BTreeMap::new();
        for token in batch {
            let low = low.entry(token.seq).or_insert(i64::from(token.pos));
            *low = i64::from(token.pos).min(*low);
        }
        if self.setup.trim == Trim::All {
            for &seq in self.ranges.keys() {
                if low.contains_key(&seq) {
                    continue;
                }
                let last =
                    self.places.iter().filter(|place| place.seqs.contains(&seq)).map(|place| place.pos);
                if let Some(last) = last.max() {
                    low.insert(seq, i64::from(last) + 1);
                }
            }
        }
        for (seq, low) in low {
            let Some(range) = self.ranges.get_mut(&seq) else { continue };
            let mut left = Span::EMPTY;
            for cell in range.min..=range.max {
                let place = &mut self.places[cell as usize];
                if place.seqs.contains(&seq) {
                    if i64::from(place.pos) < low - i64::from(window) {
                        place.seqs.retain(|&owner| owner != seq);
                    } else {
                        widen(&mut left, cell);
                    }
                }
            }
            *range = left;
        }
    }

    /// Gives cells to a batch.
    ///
    /// # Errors
    /// The server's words.
    pub fn forward(&mut self, batch: &[Token], done: &mut Effects) -> Result<(), String> {
        self.evict(batch);
        let len = batch.len() as u32;
        let found = self.find(len).or_else(|| {
            self.defrag(done);
            self.find(len)
        });
        let Some(start) = found else {
            self.cur_loc = 0;
            return Err(format!("could not find a kv cache slot (length: {})", self.setup.cells));
        };
        self.cur_loc = start;
        let mut range = Span::EMPTY;
        for (cell, token) in (start..).zip(batch) {
            self.places[cell as usize] = Place { pos: token.pos, seqs: vec![token.seq] };
            let of_seq = self.ranges.entry(token.seq).or_insert(Span::EMPTY);
            widen(of_seq, cell);
            widen(&mut range, of_seq.min);
            widen(&mut range, of_seq.max);
        }
        let pad = self.setup.pad.max(1);
        range.min = range.min / pad * pad;
        range.max = (range.max / pad + 1) * pad - 1;
        self.cur_range = Span { max: range.max.min(self.setup.cells - 1), ..range };
        Ok(())
    }

    fn writes(&self, batch: &[Token], done: &mut Effects) {
        for (cell, token) in (self.cur_loc..).zip(batch) {
            done.effects.push(Effect::Write {
                class: self.setup.class,
                seq: SeqId(token.seq),
                first: token.pos as u32,
                run: Run { start: cell, len: 1 },
            });
        }
    }

    fn defrag(&mut self, done: &mut Effects) {
        done.defrags += 1;
        let layers = i64::from(self.setup.layers);
        let most = (i64::from(self.setup.graph_nodes) - 2 * layers) / (6 * layers);
        let class = self.setup.class;
        let copy =
            |(from, to, len): (Cell, Cell, u32)| Effect::Copy { class, from, to, len, why: Why::Defrag };
        let mut pending: Option<(Cell, Cell, u32)> = None;
        let mut copies = 0;
        let mut src = self.places.len() - 1;
        for dst in 0..self.places.len() {
            if !self.places[dst].seqs.is_empty() {
                continue;
            }
            while src > dst && self.places[src].seqs.is_empty() {
                src -= 1;
            }
            if src <= dst {
                break;
            }
            self.places[dst] = std::mem::take(&mut self.places[src]);
            let (from, to) = (src as Cell, dst as Cell);
            match pending {
                Some((run_from, run_to, len)) if from + len == run_from && to == run_to + len => {
                    pending = Some((from, run_to, len + 1));
                }
                _ => {
                    if let Some(run) = pending.replace((from, to, 1)) {
                        done.effects.push(copy(run));
                        copies += 1;
                    }
                }
            }
            if copies >= most {
                done.graphs += 1;
                copies = 0;
            }
        }
        if let Some(run) = pending {
            done.effects.push(copy(run));
            copies += 1;
        }
        done.graphs += u32::from(copies > 0);
        for (seq, range) in &mut self.ranges {
            *range = Span::EMPTY;
            for (cell, place) in (0..).zip(&self.places) {
                if place.seqs.contains(seq) {
                    widen(range, cell);
                }
            }
        }
    }

    /// Removes positions, moves the later ones.
    ///
    /// # Errors
    /// The server's words.
    pub fn remove(&mut self, seq: u32, begin: i32, end: i32, done: &mut Effects) -> Result<(), String> {
        let offset = if end == END { 0 } else { begin - end };
        let mut left = Span::EMPTY;
        for (cell, place) in (0..).zip(&mut self.places) {
            if !place.seqs.contains(&seq) {
                continue;
            }
            if begin <= place.pos && place.pos < end {
                place.seqs.retain(|&owner| owner != seq);
                continue;
            }
            if place.pos >= end {
                if place.seqs.len() > 1 {
                    return Err("shifting cells shared by multiple sequences not supported".to_owned());
                }
                place.pos += offset;
            }
            widen(&mut left, cell);
        }
        if left == Span::EMPTY {
            self.ranges.remove(&seq);
            return Ok(());
        }
        self.ranges.insert(seq, left);
        if end == END {
            return Ok(());
        }
        if !self.setup.shift {
            return Err("model does not support operation".to_owned());
        }
        done.graphs += 1;
        for cell in left.min..=left.max {
            let place = &self.places[cell as usize];
            let turns = place.seqs.contains(&seq) && place.pos >= begin;
            let delta = if turns { offset } else { 0 };
            let run = Run { start: cell, len: 1 };
            done.effects.push(Effect::Rotate { class: self.setup.class, run, delta });
        }
        Ok(())
    }

    /// Shares a prefix.
    pub fn copy_prefix(&mut self, from: u32, to: u32, len: i32) {
        let mut range = Span::EMPTY;
        for (cell, place) in (0..).zip(&mut self.places) {
            place.seqs.retain(|&owner| owner != to);
            if place.seqs.contains(&from) && place.pos < len {
                place.seqs.push(to);
                place.seqs.sort_unstable();
                widen(&mut range, cell);
            }
        }
        self.ranges.insert(to, range);
    }

    /// Whether a sequence may go on at `pos`.
    pub fn can_resume(&self, seq: u32, pos: i32) -> bool {
        let Kind::Swa { window } = self.setup.kind else { return true };
        let held = || self.places.iter().filter(|place| place.seqs.contains(&seq)).map(|place| place.pos);
        let (Some(first), Some(last)) = (held().min(), held().max()) else { return false };
        let start = |pos: i32| (i64::from(pos) - i64::from(window)).max(0);
        match self.setup.trim {
            Trim::Batch => start(pos) >= start(last),
            Trim::All => start(pos) >= i64::from(first) && pos <= last + 1,
        }
    }
}

/// Several caches.
#[derive(Clone, Debug)]
pub struct LinearWrapper {
    /// In order.
    pub caches: Vec<Linear>,
}

impl LinearWrapper {
    /// Empty caches.
    pub fn new(setups: impl IntoIterator<Item = Setup>) -> Self {
        LinearWrapper { caches: setups.into_iter().map(Linear::new).collect() }
    }

    /// A batch in every cache, or in none.
    ///
    /// # Errors
    /// The first cache's that refuses.
    pub fn forward(&mut self, batch: &[Token], done: &mut Effects) -> Result<(), String> {
        for class in 0..self.caches.len() {
            if let Err(words) = self.caches[class].forward(batch, done) {
                for cache in &mut self.caches[..class] {
                    for token in batch {
                        cache.remove(token.seq, token.pos, END, done)?;
                    }
                }
                return Err(words);
            }
        }
        self.caches.iter().for_each(|cache| cache.writes(batch, done));
        Ok(())
    }

    /// A removal in every cache.
    ///
    /// # Errors
    /// The first cache's that refuses.
    pub fn remove(&mut self, seq: u32, begin: i32, end: i32, done: &mut Effects) -> Result<(), String> {
        self.caches.iter_mut().try_for_each(|cache| cache.remove(seq, begin, end, done))
    }
}

/// Effects one cell at a time, so that it does not matter how they are put together. Copies stay whole: in
/// which pieces they go is the point.
pub fn cell_by_cell(effects: &[Effect]) -> Vec<Effect> {
    let mut single = Vec::new();
    for &effect in effects {
        match effect {
            Effect::Write { class, seq, first, run } => {
                single.extend(run.cells().zip(first..).map(|(start, first)| Effect::Write {
                    class,
                    seq,
                    first,
                    run: Run { start, len: 1 },
                }));
            }
            Effect::Rotate { class, run, delta } => {
                single.extend(run.cells().map(|start| Effect::Rotate {
                    class,
                    run: Run { start, len: 1 },
                    delta,
                }));
            }
            other => single.push(other),
        }
    }
    single
}

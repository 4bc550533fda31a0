//! Single cells, one run of them per batch: the ground of `contiguous:run`, `shift` and `defrag`.
//!
//! Every batch needs as many neighbouring free cells as it has new tokens, all sequences
//! together; nothing is reserved. Sequences that decode side by side interleave cell by cell, so
//! their ends leave holes everywhere: this is how Ollama's and llama.cpp's caches fragment. A
//! window class gives its old cells back as its batches move on. Attention walks the whole used
//! range with an owner test, so holes and other sequences' cells cost time too ([`Reading::Range`]).
//! Source: Ollama `kvcache/causal.go` and llama.cpp `llama_kv_cache`, by their behaviour.
//!
//! Cost: O(log n) per batch and class, O(1) per token.

use std::collections::{VecDeque, vec_deque};
use std::ops::Range;

use crate::defrag::Defrag;
use crate::free::{Fit, FreeMap};
use crate::plan::{Effect, Plan, Why};
use crate::policy::{
    Append, Budget, Cell, ClassId, Full, Geometry, Intent, Policy, Reach, Reading, Reduction, Run, SeqId,
    Shape, Unsupported, Usage, push_run,
};
use crate::shift::Shift;

/// Who a cell belongs to: which token of which sequence.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Owner {
    pub seq: u32,
    pub token: u32,
}

/// A sequence's cells in one class: token `first + i` is in `cells[i]`.
#[derive(Clone, Debug, Default)]
pub(crate) struct Table {
    pub first: u32,
    /// Tokens below this were already outside the window when a removal slid later ones down, so
    /// a window that reaches back to them finds nothing. Ollama and llama.cpp have the same gap.
    pub lost: u32,
    cells: VecDeque<Cell>,
    /// Neighbouring tokens whose cells are no neighbours.
    breaks: u32,
}

impl Table {
    pub fn cells(&self) -> &VecDeque<Cell> {
        &self.cells
    }

    /// Rows of neighbouring cells with neighbouring tokens.
    pub fn runs(&self) -> u32 {
        if self.cells.is_empty() { 0 } else { self.breaks + 1 }
    }

    /// Breaks behind the tokens of a range.
    fn breaks_behind(&self, tokens: Range<usize>) -> u32 {
        let is_break = |&i: &usize| i + 1 < self.cells.len() && self.cells[i] + 1 != self.cells[i + 1];
        tokens.filter(is_break).count() as u32
    }

    fn push(&mut self, cell: Cell) {
        self.breaks += u32::from(self.cells.back().is_some_and(|last| last + 1 != cell));
        self.cells.push_back(cell);
    }

    /// Takes tokens out, by place in the table; later ones close up.
    pub fn drain(&mut self, tokens: Range<usize>) -> vec_deque::IntoIter<Cell> {
        let from = tokens.start.saturating_sub(1);
        self.breaks -= self.breaks_behind(from..tokens.end);
        let dropped: VecDeque<Cell> = self.cells.drain(tokens.clone()).collect();
        self.breaks += self.breaks_behind(from..tokens.start);
        dropped.into_iter()
    }

    /// Puts a token into another cell.
    pub fn set(&mut self, token: usize, cell: Cell) {
        let around = token.saturating_sub(1)..token + 1;
        self.breaks -= self.breaks_behind(around.clone());
        self.cells[token] = cell;
        self.breaks += self.breaks_behind(around);
    }
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Sequence {
    open: bool,
    pub len: u32,
    pub tables: Vec<Table>,
}

/// The cells of one class.
pub(crate) struct Class {
    pub map: FreeMap,
    /// Meaningful for used cells.
    pub owners: Vec<Owner>,
}

/// The policy; what it does when it is fragmented or at its limit are options.
pub(crate) struct Cells {
    pub geometry: Geometry,
    /// What each class keeps: what it reads, or more.
    pub reaches: Vec<Reach>,
    pub classes: Vec<Class>,
    pub sequences: Vec<Sequence>,
    pub defrag: Option<Defrag>,
    pub shift: Option<Shift>,
    /// Cells on their way back to a map, joined to runs.
    scratch: Vec<Run>,
}

impl Cells {
    pub fn new(geometry: &Geometry, fit: Fit) -> Self {
        let class = |cells: u32| Class {
            map: FreeMap::new(cells, fit),
            owners: vec![Owner::default(); cells as usize],
        };
        let classes = geometry.classes.iter().map(|layers| class(layers.cells)).collect();
        Cells {
            geometry: geometry.clone(),
            reaches: geometry.classes.iter().map(|class| class.reach).collect(),
            classes,
            sequences: Vec::new(),
            defrag: None,
            shift: None,
            scratch: Vec::new(),
        }
    }

    fn sequence(&self, seq: SeqId) -> &Sequence {
        let sequence = &self.sequences[seq.index()];
        assert!(sequence.open, "sequence {} is open", seq.0);
        sequence
    }

    /// First token of the class that the sequence keeps while the append is computed.
    fn first_kept(&self, append: &Append, class: usize) -> u32 {
        let sequence = self.sequence(append.seq);
        let next = if append.restored { sequence.len + append.tokens } else { sequence.len };
        self.reaches[class].first_needed(next).max(sequence.tables[class].first)
    }

    /// Cells the batch gives back and cells it needs, in one class.
    fn demand(&self, batch: &[Append], class: usize) -> (u32, u32) {
        if self.reaches[class] == Reach::Full {
            return (0, batch.iter().map(|append| append.tokens).sum());
        }
        let (mut give, mut take) = (0, 0);
        for append in batch {
            let sequence = self.sequence(append.seq);
            let table = &sequence.tables[class];
            let first = self.first_kept(append, class);
            give += (first - table.first).min(table.cells.len() as u32);
            take += sequence.len + append.tokens - first.max(sequence.len);
        }
        (give, take)
    }

    /// Refuses a batch for which there are too few cells, wherever they lie.
    pub fn check_count(&self, batch: &[Append]) -> Result<(), Full> {
        for (class, cells) in self.classes.iter().enumerate() {
            let (give, take) = self.demand(batch, class);
            let free = cells.map.free() + give;
            if take > free {
                let largest_free_run = cells.map.largest_run();
                return Err(Full { class: ClassId(class as u8), needed: take, free, largest_free_run });
            }
        }
        Ok(())
    }

    /// The cells below the windows of the batch's sequences, in `scratch`.
    fn collect_trim(&mut self, batch: &[Append], class: usize) {
        let mut trimmed = std::mem::take(&mut self.scratch);
        trimmed.clear();
        for append in batch {
            let first = self.first_kept(append, class);
            let table = &self.sequences[append.seq.index()].tables[class];
            for &cell in table.cells.iter().take((first - table.first) as usize) {
                push_run(&mut trimmed, cell, 1);
            }
        }
        self.scratch = trimmed;
    }

    /// Gives them back to the map; the tables keep them until the batch is sure to be placed.
    fn trim(&mut self, batch: &[Append], class: usize) {
        self.collect_trim(batch, class);
        self.classes[class].map.vacate_all(&self.scratch);
    }

    fn undo_trim(&mut self, batch: &[Append], class: usize) {
        self.collect_trim(batch, class);
        for run in &self.scratch {
            self.classes[class].map.occupy(run.cells());
        }
    }

    /// Takes what was trimmed out of the tables.
    fn drop_trimmed(&mut self, append: &Append, class: usize) {
        let first = self.first_kept(append, class);
        let table = &mut self.sequences[append.seq.index()].tables[class];
        let gone = ((first - table.first) as usize).min(table.cells.len());
        if gone > 0 {
            table.breaks -= table.breaks_behind(0..gone);
            table.cells.drain(..gone);
        }
        table.first = first;
    }

    fn vacate_all(&mut self, class: usize, cells: impl Iterator<Item = Cell>) {
        self.scratch.clear();
        cells.for_each(|cell| push_run(&mut self.scratch, cell, 1));
        self.classes[class].map.vacate_all(&self.scratch);
    }

    /// One run per class for the batch, or nothing.
    fn place_runs(&mut self, batch: &[Append], plan: &mut Plan) -> Result<(), Full> {
        // (first cell, cells, next-fit cursor before) per class placed so far.
        let mut placed: Vec<(Cell, u32, Cell)> = Vec::with_capacity(self.classes.len());
        for class in 0..self.classes.len() {
            let (give, take) = self.demand(batch, class);
            if give > 0 {
                self.trim(batch, class);
            }
            let cursor = self.classes[class].map.cursor();
            match if take == 0 { Some(0) } else { self.classes[class].map.take(take) } {
                Some(start) => placed.push((start, take, cursor)),
                None => {
                    let map = &self.classes[class].map;
                    let full = Full {
                        class: ClassId(class as u8),
                        needed: take,
                        free: map.free(),
                        largest_free_run: map.largest_run(),
                    };
                    for earlier in (0..=class).rev() {
                        if let Some(&(start, taken, cursor)) = placed.get(earlier) {
                            let map = &mut self.classes[earlier].map;
                            if taken > 0 {
                                map.vacate(start..start + taken);
                            }
                            map.set_cursor(cursor);
                        }
                        if self.demand(batch, earlier).0 > 0 {
                            self.undo_trim(batch, earlier);
                        }
                    }
                    return Err(full);
                }
            }
        }
        for (class, (start, _, _)) in placed.into_iter().enumerate() {
            let mut cell = start;
            for append in batch {
                self.drop_trimmed(append, class);
                let sequence = &mut self.sequences[append.seq.index()];
                let table = &mut sequence.tables[class];
                let from = table.first.max(sequence.len);
                let run = Run { start: cell, len: sequence.len + append.tokens - from };
                for token in from..from + run.len {
                    self.classes[class].owners[cell as usize] = Owner { seq: append.seq.0, token };
                    table.push(cell);
                    cell += 1;
                }
                if plan.wants_writes() && !append.restored && run.len > 0 {
                    plan.push(Effect::Write {
                        class: ClassId(class as u8),
                        seq: append.seq,
                        first: from,
                        run,
                    });
                }
            }
        }
        for append in batch {
            self.sequences[append.seq.index()].len += append.tokens;
        }
        Ok(())
    }
}

impl Policy for Cells {
    fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    fn open(&mut self, seq: SeqId, _: &Intent) -> u32 {
        if self.sequences.len() <= seq.index() {
            self.sequences.resize_with(seq.index() + 1, Sequence::default);
        }
        let sequence = &mut self.sequences[seq.index()];
        assert!(!sequence.open, "sequence {} is not open yet", seq.0);
        sequence.open = true;
        sequence.len = 0;
        sequence.tables.resize_with(self.classes.len(), Table::default);
        0
    }

    fn place(&mut self, batch: &[Append], plan: &mut Plan) -> Result<(), Full> {
        let refused = match self.place_runs(batch, plan) {
            Ok(()) => return Ok(()),
            Err(full) => full,
        };
        if self.defrag.is_none() || self.check_count(batch).is_err() {
            return Err(refused);
        }
        // Enough cells everywhere, so the batch will be placed: compaction makes a class's free
        // cells one run, once those below the windows are given back.
        plan.begin_defrag();
        for class in 0..self.classes.len() {
            self.trim(batch, class);
            batch.iter().for_each(|append| self.drop_trimmed(append, class));
        }
        let mut result = Err(refused);
        for _ in 0..self.classes.len() {
            if let Err(full) = result {
                self.compact(full.class, u32::MAX, Why::Defrag, plan);
                result = self.place_runs(batch, plan);
            }
        }
        result
    }

    fn remove(&mut self, seq: SeqId, tokens: Range<u32>, plan: &mut Plan) -> Result<(), Unsupported> {
        self.remove_tokens(seq, tokens, plan);
        Ok(())
    }

    fn reduces(&self) -> bool {
        self.shift.is_some()
    }

    fn head_kept(&self, keep: u32) -> u32 {
        let most = self.geometry.context_max;
        self.shift.map_or(keep.min(most.saturating_sub(1)), |shift| shift.head(most))
    }

    fn reduce(&mut self, seq: SeqId, _: u32, plan: &mut Plan) -> Reduction {
        let Some(shift) = self.shift else { return Reduction::Stop };
        let dropped = shift.range(self.sequence(seq).len, self.geometry.context_max);
        self.remove_tokens(seq, dropped.clone(), plan);
        if dropped.is_empty() { Reduction::Stop } else { Reduction::Dropped(dropped.end - dropped.start) }
    }

    fn truncate(&mut self, seq: SeqId, len: u32) -> u32 {
        let sequence = &mut self.sequences[seq.index()];
        let mut keep = len.min(sequence.len);
        for (table, reach) in sequence.tables.iter().zip(&self.reaches) {
            if reach.first_needed(keep) < table.first {
                keep = 0;
            }
        }
        sequence.len = keep;
        for class in 0..self.classes.len() {
            let table = &mut self.sequences[seq.index()].tables[class];
            let kept = (keep.saturating_sub(table.first) as usize).min(table.cells.len());
            let dropped = table.drain(kept..table.cells.len());
            if kept == 0 {
                table.first = if keep == 0 { 0 } else { table.first.min(keep) };
                table.lost = table.lost.min(table.first);
            }
            self.vacate_all(class, dropped);
        }
        keep
    }

    fn release(&mut self, seq: SeqId) {
        assert!(self.sequence(seq).open, "sequence {} is open", seq.0);
        for class in 0..self.classes.len() {
            let mut cells = std::mem::take(&mut self.sequences[seq.index()].tables[class].cells);
            self.vacate_all(class, cells.drain(..));
            self.sequences[seq.index()].tables[class] = Table { cells, ..Table::default() };
        }
        let sequence = &mut self.sequences[seq.index()];
        sequence.open = false;
        sequence.len = 0;
    }

    fn restart(&mut self) {
        self.classes.iter_mut().for_each(|class| class.map.set_cursor(0));
    }

    fn maintain(&mut self, budget: Budget, plan: &mut Plan) -> u32 {
        self.compact_ahead(budget, plan)
    }

    fn len(&self, seq: SeqId) -> u32 {
        self.sequences.get(seq.index()).map_or(0, |sequence| sequence.len)
    }

    fn layout(&self, class: ClassId, seq: SeqId, runs: &mut Vec<Run>) -> Range<u32> {
        runs.clear();
        let sequence = self.sequence(seq);
        let table = &sequence.tables[class.index()];
        for &cell in &table.cells {
            push_run(runs, cell, 1);
        }
        table.first.min(sequence.len)..sequence.len
    }

    fn usage(&self, class: ClassId) -> Usage {
        let map = &self.classes[class.index()].map;
        let cells = self.geometry.classes[class.index()].cells;
        Usage { cells, held: cells - map.free(), cached: 0, free: map.free(), placeable: map.largest_run() }
    }

    fn shape(&self, class: ClassId) -> Shape {
        self.classes[class.index()].map.shape()
    }

    fn reading(&self) -> Reading {
        Reading::Range
    }

    fn audit(&self) -> Result<(), String> {
        for (id, class) in self.classes.iter().enumerate() {
            let tables = self.sequences.iter().enumerate().filter(|(_, sequence)| sequence.open);
            let tables = tables.map(|(seq, sequence)| (seq as u32, &sequence.tables[id]));
            let cells = tables.clone().flat_map(|(_, table)| &table.cells).map(|&cell| cell..cell + 1);
            class.map.audit(cells).map_err(|what| format!("class {id}: {what}"))?;
            for (seq, table) in tables {
                let tokens = (table.first..).zip(&table.cells);
                for (token, &cell) in tokens {
                    if class.owners[cell as usize] != (Owner { seq, token }) {
                        return Err(format!(
                            "class {id}: cell {cell} does not name token {token} of sequence {seq}"
                        ));
                    }
                }
                let runs = table.breaks_behind(0..table.cells.len()) + u32::from(!table.cells.is_empty());
                if runs != table.runs() {
                    return Err(format!("class {id}: sequence {seq} lies in {runs} runs, counted otherwise"));
                }
                let len = self.sequences[seq as usize].len;
                let end = table.first + table.cells.len() as u32;
                let needed = self.reaches[id].first_needed(len).max(table.lost);
                if len > 0 && (end != len || table.first > needed) {
                    return Err(format!("class {id}: sequence {seq} lacks cells it reads"));
                }
            }
        }
        Ok(())
    }
}

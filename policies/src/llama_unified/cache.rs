//! The cache itself: one row of cells, a search position, and what is still to be done.
//!
//! A faithful state machine, call by call: which cell each token gets, where the next search
//! begins, what a compaction moves. What a scan over all cells would find is read from a free
//! map and from tables sorted by position.
//! Source: `llama_kv_cache_unified` as Ollama 0.6.6 vendors it, by its behaviour.

use std::ops::Range;

use crate::free::{Fit, FreeMap};
use crate::plan::{Effect, Why};
use crate::policy::{Cell, ClassId, Run, SeqId, Shape, push_run};

/// Nodes that one graph may have; a compaction is cut into graphs of so many.
const GRAPH_NODES: u32 = 65_536;

/// All effects name this class; whoever has more repeats them.
const CLASS: ClassId = ClassId(0);

/// New tokens of one sequence: positions `first..first + tokens`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// Sequence.
    pub seq: SeqId,
    /// Position of the first token, not negative.
    pub first: i32,
    /// Tokens.
    pub tokens: u32,
}

/// No run of free cells for a micro-batch, even after compaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("could not find a kv cache slot for {tokens} tokens")]
pub struct NoSlot {
    /// Tokens of the micro-batch.
    pub tokens: u32,
}

/// What the compactions of one decode cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Work {
    /// Compactions asked for, those that found nothing to move included.
    pub defrags: u32,
    /// Blocks copied.
    pub moves: u32,
    /// Graphs computed for them.
    pub graphs: u32,
}

/// One cell.
#[derive(Clone, Copy, Debug)]
struct State {
    /// Position of its token; negative if the cell is free.
    pos: i32,
    /// Positions that its K has still to be rotated by.
    delta: i32,
    /// Sequences that it belongs to.
    holders: u32,
}

const FREE: State = State { pos: -1, delta: 0, holders: 0 };

/// A block that a compaction has moved.
#[derive(Clone, Copy, Debug)]
struct Move {
    from: Cell,
    to: Cell,
    len: u32,
}

/// The cache.
#[derive(Clone, Debug)]
pub struct UnifiedCache {
    cells: Vec<State>,
    map: FreeMap,
    /// Cells of each sequence, by position.
    tables: Vec<Vec<Cell>>,
    layers: u32,
    ubatch: u32,
    pad: u32,
    head: Cell,
    used: u32,
    attended: u32,
    /// Cells shifted since the last decode.
    shifted: Vec<Cell>,
    /// A compaction that found nothing to move stays wanted, and is tried again.
    wants_defrag: bool,
    shared_shift: bool,
    work: Work,
    moves: Vec<Move>,
    scratch: Vec<Run>,
}

impl UnifiedCache {
    /// All cells free. `layers` counts the layers of the model, `ubatch` the most tokens that are
    /// given cells at once, `pad` what the attended length is rounded up to.
    pub fn new(size: u32, layers: u32, ubatch: u32, pad: u32) -> Self {
        UnifiedCache {
            cells: vec![FREE; size as usize],
            map: FreeMap::new(size, Fit::First),
            tables: Vec::new(),
            layers: layers.max(1),
            ubatch: ubatch.max(1),
            pad: pad.max(1),
            head: 0,
            used: 0,
            attended: 0,
            shifted: Vec::new(),
            wants_defrag: false,
            shared_shift: false,
            work: Work::default(),
            moves: Vec::new(),
            scratch: Vec::new(),
        }
    }

    /// Cells.
    pub fn size(&self) -> u32 {
        self.cells.len() as u32
    }

    /// Cells that hold a token.
    pub fn used(&self) -> u32 {
        self.used
    }

    /// Where the next search begins.
    pub fn head(&self) -> Cell {
        self.head
    }

    /// Cells that attention walked for the micro-batch placed last.
    pub fn attended(&self) -> u32 {
        self.attended
    }

    /// What the last decode spent on compaction.
    pub fn work(&self) -> Work {
        self.work
    }

    /// Where the free cells are.
    pub fn shape(&self) -> Shape {
        self.map.shape()
    }

    /// Longest free run.
    pub fn largest_run(&self) -> u32 {
        self.map.largest_run()
    }

    /// Position of the token in a cell; none in a free one.
    pub fn position(&self, cell: Cell) -> Option<u32> {
        u32::try_from(self.cells[cell as usize].pos).ok()
    }

    /// Cells of a sequence, by position.
    pub fn table(&self, seq: SeqId) -> &[Cell] {
        self.tables.get(seq.index()).map_or(&[], Vec::as_slice)
    }

    /// Whether a shift has ever moved a cell of two sequences, so that positions may be wrong.
    pub fn has_shifted_shared(&self) -> bool {
        self.shared_shift
    }

    /// Replaces `turns` by the cells that the next decode rotates, and how far.
    pub fn unrotated(&self, turns: &mut Vec<(Run, i32)>) {
        turns.clear();
        let mut cells = self.shifted.clone();
        cells.sort_unstable();
        cells.dedup();
        for cell in cells {
            let State { pos, delta, .. } = self.cells[cell as usize];
            if pos < 0 || delta == 0 {
                continue;
            }
            match turns.last_mut() {
                Some((run, of)) if run.cells().end == cell && *of == delta => run.len += 1,
                _ => turns.push((Run { start: cell, len: 1 }, delta)),
            }
        }
    }

    /// Gives cells to a batch, a micro-batch at a time, each in one run. What has to be done is
    /// appended to `effects` in order: rotations, copies, writes.
    ///
    /// # Errors
    /// [`NoSlot`] if a micro-batch found none; then no token of the batch has a cell. Rotations
    /// and copies are done all the same, and writes that came before the refusal are in `effects`.
    pub fn decode(&mut self, batch: &[Part], effects: &mut Vec<Effect>) -> Result<(), NoSlot> {
        self.work = Work::default();
        self.rotate(effects);
        let mut placed: Vec<Run> = Vec::new();
        if self.wants_defrag {
            self.defrag(&mut placed, effects);
        }
        let mut parts = batch.iter().copied();
        let mut part = parts.next();
        let mut left: u32 = batch.iter().map(|part| part.tokens).sum();
        while left > 0 {
            let tokens = left.min(self.ubatch);
            let found = self.find(tokens).or_else(|| {
                self.defrag(&mut placed, effects);
                self.find(tokens)
            });
            let Some(start) = found else {
                self.roll_back(batch, &placed);
                return Err(NoSlot { tokens });
            };
            self.map.occupy(start..start + tokens);
            self.used += tokens;
            placed.push(Run { start, len: tokens });
            let mut cell = start;
            while let Some(now) = part.as_mut().filter(|_| cell < start + tokens) {
                let run = Run { start: cell, len: now.tokens.min(start + tokens - cell) };
                if run.len > 0 {
                    self.fill(now.seq, now.first, run);
                    effects.push(Effect::Write { class: CLASS, seq: now.seq, first: now.first as u32, run });
                }
                now.first += run.len as i32;
                now.tokens -= run.len;
                cell += run.len;
                if now.tokens == 0 {
                    part = parts.next();
                }
            }
            let walked = self.map.high_water().next_multiple_of(self.pad);
            self.attended = walked.min(self.size());
            left -= tokens;
        }
        Ok(())
    }

    /// Rotates what was shifted since the last decode.
    fn rotate(&mut self, effects: &mut Vec<Effect>) {
        if self.shifted.is_empty() {
            return;
        }
        let mut turns = Vec::new();
        self.unrotated(&mut turns);
        effects.extend(turns.into_iter().map(|(run, delta)| Effect::Rotate { class: CLASS, run, delta }));
        for cell in self.shifted.drain(..) {
            self.cells[cell as usize].delta = 0;
        }
    }

    /// The next run of free cells from the head on, then from the beginning; the head goes there.
    fn find(&mut self, tokens: u32) -> Option<Cell> {
        if self.head > self.used.saturating_add(tokens.saturating_mul(2)) {
            // Many cells below the head must be free.
            self.head = 0;
        }
        if tokens > self.size() {
            return None;
        }
        let found = self.map.first_fit_from(self.head, tokens).or_else(|| self.map.first_fit(tokens));
        self.head = found.unwrap_or_else(|| self.head_of_failure(tokens));
        found
    }

    /// Where a scan stands that has failed. It steps behind every used cell it meets, wraps where
    /// the batch would reach beyond the end, and gives up at the first used cell that makes the
    /// cells it has passed as many as there are.
    fn head_of_failure(&self, tokens: u32) -> Cell {
        let size = self.size();
        let last = if self.head == 0 { size } else { self.head } - 1;
        let stop = self.map.next_used(last);
        let from = self.map.prev_used(last).map_or(0, |cell| cell + 1);
        let stops = stop < size && from + tokens <= size;
        1 + if stops { stop } else { self.map.next_used(0) }
    }

    /// Puts tokens into cells that the map has given.
    fn fill(&mut self, seq: SeqId, first: i32, run: Run) {
        if self.tables.len() <= seq.index() {
            self.tables.resize_with(seq.index() + 1, Vec::new);
        }
        let table = &mut self.tables[seq.index()];
        for (cell, pos) in run.cells().zip(first..) {
            self.cells[cell as usize] = State { pos, delta: 0, holders: 1 };
            match table.last() {
                Some(&last) if self.cells[last as usize].pos > pos => {
                    let at = table.partition_point(|&cell| self.cells[cell as usize].pos <= pos);
                    table.insert(at, cell);
                }
                _ => table.push(cell),
            }
        }
    }

    /// Frees what this decode has been given.
    fn roll_back(&mut self, batch: &[Part], placed: &[Run]) {
        for run in placed {
            self.cells[run.start as usize..run.cells().end as usize].fill(FREE);
            self.map.vacate(run.cells());
            self.used -= run.len;
        }
        if let Some(lowest) = placed.iter().map(|run| run.start).min() {
            self.head = self.head.min(lowest);
            for part in batch {
                if let Some(table) = self.tables.get_mut(part.seq.index()) {
                    table.retain(|&cell| self.cells[cell as usize].pos >= 0);
                }
            }
        }
    }

    /// Fills every hole below the number of used cells, from the lowest up, each with so many of
    /// the highest cells, in their order. Cells that lie together go as one block. `placed` are
    /// cells that the caller follows.
    fn defrag(&mut self, placed: &mut Vec<Run>, effects: &mut Vec<Effect>) {
        self.work.defrags += 1;
        let mut moves = std::mem::take(&mut self.moves);
        moves.clear();
        let mut top = self.map.high_water();
        let mut from = 0;
        while let Some(hole) = self.map.first_fit_from(from, 1).filter(|&hole| hole < self.used) {
            let end = self.map.next_used(hole).min(self.used);
            let first = moves.len();
            let mut to = end;
            while to > hole {
                let last = self.map.prev_used(top).expect("as many cells lie above as are free below");
                let len = (last + 1 - self.map.used_run_start(last)).min(to - hole);
                top = last + 1 - len;
                to -= len;
                moves.push(Move { from: top, to, len });
            }
            moves[first..].reverse();
            self.map.occupy(hole..end);
            from = end;
        }
        self.wants_defrag = moves.is_empty();
        if !moves.is_empty() {
            self.follow(&mut moves, placed, effects);
        }
        self.moves = moves;
    }

    /// Brings cells, tables and counts up to date with the blocks moved.
    fn follow(&mut self, moves: &mut [Move], placed: &mut Vec<Run>, effects: &mut Vec<Effect>) {
        self.work.moves += moves.len() as u32;
        let most = (GRAPH_NODES.saturating_sub(2 * self.layers) / (6 * self.layers)).max(1);
        self.work.graphs += (moves.len() as u32).div_ceil(most);
        self.head = self.used;
        for &Move { from, to, len } in &*moves {
            effects.push(Effect::Copy { class: CLASS, from, to, len, why: Why::Defrag });
            let cells = from as usize..(from + len) as usize;
            self.cells.copy_within(cells.clone(), to as usize);
            self.cells[cells].fill(FREE);
        }
        moves.sort_unstable_by_key(|block| block.from);
        self.scratch.clear();
        moves.iter().for_each(|block| push_run(&mut self.scratch, block.from, block.len));
        self.map.vacate_all(&self.scratch);
        let used = self.used;
        let now = |cell: Cell| {
            if cell < used {
                return cell;
            }
            let block = moves[moves.partition_point(|block| block.from <= cell) - 1];
            block.to + (cell - block.from)
        };
        for cell in self.tables.iter_mut().flatten() {
            *cell = now(*cell);
        }
        if placed.iter().any(|run| run.cells().end > used) {
            let cells: Vec<Cell> = placed.iter().flat_map(|run| run.cells()).map(now).collect();
            placed.clear();
            cells.into_iter().for_each(|cell| push_run(placed, cell, 1));
        }
    }

    /// Where in a sequence's table the positions lie. A negative start means the first, a negative
    /// end means no end.
    fn within(&self, seq: SeqId, positions: &Range<i32>) -> Range<usize> {
        let table = self.table(seq);
        let below = |pos: i32| table.partition_point(|&cell| self.cells[cell as usize].pos < pos);
        let start = below(positions.start.max(0));
        let end = if positions.end < 0 { table.len() } else { below(positions.end) };
        start..end.max(start)
    }

    /// Takes positions from a sequence (a negative end means no end). Cells that nobody else has
    /// become free, and the head goes down to the lowest of them.
    pub fn remove(&mut self, seq: SeqId, positions: Range<i32>) {
        let within = self.within(seq, &positions);
        let Some(table) = self.tables.get_mut(seq.index()) else { return };
        self.scratch.clear();
        let mut lowest = self.head;
        for cell in table.drain(within) {
            let state = &mut self.cells[cell as usize];
            state.holders -= 1;
            if state.holders == 0 {
                *state = FREE;
                lowest = lowest.min(cell);
                self.used -= 1;
                push_run(&mut self.scratch, cell, 1);
            }
        }
        self.head = lowest;
        self.map.vacate_all(&self.scratch);
    }

    /// Makes positions of one sequence another's as well. The search begins at the first cell.
    pub fn copy(&mut self, from: SeqId, to: SeqId, positions: Range<i32>) {
        if from == to {
            return;
        }
        self.head = 0;
        let within = self.within(from, &positions);
        if within.is_empty() {
            return;
        }
        let shared = self.table(from)[within].to_vec();
        if self.tables.len() <= to.index() {
            self.tables.resize_with(to.index() + 1, Vec::new);
        }
        let mut table = std::mem::take(&mut self.tables[to.index()]);
        let had = table.len();
        for cell in shared {
            let pos = self.cells[cell as usize].pos;
            let at = table[..had].partition_point(|&other| self.cells[other as usize].pos < pos);
            let same = |&&other: &&Cell| self.cells[other as usize].pos == pos;
            if !table[at..had].iter().take_while(same).any(|&other| other == cell) {
                self.cells[cell as usize].holders += 1;
                table.push(cell);
            }
        }
        self.tables[to.index()] = table;
        self.sort(to.index());
    }

    /// Adds `delta` to positions of a sequence (a negative end means no end), in every cell that it
    /// has, another's or not. What becomes negative is free. K is rotated by the next decode.
    pub fn shift(&mut self, seq: SeqId, positions: Range<i32>, delta: i32) {
        if delta == 0 || positions.start.max(0) == positions.end {
            return;
        }
        let within = self.within(seq, &positions);
        self.scratch.clear();
        let mut lowest = None;
        let mut shared = false;
        let cells = self.tables.get(seq.index()).map_or(&[][..], |table| &table[within]);
        for &cell in cells {
            let state = &mut self.cells[cell as usize];
            shared |= state.holders > 1;
            state.pos = state.pos.saturating_add(delta);
            state.delta = state.delta.saturating_add(delta);
            self.shifted.push(cell);
            if state.pos < 0 {
                *state = FREE;
                lowest = Some(lowest.map_or(cell, |lowest: Cell| lowest.min(cell)));
                self.used -= 1;
                push_run(&mut self.scratch, cell, 1);
            }
        }
        self.head = lowest.unwrap_or(0);
        self.map.vacate_all(&self.scratch);
        self.shared_shift |= shared;
        if shared {
            (0..self.tables.len()).for_each(|id| self.sort(id));
        } else {
            self.sort(seq.index());
        }
    }

    /// Puts a table in order again, without cells that have become free.
    fn sort(&mut self, id: usize) {
        let Some(table) = self.tables.get_mut(id) else { return };
        let pos = |cell: &Cell| self.cells[*cell as usize].pos;
        table.retain(|cell| pos(cell) >= 0);
        if !table.is_sorted_by_key(pos) {
            table.sort_by_key(pos);
        }
    }

    /// Checks every book against every other, in O(cells).
    ///
    /// # Errors
    /// What does not agree.
    pub fn audit(&self) -> Result<(), String> {
        let held = |&cell: &Cell| self.cells[cell as usize].pos >= 0;
        let held: Vec<Cell> = (0..self.size()).filter(held).collect();
        self.map.audit(held.iter().map(|&cell| cell..cell + 1))?;
        if held.len() as u32 != self.used {
            return Err(format!("{} cells counted, {} used", self.used, held.len()));
        }
        let mut holders = vec![0; self.cells.len()];
        for (seq, table) in self.tables.iter().enumerate() {
            if !table.is_sorted_by_key(|&cell| self.cells[cell as usize].pos) {
                return Err(format!("the cells of sequence {seq} are not by position"));
            }
            table.iter().for_each(|&cell| holders[cell as usize] += 1);
        }
        match (0..).zip(&self.cells).find(|&(cell, state): &(usize, _)| state.holders != holders[cell]) {
            Some((cell, state)) => {
                Err(format!("cell {cell} counts {} holders, {} tables name it", state.holders, holders[cell]))
            }
            None => Ok(()),
        }
    }
}

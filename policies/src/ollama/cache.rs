//! One cache: cells with a position and a set of owners, first-fit, removal, prefix copies.

use std::collections::BTreeMap;

use crate::free::{Fit, FreeMap};
use crate::ollama::END;
use crate::ollama::sequence::{Held, Sequence, Span};
use crate::ollama::set::CellSet;
use crate::plan::{Effect, Plan};
use crate::policy::{Cell, ClassId, Full, Run, SeqId, Shape, push_run};

/// What the layers of a cache read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// So many tokens before a token, and the token itself.
    Swa {
        /// Tokens before it.
        window: u32,
    },
    /// Everything before a token.
    Causal,
}

/// Whose old tokens a batch lets go of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trim {
    /// Those of the sequences in the batch (0.6.6).
    Batch,
    /// Those of all sequences (0.12.4), which also resume only where the whole window is held.
    All,
}

/// What a cache is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Setup {
    /// Its number, for plans.
    pub class: ClassId,
    /// What is read.
    pub kind: Kind,
    /// Cells; [`cells`](crate::ollama::cells) says how many.
    pub cells: u32,
    /// The range that attention walks begins and ends at multiples of this.
    pub pad: u32,
    /// Layers; compaction splits its work so that no graph has too many nodes.
    pub layers: u32,
    /// Nodes of a compute graph.
    pub graph_nodes: u32,
    /// Whether the model can move tokens to other positions.
    pub shift: bool,
    /// Who is trimmed.
    pub trim: Trim,
}

/// A token of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Token {
    /// Sequence; ids are small and dense.
    pub seq: u32,
    /// Position.
    pub pos: i32,
}

/// What a cache refuses, in the server's words. Something may have changed all the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Trouble {
    /// No run of free cells is long enough, even after compaction.
    #[error("could not find a kv cache slot (length: {length})")]
    Full {
        /// Cells of the cache that refused.
        length: u32,
        /// What it lacked.
        full: Full,
    },
    /// A cell that another sequence reads too would have to move.
    #[error("shifting cells shared by multiple sequences not supported")]
    Shared,
    /// The model cannot move tokens; the books say that they have moved.
    #[error("model does not support operation")]
    NoShift,
}

/// Which write a cell's K and V come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Tag {
    writer: u32,
    pos: i32,
}

/// Nobody's; every other owner but [`SHARED`] is a sequence.
const FREE: u32 = u32::MAX;
/// Several; they stand in `Cache::shared`.
const SHARED: u32 = u32::MAX - 1;

#[derive(Clone, Copy, Debug)]
pub(super) struct Books {
    pub pos: i32,
    pub owner: u32,
    /// What the cell should hold.
    pub meant: Tag,
    /// What it holds.
    pub held: Tag,
}

impl Books {
    /// Nobody owns the cell any more; its data stays.
    pub fn release(&mut self) {
        self.owner = FREE;
    }
}

/// The cache.
#[derive(Clone, Debug)]
pub struct Cache {
    pub(super) setup: Setup,
    pub(super) map: FreeMap,
    pub(super) books: Vec<Books>,
    pub(super) shared: BTreeMap<Cell, Vec<u32>>,
    pub(super) sequences: Vec<Sequence>,
    /// Used cells that do not hold what they should, but another writer's.
    pub(super) foreign: CellSet,
    writers: u32,
    cur_loc: Cell,
    cur_range: Span,
    /// Lowest position in the batch by sequence, as far as `in_batch` names them.
    low: Vec<i32>,
    in_batch: Vec<u32>,
    /// Cells on their way back to the map, joined to runs.
    freed: Vec<Run>,
}

impl Cache {
    /// An empty cache.
    pub fn new(setup: Setup) -> Self {
        let books = Books { pos: 0, owner: FREE, meant: Tag::default(), held: Tag::default() };
        Cache {
            setup,
            map: FreeMap::new(setup.cells, Fit::First),
            books: vec![books; setup.cells as usize],
            shared: BTreeMap::new(),
            sequences: Vec::new(),
            foreign: CellSet::default(),
            writers: 0,
            cur_loc: 0,
            cur_range: Span { min: 0, max: 0 },
            low: Vec::new(),
            in_batch: Vec::new(),
            freed: Vec::new(),
        }
    }

    /// What it is made of.
    pub fn setup(&self) -> &Setup {
        &self.setup
    }

    /// Free cells.
    pub fn free(&self) -> u32 {
        self.map.free()
    }

    /// Where the free cells are.
    pub fn shape(&self) -> Shape {
        self.map.shape()
    }

    /// First cell of the batch placed last; 0 where it was refused.
    pub fn cur_loc(&self) -> Cell {
        self.cur_loc
    }

    /// The range that attention walks for the batch placed last, padded.
    pub fn cur_range(&self) -> Span {
        self.cur_range
    }

    /// Position of a used cell; whatever it was before for a free one.
    pub fn pos(&self, cell: Cell) -> i32 {
        self.books[cell as usize].pos
    }

    /// The sequences that own a cell, in order; none own a free one.
    pub fn owners(&self, cell: Cell) -> &[u32] {
        match &self.books[cell as usize].owner {
            &FREE => &[],
            &SHARED => &self.shared[&cell],
            owner => std::slice::from_ref(owner),
        }
    }

    /// The stored bounds of a sequence's cells, if the cache knows it.
    pub fn range(&self, seq: u32) -> Option<Span> {
        self.sequences.get(seq as usize).and_then(|sequence| sequence.range)
    }

    /// One more than the highest sequence ever named.
    pub fn sequences(&self) -> u32 {
        self.sequences.len() as u32
    }

    /// Whether a token reads a cell.
    pub fn sees(&self, token: Token, cell: Cell) -> bool {
        let pos = self.pos(cell);
        let oldest = token.pos.saturating_sub_unsigned(self.window().unwrap_or(u32::MAX));
        pos <= token.pos && pos >= oldest && self.owners(cell).contains(&token.seq)
    }

    /// Cells of the sequence that hold another writer's K and V, or nobody's. O(1).
    pub fn foreign(&self, seq: u32) -> u32 {
        self.sequences.get(seq as usize).map_or(0, |sequence| sequence.foreign)
    }

    /// All such cells, in order. O(cells / 64).
    pub fn foreign_cells(&self) -> impl Iterator<Item = Cell> {
        self.foreign.iter()
    }

    fn window(&self) -> Option<u32> {
        match self.setup.kind {
            Kind::Swa { window } => Some(window),
            Kind::Causal => None,
        }
    }

    pub(super) fn sequence(&self, seq: u32) -> Option<&Sequence> {
        self.sequences.get(seq as usize)
    }

    fn sequence_mut(&mut self, seq: u32) -> &mut Sequence {
        let len = seq as usize + 1;
        if self.sequences.len() < len {
            self.sequences.resize_with(len, Sequence::default);
            self.low.resize(len, i32::MAX);
        }
        &mut self.sequences[seq as usize]
    }

    /// Makes the range that the largest graph walks the current one; the cells stay as they are.
    pub fn reserve(&mut self) {
        self.cur_loc = 0;
        self.cur_range = Span { min: 0, max: self.setup.cells.saturating_sub(1) };
    }

    /// Gives cells to a batch. The plan gets copies, but no writes: see [`Cache::write`].
    ///
    /// # Errors
    /// [`Trouble::Full`]; what was trimmed and compacted stays so.
    pub fn forward(&mut self, batch: &[Token], plan: &mut Plan) -> Result<(), Trouble> {
        if batch.is_empty() {
            return Ok(());
        }
        self.note_batch(batch);
        self.trim();
        let len = batch.len() as u32;
        let found = match self.map.first_fit(len) {
            Some(start) => Some(start),
            None => {
                self.defragment(plan);
                self.map.first_fit(len)
            }
        };
        let Some(start) = found else {
            self.cur_loc = 0;
            return Err(Trouble::Full { length: self.setup.cells, full: self.full(len) });
        };
        self.map.occupy(start..start + len);
        self.cur_loc = start;
        for (cell, &token) in (start..).zip(batch) {
            self.take(cell, token);
        }
        let ranges = self.in_batch.iter().filter_map(|&seq| self.sequences[seq as usize].range);
        let range = ranges.fold(Span::EMPTY, Span::union);
        let pad = self.setup.pad.max(1);
        let max = ((range.max + 1).next_multiple_of(pad)).min(self.setup.cells) - 1;
        self.cur_range = Span { min: range.min / pad * pad, max };
        Ok(())
    }

    fn full(&self, needed: u32) -> Full {
        let (free, largest_free_run) = (self.map.free(), self.map.largest_run());
        Full { class: self.setup.class, needed, free, largest_free_run }
    }

    /// The batch placed last is computed: its K and V go to its cells.
    pub fn write(&mut self, batch: &[Token], plan: &mut Plan) {
        let first = self.cur_loc as usize;
        for books in &mut self.books[first..first + batch.len()] {
            books.held = books.meant;
        }
        let mut done = 0;
        while let Some(&Token { seq, pos }) = batch.get(done).filter(|_| plan.wants_writes()) {
            let next = |&(token, pos): &(&Token, i32)| token.seq == seq && token.pos == pos;
            let len = batch[done..].iter().zip(pos..).take_while(next).count();
            plan.push(Effect::Write {
                class: self.setup.class,
                seq: SeqId(seq),
                first: pos as u32,
                run: Run { start: self.cur_loc + done as u32, len: len as u32 },
            });
            done += len;
        }
    }

    /// Notes the sequences of a batch and their lowest positions.
    fn note_batch(&mut self, batch: &[Token]) {
        for seq in self.in_batch.drain(..) {
            self.low[seq as usize] = i32::MAX;
        }
        for token in batch {
            self.sequence_mut(token.seq);
            let low = &mut self.low[token.seq as usize];
            if *low == i32::MAX {
                self.in_batch.push(token.seq);
            }
            *low = token.pos.min(*low);
        }
    }

    /// Lets go of cells below the windows.
    fn trim(&mut self) {
        let Some(window) = self.window() else { return };
        self.freed.clear();
        if self.setup.trim == Trim::All {
            for seq in 0..self.sequences() {
                let last = self.sequences[seq as usize].held.back().map(|held| held.pos);
                let in_batch = self.low[seq as usize] < i32::MAX;
                if let Some(last) = last.filter(|_| !in_batch) {
                    self.trim_below(seq, last.saturating_add(1).saturating_sub_unsigned(window));
                }
            }
        }
        for i in 0..self.in_batch.len() {
            let seq = self.in_batch[i];
            self.trim_below(seq, self.low[seq as usize].saturating_sub_unsigned(window));
        }
        self.map.vacate_all(&self.freed);
    }

    fn trim_below(&mut self, seq: u32, pos: i32) {
        while let Some(&held) = self.sequences[seq as usize].held.front().filter(|held| held.pos < pos) {
            self.sequences[seq as usize].held.pop_front();
            self.let_go(seq, held.cell);
        }
        let sequence = &mut self.sequences[seq as usize];
        if sequence.range.is_some() {
            sequence.range = Some(sequence.bounds());
        }
    }

    /// Gives a free cell to a token.
    fn take(&mut self, cell: Cell, token: Token) {
        let sequence = &mut self.sequences[token.seq as usize];
        if sequence.writer == 0 {
            self.writers += 1;
            sequence.writer = self.writers;
        }
        sequence.add(Held { pos: token.pos, cell, stale: false });
        sequence.cells.insert(cell, self.setup.cells);
        let here = Span { min: cell, max: cell };
        sequence.range = Some(sequence.range.unwrap_or(Span::EMPTY).union(here));
        let tag = Tag { writer: sequence.writer, pos: token.pos };
        let books = &mut self.books[cell as usize];
        *books = Books { pos: token.pos, owner: token.seq, meant: tag, held: books.held };
    }

    /// Takes a sequence from the owners of a cell; a cell without owners goes to `freed`.
    fn let_go(&mut self, seq: u32, cell: Cell) {
        let is_foreign = self.foreign.contains(cell);
        let sequence = &mut self.sequences[seq as usize];
        sequence.cells.remove(cell);
        sequence.foreign -= u32::from(is_foreign);
        let books = &mut self.books[cell as usize];
        if books.owner != SHARED {
            books.owner = FREE;
            if is_foreign {
                self.foreign.remove(cell);
            }
            push_run(&mut self.freed, cell, 1);
            return;
        }
        let owners = self.shared.get_mut(&cell).expect("a shared cell has a list of owners");
        owners.retain(|&owner| owner != seq);
        if let [last] = owners[..] {
            books.owner = last;
            self.shared.remove(&cell);
        }
    }

    /// Adds a sequence to the owners of a cell, which has some.
    fn join(&mut self, seq: u32, cell: Cell) {
        let books = &mut self.books[cell as usize];
        let owners = self.shared.entry(cell).or_insert_with(|| vec![books.owner]);
        owners.insert(owners.partition_point(|&owner| owner < seq), seq);
        books.owner = SHARED;
    }

    /// Removes positions `begin..end` of a sequence and moves the later ones by `begin - end`;
    /// [`END`] removes all from `begin` on. An `end` of -1, which the server passes when it means
    /// the end, moves every token up instead.
    ///
    /// # Errors
    /// [`Trouble::Shared`], with the cells below the shared one changed, and [`Trouble::NoShift`], with
    /// the books changed but not the cells.
    pub fn remove(&mut self, seq: u32, begin: i32, end: i32, plan: &mut Plan) -> Result<(), Trouble> {
        if self.sequences.len() <= seq as usize {
            return Ok(());
        }
        let offset = if end == END { 0 } else { begin.saturating_sub(end) };
        let blocked = if end == END { None } else { self.first_shared(seq, end) };
        let is_before = |held: &Held| blocked.is_none_or(|cell| held.cell < cell);
        let is_removed = |held: &Held| begin <= held.pos && held.pos < end;
        let sequence = &mut self.sequences[seq as usize];
        let first = sequence.index_of(begin.min(end));
        let mut tail = sequence.held.split_off(first);
        let mut removed: Vec<Cell> = Vec::new();
        tail.retain(|held| {
            let goes = is_removed(held) && is_before(held);
            if goes {
                removed.push(held.cell);
            }
            !goes
        });
        for held in tail.iter_mut().filter(|held| end != END && held.pos >= end && is_before(held)) {
            held.pos = held.pos.saturating_add(offset);
            self.books[held.cell as usize].pos = held.pos;
        }
        sequence.held.append(&mut tail);
        if blocked.is_some() {
            sequence.held.make_contiguous().sort_by_key(|held| held.pos);
        }
        removed.sort_unstable();
        self.freed.clear();
        removed.into_iter().for_each(|cell| self.let_go(seq, cell));
        self.map.vacate_all(&self.freed);
        if blocked.is_some() {
            return Err(Trouble::Shared);
        }
        let sequence = &mut self.sequences[seq as usize];
        if sequence.held.is_empty() {
            sequence.range = None;
            sequence.writer = 0;
            return Ok(());
        }
        let range = sequence.bounds();
        sequence.range = Some(range);
        match end {
            END => Ok(()),
            _ if !self.setup.shift => Err(Trouble::NoShift),
            _ => {
                self.rotate(seq, range, begin, offset, plan);
                Ok(())
            }
        }
    }

    /// The lowest cell of the sequence that would have to move but has another owner too.
    pub(super) fn first_shared(&self, seq: u32, end: i32) -> Option<Cell> {
        let sequence = self.sequence(seq).filter(|_| !self.shared.is_empty())?;
        let moved = sequence.held.range(sequence.index_of(end)..).map(|held| held.cell);
        moved.filter(|&cell| self.books[cell as usize].owner == SHARED).min()
    }

    /// The graph of a shift: it goes over the whole range, and turns what is not to be turned by nothing.
    fn rotate(&self, seq: u32, range: Span, begin: i32, offset: i32, plan: &mut Plan) {
        plan.begin_graph();
        let sequence = &self.sequences[seq as usize];
        let turned = sequence.held.range(sequence.index_of(begin)..).map(|held| held.cell);
        let mut turned: Vec<Cell> = turned.collect();
        turned.sort_unstable();
        let mut runs: Vec<Run> = Vec::new();
        turned.into_iter().for_each(|cell| push_run(&mut runs, cell, 1));
        let mut rotate = |start: Cell, end: Cell, delta: i32| {
            if start < end {
                let run = Run { start, len: end - start };
                plan.push(Effect::Rotate { class: self.setup.class, run, delta });
            }
        };
        let mut at = range.min;
        for run in runs {
            rotate(at, run.start, 0);
            rotate(run.start, run.cells().end, offset);
            at = run.cells().end;
        }
        rotate(at, range.max + 1, 0);
    }

    /// Gives `to` the cells of `from` that hold its first `len` positions, and takes all others
    /// from it. Nothing is copied.
    pub fn copy_prefix(&mut self, from: u32, to: u32, len: i32) {
        self.sequence_mut(from.max(to));
        self.freed.clear();
        while let Some(held) = self.sequences[to as usize].held.pop_front() {
            self.let_go(to, held.cell);
        }
        self.map.vacate_all(&self.freed);
        let source = &self.sequences[from as usize];
        let prefix: Vec<Held> = source.held.range(..source.index_of(len)).copied().collect();
        for &held in &prefix {
            self.join(to, held.cell);
            let is_foreign = self.foreign.contains(held.cell);
            let sequence = &mut self.sequences[to as usize];
            sequence.cells.insert(held.cell, self.setup.cells);
            sequence.foreign += u32::from(is_foreign);
        }
        let sequence = &mut self.sequences[to as usize];
        sequence.held.extend(prefix);
        sequence.range = Some(sequence.bounds());
        sequence.writer = 0;
    }

    /// Whether a sequence may go on at `pos` as if it had just computed what is before.
    pub fn can_resume(&self, seq: u32, pos: i32) -> bool {
        let Some(window) = self.window() else { return true };
        let Some(held) = self.sequence(seq).map(|sequence| &sequence.held) else { return false };
        let (Some(first), Some(last)) = (held.front(), held.back()) else { return false };
        let start = |pos: i32| pos.saturating_sub_unsigned(window).max(0);
        match self.setup.trim {
            Trim::Batch => start(pos) >= start(last.pos),
            Trim::All => start(pos) >= first.pos && pos <= last.pos.saturating_add(1),
        }
    }

    /// Marks everything that a sequence holds as left behind: it is read, but no token of it.
    pub(super) fn leave_behind(&mut self, seq: u32) {
        if let Some(sequence) = self.sequences.get_mut(seq as usize) {
            sequence.held.iter_mut().for_each(|held| held.stale = true);
        }
    }

    /// Compares a cell's data with its books after both have moved.
    pub(super) fn judge(&mut self, cell: Cell) {
        let books = &self.books[cell as usize];
        if books.meant.writer != books.held.writer && !self.foreign.contains(cell) {
            self.foreign.insert(cell, self.setup.cells);
            self.count_foreign(cell, 1);
        }
    }

    /// Forgets that a cell is foreign, while it moves.
    pub(super) fn acquit(&mut self, cell: Cell) {
        if self.foreign.contains(cell) {
            self.foreign.remove(cell);
            self.count_foreign(cell, -1);
        }
    }

    fn count_foreign(&mut self, cell: Cell, change: i32) {
        for i in 0..self.owners(cell).len() {
            let owner = self.owners(cell)[i];
            let foreign = &mut self.sequences[owner as usize].foreign;
            *foreign = foreign.saturating_add_signed(change);
        }
    }

    /// Checks every book against every other, in O(cells).
    ///
    /// # Errors
    /// What does not agree.
    pub fn audit(&self) -> Result<(), String> {
        let cells = 0..self.setup.cells;
        let used = || cells.clone().filter(|&cell| self.books[cell as usize].owner != FREE);
        self.map.audit(used().map(|cell| cell..cell + 1))?;
        for (&cell, owners) in &self.shared {
            if self.books[cell as usize].owner != SHARED || owners.len() < 2 || !owners.is_sorted() {
                return Err(format!("cell {cell} is shared by {owners:?}"));
            }
        }
        let owned: usize = used().map(|cell| self.owners(cell).len()).sum();
        let held: usize = self.sequences.iter().map(|sequence| sequence.held.len()).sum();
        if owned != held {
            return Err(format!("cells have {owned} owners, sequences hold {held} cells"));
        }
        for (seq, sequence) in (0..).zip(&self.sequences) {
            let mut foreign = 0;
            for held in &sequence.held {
                let books = &self.books[held.cell as usize];
                let agrees = books.pos == held.pos && self.owners(held.cell).contains(&seq);
                if !agrees || !sequence.cells.contains(held.cell) {
                    return Err(format!("cell {} does not know that sequence {seq} holds it", held.cell));
                }
                foreign += u32::from(books.meant.writer != books.held.writer);
            }
            let bounds = sequence.bounds();
            let range = sequence.range.unwrap_or(Span::EMPTY);
            let inside = bounds == Span::EMPTY || range.min <= bounds.min && bounds.max <= range.max;
            if !inside || sequence.cells.count() != sequence.held.len() {
                return Err(format!("sequence {seq} holds {bounds:?}, its range is {range:?}"));
            }
            if !sequence.held.iter().is_sorted_by_key(|held| held.pos) || sequence.foreign != foreign {
                return Err(format!("sequence {seq}: order or {foreign} foreign cells miscounted"));
            }
        }
        Ok(())
    }
}

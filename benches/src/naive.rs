//! The same decisions by linear scan: a list of bools, searched from its beginning.
//!
//! Ollama's `findStartLoc` looks for a batch's run of cells like this, llama.cpp's `find_slot`
//! from where it stopped last. Block tables and the order of calls are as in `policies`, so what
//! a comparison shows is the search. One layer class that reads everything, but for [`Paged`].
//!
//! Cost: O(cells) per search and per look at the usage.

use std::ops::Range;

use policies::{
    Append, Cell, ClassId, Effect, Full, Geometry, Intent, Plan, Policy, Run, SeqId, Shape, Usage, Why,
    push_run,
};

const CLASS: ClassId = ClassId(0);

/// Lowest start of `len` free places in a row, found by looking at each.
pub fn first_fit(used: &[bool], len: u32) -> Option<Cell> {
    let mut row = 0;
    for (place, &used) in used.iter().enumerate() {
        row = if used { 0 } else { row + 1 };
        if row == len {
            return Some(place as Cell + 1 - len);
        }
    }
    None
}

/// Largest free row, free rows, one past the highest used place.
fn shape(used: &[bool]) -> Shape {
    let mut shape = Shape::default();
    let mut row = 0;
    for (place, &used) in used.iter().enumerate() {
        if used {
            row = 0;
            shape.high_water = place as Cell + 1;
        } else {
            shape.free_runs += u32::from(row == 0);
            row += 1;
            shape.largest_free_run = shape.largest_free_run.max(row);
        }
    }
    shape
}

fn count_free(used: &[bool]) -> u32 {
    used.iter().filter(|&&used| !used).count() as u32
}

fn table<T: Default>(tables: &mut Vec<T>, seq: SeqId) -> &mut T {
    if tables.len() <= seq.index() {
        tables.resize_with(seq.index() + 1, T::default);
    }
    &mut tables[seq.index()]
}

#[derive(Clone, Default)]
struct Table {
    len: u32,
    places: Vec<u32>,
}

#[derive(Clone, Default)]
struct Blocks {
    /// Number of the first block it still has, counted from the start of the sequence.
    first: u32,
    places: Vec<u32>,
}

#[derive(Clone, Default)]
struct Paging {
    len: u32,
    classes: Vec<Blocks>,
}

/// Paging that scans for each free block. Blocks below a window are given back when their sequence takes one.
pub struct Paged {
    geometry: Geometry,
    block_size: u32,
    /// Per class.
    used: Vec<Vec<bool>>,
    tables: Vec<Paging>,
}

impl Paged {
    /// All blocks free.
    pub fn new(geometry: &Geometry, block_size: u32) -> Self {
        let blocks = geometry.classes.iter().map(|class| class.cells / block_size);
        Paged {
            geometry: geometry.clone(),
            block_size,
            used: blocks.map(|blocks| vec![false; blocks as usize]).collect(),
            tables: Vec::new(),
        }
    }

    /// Blocks that an append takes in a class, and that lie below its window by then.
    fn change(&self, append: &Append, class: usize) -> (u32, u32) {
        let table = &self.tables[append.seq.index()];
        let blocks = &table.classes[class];
        let held = blocks.first + blocks.places.len() as u32;
        let take = (table.len + append.tokens).div_ceil(self.block_size) - held;
        let needed = self.geometry.classes[class].reach.first_needed(table.len) / self.block_size;
        let below = needed.saturating_sub(blocks.first).min(blocks.places.len() as u32);
        (take, if take > 0 { below } else { 0 })
    }

    fn grow(&mut self, append: &Append, class: usize) {
        let (take, give) = self.change(append, class);
        let (blocks, used) = (&mut self.tables[append.seq.index()].classes[class], &mut self.used[class]);
        for block in blocks.places.drain(..give as usize) {
            used[block as usize] = false;
        }
        blocks.first += give;
        for _ in 0..take {
            let block = first_fit(used, 1).expect("the free blocks were counted");
            used[block as usize] = true;
            blocks.places.push(block);
        }
    }
}

impl Policy for Paged {
    fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    fn open(&mut self, seq: SeqId, _: &Intent) -> u32 {
        let classes = self.geometry.classes.len();
        *table(&mut self.tables, seq) = Paging { len: 0, classes: vec![Blocks::default(); classes] };
        0
    }

    fn place(&mut self, batch: &[Append], plan: &mut Plan) -> Result<(), Full> {
        for class in 0..self.used.len() {
            let needed: u32 = batch.iter().map(|append| self.change(append, class).0).sum();
            let free = if needed > 0 { count_free(&self.used[class]) } else { 0 };
            // What is given back does not count: who comes first finds no block that a later one gives.
            if needed > free {
                let (needed, free) = (needed * self.block_size, free * self.block_size);
                return Err(Full { class: ClassId(class as u8), needed, free, largest_free_run: free });
            }
        }
        for append in batch {
            for class in 0..self.used.len() {
                self.grow(append, class);
            }
            let table = &mut self.tables[append.seq.index()];
            let range = table.len..table.len + append.tokens;
            table.len = range.end;
            for (class, blocks) in (0..).map(ClassId).zip(&table.classes) {
                let mut token = range.start;
                while token < range.end {
                    let block = token / self.block_size;
                    let next = range.end.min((block + 1) * self.block_size);
                    let place = blocks.places[(block - blocks.first) as usize];
                    let start = place * self.block_size + token % self.block_size;
                    let run = Run { start, len: next - token };
                    plan.push(Effect::Write { class, seq: append.seq, first: token, run });
                    token = next;
                }
            }
        }
        Ok(())
    }

    fn room(&self, seq: SeqId) -> u32 {
        let table = &self.tables[seq.index()];
        let ends = table.classes.iter().map(|blocks| blocks.first + blocks.places.len() as u32);
        ends.min().unwrap_or(0) * self.block_size - table.len
    }

    /// To nothing only, where a class has a window.
    fn truncate(&mut self, seq: SeqId, len: u32) -> u32 {
        let table = &mut self.tables[seq.index()];
        let has_let_go = table.classes.iter().any(|blocks| blocks.first > 0);
        let keep = if has_let_go { 0 } else { len.min(table.len) };
        for (blocks, used) in table.classes.iter_mut().zip(&mut self.used) {
            let kept = keep.div_ceil(self.block_size) as usize;
            for block in blocks.places.drain(kept..) {
                used[block as usize] = false;
            }
            blocks.first = 0;
        }
        table.len = keep;
        keep
    }

    fn release(&mut self, seq: SeqId) {
        self.truncate(seq, 0);
    }

    fn len(&self, seq: SeqId) -> u32 {
        self.tables.get(seq.index()).map_or(0, |table| table.len)
    }

    fn layout(&self, class: ClassId, seq: SeqId, runs: &mut Vec<Run>) -> Range<u32> {
        runs.clear();
        let table = &self.tables[seq.index()];
        let blocks = &table.classes[class.index()];
        let first = blocks.first * self.block_size;
        let mut left = table.len - first;
        for &block in &blocks.places {
            let len = left.min(self.block_size);
            push_run(runs, block * self.block_size, len);
            left -= len;
        }
        first..table.len
    }

    fn usage(&self, class: ClassId) -> Usage {
        let cells = self.geometry.classes[class.index()].cells;
        let placeable = count_free(&self.used[class.index()]) * self.block_size;
        let free = placeable + cells % self.block_size;
        Usage { cells, held: cells - free, cached: 0, free, placeable }
    }

    fn shape(&self, class: ClassId) -> Shape {
        let Shape { largest_free_run, free_runs, high_water } = shape(&self.used[class.index()]);
        let block_size = self.block_size;
        Shape {
            largest_free_run: largest_free_run * block_size,
            free_runs,
            high_water: high_water * block_size,
        }
    }

    fn audit(&self) -> Result<(), String> {
        for (class, used) in self.used.iter().enumerate() {
            let tables = self.tables.iter().filter_map(|table| table.classes.get(class));
            audit(used, tables.map(|blocks| &blocks.places))?;
        }
        Ok(())
    }
}

/// Checks the list of bools against the places of all tables.
fn audit<'a>(used: &[bool], tables: impl Iterator<Item = &'a Vec<u32>>) -> Result<(), String> {
    let mut held = vec![false; used.len()];
    for &place in tables.flatten() {
        if std::mem::replace(&mut held[place as usize], true) {
            return Err(format!("place {place} is held twice"));
        }
    }
    if held == used { Ok(()) } else { Err("the list of used places is wrong".to_owned()) }
}

/// One run of single cells per batch, first fit.
pub struct Runs {
    geometry: Geometry,
    used: Vec<bool>,
    tables: Vec<Table>,
}

impl Runs {
    /// All cells free.
    pub fn new(geometry: &Geometry) -> Self {
        let used = vec![false; geometry.classes[0].cells as usize];
        Runs { geometry: geometry.clone(), used, tables: Vec::new() }
    }
}

impl Policy for Runs {
    fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    fn open(&mut self, seq: SeqId, _: &Intent) -> u32 {
        table(&mut self.tables, seq).len = 0;
        0
    }

    fn place(&mut self, batch: &[Append], plan: &mut Plan) -> Result<(), Full> {
        let needed = batch.iter().map(|append| append.tokens).sum();
        let Some(mut cell) = first_fit(&self.used, needed) else {
            let largest_free_run = shape(&self.used).largest_free_run;
            return Err(Full { class: CLASS, needed, free: count_free(&self.used), largest_free_run });
        };
        for append in batch {
            let table = &mut self.tables[append.seq.index()];
            let run = Run { start: cell, len: append.tokens };
            plan.push(Effect::Write { class: CLASS, seq: append.seq, first: table.len, run });
            table.len += append.tokens;
            table.places.extend(run.cells());
            cell += append.tokens;
        }
        self.used[(cell - needed) as usize..cell as usize].fill(true);
        Ok(())
    }

    fn truncate(&mut self, seq: SeqId, len: u32) -> u32 {
        let table = &mut self.tables[seq.index()];
        table.len = len.min(table.len);
        for cell in table.places.drain(table.len as usize..) {
            self.used[cell as usize] = false;
        }
        table.len
    }

    fn release(&mut self, seq: SeqId) {
        self.truncate(seq, 0);
    }

    fn len(&self, seq: SeqId) -> u32 {
        self.tables.get(seq.index()).map_or(0, |table| table.len)
    }

    fn layout(&self, _: ClassId, seq: SeqId, runs: &mut Vec<Run>) -> Range<u32> {
        runs.clear();
        self.tables[seq.index()].places.iter().for_each(|&cell| push_run(runs, cell, 1));
        0..self.tables[seq.index()].len
    }

    fn usage(&self, _: ClassId) -> Usage {
        let Shape { largest_free_run, .. } = shape(&self.used);
        let (cells, free) = (self.geometry.classes[0].cells, count_free(&self.used));
        Usage { cells, held: cells - free, cached: 0, free, placeable: largest_free_run }
    }

    fn shape(&self, _: ClassId) -> Shape {
        shape(&self.used)
    }

    fn audit(&self) -> Result<(), String> {
        audit(&self.used, self.tables.iter().map(|table| &table.places))
    }
}

/// The longest context reserved for each sequence, first fit.
pub struct Lanes {
    geometry: Geometry,
    used: Vec<bool>,
    /// First cell, if any is reserved, and tokens.
    lanes: Vec<(Option<Cell>, u32)>,
}

impl Lanes {
    /// All cells free.
    pub fn new(geometry: &Geometry) -> Self {
        let used = vec![false; geometry.classes[0].cells as usize];
        Lanes { geometry: geometry.clone(), used, lanes: Vec::new() }
    }

    fn range(&self, start: Cell) -> Range<usize> {
        start as usize..(start + self.geometry.context_max) as usize
    }
}

impl Policy for Lanes {
    fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    fn open(&mut self, seq: SeqId, _: &Intent) -> u32 {
        *table(&mut self.lanes, seq) = (None, 0);
        0
    }

    fn place(&mut self, batch: &[Append], plan: &mut Plan) -> Result<(), Full> {
        let needed = self.geometry.context_max;
        for (index, append) in batch.iter().enumerate() {
            if self.lanes[append.seq.index()].0.is_some() {
                continue;
            }
            let Some(start) = first_fit(&self.used, needed) else {
                for earlier in &batch[..index] {
                    if self.len(earlier.seq) == 0 {
                        self.release(earlier.seq);
                    }
                }
                let largest_free_run = shape(&self.used).largest_free_run;
                return Err(Full { class: CLASS, needed, free: count_free(&self.used), largest_free_run });
            };
            let cells = self.range(start);
            self.used[cells].fill(true);
            self.lanes[append.seq.index()].0 = Some(start);
        }
        for append in batch {
            let (start, len) = &mut self.lanes[append.seq.index()];
            let start = start.expect("a lane was reserved") + *len;
            let run = Run { start, len: append.tokens };
            plan.push(Effect::Write { class: CLASS, seq: append.seq, first: *len, run });
            *len += append.tokens;
        }
        Ok(())
    }

    fn room(&self, seq: SeqId) -> u32 {
        let (start, len) = self.lanes[seq.index()];
        start.map_or(0, |_| self.geometry.context_max - len)
    }

    fn truncate(&mut self, seq: SeqId, len: u32) -> u32 {
        let keep = len.min(self.lanes[seq.index()].1);
        self.lanes[seq.index()].1 = keep;
        if keep == 0
            && let Some(start) = self.lanes[seq.index()].0.take()
        {
            let cells = self.range(start);
            self.used[cells].fill(false);
        }
        keep
    }

    fn release(&mut self, seq: SeqId) {
        self.truncate(seq, 0);
    }

    fn len(&self, seq: SeqId) -> u32 {
        self.lanes.get(seq.index()).map_or(0, |lane| lane.1)
    }

    fn layout(&self, _: ClassId, seq: SeqId, runs: &mut Vec<Run>) -> Range<u32> {
        runs.clear();
        let (start, len) = self.lanes[seq.index()];
        runs.extend(start.filter(|_| len > 0).map(|start| Run { start, len }));
        0..len
    }

    fn usage(&self, _: ClassId) -> Usage {
        let Shape { largest_free_run, .. } = shape(&self.used);
        let (cells, free) = (self.geometry.classes[0].cells, count_free(&self.used));
        Usage { cells, held: cells - free, cached: 0, free, placeable: largest_free_run }
    }

    fn shape(&self, _: ClassId) -> Shape {
        shape(&self.used)
    }

    fn audit(&self) -> Result<(), String> {
        let held: usize = self.lanes.iter().filter(|lane| lane.0.is_some()).count();
        let used = self.used.len() - count_free(&self.used) as usize;
        if held * self.geometry.context_max as usize == used {
            Ok(())
        } else {
            Err("lanes overlap".to_owned())
        }
    }
}

/// Cells with their owners (sequence, token), for the planners.
#[derive(Clone)]
pub struct Owned {
    /// Who holds each cell.
    pub owners: Vec<Option<(u32, u32)>>,
    /// Cell of each token, per sequence.
    pub tables: Vec<Vec<Cell>>,
}

impl Owned {
    fn move_cell(&mut self, from: Cell, to: Cell) {
        let (seq, token) = self.owners[from as usize].take().expect("the source is used");
        self.owners[to as usize] = Some((seq, token));
        self.tables[seq as usize][token as usize] = to;
    }

    /// Moves the tail of the highest used run into the lowest hole until there are no holes, as
    /// `defrag` does, but looks for both ends anew, cell by cell, for every copy: O(cells) each.
    /// Returns the cells moved.
    pub fn compact_by_scans(&mut self, effects: &mut Vec<Effect>) -> u32 {
        let mut moved = 0;
        loop {
            let hole = self.owners.iter().position(Option::is_none);
            let last = self.owners.iter().rposition(Option::is_some);
            match (hole, last) {
                (Some(hole), Some(last)) if hole < last => moved += self.move_tail(hole, last, effects),
                _ => return moved,
            }
        }
    }

    /// The same moves with one pointer from each end: O(cells) for the whole compaction.
    pub fn compact_in_one_pass(&mut self, effects: &mut Vec<Effect>) -> u32 {
        let (mut hole, mut last, mut moved) = (0, self.owners.len() - 1, 0);
        loop {
            while hole < last && self.owners[hole].is_some() {
                hole += 1;
            }
            while hole < last && self.owners[last].is_none() {
                last -= 1;
            }
            if hole >= last {
                return moved;
            }
            moved += self.move_tail(hole, last, effects);
        }
    }

    /// One copy, as long as the hole and the run allow.
    fn move_tail(&mut self, hole: usize, last: usize, effects: &mut Vec<Effect>) -> u32 {
        let free = self.owners[hole..].iter().take_while(|owner| owner.is_none()).count();
        let used = self.owners[..=last].iter().rev().take_while(|owner| owner.is_some()).count();
        let len = free.min(used) as u32;
        let (from, to) = (last as Cell + 1 - len, hole as Cell);
        for i in 0..len {
            self.move_cell(from + i, to + i);
        }
        effects.push(Effect::Copy { class: CLASS, from, to, len, why: Why::Defrag });
        len
    }
}

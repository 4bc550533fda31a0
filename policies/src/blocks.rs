//! Block tables over any store of blocks: the ground of [`vmem`](crate::vmem), [`shared`](crate::shared)
//! and [`ladder`](crate::ladder).
//!
//! What [`paged`](crate::paged) does without naming contents: a sequence takes a block when its last one is
//! full; blocks below a window go back when their sequence grows, or when others find none. A [`Store`] says
//! which blocks there are, and what taking one means physically.
//!
//! Cost: O(1) per token and what the store asks per block; a batch that finds too few looks at every
//! sequence.

use std::collections::VecDeque;
use std::ops::Range;

use crate::block_view::BlockView;
use crate::content::Content;
use crate::plan::Plan;
use crate::policy::{
    Append, ClassId, Full, Geometry, Intent, LayerClass, Policy, Reach, Run, SeqId, Shape, Usage,
};
use crate::pool::Block;

/// The blocks of all classes. What is handed out next depends on the calls alone.
pub(crate) trait Store: Send {
    /// Whether so many blocks of each class could be taken once `gives` are given back.
    ///
    /// # Errors
    /// The class that comes too short, and the blocks that it could have.
    fn fits(&self, takes: &[u32], gives: &[(usize, Block)]) -> Result<(), (usize, u32)>;

    /// Takes a block for the `index`-th of a sequence. None only if [`fits`](Store::fits) would say so.
    fn take(&mut self, class: usize, seq: SeqId, index: u32, plan: &mut Plan) -> Option<Block>;

    /// A batch that fits begins: what is given back and taken until the next one is for it.
    fn begin(&mut self) {}

    /// Whether tokens may be written to a taken block that has some already.
    fn may_write(&self, class: usize, block: Block) -> bool {
        let _ = (class, block);
        true
    }

    /// A block is the last of its sequence again.
    fn reopen(&mut self, class: usize, seq: SeqId, block: Block) {
        let _ = (class, seq, block);
    }

    /// Gives one back.
    fn give(&mut self, class: usize, block: Block);

    /// How full a class is, in cells.
    fn usage(&self, class: usize) -> Usage;

    /// Where its free cells lie.
    fn shape(&self, class: usize) -> Shape;

    /// Cells of a class's share of the memory.
    fn memory_cells(&self, class: usize) -> u32 {
        self.usage(class).cells
    }

    /// Everything is free and nothing is remembered.
    fn restart(&mut self);

    /// Checks the books; `held` are the blocks of all tables of a class.
    ///
    /// # Errors
    /// What does not agree.
    fn audit(&self, class: usize, held: &[Block]) -> Result<(), String>;
}

/// The blocks of one sequence in one class.
#[derive(Clone, Debug, Default)]
struct Table {
    /// Number, counted from the start of the sequence, of the first block it still has.
    first: u32,
    blocks: VecDeque<Block>,
}

impl Table {
    fn end(&self) -> u32 {
        self.first + self.blocks.len() as u32
    }
}

#[derive(Clone, Debug, Default)]
struct Sequence {
    open: bool,
    len: u32,
    /// Up to this length nothing is taken.
    capacity: u32,
    /// Length when a block was last taken. It is the same whether later tokens were told at once or not.
    grown: u32,
    tables: Vec<Table>,
}

/// What one append changes in one class: blocks given back first, then blocks taken.
struct Change {
    give: u32,
    take: u32,
    /// Number of the first block the table has afterwards.
    first: u32,
}

/// The policy, over a store.
pub(crate) struct Blocks<S> {
    geometry: Geometry,
    block_size: u32,
    store: S,
    sequences: Vec<Sequence>,
}

impl<S: Store> Blocks<S> {
    /// `geometry` is what the policy answers with; its cells are the addresses of the store.
    pub fn new(geometry: Geometry, block_size: u32, store: S) -> Self {
        Blocks { geometry, block_size, store, sequences: Vec::new() }
    }

    fn reach(&self, class: usize) -> Reach {
        self.geometry.classes[class].reach
    }

    fn sequence(&self, seq: SeqId) -> &Sequence {
        let sequence = &self.sequences[seq.index()];
        assert!(sequence.open, "sequence {} is open", seq.0);
        sequence
    }

    fn grows(&self, append: &Append) -> bool {
        let sequence = self.sequence(append.seq);
        sequence.len + append.tokens > sequence.capacity
    }

    fn change(&self, append: &Append, class: usize) -> Change {
        let sequence = self.sequence(append.seq);
        let table = &sequence.tables[class];
        let end = sequence.len + append.tokens;
        let next = if append.restored { end } else { sequence.len };
        let needed = self.reach(class).first_needed(next) / self.block_size;
        let (len, blocks_end) = (table.blocks.len() as u32, end.div_ceil(self.block_size));
        // A table that still fits keeps its old blocks: they are given back when one is taken.
        if blocks_end <= table.end() && len > 0 {
            return Change { give: 0, take: 0, first: table.first };
        }
        let give = needed.saturating_sub(table.first).min(len);
        let first = if len == give { needed.max(table.first) } else { table.first + give };
        Change { give, take: blocks_end - if len == give { first } else { table.end() }, first }
    }

    /// Leading blocks of a table that no token reads any more since a block was last taken.
    fn outdated(&self, seq: SeqId, class: usize) -> u32 {
        let sequence = self.sequence(seq);
        let needed = self.reach(class).first_needed(sequence.grown) / self.block_size;
        let table = &sequence.tables[class];
        needed.saturating_sub(table.first).min(table.blocks.len() as u32)
    }

    /// Sequences that take no block for this batch, so that they do not trim themselves.
    fn others(&self, batch: &[Append]) -> Vec<SeqId> {
        let mut is_other: Vec<bool> = self.sequences.iter().map(|sequence| sequence.open).collect();
        for append in batch.iter().filter(|append| self.grows(append)) {
            is_other[append.seq.index()] = false;
        }
        (0..).zip(is_other).filter(|(_, is_other)| *is_other).map(|(id, _)| SeqId(id)).collect()
    }

    fn leading(&self, seq: SeqId, class: usize, count: u32) -> impl Iterator<Item = (usize, Block)> {
        let blocks = self.sequence(seq).tables[class].blocks.iter().take(count as usize);
        blocks.map(move |&block| (class, block))
    }

    /// Refuses a batch that does not fit; whether sequences outside it have to give back what they need no
    /// more.
    fn check(&self, batch: &[Append]) -> Result<bool, Full> {
        let classes = self.geometry.classes.len();
        let mut takes = vec![0; classes];
        let mut gives: Vec<(usize, Block)> = Vec::new();
        for append in batch.iter().filter(|append| self.grows(append)) {
            for (class, take) in takes.iter_mut().enumerate() {
                let change = self.change(append, class);
                *take += change.take;
                gives.extend(self.leading(append.seq, class, change.give));
            }
        }
        if self.store.fits(&takes, &gives).is_ok() {
            return Ok(false);
        }
        for seq in self.others(batch) {
            for class in 0..classes {
                gives.extend(self.leading(seq, class, self.outdated(seq, class)));
            }
        }
        self.store.fits(&takes, &gives).map(|()| true).map_err(|(class, available)| {
            let cells = |blocks: u32| blocks.saturating_mul(self.block_size);
            let free = cells(available);
            Full { class: ClassId(class as u8), needed: cells(takes[class]), free, largest_free_run: free }
        })
    }

    fn give_leading(&mut self, seq: SeqId, class: usize, count: u32) {
        let table = &mut self.sequences[seq.index()].tables[class];
        for block in table.blocks.drain(..count as usize) {
            self.store.give(class, block);
        }
        table.first += count;
    }

    /// Gives back what the batch needs no more, then takes what it needs.
    fn grow(&mut self, batch: &[Append], plan: &mut Plan) {
        let growing: Vec<&Append> = batch.iter().filter(|append| self.grows(append)).collect();
        for append in &growing {
            for class in 0..self.geometry.classes.len() {
                let Change { give, first, .. } = self.change(append, class);
                self.give_leading(append.seq, class, give);
                self.sequences[append.seq.index()].tables[class].first = first;
            }
        }
        for append in growing {
            let end = (self.sequence(append.seq).len + append.tokens).div_ceil(self.block_size);
            let sequence = &mut self.sequences[append.seq.index()];
            for (class, table) in sequence.tables.iter_mut().enumerate() {
                for index in table.end()..end {
                    let block = self.store.take(class, append.seq, index, plan);
                    table.blocks.push_back(block.expect("the batch was checked"));
                }
            }
        }
    }

    fn view(&self, seq: SeqId, class: ClassId) -> BlockView<'_> {
        let table = &self.sequence(seq).tables[class.index()];
        BlockView { first: table.first, blocks: &table.blocks, block_size: self.block_size }
    }
}

impl<S: Store> Policy for Blocks<S> {
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
        sequence.tables.resize_with(self.geometry.classes.len(), Table::default);
        0
    }

    fn place(&mut self, batch: &[Append], plan: &mut Plan) -> Result<(), Full> {
        if batch.iter().any(|append| self.grows(append)) {
            let trims = self.check(batch)?;
            self.store.begin();
            if trims {
                for seq in self.others(batch) {
                    for class in 0..self.geometry.classes.len() {
                        self.give_leading(seq, class, self.outdated(seq, class));
                    }
                }
            }
            self.grow(batch, plan);
        }
        for append in batch {
            let sequence = &mut self.sequences[append.seq.index()];
            let (from, to) = (sequence.len, sequence.len + append.tokens);
            sequence.len = to;
            if to > sequence.capacity {
                sequence.capacity = to.div_ceil(self.block_size) * self.block_size;
                sequence.grown = to;
            }
            if plan.wants_writes() && !append.restored {
                for class in self.geometry.class_ids() {
                    self.view(append.seq, class).push_writes(class, append.seq, from..to, plan);
                }
            }
        }
        Ok(())
    }

    fn room(&self, seq: SeqId) -> u32 {
        let sequence = self.sequence(seq);
        sequence.capacity - sequence.len
    }

    fn truncate(&mut self, seq: SeqId, len: u32) -> u32 {
        let sequence = &self.sequences[seq.index()];
        let mut keep = len.min(sequence.len);
        let rest = keep % self.block_size;
        let is_open = |(class, table): (usize, &Table)| {
            let last = (keep / self.block_size).checked_sub(table.first);
            let last = last.and_then(|last| table.blocks.get(last as usize));
            last.is_none_or(|&block| self.store.may_write(class, block))
        };
        if rest > 0 && !sequence.tables.iter().enumerate().all(is_open) {
            keep -= rest;
        }
        for (class, table) in sequence.tables.iter().enumerate() {
            if self.reach(class).first_needed(keep) < table.first * self.block_size {
                keep = 0;
            }
        }
        let end = keep.div_ceil(self.block_size);
        let sequence = &mut self.sequences[seq.index()];
        for (class, table) in sequence.tables.iter_mut().enumerate() {
            let kept = end.saturating_sub(table.first).min(table.blocks.len() as u32);
            for block in table.blocks.drain(kept as usize..).rev() {
                self.store.give(class, block);
            }
            if kept == 0 {
                table.first = if keep == 0 { 0 } else { table.first.min(end) };
            } else {
                let last = table.blocks[kept as usize - 1];
                self.store.reopen(class, seq, last);
            }
        }
        sequence.len = keep;
        sequence.capacity = end * self.block_size;
        sequence.grown = keep.min(sequence.grown);
        keep
    }

    fn release(&mut self, seq: SeqId) {
        let sequence = &mut self.sequences[seq.index()];
        assert!(sequence.open, "sequence {} is open", seq.0);
        for (class, table) in sequence.tables.iter_mut().enumerate() {
            for block in table.blocks.drain(..).rev() {
                self.store.give(class, block);
            }
            table.first = 0;
        }
        let tables = std::mem::take(&mut sequence.tables);
        *sequence = Sequence { tables, ..Sequence::default() };
    }

    fn restart(&mut self) {
        self.store.restart();
    }

    fn len(&self, seq: SeqId) -> u32 {
        self.sequences.get(seq.index()).map_or(0, |sequence| sequence.len)
    }

    fn layout(&self, class: ClassId, seq: SeqId, runs: &mut Vec<Run>) -> Range<u32> {
        self.view(seq, class).layout(self.sequence(seq).len, runs)
    }

    fn holding(&self, class: ClassId, seq: SeqId, runs: &mut Vec<Run>) {
        self.view(seq, class).holding(runs);
    }

    fn granule(&self) -> u32 {
        self.block_size
    }

    /// A lower bound of what the whole prompt holds, so that an empty cache refuses nothing that fits.
    fn has_room_for(&self, _: &Content, _: u32, tokens: u32) -> bool {
        let blocks = |class: &LayerClass| class.reach.clip(tokens).div_ceil(self.block_size);
        let takes: Vec<u32> = self.geometry.classes.iter().map(blocks).collect();
        self.store.fits(&takes, &[]).is_ok()
    }

    fn usage(&self, class: ClassId) -> Usage {
        self.store.usage(class.index())
    }

    fn shape(&self, class: ClassId) -> Shape {
        self.store.shape(class.index())
    }

    fn memory_cells(&self, class: ClassId) -> u32 {
        self.store.memory_cells(class.index())
    }

    fn audit(&self) -> Result<(), String> {
        let open = || self.sequences.iter().enumerate().filter(|(_, sequence)| sequence.open);
        for class in 0..self.geometry.classes.len() {
            let held = open().flat_map(|(_, sequence)| sequence.tables[class].blocks.iter().copied());
            let held: Vec<Block> = held.collect();
            self.store.audit(class, &held).map_err(|what| format!("class {class}: {what}"))?;
            for (id, sequence) in open() {
                let table = &sequence.tables[class];
                let end = sequence.len.div_ceil(self.block_size);
                let needed = self.reach(class).first_needed(sequence.len) / self.block_size;
                if sequence.len > 0 && (table.end() != end || table.first > needed) {
                    return Err(format!("class {class}: sequence {id} lacks blocks it reads"));
                }
            }
        }
        Ok(())
    }
}

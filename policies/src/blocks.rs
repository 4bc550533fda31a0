//! Block tables over any store of blocks: the ground of [`vmem`](crate::vmem), [`shared`](crate::shared)
//! and [`ladder`](crate::ladder).
//!
//! What [`paged`](crate::paged) does without naming contents: a sequence takes a block when its last one is
//! full; blocks below a window go back when their sequence grows, or when others find none. A [`Store`] says
//! which blocks there are, and what taking one means physically.
//!
//! Cost: O(1) per token and what the store asks per block; a batch that finds too few looks at every
//! sequence.

use std::ops::Range;

use crate::content::Content;
use crate::plan::Plan;
use crate::policy::{Append, ClassId, Full, Geometry, Intent, LayerClass, Policy, Run, SeqId, Shape, Usage};
use crate::pool::Block;
use crate::tables::{Change, Table, Tables};

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

    /// Whether some blocks may take less memory than others.
    fn stores_coarser(&self) -> bool {
        false
    }

    /// 32nds of a whole block that all blocks of a sequence take less than blocks at first.
    fn spared(&self, class: usize, seq: SeqId) -> u64 {
        let _ = (class, seq);
        0
    }

    /// The same of one block.
    fn spared_by(&self, class: usize, block: Block) -> u64 {
        let _ = (class, block);
        0
    }

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

/// The policy, over a store.
pub(crate) struct Blocks<S> {
    tables: Tables,
    store: S,
}

impl<S: Store> Blocks<S> {
    /// `geometry` is what the policy answers with; its cells are the addresses of the store.
    pub fn new(geometry: Geometry, block_size: u32, store: S) -> Self {
        Blocks { tables: Tables::new(geometry, block_size), store }
    }

    fn classes(&self) -> Range<usize> {
        0..self.tables.geometry.classes.len()
    }

    /// Refuses a batch that does not fit; whether sequences outside it have to give back what they need no
    /// more.
    fn check(&self, batch: &[Append]) -> Result<bool, Full> {
        let tables = &self.tables;
        let mut takes = vec![0; self.classes().len()];
        let mut gives: Vec<(usize, Block)> = Vec::new();
        for append in batch.iter().filter(|append| tables.grows(append)) {
            for (class, take) in takes.iter_mut().enumerate() {
                let change = tables.change(append, class);
                *take += change.take;
                gives.extend(tables.leading(append.seq, class, change.give).map(|block| (class, block)));
            }
        }
        if self.store.fits(&takes, &gives).is_ok() {
            return Ok(false);
        }
        for seq in tables.others(batch) {
            for class in self.classes() {
                let outdated = tables.leading(seq, class, tables.outdated(seq, class));
                gives.extend(outdated.map(|block| (class, block)));
            }
        }
        self.store.fits(&takes, &gives).map(|()| true).map_err(|(class, available)| {
            let cells = |blocks: u32| blocks.saturating_mul(tables.block_size);
            let free = cells(available);
            Full { class: ClassId(class as u8), needed: cells(takes[class]), free, largest_free_run: free }
        })
    }

    fn give_leading(&mut self, seq: SeqId, class: usize, count: u32) {
        let store = &mut self.store;
        self.tables.give_leading(seq, class, count, |block| store.give(class, block));
    }

    /// Gives back what the batch needs no more, then takes what it needs.
    fn grow(&mut self, batch: &[Append], plan: &mut Plan) {
        let growing: Vec<&Append> = batch.iter().filter(|append| self.tables.grows(append)).collect();
        for append in &growing {
            for class in self.classes() {
                let Change { give, first, .. } = self.tables.change(append, class);
                self.give_leading(append.seq, class, give);
                self.tables.get_mut(append.seq).tables[class].first = first;
            }
        }
        for append in growing {
            let end = (self.tables.len(append.seq) + append.tokens).div_ceil(self.tables.block_size);
            for (class, table) in self.tables.get_mut(append.seq).tables.iter_mut().enumerate() {
                for index in table.end()..end {
                    let block = self.store.take(class, append.seq, index, plan);
                    table.blocks.push_back(block.expect("the batch was checked"));
                }
            }
        }
    }
}

impl<S: Store> Policy for Blocks<S> {
    fn geometry(&self) -> &Geometry {
        &self.tables.geometry
    }

    fn open(&mut self, seq: SeqId, _: &Intent) -> u32 {
        self.tables.reserve(seq).open = true;
        0
    }

    fn place(&mut self, batch: &[Append], plan: &mut Plan) -> Result<(), Full> {
        if batch.iter().any(|append| self.tables.grows(append)) {
            let trims = self.check(batch)?;
            self.store.begin();
            if trims {
                for seq in self.tables.others(batch) {
                    for class in self.classes() {
                        self.give_leading(seq, class, self.tables.outdated(seq, class));
                    }
                }
            }
            self.grow(batch, plan);
        }
        for append in batch {
            let size = self.tables.block_size;
            let sequence = self.tables.get_mut(append.seq);
            let (from, to) = (sequence.len, sequence.len + append.tokens);
            sequence.len = to;
            if to > sequence.capacity {
                sequence.capacity = to.div_ceil(size) * size;
                sequence.grown = to;
            }
            if plan.wants_writes() && !append.restored {
                for class in self.tables.geometry.class_ids() {
                    self.tables.view(append.seq, class).push_writes(class, append.seq, from..to, plan);
                }
            }
        }
        Ok(())
    }

    fn room(&self, seq: SeqId) -> u32 {
        let sequence = self.tables.get(seq);
        sequence.capacity - sequence.len
    }

    fn truncate(&mut self, seq: SeqId, len: u32) -> u32 {
        let (sequence, size) = (self.tables.get(seq), self.tables.block_size);
        let mut keep = len.min(sequence.len);
        let rest = keep % size;
        let is_open = |(class, table): (usize, &Table)| {
            let last = (keep / size).checked_sub(table.first);
            let last = last.and_then(|last| table.blocks.get(last as usize));
            last.is_none_or(|&block| self.store.may_write(class, block))
        };
        if rest > 0 && !sequence.tables.iter().enumerate().all(is_open) {
            keep -= rest;
        }
        let keep = self.tables.stays(seq, keep);
        let store = &mut self.store;
        self.tables.cut(seq, keep, |class, block| store.give(class, block));
        for (class, table) in self.tables.get(seq).tables.iter().enumerate() {
            if let Some(&last) = table.blocks.back() {
                self.store.reopen(class, seq, last);
            }
        }
        keep
    }

    fn release(&mut self, seq: SeqId) {
        let store = &mut self.store;
        self.tables.close(seq, |class, block| store.give(class, block));
    }

    fn restart(&mut self) {
        self.store.restart();
    }

    fn len(&self, seq: SeqId) -> u32 {
        self.tables.len(seq)
    }

    fn layout(&self, class: ClassId, seq: SeqId, runs: &mut Vec<Run>) -> Range<u32> {
        self.tables.view(seq, class).layout(self.tables.len(seq), runs)
    }

    fn holding(&self, class: ClassId, seq: SeqId, runs: &mut Vec<Run>) {
        self.tables.view(seq, class).holding(runs);
    }

    fn granule(&self) -> u32 {
        self.tables.block_size
    }

    fn stores_coarser(&self) -> bool {
        self.store.stores_coarser()
    }

    /// That of all blocks less that of the leading ones below `from`, which wait to be given back: no more than a
    /// batch took, and one.
    fn spared(&self, class: ClassId, seq: SeqId, from: u32) -> u64 {
        let (class, size) = (class.index(), self.tables.block_size);
        let spared = self.store.spared(class, seq);
        if spared == 0 {
            return 0;
        }
        let table = &self.tables.get(seq).tables[class];
        let ends = (table.first + 1..).map(|number| number * size);
        let leading = table.blocks.iter().zip(ends).take_while(|(_, end)| end - size < from);
        let below = leading.map(|(&block, end)| {
            let tokens = u64::from(size - end.saturating_sub(from));
            tokens * self.store.spared_by(class, block)
        });
        spared * u64::from(size) - below.sum::<u64>()
    }

    /// A lower bound of what the whole prompt holds, so that an empty cache refuses nothing that fits.
    fn has_room_for(&self, _: &Content, _: u32, tokens: u32) -> bool {
        let blocks = |class: &LayerClass| class.reach.clip(tokens).div_ceil(self.tables.block_size);
        let takes: Vec<u32> = self.tables.geometry.classes.iter().map(blocks).collect();
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
        for class in self.classes() {
            let held =
                self.tables.open().flat_map(|(_, sequence)| sequence.tables[class].blocks.iter().copied());
            let held: Vec<Block> = held.collect();
            self.store.audit(class, &held).map_err(|what| format!("class {class}: {what}"))?;
            self.tables.audit(class)?;
        }
        Ok(())
    }
}

//! The block tables of all sequences, and what a batch changes in them, whoever's the blocks are.
//!
//! A table that still fits keeps its blocks below the window: they are given back when its sequence takes one, or
//! when somebody else finds none. So most decode steps change nothing but a length.
//!
//! Cost: O(1) per append; O(sequences) to look for those outside a batch.

use std::collections::VecDeque;

use crate::block_view::BlockView;
use crate::content::Content;
use crate::policy::{Append, ClassId, Geometry, Reach, SeqId};
use crate::pool::Block;

/// The blocks of one sequence in one class.
#[derive(Clone, Debug, Default)]
pub(crate) struct Table {
    /// Number, counted from the start of the sequence, of the first block it still has.
    pub first: u32,
    pub blocks: VecDeque<Block>,
    /// Tokens below this were already outside the window when later ones slid down, so a window that
    /// reaches back to them finds nothing. Only where tokens are dropped.
    pub lost: u32,
}

impl Table {
    #[inline]
    pub fn end(&self) -> u32 {
        self.first + self.blocks.len() as u32
    }

    /// Leading blocks below one with this number.
    #[inline]
    fn below(&self, number: u32) -> u32 {
        number.saturating_sub(self.first).min(self.blocks.len() as u32)
    }
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Sequence {
    pub open: bool,
    pub len: u32,
    /// Up to this length nothing is taken.
    pub capacity: u32,
    /// Length when a block was last taken. It is the same whether later tokens were told at once or not.
    pub grown: u32,
    /// What its tokens are; none where blocks get no names.
    pub content: Option<Content>,
    /// Leading blocks whose content has a name. Only where contents are named.
    pub named: u32,
    pub tables: Vec<Table>,
}

/// What one append changes in one class: blocks given back first, then blocks taken.
pub(crate) struct Change {
    pub give: u32,
    pub take: u32,
    /// Number of the first block the table has afterwards.
    pub first: u32,
}

/// All tables.
pub(crate) struct Tables {
    pub geometry: Geometry,
    pub block_size: u32,
    sequences: Vec<Sequence>,
}

impl Tables {
    pub fn new(geometry: Geometry, block_size: u32) -> Self {
        Tables { geometry, block_size, sequences: Vec::new() }
    }

    #[inline]
    pub fn reach(&self, class: usize) -> Reach {
        self.geometry.classes[class].reach
    }

    /// A sequence that is open.
    #[inline]
    pub fn get(&self, seq: SeqId) -> &Sequence {
        let sequence = &self.sequences[seq.index()];
        assert!(sequence.open, "sequence {} is open", seq.0);
        sequence
    }

    /// A sequence, open or not.
    #[inline]
    pub fn get_mut(&mut self, seq: SeqId) -> &mut Sequence {
        &mut self.sequences[seq.index()]
    }

    /// Tokens of a sequence; 0 for one that is not open.
    #[inline]
    pub fn len(&self, seq: SeqId) -> u32 {
        self.sequences.get(seq.index()).map_or(0, |sequence| sequence.len)
    }

    /// The sequences that are open.
    pub fn open(&self) -> impl Iterator<Item = (SeqId, &Sequence)> {
        let all = (0..).map(SeqId).zip(&self.sequences);
        all.filter(|(_, sequence)| sequence.open)
    }

    /// Room for a sequence that is not open yet, with a table for every class.
    pub fn reserve(&mut self, seq: SeqId) -> &mut Sequence {
        if self.sequences.len() <= seq.index() {
            self.sequences.resize_with(seq.index() + 1, Sequence::default);
        }
        let sequence = &mut self.sequences[seq.index()];
        assert!(!sequence.open, "sequence {} is not open yet", seq.0);
        sequence.tables.resize_with(self.geometry.classes.len(), Table::default);
        sequence
    }

    /// Whether an append takes cells.
    #[inline]
    pub fn grows(&self, append: &Append) -> bool {
        let sequence = self.get(append.seq);
        sequence.len + append.tokens > sequence.capacity
    }

    #[inline]
    pub fn change(&self, append: &Append, class: usize) -> Change {
        let sequence = self.get(append.seq);
        let table = &sequence.tables[class];
        let end = sequence.len + append.tokens;
        let blocks_end = end.div_ceil(self.block_size);
        if blocks_end <= table.end() && !table.blocks.is_empty() {
            return Change { give: 0, take: 0, first: table.first };
        }
        let next = if append.restored { end } else { sequence.len };
        let needed = self.reach(class).first_needed(next) / self.block_size;
        let give = table.below(needed);
        let is_empty = table.blocks.len() as u32 == give;
        let first = if is_empty { needed.max(table.first) } else { table.first + give };
        Change { give, take: blocks_end - if is_empty { first } else { table.end() }, first }
    }

    /// Leading blocks of a table that no token reads any more since a block was last taken.
    pub fn outdated(&self, seq: SeqId, class: usize) -> u32 {
        let sequence = self.get(seq);
        sequence.tables[class].below(self.reach(class).first_needed(sequence.grown) / self.block_size)
    }

    /// Sequences that take no block for this batch, so that they do not trim themselves.
    pub fn others(&self, batch: &[Append]) -> Vec<SeqId> {
        let mut is_other: Vec<bool> = self.sequences.iter().map(|sequence| sequence.open).collect();
        for append in batch.iter().filter(|append| self.grows(append)) {
            is_other[append.seq.index()] = false;
        }
        (0..).zip(is_other).filter(|(_, is_other)| *is_other).map(|(id, _)| SeqId(id)).collect()
    }

    /// Leading blocks of a table.
    pub fn leading(&self, seq: SeqId, class: usize, count: u32) -> impl Iterator<Item = Block> {
        self.get(seq).tables[class].blocks.iter().take(count as usize).copied()
    }

    /// Gives leading blocks of a table back.
    #[inline]
    pub fn give_leading(&mut self, seq: SeqId, class: usize, count: u32, give: impl FnMut(Block)) {
        let table = &mut self.sequences[seq.index()].tables[class];
        table.blocks.drain(..count as usize).for_each(give);
        table.first += count;
    }

    /// So many tokens as may stay of a sequence that is rolled back to `len`: none where a class has let go of what
    /// the next token reads.
    pub fn stays(&self, seq: SeqId, len: u32) -> u32 {
        let tables = self.get(seq).tables.iter().enumerate();
        let mut reads = tables.map(|(class, table)| (self.reach(class).first_needed(len), table.first));
        if reads.any(|(needed, first)| needed < first * self.block_size) { 0 } else { len }
    }

    /// Rolls a sequence back to `len` tokens, which may stay; its blocks go from the last one on.
    pub fn cut(&mut self, seq: SeqId, len: u32, mut give: impl FnMut(usize, Block)) {
        let end = len.div_ceil(self.block_size);
        let sequence = &mut self.sequences[seq.index()];
        for (class, table) in sequence.tables.iter_mut().enumerate() {
            let kept = table.below(end);
            table.blocks.drain(kept as usize..).rev().for_each(|block| give(class, block));
            table.lost = table.lost.min(len);
            if kept == 0 {
                table.first = if len == 0 { 0 } else { table.first.min(end) };
            }
        }
        sequence.named = sequence.named.min(len / self.block_size);
        sequence.len = len;
        sequence.capacity = end * self.block_size;
        sequence.grown = len.min(sequence.grown);
    }

    /// Closes a sequence, and gives its blocks back, the end of the chain first.
    pub fn close(&mut self, seq: SeqId, mut give: impl FnMut(usize, Block)) {
        let sequence = &mut self.sequences[seq.index()];
        assert!(sequence.open, "sequence {} is open", seq.0);
        for (class, table) in sequence.tables.iter_mut().enumerate() {
            table.blocks.drain(..).rev().for_each(|block| give(class, block));
            (table.first, table.lost) = (0, 0);
        }
        let tables = std::mem::take(&mut sequence.tables);
        *sequence = Sequence { tables, ..Sequence::default() };
    }

    pub fn view(&self, seq: SeqId, class: ClassId) -> BlockView<'_> {
        let table = &self.get(seq).tables[class.index()];
        BlockView { first: table.first, blocks: &table.blocks, block_size: self.block_size }
    }

    /// Whether every table of a class has the blocks that its sequence reads.
    ///
    /// # Errors
    /// The sequence that lacks some.
    pub fn audit(&self, class: usize) -> Result<(), String> {
        for (id, sequence) in self.open().filter(|(_, sequence)| sequence.len > 0) {
            let table = &sequence.tables[class];
            let end = sequence.len.div_ceil(self.block_size);
            let needed = self.reach(class).first_needed(sequence.len).max(table.lost) / self.block_size;
            if table.end() < end || table.first > needed {
                return Err(format!("class {class}: sequence {} lacks blocks it reads", id.0));
            }
        }
        Ok(())
    }
}

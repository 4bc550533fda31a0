//! What is found of a prompt, and by which names; and sequences that begin with the blocks of another.

use super::Paged;
use crate::content::Content;
use crate::policy::{Reach, SeqId};
use crate::pool::Block;
use crate::tables::{Sequence, Table};

impl Paged {
    /// The first tokens of a prompt, fewer than all, that every class has in its cache.
    pub(super) fn match_prefix(&self, content: &Content, tokens: u32) -> u32 {
        let blocks = self.match_blocks(content, tokens, |class, key| self.pools[class].find(key).is_some());
        self.match_part(content, tokens, blocks).unwrap_or(blocks * self.block_size())
    }

    /// The tokens that every class has if the prompt also begins like a block after the first `blocks`.
    fn match_part(&self, content: &Content, tokens: u32, blocks: u32) -> Option<u32> {
        self.sharing.filter(|sharing| sharing.parts)?;
        // The beginning lies in its block and in its copy at once, for which there has to be room even if
        // this prompt is all there is.
        let needed =
            |class: usize| self.reach(class).clip(tokens.saturating_add(self.tables.geometry.batch_max));
        let fits = |class: usize| {
            let blocks = needed(class).min(tokens).div_ceil(self.block_size());
            let beside = if self.reach(class) == Reach::Full { 1 } else { 2 };
            self.pools[class].blocks() >= blocks + beside
        };
        if !(0..self.pools.len()).all(fits) {
            return None;
        }
        let start = blocks * self.block_size();
        let ends = start + 1..tokens.min(start + self.block_size());
        ends.rev().find(|&end| {
            let key = content.key(end);
            self.pools.iter().all(|pool| pool.find_part(key).is_some())
        })
    }

    /// Leading full blocks of a prompt, fewer tokens than all, that every class has as far as it reads them, which
    /// `has` says of a class and a key.
    pub fn match_blocks(&self, content: &Content, tokens: u32, has: impl Fn(usize, u64) -> bool) -> u32 {
        let mut blocks = tokens.saturating_sub(1) / self.block_size();
        for class in (0..self.pools.len()).filter(|&class| self.reach(class) == Reach::Full) {
            blocks = (0..blocks).find(|&i| !has(class, self.key(content, i))).unwrap_or(blocks);
        }
        while blocks > 0 {
            let missing = (0..self.pools.len()).find_map(|class| {
                let first = self.reach(class).first_needed(blocks * self.block_size()) / self.block_size();
                (first..blocks).rev().find(|&i| !has(class, self.key(content, i)))
            });
            match missing {
                None => break,
                Some(i) => blocks = i,
            }
        }
        blocks
    }

    /// The block of a class that has block `i` of a hit of so many tokens.
    pub(super) fn found(&self, class: usize, content: &Content, hit: u32, i: u32) -> Option<Block> {
        let end = (i + 1) * self.block_size();
        if end > hit {
            self.pools[class].find_part(content.key(hit))
        } else {
            self.pools[class].find(content.key(end))
        }
    }

    /// What the tokens of a sequence are, where its blocks get names.
    pub fn content(&self, seq: SeqId) -> Option<Content> {
        self.tables.get(seq).content.clone()
    }

    /// The block of a sequence with this number, if it still has it.
    pub fn block(&self, seq: SeqId, class: usize, number: u32) -> Option<Block> {
        let table = &self.tables.get(seq).tables[class];
        table.blocks.get(number.checked_sub(table.first)? as usize).copied()
    }

    /// Key of a block of a content.
    pub fn key(&self, content: &Content, block: u32) -> u64 {
        content.key((block + 1) * self.block_size())
    }

    /// Makes the full blocks of a sequence findable.
    pub(super) fn name_blocks(&mut self, seq: SeqId) {
        let size = self.block_size();
        let sequence = self.tables.get_mut(seq);
        // Most tokens fill no block: they cost no division.
        if sequence.len - sequence.named * size < size {
            return;
        }
        let Some(content) = &sequence.content else { return };
        let full = sequence.len / size;
        for (table, pool) in sequence.tables.iter().zip(&mut self.pools) {
            for i in sequence.named.max(table.first)..full {
                let (at, start) = ((i - table.first) as usize, i * size);
                let before = || (at > 0).then(|| (table.blocks[at - 1], content.key(start)));
                let part = |tokens| content.key(start + tokens);
                pool.name(table.blocks[at], content.key(start + size), start, before, part);
            }
        }
        sequence.named = full;
    }

    /// See [`Policy::fork`](crate::Policy::fork).
    pub(super) fn share(&mut self, from: SeqId, to: SeqId, tokens: u32) -> u32 {
        let size = self.block_size();
        let source = self.tables.get(from);
        let len = tokens.min(source.len);
        let lacks = |(class, table): (usize, &Table)| {
            self.reach(class).first_needed(len) < (table.first * size).max(table.lost)
        };
        if len == 0 || source.tables.iter().enumerate().any(lacks) {
            return 0;
        }
        let mut tables = source.tables.clone();
        for (table, pool) in tables.iter_mut().zip(&mut self.pools) {
            table.blocks.truncate((len.div_ceil(size) - table.first) as usize);
            table.blocks.iter().for_each(|&block| pool.share(block));
        }
        *self.tables.reserve(to) =
            Sequence { open: true, len, capacity: len, grown: len, content: None, named: 0, tables };
        self.shares = true;
        // Whichever of the two writes on in a block that both hold has to copy it.
        for seq in [from, to] {
            self.tables.get_mut(seq).capacity = self.capacity(seq);
        }
        len
    }
}

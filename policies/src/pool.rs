//! Equal blocks, handed out one at a time in O(1), with contents that outlive their holders.
//!
//! Free blocks stand in one doubly linked queue. Blocks whose content nobody can look up are
//! put in front and so are reused first; blocks with a key go to the back and are evicted in
//! the order they became idle (LRU). vLLM's `BlockPool` works like this; see also its issue
//! 42656 on why blocks without a key have to go first. Where steps overlap, a block is free only once the
//! step during which it was given back has ended; its content can be found all the time.

use std::hash::BuildHasherDefault;

use rustc_hash::FxHasher;

use crate::quarantine::Quarantine;

/// Number of a block.
pub(crate) type Block = u32;

/// In place of the next neighbour, while a block waits; the previous one is then the low half of its epoch.
const WAITING: u32 = u32::MAX;

#[derive(Clone, Copy, Debug)]
struct Entry {
    /// Neighbours in the free queue; meaningful while `holders` is 0.
    prev: u32,
    next: u32,
    holders: u32,
    /// Key of the content; 0 for none.
    key: u64,
}

impl Entry {
    fn is_waiting(&self) -> bool {
        self.holders == 0 && self.next == WAITING
    }
}

/// The keys of cached blocks. It is only looked up, never iterated, so its order cannot show.
#[expect(clippy::disallowed_types, reason = "looked up by key only, with a fixed hash; never iterated")]
pub(crate) type Index = std::collections::HashMap<u64, Block, BuildHasherDefault<FxHasher>>;

/// Blocks that are free, held, or free with a content that can be found by its key.
#[derive(Clone, Debug)]
pub(crate) struct Pool {
    /// One entry per block and a last one that ties the ends of the free queue together.
    entries: Vec<Entry>,
    free: u32,
    cached: u32,
    waiting: u32,
    quarantine: Quarantine<Block>,
    index: Index,
}

impl Pool {
    /// All blocks free, to be handed out from 0 up.
    pub fn new(blocks: u32) -> Self {
        let end = blocks;
        let entry = |i: u32| Entry {
            prev: if i == 0 { end } else { i - 1 },
            next: if i == end { 0 } else { i + 1 },
            holders: 0,
            key: 0,
        };
        Pool {
            entries: (0..=blocks).map(entry).collect(),
            free: blocks,
            cached: 0,
            waiting: 0,
            quarantine: Quarantine::default(),
            index: Index::default(),
        }
    }

    fn end(&self) -> u32 {
        self.entries.len() as u32 - 1
    }

    /// Blocks, held or not.
    pub fn blocks(&self) -> u32 {
        self.end()
    }

    /// Blocks that nobody holds, with or without content, and that can be taken now.
    pub fn available(&self) -> u32 {
        self.free
    }

    /// Those of them whose content can be found.
    pub fn cached(&self) -> u32 {
        self.cached
    }

    /// Takes the block at the front of the queue; its content is gone. None if all are held.
    pub fn take(&mut self) -> Option<Block> {
        let block = self.entries[self.end() as usize].next;
        if block == self.end() {
            return None;
        }
        self.unlink(block);
        let entry = &mut self.entries[block as usize];
        entry.holders = 1;
        if entry.key != 0 {
            let key = std::mem::take(&mut entry.key);
            self.index.remove(&key);
            self.cached -= 1;
        }
        Some(block)
    }

    /// One holder less. An idle block with a key stays findable until it is taken.
    pub fn give(&mut self, block: Block) {
        let entry = &mut self.entries[block as usize];
        debug_assert!(entry.holders > 0, "the block is held");
        entry.holders -= 1;
        if entry.holders > 0 {
            return;
        }
        match self.quarantine.epoch() {
            None => self.set_free(block),
            Some(epoch) => {
                (entry.prev, entry.next) = (epoch as u32, WAITING);
                self.waiting += 1;
                self.quarantine.push(epoch, block);
            }
        }
    }

    /// A step begins: blocks given back from now on wait until it has ended.
    pub fn defer(&mut self, epoch: u64) {
        self.quarantine.begin(epoch);
    }

    /// Whether blocks that are given back have to wait.
    pub fn defers(&self) -> bool {
        self.quarantine.epoch().is_some()
    }

    /// The steps up to this one have ended: what was given back until then can be taken. A block that was
    /// adopted in the meantime, and perhaps given back once more, is left alone.
    pub fn retire(&mut self, epoch: u64) {
        while let Some((since, block)) = self.quarantine.pop(epoch) {
            let entry = &mut self.entries[block as usize];
            if entry.is_waiting() && entry.prev == since as u32 {
                self.waiting -= 1;
                self.set_free(block);
            }
        }
    }

    /// Blocks that nobody holds and that cannot be taken yet.
    pub fn waiting(&self) -> u32 {
        self.waiting
    }

    /// Puts a block that nobody holds into the free queue.
    fn set_free(&mut self, block: Block) {
        let end = self.end();
        if self.entries[block as usize].key == 0 {
            let first = self.entries[end as usize].next;
            self.link(end, block, first);
        } else {
            let last = self.entries[end as usize].prev;
            self.link(last, block, end);
            self.cached += 1;
        }
    }

    /// Block whose content has this key.
    pub fn find(&self, key: u64) -> Option<Block> {
        self.index.get(&key).copied()
    }

    /// Whether the block could be taken now.
    pub fn is_idle(&self, block: Block) -> bool {
        let entry = &self.entries[block as usize];
        entry.holders == 0 && !entry.is_waiting()
    }

    /// Key of the block's content, if it has one.
    pub fn key_of(&self, block: Block) -> Option<u64> {
        Some(self.entries[block as usize].key).filter(|&key| key != 0)
    }

    /// The blocks that can be taken, in the order in which they will be.
    pub fn queue(&self) -> impl Iterator<Item = Block> + '_ {
        let next = |at: u32| Some(self.entries[at as usize].next).filter(|&next| next != self.end());
        std::iter::successors(next(self.end()), move |&at| next(at))
    }

    /// Tables that hold the block.
    pub fn holders(&self, block: Block) -> u32 {
        self.entries[block as usize].holders
    }

    /// One holder more for a block with content.
    pub fn share(&mut self, block: Block) {
        if self.is_idle(block) {
            self.unlink(block);
            self.cached -= 1;
        } else if self.entries[block as usize].is_waiting() {
            self.waiting -= 1;
        }
        self.entries[block as usize].holders += 1;
    }

    /// Names the content of a held block, unless another block is known by that key already.
    pub fn name(&mut self, block: Block, key: u64) {
        if self.entries[block as usize].key == 0 && !self.index.contains_key(&key) {
            self.entries[block as usize].key = key;
            self.index.insert(key, block);
        }
    }

    fn unlink(&mut self, block: Block) {
        let Entry { prev, next, .. } = self.entries[block as usize];
        self.entries[prev as usize].next = next;
        self.entries[next as usize].prev = prev;
        self.free -= 1;
    }

    fn link(&mut self, prev: u32, block: Block, next: u32) {
        self.entries[block as usize].prev = prev;
        self.entries[block as usize].next = next;
        self.entries[prev as usize].next = block;
        self.entries[next as usize].prev = block;
        self.free += 1;
    }

    /// Whether the block could be taken now but for a content that can be found.
    pub fn is_cached(&self, block: Block) -> bool {
        self.is_idle(block) && self.entries[block as usize].key != 0
    }

    /// Checks counts, links and keys; `holders` says how many tables hold each block.
    pub fn audit(&self, holders: &[u32]) -> Result<(), String> {
        for (block, (entry, &expected)) in self.entries.iter().zip(holders).enumerate() {
            if entry.holders != expected {
                return Err(format!(
                    "block {block}: {} holders in the pool, {expected} tables hold it",
                    entry.holders
                ));
            }
            if entry.key != 0 && self.find(entry.key) != Some(block as Block) {
                return Err(format!("block {block}: its key leads elsewhere"));
            }
        }
        let waiting = self.entries[..holders.len()].iter().filter(|entry| entry.is_waiting()).count() as u32;
        let idle = holders.iter().filter(|&&count| count == 0).count() as u32 - waiting;
        let cached = (0..self.blocks()).filter(|&block| self.is_cached(block)).count();
        let keyed = self.entries[..holders.len()].iter().filter(|entry| entry.key != 0).count();
        if (idle, cached as u32) != (self.free, self.cached) || keyed != self.index.len() {
            return Err(format!(
                "{idle} idle and {cached} cached blocks, counted {} and {}",
                self.free, self.cached
            ));
        }
        if waiting != self.waiting {
            return Err(format!("{waiting} blocks wait, counted {}", self.waiting));
        }
        let mut at = self.end();
        let mut linked = 0;
        loop {
            let next = self.entries[at as usize].next;
            if self.entries[next as usize].prev != at || linked > self.free {
                return Err(format!("the free queue is broken at block {at}"));
            }
            if next == self.end() {
                break;
            }
            linked += 1;
            at = next;
        }
        if linked == self.free {
            Ok(())
        } else {
            Err(format!("{linked} blocks in the free queue of {}", self.free))
        }
    }
}

/// Length and starts of the free rows of blocks: (longest, rows, one past the highest block that is not free).
pub(crate) fn rows(pool: &Pool) -> (u32, u32, u32) {
    let (mut longest, mut rows, mut high, mut row) = (0, 0, 0, 0);
    for block in 0..pool.blocks() {
        if !pool.is_idle(block) {
            row = 0;
            high = block + 1;
        } else {
            rows += u32::from(row == 0);
            row += 1;
            longest = longest.max(row);
        }
    }
    (longest, rows, high)
}

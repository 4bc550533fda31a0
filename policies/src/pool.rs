//! Equal blocks, handed out one at a time in O(1), with contents that outlive their holders.
//!
//! Free blocks stand in one doubly linked queue. Blocks whose content nobody can look up are
//! put in front and so are reused first; blocks with a key go to the back and are evicted in
//! the order they became idle (LRU). vLLM's `BlockPool` works like this; see also its issue
//! 42656 on why blocks without a key have to go first.

use std::hash::BuildHasherDefault;

use rustc_hash::FxHasher;

/// Number of a block.
pub(crate) type Block = u32;

#[derive(Clone, Copy, Debug)]
struct Entry {
    /// Neighbours in the free queue; meaningful while `holders` is 0.
    prev: u32,
    next: u32,
    holders: u32,
    /// Key of the content; 0 for none.
    key: u64,
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
        Pool { entries: (0..=blocks).map(entry).collect(), free: blocks, cached: 0, index: Index::default() }
    }

    fn end(&self) -> u32 {
        self.entries.len() as u32 - 1
    }

    /// Blocks, held or not.
    pub fn blocks(&self) -> u32 {
        self.end()
    }

    /// Blocks that nobody holds, with or without content.
    pub fn available(&self) -> u32 {
        self.free
    }

    /// Blocks that nobody holds but whose content can be found.
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

    /// Whether nobody holds the block.
    pub fn is_idle(&self, block: Block) -> bool {
        self.entries[block as usize].holders == 0
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

    /// Whether the block is held, for looks at the whole pool.
    pub fn is_held(&self, block: Block) -> bool {
        self.entries[block as usize].holders > 0
    }

    /// Whether nobody holds the block but its content can be found.
    pub fn is_cached(&self, block: Block) -> bool {
        let entry = &self.entries[block as usize];
        entry.holders == 0 && entry.key != 0
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
        let idle = holders.iter().filter(|&&count| count == 0).count() as u32;
        let cached =
            self.entries[..holders.len()].iter().filter(|entry| entry.holders == 0 && entry.key != 0).count();
        let keyed = self.entries[..holders.len()].iter().filter(|entry| entry.key != 0).count();
        if (idle, cached as u32) != (self.free, self.cached) || keyed != self.index.len() {
            return Err(format!(
                "{idle} idle and {cached} cached blocks, counted {} and {}",
                self.free, self.cached
            ));
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

/// Length and starts of the free rows of blocks: (longest, rows, one past the highest held block).
pub(crate) fn rows(pool: &Pool) -> (u32, u32, u32) {
    let (mut longest, mut rows, mut high, mut row) = (0, 0, 0, 0);
    for block in 0..pool.blocks() {
        if pool.is_held(block) {
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

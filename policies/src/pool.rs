//! Equal blocks, handed out one at a time, with contents that outlive their holders.
//!
//! Blocks without a content that anybody could look up lie on a stack and are taken first, the latest
//! given back before the others; then the [evictor](crate::evict) says whose content goes. vLLM's
//! `BlockPool` works like this with LRU; see also its issue 42656 on why blocks without a key go first.
//!
//! A content can be found by its key and, where blocks are told apart token by token, by the keys of its
//! beginnings; of several blocks that begin alike the first is found. A pool that evicts leaves only keeps the
//! tree of what goes on from what. Where steps overlap, a block is free only once the step during which it was
//! given back has ended; its content can be found all the time.
//!
//! Cost: O(1) beside the evictor's; O(block) to name a block that can be found by its beginnings.

use std::hash::BuildHasherDefault;
use std::num::NonZeroU32;

use rustc_hash::FxHasher;

use crate::evict::{Evictor, Lru};
use crate::names::Names;
use crate::quarantine::Quarantine;

/// Number of a block.
pub(crate) type Block = u32;

/// No block.
const NONE: Block = Block::MAX;

#[derive(Clone, Copy, Debug, Default)]
struct Entry {
    holders: u32,
    /// The step that has to end before the block is free, if it waits for one; before it is written, if others hold it
    /// still.
    waits_for: Option<NonZeroU32>,
    /// Key of the content; 0 for none.
    key: u64,
}

/// A step, in the 31 bits by which those that have not ended differ.
fn ticket(epoch: u64) -> Option<NonZeroU32> {
    NonZeroU32::new(epoch as u32 | 1 << 31)
}

/// What is known by a key. It is only looked up, never iterated, so its order cannot show.
#[expect(clippy::disallowed_types, reason = "looked up by key only, with a fixed hash; never iterated")]
pub(crate) type Index<T = Block> = std::collections::HashMap<u64, T, BuildHasherDefault<FxHasher>>;

/// What goes on from what.
#[derive(Clone, Copy, Debug)]
struct Branch {
    /// The block that this one goes on from.
    parent: Block,
    /// Blocks with a key that go on from this one.
    children: u32,
}

/// The beginnings by which blocks can be found.
#[derive(Debug)]
struct Parts {
    /// Keys of each block's beginnings, `per_block` for each; 0 for none.
    keys: Vec<u64>,
    per_block: usize,
    names: Names,
}

impl Parts {
    fn forget(&mut self, block: Block) {
        let start = block as usize * self.per_block;
        for key in self.keys[start..start + self.per_block].iter_mut().filter(|key| **key != 0) {
            self.names.remove(*key, block);
            *key = 0;
        }
    }

    /// Makes the block known by each of its beginnings that no other block is known by.
    fn remember(&mut self, block: Block, part: impl Fn(u32) -> u64) {
        let start = block as usize * self.per_block;
        for (at, tokens) in (start..start + self.per_block).zip(1..) {
            let (key, keys) = (part(tokens), &self.keys);
            if self.names.insert(key, block, |block| keys_of(keys, self.per_block, block).contains(&key)) {
                self.keys[at] = key;
            }
        }
    }

    fn find(&self, key: u64) -> Option<Block> {
        self.names.find(key, |block| keys_of(&self.keys, self.per_block, block).contains(&key))
    }
}

/// The keys of a block out of those of all, `per_block` for each.
fn keys_of(keys: &[u64], per_block: usize, block: Block) -> &[u64] {
    &keys[block as usize * per_block..][..per_block]
}

/// Blocks that are free, held, or free with a content that can be found by its key.
pub(crate) struct Pool {
    entries: Vec<Entry>,
    /// Free blocks without a content, the next to be taken last.
    bare: Vec<Block>,
    cached: u32,
    waiting: u32,
    quarantine: Quarantine<Block>,
    names: Names,
    /// None where nothing is ever named.
    evictor: Option<Box<dyn Evictor>>,
    /// One per block where only leaves may be evicted.
    tree: Vec<Branch>,
    parts: Option<Parts>,
}

impl Pool {
    /// All blocks free, to be handed out from 0 up. Nothing can be named.
    pub fn new(blocks: u32) -> Self {
        Pool {
            entries: vec![Entry::default(); blocks as usize],
            bare: (0..blocks).rev().collect(),
            cached: 0,
            waiting: 0,
            quarantine: Quarantine::default(),
            names: Names::default(),
            evictor: None,
            tree: Vec::new(),
            parts: None,
        }
    }

    /// A pool whose blocks stay findable until the evictor chooses them.
    pub fn caching(blocks: u32, evictor: Box<dyn Evictor>) -> Self {
        Pool { evictor: Some(evictor), ..Pool::new(blocks) }
    }

    /// A pool whose blocks stay findable until they are the least recently used.
    pub fn lru(blocks: u32) -> Self {
        Pool::caching(blocks, Box::new(Lru::new(blocks)))
    }

    /// The same, only blocks go that no block with a key goes on from. Whoever holds a block has to
    /// hold all that it goes on from.
    pub fn leaves_only(mut self) -> Self {
        self.tree = vec![Branch { parent: NONE, children: 0 }; self.entries.len()];
        self
    }

    /// The same, and blocks of so many tokens can be found by their beginnings.
    pub fn with_parts(mut self, block_size: u32) -> Self {
        let per_block = block_size as usize - 1;
        let keys = vec![0; self.entries.len() * per_block];
        self.parts = Some(Parts { keys, per_block, names: Names::default() });
        self
    }

    /// Blocks, held or not.
    pub fn blocks(&self) -> u32 {
        self.entries.len() as u32
    }

    /// Blocks that nobody holds, with or without content, and that can be taken now.
    pub fn available(&self) -> u32 {
        self.bare.len() as u32 + self.cached
    }

    /// Those of them whose content can be found.
    pub fn cached(&self) -> u32 {
        self.cached
    }

    /// Takes a block; its content is gone. None if all are held.
    pub fn take(&mut self) -> Option<Block> {
        let block = match self.bare.pop() {
            Some(block) => block,
            None => self.evict()?,
        };
        self.entries[block as usize].holders = 1;
        Some(block)
    }

    fn evict(&mut self) -> Option<Block> {
        let block = self.evictor.as_mut()?.evict()?;
        self.cached -= 1;
        let key = std::mem::take(&mut self.entries[block as usize].key);
        self.names.remove(key, block);
        if let Some(parts) = &mut self.parts {
            parts.forget(block);
        }
        if let Some(branch) = self.tree.get_mut(block as usize) {
            let parent = std::mem::replace(&mut branch.parent, NONE);
            if let Some(branch) = self.tree.get_mut(parent as usize) {
                branch.children -= 1;
                self.offer_leaf(parent);
            }
        }
        Some(block)
    }

    /// Puts an idle block with a key on offer, unless others go on from it.
    fn offer_leaf(&mut self, block: Block) {
        let is_leaf = self.tree.get(block as usize).is_none_or(|branch| branch.children == 0);
        if is_leaf
            && self.is_cached(block)
            && let Some(evictor) = &mut self.evictor
        {
            evictor.offer(block);
        }
    }

    /// One holder less. An idle block with a key stays findable until it is evicted.
    pub fn give(&mut self, block: Block) {
        let entry = &mut self.entries[block as usize];
        debug_assert!(entry.holders > 0, "the block is held");
        entry.holders -= 1;
        let is_idle = entry.holders == 0;
        match self.quarantine.epoch() {
            None if is_idle => self.set_free(block),
            None => {}
            Some(epoch) => {
                entry.waits_for = ticket(epoch);
                self.waiting += u32::from(is_idle);
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
            if entry.waits_for == ticket(since) {
                entry.waits_for = None;
                if entry.holders == 0 {
                    self.waiting -= 1;
                    self.set_free(block);
                }
            }
        }
    }

    /// Blocks that nobody holds and that cannot be taken yet.
    pub fn waiting(&self) -> u32 {
        self.waiting
    }

    /// Lets a block be taken that nobody holds.
    fn set_free(&mut self, block: Block) {
        if self.entries[block as usize].key == 0 {
            self.bare.push(block);
            return;
        }
        self.cached += 1;
        if let Some(evictor) = &mut self.evictor {
            evictor.touch(block);
        }
        self.offer_leaf(block);
    }

    /// Block whose content has this key.
    pub fn find(&self, key: u64) -> Option<Block> {
        self.names.find(key, |block| self.entries[block as usize].key == key)
    }

    /// Block whose content begins with what has this key.
    pub fn find_part(&self, key: u64) -> Option<Block> {
        self.parts.as_ref()?.find(key)
    }

    /// Whether the block could be taken now.
    pub fn is_idle(&self, block: Block) -> bool {
        let entry = &self.entries[block as usize];
        entry.holders == 0 && entry.waits_for.is_none()
    }

    /// Key of the block's content, if it has one.
    pub fn key_of(&self, block: Block) -> Option<u64> {
        Some(self.entries[block as usize].key).filter(|&key| key != 0)
    }

    /// Those of the next `count` blocks to be taken whose content can be found, in their order. Where only leaves
    /// go, those that are leaves now.
    pub fn evicted_next(&self, count: u32) -> Vec<Block> {
        let count = count.saturating_sub(self.bare.len() as u32);
        self.evictor.as_ref().map_or_else(Vec::new, |evictor| evictor.next(count))
    }

    /// Tables that hold the block.
    pub fn holders(&self, block: Block) -> u32 {
        self.entries[block as usize].holders
    }

    /// Whether a step that has not ended may read the block for somebody who gave it back.
    pub fn is_read(&self, block: Block) -> bool {
        self.entries[block as usize].waits_for.is_some()
    }

    /// Whether the content of the block can be found.
    pub fn is_named(&self, block: Block) -> bool {
        self.entries[block as usize].key != 0
    }

    /// One holder more for a block that was found: a hit.
    pub fn adopt(&mut self, block: Block) {
        if let Some(evictor) = &mut self.evictor {
            evictor.hit(block);
        }
        if self.is_idle(block) {
            self.cached -= 1;
            let is_leaf = self.tree.get(block as usize).is_none_or(|branch| branch.children == 0);
            if is_leaf && let Some(evictor) = &mut self.evictor {
                evictor.withdraw(block);
            }
        } else if self.holders(block) == 0 {
            self.entries[block as usize].waits_for = None;
            self.waiting -= 1;
        }
        self.entries[block as usize].holders += 1;
    }

    /// One holder more for a held block.
    pub fn share(&mut self, block: Block) {
        debug_assert!(self.holders(block) > 0, "the block is held");
        self.entries[block as usize].holders += 1;
    }

    /// Names the content of a held block, unless another block is known by that key already. `start`
    /// tokens come before it, and `before` is the block of the same table that holds the last of them, with its key.
    /// `part` gives the key of all tokens up to the first so many of the block.
    #[inline]
    pub fn name(
        &mut self,
        block: Block,
        key: u64,
        start: u32,
        before: impl FnOnce() -> Option<(Block, u64)>,
        part: impl Fn(u32) -> u64,
    ) {
        let entries = &self.entries;
        if entries[block as usize].key != 0
            || !self.names.insert(key, block, |block| entries[block as usize].key == key)
        {
            return;
        }
        self.entries[block as usize].key = key;
        if let Some(evictor) = &mut self.evictor {
            evictor.store(block, key, start);
        }
        if let Some(parts) = &mut self.parts {
            parts.remember(block, part);
        }
        if self.tree.is_empty() {
            return;
        }
        // What the table holds before it may be a copy of what is known by its key.
        if let Some((parent, key)) = before()
            && self.entries[parent as usize].key == key
        {
            self.tree[block as usize].parent = parent;
            self.tree[parent as usize].children += 1;
        }
    }

    /// Names the content of a held block that stands for itself: it has no beginning, and nothing goes on from it.
    pub fn name_whole(&mut self, block: Block, key: u64) {
        self.name(block, key, 0, || None, |_| key);
    }

    /// Tells the evictor that request `now` of the future is served.
    pub fn advance(&mut self, now: u32) {
        if let Some(evictor) = &mut self.evictor {
            evictor.advance(now);
        }
    }

    /// Whether the block could be taken now but for a content that can be found.
    pub fn is_cached(&self, block: Block) -> bool {
        self.is_idle(block) && self.entries[block as usize].key != 0
    }

    /// Checks counts, keys and what is on offer; `holders` says how many tables hold each block.
    pub fn audit(&self, holders: &[u32]) -> Result<(), String> {
        let mut children = vec![0_u32; holders.len()];
        for branch in self.tree.iter().filter(|branch| branch.parent != NONE) {
            children[branch.parent as usize] += 1;
        }
        let (mut bare, mut cached, mut keyed, mut leaves, mut waiting) = (0, 0, 0, 0, 0);
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
            let branch = self.tree.get(block);
            if branch.is_some_and(|branch| branch.children != children[block]) {
                return Err(format!("block {block}: {} blocks go on from it", children[block]));
            }
            if branch.is_some_and(|branch| entry.key == 0 && (branch.children > 0 || branch.parent != NONE)) {
                return Err(format!("block {block}: in the tree without a name"));
            }
            let is_cached = self.is_cached(block as Block);
            keyed += u32::from(entry.key != 0);
            bare += u32::from(self.is_idle(block as Block) && !is_cached);
            cached += u32::from(is_cached);
            leaves += u32::from(is_cached && children[block] == 0);
            waiting += u32::from(entry.holders == 0 && entry.waits_for.is_some());
        }
        if waiting != self.waiting {
            return Err(format!("{waiting} blocks wait, counted {}", self.waiting));
        }
        if (bare, cached, keyed) != (self.bare.len() as u32, self.cached, self.names.len() as u32) {
            return Err(format!(
                "{bare} bare, {cached} cached, {keyed} named blocks, counted {}, {} and {}",
                self.bare.len(),
                self.cached,
                self.names.len()
            ));
        }
        let offered = self.evictor.as_ref().map_or(0, |evictor| evictor.offered());
        if offered != leaves {
            return Err(format!("{offered} blocks may be evicted, {leaves} should be"));
        }
        let parts = self.parts.as_ref();
        if parts.is_some_and(|parts| parts.keys.iter().filter(|&&key| key != 0).count() != parts.names.len())
        {
            return Err("beginnings are known of blocks that are gone".to_owned());
        }
        Ok(())
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

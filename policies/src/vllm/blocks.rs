//! The pool that all groups share: equal blocks, a free queue that is the LRU list, an index by content.
//!
//! The free queue is one list to the server: blocks without a key stand in front, those with one behind. It
//! is several linked lists here, so that contents can also go in another order. Several blocks may hold the
//! same content; the one named first is found. Every operation on a block is O(1); a sequence that is evicted
//! as a whole is moved once more, block by block.

use crate::pool::Index;
use crate::vllm::Block;

/// Where a content goes that nobody holds any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// Behind all others: it is taken after them.
    Kept,
    /// Before those that are kept; the latest sequence first.
    Stranger,
    /// It is taken before all other contents.
    Doomed,
}

/// The lists of the free queue, in the order in which blocks are taken.
const LISTS: u32 = 4;
const FRESH: u32 = 0;
const DOOMED: u32 = 1;
const STRANGERS: u32 = 2;
const KEPT: u32 = 3;

#[derive(Clone, Copy, Debug)]
struct Entry {
    /// Neighbours in the free queue; meaningful while nobody holds the block.
    prev: Block,
    next: Block,
    holders: u32,
    /// The group that took the block last.
    group: u16,
    /// Who gave the block back last.
    owner: u32,
    /// Key of the content; 0 for none.
    key: u64,
    /// Neighbours in the ring of blocks with the same content, in the order in which they were named.
    twin_prev: Block,
    twin_next: Block,
}

/// The blocks, free and held. Block 0 is nobody's: the server's tables have it where a block is gone.
#[derive(Clone, Debug)]
pub(super) struct Blocks {
    /// One entry per block, then one for each list that ties its ends together.
    entries: Vec<Entry>,
    idle: u32,
    /// The oldest block of every key, for each group.
    index: Vec<Index>,
    /// Blocks that somebody holds, by the group that took them.
    held: Vec<u32>,
    /// Blocks with a content that nobody holds, by group.
    cached: Vec<u32>,
    /// Whether blocks without a content are taken before all others, or stand in line with them.
    keyless_first: bool,
    /// Whether a sequence whose content goes loses all of it before another loses any.
    whole: bool,
}

impl Blocks {
    /// All blocks free, to be handed out from 1 up.
    pub fn new(blocks: u32, groups: usize, keyless_first: bool, whole: bool) -> Self {
        let entry = |at: u32| Entry {
            prev: at,
            next: at,
            holders: 0,
            group: 0,
            owner: 0,
            key: 0,
            twin_prev: at,
            twin_next: at,
        };
        let mut all = Blocks {
            entries: (0..blocks + LISTS).map(entry).collect(),
            idle: 0,
            index: vec![Index::default(); groups],
            held: vec![0; groups],
            cached: vec![0; groups],
            keyless_first,
            whole,
        };
        for block in 1..blocks {
            all.link(all.last(FRESH), block);
        }
        all
    }

    /// Blocks, with the one that is nobody's.
    pub fn len(&self) -> u32 {
        self.entries.len() as u32 - LISTS
    }

    /// What stands before the first block of a list, and behind its last.
    fn end(&self, list: u32) -> Block {
        self.len() + list
    }

    /// The first block of a list, if it has one.
    fn first(&self, list: u32) -> Option<Block> {
        let first = self.entries[self.end(list) as usize].next;
        (first != self.end(list)).then_some(first)
    }

    /// The last block of a list, or its end.
    fn last(&self, list: u32) -> Block {
        self.entries[self.end(list) as usize].prev
    }

    /// Blocks that nobody holds, with or without content.
    pub fn idle(&self) -> u32 {
        self.idle
    }

    /// Blocks of a group that somebody holds.
    pub fn held(&self, group: usize) -> u32 {
        self.held[group]
    }

    /// Blocks of a group that nobody holds and whose content can be found.
    pub fn cached(&self, group: usize) -> u32 {
        self.cached[group]
    }

    /// Takes the block at the front of the queue for a group; its content is gone.
    pub fn take(&mut self, group: usize) -> Option<Block> {
        let unwanted = self.first(FRESH).or_else(|| self.first(DOOMED));
        let block = unwanted.or_else(|| if self.whole { self.doom() } else { self.first(KEPT) })?;
        self.unlink(block);
        self.forget(block);
        let entry = &mut self.entries[block as usize];
        entry.holders = 1;
        entry.group = group as u16;
        self.held[group] += 1;
        Some(block)
    }

    /// Gives up all of the next sequence, and tells its first block.
    fn doom(&mut self) -> Option<Block> {
        let first = self.first(STRANGERS).or_else(|| self.first(KEPT))?;
        let Entry { owner, prev: end, .. } = self.entries[first as usize];
        loop {
            let next = self.entries[end as usize].next;
            if next == end || self.entries[next as usize].owner != owner {
                return Some(first);
            }
            self.unlink(next);
            self.link(self.last(DOOMED), next);
        }
    }

    /// One holder less for each, in the order of their eviction. Contents go to `place`; those of one owner
    /// go together.
    pub fn give(&mut self, blocks: impl Iterator<Item = Block>, place: Place, owner: u32) {
        let (mut last_fresh, mut last_stranger) = (self.end(FRESH), self.end(STRANGERS));
        for block in blocks {
            let entry = &mut self.entries[block as usize];
            debug_assert!(entry.holders > 0, "the block is held");
            entry.holders -= 1;
            if entry.holders > 0 {
                continue;
            }
            entry.owner = owner;
            let (group, has_key) = (usize::from(entry.group), entry.key != 0);
            self.held[group] -= 1;
            self.cached[group] += u32::from(has_key);
            if !has_key && self.keyless_first {
                self.link(last_fresh, block);
                last_fresh = block;
            } else if place == Place::Stranger {
                self.link(last_stranger, block);
                last_stranger = block;
            } else {
                self.link(self.last(if place == Place::Doomed { DOOMED } else { KEPT }), block);
            }
        }
    }

    /// The oldest block of a group with this content.
    pub fn find(&self, group: usize, key: u64) -> Option<Block> {
        self.index[group].get(&key).copied()
    }

    /// Tables that hold the block.
    pub fn holders(&self, block: Block) -> u32 {
        self.entries[block as usize].holders
    }

    /// One holder more for a block with a content.
    pub fn share(&mut self, block: Block) {
        let Entry { holders, group, .. } = self.entries[block as usize];
        if holders == 0 {
            self.unlink(block);
            self.cached[usize::from(group)] -= 1;
            self.held[usize::from(group)] += 1;
        }
        self.entries[block as usize].holders += 1;
    }

    /// Makes the content of a held block findable, beside blocks that hold the same.
    pub fn name(&mut self, block: Block, key: u64) {
        let group = usize::from(self.entries[block as usize].group);
        debug_assert!(key != 0 && self.entries[block as usize].key == 0, "the block gets its only key");
        self.entries[block as usize].key = key;
        let first = *self.index[group].entry(key).or_insert(block);
        let last = self.entries[first as usize].twin_prev;
        (self.entries[block as usize].twin_prev, self.entries[block as usize].twin_next) =
            if first == block { (block, block) } else { (last, first) };
        if first != block {
            self.entries[last as usize].twin_next = block;
            self.entries[first as usize].twin_prev = block;
        }
    }

    fn forget(&mut self, block: Block) {
        let Entry { key, group, twin_prev, twin_next, .. } = self.entries[block as usize];
        if key == 0 {
            return;
        }
        let group = usize::from(group);
        self.cached[group] -= 1;
        self.entries[block as usize].key = 0;
        if twin_next == block {
            self.index[group].remove(&key);
            return;
        }
        self.entries[twin_prev as usize].twin_next = twin_next;
        self.entries[twin_next as usize].twin_prev = twin_prev;
        if let Some(first) = self.index[group].get_mut(&key).filter(|first| **first == block) {
            *first = twin_next;
        }
    }

    fn unlink(&mut self, block: Block) {
        let Entry { prev, next, .. } = self.entries[block as usize];
        self.entries[prev as usize].next = next;
        self.entries[next as usize].prev = prev;
        self.idle -= 1;
    }

    /// Puts a block behind another, or behind the end of a list, which is its front.
    fn link(&mut self, prev: Block, block: Block) {
        let next = self.entries[prev as usize].next;
        self.entries[block as usize].prev = prev;
        self.entries[block as usize].next = next;
        self.entries[prev as usize].next = block;
        self.entries[next as usize].prev = block;
        self.idle += 1;
    }

    /// Whether nobody holds the block but its content can be found in the group, for looks at all blocks.
    pub fn is_cached(&self, group: usize, block: Block) -> bool {
        let entry = &self.entries[block as usize];
        entry.holders == 0 && entry.key != 0 && usize::from(entry.group) == group
    }

    /// Whether the group holds the block.
    pub fn is_held(&self, group: usize, block: Block) -> bool {
        let entry = &self.entries[block as usize];
        entry.holders > 0 && usize::from(entry.group) == group
    }

    /// Checks counts, queue and keys; `holders` says how many tables of which group hold each block.
    pub fn audit(&self, holders: &[(u32, usize)]) -> Result<(), String> {
        let groups = self.held.len();
        let (mut held, mut cached, mut keys) = (vec![0; groups], vec![0; groups], 0);
        for (block, (entry, &(expected, group))) in self.entries.iter().zip(holders).enumerate() {
            if entry.holders != expected || expected > 0 && usize::from(entry.group) != group {
                return Err(format!("block {block}: {} holders, {expected} tables hold it", entry.holders));
            }
            if block == 0 {
                continue;
            }
            if entry.holders > 0 {
                held[group] += 1;
            } else if entry.key != 0 {
                cached[usize::from(entry.group)] += 1;
            }
            if entry.key != 0 {
                keys += u32::from(self.find(entry.group.into(), entry.key) == Some(block as Block));
                let ring = |block: Block| self.entries[block as usize].key == entry.key;
                if !ring(entry.twin_next)
                    || self.entries[entry.twin_next as usize].twin_prev != block as Block
                {
                    return Err(format!("block {block}: the ring of its content is broken"));
                }
            }
        }
        if (&held, &cached) != (&self.held, &self.cached) {
            return Err(format!(
                "{held:?} held and {cached:?} cached, counted {:?}, {:?}",
                self.held, self.cached
            ));
        }
        if keys as usize != self.index.iter().map(Index::len).sum::<usize>() {
            return Err("a key leads to a block without it".to_owned());
        }
        let mut linked = 0;
        for end in self.len()..self.len() + LISTS {
            let mut at = end;
            loop {
                let next = self.entries[at as usize].next;
                if self.entries[next as usize].prev != at || linked > self.idle {
                    return Err(format!("the free queue is broken at block {at}"));
                }
                if next == end {
                    break;
                }
                linked += 1;
                at = next;
            }
        }
        if linked == self.idle { Ok(()) } else { Err(format!("{linked} blocks linked, {} idle", self.idle)) }
    }
}

//! Least recently used first: the block goes that has been idle longest.
//!
//! A queue in the order of coming back. A block that is withdrawn stays in it and is passed over later, so nothing of
//! its neighbours is touched: a list linked through the blocks reads two of them, anywhere in memory, for each.
//!
//! Cost: O(1).

use std::collections::VecDeque;

use super::Evictor;
use super::order::Turns;
use crate::pool::Block;

/// Entries that may be stale beside as many as count.
const STALE_MAX: usize = 64;

pub(crate) struct Lru {
    /// Blocks with the turn in which they came.
    queue: VecDeque<(Block, u32)>,
    turns: Turns,
    offered: usize,
}

impl Lru {
    pub fn new(blocks: u32) -> Self {
        Lru { queue: VecDeque::new(), turns: Turns::new(blocks), offered: 0 }
    }
}

impl Evictor for Lru {
    fn offer(&mut self, block: Block) {
        self.queue.push_back((block, self.turns.enter(block)));
        self.offered += 1;
    }

    fn withdraw(&mut self, block: Block) {
        self.turns.leave(block);
        self.offered -= 1;
        if self.queue.len() > 2 * self.offered + STALE_MAX {
            let turns = &self.turns;
            self.queue.retain(|&(block, turn)| turns.count(block, turn));
        }
    }

    fn evict(&mut self) -> Option<Block> {
        loop {
            let (block, turn) = self.queue.pop_front()?;
            if self.turns.count(block, turn) {
                self.turns.leave(block);
                self.offered -= 1;
                return Some(block);
            }
        }
    }

    fn next(&self, count: u32) -> Vec<Block> {
        let counting = self.queue.iter().filter(|&&(block, turn)| self.turns.count(block, turn));
        counting.take(count as usize).map(|&(block, _)| block).collect()
    }

    fn offered(&self) -> u32 {
        self.offered as u32
    }
}

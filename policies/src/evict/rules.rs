//! The plain rules: by last use, by first use, by number of uses.
//!
//! Sources: any textbook; `fifo` and `lfu` are eviction policies of SGLang's radix cache too.

use super::ranked::{Rank, Ranking};
use crate::pool::Block;

/// Least recently used, where blocks are not offered in the order in which they come back.
pub(super) struct Recent;

impl Ranking for Recent {
    fn rank(&mut self, _: Block, stamp: i64) -> Rank {
        (stamp, 0)
    }
}

/// First in, first out: the block that became idle first, ever, whatever hit it since.
pub(super) struct Fifo {
    /// When each first came back; 0 for not yet.
    entered: Vec<i64>,
}

impl Fifo {
    pub fn new(blocks: u32) -> Self {
        Fifo { entered: vec![0; blocks as usize] }
    }
}

impl Ranking for Fifo {
    fn store(&mut self, block: Block, _: u64, _: u32) {
        self.entered[block as usize] = 0;
    }

    fn rank(&mut self, block: Block, stamp: i64) -> Rank {
        let entered = &mut self.entered[block as usize];
        if *entered == 0 {
            *entered = stamp;
        }
        (*entered, 0)
    }
}

/// Least frequently used: the block that the fewest prompts have adopted, of these the one idle longest.
pub(super) struct Lfu {
    hits: Vec<u32>,
}

impl Lfu {
    pub fn new(blocks: u32) -> Self {
        Lfu { hits: vec![0; blocks as usize] }
    }
}

impl Ranking for Lfu {
    fn store(&mut self, block: Block, _: u64, _: u32) {
        self.hits[block as usize] = 0;
    }

    fn hit(&mut self, block: Block) {
        let hits = &mut self.hits[block as usize];
        *hits = hits.saturating_add(1);
    }

    fn rank(&mut self, block: Block, stamp: i64) -> Rank {
        (self.hits[block as usize].into(), stamp)
    }
}

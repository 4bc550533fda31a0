//! By what it would cost to compute a block again, times how often it is used, with aging.
//!
//! GreedyDual-Size-Frequency (Cherkasova, HP Labs 1998) with equal sizes: a block's worth is the worth of
//! the last block evicted plus uses times cost. The cost is the prefill of the block's tokens where they
//! stand: the linear layers, and attention over all tokens before them. Deep blocks cost more than
//! what they go on from, so the rule is for leaves only.

use super::ranked::{Rank, Ranking};
use crate::pool::Block;

/// Tokens of context at which the attention of a token costs as much as its linear layers. Counted for
/// Llama 3 8B: 15 GFLOP per token beside 4 x 32 layers x 4096 x context. A choice for all models.
const EVEN: i64 = 30_000;

/// What decides the worth of a block.
#[derive(Clone, Copy, Default)]
struct Entry {
    /// Tokens before it.
    start: u32,
    uses: u32,
}

pub(super) struct Cost {
    block_size: i64,
    entries: Vec<Entry>,
    age: i64,
}

impl Cost {
    pub fn new(blocks: u32, block_size: u32) -> Self {
        Cost { block_size: block_size.into(), entries: vec![Entry::default(); blocks as usize], age: 0 }
    }
}

impl Ranking for Cost {
    fn store(&mut self, block: Block, _: u64, start: u32) {
        self.entries[block as usize] = Entry { start, uses: 1 };
    }

    fn hit(&mut self, block: Block) {
        let uses = &mut self.entries[block as usize].uses;
        *uses = uses.saturating_add(1);
    }

    fn rank(&mut self, block: Block, stamp: i64) -> Rank {
        let Entry { start, uses } = self.entries[block as usize];
        let cost = self.block_size * (EVEN + i64::from(start) + self.block_size / 2);
        (self.age.saturating_add(cost.saturating_mul(uses.into())), stamp)
    }

    fn evicted(&mut self, rank: Rank) {
        self.age = self.age.max(rank.0);
    }
}

//! Eviction by rank: the block of the lowest rank on offer goes, whatever a rank is.
//!
//! A rank is fixed when a block comes back and stays until it comes back again, but for rules whose ranks age.
//!
//! Cost: that of an [order](super::order): O(1) where blocks come back nearly in the order in which they go.

use super::Evictor;
use super::order::Order;
use crate::pool::Block;

/// What decides, then what decides among equals.
pub(super) type Rank = (i64, i64);

/// Gives blocks their ranks.
pub(super) trait Ranking: Send {
    /// See [`Evictor::store`].
    fn store(&mut self, block: Block, key: u64, start: u32) {
        let _ = (block, key, start);
    }

    /// See [`Evictor::hit`].
    fn hit(&mut self, block: Block) {
        let _ = block;
    }

    /// The rank of a block that comes back; `stamp` rises with every one.
    fn rank(&mut self, block: Block, stamp: i64) -> Rank;

    /// The rank of a block that is offered, which had this one when it came back.
    fn aged(&self, block: Block, rank: Rank) -> Rank {
        let _ = block;
        rank
    }

    /// A block of this rank was evicted.
    fn evicted(&mut self, rank: Rank) {
        let _ = rank;
    }

    /// See [`Evictor::advance`]. Returns the rank from which on ranks have to be told anew.
    fn advance(&mut self, now: u32) -> Option<i64> {
        let _ = now;
        None
    }
}

pub(super) struct Ranked<R> {
    rule: R,
    ranks: Vec<Rank>,
    offered: Order<Rank>,
    stamp: i64,
}

impl<R: Ranking> Ranked<R> {
    pub fn new(blocks: u32, rule: R) -> Self {
        Ranked { rule, ranks: vec![(0, 0); blocks as usize], offered: Order::new(blocks), stamp: 0 }
    }
}

impl<R: Ranking> Evictor for Ranked<R> {
    fn store(&mut self, block: Block, key: u64, start: u32) {
        self.rule.store(block, key, start);
    }

    fn hit(&mut self, block: Block) {
        self.rule.hit(block);
    }

    fn touch(&mut self, block: Block) {
        self.stamp += 1;
        self.ranks[block as usize] = self.rule.rank(block, self.stamp);
    }

    fn offer(&mut self, block: Block) {
        let rank = self.rule.aged(block, self.ranks[block as usize]);
        self.ranks[block as usize] = rank;
        self.offered.insert(rank, block);
    }

    fn withdraw(&mut self, block: Block) {
        self.offered.remove(self.ranks[block as usize], block);
    }

    fn evict(&mut self) -> Option<Block> {
        let (rank, block) = self.offered.pop_first()?;
        self.rule.evicted(rank);
        Some(block)
    }

    fn next(&self, count: u32) -> Vec<Block> {
        self.offered.iter().take(count as usize).map(|(_, block)| block).collect()
    }

    fn offered(&self) -> u32 {
        self.offered.len() as u32
    }

    fn advance(&mut self, now: u32) {
        let Some(from) = self.rule.advance(now) else { return };
        // Among equals the order of coming back stays.
        for (rank, block) in self.offered.split_off((from, i64::MIN)) {
            self.ranks[block as usize] = rank;
            self.offer(block);
        }
    }
}

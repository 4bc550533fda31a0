//! Resistant to scans: what was never hit goes before what was, the newest chain first.
//!
//! Bimodal insertion (BIP, Qureshi et al., ISCA 2007) by chains instead of blocks: a chain that comes back
//! without ever having been hit is put at the end that is evicted next, but one of [`ONE_IN`] where the
//! latest used are, so that a cache full of old chains still learns. What was hit is ordered by last use.
//! On a scan in cycles through more than the cache holds, LRU keeps what is never there when it is asked for;
//! this keeps the chains that came first. Where the future resembles the latest past it loses to LRU.

use super::ranked::{Rank, Ranking};
use crate::pool::Block;

/// One chain in so many comes in as if it had been hit. The paper's 1/32.
const ONE_IN: u64 = 32;

pub(super) struct Scan {
    block_size: u32,
    starts: Vec<u32>,
    hits: Vec<bool>,
    /// Chains that came back unhit so far, and where the last block of the latest one starts.
    chains: u64,
    last_start: u32,
}

impl Scan {
    pub fn new(blocks: u32, block_size: u32) -> Self {
        let (starts, hits) = (vec![0; blocks as usize], vec![false; blocks as usize]);
        Scan { block_size, starts, hits, chains: 0, last_start: 0 }
    }
}

impl Ranking for Scan {
    fn store(&mut self, block: Block, _: u64, start: u32) {
        self.starts[block as usize] = start;
        self.hits[block as usize] = false;
    }

    fn hit(&mut self, block: Block) {
        self.hits[block as usize] = true;
    }

    fn rank(&mut self, block: Block, stamp: i64) -> Rank {
        let start = self.starts[block as usize];
        if self.hits[block as usize] {
            return (stamp, 0);
        }
        // A chain comes back tail first, each block right before the last.
        if self.last_start != start.saturating_add(self.block_size) {
            self.chains += 1;
        }
        self.last_start = start;
        if self.chains.is_multiple_of(ONE_IN) {
            self.hits[block as usize] = true;
            return (stamp, 0);
        }
        (-(self.chains as i64), stamp)
    }
}

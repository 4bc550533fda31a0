//! A bound: the block goes whose next use is farthest away, the future being known.
//!
//! The future is the order of requests that [`Policy::foresee`](crate::Policy::foresee) was told; time
//! goes on when one of them is opened. Blocks that no later prompt begins with go first; of equals, as
//! all blocks of a chain that are needed next by the same prompt, the tail goes first. Untold, all are equal
//! and the one idle longest goes: LRU. Optimal (Belady 1966) for requests served one after the other; with
//! several at once, or preemption, an approximation by the order of the trace.
//!
//! Cost: O(log n) per block; O(blocks of all prompts) memory for the future.

use std::sync::Arc;

use super::ranked::{Rank, Ranking};
use crate::content::Content;
use crate::pool::{Block, Index};

/// Who will ask for what.
#[derive(Default)]
pub(crate) struct Future {
    /// By key of a block, the numbers of the requests whose prompts go on past it, rising.
    uses: Index<Vec<u32>>,
    /// By what tells a content from others, its number.
    order: Index<u32>,
}

impl Future {
    /// Blocks of `block_size` that the prompts, in order of arrival, could be served from the cache.
    pub fn new(block_size: u32, prompts: &mut dyn Iterator<Item = (Content, u32)>) -> Self {
        let mut future = Future::default();
        for ((content, tokens), number) in prompts.zip(0..) {
            let blocks = tokens.saturating_sub(1).min(content.chained()) / block_size;
            for block in 1..=blocks {
                future.uses.entry(content.key(block * block_size)).or_default().push(number);
            }
            future.order.entry(content.own).or_insert(number);
        }
        future
    }

    /// Whether nothing was foreseen.
    pub fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    /// The number of the request with this content.
    pub fn number(&self, content: &Content) -> Option<u32> {
        self.order.get(&content.own).copied()
    }

    /// The first request after `now` that asks for this block.
    fn next_use(&self, key: u64, now: Option<u32>) -> Option<u32> {
        let uses = self.uses.get(&key)?;
        let past = now.map_or(0, |now| uses.partition_point(|&number| number <= now));
        uses.get(past).copied()
    }
}

pub(super) struct Belady {
    future: Arc<Future>,
    keys: Vec<u64>,
    now: Option<u32>,
}

impl Belady {
    pub fn new(blocks: u32, future: Arc<Future>) -> Self {
        Belady { future, keys: vec![0; blocks as usize], now: None }
    }
}

impl Ranking for Belady {
    fn store(&mut self, block: Block, key: u64, _: u32) {
        self.keys[block as usize] = key;
    }

    fn rank(&mut self, block: Block, stamp: i64) -> Rank {
        self.aged(block, (0, stamp))
    }

    fn aged(&self, block: Block, (_, stamp): Rank) -> Rank {
        let next = self.future.next_use(self.keys[block as usize], self.now);
        (next.map_or(i64::MIN, |number| -i64::from(number)), stamp)
    }

    fn advance(&mut self, now: u32) -> Option<i64> {
        self.now = self.now.max(Some(now));
        // Who was to be used by now and was not has another next use.
        self.now.map(|now| -i64::from(now))
    }
}

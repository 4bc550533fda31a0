//! Where the tokens of a block table lie: what every policy over blocks answers, and writes.
//!
//! Cost: O(blocks) each; writes O(blocks written).

use std::collections::VecDeque;
use std::ops::Range;

use crate::plan::{Effect, Plan};
use crate::policy::{ClassId, Run, SeqId, push_run};
use crate::pool::Block;

/// The blocks of one sequence in one class, as whoever reads them sees them.
pub(crate) struct BlockView<'a> {
    /// Number, counted from the start of the sequence, of the first block it still has.
    pub first: u32,
    pub blocks: &'a VecDeque<Block>,
    pub block_size: u32,
}

impl BlockView<'_> {
    /// See [`Policy::layout`](crate::Policy::layout), for a sequence of `len` tokens.
    pub fn layout(&self, len: u32, runs: &mut Vec<Run>) -> Range<u32> {
        runs.clear();
        let first = (self.first * self.block_size).min(len);
        let mut left = len - first;
        for &block in self.blocks {
            if left == 0 {
                break;
            }
            push_run(runs, block * self.block_size, left.min(self.block_size));
            left -= left.min(self.block_size);
        }
        first..len
    }

    /// See [`Policy::holding`](crate::Policy::holding).
    pub fn holding(&self, runs: &mut Vec<Run>) {
        runs.clear();
        for &block in self.blocks {
            push_run(runs, block * self.block_size, self.block_size);
        }
    }

    /// Describes the writes of some tokens, of those that the table still has blocks for.
    pub fn push_writes(&self, class: ClassId, seq: SeqId, tokens: Range<u32>, plan: &mut Plan) {
        let mut token = tokens.start.max(self.first * self.block_size);
        while token < tokens.end {
            let at = token / self.block_size;
            let end = tokens.end.min((at + 1) * self.block_size);
            let start = self.blocks[(at - self.first) as usize] * self.block_size + token % self.block_size;
            plan.push(Effect::Write { class, seq, first: token, run: Run { start, len: end - token } });
            token = end;
        }
    }
}

//! Tokens out of the middle: only for blocks of one cell that nobody else may find.

use std::ops::Range;

use super::Paged;
use crate::policy::SeqId;

impl Paged {
    /// Gives back the cells of some tokens; later ones slide down in number and stay where they are.
    /// Only for blocks of one cell that nobody else may find.
    pub fn drop_tokens(&mut self, seq: SeqId, tokens: &Range<u32>) {
        debug_assert!(self.block_size() == 1 && !self.shares, "a block is a cell of one sequence");
        let count = tokens.end - tokens.start;
        let sequence = self.tables.get_mut(seq);
        for (table, pool) in sequence.tables.iter_mut().zip(&mut self.pools) {
            let index = |token: u32| (token.saturating_sub(table.first) as usize).min(table.blocks.len());
            for cell in table.blocks.drain(index(tokens.start)..index(tokens.end)) {
                pool.give(cell);
            }
            if table.first > tokens.start {
                table.first = table.first.max(tokens.end) - count;
            }
            table.lost = table.first;
        }
        sequence.len -= count;
        sequence.capacity = sequence.len;
        sequence.grown = sequence.len;
    }

    /// The same for tokens here and there, in rising ranges, looking at each once.
    pub fn drop_ranges(&mut self, seq: SeqId, ranges: &[Range<u32>]) {
        if let [one] = ranges {
            return self.drop_tokens(seq, one);
        }
        debug_assert!(self.block_size() == 1 && !self.shares, "a block is a cell of one sequence");
        let sequence = self.tables.get_mut(seq);
        for (table, pool) in sequence.tables.iter_mut().zip(&mut self.pools) {
            let (mut next, mut left) = (table.first, ranges.iter().peekable());
            table.blocks.retain(|&cell| {
                let token = next;
                next += 1;
                while left.next_if(|range| range.end <= token).is_some() {}
                let goes = left.peek().is_some_and(|range| range.contains(&token));
                if goes {
                    pool.give(cell);
                }
                !goes
            });
            let below = |range: &Range<u32>| range.end.min(table.first) - range.start.min(table.first);
            table.first -= ranges.iter().map(below).sum::<u32>();
            table.lost = table.first;
        }
        sequence.len -= ranges.iter().map(|range| range.end - range.start).sum::<u32>();
        sequence.capacity = sequence.len;
        sequence.grown = sequence.len;
    }
}

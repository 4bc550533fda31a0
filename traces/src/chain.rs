//! Ids for chains of blocks: a 64-bit mix of the id before and of what is new.
//!
//! Not a hash against an enemy: two ids that should differ agree about once in 2^64 pairs.

use crate::random::STEP;
pub(crate) use crate::random::scramble;
use crate::request::Prefix;

/// Mixes two words into one (the finisher of SplitMix64, applied twice).
pub(crate) fn mix(left: u64, right: u64) -> u64 {
    scramble(scramble(left.wrapping_add(STEP)) ^ right)
}

/// A number for a text, the same in every run and on every machine.
pub(crate) fn text_id(text: &str) -> u64 {
    text.bytes().fold(mix(0, text.len() as u64), |id, byte| mix(id, u64::from(byte)))
}

/// Builds chained ids of equal blocks over pieces of any length: an id mixes the id before it
/// with every piece that its block covers, so texts share ids as far as they begin with the same
/// pieces.
pub(crate) struct PieceChain {
    block_tokens: u32,
    id: u64,
    filled: u32,
    ids: Vec<u64>,
}

impl PieceChain {
    pub(crate) fn new(block_tokens: u32) -> Self {
        PieceChain { block_tokens, id: 0, filled: 0, ids: Vec::new() }
    }

    /// Appends a piece of text.
    pub(crate) fn push(&mut self, piece: u64, tokens: u32) {
        let mut offset = 0;
        while offset < tokens {
            self.id = mix(mix(self.id, piece), u64::from(offset));
            let taken = (self.block_tokens - self.filled).min(tokens - offset);
            offset += taken;
            self.filled += taken;
            if self.filled == self.block_tokens {
                self.ids.push(self.id);
                self.filled = 0;
            }
        }
    }

    /// The ids of the blocks that are full.
    pub(crate) fn finish(self) -> Prefix {
        Prefix::chained(self.block_tokens, self.ids)
    }
}

/// Ids of the full blocks of a text of its own, `scope`, that only ever grows: they count on from a
/// number that the scope draws, so that they are short to write down.
pub(crate) fn growing(scope: u64, block_tokens: u32, tokens: u32) -> Prefix {
    let blocks = u64::from(tokens / block_tokens);
    let first = mix(scope, 0) >> 1;
    Prefix::chained(block_tokens, (first..first + blocks).collect())
}

//! Keys of blocks of raw tokens: each mixes the key before it with the block's tokens.
//!
//! The server takes SHA-256 of the same; 64 bits of a mixer do here, where nobody attacks. O(1) per token.

use crate::content::mix;

/// The keys of a text that grows.
#[derive(Clone, Debug)]
pub struct Chain {
    block_size: u32,
    keys: Vec<u64>,
    state: u64,
    filled: u32,
}

impl Chain {
    /// No tokens yet.
    ///
    /// # Panics
    /// If a block has no cell.
    pub fn new(block_size: u32) -> Self {
        assert!(block_size > 0, "a block has cells");
        Chain { block_size, keys: Vec::new(), state: 0, filled: 0 }
    }

    /// Goes on with these tokens.
    pub fn extend(&mut self, tokens: &[u32]) {
        for &token in tokens {
            self.state = mix(self.state, u64::from(token) + 1);
            self.filled += 1;
            if self.filled == self.block_size {
                self.keys.push(self.state | 1);
                self.filled = 0;
            }
        }
    }

    /// Key of everything up to the end of a full block.
    ///
    /// # Panics
    /// If the block is not full.
    pub fn key(&self, block: u32) -> u64 {
        self.keys[block as usize]
    }

    /// Tokens so far.
    pub fn tokens(&self) -> u32 {
        self.keys.len() as u32 * self.block_size + self.filled
    }
}

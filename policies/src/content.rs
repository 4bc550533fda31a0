//! What a sequence's tokens are, as far as anyone could share them.

use std::sync::Arc;

/// Identity of the tokens of a sequence: known leading blocks by chained ids, the rest its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Content {
    /// Chained ids: id `i` stands for all tokens below `(i + 1) * chain_tokens`.
    pub chain: Arc<[u64]>,
    /// Tokens that one id covers; at least 1 where the chain is not empty.
    pub chain_tokens: u32,
    /// Tokens that the chain may speak for (the prompt); later ones are the sequence's own.
    pub chain_end: u32,
    /// Distinguishes the tokens after the chain: equal only for the same request.
    pub own: u64,
}

impl Content {
    /// Tokens that only this request has.
    pub fn own(own: u64) -> Self {
        Content { chain: Arc::from([]), chain_tokens: 1, chain_end: 0, own }
    }

    /// Tokens for which the chain speaks.
    pub fn chained(&self) -> u32 {
        let covered = self.chain.len() as u64 * u64::from(self.chain_tokens);
        covered.min(u64::from(self.chain_end)) as u32
    }

    /// A key for all tokens below `end`: equal keys, equal tokens. Never 0.
    pub fn key(&self, end: u32) -> u64 {
        let key = if end <= self.chained() && end > 0 {
            let link = (end - 1) / self.chain_tokens;
            mix(self.chain[link as usize], u64::from(end - link * self.chain_tokens))
        } else {
            mix(mix(self.own, 0x6f77_6e00), u64::from(end))
        };
        key | 1
    }

    /// Leading tokens that two contents surely have in common, up to whole ids.
    pub fn common_tokens(&self, other: &Content) -> u32 {
        if self.own == other.own {
            return u32::MAX;
        }
        if self.chain_tokens != other.chain_tokens {
            return 0;
        }
        let equal = self.chain.iter().zip(other.chain.iter()).take_while(|(a, b)| a == b).count();
        (equal as u32).saturating_mul(self.chain_tokens).min(self.chained()).min(other.chained())
    }
}

/// Mixes two words into one (the finaliser of SplitMix64, Steele et al. 2014).
pub(crate) fn mix(a: u64, b: u64) -> u64 {
    let mut z = a.wrapping_add(b.wrapping_mul(0x9e37_79b9_7f4a_7c15)).wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

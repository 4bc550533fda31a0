//! Ids for chains of blocks: a 64-bit mix of the id before and of what is new.
//!
//! Not a hash against an enemy: two ids that should differ agree about once in 2^64 pairs.

/// Mixes two words into one (the finisher of SplitMix64, applied twice).
pub(crate) fn mix(left: u64, right: u64) -> u64 {
    scramble(scramble(left.wrapping_add(0x9e37_79b9_7f4a_7c15)) ^ right)
}

/// A one-to-one map on 64-bit words that spreads every bit (Steele et al., SplitMix, 2014).
pub(crate) fn scramble(word: u64) -> u64 {
    let word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

/// A number for a text, the same in every run and on every machine.
pub(crate) fn text_id(text: &str) -> u64 {
    text.bytes().fold(mix(0, text.len() as u64), |id, byte| mix(id, u64::from(byte)))
}

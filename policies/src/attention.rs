//! What new tokens looked at, for policies that decide by it which tokens a sequence can do without.

use std::ops::Range;

use crate::policy::SeqId;

/// How much attention some new tokens of a sequence paid to each of its tokens.
///
/// It is the softmax of the scores, summed over the new tokens, over all query heads, and over the layers of the
/// first class that reads everything, in units of 2^-24: integers, so that it does not matter who adds them up
/// in which order. Only how it compares between tokens of the sequence counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attention {
    /// The sequence.
    pub seq: SeqId,
    /// The new tokens that look, by index.
    pub queries: Range<u32>,
    /// `[queries.end]`: what each token of the sequence got, the new ones included.
    pub mass: Vec<u64>,
}

impl Attention {
    /// What one query's softmax in one head of one layer sums to.
    pub const ONE: u64 = 1 << 24;
}

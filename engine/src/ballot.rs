//! What the tokens of a step look at, added up while it is computed.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use policies::{Attention, Policy, SeqId};

/// The attention of some new tokens of a sequence. Any thread may add to it in any order: integers give the
/// same sum.
#[derive(Clone, Debug)]
pub struct Ballot {
    seq: SeqId,
    queries: Range<u32>,
    /// `[queries.end]`, see [`Attention`].
    mass: Arc<[AtomicU64]>,
}

impl Ballot {
    /// An empty one for what a policy wants to know of new tokens; none if it wants nothing.
    pub fn wanted(policy: &dyn Policy, seq: SeqId, new: Range<u32>) -> Option<Ballot> {
        if !policy.needs_scores() {
            return None;
        }
        let queries = policy.wants_attention(seq, new);
        let mass = (0..queries.end).map(|_| AtomicU64::new(0)).collect();
        (!queries.is_empty()).then_some(Ballot { seq, queries, mass })
    }

    /// Adds what one query of one KV head looks at: `weights` are exponentials, `[query head][token]` from token
    /// `first` on, and `sums` what they sum to. Nothing for a query that was not asked for.
    pub(crate) fn add(&self, query: u32, first: usize, weights: &[f32], sums: &[f32]) {
        if !self.queries.contains(&query) {
            return;
        }
        let tokens = weights.len() / sums.len();
        for (i, mass) in self.mass[first..first + tokens].iter().enumerate() {
            let share = |(weights, sum): (&[f32], &f32)| f64::from(weights[i]) / f64::from(*sum);
            let all: f64 = weights.chunks_exact(tokens).zip(sums).map(share).sum();
            mass.fetch_add((all * Attention::ONE as f64).round() as u64, Ordering::Relaxed);
        }
    }

    /// What has been added up.
    pub fn attention(&self) -> Attention {
        let mass = self.mass.iter().map(|mass| mass.load(Ordering::Relaxed)).collect();
        Attention { seq: self.seq, queries: self.queries.clone(), mass }
    }
}

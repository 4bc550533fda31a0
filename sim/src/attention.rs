//! What tokens look at where nothing is computed: a stand-in for policies that [need scores](Policy::needs_scores).
//!
//! No trace tells it, so this is a shape and no measurement: what the papers on dropping tokens report of it.
//! A query gives 1/2 of one to each of the first four tokens (attention sinks: Xiao et al., arXiv 2309.17453),
//! 1/d to the token d - 1 before it (recency), and 1/8 to every token whose hash, of its request and its
//! position, is a multiple of 16 (heavy hitters, the same few for all queries: Zhang et al., arXiv 2306.14048).
//! How many tokens a policy drops, and when, hangs on none of this; which ones does.
//!
//! Cost: O(tokens of the sequence) per call, however many queries look.

use std::ops::Range;

use policies::scheduler::Scheduler;
use policies::{Attention, Policy, SeqId};

/// Leading tokens that everyone looks at.
const SINKS: u32 = 4;
/// One token in so many is a heavy hitter.
const HEAVY_EVERY: u64 = 16;

/// The stand-in. Equal requests get equal attention in every run.
#[derive(Clone, Debug, Default)]
pub struct StandIn {
    /// `harmonic[n]`: the sum of 1/d for d up to n, in units of [`Attention::ONE`].
    harmonic: Vec<u64>,
}

impl StandIn {
    /// Appends what the tokens of a scheduler's current step look at, as far as its policy wants to know.
    pub fn look(&mut self, scheduler: &dyn Scheduler, into: &mut Vec<Attention>) {
        let policy = scheduler.policy();
        let requests = scheduler.sequences();
        for (seq, queries) in wanted(scheduler) {
            if let Some((_, request)) = requests.iter().find(|(of, _)| *of == seq) {
                let mass = self.mass(policy, seq, *request, &queries);
                into.push(Attention { seq, queries, mass });
            }
        }
    }

    /// What each token up to the last query gets from all of them. Distances are between positions.
    fn mass(&mut self, policy: &dyn Policy, seq: SeqId, request: u64, queries: &Range<u32>) -> Vec<u64> {
        let first = policy.position(seq, queries.start);
        let end = first + queries.len() as u32;
        self.grow(end);
        let of = |token: u32| {
            let position = policy.position(seq, token);
            let looking = u64::from(end - first.max(position));
            let near = self.harmonic[(end - position) as usize];
            let far = self.harmonic[first.saturating_sub(position) as usize];
            let is_heavy = hash(request, position).is_multiple_of(HEAVY_EVERY);
            let sink = if position < SINKS { Attention::ONE / 2 } else { 0 };
            let heavy = if is_heavy { Attention::ONE / 8 } else { 0 };
            near - far + looking * (sink + heavy)
        };
        (0..queries.end).map(of).collect()
    }

    fn grow(&mut self, distance: u32) {
        if self.harmonic.is_empty() {
            self.harmonic.push(0);
        }
        while self.harmonic.len() <= distance as usize {
            let (d, last) = (self.harmonic.len() as u64, self.harmonic[self.harmonic.len() - 1]);
            self.harmonic.push(last + Attention::ONE / d);
        }
    }
}

/// Per sequence of a scheduler's current step, the new tokens whose attention its policy wants to know.
pub(crate) fn wanted(scheduler: &dyn Scheduler) -> Vec<(SeqId, Range<u32>)> {
    let (step, policy) = (scheduler.step(), scheduler.policy());
    if !policy.needs_scores() {
        return Vec::new();
    }
    let chunks = step.prefills.iter().map(|chunk| (chunk.seq, chunk.context..chunk.context + chunk.tokens));
    let decoded = step.decoding.iter().map(|&seq| (seq, policy.len(seq).saturating_sub(1)..policy.len(seq)));
    let wanted = chunks.chain(decoded).map(|(seq, new)| (seq, policy.wants_attention(seq, new)));
    wanted.filter(|(_, queries)| !queries.is_empty()).collect()
}

fn hash(request: u64, position: u32) -> u64 {
    // SplitMix64's mixer (Steele et al., OOPSLA 2014).
    let mut z =
        request.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ u64::from(position).wrapping_mul(0xd6e8_feb8_6659_fd93);
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

#[cfg(test)]
mod tests {
    use policies::{Append, Content, Geometry, Intent, LayerClass, Plan, Reach, make_policy};

    use super::*;

    const SEQ: SeqId = SeqId(0);

    /// Query by query and token by token.
    fn naive(policy: &dyn Policy, request: u64, queries: Range<u32>) -> Vec<u64> {
        let mut mass = vec![0; queries.end as usize];
        for query in queries {
            let at = policy.position(SEQ, query);
            for token in 0..=query {
                let position = policy.position(SEQ, token);
                mass[token as usize] += Attention::ONE / u64::from(at - position + 1);
                mass[token as usize] += if position < 4 { Attention::ONE / 2 } else { 0 };
                let is_heavy = hash(request, position).is_multiple_of(16);
                mass[token as usize] += if is_heavy { Attention::ONE / 8 } else { 0 };
            }
        }
        mass
    }

    #[test]
    fn many_queries_look_at_once_as_one_after_another() {
        let class = LayerClass { name: "all".into(), layers: 1, reach: Reach::Full, cells: 100 };
        let geometry = Geometry { classes: vec![class], context_max: 80, batch_max: 80, sequences_max: 1 };
        let mut policy = make_policy("heavy:30", &geometry).expect("the spec is good");
        policy.open(SEQ, &Intent { content: Content::own(1), prompt_tokens: 50, total_tokens: 60 });
        let mut stand_in = StandIn::default();
        let mut heavy = 0;
        for (first, tokens) in [(0, 20), (20, 30), (29, 1), (29, 1)] {
            if policy.len(SEQ) >= policy.limit(SEQ) {
                policy.reduce(SEQ, 0, &mut Plan::new());
            }
            assert_eq!(policy.len(SEQ), first);
            let append = Append { seq: SEQ, tokens, restored: false };
            policy.place(&[append], &mut Plan::new()).expect("there is room");
            let queries = first..first + tokens;
            let mass = stand_in.mass(&*policy, SEQ, 7, &queries);
            assert_eq!(mass, naive(&*policy, 7, queries.clone()));
            policy.attended(&Attention { seq: SEQ, queries, mass });
            heavy =
                (0..policy.len(SEQ)).filter(|&i| hash(7, policy.position(SEQ, i)).is_multiple_of(16)).count();
        }
        let all = (0..50).filter(|&position| hash(7, position).is_multiple_of(16)).count();
        assert!(heavy > 0 && heavy == all, "{heavy} of {all} heavy hitters are still there");
    }
}

//! What a cache alone would find of a trace: its requests one after the other, without a clock.
//!
//! Each prompt is opened, computed as far as it was not found, and released; answers are left out. So the
//! numbers depend on the policy, the cells and the order of the trace only, and are what the literature calls the
//! hit rate of a cache of so many blocks. A replay with a scheduler finds less: its sequences hold blocks side by
//! side, and their answers take some too.

use std::collections::{BTreeMap, VecDeque};

use policies::{Append, Intent, Plan, Policy, SeqId};
use traces::Request;

use crate::replay::content_of;

/// What was found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reuse {
    /// Prompts.
    pub requests: u64,
    /// Their tokens.
    pub prompt_tokens: u64,
    /// Of these, tokens found in the cache.
    pub found_tokens: u64,
    /// Prompts that were longer than the cache; what they found does not count.
    pub refused: u64,
}

impl Reuse {
    /// Share of all tokens that were found; 0 of none.
    pub fn share(&self) -> f64 {
        if self.prompt_tokens == 0 { 0.0 } else { self.found_tokens as f64 / self.prompt_tokens as f64 }
    }

    /// Serves a request and adds what it finds.
    pub fn serve(&mut self, policy: &mut dyn Policy, request: &Request, plan: &mut Plan) {
        let (seq, tokens) = (SeqId(0), request.prompt_tokens);
        let intent = Intent { content: content_of(request), prompt_tokens: tokens, total_tokens: tokens };
        let found = policy.open(seq, &intent);
        plan.clear();
        let placed = policy.place(&[Append { seq, tokens: tokens - found, restored: false }], plan);
        policy.release(seq);
        self.requests += 1;
        self.prompt_tokens += u64::from(tokens);
        match placed {
            Ok(()) => self.found_tokens += u64::from(found),
            Err(_) => self.refused += 1,
        }
    }
}

/// Serves requests in their order; a policy that wants to know them beforehand is told.
pub fn reuse(policy: &mut dyn Policy, requests: &[Request]) -> Reuse {
    if policy.wants_future() {
        policy.foresee(&mut requests.iter().map(|request| (content_of(request), request.prompt_tokens)));
    }
    let (mut sums, mut plan) = (Reuse::default(), Plan::without_writes());
    for request in requests {
        sums.serve(policy, request, &mut plan);
    }
    sums
}

/// The order in which closed sessions come if `width` of them are served at a time, a request of each in
/// turn: who has ended makes way for the next. Requests without a session count as one each.
pub fn in_turns(requests: Vec<Request>, width: usize) -> Vec<Request> {
    let mut sessions: BTreeMap<(u64, u64), VecDeque<Request>> = BTreeMap::new();
    let mut firsts: BTreeMap<u64, u64> = BTreeMap::new();
    for request in requests {
        let first =
            request.session.map_or(request.id, |session| *firsts.entry(session).or_insert(request.id));
        sessions.entry((first, request.session.unwrap_or_default())).or_default().push_back(request);
    }
    let mut waiting = sessions.into_values();
    let mut active: VecDeque<VecDeque<Request>> = waiting.by_ref().take(width.max(1)).collect();
    let mut order = Vec::new();
    while let Some(mut session) = active.pop_front() {
        order.extend(session.pop_front());
        if !session.is_empty() {
            active.push_back(session);
        } else if let Some(next) = waiting.next() {
            active.push_back(next);
        }
    }
    order
}

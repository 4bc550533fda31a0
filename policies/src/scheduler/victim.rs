//! Who loses its cells when the running sequences find none: a trait of two methods and a table of rules.
//!
//! What a victim has computed is lost (recompute) or crosses the bus twice (swap), so who is chosen decides
//! what preemption costs. Source: vLLM preempts the one admitted last; its RFC 54644 compares the others.
//!
//! Cost: O(running) per preemption.

use std::fmt::Debug;

use crate::content::mix;

/// A rule for choosing the sequence that is preempted. Whoever has another one implements this and puts it into
/// [`ContinuousKnobs`](super::ContinuousKnobs).
pub trait VictimRule: Debug + Sync {
    /// Its name in settings.
    fn name(&self) -> &'static str;

    /// What it is, in one line.
    fn about(&self) -> &'static str;

    /// Where the idea comes from.
    fn source(&self) -> &'static str;

    /// The highest is preempted; of equals the one admitted last.
    fn rank(&self, candidate: &Candidate) -> u64;

    /// Whether the rule, left alone, could preempt a sequence each time before it gets anywhere. Then who has come
    /// back and not sampled a token since is spared; other rules always spare somebody, who goes on.
    fn takes_who_is_back(&self) -> bool {
        false
    }
}

/// Rules are the same if their names are.
impl PartialEq for dyn VictimRule {
    fn eq(&self, other: &Self) -> bool {
        self.name() == other.name()
    }
}

impl Eq for dyn VictimRule {}

/// What a rule knows of a running sequence.
#[derive(Clone, Copy, Debug)]
pub struct Candidate {
    /// Its request.
    pub id: u64,
    /// How many were admitted after it.
    pub age: usize,
    /// Tokens in the cache.
    pub computed: u32,
    /// Output tokens to come.
    pub remaining: u32,
    /// Whether it was preempted before and has not sampled a token since.
    pub is_back: bool,
    /// Preemptions before this one, whoever's.
    pub preemptions: u64,
}

/// Every rule; the first is the default.
pub const VICTIMS: &[&dyn VictimRule] = &[&Lifo, &Fifo, &Random, &Lcf, &Mcf, &Srf, &Lrf];

/// Index of the victim among the running, who stand in the order of admission.
///
/// # Panics
/// If nobody runs.
pub(super) fn pick(rule: &dyn VictimRule, running: &[Candidate]) -> usize {
    let ranked = running.iter().enumerate().map(|(index, candidate)| {
        // Two that took each other's cells in turn would never end; where all have just come back, the first
        // admitted goes on.
        let is_spared = rule.takes_who_is_back() && candidate.is_back;
        let rank = if is_spared { 0 } else { rule.rank(candidate) };
        (!is_spared, rank, index)
    });
    ranked.max().expect("somebody runs").2
}

/// The one admitted last.
#[derive(Clone, Copy, Debug)]
pub struct Lifo;

impl VictimRule for Lifo {
    fn name(&self) -> &'static str {
        "lifo"
    }

    fn about(&self) -> &'static str {
        "the one admitted last"
    }

    fn source(&self) -> &'static str {
        "vLLM"
    }

    fn rank(&self, _: &Candidate) -> u64 {
        0
    }
}

/// The one admitted first.
#[derive(Clone, Copy, Debug)]
pub struct Fifo;

impl VictimRule for Fifo {
    fn name(&self) -> &'static str {
        "fifo"
    }

    fn about(&self) -> &'static str {
        "the one admitted first"
    }

    fn source(&self) -> &'static str {
        "the other end of vLLM's"
    }

    fn rank(&self, candidate: &Candidate) -> u64 {
        candidate.age as u64
    }

    fn takes_who_is_back(&self) -> bool {
        true
    }
}

/// Any, by a hash of the request and of how many were preempted before.
#[derive(Clone, Copy, Debug)]
pub struct Random;

impl VictimRule for Random {
    fn name(&self) -> &'static str {
        "random"
    }

    fn about(&self) -> &'static str {
        "any, by a hash"
    }

    fn source(&self) -> &'static str {
        "a control"
    }

    fn rank(&self, candidate: &Candidate) -> u64 {
        mix(mix(0, candidate.preemptions), candidate.id)
    }

    fn takes_who_is_back(&self) -> bool {
        true
    }
}

/// The one with the fewest tokens in the cache.
#[derive(Clone, Copy, Debug)]
pub struct Lcf;

impl VictimRule for Lcf {
    fn name(&self) -> &'static str {
        "lcf"
    }

    fn about(&self) -> &'static str {
        "the one with the fewest tokens in the cache"
    }

    fn source(&self) -> &'static str {
        "vLLM's RFC 54644"
    }

    fn rank(&self, candidate: &Candidate) -> u64 {
        u64::from(u32::MAX - candidate.computed)
    }
}

/// The one with the most tokens in the cache.
#[derive(Clone, Copy, Debug)]
pub struct Mcf;

impl VictimRule for Mcf {
    fn name(&self) -> &'static str {
        "mcf"
    }

    fn about(&self) -> &'static str {
        "the one with the most tokens in the cache"
    }

    fn source(&self) -> &'static str {
        "vLLM's RFC 54644"
    }

    fn rank(&self, candidate: &Candidate) -> u64 {
        u64::from(candidate.computed)
    }

    fn takes_who_is_back(&self) -> bool {
        true
    }
}

/// The one with the fewest tokens still to come, all lengths being known.
#[derive(Clone, Copy, Debug)]
pub struct Srf;

impl VictimRule for Srf {
    fn name(&self) -> &'static str {
        "srf"
    }

    fn about(&self) -> &'static str {
        "the one with the fewest tokens to come"
    }

    fn source(&self) -> &'static str {
        "an oracle"
    }

    fn rank(&self, candidate: &Candidate) -> u64 {
        u64::from(u32::MAX - candidate.remaining)
    }
}

/// The one with the most tokens still to come, all lengths being known.
#[derive(Clone, Copy, Debug)]
pub struct Lrf;

impl VictimRule for Lrf {
    fn name(&self) -> &'static str {
        "lrf"
    }

    fn about(&self) -> &'static str {
        "the one with the most tokens to come"
    }

    fn source(&self) -> &'static str {
        "an oracle"
    }

    fn rank(&self, candidate: &Candidate) -> u64 {
        u64::from(candidate.remaining)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picked(rule: &dyn VictimRule, running: &[(u32, u32, bool)]) -> usize {
        let candidates = (0..).zip(running).map(|(id, &(computed, remaining, is_back))| Candidate {
            id: id as u64,
            age: running.len() - 1 - id,
            computed,
            remaining,
            is_back,
            preemptions: 7,
        });
        pick(rule, &candidates.collect::<Vec<_>>())
    }

    #[test]
    fn every_rule_has_its_own_victim() {
        let running = [(50, 3, false), (90, 5, false), (10, 9, false), (40, 1, false), (60, 4, false)];
        let victims = VICTIMS.iter().map(|rule| (rule.name(), picked(*rule, &running)));
        let mut victims: Vec<_> = victims.collect();
        victims.retain(|(name, _)| *name != "random");
        assert_eq!(victims, [("lifo", 4), ("fifo", 0), ("lcf", 2), ("mcf", 1), ("srf", 3), ("lrf", 2)]);
    }

    #[test]
    fn ties_go_to_the_one_admitted_last() {
        let rules: [&dyn VictimRule; 3] = [&Lcf, &Mcf, &Srf];
        for rule in rules {
            assert_eq!(picked(rule, &[(9, 2, false), (9, 2, false), (9, 2, false)]), 2);
        }
    }

    #[test]
    fn any_sequence_may_be_the_random_victim_and_the_same_ones_are_each_time() {
        let pick = |preemptions| {
            let candidate =
                |id| Candidate { id, age: 0, computed: 1, remaining: 1, is_back: false, preemptions };
            pick(&Random, &(0..8).map(candidate).collect::<Vec<_>>())
        };
        let mut seen = [0; 8];
        (0..400).for_each(|count| seen[pick(count)] += 1);
        assert!(seen.iter().all(|&times| (25..=80).contains(&times)), "{seen:?}");
        assert!((0..50).all(|count| pick(count) == pick(count)));
    }

    #[test]
    fn who_has_just_come_back_is_spared_by_rules_that_would_take_it_again() {
        let running = [(90, 1, true), (80, 1, false), (10, 1, false)];
        assert_eq!(picked(&Fifo, &running), 1);
        assert_eq!(picked(&Mcf, &running), 1);
        assert_eq!(picked(&Lcf, &[(90, 1, false), (10, 1, true)]), 1);
        assert_eq!(picked(&Fifo, &[(90, 1, true), (80, 1, true)]), 1, "the first admitted goes on");
    }
}

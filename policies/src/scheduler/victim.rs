//! Who loses its cells when the running sequences find none: a table of rules, O(running) per preemption.
//!
//! What a victim has computed is lost (recompute) or crosses the bus twice (swap), so who is chosen decides
//! what preemption costs. Source: vLLM preempts the one admitted last; its RFC 54644 compares the others.

use crate::content::mix;

/// A rule for choosing the sequence that is preempted; ties go to the one admitted last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Victim {
    /// The one admitted last.
    #[default]
    Last,
    /// The one admitted first.
    First,
    /// Any, by a hash of the request and of how many were preempted before.
    Random,
    /// The one with the fewest tokens in the cache.
    LeastComputed,
    /// The one with the most tokens in the cache.
    MostComputed,
    /// The one with the fewest tokens still to come, all lengths being known.
    ShortestRemaining,
    /// The one with the most tokens still to come, all lengths being known.
    LongestRemaining,
}

/// A line of the table of rules.
pub struct VictimRule {
    /// The rule.
    pub victim: Victim,
    /// Its name in settings.
    pub name: &'static str,
    /// What it is, in one line.
    pub about: &'static str,
}

/// Every rule, by name.
pub const VICTIMS: &[VictimRule] = &[
    rule(Victim::Last, "lifo", "the one admitted last"),
    rule(Victim::First, "fifo", "the one admitted first"),
    rule(Victim::Random, "random", "any, by a hash"),
    rule(Victim::LeastComputed, "lcf", "the one with the fewest tokens in the cache"),
    rule(Victim::MostComputed, "mcf", "the one with the most tokens in the cache"),
    rule(Victim::ShortestRemaining, "srf", "the one with the fewest tokens to come (an oracle)"),
    rule(Victim::LongestRemaining, "lrf", "the one with the most tokens to come (an oracle)"),
];

const fn rule(victim: Victim, name: &'static str, about: &'static str) -> VictimRule {
    VictimRule { victim, name, about }
}

/// What a rule knows of a running sequence.
#[derive(Clone, Copy, Debug)]
pub(super) struct Candidate {
    /// Its request.
    pub id: u64,
    /// Tokens in the cache.
    pub computed: u32,
    /// Output tokens to come.
    pub remaining: u32,
    /// Whether it was preempted before and has not sampled a token since.
    pub is_back: bool,
}

impl Victim {
    /// Index of the victim among the running, who stand in the order of admission; `count` is how many
    /// were preempted before.
    ///
    /// # Panics
    /// If nobody runs.
    pub(super) fn pick(self, running: &[Candidate], count: u64) -> usize {
        let ranked = running.iter().enumerate().map(|(index, candidate)| {
            // Two that took each other's cells in turn would never end, so who has just come back is
            // spared; where all have, the first admitted goes on.
            let is_spared = self.takes_who_is_back() && candidate.is_back;
            let rank = if is_spared { 0 } else { self.rank(candidate, running.len() - index, count) };
            ((!is_spared, rank, index), index)
        });
        ranked.max().expect("somebody runs").1
    }

    /// Whether the rule, left alone, could preempt a sequence each time before it gets anywhere. The others
    /// always spare somebody, who goes on.
    fn takes_who_is_back(self) -> bool {
        matches!(self, Victim::First | Victim::Random | Victim::MostComputed)
    }

    /// The highest is preempted; `age` counts from the one admitted last.
    fn rank(self, candidate: &Candidate, age: usize, count: u64) -> u64 {
        match self {
            Victim::Last => 0,
            Victim::First => age as u64,
            Victim::Random => mix(mix(0, count), candidate.id),
            Victim::LeastComputed => u64::from(u32::MAX - candidate.computed),
            Victim::MostComputed => u64::from(candidate.computed),
            Victim::ShortestRemaining => u64::from(u32::MAX - candidate.remaining),
            Victim::LongestRemaining => u64::from(candidate.remaining),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pick(victim: Victim, running: &[(u32, u32, bool)]) -> usize {
        let candidates = (0..).zip(running).map(|(id, &(computed, remaining, is_back))| Candidate {
            id,
            computed,
            remaining,
            is_back,
        });
        victim.pick(&candidates.collect::<Vec<_>>(), 7)
    }

    #[test]
    fn every_rule_has_its_own_victim() {
        let running = [(50, 3, false), (90, 5, false), (10, 9, false), (40, 1, false), (60, 4, false)];
        let victims = VICTIMS.iter().map(|rule| (rule.name, pick(rule.victim, &running)));
        let mut victims: Vec<_> = victims.collect();
        victims.retain(|(name, _)| *name != "random");
        assert_eq!(victims, [("lifo", 4), ("fifo", 0), ("lcf", 2), ("mcf", 1), ("srf", 3), ("lrf", 2)]);
    }

    #[test]
    fn ties_go_to_the_one_admitted_last() {
        for victim in [Victim::LeastComputed, Victim::MostComputed, Victim::ShortestRemaining] {
            assert_eq!(pick(victim, &[(9, 2, false), (9, 2, false), (9, 2, false)]), 2);
        }
    }

    #[test]
    fn any_sequence_may_be_the_random_victim_and_the_same_ones_are_each_time() {
        let candidates = (0..8).map(|id| Candidate { id, computed: 1, remaining: 1, is_back: false });
        let candidates: Vec<_> = candidates.collect();
        let pick = |count| Victim::Random.pick(&candidates, count);
        let mut seen = [0; 8];
        (0..400).for_each(|count| seen[pick(count)] += 1);
        assert!(seen.iter().all(|&times| (25..=80).contains(&times)), "{seen:?}");
        assert!((0..50).all(|count| pick(count) == pick(count)));
    }

    #[test]
    fn who_has_just_come_back_is_spared_by_rules_that_would_take_it_again() {
        let running = [(90, 1, true), (80, 1, false), (10, 1, false)];
        assert_eq!(pick(Victim::First, &running), 1);
        assert_eq!(pick(Victim::MostComputed, &running), 1);
        assert_eq!(pick(Victim::LeastComputed, &[(90, 1, false), (10, 1, true)]), 1);
        assert_eq!(pick(Victim::First, &[(90, 1, true), (80, 1, true)]), 1, "the first admitted goes on");
    }
}

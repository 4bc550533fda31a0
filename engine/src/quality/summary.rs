//! The numbers of the tables.

use crate::quality::corpus::{Document, Kind, SYSTEM_TOKENS};
use crate::quality::evaluate::Measured;
use crate::quality::reading::Incidents;
use crate::quality::score::Score;
use crate::quality::statistics::{Cluster, Estimate, difference, estimate};
use crate::quality::variant::Variant;

/// Where a fact stands, by what policies do with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Group {
    /// In the system turn.
    System,
    /// So early that a context cut to fit the exam has lost it.
    Old,
    /// Later than that, but shifts by half have lost it.
    Mid,
    /// Still there for all.
    Recent,
}

impl Group {
    /// All of them, oldest first.
    pub const ALL: [Group; 4] = [Group::System, Group::Old, Group::Mid, Group::Recent];

    /// Its name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Group::System => "system",
            Group::Old => "old",
            Group::Mid => "mid",
            Group::Recent => "recent",
        }
    }
}

/// Which tokens belong to which group, for documents of one length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Boundaries {
    /// First token that stays where the text is cut before the exam, nothing kept.
    pub cut: u32,
    /// First token that stays where the context is shifted by half, nothing kept, before the exam.
    pub shifted: u32,
}

impl Boundaries {
    /// Those of documents of `body` and `exam` tokens under a context limit.
    pub fn new(body: usize, exam: usize, num_ctx: u32) -> Boundaries {
        let (body, whole) = (body as u32, (body + exam) as u32);
        let half = (num_ctx / 2).max(1);
        // A shift comes when the next token finds the context full.
        let shifts = body.saturating_sub(num_ctx - half).saturating_sub(1) / half;
        Boundaries { cut: whole.saturating_sub(num_ctx), shifted: shifts * half }
    }

    /// The group of a fact. None for those between two groups: cut where the head of the text is
    /// kept, and not cut where it is not.
    pub fn group(&self, fact_at: u32) -> Option<Group> {
        match fact_at {
            at if at < SYSTEM_TOKENS => Some(Group::System),
            at if at < self.cut => Some(Group::Old),
            at if at >= self.shifted.max(self.cut) => Some(Group::Recent),
            at if at >= self.cut + SYSTEM_TOKENS => Some(Group::Mid),
            _ => None,
        }
    }
}

/// The bins of distances between a fact and its question, tokens: from each bound to the next.
pub const DISTANCES: [u32; 9] = [0, 32, 64, 128, 256, 512, 768, 1024, u32::MAX];

/// One variant's line.
#[derive(Clone, Debug)]
pub struct Row {
    /// The variant.
    pub variant: Variant,
    /// Share of answers that are right.
    pub recall: Estimate,
    /// The same by group, in the order of [`Group::ALL`].
    pub recall_by_group: [Estimate; 4],
    /// The same by distance, in the order of [`DISTANCES`].
    pub recall_by_distance: [Estimate; 8],
    /// Loss on answers, nats.
    pub answer_nll: Estimate,
    /// Loss on all tokens of the exams, nats.
    pub nll: Estimate,
    /// That loss less the reference's.
    pub nll_delta: Estimate,
    /// Divergence from the reference, nats.
    pub kl: Estimate,
    /// Share of tokens where the most likely one is the reference's.
    pub agreement: Estimate,
    /// Loss on chat above the exact floor, nats.
    pub chat_excess: Estimate,
    /// That loss less the reference's.
    pub chat_delta: Estimate,
    /// Share of the tokens that were predicted from K and V of another sequence among others.
    pub foreign: Estimate,
    /// What happened on the way.
    pub incidents: Incidents,
}

impl Row {
    /// `exp` of the mean loss.
    pub fn perplexity(&self) -> f64 {
        self.nll.mean.exp()
    }
}

/// First variant minus second, on the same tokens.
#[derive(Clone, Debug)]
pub struct Pair {
    /// Name of the first.
    pub first: String,
    /// Name of the second.
    pub second: String,
    /// Of the recall.
    pub recall: Estimate,
    /// Of the loss on answers, nats.
    pub answer_nll: Estimate,
    /// Of the loss on chat, nats.
    pub chat_nll: Estimate,
    /// Of the loss on all tokens of the exams, nats.
    pub nll: Estimate,
    /// Of the divergence from the reference, nats.
    pub kl: Estimate,
}

/// Sums a number of some tokens by document.
fn clusters(measured: &Measured, number: impl Fn(&Score) -> Option<f64>) -> Vec<Cluster> {
    measured.scores.iter().map(|scores| scores.iter().filter_map(&number).collect()).collect()
}

fn is_right(score: &Score) -> Option<f64> {
    score.distance().map(|_| f64::from(u8::from(score.is_right)))
}

fn answer_nll(score: &Score) -> Option<f64> {
    score.distance().map(|_| score.nll)
}

/// The line of a variant beside the reference's measurements.
pub fn row(measured: &Measured, reference: &Measured, boundaries: Boundaries) -> Row {
    let mean = |number: &dyn Fn(&Score) -> Option<f64>| estimate(&clusters(measured, number));
    let delta = |number: &dyn Fn(&Score) -> Option<f64>| {
        difference(&clusters(measured, number), &clusters(reference, number))
    };
    let group_of = |score: &Score| match score.kind {
        Kind::Answer { fact_at } => boundaries.group(fact_at),
        _ => None,
    };
    let in_bin = |score: &Score, bin: usize| {
        score.distance().is_some_and(|distance| (DISTANCES[bin]..DISTANCES[bin + 1]).contains(&distance))
    };
    let share = |is: bool| Some(f64::from(u8::from(is)));
    Row {
        variant: measured.variant.clone(),
        recall: mean(&is_right),
        recall_by_group: Group::ALL
            .map(|group| mean(&|score| is_right(score).filter(|_| group_of(score) == Some(group)))),
        recall_by_distance: [0, 1, 2, 3, 4, 5, 6, 7]
            .map(|bin| mean(&|score| is_right(score).filter(|_| in_bin(score, bin)))),
        answer_nll: mean(&answer_nll),
        nll: mean(&|score| Some(score.nll)),
        nll_delta: delta(&|score| Some(score.nll)),
        kl: mean(&|score| Some(score.kl)),
        agreement: mean(&|score| share(score.agrees)),
        chat_excess: mean(&Score::excess),
        chat_delta: delta(&Score::excess),
        foreign: mean(&|score| share(score.is_foreign)),
        incidents: measured.incidents,
    }
}

/// The paired difference of two variants.
pub fn pair(first: &Measured, second: &Measured) -> Pair {
    let delta = |number: &dyn Fn(&Score) -> Option<f64>| {
        difference(&clusters(first, number), &clusters(second, number))
    };
    Pair {
        first: first.variant.name.clone(),
        second: second.variant.name.clone(),
        recall: delta(&is_right),
        answer_nll: delta(&answer_nll),
        chat_nll: delta(&Score::excess),
        nll: delta(&|score| Some(score.nll)),
        kl: delta(&|score| Some(score.kl)),
    }
}

/// Pairs of variants that differ in one thing, as far as both were measured: what to compare.
pub fn pairs(all: &[Measured]) -> Vec<Pair> {
    const PAIRS: &[(&str, &str)] = &[
        ("full", "full/f32"),
        ("full/q8_0", "full"),
        ("full/q4_0", "full/q8_0"),
        ("ring", "sinks:1"),
        ("ring", "sinks:4"),
        ("sinks:4", "sinks:28"),
        ("shift:0", "shift:1"),
        ("shift:0", "shift:28"),
        ("prompt", "prompt/keep=28"),
        ("shift:28", "prompt/keep=28"),
        ("shift:28", "truncate:28"),
        ("shift:28/q8_0", "shift:28"),
        ("shift:28/unrotated", "shift:28"),
        ("sinks:4/unrotated", "sinks:4"),
        ("heavy:640", "sinks:4"),
        ("heavy:640/unrotated", "heavy:640"),
        ("heavy:640:drop=64", "heavy:640"),
        ("snap:576:32", "heavy:640:drop=64"),
        ("snap:320:32/ctx=full", "heavy:320/ctx=full"),
        ("ladder/ctx=full/cells=640", "full/q8_0"),
        ("ladder/ctx=full/cells=384", "full/q4_0"),
        ("ollama-0.6.6/ctx=full", "full"),
    ];
    let find = |name: &str| all.iter().find(|measured| measured.variant.name == name);
    PAIRS.iter().filter_map(|(a, b)| Some(pair(find(a)?, find(b)?))).collect()
}

/// Whether the documents have answers to score.
pub fn has_facts(documents: &[Document]) -> bool {
    documents.iter().any(|document| document.kinds.iter().any(|kind| matches!(kind, Kind::Answer { .. })))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_what_the_limits_leave() {
        let groups = Boundaries::new(1024, 128, 640);
        assert_eq!(groups, Boundaries { cut: 512, shifted: 640 });
        let expected = [
            (0, Some(Group::System)),
            (27, Some(Group::System)),
            (28, Some(Group::Old)),
            (511, Some(Group::Old)),
            (512, None),
            (539, None),
            (540, Some(Group::Mid)),
            (639, Some(Group::Mid)),
            (640, Some(Group::Recent)),
        ];
        for (at, group) in expected {
            assert_eq!(groups.group(at), group, "{at}");
        }
        let roomy = Boundaries::new(1024, 128, 2048);
        assert_eq!(roomy.group(28), Some(Group::Recent));
    }

    /// Token by token: at the limit the older half goes.
    #[test]
    fn shifts_are_those_of_the_rule_walked_through() {
        for num_ctx in [64, 100, 256, 639, 640] {
            for body in [65, 128, 640, 641, 959, 960, 961, 1024] {
                let (mut len, mut dropped) = (0, 0);
                for _ in 0..body {
                    if len == num_ctx {
                        len -= num_ctx / 2;
                        dropped += num_ctx / 2;
                    }
                    len += 1;
                }
                assert_eq!(Boundaries::new(body, 16, num_ctx).shifted, dropped, "{body} in {num_ctx}");
            }
        }
    }
}

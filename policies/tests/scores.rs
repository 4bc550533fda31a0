//! Which tokens go by how little attention they got: the policies against lists of tokens, token by token.

mod context;

use context::{CONTEXT, geometry};
use policies::scheduler::{Continuous, ContinuousKnobs, Event, Job, Limits, Runner, RunnerKnobs, Scheduler};
use policies::{Append, Attention, ClassId, Content, Intent, Plan, Policy, Reduction, SeqId, make_policy};
use proptest::prelude::*;

const SEQ: SeqId = SeqId(0);

/// A token of the naive model.
#[derive(Clone, Debug)]
struct Token {
    position: u32,
    got: u64,
}

/// What the naive model is told of a policy.
#[derive(Clone, Copy, Debug)]
enum Rule {
    /// Budget, latest and leading tokens that stay, tokens that go at once.
    Heavy { budget: usize, recent: usize, keep: usize, drop: usize },
    /// Budget, tokens that vote and stay, width of the average, leading tokens that stay.
    Snap { budget: usize, window: usize, pool: usize, keep: usize },
}

const SPECS: &[(&str, Rule)] = &[
    ("heavy:12", Rule::Heavy { budget: 12, recent: 6, keep: 4, drop: 1 }),
    ("heavy:16:3:0:5", Rule::Heavy { budget: 16, recent: 3, keep: 0, drop: 5 }),
    ("heavy:10:recent=1:keep=2", Rule::Heavy { budget: 10, recent: 1, keep: 2, drop: 1 }),
    ("heavy:9:recent=100:keep=4", Rule::Heavy { budget: 9, recent: 4, keep: 4, drop: 1 }),
    ("heavy:1000", Rule::Heavy { budget: 40, recent: 20, keep: 4, drop: 1 }),
    ("heavy:20:4:2:100", Rule::Heavy { budget: 20, recent: 4, keep: 2, drop: 14 }),
    ("snap:10:4", Rule::Snap { budget: 10, window: 4, pool: 5, keep: 0 }),
    ("snap:12:3:1:2", Rule::Snap { budget: 12, window: 3, pool: 1, keep: 2 }),
    ("snap:20:window=30:pool=7", Rule::Snap { budget: 20, window: 19, pool: 7, keep: 0 }),
    ("snap:1000:8:3", Rule::Snap { budget: 39, window: 8, pool: 3, keep: 0 }),
];

fn hash(a: u64, b: u64) -> u64 {
    let mixed = (a ^ b.wrapping_mul(0x9e37_79b9_7f4a_7c15)).wrapping_mul(0xd6e8_feb8_6659_fd93);
    mixed ^ mixed >> 32
}

/// What a query looks at, by positions; many tokens get the same.
fn look(seed: u64, query: u32, token: u32) -> u64 {
    hash(hash(seed, query.into()), token.into()) % 6
}

/// One sequence as a list.
struct Naive {
    rule: Rule,
    seed: u64,
    prompt: usize,
    tokens: Vec<Token>,
    next: u32,
    /// Tokens seen so far, those included that have gone.
    seen: usize,
    /// Whether the prompt was short enough at its end, or has been cut.
    is_cut: bool,
    /// Tokens before this position have voted already.
    voted: u32,
}

impl Naive {
    fn limit(&self) -> usize {
        match self.rule {
            _ if self.seen < self.prompt => CONTEXT as usize,
            Rule::Heavy { budget, .. } => budget,
            Rule::Snap { budget, .. } if !self.is_cut => budget,
            Rule::Snap { .. } => CONTEXT as usize,
        }
    }

    fn push(&mut self) {
        self.tokens.push(Token { position: self.next, got: 0 });
        self.next += 1;
        self.seen += 1;
        if let Rule::Snap { budget, .. } = self.rule {
            self.is_cut |= self.seen == self.prompt && self.tokens.len() <= budget;
        }
        for i in 0..self.tokens.len() {
            self.tokens[i].got += look(self.seed, self.next - 1, self.tokens[i].position);
        }
    }

    /// Votes of the last tokens alone, worked out again from the positions.
    fn window_votes(&self, window: usize, pool: usize) -> Vec<u64> {
        let prefix = self.tokens.len() - window;
        let of = |i: usize| -> u64 {
            let voters = self.tokens[prefix..].iter().filter(|voter| voter.position >= self.voted);
            voters.map(|voter| look(self.seed, voter.position, self.tokens[i].position)).sum()
        };
        let near = |i: usize| (0..prefix).filter(move |j| i.abs_diff(*j) <= pool / 2);
        (0..prefix).map(|i| near(i).map(of).sum()).collect()
    }

    /// Positions of the tokens that go, one by one, the least first.
    fn reduce(&mut self) -> Vec<u32> {
        let (keep, recent, target) = match self.rule {
            Rule::Heavy { budget, recent, keep, drop } => (keep, recent, budget - drop),
            Rule::Snap { budget, window, keep, .. } => (keep, window, budget),
        };
        let votes: Vec<u64> = match self.rule {
            Rule::Heavy { .. } => self.tokens.iter().map(|token| token.got).collect(),
            Rule::Snap { window, pool, .. } => self.window_votes(window, pool),
        };
        let mut order: Vec<usize> = (keep..self.tokens.len() - recent).collect();
        order.sort_by_key(|&i| votes[i]);
        order.truncate(self.tokens.len() - target);
        let gone: Vec<u32> = order.iter().map(|&i| self.tokens[i].position).collect();
        self.tokens.retain(|token| !gone.contains(&token.position));
        self.is_cut |= self.seen >= self.prompt;
        self.voted = self.next;
        gone
    }
}

/// Places tokens and tells what those looked at that the policy asks for, in pieces.
fn place(policy: &mut dyn Policy, naive: &mut Naive, tokens: u32, cut: u32) {
    let append = Append { seq: SEQ, tokens, restored: false };
    policy.place(&[append], &mut Plan::new()).expect("there is room");
    let first = naive.tokens.len() as u32;
    (0..tokens).for_each(|_| naive.push());
    let wanted = policy.wants_attention(SEQ, first..first + tokens);
    let mut start = wanted.start;
    while start < wanted.end {
        let queries = start..wanted.end.min(start + cut);
        let mut mass = vec![0; queries.end as usize];
        for query in queries.clone() {
            for token in 0..=query {
                let position = |index: u32| naive.tokens[index as usize].position;
                mass[token as usize] += look(naive.seed, position(query), position(token));
            }
        }
        start = queries.end;
        policy.attended(&Attention { seq: SEQ, queries, mass });
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_stays_is_what_a_list_of_tokens_says(
        seed in any::<u64>(),
        prompt in 1..90u32,
        output in 0..90usize,
        chunks in prop::collection::vec(1..12u32, 1..9),
        cut in 1..13u32,
        window in 2..50u32,
    ) {
        for &(spec, rule) in SPECS {
            let mut policy = make_policy(spec, &geometry(window, 60)).expect("the spec is good");
            let intent = Intent { content: Content::own(1), prompt_tokens: prompt, total_tokens: prompt };
            policy.open(SEQ, &intent);
            let prompt = prompt as usize;
            let mut naive =
                Naive { rule, seed, prompt, tokens: vec![], next: 0, seen: 0, is_cut: false, voted: 0 };
            let mut chunks = chunks.iter().cycle();
            while naive.seen < prompt + output {
                prop_assert_eq!(policy.limit(SEQ) as usize, naive.limit(), "{}, {:?}", spec, naive.tokens);
                if naive.tokens.len() >= naive.limit() {
                    let before: Vec<u32> = naive.tokens.iter().map(|token| token.position).collect();
                    let mut gone = naive.reduce();
                    let mut plan = Plan::new();
                    let reduction = policy.reduce(SEQ, 1, &mut plan);
                    prop_assert_eq!(reduction, Reduction::Picked(gone.len() as u32), "{}", spec);
                    prop_assert!(plan.is_empty(), "nothing moves");
                    let picked = policy.picked(SEQ).iter().flat_map(|tokens| tokens.clone());
                    let picked: Vec<u32> = picked.map(|token| before[token as usize]).collect();
                    gone.sort_unstable();
                    prop_assert_eq!(picked, gone, "{}", spec);
                    prop_assert_eq!(policy.reduce(SEQ, 1, &mut plan), Reduction::Stop);
                }
                let left = prompt.saturating_sub(naive.seen) as u32;
                let room = CONTEXT - naive.tokens.len() as u32;
                let tokens = if left == 0 { 1 } else { left.min(room).min(*chunks.next().expect("a cycle")) };
                place(&mut *policy, &mut naive, tokens, cut);
                prop_assert_eq!(policy.audit(), Ok(()));
                prop_assert_eq!(policy.len(SEQ) as usize, naive.tokens.len());
                for (index, token) in (0..).zip(&naive.tokens) {
                    prop_assert_eq!(policy.position(SEQ, index), token.position);
                }
                let held = policy.usage(ClassId(1)).held;
                prop_assert_eq!(held as usize, naive.tokens.len(), "what goes gives its cell back");
            }
        }
    }
}

#[test]
fn the_least_attended_token_goes_and_of_equals_the_oldest() {
    let mut policy = make_policy("heavy:6:recent=2:keep=1", &geometry(8, 60)).expect("the spec is good");
    policy.open(SEQ, &Intent { content: Content::own(1), prompt_tokens: 6, total_tokens: 9 });
    let append = |tokens| Append { seq: SEQ, tokens, restored: false };
    policy.place(&[append(6)], &mut Plan::new()).expect("there is room");
    policy.attended(&Attention { seq: SEQ, queries: 0..6, mass: vec![0, 9, 3, 3, 0, 0] });
    assert_eq!(policy.reduce(SEQ, 0, &mut Plan::new()), Reduction::Picked(1));
    let [picked] = policy.picked(SEQ) else { panic!("{:?}", policy.picked(SEQ)) };
    assert_eq!((picked.start, picked.end), (2, 3));
    assert_eq!((policy.len(SEQ), policy.offset(SEQ)), (5, 1));
    let positions: Vec<u32> = (0..5).map(|token| policy.position(SEQ, token)).collect();
    assert_eq!(positions, [0, 1, 3, 4, 5]);
}

fn limits() -> Limits {
    Limits {
        num_ctx: CONTEXT,
        num_parallel: 3,
        num_batch: 12,
        queue_max: None,
        maintain_cells: 0,
        fast_forward: true,
    }
}

/// Serves jobs; tells the events, and the most tokens that any sequence had while it decoded.
fn serve(spec: &str, runner: bool, cells: u32, jobs: &[(u32, u32)]) -> (Vec<Event>, u32) {
    let policy = make_policy(spec, &geometry(8, cells)).expect("the spec is good");
    let mut scheduler: Box<dyn Scheduler> = if runner {
        Box::new(Runner::new(policy, limits(), RunnerKnobs::default(), false))
    } else {
        Box::new(Continuous::new(policy, limits(), ContinuousKnobs::default(), false))
    };
    for (id, &(prompt, output)) in (0..).zip(jobs) {
        scheduler.submit(Job::new(id, prompt, output));
    }
    let (mut events, mut most, mut steps) = (Vec::new(), 0, 0);
    while let Some(step) = scheduler.next().cloned() {
        scheduler.policy().audit().expect("the books agree");
        let chunks = step.prefills.iter().map(|chunk| (chunk.seq, chunk.tokens));
        for (seq, tokens) in chunks.chain(step.decoding.iter().map(|&seq| (seq, 1))) {
            let len = scheduler.policy().len(seq);
            let queries = scheduler.policy().wants_attention(seq, len - tokens..len);
            let mass = (0..queries.end).map(|token| hash(3, token.into()) % 9).collect();
            scheduler.attended(&Attention { seq, queries, mass });
        }
        let decoding = step.decoding.iter().map(|&seq| scheduler.policy().len(seq));
        most = most.max(decoding.max().unwrap_or(0));
        scheduler.done();
        scheduler.take_events(&mut events);
        steps += 1;
        assert!(steps < 100_000, "{spec} does not come to an end");
    }
    (events, most)
}

#[test]
fn answers_far_beyond_the_context_are_given_within_the_budget() {
    let jobs = [(30, 100), (5, 90), (17, 120)];
    for runner in [false, true] {
        for (spec, budget) in [("heavy:16", 16), ("heavy:20:drop=6", 20), ("snap:12:4", CONTEXT)] {
            // A prompt is computed whole; beside it two sequences have what they may have.
            let (events, most) = serve(spec, runner, CONTEXT + 2 * budget, &jobs);
            assert_eq!(most, budget, "{spec}");
            for (id, (prompt, output)) in (0..).zip(jobs) {
                let end = Event::Finished { id, output_tokens: output, at_limit: false };
                assert!(events.contains(&end), "{spec}: {events:?}");
                let shifts = events.iter().filter_map(|event| match *event {
                    Event::Shifted { id: of, tokens, left, .. } if of == id => Some((tokens, left)),
                    _ => None,
                });
                let shifts: Vec<(u32, u32)> = shifts.collect();
                let dropped: u32 = shifts.iter().map(|piece| piece.0).sum();
                let held = prompt + output - 1 - dropped;
                assert!(held <= budget, "{spec}: {held} held at the end");
                // Pieces of one reduction count down to 0.
                for pair in shifts.windows(2) {
                    assert!(pair[0].1 == 0 || pair[1].1 == pair[0].1 - 1, "{spec}: {shifts:?}");
                }
                assert_eq!(shifts.last().map(|piece| piece.1), Some(0), "{spec}");
            }
        }
    }
}

#[test]
fn a_budget_makes_room_for_more_sequences() {
    let jobs = [(20, 60); 3];
    let preemptions = |spec| {
        let (events, _) = serve(spec, false, 84, &jobs);
        events.iter().filter(|event| matches!(event, Event::Preempted { .. })).count()
    };
    assert!(preemptions("ring") > 0, "two full contexts fit, three do not");
    assert_eq!(preemptions("heavy:16"), 0);
}

#[test]
fn errors_point_at_the_knob() {
    let at = |text: &str| policies::check_spec(text).expect_err("it is wrong").at;
    assert_eq!(at("heavy:1"), 6..7);
    assert_eq!(at("heavy:64:recent=most"), 9..20);
    assert_eq!(at("snap:64:32:pool=4"), 11..17);
    assert_eq!(at("snap:64:32:4"), 11..12);
    assert_eq!(at("heavy:64:32:4:0"), 14..15);
}

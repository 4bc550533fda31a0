//! What stays at the context limit, and where its K is rotated to: policies against lists of tokens.

mod context;

use std::collections::{BTreeMap, BTreeSet};

use context::{CONTEXT, geometry};
use policies::scheduler::{
    Continuous, ContinuousKnobs, Event, Job, Limits, LogLine, Runner, RunnerKnobs, Scheduler,
};
use policies::{
    Append, Cell, ClassId, Content, Effect, Intent, NotShifted, Plan, Policy, Reach, Reading, Reduction, Run,
    SeqId, Shadow, make_policy,
};
use proptest::prelude::*;

/// What a policy does with the tokens after those that it drops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rule {
    Again,
    Stay,
    Slide,
    /// They slide down, and their K is rotated only as it is read.
    Read,
}

/// Spec, what it does, tokens of the head, and how many tokens of a full context go.
const POLICIES: &[(&str, Rule, u32, u32)] = &[
    ("truncate", Rule::Again, 4, 18),
    ("truncate:0", Rule::Again, 0, 20),
    ("truncate:7:5", Rule::Again, 7, 5),
    ("truncate:100", Rule::Again, 39, 1),
    ("ring", Rule::Stay, 0, 1),
    ("ring:4", Rule::Stay, 4, 1),
    ("ring:keep=38", Rule::Stay, 38, 1),
    ("ring:100", Rule::Stay, 39, 1),
    ("sinks", Rule::Slide, 4, 1),
    ("sinks:0", Rule::Slide, 0, 1),
    ("sinks:2:half", Rule::Slide, 2, 19),
    ("sinks:drop=6", Rule::Slide, 4, 6),
    ("sinks:10:1000", Rule::Slide, 10, 30),
    ("shift", Rule::Slide, 4, 18),
    ("shift:drop=25%", Rule::Slide, 4, 9),
    ("shift:drop=1", Rule::Slide, 4, 1),
    ("shift:3:best:never:9", Rule::Slide, 3, 9),
    ("defrag+shift", Rule::Slide, 4, 18),
    ("shift:3:best:never:9+unrotated", Rule::Read, 3, 9),
    ("defrag+shift+unrotated", Rule::Read, 4, 18),
    ("ring:4+unrotated", Rule::Read, 4, 1),
    ("sinks:2:half+unrotated", Rule::Read, 2, 19),
];

fn open(policy: &mut dyn Policy, seq: u32) {
    let intent = Intent { content: Content::own(seq.into()), prompt_tokens: 1, total_tokens: 1 };
    policy.open(SeqId(seq), &intent);
}

#[derive(Clone, Debug)]
enum Call {
    Append {
        seq: u32,
        tokens: u32,
    },
    /// One token for everyone, at the limit after a reduction.
    Decode {
        times: u32,
    },
    Reduce {
        seq: u32,
    },
    Truncate {
        seq: u32,
        len: u32,
    },
    Renew {
        seq: u32,
    },
}

fn call() -> impl Strategy<Value = Call> {
    let seq = 0..3u32;
    prop_oneof![
        4 => (seq.clone(), 1..12u32).prop_map(|(seq, tokens)| Call::Append { seq, tokens }),
        6 => (1..60u32).prop_map(|times| Call::Decode { times }),
        2 => seq.clone().prop_map(|seq| Call::Reduce { seq }),
        1 => (seq.clone(), 0..CONTEXT).prop_map(|(seq, len)| Call::Truncate { seq, len }),
        1 => seq.prop_map(|seq| Call::Renew { seq }),
    ]
}

/// A token and the position that its K is rotated to.
type Token = (u64, u32);

/// A sequence as lists: all its tokens, and those that the window class has not let go of.
#[derive(Clone, Debug, Default)]
struct Lists {
    all: Vec<Token>,
    local: Vec<u64>,
    /// Position of the next token.
    next: u32,
}

struct World {
    policy: Box<dyn Policy>,
    shadow: Shadow,
    model: BTreeMap<u32, Lists>,
    rule: Rule,
    keep: usize,
    drop: u32,
    window: u32,
    serial: u64,
}

type Outcome = Result<(), TestCaseError>;

impl World {
    fn execute(&mut self, plan: &Plan) {
        let (model, policy) = (&self.model, &self.policy);
        let token_of = |seq: SeqId, index: u32| model[&seq.0].all[index as usize].0;
        self.shadow.run_at(plan, |seq| policy.offset(seq), token_of);
    }

    /// Places tokens of all these names at the ends of their sequences.
    fn place(&mut self, news: &[(u32, Vec<u64>)]) -> Outcome {
        let batch: Vec<Append> = news
            .iter()
            .map(|(seq, names)| Append { seq: SeqId(*seq), tokens: names.len() as u32, restored: false })
            .collect();
        let mut plan = Plan::new();
        if let Err(full) = self.policy.place(&batch, &mut plan) {
            // Only batch runs that are never compacted may find no run.
            prop_assert!(full.is_fragmented(), "{}", full);
            return Ok(());
        }
        for (seq, names) in news {
            let lists = self.model.get_mut(seq).expect("open");
            // The first new token reads back over the window; what lies below goes.
            let needed = (lists.all.len() as u32 + 1).saturating_sub(self.window) as usize;
            let gone: Vec<u64> = lists.all[..needed].iter().map(|token| token.0).collect();
            lists.local.retain(|name| !gone.contains(name));
            for &name in names {
                lists.all.push((name, if self.rule == Rule::Read { 0 } else { lists.next }));
                lists.next += 1;
                lists.local.push(name);
            }
        }
        self.execute(&plan);
        self.check()
    }

    fn append(&mut self, seq: u32, tokens: u32) -> Outcome {
        let tokens = tokens.min(CONTEXT - self.model[&seq].all.len() as u32);
        if tokens == 0 {
            return Ok(());
        }
        let names = (0..tokens).map(|i| self.serial + u64::from(i)).collect();
        self.serial += u64::from(tokens);
        self.place(&[(seq, names)])
    }

    fn reduce(&mut self, seq: u32) -> Outcome {
        let lists = self.model.get_mut(&seq).expect("open");
        let mut dropped = 0;
        // One by one, the oldest after the head, until there is room for so many.
        while CONTEXT - (lists.all.len() as u32) < self.drop && lists.all.len() > self.keep {
            let (name, _) = lists.all.remove(self.keep);
            lists.local.retain(|&local| local != name);
            dropped += 1;
        }
        let mut plan = Plan::new();
        let reduction = self.policy.reduce(SeqId(seq), 1, &mut plan);
        let expected = match (dropped, self.rule) {
            (0, _) => Reduction::Stop,
            (dropped, Rule::Again) => Reduction::Again { dropped, why: NotShifted::Rule },
            (dropped, _) => Reduction::Dropped(dropped),
        };
        prop_assert_eq!(reduction, expected);
        match self.rule {
            Rule::Slide => {
                (0..).zip(&mut lists.all).for_each(|(index, token)| token.1 = index);
                lists.next = lists.all.len() as u32;
            }
            Rule::Stay => prop_assert!(plan.is_empty(), "nothing moves"),
            Rule::Read => {
                prop_assert!(plan.is_empty(), "nothing moves");
                lists.next = lists.all.len() as u32;
            }
            Rule::Again if dropped > 0 => {
                prop_assert!(plan.is_empty());
                let again: Vec<u64> = lists.all.iter().map(|token| token.0).collect();
                *lists = Lists::default();
                self.check()?;
                for names in again.chunks(12) {
                    self.place(&[(seq, names.to_vec())])?;
                }
            }
            Rule::Again => {}
        }
        self.execute(&plan);
        self.check()
    }

    fn run(&mut self, call: &Call) -> Outcome {
        match *call {
            Call::Append { seq, tokens } => self.append(seq, tokens),
            Call::Reduce { seq } => self.reduce(seq),
            Call::Decode { times } => {
                for _ in 0..times {
                    let mut news = Vec::new();
                    for seq in 0..3 {
                        if self.model[&seq].all.len() as u32 == CONTEXT {
                            self.reduce(seq)?;
                        }
                        news.push((seq, vec![self.serial]));
                        self.serial += 1;
                    }
                    self.place(&news)?;
                }
                Ok(())
            }
            Call::Truncate { seq, len } => {
                let kept = self.policy.truncate(SeqId(seq), len) as usize;
                let lists = self.model.get_mut(&seq).expect("open");
                let most = lists.all.len().min(len as usize);
                let first = lists.all.len() - lists.local.len();
                let reads = (most as u32 + 1).saturating_sub(self.window) as usize;
                prop_assert_eq!(kept, if reads < first { 0 } else { most });
                let gone = lists.all.split_off(kept);
                lists.next = match self.rule {
                    Rule::Read => kept as u32,
                    _ => lists.all.last().map_or(0, |last| last.1 + 1),
                };
                lists.local.retain(|name| gone.iter().all(|token| token.0 != *name));
                if kept == 0 {
                    lists.local.clear();
                }
                self.check()
            }
            Call::Renew { seq } => {
                self.policy.release(SeqId(seq));
                open(&mut *self.policy, seq);
                self.model.insert(seq, Lists::default());
                self.check()
            }
        }
    }

    /// The tokens that may be read, in order, with the positions of their K.
    fn check(&self) -> Outcome {
        prop_assert_eq!(self.policy.audit(), Ok(()));
        let mut runs: Vec<Run> = Vec::new();
        for (&seq, lists) in &self.model {
            let seq = SeqId(seq);
            let len = lists.all.len() as u32;
            prop_assert_eq!(self.policy.len(seq), len);
            prop_assert_eq!(self.policy.offset(seq), lists.next - len);
            for (class, layers) in (0..).map(ClassId).zip(&self.policy.geometry().classes) {
                let first = self.policy.layout(class, seq, &mut runs).start;
                let cells: Vec<Cell> = runs.iter().flat_map(|run| run.cells()).collect();
                let payload = |&cell: &Cell| self.shadow.payload(class, cell).map(|p| (p.token, p.position));
                let needed = layers.reach.first_needed(len);
                let found: Vec<_> =
                    cells.iter().map(payload).skip(needed.saturating_sub(first) as usize).collect();
                let readable = lists.all.iter().skip(needed as usize);
                let readable = readable.filter(|t| layers.reach == Reach::Full || lists.local.contains(&t.0));
                prop_assert_eq!(found, readable.copied().map(Some).collect::<Vec<_>>(), "class {}", class.0);
            }
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_stays_at_the_limit_is_what_a_list_of_tokens_says(
        calls in prop::collection::vec(call(), 1..25),
        // Some windows reach back to the head, some beyond the context.
        window in prop_oneof![2..12u32, 25..50u32],
    ) {
        for &(spec, rule, keep, drop) in POLICIES {
            let policy = make_policy(spec, &geometry(window, 400)).expect("the spec is good");
            let mut world = World {
                shadow: Shadow::of(&*policy),
                policy,
                model: BTreeMap::new(),
                rule,
                keep: keep as usize,
                drop,
                window,
                serial: 0,
            };
            for seq in 0..3 {
                open(&mut *world.policy, seq);
                world.model.insert(seq, Lists::default());
            }
            for call in &calls {
                world.run(call).map_err(|error| TestCaseError::fail(format!("{spec}: {error}")))?;
            }
        }
    }
}

fn limits() -> Limits {
    Limits {
        num_ctx: CONTEXT,
        num_parallel: 3,
        num_batch: 12,
        queue_max: None,
        maintain_cells: 0,
        fast_forward: false,
    }
}

fn schedulers(spec: &str, cells: u32) -> [Box<dyn Scheduler>; 2] {
    let policy = || make_policy(spec, &geometry(8, cells)).expect("the spec is good");
    [
        Box::new(Continuous::new(policy(), limits(), ContinuousKnobs::default(), true)),
        Box::new(Runner::new(policy(), limits(), RunnerKnobs::default(), true).with_log()),
    ]
}

#[test]
fn contexts_run_on_far_beyond_the_limit() {
    let output = 30 * CONTEXT;
    for &(spec, rule, keep, drop) in POLICIES {
        // Batch runs need a run beside what is held; single cells need no cell more than contexts have.
        let cells = if spec.starts_with("truncate") || spec.starts_with("ring") || spec.starts_with("sinks") {
            3 * CONTEXT
        } else {
            400
        };
        for mut scheduler in schedulers(spec, cells) {
            for id in 0..3 {
                scheduler.submit(Job::new(id, 10 + id as u32, output));
            }
            let (mut events, mut rotated, mut lines) = (Vec::new(), 0, Vec::new());
            let mut steps = 0;
            while scheduler.next().is_some() {
                scheduler.policy().audit().expect("the books agree");
                for (seq, _) in scheduler.sequences() {
                    assert!(scheduler.policy().len(seq) <= CONTEXT, "{spec}");
                }
                let rotates = |effect: &&Effect| matches!(effect, Effect::Rotate { .. });
                rotated += scheduler.step().plan.effects().iter().filter(rotates).count();
                scheduler.done();
                scheduler.take_events(&mut events);
                scheduler.take_log(&mut lines);
                steps += 1;
                assert!(steps < 400_000, "{spec} does not come to an end");
            }
            for id in 0..3 {
                let end = Event::Finished { id, output_tokens: output, at_limit: false };
                assert!(events.contains(&end), "{spec}: {:?}", events.last());
                let shifts: Vec<u32> = events
                    .iter()
                    .filter_map(|event| match *event {
                        Event::Shifted { id: of, tokens, .. } if of == id => Some(tokens),
                        _ => None,
                    })
                    .collect();
                // A sequence holds all tokens but the last, and those that were dropped.
                let held = 10 + id as u32 + output - 1 - shifts.iter().sum::<u32>();
                assert!(held <= CONTEXT && held + drop >= CONTEXT, "{spec}: {held} held at the end");
                assert!(shifts.iter().all(|&tokens| tokens == drop), "{spec}: {shifts:?}");
            }
            let slides = rule == Rule::Slide && keep + drop < CONTEXT;
            assert_eq!(rotated > 0, slides, "{spec}");
            let told = lines.iter().filter(|line| matches!(line, LogLine::ShiftingContext { .. })).count();
            assert!(drop > 1 || CONTEXT - keep <= 3 || told <= 3, "{spec}: {told} lines for one token each");
        }
    }
}

#[test]
fn a_ring_reuses_the_cell_of_the_token_that_goes() {
    for spec in ["ring", "ring:4", "sinks"] {
        let mut policy = make_policy(spec, &geometry(8, 400)).expect("the spec is good");
        open(&mut *policy, 0);
        let mut cells: BTreeSet<Cell> = BTreeSet::new();
        let mut runs = Vec::new();
        for token in 0..1000 {
            if policy.len(SeqId(0)) == CONTEXT {
                policy.layout(ClassId(1), SeqId(0), &mut runs);
                let first = runs.iter().flat_map(|run| run.cells()).nth(policy.head_kept(0) as usize);
                let mut plan = Plan::new();
                assert_eq!(policy.reduce(SeqId(0), 0, &mut plan), Reduction::Dropped(1));
                let append = Append { seq: SeqId(0), tokens: 1, restored: false };
                policy.place(&[append], &mut Plan::new()).expect("there is room");
                policy.layout(ClassId(1), SeqId(0), &mut runs);
                assert_eq!(runs.iter().flat_map(|run| run.cells()).last(), first, "{spec}");
                let tail = CONTEXT - 1 - policy.head_kept(0);
                let turned = |class: u8| {
                    let runs = plan.effects().iter().map(|effect| match *effect {
                        Effect::Rotate { class: of, run, delta: -1 } if of.0 == class => run.len,
                        Effect::Rotate { delta: -1, .. } => 0,
                        other => panic!("{spec}: {other:?}"),
                    });
                    runs.sum::<u32>()
                };
                assert_eq!(turned(1), if spec == "sinks" { tail } else { 0 });
                // Cells that lie together are turned at once: the head, and the row around its hole.
                assert!(plan.effects().len() <= 6, "{spec}, token {token}: {:?}", plan.effects());
            } else {
                let append = Append { seq: SeqId(0), tokens: 1, restored: false };
                policy.place(&[append], &mut Plan::new()).expect("there is room");
            }
            policy.layout(ClassId(1), SeqId(0), &mut runs);
            cells.extend(runs.iter().flat_map(|run| run.cells()));
        }
        assert_eq!(cells, (0..CONTEXT).collect(), "{spec}");
        assert_eq!(policy.reading(), Reading::Table);
        assert_eq!(policy.offset(SeqId(0)), if spec == "sinks" { 0 } else { 1000 - CONTEXT });
    }
}

#[test]
fn only_a_tail_that_slides_can_lose_a_piece_of_its_middle() {
    for (spec, removes) in [("truncate", false), ("ring", false), ("sinks", true)] {
        let mut policy = make_policy(spec, &geometry(8, 400)).expect("the spec is good");
        open(&mut *policy, 0);
        let append = Append { seq: SeqId(0), tokens: 12, restored: false };
        policy.place(&[append], &mut Plan::new()).expect("there is room");
        let mut plan = Plan::new();
        assert_eq!(policy.remove(SeqId(0), 3..5, &mut plan).is_ok(), removes, "{spec}");
        assert_eq!((policy.len(SeqId(0)), plan.is_empty()), if removes { (10, false) } else { (12, true) });
    }
}

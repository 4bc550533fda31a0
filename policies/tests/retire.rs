//! Steps that overlap: a cell is written for another sequence only when no step in flight reads it.

use std::collections::BTreeSet;

use policies::scheduler::victim::{Fifo, Lifo, VictimRule};
use policies::scheduler::{
    Continuous, ContinuousKnobs, Event, Job, Limits, Preemption, Reserve, Scheduler, Step,
};
use policies::{
    Append, Attention, Content, Effect, Geometry, Intent, LayerClass, POLICIES, Plan, Policy, Reach, Run,
    SeqId, make_policy,
};
use proptest::prelude::*;

const SPECS: &[&str] = &[
    "paged:1",
    "paged:4",
    "paged:3+prefix",
    "paged:3+prefix(s3fifo:cow)",
    "paged:3+prefix(order=leaf:partial=cow)",
    "radix:3:cost:cow",
    "buddy:2",
    "contiguous:max:next",
    "contiguous:pow2",
    "contiguous:exact:best",
    "ring:2",
    "ring:2+unrotated",
    "sinks:2+unrotated",
    "truncate:0:3",
    "clairvoyant",
];

/// Policies of the table that can wait.
const WAITING: &[&str] =
    &["contiguous", "buddy", "slab", "paged", "radix", "truncate", "ring", "clairvoyant"];

/// Specs that compose, or with knobs that make them do more, and whether they can wait.
const COMPOSED: &[(&str, bool)] = &[
    ("contiguous:pow2", true),
    ("contiguous:run", false),
    ("paged:3+prefix", true),
    ("paged:3+prefix(belady)", true),
    ("paged:3+unrotated", true),
    ("paged:3+swap", false),
    ("paged:3+swap+unrotated", false),
    ("paged:3+prefix+swap", false),
    ("paged:3+prefix(s3fifo)+tiered(64)", false),
    ("paged:3+prefix(order=leaf)+tiered(64:8)+swap", false),
    ("ring:2+unrotated", true),
    ("sinks:2+unrotated", true),
    ("shift:2", false),
    ("shift:2+unrotated", false),
    ("defrag+shift", false),
    ("defrag:threshold:0", false),
    ("defrag:step:0", false),
    ("defrag:background:0:cells=5", false),
    ("defrag:threshold:0:objective=runs", false),
    ("swa-full+shift", false),
    ("swa-full+shift+unrotated", false),
    ("heavy:12:4:2", false),
    ("heavy:12:4:2+unrotated", false),
    ("snap:10:4", false),
    ("ladder:2", false),
    ("tiered:3:64", false),
    ("vmem:3", false),
    ("shared:3", false),
    ("vllm:3", false),
    ("vllm:3:dense:whole", false),
    ("llama-unified:ubatch=5", false),
    ("ollama-0.6.6:nodes=40", false),
];

/// Every policy of the table and every composed spec, and whether it can wait.
fn whether_it_waits() -> impl Iterator<Item = (&'static str, bool)> {
    let table = POLICIES.iter().map(|spec| (spec.name, WAITING.contains(&spec.name)));
    table.chain(COMPOSED.iter().copied())
}

fn geometry(global: u32, local: u32) -> Geometry {
    let class = |name: &str, reach, cells| LayerClass { name: name.into(), layers: 1, reach, cells };
    Geometry {
        classes: vec![class("local", Reach::Window(6), local), class("global", Reach::Full, global)],
        context_max: 40,
        batch_max: 12,
        sequences_max: 4,
    }
}

fn intent(own: u64, family: u64, prompt_tokens: u32) -> Intent {
    let chain = std::sync::Arc::from([family, 10 + family]);
    let content = Content { chain, chain_tokens: 4, chain_end: prompt_tokens, own };
    Intent { content, prompt_tokens, total_tokens: prompt_tokens + 10 }
}

/// What steps in flight read and write: (step, class, cell, life of the sequence).
#[derive(Default)]
struct Flights(Vec<(u64, u8, u32, u64)>);

impl Flights {
    fn note(&mut self, step: u64, policy: &dyn Policy, seq: SeqId, life: u64) {
        let mut runs: Vec<Run> = Vec::new();
        for class in policy.geometry().class_ids() {
            policy.layout(class, seq, &mut runs);
            let cells = runs.iter().flat_map(|run| run.cells());
            self.0.extend(cells.map(|cell| (step, class.0, cell, life)));
        }
    }

    fn retire(&mut self, step: u64) {
        self.0.retain(|flight| flight.0 > step);
    }

    /// The first effect that writes to a cell which an earlier step reads for somebody else.
    fn hazard(&self, step: u64, plan: &Plan, life_of: impl Fn(SeqId) -> Option<u64>) -> Option<Effect> {
        let busy = |class: u8, run: Run, life: Option<u64>| {
            self.0.iter().any(|&(since, of, cell, by)| {
                since < step && of == class && run.cells().contains(&cell) && Some(by) != life
            })
        };
        plan.effects().iter().copied().find(|effect| match *effect {
            Effect::Write { class, seq, run, .. } | Effect::SwapIn { class, seq, run, .. } => {
                busy(class.0, run, life_of(seq))
            }
            Effect::Copy { class, to, len, .. } => busy(class.0, Run { start: to, len }, None),
            Effect::Rotate { class, run, .. } | Effect::Requantise { class, run, .. } => {
                busy(class.0, run, None)
            }
            Effect::Fetch { class, run, .. } | Effect::Unmap { class, run, .. } => busy(class.0, run, None),
            Effect::SwapOut { .. } | Effect::Offload { .. } | Effect::Map { .. } => false,
        })
    }
}

#[derive(Clone, Debug)]
enum Call {
    Open { seq: u32, family: u64, prompt: u32 },
    Place { batch: Vec<(u32, u32)>, drains: bool },
    Release { seq: u32 },
    Reduce { seq: u32 },
    Fork { from: u32, to: u32, tokens: u32 },
}

fn call() -> impl Strategy<Value = Call> {
    let seq = 0..4u32;
    prop_oneof![
        3 => (seq.clone(), 0..2u64, 1..20u32)
            .prop_map(|(seq, family, prompt)| Call::Open { seq, family, prompt }),
        8 => (prop::collection::vec((seq.clone(), 1..9u32), 1..4), any::<bool>())
            .prop_map(|(batch, drains)| Call::Place { batch, drains }),
        3 => seq.clone().prop_map(|seq| Call::Release { seq }),
        1 => seq.clone().prop_map(|seq| Call::Reduce { seq }),
        3 => (seq.clone(), seq, 1..40u32).prop_map(|(from, to, tokens)| Call::Fork { from, to, tokens }),
    ]
}

/// One call is one step.
fn drive(spec: &str, geometry: &Geometry, depth: u64, calls: &[Call]) -> Result<(), TestCaseError> {
    let mut policy = make_policy(spec, geometry).expect("the spec is good");
    let mut lives: [Option<u64>; 4] = [None; 4];
    let mut flights = Flights::default();
    for (step, call) in (1..).zip(calls) {
        prop_assert!(policy.defer(step));
        policy.retire(step.saturating_sub(1 + depth));
        flights.retire(step.saturating_sub(1 + depth));
        match *call {
            Call::Open { seq, family, prompt } if lives[seq as usize].is_none() => {
                policy.open(SeqId(seq), &intent(step, family, prompt));
                lives[seq as usize] = Some(step);
            }
            Call::Release { seq } if lives[seq as usize].is_some() => {
                policy.release(SeqId(seq));
                lives[seq as usize] = None;
            }
            Call::Reduce { seq } if lives[seq as usize].is_some() && policy.len(SeqId(seq)) > 3 => {
                policy.reduce(SeqId(seq), 1, &mut Plan::new());
            }
            Call::Fork { from, to, tokens }
                if lives[from as usize].is_some()
                    && lives[to as usize].is_none()
                    && policy.fork(SeqId(from), SeqId(to), tokens) > 0 =>
            {
                lives[to as usize] = Some(step);
            }
            Call::Place { ref batch, drains } => {
                let mut appends: Vec<Append> = Vec::new();
                for &(seq, tokens) in batch {
                    let tokens = tokens.min(40 - policy.len(SeqId(seq)).min(40));
                    let is_new = appends.iter().all(|append| append.seq.0 != seq);
                    if lives[seq as usize].is_some() && is_new && tokens > 0 {
                        appends.push(Append { seq: SeqId(seq), tokens, restored: false });
                    }
                }
                let mut plan = Plan::new();
                let mut placed = policy.place(&appends, &mut plan);
                if placed.is_err() && drains {
                    policy.retire(step);
                    flights.retire(step);
                    prop_assert!(geometry.class_ids().all(|class| policy.waiting(class) == 0));
                    placed = policy.place(&appends, &mut plan);
                }
                let hazard = flights.hazard(step, &plan, |seq| lives[seq.index()]);
                prop_assert_eq!(hazard, None, "step {} of {:?}", step, placed);
                if placed.is_ok() {
                    for append in &appends {
                        let life = lives[append.seq.index()].expect("it is open");
                        flights.note(step, &*policy, append.seq, life);
                    }
                }
            }
            _ => {}
        }
        prop_assert_eq!(policy.audit(), Ok(()));
        for class in geometry.class_ids() {
            let usage = policy.usage(class);
            let mut held: BTreeSet<u32> = BTreeSet::new();
            let mut runs = Vec::new();
            for (seq, _) in (0..).zip(lives).filter(|(_, life)| life.is_some()) {
                policy.holding(class, SeqId(seq), &mut runs);
                held.extend(runs.iter().flat_map(|run| run.cells()));
            }
            prop_assert_eq!(usage.held, held.len() as u32 + policy.waiting(class));
            prop_assert_eq!(usage.held + usage.cached + usage.free, usage.cells);
            prop_assert!(usage.placeable <= usage.free + usage.cached);
        }
    }
    for (seq, _) in (0..).zip(lives).filter(|(_, life)| life.is_some()) {
        policy.release(SeqId(seq));
    }
    policy.retire(u64::MAX);
    for class in geometry.class_ids() {
        prop_assert_eq!((policy.usage(class).held, policy.waiting(class)), (0, 0));
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_cell_is_written_for_another_while_a_step_in_flight_reads_it(
        calls in prop::collection::vec(call(), 1..80),
        global in 30..90u32,
        local in 16..50u32,
        depth in 1..4u64,
    ) {
        for spec in SPECS {
            drive(spec, &geometry(global, local), depth, &calls)
                .map_err(|error| TestCaseError::fail(format!("{spec}: {error}")))?;
        }
    }

    #[test]
    fn no_scheduler_has_a_cell_written_while_a_step_in_flight_reads_it(
        jobs in prop::collection::vec((1..30u32, 1..20u32), 1..16),
        global in 40..90u32,
        local in 24..50u32,
        pipeline in 1..3u32,
    ) {
        for (spec, waits) in SPECS.iter().map(|&spec| (spec, true)).chain(whether_it_waits()) {
            for (preemption, victim) in
                [(Preemption::Recompute, &Lifo as &dyn VictimRule), (Preemption::Swap, &Fifo)]
            {
                let knobs = ContinuousKnobs { preemption, victim, pipeline, ..ContinuousKnobs::default() };
                overlap(spec, waits, &geometry(global, local), knobs, &jobs)
                    .map_err(|error| TestCaseError::fail(format!("{spec} {knobs:?}: {error}")))?;
            }
        }
    }
}

fn limits() -> Limits {
    Limits {
        num_ctx: 40,
        num_parallel: 4,
        num_batch: 12,
        queue_max: None,
        maintain_cells: 6,
        fast_forward: false,
    }
}

/// Serves jobs while steps are in flight; whoever cannot wait has every step drained.
fn overlap(
    spec: &str,
    waits: bool,
    geometry: &Geometry,
    knobs: ContinuousKnobs,
    jobs: &[(u32, u32)],
) -> Result<(), TestCaseError> {
    let policy = make_policy(spec, geometry).expect("the spec is good");
    let mut scheduler = Continuous::new(policy, limits(), knobs, true);
    for (id, &(prompt, output)) in (1..).zip(jobs) {
        scheduler.submit(Job::new(id, prompt, output));
    }
    let mut flights = Flights::default();
    for step in 1.. {
        prop_assert!(step < 20_000, "it does not come to an end");
        let Some(formed) = scheduler.next().cloned() else { break };
        flights.retire(step - 1 - u64::from(knobs.pipeline).min(step - 1));
        prop_assert!(waits || formed.drained, "step {} may overlap", step);
        if formed.drained {
            flights.retire(step);
        }
        let now = scheduler.sequences();
        let life_of = |seq: SeqId| now.iter().find(|(of, _)| *of == seq).map(|(_, id)| *id);
        prop_assert_eq!(flights.hazard(step, &formed.plan, life_of), None, "step {}", step);
        for &(seq, id) in &now {
            flights.note(step, scheduler.policy(), seq, id);
        }
        for effect in formed.plan.effects().iter().filter(|_| !formed.drained) {
            if let Effect::SwapOut { class, run, .. } = *effect {
                flights.0.extend(run.cells().map(|cell| (step, class.0, cell, 0)));
            }
        }
        look(&mut scheduler, &formed);
        scheduler.done();
    }
    let mut events = Vec::new();
    scheduler.take_events(&mut events);
    let is_end = |event: &&Event| {
        matches!(event, Event::Finished { .. } | Event::Failed { .. } | Event::Rejected { .. })
    };
    prop_assert_eq!(events.iter().filter(is_end).count(), jobs.len());
    Ok(())
}

/// Tells the policy that a step's tokens looked at all alike, where it wants to know.
fn look(scheduler: &mut Continuous, step: &Step) {
    if !scheduler.policy().needs_scores() {
        return;
    }
    let chunks = step.prefills.iter().map(|chunk| (chunk.seq, chunk.tokens));
    for (seq, tokens) in chunks.chain(step.decoding.iter().map(|&seq| (seq, 1))) {
        let len = scheduler.policy().len(seq);
        let queries = scheduler.policy().wants_attention(seq, len - tokens..len);
        let mass = vec![1; queries.end as usize];
        scheduler.attended(&Attention { seq, queries, mass });
    }
}

#[test]
fn what_is_given_back_waits_for_the_steps_in_flight_and_no_longer() {
    for spec in SPECS {
        for depth in 0..4 {
            let mut policy = make_policy(spec, &geometry(40, 40)).expect("the spec is good");
            let take = |policy: &mut dyn Policy, seq: u32, tokens: u32| {
                policy.open(SeqId(seq), &intent(u64::from(seq), u64::from(seq), tokens));
                let batch = [Append { seq: SeqId(seq), tokens, restored: false }];
                let placed = policy.place(&batch, &mut Plan::new()).is_ok();
                if !placed {
                    policy.release(SeqId(seq));
                }
                placed
            };
            policy.defer(1);
            assert!(take(&mut *policy, 0, 30), "{spec}");
            policy.release(SeqId(0));
            let first = (2..20).find(|&step: &u64| {
                policy.defer(step);
                policy.retire(step.saturating_sub(1 + depth));
                take(&mut *policy, 1, 30)
            });
            assert_eq!(first, Some(2 + depth), "{spec}");
        }
    }
}

#[test]
fn every_policy_says_whether_it_can_wait() {
    for (spec, waits) in whether_it_waits() {
        let mut policy = make_policy(spec, &geometry(40, 40)).expect("the spec is good");
        assert_eq!(policy.defer(1), waits, "{spec}");
    }
}

#[test]
fn a_batch_that_finds_no_cells_waits_for_the_steps_in_flight_before_anybody_is_preempted() {
    // The first two end together; the third then needs their cells for its next token.
    let run = |pipeline| {
        let policy = make_policy("paged:1", &geometry(35, 60)).expect("the spec is good");
        let knobs = ContinuousKnobs { pipeline, reserve: Reserve::None, ..ContinuousKnobs::default() };
        let limits = Limits { num_batch: 40, ..limits() };
        let mut scheduler = Continuous::new(policy, limits, knobs, false);
        (0..2).for_each(|id| scheduler.submit(Job::new(id, 11, 2)));
        scheduler.submit(Job::new(2, 10, 12));
        let (mut drained, mut events) = (Vec::new(), Vec::new());
        for step in 1.. {
            let Some(formed) = scheduler.next() else { break };
            if formed.drained {
                drained.push(step);
            }
            scheduler.done();
        }
        scheduler.take_events(&mut events);
        let preempted = events.iter().filter(|event| matches!(event, Event::Preempted { .. })).count();
        (drained, preempted)
    };
    assert_eq!(run(0), (vec![], 0));
    assert_eq!(run(1), (vec![3], 0));
}

#[test]
fn blocks_below_a_window_are_given_back_ahead_of_whoever_needs_them() {
    // Four blocks for the local class; the first sequence has three, of which its window reads two.
    let mut policy = make_policy("paged:4", &geometry(40, 16)).expect("the spec is good");
    let place = |policy: &mut dyn Policy, seq: u32, tokens: u32| {
        let batch = [Append { seq: SeqId(seq), tokens, restored: false }];
        policy.place(&batch, &mut Plan::new()).is_ok()
    };
    policy.defer(1);
    (0..2).for_each(|seq| assert_eq!(policy.open(SeqId(seq), &intent(u64::from(seq), 0, 12)), 0));
    assert!(place(&mut *policy, 0, 12));
    let first = (2..9).find(|&step: &u64| {
        policy.defer(step);
        policy.retire(step - 2);
        place(&mut *policy, 1, 8)
    });
    assert_eq!(first, Some(4));
}

#[test]
fn a_forked_block_is_not_written_while_a_step_of_who_left_it_reads_it() {
    for (spec, retires) in [("paged:4", false), ("paged:4", true), ("paged:4+prefix", false)] {
        let mut policy = make_policy(spec, &geometry(40, 40)).expect("the spec is good");
        let place = |policy: &mut dyn Policy, seq: u32, tokens: u32| {
            let (mut plan, batch) = (Plan::new(), [Append { seq: SeqId(seq), tokens, restored: false }]);
            policy.place(&batch, &mut plan).expect("there is room");
            plan
        };
        policy.defer(1);
        policy.open(SeqId(0), &intent(1, 0, 7));
        place(&mut *policy, 0, 7);
        let mut flights = Flights::default();
        flights.note(1, &*policy, SeqId(0), 1);
        // Of the three tokens in the last block the fork has one.
        assert_eq!(policy.fork(SeqId(0), SeqId(1), 5), 5);
        policy.defer(2);
        policy.release(SeqId(0));
        if retires {
            policy.retire(2);
            flights.retire(2);
        }
        let plan = place(&mut *policy, 1, 2);
        assert_eq!(flights.hazard(2, &plan, |_| Some(2)), None, "{spec}");
        let copies = plan.effects().iter().filter(|effect| matches!(effect, Effect::Copy { .. })).count();
        assert_eq!(copies, if retires { 0 } else { 2 }, "{spec}: a copy for each class while it is read");
        policy.audit().expect("the books agree");
    }
}

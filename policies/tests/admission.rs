//! What admission sets aside, and what main memory has room for.

use std::collections::BTreeMap;

use policies::scheduler::victim::{Fifo, Lifo, Random, VictimRule};
use policies::scheduler::{
    Continuous, ContinuousKnobs, Event, HostMemory, Job, Limits, Preemption, Reserve, Scheduler,
};
use policies::{Effect, Geometry, LayerClass, Policy, Reach, make_policy};
use proptest::prelude::*;

fn limits() -> Limits {
    Limits {
        num_ctx: 48,
        num_parallel: 5,
        num_batch: 12,
        queue_max: None,
        maintain_cells: 0,
        fast_forward: false,
    }
}

fn policy(spec: &str, local: u32, global: u32) -> Box<dyn Policy> {
    let class = |name: &str, reach, cells| LayerClass { name: name.into(), layers: 1, reach, cells };
    let geometry = Geometry {
        classes: vec![class("local", Reach::Window(6), local), class("global", Reach::Full, global)],
        context_max: limits().num_ctx,
        batch_max: limits().num_batch,
        sequences_max: limits().num_parallel,
    };
    make_policy(spec, &geometry).expect("the spec is good")
}

type Outcome = Result<(), TestCaseError>;

/// Runs all jobs to their end, telling each step's sequences and effects.
fn run(
    scheduler: &mut Continuous,
    jobs: &[(u32, u32)],
    mut each: impl FnMut(&Continuous) -> Outcome,
) -> Result<Vec<Event>, TestCaseError> {
    for (id, &(prompt, output)) in (1..).zip(jobs) {
        scheduler.submit(Job { num_predict: Some(output + 3), ..Job::new(id, prompt, output) });
    }
    let mut steps = 0;
    while scheduler.next().is_some() {
        each(scheduler)?;
        scheduler.done();
        steps += 1;
        prop_assert!(steps < 20_000, "it does not come to an end");
    }
    let mut events = Vec::new();
    scheduler.take_events(&mut events);
    let is_end = |event: &&Event| {
        matches!(event, Event::Finished { .. } | Event::Failed { .. } | Event::Rejected { .. })
    };
    prop_assert_eq!(events.iter().filter(is_end).count(), jobs.len());
    Ok(events)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn nobody_is_preempted_where_everything_is_set_aside(
        jobs in prop::collection::vec((1..40u32, 1..30u32), 1..25),
        local in 36..90u32,
        global in 56..160u32,
    ) {
        for spec in ["paged:1", "paged:4", "paged:5", "paged:4+prefix", "vmem:4", "radix:3:lru"] {
            for reserve in [Reserve::Full, Reserve::Max] {
                for preemption in [Preemption::Recompute, Preemption::Swap] {
                    let knobs = ContinuousKnobs { reserve, preemption, ..ContinuousKnobs::default() };
                    let mut scheduler = Continuous::new(policy(spec, local, global), limits(), knobs, false);
                    let events = run(&mut scheduler, &jobs, |_| Ok(()))
                        .map_err(|error| TestCaseError::fail(format!("{spec} {knobs:?}: {error}")))?;
                    let lost = |event: &&Event| matches!(event, Event::Preempted { .. } | Event::Failed { .. });
                    prop_assert_eq!(events.iter().find(lost), None, "{} {:?}", spec, knobs);
                }
            }
        }
    }

    #[test]
    fn main_memory_never_holds_more_than_it_has(
        jobs in prop::collection::vec((1..30u32, 1..30u32), 1..25),
        global in 48..90u32,
        bytes in 0..400u64,
        victim in prop::sample::select(vec![&Lifo as &dyn VictimRule, &Fifo, &Random]),
    ) {
        let knobs =
            ContinuousKnobs { preemption: Preemption::Swap, reserve: Reserve::None, victim, ..ContinuousKnobs::default() };
        let cell_bytes = vec![2, 5];
        let memory = HostMemory { bytes, cell_bytes: cell_bytes.clone() };
        let scheduler = Continuous::new(policy("paged:3", 60, global), limits(), knobs, true);
        // Who had which sequence in the step before, and what each request has in main memory.
        let mut before: BTreeMap<u32, u64> = BTreeMap::new();
        let mut there: BTreeMap<u64, u64> = BTreeMap::new();
        run(&mut scheduler.with_host(memory), &jobs, |scheduler| {
            let now: BTreeMap<u32, u64> =
                scheduler.sequences().into_iter().map(|(seq, id)| (seq.0, id)).collect();
            for effect in scheduler.step().plan.effects() {
                match *effect {
                    Effect::SwapOut { class, seq, run, .. } => {
                        *there.entry(before[&seq.0]).or_default() +=
                            cell_bytes[class.index()] * u64::from(run.len);
                    }
                    Effect::SwapIn { seq, .. } => {
                        there.remove(&now[&seq.0]);
                    }
                    _ => {}
                }
                prop_assert!(there.values().sum::<u64>() <= bytes);
            }
            before = now;
            Ok(())
        })?;
    }
}

#[test]
fn what_is_set_aside_is_the_known_end_or_the_longest_one() {
    // 40 cells; each request has 10 tokens in, 5 out, and may have 20.
    let admitted = |reserve| {
        let knobs = ContinuousKnobs { reserve, ..ContinuousKnobs::default() };
        let limits = Limits { num_batch: 48, ..limits() };
        let mut scheduler = Continuous::new(policy("paged:1", 200, 40), limits, knobs, false);
        (0..5).for_each(|id| scheduler.submit(Job { num_predict: Some(20), ..Job::new(id, 10, 5) }));
        scheduler.next();
        scheduler.sequences_len()
    };
    // 14 tokens at the end: two fit, not three. 29 tokens: one.
    assert_eq!([Reserve::None, Reserve::Prompt, Reserve::Full, Reserve::Max].map(admitted), [4, 4, 2, 1]);
}

#[test]
fn the_bound_on_memory_admits_as_many_as_may_run() {
    for spec in ["unlimited", "paged:1"] {
        for reserve in [Reserve::None, Reserve::Prompt, Reserve::Full] {
            let knobs = ContinuousKnobs { reserve, ..ContinuousKnobs::default() };
            let mut scheduler = Continuous::new(policy(spec, 6, 7), limits(), knobs, false);
            (1..=5).for_each(|id| scheduler.submit(Job::new(id, 2, 1)));
            assert!(scheduler.next().is_some());
            scheduler.done();
            let mut events = Vec::new();
            scheduler.take_events(&mut events);
            let admitted = events.iter().filter(|event| matches!(event, Event::Admitted { .. })).count();
            assert_eq!(admitted == 5, spec == "unlimited", "{spec} {reserve:?}: {admitted}");
        }
    }
}

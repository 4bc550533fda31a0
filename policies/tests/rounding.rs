//! Cells whose K and V are rounded in place: what shadow memory keeps of it, and the event hash.

use std::collections::BTreeMap;
use std::ops::Range;

use policies::scheduler::{Continuous, ContinuousKnobs, Job, Limits, Scheduler};
use policies::{
    Append, ClassId, Effect, Full, Geometry, Intent, KvBits, LayerClass, Plan, Policy, Reach, Run, SeqId,
    Shadow, Shape, Usage, Why, make_policy,
};
use proptest::prelude::*;

const CELLS: u32 = 24;

/// Bits of a number that was not rounded.
const WRITTEN: u32 = 16;

fn bits(to: KvBits) -> u32 {
    match to {
        KvBits::Q8_0 => 8,
        KvBits::Q4_0 => 4,
    }
}

/// A cell holds something of so many bits, or nothing.
fn put(cells: &mut BTreeMap<(u8, u32), u32>, key: (u8, u32), bits: Option<u32>) {
    cells.remove(&key);
    cells.extend(bits.map(|bits| (key, bits)));
}

fn effect() -> impl Strategy<Value = Effect> {
    let run = (0..CELLS, 1..6u32).prop_map(|(start, len)| Run { start, len: len.min(CELLS - start) });
    let class = (0..2u8).prop_map(ClassId);
    let seq = (0..2u32).prop_map(SeqId);
    let to = prop_oneof![Just(KvBits::Q8_0), Just(KvBits::Q4_0)];
    prop_oneof![
        (class.clone(), seq.clone(), 0..40u32, run.clone())
            .prop_map(|(class, seq, first, run)| Effect::Write { class, seq, first, run }),
        (class.clone(), run.clone(), 0..CELLS).prop_map(|(class, run, to)| Effect::Copy {
            class,
            from: run.start,
            to: to.min(run.start),
            len: run.len,
            why: Why::Defrag
        }),
        (class.clone(), run.clone(), -3..3i32).prop_map(|(class, run, delta)| Effect::Rotate {
            class,
            run,
            delta
        }),
        (class.clone(), run.clone(), to).prop_map(|(class, run, to)| Effect::Requantise { class, run, to }),
        (class.clone(), seq.clone(), 0..4u32, run.clone())
            .prop_map(|(class, seq, first, run)| Effect::SwapOut { class, seq, first, run }),
        (class.clone(), run.clone(), 0..20u32).prop_map(|(class, run, slot)| Effect::Offload {
            class,
            run,
            slot
        }),
        (class.clone(), run.clone(), 0..20u32).prop_map(|(class, run, slot)| Effect::Fetch {
            class,
            slot,
            run
        }),
        (class, seq, 0..4u32, run).prop_map(|(class, seq, first, run)| Effect::SwapIn {
            class,
            seq,
            first,
            run
        }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_cell_is_as_coarse_as_the_coarsest_rounding_since_it_was_written(
        effects in prop::collection::vec(effect(), 1..60),
    ) {
        let mut shadow = Shadow::new();
        // Bits of every cell that holds something, and of every token in host memory.
        let mut cells: BTreeMap<(u8, u32), u32> = BTreeMap::new();
        let mut host: BTreeMap<(u8, u32, u32), u32> = BTreeMap::new();
        let mut slots: BTreeMap<(u8, u32), u32> = BTreeMap::new();
        for effect in effects {
            let tokens = |run: Run, first: u32| run.cells().zip(first..);
            match effect {
                Effect::Write { class, run, .. } => {
                    run.cells().for_each(|cell| put(&mut cells, (class.0, cell), Some(WRITTEN)));
                }
                Effect::Copy { class, from, to, len, .. } => {
                    for i in 0..len {
                        let copied = cells.get(&(class.0, from + i)).copied();
                        put(&mut cells, (class.0, to + i), copied);
                    }
                }
                Effect::Rotate { .. } | Effect::Map { .. } | Effect::Unmap { .. } => {}
                Effect::Requantise { class, run, to } => {
                    for cell in run.cells() {
                        cells.entry((class.0, cell)).and_modify(|held| *held = bits(to).min(*held));
                    }
                }
                Effect::SwapOut { class, seq, first, run } => {
                    for (cell, token) in tokens(run, first) {
                        if let Some(&bits) = cells.get(&(class.0, cell)) {
                            host.insert((class.0, seq.0, token), bits);
                        }
                    }
                }
                Effect::SwapIn { class, seq, first, run } => {
                    for (cell, token) in tokens(run, first) {
                        put(&mut cells, (class.0, cell), host.remove(&(class.0, seq.0, token)));
                    }
                }
                Effect::Offload { class, run, slot } => {
                    for (cell, slot) in tokens(run, slot) {
                        let held = cells.get(&(class.0, cell)).copied();
                        put(&mut slots, (class.0, slot), held);
                    }
                }
                Effect::Fetch { class, slot, run } => {
                    for (cell, slot) in tokens(run, slot) {
                        let held = slots.get(&(class.0, slot)).copied();
                        put(&mut cells, (class.0, cell), held);
                    }
                }
            }
            let mut plan = Plan::new();
            plan.push(effect);
            let is_rounding = matches!(effect, Effect::Requantise { .. });
            let before = shadow.clone();
            shadow.run(&plan, |seq, token| u64::from(seq.0) << 32 | u64::from(token));
            for key in (0..2).flat_map(|class| (0..CELLS).map(move |cell| (class, cell))) {
                let found = shadow.payload(ClassId(key.0), key.1);
                prop_assert_eq!(found.map(|payload| payload.rounded.map_or(WRITTEN, bits)), cells.get(&key).copied());
                if is_rounding {
                    let same = |shadow: &Shadow| shadow.payload(ClassId(key.0), key.1).map(|p| (p.token, p.position));
                    prop_assert_eq!(same(&before), same(&shadow), "the token and its position stay");
                }
            }
        }
    }
}

/// Blocks, and the first cells of the second class rounded with every batch.
struct Rounds {
    cells: Box<dyn Policy>,
    rounding: Option<(Run, KvBits)>,
}

impl Policy for Rounds {
    fn geometry(&self) -> &Geometry {
        self.cells.geometry()
    }

    fn open(&mut self, seq: SeqId, intent: &Intent) -> u32 {
        self.cells.open(seq, intent)
    }

    fn place(&mut self, batch: &[Append], plan: &mut Plan) -> Result<(), Full> {
        self.cells.place(batch, plan)?;
        if let Some((run, to)) = self.rounding {
            plan.push(Effect::Requantise { class: ClassId(1), run, to });
        }
        Ok(())
    }

    fn truncate(&mut self, seq: SeqId, len: u32) -> u32 {
        self.cells.truncate(seq, len)
    }

    fn release(&mut self, seq: SeqId) {
        self.cells.release(seq);
    }

    fn len(&self, seq: SeqId) -> u32 {
        self.cells.len(seq)
    }

    fn layout(&self, class: ClassId, seq: SeqId, runs: &mut Vec<Run>) -> Range<u32> {
        self.cells.layout(class, seq, runs)
    }

    fn usage(&self, class: ClassId) -> Usage {
        self.cells.usage(class)
    }

    fn shape(&self, class: ClassId) -> Shape {
        self.cells.shape(class)
    }

    fn audit(&self) -> Result<(), String> {
        self.cells.audit()
    }
}

#[test]
fn the_event_hash_tells_what_was_rounded_and_how_far() {
    let limits = Limits {
        num_ctx: 32,
        num_parallel: 2,
        num_batch: 8,
        queue_max: None,
        maintain_cells: 0,
        fast_forward: false,
    };
    let class = |name: &str, reach| LayerClass { name: name.into(), layers: 1, reach, cells: 100 };
    let geometry = Geometry {
        classes: vec![class("local", Reach::Window(8)), class("global", Reach::Full)],
        context_max: limits.num_ctx,
        batch_max: limits.num_batch,
        sequences_max: limits.num_parallel,
    };
    let hash = |rounding: Option<(Run, KvBits)>| {
        let cells = make_policy("paged:4", &geometry).expect("the spec is good");
        let policy = Box::new(Rounds { cells, rounding });
        let mut scheduler = Continuous::new(policy, limits, ContinuousKnobs::default(), false);
        scheduler.submit(Job::new(0, 10, 5));
        while scheduler.next().is_some() {
            scheduler.done();
        }
        scheduler.event_hash()
    };
    let run = |start, len| Run { start, len };
    let all = [
        None,
        Some((run(0, 4), KvBits::Q8_0)),
        Some((run(0, 4), KvBits::Q4_0)),
        Some((run(0, 5), KvBits::Q8_0)),
        Some((run(1, 4), KvBits::Q8_0)),
    ];
    for (i, &one) in all.iter().enumerate() {
        for (j, &other) in all.iter().enumerate() {
            assert_eq!(hash(one) == hash(other), i == j, "{one:?} {other:?}");
        }
    }
}

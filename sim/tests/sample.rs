//! The cell map: a range with cells of another sequence's K and V is marked, however few they are.

use std::convert::Infallible;
use std::ops::Range;

use policies::scheduler::{Continuous, ContinuousKnobs, Limits};
use policies::{
    Append, ClassId, Content, Full, Geometry, Hit, Intent, LayerClass, Plan, Policy, Reach, Run, SeqId,
    Shape, Usage, make_policy,
};
use sim::cost::{CostModel, Work};
use sim::sample::{RangeState, Sampler};
use sim::{Replay, replay};
use traces::{Prefix, Request, Slo, When};

/// Another policy whose cells 17 and 40 to 59 have other K and V in them than the books say.
struct Marked(Box<dyn Policy>);

impl Policy for Marked {
    fn geometry(&self) -> &Geometry {
        self.0.geometry()
    }

    fn cached(&self, content: &Content, tokens: u32) -> Hit {
        self.0.cached(content, tokens)
    }

    fn open(&mut self, seq: SeqId, intent: &Intent) -> u32 {
        self.0.open(seq, intent)
    }

    fn place(&mut self, batch: &[Append], plan: &mut Plan) -> Result<(), Full> {
        self.0.place(batch, plan)
    }

    fn truncate(&mut self, seq: SeqId, len: u32) -> u32 {
        self.0.truncate(seq, len)
    }

    fn release(&mut self, seq: SeqId) {
        self.0.release(seq);
    }

    fn len(&self, seq: SeqId) -> u32 {
        self.0.len(seq)
    }

    fn layout(&self, class: ClassId, seq: SeqId, runs: &mut Vec<Run>) -> Range<u32> {
        self.0.layout(class, seq, runs)
    }

    fn usage(&self, class: ClassId) -> Usage {
        self.0.usage(class)
    }

    fn shape(&self, class: ClassId) -> Shape {
        self.0.shape(class)
    }

    fn foreign_cells(&self, class: ClassId, runs: &mut Vec<Run>) {
        assert_eq!(class, ClassId(0));
        runs.clear();
        runs.extend([Run { start: 17, len: 1 }, Run { start: 40, len: 20 }]);
    }

    fn audit(&self) -> Result<(), String> {
        self.0.audit()
    }
}

struct Clock;

impl CostModel for Clock {
    fn name(&self) -> &str {
        "clock"
    }

    fn step_ns(&self, _: &Work) -> u64 {
        10_000_000
    }
}

/// The map of the last moment of one request of 64 tokens in 128 cells, 8 cells to a range.
fn map(mark: bool) -> Vec<RangeState> {
    let limits = Limits {
        num_ctx: 128,
        num_parallel: 2,
        num_batch: 64,
        queue_max: None,
        maintain_cells: 0,
        fast_forward: false,
    };
    let class = LayerClass { name: "global".into(), layers: 1, reach: Reach::Full, cells: 128 };
    let geometry = Geometry { classes: vec![class], context_max: 128, batch_max: 64, sequences_max: 2 };
    let policy = make_policy("paged:8", &geometry).expect("a policy");
    let policy = if mark { Box::new(Marked(policy)) } else { policy };
    let setup = Replay {
        scheduler: Box::new(Continuous::new(policy, limits, ContinuousKnobs::default(), false)),
        reload_ns: 0,
        cell_bytes: vec![1],
        until_ns: None,
        slo: Slo { ttft_ns: 1, tpot_ns: 1 },
        audit: false,
        freeze_ns: None,
        leak: None,
    };
    let request = Request {
        id: 42,
        session: None,
        when: When::At { ns: 0 },
        prompt_tokens: 60,
        output_tokens: 4,
        prefix: Prefix::unknown(),
        images: Vec::new(),
    };
    let mut sampler = Sampler::new(10, 16);
    replay(setup, &Clock, [Ok::<_, Infallible>(request)].into_iter(), &mut sampler).expect("the books agree");
    let mut samples = sampler.into_samples();
    let held = |map: &Vec<RangeState>| map.iter().filter(|state| **state != RangeState::Free).count();
    samples.sort_by_key(|sample| held(&sample.map[0]));
    samples.pop().expect("steps were sampled").map.remove(0)
}

#[test]
fn one_foreign_cell_marks_its_range() {
    let (plain, marked) = (map(false), map(true));
    assert_eq!(plain.len(), 16);
    assert!(!plain.iter().any(|state| matches!(state, RangeState::Foreign(_))));
    for (row, (before, after)) in plain.iter().zip(&marked).enumerate() {
        // Cell 17 lies in range 2; cells 40 to 59 in ranges 5, 6 and half of 7.
        if [2, 5, 6, 7].contains(&row) {
            assert_eq!(*after, RangeState::Foreign(42), "range {row}, before {before:?}");
        } else {
            assert_eq!(after, before, "range {row}");
        }
    }
}

//! What a policy is told of a sequence when it is opened, also when it comes back.

use std::ops::Range;
use std::sync::{Arc, Mutex};

use policies::scheduler::{Continuous, ContinuousKnobs, Event, Job, Limits, Preemption, Reserve, Scheduler};
use policies::{
    Append, ClassId, Full, Geometry, Intent, LayerClass, Plan, Policy, Reach, Run, SeqId, Shape, Usage,
    make_policy,
};

/// A policy that notes what it is told.
struct Noting {
    under: Box<dyn Policy>,
    told: Arc<Mutex<Vec<Intent>>>,
}

impl Policy for Noting {
    fn geometry(&self) -> &Geometry {
        self.under.geometry()
    }

    fn open(&mut self, seq: SeqId, intent: &Intent) -> u32 {
        self.told.lock().expect("nobody else holds it").push(intent.clone());
        self.under.open(seq, intent)
    }

    fn place(&mut self, batch: &[Append], plan: &mut Plan) -> Result<(), Full> {
        self.under.place(batch, plan)
    }

    fn truncate(&mut self, seq: SeqId, len: u32) -> u32 {
        self.under.truncate(seq, len)
    }

    fn release(&mut self, seq: SeqId) {
        self.under.release(seq);
    }

    fn len(&self, seq: SeqId) -> u32 {
        self.under.len(seq)
    }

    fn layout(&self, class: ClassId, seq: SeqId, runs: &mut Vec<Run>) -> Range<u32> {
        self.under.layout(class, seq, runs)
    }

    fn usage(&self, class: ClassId) -> Usage {
        self.under.usage(class)
    }

    fn shape(&self, class: ClassId) -> Shape {
        self.under.shape(class)
    }

    fn audit(&self) -> Result<(), String> {
        self.under.audit()
    }
}

#[test]
fn a_policy_is_told_the_same_length_however_often_a_request_comes_back() {
    let limits = Limits {
        num_ctx: 64,
        num_parallel: 4,
        num_batch: 16,
        queue_max: None,
        maintain_cells: 0,
        fast_forward: false,
    };
    let class = LayerClass { name: "all".into(), layers: 1, reach: Reach::Full, cells: 70 };
    let geometry = Geometry { classes: vec![class], context_max: 64, batch_max: 16, sequences_max: 4 };
    let jobs = [(10, 20), (17, 9), (5, 30), (24, 12)];
    for preemption in [Preemption::Recompute, Preemption::Swap] {
        let told = Arc::new(Mutex::new(Vec::new()));
        let under = make_policy("paged:1", &geometry).expect("the spec is good");
        let policy = Box::new(Noting { under, told: told.clone() });
        let knobs = ContinuousKnobs { preemption, reserve: Reserve::None, ..ContinuousKnobs::default() };
        let mut scheduler = Continuous::new(policy, limits, knobs, true);
        for (id, &(prompt, output)) in (0..).zip(&jobs) {
            scheduler.submit(Job::new(id, prompt, output));
        }
        let mut events = Vec::new();
        while scheduler.next().is_some() {
            scheduler.done();
            scheduler.take_events(&mut events);
        }
        let preempted = events.iter().filter(|event| matches!(event, Event::Preempted { .. })).count();
        let told = told.lock().expect("nobody else holds it");
        assert!(preempted > 0 && told.len() >= jobs.len() + preempted, "{preempted} preemptions");
        for intent in told.iter() {
            // The token that ends an answer has no cell.
            let (prompt, output) = jobs[intent.content.own as usize];
            assert_eq!(intent.total_tokens, prompt + output - 1, "{preemption:?}: {intent:?}");
        }
    }
}

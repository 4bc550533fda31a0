//! A server that does not start: every request fails as it comes.

use crate::policy::{Policy, SeqId};
use crate::scheduler::{Event, Job, Scheduler, Step};

/// The scheduler of a server whose model could not be loaded.
pub struct Down {
    policy: Box<dyn Policy>,
    step: Step,
    events: Vec<Event>,
}

impl Down {
    /// A server that would have used this policy.
    pub fn new(policy: Box<dyn Policy>) -> Self {
        let step = Step::new(policy.geometry().classes.len(), false);
        Down { policy, step, events: Vec::new() }
    }
}

impl Scheduler for Down {
    fn submit(&mut self, job: Job) {
        self.events.push(Event::Failed { id: job.id, output_tokens: 0 });
    }

    fn next(&mut self) -> Option<&Step> {
        None
    }

    fn step(&self) -> &Step {
        &self.step
    }

    fn done(&mut self) {}

    fn take_events(&mut self, into: &mut Vec<Event>) {
        into.append(&mut self.events);
    }

    fn settle(&mut self) {}

    fn policy(&self) -> &dyn Policy {
        &*self.policy
    }

    fn sequences(&self) -> Vec<(SeqId, u64)> {
        Vec::new()
    }

    fn sequences_len(&self) -> usize {
        0
    }

    fn waiting(&self) -> usize {
        0
    }

    fn event_hash(&self) -> u64 {
        0
    }
}

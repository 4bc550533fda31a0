//! What was given back and may still be read by a step that has not ended: in order, O(1) each way.
//!
//! A driver that asks for the next plan before it has executed the last one says so by numbering its steps.
//! What is given back from then on waits here until its step has retired. Source: vLLM's blocks in flight,
//! SGLang's pending reuse.

use std::collections::VecDeque;

/// Things that wait for the step during which they were given back.
#[derive(Clone, Debug)]
pub(crate) struct Quarantine<T> {
    /// The step that is being formed; none where every plan is executed at once.
    epoch: Option<u64>,
    waiting: VecDeque<(u64, T)>,
}

impl<T> Default for Quarantine<T> {
    fn default() -> Self {
        Quarantine { epoch: None, waiting: VecDeque::new() }
    }
}

impl<T> Quarantine<T> {
    /// A step begins: what is given back from now on may be read until it has ended.
    pub fn begin(&mut self, epoch: u64) {
        self.epoch = Some(epoch);
    }

    /// The step that is being formed, if things have to wait.
    pub fn epoch(&self) -> Option<u64> {
        self.epoch
    }

    /// Puts a thing behind the others.
    pub fn push(&mut self, epoch: u64, thing: T) {
        self.waiting.push_back((epoch, thing));
    }

    /// The next thing whose step is not after `epoch`.
    pub fn pop(&mut self, epoch: u64) -> Option<(u64, T)> {
        if self.waiting.front().is_some_and(|(since, _)| *since <= epoch) {
            self.waiting.pop_front()
        } else {
            None
        }
    }

    /// Everything that waits.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.waiting.iter().map(|(_, thing)| thing)
    }
}

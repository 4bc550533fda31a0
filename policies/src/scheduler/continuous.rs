//! Continuous batching: a token budget per step, chunked prefill, preemption when cells run out.
//!
//! Every step serves all running sequences, decodes first, then goes on with prompts, then admits
//! from the queue in order of arrival. When the running ones find no cells, one of them, by a rule
//! ([`VictimRule`]), is preempted and put back at the head of the queue. Source: vLLM v1's scheduler, by its
//! behaviour; with one difference: a waiting request that was refused is tried again only when
//! more could be placed than at its last try.
//!
//! Where steps overlap (`pipeline`), cells that are given back wait until no step reads them. A batch that
//! finds no cells then waits for the steps in flight before anybody is preempted.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use crate::attention::Attention;
use crate::plan::Effect;
use crate::policy::{Append, Intent, Policy, Reach, Reduction, SeqId};
use crate::scheduler::core::{Core, Entry};
use crate::scheduler::host::{Host, HostMemory};
use crate::scheduler::reserve::{Reserve, cells_to_the_end};
use crate::scheduler::victim::{Candidate, Lifo, VictimRule, pick};
use crate::scheduler::{Event, Job, Keep, Limits, Refusal, Scheduler, Step};

/// Leading tokens that a request wants to keep at its limit, for policies without a knob for it.
const NUM_KEEP: u32 = 4;

/// What a preempted sequence's tokens become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Preemption {
    /// They are dropped and computed again.
    Recompute,
    /// They go to host memory and come back, where it has room for them.
    Swap,
}

/// The settings of this family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ContinuousKnobs {
    /// Compute long prompts in pieces as the budget allows; otherwise a prompt waits for a batch
    /// that it fits into whole.
    pub chunked_prefill: bool,
    /// For which of its tokens a request must find free cells when it is admitted.
    pub reserve: Reserve,
    /// Cells, in 1/1000 of each class, that admission leaves free while others run.
    pub watermark_permille: u32,
    /// What a preempted sequence's tokens become.
    pub preemption: Preemption,
    /// Who is preempted.
    pub victim: &'static dyn VictimRule,
    /// Steps that may still be executed while the next one is formed. 0: none.
    pub pipeline: u32,
}

impl Default for ContinuousKnobs {
    fn default() -> Self {
        ContinuousKnobs {
            chunked_prefill: true,
            reserve: Reserve::Prompt,
            watermark_permille: 0,
            preemption: Preemption::Recompute,
            victim: &Lifo,
            pipeline: 0,
        }
    }
}

/// The scheduler.
pub struct Continuous {
    core: Core,
    knobs: ContinuousKnobs,
    waiting: VecDeque<Entry>,
    /// In the order of admission.
    running: Vec<Entry>,
    free_ids: BinaryHeap<Reverse<u32>>,
    /// What each class could place when the head of the queue was last refused.
    refused_at: Option<Vec<u32>>,
    /// Main memory that swapped sequences may take; none: any.
    host: Option<Host>,
    /// Sequences preempted so far.
    preempted: u64,
    batch: Vec<Append>,
    decode_live: Vec<u64>,
}

impl Continuous {
    /// A scheduler over a policy. With `writes`, plans say where every token goes, which an engine
    /// needs and a simulator does not.
    pub fn new(policy: Box<dyn Policy>, limits: Limits, knobs: ContinuousKnobs, writes: bool) -> Self {
        let core = Core::new(policy, limits, writes);
        let decode_live = vec![0; core.classes()];
        Continuous {
            core,
            knobs,
            waiting: VecDeque::new(),
            running: Vec::new(),
            free_ids: (0..limits.num_parallel).map(Reverse).collect(),
            refused_at: None,
            host: None,
            preempted: 0,
            batch: Vec::new(),
            decode_live,
        }
    }

    /// The same, with limited main memory for preempted sequences: one that finds no room there is computed
    /// again.
    #[must_use]
    pub fn with_host(self, memory: HostMemory) -> Self {
        Continuous { host: Some(Host::new(memory)), ..self }
    }

    /// Serves the running sequences, preempting until their tokens fit. Returns the tokens left in the
    /// budget, or none if somebody was preempted.
    fn serve_running(&mut self) -> Option<u32> {
        let mut preempted = false;
        self.reduce_full();
        loop {
            let mut budget = self.core.limits.num_batch
                - self.running.iter().filter(|entry| !entry.is_prefilling()).count() as u32;
            self.batch.clear();
            for entry in &mut self.running {
                let tokens = if entry.is_prefilling() {
                    let tokens = (entry.target - entry.len).min(budget);
                    budget -= tokens;
                    tokens
                } else if entry.len < entry.covered {
                    0
                } else {
                    // A policy was promised spared tokens within its room, not more in one call.
                    self.core.settle(entry);
                    1
                };
                if tokens > 0 {
                    self.batch.push(Append { seq: entry.seq, tokens, restored: false });
                }
            }
            match self.core.place(&self.batch) {
                Ok(()) => return self.advance(budget, preempted),
                Err(full) if self.core.drain(Some(full.class)) => {}
                Err(_) => {
                    preempted = true;
                    self.preempt();
                }
            }
        }
    }

    /// Books the placed batch.
    fn advance(&mut self, budget: u32, preempted: bool) -> Option<u32> {
        let mut appends = self.batch.iter().peekable();
        self.decode_live.fill(0);
        for entry in &mut self.running {
            let append = appends.next_if(|append| append.seq == entry.seq);
            if entry.is_prefilling() {
                if let Some(append) = append {
                    self.core.placed(entry, append.tokens);
                    self.core.push_chunk(entry, append.tokens);
                }
                continue;
            }
            entry.len += 1;
            if let Some(append) = append {
                self.core.placed(entry, append.tokens);
            }
            entry.samples = true;
            self.core.decode(entry.seq, entry.len, &mut self.decode_live);
        }
        (!preempted).then_some(budget)
    }

    /// Sequences at their limit drop tokens, where the policy has a rule for it.
    fn reduce_full(&mut self) {
        if !self.core.policy.reduces() {
            return;
        }
        for entry in &mut self.running {
            if entry.len >= self.core.limit(entry) && self.core.reduce(entry) == Reduction::Stop {
                entry.remaining = 1;
                entry.limited = true;
            }
        }
    }

    fn preempt(&mut self) {
        let candidates = (0..self.running.len()).rev().zip(&self.running).map(|(age, entry)| Candidate {
            id: entry.job.id,
            age,
            computed: entry.len,
            remaining: entry.remaining,
            is_back: entry.is_back,
            preemptions: self.preempted,
        });
        let victim = pick(self.knobs.victim, &candidates.collect::<Vec<_>>());
        let mut entry = self.running.remove(victim);
        self.core.settle(&mut entry);
        let id = entry.job.id;
        if self.running.is_empty() {
            // Alone and still no room: nobody can make any.
            self.release(&entry);
            self.core.events.push(Event::Failed { id, output_tokens: entry.produced });
            return;
        }
        self.preempted += 1;
        self.core.events.push(Event::Preempted { id });
        if self.swaps(&mut entry) {
            let (seq, parked) = (entry.seq, entry.parked);
            self.core.swap(seq, parked, |class, first, run| Effect::SwapOut { class, seq, first, run });
            entry.swapped = true;
            self.release(&entry);
        } else {
            self.release(&entry);
            entry.lose();
        }
        entry.placed = 0;
        entry.covered = 0;
        entry.is_back = true;
        self.waiting.push_front(entry);
    }

    /// Whether a preempted sequence goes to host memory; then it has room there for what its policy has not
    /// parked.
    fn swaps(&mut self, entry: &mut Entry) -> bool {
        if entry.is_prefilling() || entry.shifted {
            return false;
        }
        let parked = self.core.policy.park(entry.seq, &mut self.core.step.plan);
        if parked.is_none() && self.knobs.preemption != Preemption::Swap {
            return false;
        }
        entry.parked = parked.unwrap_or(0);
        let Some(host) = &mut self.host else { return true };
        match host.take(&self.core.cells_of(entry.seq, entry.parked)) {
            Some(bytes) => entry.host_bytes = bytes,
            None => return false,
        }
        true
    }

    /// The entry has no tokens in host memory any more.
    fn leave_host(&mut self, entry: &mut Entry) {
        if let Some(host) = &mut self.host {
            host.give(std::mem::take(&mut entry.host_bytes));
        }
    }

    fn release(&mut self, entry: &Entry) {
        self.core.note_layout(entry);
        self.core.policy.release(entry.seq);
        self.free_ids.push(Reverse(entry.seq.0));
        self.refused_at = None;
    }

    fn placeable(&self) -> impl Iterator<Item = u32> {
        let policy = &self.core.policy;
        policy.geometry().class_ids().map(|class| policy.usage(class).placeable)
    }

    /// Whether the head of the queue, refused before, could find more now than it did then.
    fn is_worth_a_try(&self) -> bool {
        let Some(refused_at) = &self.refused_at else { return true };
        self.placeable().zip(refused_at).any(|(now, &then)| now > then)
    }

    fn admit(&mut self, mut budget: u32) {
        while budget > 0 && self.running.len() < self.core.limits.num_parallel as usize {
            if self.waiting.is_empty() || !self.is_worth_a_try() {
                return;
            }
            let mut entry = self.waiting.pop_front().expect("the queue is not empty");
            match self.try_admit(&mut entry, budget) {
                Some(tokens) => {
                    self.refused_at = None;
                    budget -= tokens;
                    self.running.push(entry);
                }
                None if self.running.is_empty() && self.core.drain(None) => self.waiting.push_front(entry),
                None if self.running.is_empty() => {
                    // An empty cache refused it: it will never fit.
                    self.refused_at = None;
                    self.leave_host(&mut entry);
                    let id = entry.job.id;
                    self.core.events.push(if entry.admitted {
                        Event::Failed { id, output_tokens: entry.produced }
                    } else {
                        Event::Rejected { id, why: Refusal::LongerThanCache }
                    });
                }
                None => {
                    self.refused_at = Some(self.placeable().collect());
                    self.waiting.push_front(entry);
                    return;
                }
            }
        }
    }

    /// Gives the entry its first cells; the tokens it takes from the budget, or none if it has to wait.
    fn try_admit(&mut self, entry: &mut Entry, budget: u32) -> Option<u32> {
        let content = if entry.shifted {
            crate::Content::own(entry.job.content.own ^ 1 << 63)
        } else {
            entry.job.content.clone()
        };
        let mut total = if entry.swapped { entry.len } else { entry.target };
        let mut hit = self.core.policy.cached(&content, total);
        if entry.swapped && hit.tokens < entry.parked {
            // There is no room for what was parked, or it is forgotten: then it is computed again.
            if !self.has_cells(total - hit.tokens, hit.idle_cells) {
                return None;
            }
            entry.swapped = false;
            self.leave_host(entry);
            entry.lose();
            total = entry.target;
            hit = self.core.policy.cached(&content, total);
        }
        let restored = entry.swapped;
        let missing = total - hit.tokens;
        let tokens = if restored { missing } else { missing.min(budget) };
        if !self.knobs.chunked_prefill && missing > budget && !self.core.step.prefills.is_empty() {
            return None;
        }
        let tokens = if self.knobs.chunked_prefill || restored { tokens } else { missing };
        let asked = if self.knobs.reserve == Reserve::None { tokens } else { missing };
        let has_room = self.core.policy.never_refuses()
            || self.has_cells(asked, hit.idle_cells) && self.has_future(entry, missing);
        if !has_room || !self.core.policy.has_room_for(&content, total, asked) {
            return None;
        }
        entry.seq = SeqId(self.free_ids.pop().expect("fewer run than may").0);
        let intent =
            Intent { content, prompt_tokens: total, total_tokens: entry.tokens_next() + entry.remaining - 1 };
        let adopted = self.core.policy.open(entry.seq, &intent);
        let append = Append { seq: entry.seq, tokens: total.min(adopted + tokens) - adopted, restored };
        if self.core.place(&[append]).is_err() {
            self.core.policy.release(entry.seq);
            self.free_ids.push(Reverse(entry.seq.0));
            return None;
        }
        entry.placed = adopted;
        if !restored {
            entry.len = adopted;
        }
        self.core.placed(entry, append.tokens);
        self.book_admission(entry, adopted, append, restored);
        Some(if restored { 0 } else { append.tokens.min(budget) })
    }

    fn book_admission(&mut self, entry: &mut Entry, adopted: u32, append: Append, restored: bool) {
        let id = entry.job.id;
        if !entry.admitted {
            entry.admitted = true;
            self.core.events.push(Event::Admitted { id, cached_tokens: adopted });
        }
        if restored {
            let seq = entry.seq;
            entry.swapped = false;
            entry.samples = false;
            self.leave_host(entry);
            self.core.swap(seq, adopted, |class, first, run| Effect::SwapIn { class, seq, first, run });
            return;
        }
        if entry.lost > adopted {
            self.core.events.push(Event::Recomputed { id, tokens: entry.lost - adopted });
        }
        entry.lost = 0;
        self.core.push_chunk(entry, append.tokens);
    }

    /// Whether every class has so many cells beside those of the hit and the watermark, wherever
    /// they lie.
    fn has_cells(&self, tokens: u32, idle_cells: u32) -> bool {
        let geometry = self.core.policy.geometry();
        // The idle cells are those of the class that `Hit` speaks of.
        let hit_class = geometry.classes.iter().position(|layers| layers.reach == Reach::Full);
        geometry.class_ids().all(|class| {
            let layers = &geometry.classes[class.index()];
            let usage = self.core.policy.usage(class);
            let share = u64::from(self.core.policy.memory_cells(class));
            let watermark = share * u64::from(self.knobs.watermark_permille) / 1000;
            let kept_free = if self.running.is_empty() { 0 } else { watermark };
            let idle = if hit_class == Some(class.index()) { u64::from(idle_cells) } else { 0 };
            let needed = u64::from(layers.reach.clip(tokens)) + idle + kept_free;
            needed <= u64::from(usage.free) + u64::from(usage.cached)
        })
    }
}

impl Continuous {
    /// Tokens that an entry has at its end, as far as admission knows or fears.
    fn end_of(&self, entry: &Entry) -> u32 {
        let known = entry.tokens_next().saturating_add(entry.remaining - 1);
        let longest = entry.job.num_predict.map_or(u32::MAX, |most| {
            let left = most.saturating_sub(entry.produced).max(1);
            entry.tokens_next().saturating_add(left - 1)
        });
        let end = if self.knobs.reserve == Reserve::Max { longest.max(known) } else { known };
        end.min(self.core.limits.num_ctx)
    }

    /// Whether, where everything up to the end is set aside, the entry and all who run fit until each has
    /// ended, wherever their cells lie and though none were shared. Who is alone may try.
    fn has_future(&self, entry: &Entry, missing: u32) -> bool {
        if !self.knobs.reserve.is_to_the_end() || self.running.is_empty() {
            return true;
        }
        let policy = &self.core.policy;
        let granule = policy.granule();
        policy.geometry().class_ids().all(|class| {
            let layers = &policy.geometry().classes[class.index()];
            let ends = self.running.iter().chain([entry]).map(|entry| self.end_of(entry));
            let cells = ends.map(|end| cells_to_the_end(layers.reach, end, granule)).sum::<u64>();
            // The pieces of prompts that a step computes lie beside the windows.
            let piece = match layers.reach {
                Reach::Full => 0,
                Reach::Window(_) if self.knobs.chunked_prefill => self.core.limits.num_batch,
                Reach::Window(_) => self.core.limits.num_batch.max(missing),
            };
            cells + u64::from(piece) <= u64::from(policy.memory_cells(class) / granule * granule)
        })
    }
}

impl Scheduler for Continuous {
    fn submit(&mut self, job: Job) {
        let id = job.id;
        if self.core.limits.queue_max.is_some_and(|most| self.waiting.len() >= most as usize) {
            self.core.events.push(Event::Rejected { id, why: Refusal::QueueFull });
        } else if job.prompt_tokens > self.core.limits.num_ctx {
            self.core.events.push(Event::Rejected { id, why: Refusal::LongerThanContext });
        } else {
            let mut entry = Entry::new(job);
            let keep = entry.job.num_keep.unwrap_or(Keep::Tokens(NUM_KEEP));
            let keep = keep.tokens(entry.job.prompt_tokens, self.core.limits.num_ctx);
            entry.keep = self.core.policy.head_kept(keep);
            if !self.core.policy.reduces() {
                entry.limit_output(self.core.limits.num_ctx);
            }
            self.waiting.push_back(entry);
        }
    }

    fn next(&mut self) -> Option<&Step> {
        self.core.begin(self.running.is_empty(), self.knobs.pipeline);
        loop {
            let budget = self.serve_running();
            if let Some(budget) = budget {
                self.admit(budget);
            }
            if !self.running.is_empty() {
                break;
            }
            if self.waiting.is_empty() {
                return None;
            }
        }
        self.core.book(self.running.iter());
        let decode_live = std::mem::take(&mut self.decode_live);
        self.core.close(&decode_live);
        self.decode_live = decode_live;
        Some(&self.core.step)
    }

    fn step(&self) -> &Step {
        &self.core.step
    }

    fn done(&mut self) {
        let mut finished = false;
        for entry in &mut self.running {
            finished |= entry.samples && entry.remaining == 1;
            if entry.samples && entry.remaining > 1 {
                self.core.sample(entry);
            }
        }
        if !finished {
            return;
        }
        let mut running = std::mem::take(&mut self.running);
        for entry in running.iter_mut().filter(|entry| entry.samples) {
            self.core.sample(entry);
            self.core.settle(entry);
            self.release(entry);
        }
        running.retain(|entry| entry.remaining > 0);
        self.running = running;
    }

    fn attended(&mut self, attention: &Attention) {
        self.core.policy.attended(attention);
    }

    fn take_events(&mut self, into: &mut Vec<Event>) {
        into.append(&mut self.core.events);
    }

    fn settle(&mut self) {
        for entry in &mut self.running {
            self.core.settle(entry);
        }
    }

    fn policy(&self) -> &dyn Policy {
        &*self.core.policy
    }

    fn sequences(&self) -> Vec<(SeqId, u64)> {
        self.running.iter().map(|entry| (entry.seq, entry.job.id)).collect()
    }

    fn sequences_len(&self) -> usize {
        self.running.len()
    }

    fn waiting(&self) -> usize {
        self.waiting.len()
    }

    fn event_hash(&self) -> u64 {
        self.core.hash()
    }
}

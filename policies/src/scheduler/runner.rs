//! Slots and round-robin batches, as Ollama's runner has them.
//!
//! A request gets one of `num_parallel` slots, the one whose content agrees longest with its
//! prompt, and its cells stay with the slot after it has ended. Every batch takes up to
//! `num_batch` tokens from all slots in turn; a prompt longer than the context is cut (head and
//! tail stay); images go into one batch. When no room is found the server crashes, or does one of
//! the milder things that other servers do. Source: Ollama 0.6.6 `runner/ollamarunner`, by its
//! behaviour; the milder ways: llama.cpp's server.

use std::collections::VecDeque;

use crate::content::Content;
use crate::policy::{Append, Intent, Policy, SeqId};
use crate::scheduler::core::{Core, Entry};
use crate::scheduler::{Event, Job, Limits, Refusal, Scheduler, Step, Unbreakable};

/// What happens when a batch finds no room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnFull {
    /// The server dies: every request in flight is lost, the model is loaded again (Ollama).
    Crash,
    /// The request admitted last is lost; idle slots are emptied first.
    FailOne,
    /// The batch is halved until it fits; a request that finds no room for one token is lost
    /// (llama.cpp's server). Idle slots are emptied first.
    Halve,
    /// Prompts wait, the one admitted last first; if decoding alone does not fit, as `FailOne`.
    Wait,
}

/// The settings of this family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RunnerKnobs {
    /// Leading prompt tokens that truncation keeps.
    pub num_keep: u32,
    /// What happens when a batch finds no room.
    pub on_full: OnFull,
    /// Leave a slot its cells when its request ends, for a next one that begins alike.
    pub keep_slots: bool,
}

impl Default for RunnerKnobs {
    fn default() -> Self {
        RunnerKnobs { num_keep: 4, on_full: OnFull::Crash, keep_slots: true }
    }
}

/// A slot; its number is its sequence.
#[derive(Clone, Debug, Default)]
struct Slot {
    entry: Option<Entry>,
    /// Request and content of what lies in the cells of an idle slot that has any.
    kept: Option<(u64, Content)>,
    /// When its last request was admitted, counted in admissions.
    used: u64,
    /// Tokens it has in the batch being formed.
    pending: u32,
}

/// The scheduler.
pub struct Runner {
    core: Core,
    knobs: RunnerKnobs,
    waiting: VecDeque<Entry>,
    slots: Vec<Slot>,
    /// Slot that the next batch begins with.
    next_slot: usize,
    admissions: u64,
    batch: Vec<Append>,
    decode_live: Vec<u64>,
}

impl Runner {
    /// A scheduler over a policy. With `writes`, plans say where every token goes.
    pub fn new(policy: Box<dyn Policy>, limits: Limits, knobs: RunnerKnobs, writes: bool) -> Self {
        let core = Core::new(policy, limits, writes);
        let decode_live = vec![0; core.classes()];
        Runner {
            core,
            knobs,
            waiting: VecDeque::new(),
            slots: vec![Slot::default(); limits.num_parallel as usize],
            next_slot: 0,
            admissions: 0,
            batch: Vec::new(),
            decode_live,
        }
    }

    fn is_idle(&self) -> bool {
        self.slots.iter().all(|slot| slot.entry.is_none())
    }

    /// Gives waiting requests their slots.
    fn fill_slots(&mut self) {
        while !self.waiting.is_empty() {
            let content = &self.waiting[0].job.content;
            let agreement =
                |slot: &Slot| slot.kept.as_ref().map_or(0, |(_, kept)| kept.common_tokens(content));
            let idle = self.slots.iter().enumerate().filter(|(_, slot)| slot.entry.is_none());
            let best = idle.max_by_key(|(id, slot)| (agreement(slot), usize::MAX - id));
            let Some((id, slot)) = best else { return };
            let common = agreement(slot);
            let entry = self.waiting.pop_front().expect("the queue is not empty");
            self.load(id, entry, common);
        }
    }

    fn load(&mut self, id: usize, mut entry: Entry, common: u32) {
        let seq = SeqId(id as u32);
        let slot = &mut self.slots[id];
        let kept = slot.kept.take();
        let mut cached = 0;
        if kept.is_some() {
            cached =
                self.core.policy.truncate(seq, common.min(self.core.policy.len(seq)).min(entry.target - 1));
        }
        if cached == 0 {
            if kept.is_some() {
                self.core.policy.release(seq);
            }
            let intent = Intent {
                content: entry.job.content.clone(),
                prompt_tokens: entry.target,
                total_tokens: entry.target + entry.remaining - 1,
            };
            cached = self.core.policy.open(seq, &intent);
        }
        entry.seq = seq;
        entry.len = cached;
        entry.placed = cached;
        entry.covered = cached;
        entry.admitted = true;
        self.admissions += 1;
        self.core.events.push(Event::Admitted { id: entry.job.id, cached_tokens: cached });
        let slot = &mut self.slots[id];
        slot.used = self.admissions;
        slot.entry = Some(entry);
    }

    /// Forms the batch: in turn, at most `limit` tokens. Returns the slot that found no place in it.
    fn form_batch(&mut self, limit: u32) -> Option<usize> {
        let count = self.slots.len();
        let mut total = 0;
        let mut left_out = None;
        for turn in 0..count {
            let id = (self.next_slot + turn) % count;
            self.slots[id].pending = 0;
            let num_ctx = self.core.limits.num_ctx;
            let Some(entry) = self.slots[id].entry.as_mut() else { continue };
            let mut own_limit = limit;
            let mut pending = 0;
            while pending < entry.target.saturating_sub(entry.len).max(1) {
                let least = entry_piece(entry, pending);
                own_limit = own_limit.max(least);
                if total + least > own_limit {
                    if pending == 0 {
                        left_out = left_out.or(Some(id));
                    }
                    break;
                }
                if entry.len + pending + least > num_ctx
                    && (pending > 0 || !self.core.reduce(entry, self.knobs.num_keep))
                {
                    break;
                }
                // Single tokens up to the next image, the batch's end, or the prompt's end.
                let wanted = entry.target.saturating_sub(entry.len).max(1) - pending;
                let room = (own_limit - total).min(num_ctx.saturating_sub(entry.len + pending).max(least));
                let tokens =
                    if least > 1 { least } else { wanted.min(room).min(until_piece(entry, pending)) };
                pending += tokens;
                total += tokens;
            }
            self.slots[id].pending = pending;
        }
        left_out
    }

    /// The appends of the batch, in its order.
    fn collect(&mut self) {
        self.batch.clear();
        let count = self.slots.len();
        for turn in 0..count {
            let slot = &mut self.slots[(self.next_slot + turn) % count];
            let pending = slot.pending;
            if let Some(entry) = slot.entry.as_mut().filter(|_| pending > 0)
                && entry.len + pending > entry.covered
            {
                // A policy was promised spared tokens within its room, not more in one call.
                self.core.settle(entry);
                self.batch.push(Append { seq: entry.seq, tokens: pending, restored: false });
            }
        }
    }

    /// Sequences at the context limit that the policy does not reduce end here.
    fn end_at_limit(&mut self) {
        for id in 0..self.slots.len() {
            let num_ctx = self.core.limits.num_ctx;
            let full = |entry: &Entry| !entry.is_prefilling() && entry.len >= num_ctx;
            if self.slots[id].entry.as_ref().is_some_and(full) {
                let entry = self.slots[id].entry.as_mut().expect("just seen");
                if !self.core.reduce(entry, self.knobs.num_keep) {
                    let (request, output_tokens) = (entry.job.id, entry.produced);
                    self.core.events.push(Event::Finished { id: request, output_tokens, at_limit: true });
                    self.end(id);
                }
            }
        }
    }

    /// Books the placed batch.
    fn advance(&mut self) {
        let count = self.slots.len();
        let mut appends = self.batch.iter().peekable();
        for turn in 0..count {
            let slot = &mut self.slots[(self.next_slot + turn) % count];
            let pending = slot.pending;
            let Some(entry) = slot.entry.as_mut().filter(|_| pending > 0) else { continue };
            let decodes = !entry.is_prefilling();
            entry.len += pending;
            if let Some(append) = appends.next_if(|append| append.seq == entry.seq) {
                self.core.placed(entry, append.tokens);
            }
            if decodes {
                entry.samples = true;
                self.core.step.decoding.push(entry.seq);
                self.core.add_reads(entry.len, &mut self.decode_live);
            } else {
                self.core.push_chunk(entry, pending);
            }
        }
    }

    /// A slot's request has ended: its cells stay with the slot, or go back.
    fn end(&mut self, id: usize) {
        let mut entry = self.slots[id].entry.take().expect("the slot has a request");
        self.core.settle(&mut entry);
        self.core.note_layout(&entry);
        if self.knobs.keep_slots && !entry.shifted && !self.core.policy.remembers_intent() && entry.len > 0 {
            self.slots[id].kept = Some((entry.job.id, entry.job.content));
        } else {
            self.core.policy.release(entry.seq);
        }
    }

    fn fail(&mut self, id: usize) {
        let mut entry = self.slots[id].entry.take().expect("the slot has a request");
        self.core.settle(&mut entry);
        self.core.note_layout(&entry);
        self.core.policy.release(entry.seq);
        self.core.events.push(Event::Failed { id: entry.job.id, output_tokens: entry.produced });
    }

    fn crash(&mut self) {
        self.core.events.push(Event::Crashed);
        for id in 0..self.slots.len() {
            if self.slots[id].entry.is_some() {
                self.fail(id);
            } else if self.slots[id].kept.take().is_some() {
                self.core.policy.release(SeqId(id as u32));
            }
        }
        self.next_slot = 0;
        self.core.step.reload = true;
    }

    /// Empties the idle slot whose request was admitted longest ago; whether there was one.
    fn empty_idle_slot(&mut self) -> bool {
        let idle = self.slots.iter().enumerate().filter(|(_, slot)| slot.kept.is_some());
        let Some((id, _)) = idle.min_by_key(|(_, slot)| slot.used) else { return false };
        self.slots[id].kept = None;
        self.core.policy.release(SeqId(id as u32));
        true
    }

    /// The busy slot in the batch whose request was admitted last.
    fn newest(&self, prefilling_only: bool) -> Option<usize> {
        let eligible = |slot: &Slot| {
            slot.pending > 0
                && slot.entry.as_ref().is_some_and(|entry| !prefilling_only || entry.is_prefilling())
        };
        let slots = self.slots.iter().enumerate().filter(|(_, slot)| eligible(slot));
        slots.max_by_key(|(_, slot)| slot.used).map(|(id, _)| id)
    }

    /// Places a batch, or does what the knob says until one fits or nothing is left.
    fn place(&mut self) -> Option<usize> {
        let mut limit = self.core.limits.num_batch;
        let mut waits: Vec<usize> = Vec::new();
        loop {
            let left_out = self.form_batch(limit);
            for &id in &waits {
                self.slots[id].pending = 0;
            }
            self.collect();
            if self.core.place(&self.batch).is_ok() {
                return left_out;
            }
            if self.knobs.on_full == OnFull::Crash {
                self.crash();
                return None;
            }
            if self.empty_idle_slot() {
                continue;
            }
            match self.knobs.on_full {
                OnFull::Halve if limit > 1 => limit /= 2,
                OnFull::Wait => match self.newest(true) {
                    // The only one in the batch cannot wait for anybody.
                    Some(id) if self.slots.iter().filter(|slot| slot.pending > 0).count() > 1 => {
                        waits.push(id)
                    }
                    _ => self.fail_newest(),
                },
                _ => self.fail_newest(),
            }
        }
    }

    fn fail_newest(&mut self) {
        let id = self.newest(false).expect("a batch that is refused has sequences");
        self.fail(id);
    }
}

/// Tokens that have to go into one batch with the token after `pending`: an image's, or one.
fn entry_piece(entry: &Entry, pending: u32) -> u32 {
    let at = entry.len + pending;
    let inside = |piece: &&Unbreakable| piece.at <= at && at < piece.at + piece.tokens;
    if entry.shifted || at >= entry.target {
        return 1;
    }
    entry
        .job
        .unbreakable
        .iter()
        .find(inside)
        .map_or(1, |piece| (piece.at + piece.tokens).min(entry.target) - at)
}

/// Single tokens before the next image.
fn until_piece(entry: &Entry, pending: u32) -> u32 {
    let at = entry.len + pending;
    let next = entry.job.unbreakable.iter().find(|piece| piece.at > at).filter(|_| !entry.shifted);
    next.map_or(u32::MAX, |piece| piece.at - at)
}

/// Cuts a prompt to the context: the head and the tail stay, no image is cut in two. Returns the
/// tokens cut; at least one token of the prompt stays.
fn truncate(job: &mut Job, num_ctx: u32, num_keep: u32) -> u32 {
    let keep = num_keep.min(num_ctx.saturating_sub(1));
    let mut start = keep + (job.prompt_tokens - num_ctx);
    if let Some(piece) =
        job.unbreakable.iter().find(|piece| piece.at < start && start < piece.at + piece.tokens)
    {
        start = piece.at + piece.tokens;
    }
    let start = start.min(job.prompt_tokens - 1);
    let cut = start - keep;
    job.prompt_tokens -= cut;
    job.unbreakable.retain_mut(|piece| {
        let kept = piece.at + piece.tokens <= keep || piece.at >= start;
        if piece.at >= start {
            piece.at -= cut;
        }
        kept
    });
    job.content = Content::own(job.content.own);
    cut
}

impl Scheduler for Runner {
    fn submit(&mut self, mut job: Job) {
        let id = job.id;
        let busy = self.slots.iter().filter(|slot| slot.entry.is_some()).count();
        let idle = self.slots.len() - busy;
        if self.core.limits.queue_max.is_some_and(|most| self.waiting.len() >= most as usize + idle) {
            self.core.events.push(Event::Rejected { id, why: Refusal::QueueFull });
            return;
        }
        if job.prompt_tokens > self.core.limits.num_ctx {
            let tokens = truncate(&mut job, self.core.limits.num_ctx, self.knobs.num_keep);
            self.core.events.push(Event::Truncated { id, tokens });
        }
        let mut entry = Entry::new(job);
        if !self.core.policy.reduces() {
            entry.limit_output(self.core.limits.num_ctx);
        }
        self.waiting.push_back(entry);
    }

    fn next(&mut self) -> Option<&Step> {
        self.core.begin(self.is_idle() && self.waiting.is_empty());
        self.end_at_limit();
        self.fill_slots();
        if self.is_idle() {
            return None;
        }
        let left_out = self.place();
        self.decode_live.fill(0);
        if !self.core.step.reload {
            self.advance();
            self.next_slot = left_out.unwrap_or(self.next_slot);
        }
        self.core.book(self.slots.iter().filter_map(|slot| slot.entry.as_ref()));
        let kept = self.slots.iter().enumerate().filter(|(_, slot)| slot.kept.is_some());
        self.core.book_kept(kept.map(|(id, _)| SeqId(id as u32)));
        let decode_live = std::mem::take(&mut self.decode_live);
        self.core.close(&decode_live);
        self.decode_live = decode_live;
        Some(&self.core.step)
    }

    fn done(&mut self) {
        for id in 0..self.slots.len() {
            if let Some(entry) = self.slots[id].entry.as_mut().filter(|entry| entry.samples)
                && self.core.sample(entry)
            {
                self.end(id);
            }
        }
    }

    fn kill(&mut self) -> bool {
        self.crash();
        true
    }

    fn take_events(&mut self, into: &mut Vec<Event>) {
        into.append(&mut self.core.events);
    }

    fn settle(&mut self) {
        for slot in &mut self.slots {
            if let Some(entry) = slot.entry.as_mut() {
                self.core.settle(entry);
            }
        }
    }

    fn policy(&self) -> &dyn Policy {
        &*self.core.policy
    }

    fn sequences(&self) -> Vec<(SeqId, u64)> {
        let holder = |slot: &Slot| {
            let kept = slot.kept.as_ref().map(|(id, _)| *id);
            slot.entry.as_ref().map(|entry| entry.job.id).or(kept)
        };
        let slots = self.slots.iter().enumerate();
        slots.filter_map(|(id, slot)| holder(slot).map(|request| (SeqId(id as u32), request))).collect()
    }

    fn sequences_len(&self) -> usize {
        self.slots.iter().filter(|slot| slot.entry.is_some() || slot.kept.is_some()).count()
    }

    fn waiting(&self) -> usize {
        self.waiting.len()
    }

    fn event_hash(&self) -> u64 {
        self.core.hash()
    }
}

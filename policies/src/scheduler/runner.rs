//! Slots and round-robin batches, as Ollama's runner has them.
//!
//! A request gets a seat and one of `num_parallel` slots as soon as one is free, the slot whose
//! content agrees longest with its prompt, and its cells stay with the slot after it has ended. Every
//! batch takes up to `num_batch` tokens from all seats in turn; a prompt longer than the context is
//! cut (head and tail stay); images go into one batch; a sequence at the context limit is shifted or
//! computed again. When no room is found the server crashes, or does one of the milder things that
//! other servers do. Source: Ollama 0.6.6 `runner/ollamarunner` and `runner/llamarunner`, by their
//! behaviour; the milder ways: llama.cpp's server.

use std::collections::VecDeque;

use crate::attention::Attention;
use crate::content::Content;
use crate::policy::{Append, Full, Intent, Policy, Reduction, SeqId};
use crate::scheduler::core::{Core, Entry};
use crate::scheduler::prompt::{excess, move_down, together, until_next};
use crate::scheduler::text::Text;
use crate::scheduler::{Event, Job, Keep, Limits, LogLine, Refusal, Scheduler, Step};

/// What happens when a batch finds no room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnFull {
    /// The server dies: every request in flight and in the queue is lost, the model is loaded again
    /// (Ollama).
    Crash,
    /// The request admitted last is lost; idle slots are emptied first.
    FailOne,
    /// The batch is halved until it fits; a request that finds no room for one token is lost
    /// (llama.cpp's server). Idle slots are emptied first.
    Halve,
    /// Prompts wait, the one admitted last first; if decoding alone does not fit, as `FailOne`.
    Wait,
}

/// Which of Ollama's two runners.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunnerKind {
    /// `ollamarunner` (Gemma 3): `num_batch` tokens over all sequences, an image in one batch.
    Ollama,
    /// `llamarunner` (models that llama.cpp runs): `num_batch` tokens of each sequence, images like
    /// text; a head that is kept does not count the token that all prompts begin with.
    Llama,
}

/// The settings of this family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RunnerKnobs {
    /// Leading prompt tokens that truncation and context shift keep, where a request does not say.
    pub num_keep: Keep,
    /// What happens when a batch finds no room.
    pub on_full: OnFull,
    /// Leave a slot its cells when its request ends, for a next one that begins alike.
    pub keep_slots: bool,
    /// Take the slot that is idle longest and copy into it what another has in common with the
    /// prompt (`OLLAMA_MULTIUSER_CACHE`), instead of the idle slot that agrees longest.
    pub multi_user: bool,
    /// All prompts begin with the same token, whatever their contents say.
    pub bos: bool,
    /// Which runner.
    pub kind: RunnerKind,
}

impl Default for RunnerKnobs {
    fn default() -> Self {
        RunnerKnobs {
            num_keep: Keep::Tokens(4),
            on_full: OnFull::Crash,
            keep_slots: true,
            multi_user: false,
            bos: false,
            kind: RunnerKind::Ollama,
        }
    }
}

/// A slot; its number is its sequence.
#[derive(Clone, Debug, Default)]
struct Slot {
    entry: Option<Entry>,
    /// Which tokens lie in its cells; none for a slot that nothing was loaded into.
    text: Option<Text>,
    /// When its last request was admitted, counted in admissions.
    used: u64,
    /// Tokens it has in the batch being formed.
    pending: u32,
}

/// A slot, for whoever looks on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotView {
    /// Whether a request has it.
    pub in_use: bool,
    /// Tokens that lie in it.
    pub tokens: u32,
}

/// The scheduler.
pub struct Runner {
    core: Core,
    knobs: RunnerKnobs,
    waiting: VecDeque<(Entry, Text)>,
    slots: Vec<Slot>,
    /// The slot of whoever sits there; batches and answers go from seat to seat.
    seats: Vec<Option<usize>>,
    /// Seat that the next batch begins with.
    next_seat: usize,
    admissions: u64,
    batch: Vec<Append>,
    decode_live: Vec<u64>,
    restarts: bool,
    is_dead: bool,
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
            seats: vec![None; limits.num_parallel as usize],
            next_seat: 0,
            admissions: 0,
            batch: Vec::new(),
            decode_live,
            restarts: true,
            is_dead: false,
        }
    }

    /// Keeps a log of what the server would write ([`Scheduler::take_log`]).
    pub fn with_log(mut self) -> Self {
        self.core.log = Some(Vec::new());
        self
    }

    /// A crash is the end: no step comes after it, and slots and cells stay as they were, for
    /// whoever wants to see what was left.
    pub fn without_restart(mut self) -> Self {
        self.restarts = false;
        self
    }

    /// The slots, by number.
    pub fn slots(&self) -> impl Iterator<Item = SlotView> {
        (0..self.slots.len())
            .map(|id| SlotView { in_use: self.slots[id].entry.is_some(), tokens: self.tokens(id) })
    }

    /// Tokens that lie in a slot.
    fn tokens(&self, id: usize) -> u32 {
        let slot = &self.slots[id];
        match (&slot.entry, &slot.text) {
            (Some(entry), _) => entry.len,
            (None, Some(_)) => self.core.policy.len(SeqId(id as u32)),
            (None, None) => 0,
        }
    }

    fn is_idle(&self) -> bool {
        self.seats.iter().all(Option::is_none)
    }

    /// The seat whose turn it is, and the slot of whoever sits there.
    fn seated(&self, turn: usize) -> Option<(usize, usize)> {
        let seat = (self.next_seat + turn) % self.seats.len();
        self.seats[seat].map(|id| (seat, id))
    }

    /// Gives waiting requests their seats and slots.
    fn fill_slots(&mut self) {
        while let Some(seat) = self.seats.iter().position(Option::is_none)
            && let Some((entry, text)) = self.waiting.pop_front()
        {
            let (id, common) = if self.knobs.multi_user {
                self.choose_or_fork(&text, entry.target)
            } else {
                self.choose(&text, entry.target)
            };
            self.seats[seat] = Some(id);
            self.load(id, entry, text, common);
        }
    }

    /// Leading tokens that a slot has in common with a prompt.
    fn agreement(&self, id: usize, text: &Text, prompt_tokens: u32) -> u32 {
        let common =
            |own: &Text| own.common_tokens(self.tokens(id), text, prompt_tokens, u32::from(self.knobs.bos));
        self.slots[id].text.as_ref().map_or(0, common)
    }

    /// The idle slot that agrees longest with a prompt, and how long; the first of equals.
    fn choose(&self, text: &Text, prompt_tokens: u32) -> (usize, u32) {
        let idle = (0..self.slots.len()).filter(|&id| self.slots[id].entry.is_none());
        let agreed = idle.map(|id| (id, self.agreement(id, text, prompt_tokens)));
        agreed.max_by_key(|&(id, common)| (common, usize::MAX - id)).expect("a free seat has a free slot")
    }

    /// The slot that agrees longest if the prompt goes on from all that lies in it; otherwise the
    /// idle slot used longest ago, with a copy of what the other has in common with the prompt.
    fn choose_or_fork(&mut self, text: &Text, prompt_tokens: u32) -> (usize, u32) {
        let agreed = (0..self.slots.len()).map(|id| (id, self.agreement(id, text, prompt_tokens)));
        let (longest, common) =
            agreed.max_by_key(|&(id, common)| (common, usize::MAX - id)).expect("there are slots");
        let total = self.tokens(longest);
        if self.slots[longest].entry.is_none() && common == total {
            return (longest, common);
        }
        let idle = (0..self.slots.len()).filter(|&id| self.slots[id].entry.is_none());
        let oldest = idle.min_by_key(|&id| (self.slots[id].used, id)).expect("a free seat has a free slot");
        let inputs = self.tokens(oldest);
        if inputs > 0 {
            self.core.note(LogLine::EvictingSlot { slot: oldest as u32, inputs });
        }
        if common == 0 || oldest == longest {
            return (oldest, common);
        }
        let (src, dst) = (longest as u32, oldest as u32);
        self.core.note(LogLine::ForkingSlot { src, dst, inputs: common, total });
        if self.slots[oldest].text.take().is_some() {
            self.core.policy.release(SeqId(dst));
        }
        if let Some(entry) = self.slots[longest].entry.as_mut() {
            self.core.settle(entry);
        }
        let forked = self.core.policy.fork(SeqId(src), SeqId(dst), common);
        if forked > 0 {
            self.slots[oldest].text = self.slots[longest].text.clone();
            // The block both hold now is room for neither.
            let core = &self.core;
            if let Some(entry) = self.slots[longest].entry.as_mut() {
                core.placed(entry, 0);
            }
        }
        (oldest, forked)
    }

    fn load(&mut self, id: usize, mut entry: Entry, text: Text, common: u32) {
        let seq = SeqId(id as u32);
        let held = self.tokens(id);
        let mut cached = 0;
        if self.slots[id].text.is_some() {
            // One token has to be computed for there to be an answer.
            let tokens = common.min(held).min(entry.target - 1);
            if tokens > 0 {
                cached = self.core.policy.truncate(seq, tokens);
            }
            if cached == 0 {
                self.core.policy.release(seq);
            }
        }
        if cached == 0 {
            let intent = Intent {
                content: entry.job.content.clone(),
                prompt_tokens: entry.target,
                total_tokens: entry.target + entry.remaining - 1,
            };
            cached = self.core.policy.open(seq, &intent);
        }
        self.core.note(LogLine::LoadingSlot {
            slot: seq.0,
            cache: held,
            prompt: entry.target,
            used: cached,
            remaining: entry.target - cached,
        });
        entry.seq = seq;
        entry.len = cached;
        entry.placed = cached;
        entry.covered = cached;
        entry.admitted = true;
        self.admissions += 1;
        self.core.events.push(Event::Admitted { id: entry.job.id, cached_tokens: cached });
        let used = self.admissions;
        self.slots[id] = Slot { entry: Some(entry), text: Some(text), used, pending: 0 };
    }

    /// Forms the batch: in turn, at most `limit` tokens. Returns the first seat that found no place
    /// in it.
    fn form_batch(&mut self, limit: u32) -> Option<usize> {
        let mut total = 0;
        let mut left_out = None;
        for turn in 0..self.seats.len() {
            let Some((seat, id)) = self.seated(turn) else { continue };
            self.slots[id].pending = 0;
            let entry = self.slots[id].entry.as_ref().expect("who sits has a request");
            if entry.remaining == 0 {
                let (request, output_tokens) = (entry.job.id, entry.produced);
                self.core.events.push(Event::Finished { id: request, output_tokens, at_limit: false });
                self.end(id);
                continue;
            }
            let taken = if self.knobs.kind == RunnerKind::Llama { 0 } else { total };
            let (pending, finds_room) = self.take(id, limit, taken);
            if pending == 0 && !finds_room {
                left_out = left_out.or(Some(seat));
            }
            if self.slots[id].entry.is_some() {
                self.slots[id].pending = pending;
            }
            total += pending;
        }
        left_out
    }

    /// Tokens that a slot puts into a batch that has `total` already, and whether the batch had room
    /// for all it wanted. At the context limit it is shifted; if it cannot be, its request ends.
    fn take(&mut self, id: usize, mut limit: u32, total: u32) -> (u32, bool) {
        let whole_images = self.knobs.kind == RunnerKind::Ollama;
        let mut pending = 0;
        loop {
            let Some(entry) = self.slots[id].entry.as_ref() else { return (0, true) };
            let at = entry.len + pending;
            let wanted = entry.target.saturating_sub(entry.len).max(1) - pending;
            if wanted == 0 {
                return (pending, true);
            }
            let is_prompt = whole_images && at < entry.target;
            let least = if is_prompt { together(&entry.job.unbreakable, at) } else { 1 };
            limit = limit.max(least);
            if total + pending + least > limit {
                return (pending, false);
            }
            let room = self.core.limit(entry).saturating_sub(at);
            if least > room {
                if pending > 0 {
                    return (pending, true);
                }
                if !self.shift(id) {
                    return (0, true);
                }
                // Room or not, one token goes on from here.
                pending = 1;
                continue;
            }
            // The rest of an image goes token by token: there is room for all of it.
            pending += if least > 1 {
                1
            } else {
                let text = if is_prompt { until_next(&entry.job.unbreakable, at) } else { u32::MAX };
                wanted.min(room).min(limit - total - pending).min(text)
            };
        }
    }

    /// Shifts the context of a slot at its limit. Whether it goes on in this batch.
    fn shift(&mut self, id: usize) -> bool {
        let slot = &mut self.slots[id];
        let entry = slot.entry.as_mut().expect("who sits has a request");
        let keep = entry.keep;
        let reduction = self.core.reduce(entry);
        if let Reduction::Dropped(dropped) | Reduction::Again { dropped, .. } = reduction {
            let text = slot.text.as_mut().expect("a slot in use has a text");
            text.cut(keep..keep + dropped);
        } else if matches!(reduction, Reduction::Picked(_)) {
            let text = slot.text.as_mut().expect("a slot in use has a text");
            let pieces = self.core.policy.picked(entry.seq).iter().rev();
            pieces.for_each(|piece| text.cut(piece.clone()));
        } else if entry.len >= self.core.limits.num_ctx {
            let (request, output_tokens) = (entry.job.id, entry.produced);
            self.core.events.push(Event::Finished { id: request, output_tokens, at_limit: true });
            self.end(id);
            return false;
        }
        !matches!(reduction, Reduction::Again { .. })
    }

    /// The appends of the batch, in its order.
    fn collect(&mut self) {
        self.batch.clear();
        for turn in 0..self.seats.len() {
            let Some((_, id)) = self.seated(turn) else { continue };
            let slot = &mut self.slots[id];
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

    /// Books the placed batch.
    fn advance(&mut self) {
        let mut placed = 0;
        for turn in 0..self.seats.len() {
            let Some((_, id)) = self.seated(turn) else { continue };
            let slot = &mut self.slots[id];
            let pending = slot.pending;
            let Some(entry) = slot.entry.as_mut().filter(|_| pending > 0) else { continue };
            let decodes = !entry.is_prefilling();
            entry.len += pending;
            if let Some(append) = self.batch.get(placed).filter(|append| append.seq == entry.seq) {
                placed += 1;
                self.core.placed(entry, append.tokens);
            }
            if decodes {
                entry.samples = true;
                self.core.decode(entry.seq, entry.len, &mut self.decode_live);
            } else {
                self.core.push_chunk(entry, pending);
            }
        }
    }

    /// Takes the request out of its slot.
    fn leave(&mut self, id: usize) -> Entry {
        let mut entry = self.slots[id].entry.take().expect("the slot has a request");
        self.slots[id].pending = 0;
        self.seats.iter_mut().filter(|seat| **seat == Some(id)).for_each(|seat| *seat = None);
        self.core.settle(&mut entry);
        self.core.note_layout(&entry);
        entry
    }

    /// A slot's request has ended: its cells stay with the slot, or go back.
    fn end(&mut self, id: usize) {
        let entry = self.leave(id);
        if !self.knobs.keep_slots || self.core.policy.remembers_intent() || entry.len == 0 {
            self.empty(id);
        }
    }

    fn fail(&mut self, id: usize) {
        let entry = self.leave(id);
        self.empty(id);
        self.core.events.push(Event::Failed { id: entry.job.id, output_tokens: entry.produced });
    }

    /// Gives back what lies in an idle slot.
    fn empty(&mut self, id: usize) {
        if self.slots[id].text.take().is_some() {
            self.core.policy.release(SeqId(id as u32));
        }
    }

    /// A batch found no room, and the process dies of it.
    fn crash(&mut self, full: Full) {
        let cells = self.core.policy.usage(full.class).cells;
        let cells = (self.knobs.kind == RunnerKind::Ollama).then_some(cells);
        self.core.note(LogLine::Panic { cells });
        self.die();
    }

    /// The process dies, and all that it had with it.
    fn die(&mut self) {
        self.core.events.push(Event::Crashed);
        self.core.step.reload = true;
        let served = self.slots.iter().filter_map(|slot| slot.entry.as_ref());
        let queued = self.waiting.iter().map(|(entry, _)| entry);
        let lost = |entry: &Entry| Event::Failed { id: entry.job.id, output_tokens: entry.produced };
        self.core.events.extend(served.chain(queued).map(lost));
        if !self.restarts {
            self.is_dead = true;
            return;
        }
        self.waiting.clear();
        for id in 0..self.slots.len() {
            if self.slots[id].entry.is_some() {
                self.leave(id);
            }
            self.empty(id);
            self.slots[id].used = 0;
        }
        self.core.policy.restart();
        self.next_seat = 0;
    }

    /// Empties the idle slot whose request was admitted longest ago; whether there was one.
    fn empty_idle_slot(&mut self) -> bool {
        let idle = (0..self.slots.len())
            .filter(|&id| self.slots[id].entry.is_none() && self.slots[id].text.is_some());
        let Some(id) = idle.min_by_key(|&id| self.slots[id].used) else { return false };
        self.empty(id);
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

    /// Places a batch, or does what the knob says until one fits or nothing is left. Returns the
    /// seat that found no place in it.
    fn place(&mut self) -> Option<usize> {
        let mut limit = self.core.limits.num_batch;
        let mut waits: Vec<usize> = Vec::new();
        loop {
            let left_out = self.form_batch(limit);
            for &id in &waits {
                self.slots[id].pending = 0;
            }
            self.collect();
            let Err(full) = self.core.place(&self.batch) else { return left_out };
            if self.knobs.on_full == OnFull::Crash {
                self.crash(full);
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

    /// Leading tokens of a prompt that stay.
    fn keep(&self, job: &Job) -> u32 {
        let keep = match job.num_keep.unwrap_or(self.knobs.num_keep) {
            Keep::Tokens(tokens) if self.knobs.kind == RunnerKind::Llama && self.knobs.bos => {
                Keep::Tokens(tokens.saturating_add(1))
            }
            keep => keep,
        };
        keep.tokens(job.prompt_tokens, self.core.limits.num_ctx)
    }

    /// Cuts a prompt to the context.
    fn truncate(&mut self, job: &mut Job, text: &mut Text, keep: u32) -> Result<(), Refusal> {
        let (limit, prompt) = (self.core.limits.num_ctx, job.prompt_tokens);
        if prompt <= limit {
            return Ok(());
        }
        let cut = excess(job, limit, keep, self.knobs.kind == RunnerKind::Ollama)?;
        let tokens = cut.end - cut.start;
        let new = prompt - tokens;
        self.core.note(LogLine::TruncatingPrompt { limit, prompt, keep, new });
        self.core.events.push(Event::Truncated { id: job.id, at: cut.start, tokens });
        move_down(&mut job.unbreakable, &cut);
        text.cut(cut);
        job.prompt_tokens = new;
        job.content = Content::own(job.content.own);
        Ok(())
    }
}

impl Scheduler for Runner {
    fn submit(&mut self, mut job: Job) {
        let id = job.id;
        if self
            .core
            .limits
            .queue_max
            .is_some_and(|most| !self.seats.contains(&None) && self.waiting.len() >= most as usize)
        {
            self.core.events.push(Event::Rejected { id, why: Refusal::QueueFull });
            return;
        }
        let keep = self.keep(&job);
        let mut text = Text::new(&job);
        if let Err(why) = self.truncate(&mut job, &mut text, keep) {
            self.core.events.push(Event::Rejected { id, why });
            return;
        }
        let mut entry = Entry::new(job);
        entry.keep = self.core.policy.head_kept(keep);
        if !self.core.policy.reduces() {
            entry.limit_output(self.core.limits.num_ctx);
        }
        let asked = entry.job.output_tokens;
        entry.ends_later = !entry.limited && entry.job.num_predict.is_some_and(|most| most < asked);
        self.waiting.push_back((entry, text));
        self.fill_slots();
    }

    fn next(&mut self) -> Option<&Step> {
        let is_idle = self.is_idle() || self.is_dead;
        self.core.begin(is_idle, 0);
        if is_idle {
            return None;
        }
        let left_out = self.place();
        self.decode_live.fill(0);
        if !self.core.step.reload {
            self.advance();
            self.next_seat = left_out.unwrap_or(self.next_seat);
        }
        self.core.book(self.slots.iter().filter_map(|slot| slot.entry.as_ref()));
        let kept = self.slots.iter().enumerate();
        let kept = kept.filter(|(_, slot)| slot.entry.is_none() && slot.text.is_some());
        self.core.book_kept(kept.map(|(id, _)| SeqId(id as u32)));
        let decode_live = std::mem::take(&mut self.decode_live);
        self.core.close(&decode_live);
        self.decode_live = decode_live;
        Some(&self.core.step)
    }

    fn step(&self) -> &Step {
        &self.core.step
    }

    fn done(&mut self) {
        for seat in 0..self.seats.len() {
            let Some(id) = self.seats[seat] else { continue };
            if let Some(entry) = self.slots[id].entry.as_mut().filter(|entry| entry.samples)
                && self.core.sample(entry)
            {
                self.end(id);
            }
        }
        self.fill_slots();
    }

    fn attended(&mut self, attention: &Attention) {
        self.core.policy.attended(attention);
    }

    fn kill(&mut self) -> bool {
        self.die();
        true
    }

    fn take_events(&mut self, into: &mut Vec<Event>) {
        into.append(&mut self.core.events);
    }

    fn take_log(&mut self, into: &mut Vec<LogLine>) {
        // The llama runner compacts without a word.
        let is_silent =
            |line: &LogLine| self.knobs.kind == RunnerKind::Llama && matches!(line, LogLine::Defragmenting);
        let lines = self.core.log.iter_mut().flat_map(|log| log.drain(..));
        into.extend(lines.filter(|line| !is_silent(line)));
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
        let slots = self.slots.iter().enumerate();
        slots
            .filter_map(|(id, slot)| slot.text.as_ref().map(|text| (SeqId(id as u32), text.request)))
            .collect()
    }

    fn sequences_len(&self) -> usize {
        self.slots.iter().filter(|slot| slot.text.is_some()).count()
    }

    fn waiting(&self) -> usize {
        self.waiting.len()
    }

    fn event_hash(&self) -> u64 {
        self.core.hash()
    }
}

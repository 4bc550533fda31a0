//! What both families share: the entry of a request, the books of a step, the event hash.

use crate::content::mix;
use crate::plan::Effect;
use crate::policy::{Append, ClassId, Full, Policy, Reach, Reading, Reduction, Run, SeqId};
use crate::scheduler::prompt::move_down;
use crate::scheduler::{Chunk, Event, Job, Limits, LogLine, Placement, Step};

/// A request that waits or runs.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub job: Job,
    pub seq: SeqId,
    /// Tokens in the cache once the current step is done.
    pub len: u32,
    /// How many of them the policy has been told of.
    pub placed: u32,
    /// Up to this length the policy need not be told.
    pub covered: u32,
    /// Tokens to have in the cache before a token is sampled; prefill until then.
    pub target: u32,
    /// Output tokens still to come.
    pub remaining: u32,
    /// Output tokens produced.
    pub produced: u32,
    /// Whether it samples in the current step.
    pub samples: bool,
    /// Tokens it had when it was preempted; 0 if nothing is to be computed again.
    pub lost: u32,
    /// Whether its tokens lie in host memory.
    pub swapped: bool,
    /// Leading ones of them that its policy keeps there.
    pub parked: u32,
    /// Bytes that they have there, where these are counted.
    pub host_bytes: u64,
    /// Whether it was preempted and has not sampled a token since.
    pub is_back: bool,
    /// Whether it has been admitted before.
    pub admitted: bool,
    /// Whether the first token has been told.
    pub started: bool,
    /// Whether its output was cut to what the context can hold.
    pub limited: bool,
    /// Whether tokens were removed, so that its content no longer tells its tokens.
    pub shifted: bool,
    /// Leading tokens that stay when its context is shifted.
    pub keep: u32,
    /// Whether its end is noticed only when its next token would be computed.
    pub ends_later: bool,
}

impl Entry {
    pub fn new(job: Job) -> Self {
        let target = job.prompt_tokens;
        let remaining = job.output_tokens.min(job.num_predict.unwrap_or(u32::MAX)).max(1);
        Entry {
            job,
            seq: SeqId(0),
            len: 0,
            placed: 0,
            covered: 0,
            target,
            remaining,
            produced: 0,
            samples: false,
            lost: 0,
            swapped: false,
            parked: 0,
            host_bytes: 0,
            is_back: false,
            admitted: false,
            started: false,
            limited: false,
            shifted: false,
            keep: 0,
            ends_later: false,
        }
    }

    /// Its cells are lost: all tokens have to be computed again, and the one sampled last, which has no cell yet,
    /// with the others.
    pub fn lose(&mut self) {
        self.lost = self.lost.max(self.len);
        self.target = self.target.max(self.len + 1);
        self.len = 0;
    }

    /// Tokens it has when it samples next. What went to host memory lacks the token sampled last, which has no
    /// cell yet.
    pub fn tokens_next(&self) -> u32 {
        if self.swapped { self.len + 1 } else { self.target.max(self.len) }
    }

    pub fn is_prefilling(&self) -> bool {
        self.len < self.target
    }

    /// Limits the answer to what a context that is never reduced can hold: the last token needs
    /// no cell.
    pub fn limit_output(&mut self, num_ctx: u32) {
        let most = num_ctx.saturating_sub(self.job.prompt_tokens) + 1;
        if self.remaining > most {
            self.remaining = most;
            self.limited = true;
        }
    }
}

pub(super) struct Core {
    pub policy: Box<dyn Policy>,
    pub limits: Limits,
    pub step: Step,
    pub events: Vec<Event>,
    /// Where the log goes, if one is kept.
    pub log: Option<Vec<LogLine>>,
    reaches: Vec<Reach>,
    reading: Reading,
    steps: u64,
    hash: u64,
    runs: Vec<Run>,
}

impl Core {
    pub fn new(policy: Box<dyn Policy>, mut limits: Limits, writes: bool) -> Self {
        // Who wants to know of every write wants to know it in time.
        limits.fast_forward &= !writes;
        let reaches: Vec<Reach> = policy.geometry().classes.iter().map(|class| class.reach).collect();
        let reading = policy.reading();
        let mut step = Step::new(reaches.len(), writes);
        if policy.stores_coarser() {
            step.decode_spared.resize(reaches.len(), 0);
            step.context_spared.resize(reaches.len(), 0);
        }
        Core {
            policy,
            limits,
            step,
            events: Vec::new(),
            log: None,
            reaches,
            reading,
            steps: 0,
            hash: 0,
            runs: Vec::new(),
        }
    }

    /// Begins a step: nothing in the batch, compaction ahead of demand. `pipeline` steps before it may still
    /// be executed when its plan is.
    pub fn begin(&mut self, idle: bool, pipeline: u32) {
        self.step.clear();
        self.steps += 1;
        if pipeline > 0 {
            self.step.drained = !self.policy.defer(self.steps);
            self.policy.retire(self.steps.saturating_sub(1 + u64::from(pipeline)));
        }
        if !idle {
            let budget = crate::policy::Budget { cells: self.limits.maintain_cells };
            self.policy.maintain(budget, &mut self.step.plan);
        }
    }

    pub fn hash(&self) -> u64 {
        self.hash
    }

    /// Waits until all earlier steps have ended, where that frees cells of the class, or of any if none is
    /// named; whether it does.
    pub fn drain(&mut self, class: Option<ClassId>) -> bool {
        let mut classes = self.policy.geometry().class_ids();
        let is_worth_it =
            classes.any(|id| class.is_none_or(|class| class == id) && self.policy.waiting(id) > 0);
        if is_worth_it {
            self.policy.retire(self.steps);
            self.step.drained = true;
        }
        is_worth_it
    }

    /// Cells of each class that [`Core::swap`] would describe.
    pub fn cells_of(&mut self, seq: SeqId, from_token: u32) -> Vec<u64> {
        let mut runs = std::mem::take(&mut self.runs);
        let classes = self.policy.geometry().class_ids();
        let cells = classes.map(|class| {
            let tokens = self.policy.layout(class, seq, &mut runs);
            u64::from(tokens.end - tokens.start.max(from_token).min(tokens.end))
        });
        let cells = cells.collect();
        self.runs = runs;
        cells
    }

    /// Places a batch; the entries are told by [`Core::placed`].
    pub fn place(&mut self, batch: &[Append]) -> Result<(), Full> {
        if batch.is_empty() {
            return Ok(());
        }
        let passes = self.step.plan.defrag_passes();
        let placed = self.policy.place(batch, &mut self.step.plan);
        for _ in passes..self.step.plan.defrag_passes() {
            self.note(LogLine::Defragmenting);
        }
        placed?;
        if self.step.plan.wants_writes() {
            self.note_placement(batch);
        }
        if self.reading == Reading::BatchRange {
            self.note_walks();
        }
        let reads_foreign = |append: &&Append| self.policy.foreign(append.seq) > 0;
        self.step.foreign += batch.iter().filter(reads_foreign).count() as u32;
        Ok(())
    }

    /// What the step places in several calls is one batch: attention walks around all of it.
    fn note_walks(&mut self) {
        let classes = self.policy.geometry().class_ids();
        self.step.walks.resize(self.reaches.len(), Run { start: 0, len: 0 });
        for (class, all) in classes.zip(&mut self.step.walks) {
            let walk = self.policy.walk(class);
            if all.len > 0 && walk.len > 0 {
                let start = all.start.min(walk.start);
                *all = Run { start, len: all.cells().end.max(walk.cells().end) - start };
            } else if walk.len > 0 {
                *all = walk;
            }
        }
    }

    fn note_placement(&mut self, batch: &[Append]) {
        let mut placement = Placement { effects: self.step.plan.effects().len(), ..Placement::default() };
        for append in batch {
            placement.sequences.push(append.seq);
            for class in self.policy.geometry().class_ids() {
                let mut runs = Vec::new();
                let first = self.policy.layout(class, append.seq, &mut runs).start;
                placement.layouts.push((first, runs));
            }
        }
        self.step.placements.push(placement);
    }

    /// Writes a line to the log.
    pub fn note(&mut self, line: LogLine) {
        if let Some(log) = &mut self.log {
            log.push(line);
        }
    }

    /// Updates an entry after its append was placed.
    pub fn placed(&self, entry: &mut Entry, tokens: u32) {
        entry.placed += tokens;
        entry.len = entry.len.max(entry.placed);
        let room = if self.limits.fast_forward { self.policy.room(entry.seq) } else { 0 };
        entry.covered = entry.placed.saturating_add(room);
    }

    /// Tells the policy the tokens of an entry that it was spared so far.
    pub fn settle(&mut self, entry: &mut Entry) {
        if entry.len > entry.placed {
            let tokens = entry.len - entry.placed;
            let append = Append { seq: entry.seq, tokens, restored: false };
            self.policy
                .place(&[append], &mut self.step.plan)
                .expect("the tokens are within the promised room");
            self.placed(entry, tokens);
        }
    }

    /// Books the batch of the step; call with every entry that holds cells.
    pub fn book<'a>(&mut self, entries: impl Iterator<Item = &'a Entry>) {
        self.step.live.fill(0);
        for entry in entries {
            for (live, reach) in self.step.live.iter_mut().zip(&self.reaches) {
                *live += u64::from(reach.clip(entry.len));
            }
        }
    }

    /// Books what idle slots keep.
    pub fn book_kept(&mut self, kept: impl Iterator<Item = SeqId>) {
        self.step.kept.fill(0);
        for seq in kept {
            let len = self.policy.len(seq);
            for (kept, reach) in self.step.kept.iter_mut().zip(&self.reaches) {
                *kept += u64::from(reach.clip(len));
            }
        }
    }

    /// Finishes the step's books: what attention reads, and the hash of the plan's copies.
    pub fn close(&mut self, decode_live: &[u64]) {
        self.step.decode_reads.copy_from_slice(decode_live);
        if self.reading == Reading::Range {
            let walks = self.policy.geometry().class_ids().map(|class| self.policy.walk(class));
            self.step.walks.clear();
            self.step.walks.extend(walks);
        }
        for effect in self.step.plan.effects() {
            let words = match *effect {
                Effect::Write { .. } => continue,
                Effect::Copy { class, from, to, len, .. } => {
                    [u64::from(class.0), pair(from, to), u64::from(len)]
                }
                Effect::Rotate { class, run, delta } => {
                    [0x100 + u64::from(class.0), pair(run.start, run.len), delta as u64]
                }
                Effect::Requantise { class, run, to } => {
                    [0x400 + u64::from(class.0), pair(run.start, run.len), to as u64]
                }
                Effect::Map { class, seq, first, run } => {
                    [0x500 + u64::from(class.0), pair(run.start, run.len), pair(seq.0, first)]
                }
                Effect::Unmap { class, seq, first, run } => {
                    [0x600 + u64::from(class.0), pair(run.start, run.len), pair(seq.0, first)]
                }
                Effect::SwapOut { class, seq, run, .. } => {
                    [0x200 + u64::from(class.0), pair(run.start, run.len), seq.0.into()]
                }
                Effect::SwapIn { class, seq, run, .. } => {
                    [0x300 + u64::from(class.0), pair(run.start, run.len), seq.0.into()]
                }
                Effect::Offload { class, run, slot } => {
                    [0x700 + u64::from(class.0), pair(run.start, run.len), slot.into()]
                }
                Effect::Fetch { class, slot, run } => {
                    [0x800 + u64::from(class.0), pair(run.start, run.len), slot.into()]
                }
            };
            self.hash = words.into_iter().fold(self.hash, mix);
        }
    }

    /// Adds a decoding sequence of `len` tokens to the step, and what it reads to `decode_live`. What its cells are
    /// stored in counts as it is now: a later call of the step rounds them once they have been read.
    pub fn decode(&mut self, seq: SeqId, len: u32, decode_live: &mut [u64]) {
        self.step.decoding.push(seq);
        for (live, reach) in decode_live.iter_mut().zip(&self.reaches) {
            *live += u64::from(reach.clip(len));
        }
        for ((class, reach), spared) in
            (0..).map(ClassId).zip(&self.reaches).zip(&mut self.step.decode_spared)
        {
            *spared += self.policy.spared(class, seq, len - reach.clip(len));
        }
    }

    pub fn classes(&self) -> usize {
        self.reaches.len()
    }

    /// Notes in the hash where a settled sequence's readable tokens lie.
    pub fn note_layout(&mut self, entry: &Entry) {
        self.hash = mix(mix(self.hash, self.steps), mix(entry.job.id, u64::from(entry.placed)));
        let mut runs = std::mem::take(&mut self.runs);
        for (class, reach) in self.reaches.iter().enumerate() {
            let tokens = self.policy.layout(ClassId(class as u8), entry.seq, &mut runs);
            let mut skip = reach.first_needed(tokens.end).saturating_sub(tokens.start);
            for run in &runs {
                let skipped = skip.min(run.len);
                skip -= skipped;
                if skipped < run.len {
                    self.hash = mix(self.hash, pair(run.start + skipped, run.len - skipped));
                }
            }
        }
        self.runs = runs;
    }

    /// Describes the transfer of all cells of a sequence to or from host memory.
    pub fn swap(&mut self, seq: SeqId, from_token: u32, effect: impl Fn(ClassId, u32, Run) -> Effect) {
        let mut runs = std::mem::take(&mut self.runs);
        for class in 0..self.reaches.len() {
            let class = ClassId(class as u8);
            let mut first = self.policy.layout(class, seq, &mut runs).start;
            for &run in &runs {
                let skipped = from_token.saturating_sub(first).min(run.len);
                if skipped < run.len {
                    let rest = Run { start: run.start + skipped, len: run.len - skipped };
                    self.step.plan.push(effect(class, first + skipped, rest));
                }
                first += run.len;
            }
        }
        self.runs = runs;
    }

    /// Puts a piece of a prompt into the step.
    pub fn push_chunk(&mut self, entry: &mut Entry, tokens: u32) {
        let context = entry.len - tokens;
        entry.samples = !entry.is_prefilling();
        self.step.prefills.push(Chunk { seq: entry.seq, tokens, context, samples: entry.samples });
        let spared = &mut self.step.context_spared;
        for ((class, reach), spared) in (0..).map(ClassId).zip(&self.reaches).zip(spared) {
            *spared += self.policy.spared(class, entry.seq, context - reach.clip(context));
        }
    }

    /// One more token for an entry that samples; whether it ended the answer.
    pub fn sample(&mut self, entry: &mut Entry) -> bool {
        entry.samples = false;
        entry.is_back = false;
        entry.produced += 1;
        entry.remaining -= 1;
        if !entry.started {
            entry.started = true;
            self.events.push(Event::FirstToken { id: entry.job.id });
        }
        if entry.remaining > 0 || entry.ends_later {
            return false;
        }
        let (id, output_tokens, at_limit) = (entry.job.id, entry.produced, entry.limited);
        self.events.push(Event::Finished { id, output_tokens, at_limit });
        true
    }

    /// Tokens that an entry may have before it is reduced.
    pub fn limit(&self, entry: &Entry) -> u32 {
        let num_ctx = self.limits.num_ctx;
        if entry.is_prefilling() { num_ctx } else { num_ctx.min(self.policy.limit(entry.seq)) }
    }

    /// Tells which tokens a policy has picked: the last ones first, so that each piece is where it says.
    fn note_picked(&mut self, entry: &mut Entry) {
        entry.shifted = true;
        for (left, piece) in self.policy.picked(entry.seq).iter().enumerate().rev() {
            move_down(&mut entry.job.unbreakable, piece);
            let (at, tokens) = (piece.start, piece.end - piece.start);
            self.events.push(Event::Shifted { id: entry.job.id, at, tokens, left: left as u32 });
        }
    }

    /// At its limit: lets the policy drop tokens. Tells what it did; after `Stop` the
    /// sequence cannot go on.
    pub fn reduce(&mut self, entry: &mut Entry) -> Reduction {
        self.settle(entry);
        let (slot, input) = (entry.seq.0, entry.len);
        let reduction = self.policy.reduce(entry.seq, entry.keep, &mut self.step.plan);
        let dropped = match reduction {
            Reduction::Stop => return reduction,
            Reduction::Dropped(dropped) | Reduction::Again { dropped, .. } => dropped,
            Reduction::Picked(dropped) => {
                self.note_picked(entry);
                entry.len -= dropped;
                entry.target = entry.target.saturating_sub(dropped);
                entry.placed = entry.len;
                entry.covered = entry.len;
                return reduction;
            }
        };
        // Who drops one token where half of the rest would be more writes no line for each: the first must do.
        let half = self.limits.num_ctx.saturating_sub(entry.keep) / 2;
        let is_told = dropped != 1 || half <= 1 || !entry.shifted;
        if dropped > 0 {
            let (limit, keep) = (self.limits.num_ctx, entry.keep);
            if is_told {
                self.note(LogLine::ShiftingContext { slot, limit, input, keep, discard: dropped });
            }
            move_down(&mut entry.job.unbreakable, &(keep..keep + dropped));
            entry.shifted = true;
            self.events.push(Event::Shifted { id: entry.job.id, at: keep, tokens: dropped, left: 0 });
        }
        if let Reduction::Again { why, .. } = reduction {
            // The token sampled last comes after what is computed again.
            entry.target = entry.target.max(entry.len + 1) - dropped;
            entry.len = 0;
            if is_told {
                self.note(LogLine::Reprocessing { slot, error: why });
            }
        } else {
            entry.len -= dropped;
            entry.target = entry.target.saturating_sub(dropped);
        }
        entry.placed = entry.len;
        entry.covered = entry.placed;
        reduction
    }
}

fn pair(a: u32, b: u32) -> u64 {
    u64::from(a) << 32 | u64::from(b)
}

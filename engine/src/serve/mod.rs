//! The engine's side of the loop: executes the steps of a scheduler on a backend.
//!
//! Whoever runs the loop tells [`Serving`] of submitted requests and of events, as they come, and has
//! it execute each step. It keeps every request's text, so that it knows which token goes where: a cut
//! or a shift takes tokens out of the text, and a request that lost its cells has it computed again.

mod dialogue;
mod ledger;

use std::collections::BTreeMap;
use std::time::Duration;

use policies::scheduler::{Event, Placement, Scheduler, Step};
use policies::{Attention, ClassId, Effect, Geometry, Plan, Policy, Run, SeqId, make_policy};

use crate::backend::{Backend, Batch, Output, Span, View, Wanted};
use crate::ballot::Ballot;
use crate::cache::{CacheShape, KvType};
use crate::clock::Clock;
use crate::config::Config;
use crate::error::EngineError;
use dialogue::mix;
pub use dialogue::{Dialogue, Script, Source, job};
use ledger::Ledger;

/// A request under way.
struct Text {
    /// Prompt and answer as far as it goes, less what was cut out.
    tokens: Vec<u32>,
    /// Per token, a name for all tokens up to it.
    names: Vec<u64>,
    /// The answer that is fed, where it is known.
    forced: Option<Vec<u32>>,
    answer: Answer,
}

impl Text {
    fn push(&mut self, token: u32) {
        let before = self.names.last().copied().unwrap_or(1);
        self.tokens.push(token);
        self.names.push(mix(before, u64::from(token)) | 1);
    }

    fn cut(&mut self, at: u32, tokens: u32) {
        let end = (at as usize + tokens as usize).min(self.tokens.len());
        let rest = self.tokens.split_off(end);
        self.tokens.truncate(at as usize);
        self.names.truncate(at as usize);
        rest.into_iter().for_each(|token| self.push(token));
    }
}

/// What a request was answered, and how well it can be trusted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// The most likely token after each step that sampled.
    pub sampled: Vec<u32>,
    /// A hash of the logits of each; of the token alone where no logits were asked for.
    pub hashes: Vec<u64>,
    /// Prompt tokens that were cut out before anything was computed.
    pub truncated: u32,
    /// Tokens that context shifts dropped.
    pub shifted: u32,
    /// Steps in which it read a cell whose K and V were not computed from its own leading tokens:
    /// after its context was shifted, after a copy of the wrong cells, or found in the cache by
    /// mistake.
    pub strange_steps: u32,
    /// How it ended; none if it did not.
    pub end: Option<End>,
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It was answered.
    Finished,
    /// It was lost: a crash, or no room.
    Lost,
    /// It was refused.
    Refused,
}

/// How long a step took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timing {
    /// Copies, rotations and transfers.
    pub apply: Duration,
    /// The model.
    pub compute: Duration,
}

/// Executes steps.
pub struct Serving<'a> {
    backend: &'a mut dyn Backend,
    dialogue: &'a Dialogue,
    texts: BTreeMap<u64, Text>,
    ended: BTreeMap<u64, Answer>,
    /// Who had which sequence in the step before.
    before: BTreeMap<SeqId, u64>,
    ledger: Ledger,
    batch: Batch,
    /// Whose the spans of the batch are.
    owners: Vec<u64>,
    output: Output,
    /// What tokens looked at since it was last taken.
    attention: Vec<Attention>,
    crashes: u64,
    clock: Clock,
}

impl<'a> Serving<'a> {
    /// A server with an empty cache. `wanted` says whether answers carry hashes of all logits or of the
    /// most likely token only.
    pub fn new(backend: &'a mut dyn Backend, dialogue: &'a Dialogue, wanted: Wanted) -> Self {
        Serving {
            backend,
            dialogue,
            texts: BTreeMap::new(),
            ended: BTreeMap::new(),
            before: BTreeMap::new(),
            ledger: Ledger::default(),
            batch: Batch { wanted, ..Batch::default() },
            owners: Vec::new(),
            output: Output::default(),
            attention: Vec::new(),
            crashes: 0,
            clock: Clock::Wall,
        }
    }

    /// The same, with steps timed by this clock.
    #[must_use]
    pub fn timed_by(self, clock: Clock) -> Self {
        Serving { clock, ..self }
    }

    /// A request is about to be submitted.
    ///
    /// # Errors
    /// [`EngineError::Batch`] if the dialogue says nothing for it.
    pub fn submitted(&mut self, id: u64) -> Result<(), EngineError> {
        let script = self.dialogue.script(id);
        let script = script.ok_or_else(|| EngineError::Batch(format!("request {id} has no text")))?;
        let mut text = Text {
            tokens: Vec::new(),
            names: Vec::new(),
            forced: script.answer.clone(),
            answer: Answer::default(),
        };
        script.prompt.iter().for_each(|&token| text.push(token));
        self.texts.insert(id, text);
        Ok(())
    }

    /// Something has happened to a request: what forming a step told before the step is executed, what
    /// ending it told after it.
    pub fn happened(&mut self, event: &Event) {
        match *event {
            Event::Truncated { id, at, tokens } | Event::Shifted { id, at, tokens, .. } => {
                let Some(text) = self.texts.get_mut(&id) else { return };
                text.cut(at, tokens);
                if matches!(event, Event::Truncated { .. }) {
                    text.answer.truncated += tokens;
                } else {
                    text.answer.shifted += tokens;
                }
            }
            Event::Finished { id, .. } => self.end(id, End::Finished),
            Event::Failed { id, .. } => self.end(id, End::Lost),
            Event::Rejected { id, .. } => self.end(id, End::Refused),
            Event::Crashed => {
                self.crashes += 1;
                self.ledger.restart();
                self.backend.restart();
            }
            Event::Admitted { .. }
            | Event::Preempted { .. }
            | Event::Recomputed { .. }
            | Event::FirstToken { .. } => {}
        }
    }

    fn end(&mut self, id: u64, end: End) {
        if let Some(text) = self.texts.remove(&id) {
            self.ended.insert(id, Answer { end: Some(end), ..text.answer });
        }
    }

    /// Executes the scheduler's current step and takes what was sampled.
    ///
    /// What was placed in several calls is computed in one batch, unless a later call gives away or
    /// moves cells that an earlier one's tokens read: then the earlier ones are computed first.
    ///
    /// # Errors
    /// [`EngineError::Batch`] for a step that speaks of tokens or cells that do not exist, and whatever
    /// the backend says.
    pub fn run(&mut self, scheduler: &dyn Scheduler) -> Result<Timing, EngineError> {
        let (step, policy) = (scheduler.step(), scheduler.policy());
        let now: BTreeMap<SeqId, u64> = scheduler.sequences().into_iter().collect();
        let mut timing = Timing::default();
        let effects = step.plan.effects();
        let mut done = 0;
        self.clear_batch();
        for placement in &step.placements {
            let next = effects.get(done..placement.effects).unwrap_or_default();
            if self.would_disturb(next) {
                timing.compute += self.compute(policy, &step.walks)?;
            }
            timing.apply += self.apply(next, &now)?;
            done = placement.effects;
            self.add_spans(step, placement, policy, &now)?;
        }
        let rest = effects.get(done..).unwrap_or_default();
        if self.would_disturb(rest) {
            timing.compute += self.compute(policy, &step.walks)?;
        }
        timing.apply += self.apply(rest, &now)?;
        timing.compute += self.compute(policy, &step.walks)?;
        self.before = now;
        Ok(timing)
    }

    fn clear_batch(&mut self) {
        self.batch.tokens.clear();
        self.batch.spans.clear();
        self.owners.clear();
    }

    /// Whether effects write to, or move, a cell that the batch reads or writes.
    fn would_disturb(&self, effects: &[Effect]) -> bool {
        let touches = |class: ClassId, start: u32, len: u32| {
            let views = self.batch.spans.iter().filter_map(|span| span.views.get(class.index()));
            views
                .flat_map(|view| &view.runs)
                .any(|run| run.start < start + len && start < run.start + run.len)
        };
        !self.batch.spans.is_empty()
            && effects.iter().any(|effect| match *effect {
                Effect::Write { class, run, .. }
                | Effect::Rotate { class, run, .. }
                | Effect::Requantise { class, run, .. }
                | Effect::SwapIn { class, run, .. }
                | Effect::Fetch { class, run, .. } => touches(class, run.start, run.len),
                Effect::Copy { class, from, to, len, .. } => {
                    touches(class, from, len) || touches(class, to, len)
                }
                Effect::SwapOut { .. }
                | Effect::Offload { .. }
                | Effect::Map { .. }
                | Effect::Unmap { .. } => false,
            })
    }

    /// Executes copies, rotations and transfers.
    fn apply(&mut self, effects: &[Effect], now: &BTreeMap<SeqId, u64>) -> Result<Duration, EngineError> {
        let mut took = Duration::ZERO;
        for (plan, is_outward) in pieces(effects) {
            let owners = if is_outward { &self.before } else { now };
            let request_of = |seq: SeqId| owners.get(&seq).copied().unwrap_or(u64::MAX);
            let started = self.clock.start();
            self.backend.apply(&plan, &request_of)?;
            took += started.elapsed();
            self.ledger.apply(&plan, &request_of);
        }
        Ok(took)
    }

    /// Adds the tokens of a placement to the batch. What came back from host memory has none.
    fn add_spans(
        &mut self,
        step: &Step,
        placement: &Placement,
        policy: &dyn Policy,
        now: &BTreeMap<SeqId, u64>,
    ) -> Result<(), EngineError> {
        let classes = policy.geometry().classes.len();
        for (&seq, layouts) in placement.sequences.iter().zip(placement.layouts.chunks_exact(classes)) {
            let chunk = step.prefills.iter().find(|chunk| chunk.seq == seq);
            let (first, tokens, samples) = match chunk {
                Some(chunk) => (chunk.context, chunk.tokens, chunk.samples),
                None if step.decoding.contains(&seq) => (policy.len(seq).saturating_sub(1), 1, true),
                None => continue,
            };
            let views = layouts.iter().map(|(first, runs)| View { first: *first, runs: runs.clone() });
            let offset = policy.offset(seq);
            let ballot = Ballot::wanted(policy, seq, first..first + tokens);
            let (samples, views) = (usize::from(samples), views.collect());
            let span = Span { rows: 0..0, first, offset, samples, views, ballot };
            self.add_span(span, tokens, seq, now.get(&seq).copied())?;
        }
        Ok(())
    }

    fn add_span(
        &mut self,
        mut span: Span,
        tokens: u32,
        seq: SeqId,
        owner: Option<u64>,
    ) -> Result<(), EngineError> {
        let text = owner.and_then(|id| self.texts.get(&id));
        let (Some(owner), Some(text)) = (owner, text) else {
            return Err(EngineError::Batch(format!("sequence {} has no request under way", seq.0)));
        };
        let range = span.first as usize..span.first as usize + tokens as usize;
        let Some(fed) = text.tokens.get(range.clone()) else {
            let len = text.tokens.len();
            return Err(EngineError::Batch(format!("request {owner}: tokens {range:?} of {len}")));
        };
        for (class, view) in span.views.iter().enumerate() {
            let cells = view.runs.iter().map(|run| u64::from(run.len)).sum::<u64>();
            if view.first > span.first || u64::from(view.first) + cells < range.end as u64 {
                let start = view.first;
                return Err(EngineError::Batch(format!(
                    "class {class}: sequence {} has {cells} cells from token {start}, not for tokens {range:?}",
                    seq.0
                )));
            }
        }
        let start = self.batch.tokens.len();
        self.batch.tokens.extend_from_slice(fed);
        span.rows = start..self.batch.tokens.len();
        self.batch.spans.push(span);
        self.owners.push(owner);
        Ok(())
    }

    /// Computes the batch, takes what was sampled, and empties it.
    fn compute(&mut self, policy: &dyn Policy, walked: &[Run]) -> Result<Duration, EngineError> {
        if self.batch.spans.is_empty() {
            return Ok(Duration::ZERO);
        }
        self.batch.walks = walks(policy, walked, &self.batch.spans);
        let started = self.clock.start();
        self.backend.step(&self.batch, &mut self.output)?;
        let took = started.elapsed();
        self.check_cells(policy);
        let ballots = self.batch.spans.iter().filter_map(|span| span.ballot.as_ref());
        self.attention.extend(ballots.map(Ballot::attention));
        self.take_samples()?;
        self.clear_batch();
        Ok(took)
    }

    /// Books what was written, and counts who has read what is not its own context: what these write is
    /// then strange to all who read it.
    fn check_cells(&mut self, policy: &dyn Policy) {
        let classes = &policy.geometry().classes;
        let new = |span: &Span, view: &View| {
            let first = span.first;
            let cells: Vec<(u32, u32)> =
                view.cells().zip(view.first..).filter(|cell| cell.1 >= first).collect();
            cells
        };
        for (span, owner) in self.batch.spans.iter().zip(&self.owners) {
            let names = &self.texts[owner].names;
            for (class, view) in span.views.iter().enumerate() {
                for (cell, token) in new(span, view) {
                    self.ledger.set(class, cell, names[token as usize]);
                }
            }
        }
        for (span, owner) in self.batch.spans.iter().zip(&self.owners) {
            let text = self.texts.get_mut(owner).expect("the batch was formed from it");
            let end = span.first + span.rows.len() as u32;
            let strangers = span.views.iter().zip(classes).enumerate().map(|(class, (view, layers))| {
                let from = layers.reach.first_needed(span.first);
                self.ledger.strangers(class, view, from, end, &text.names)
            });
            if strangers.sum::<u32>() == 0 {
                continue;
            }
            text.answer.strange_steps += 1;
            for (class, view) in span.views.iter().enumerate() {
                for (cell, token) in new(span, view) {
                    self.ledger.set(class, cell, !text.names[token as usize]);
                }
            }
        }
    }

    /// Every sequence that samples has one more token.
    fn take_samples(&mut self) -> Result<(), EngineError> {
        let vocab = self.backend.config().vocab;
        let sampling = self.batch.spans.iter().zip(&self.owners).filter(|(span, _)| span.samples > 0);
        for (row, (_, owner)) in sampling.enumerate() {
            let text = self.texts.get_mut(owner).expect("the batch was formed from it");
            let missing = || EngineError::Batch(format!("the backend returned {row} rows"));
            let best = *self.output.argmax.get(row).ok_or_else(missing)?;
            let hash = match self.batch.wanted {
                Wanted::Argmax => u64::from(best),
                Wanted::Logits => {
                    let logits = self.output.logits.get(row * vocab..(row + 1) * vocab);
                    hash_of(logits.ok_or_else(missing)?)
                }
            };
            text.answer.sampled.push(best);
            text.answer.hashes.push(hash);
            let at = text.answer.sampled.len() - 1;
            let next = text.forced.as_ref().and_then(|answer| answer.get(at)).copied().unwrap_or(best);
            text.push(next);
        }
        Ok(())
    }

    /// What the tokens of the steps since the last call looked at, for [`Scheduler::attended`]. Nothing where
    /// the policy does not want to know.
    pub fn take_attention(&mut self) -> Vec<Attention> {
        std::mem::take(&mut self.attention)
    }

    /// Crashes so far.
    pub fn crashes(&self) -> u64 {
        self.crashes
    }

    /// What every request was answered, those included that have not ended.
    pub fn into_answers(mut self) -> BTreeMap<u64, Answer> {
        self.ended.extend(self.texts.into_iter().map(|(id, text)| (id, text.answer)));
        self.ended
    }
}

/// A hash of logits, bit for bit.
pub fn hash_of(logits: &[f32]) -> u64 {
    logits.iter().fold(0, |hash, logit| mix(hash, u64::from(logit.to_bits())))
}

/// Effects but writes, in pieces, each with whether what it takes to host memory belongs to whoever had the
/// sequence before the step: a sequence's number is another's once it was given back.
fn pieces(effects: &[Effect]) -> Vec<(Plan, bool)> {
    let mut pieces: Vec<(Plan, bool)> = Vec::new();
    for &effect in effects.iter().filter(|effect| !matches!(effect, Effect::Write { .. })) {
        let is_outward = match effect {
            Effect::SwapOut { .. } => Some(true),
            Effect::SwapIn { .. } => Some(false),
            _ => None,
        };
        match pieces.last_mut() {
            Some((piece, outward)) if is_outward.is_none_or(|wanted| wanted == *outward) => {
                piece.push(effect)
            }
            _ => {
                let mut piece = Plan::new();
                piece.push(effect);
                pieces.push((piece, is_outward.unwrap_or(false)));
            }
        }
    }
    pieces
}

/// Per class, the range that attention walks where the policy reads so: that of the step, and around
/// every cell that the batch reads.
fn walks(policy: &dyn Policy, of_step: &[Run], spans: &[Span]) -> Vec<Option<Run>> {
    let classes = policy.geometry().classes.len();
    if !policy.reading().walks() {
        return vec![None; classes];
    }
    let walk = |class: usize| {
        let walk = of_step.get(class).filter(|walk| walk.len > 0);
        let runs = spans.iter().flat_map(|span| &span.views[class].runs).chain(walk);
        let (start, end) =
            runs.fold((u32::MAX, 0), |(start, end), run| (start.min(run.start), end.max(run.cells().end)));
        (start < end).then(|| Run { start, len: end - start })
    };
    (0..classes).map(walk).collect()
}

/// The cells that a cache needs for a policy: those of its own geometry, which are more than it was told of
/// where its classes share memory; `unlimited` gives every sequence a stretch of addresses as long as the
/// longest context. A spec that is wrong needs what it was told of.
pub fn cells_for(policy: &str, geometry: &Geometry) -> Geometry {
    let mut geometry =
        make_policy(policy, geometry).map_or_else(|_| geometry.clone(), |made| made.geometry().clone());
    if policy.split([':', '+']).next() == Some("unlimited") {
        let cells = geometry.sequences_max.saturating_mul(geometry.context_max);
        geometry.classes.iter_mut().for_each(|class| class.cells = cells);
    }
    geometry
}

/// The cache that a policy needs: its [cells](cells_for), and K stored as it says.
///
/// # Errors
/// Those of [`CacheShape::new`].
pub fn shape_for(
    policy: &str,
    config: &Config,
    geometry: &Geometry,
    kv: KvType,
) -> Result<CacheShape, EngineError> {
    let shape = CacheShape::new(config, &cells_for(policy, geometry), kv)?;
    Ok(CacheShape { rotated: !policies::rotates_on_read(policy).unwrap_or(false), ..shape })
}

/// A name for everything a step asks for: its tokens, whose they are, where these sequences' cells lie,
/// and what is copied, rotated and transferred. Equal for two drivers whose batches and cells are equal.
pub fn fingerprint(scheduler: &dyn Scheduler) -> u64 {
    let (step, policy) = (scheduler.step(), scheduler.policy());
    let mut words = vec![step.decoding.len() as u64, step.prefills.len() as u64];
    let mut runs: Vec<Run> = Vec::new();
    let decoding = step.decoding.iter().map(|&seq| (seq, 1));
    for (seq, tokens) in decoding.chain(step.prefills.iter().map(|chunk| (chunk.seq, chunk.tokens))) {
        words.extend([u64::from(seq.0), u64::from(tokens), u64::from(policy.len(seq))]);
        for class in policy.geometry().class_ids() {
            words.push(u64::from(policy.layout(class, seq, &mut runs).start));
            words.extend(runs.iter().map(|&run| pair(run.start, run.len)));
        }
    }
    for effect in step.plan.effects() {
        match *effect {
            Effect::Write { .. } => {}
            Effect::Copy { class, from, to, len, .. } => {
                words.extend([1, u64::from(class.0), pair(from, to), u64::from(len)]);
            }
            Effect::Rotate { class, run, delta } => {
                words.extend([2, u64::from(class.0), pair(run.start, run.len), delta as u64]);
            }
            Effect::SwapOut { class, seq, first, run } => {
                words.extend([3, u64::from(class.0), pair(seq.0, first), pair(run.start, run.len)]);
            }
            Effect::SwapIn { class, seq, first, run } => {
                words.extend([4, u64::from(class.0), pair(seq.0, first), pair(run.start, run.len)]);
            }
            Effect::Requantise { class, run, to } => {
                words.extend([5, u64::from(class.0), pair(run.start, run.len), to as u64]);
            }
            Effect::Map { class, seq, first, run } => {
                words.extend([6, u64::from(class.0), pair(seq.0, first), pair(run.start, run.len)]);
            }
            Effect::Unmap { class, seq, first, run } => {
                words.extend([7, u64::from(class.0), pair(seq.0, first), pair(run.start, run.len)]);
            }
            Effect::Offload { class, run, slot } => {
                words.extend([8, u64::from(class.0), pair(run.start, run.len), u64::from(slot)]);
            }
            Effect::Fetch { class, slot, run } => {
                words.extend([9, u64::from(class.0), pair(run.start, run.len), u64::from(slot)]);
            }
        }
    }
    words.into_iter().fold(0, mix)
}

fn pair(a: u32, b: u32) -> u64 {
    u64::from(a) << 32 | u64::from(b)
}

//! Schedulers: who is in the next batch, and what happens when there is no room. Clock-free.
//!
//! Two families drive the same [`Policy`]: [`runner`], with slots as Ollama has them, and
//! [`continuous`], with a token budget and preemption as vLLM has them. A driver submits jobs,
//! asks for the next [`Step`], executes it (or prices it), and reports it done.

pub mod continuous;
mod core;
mod down;
mod host;
mod log;
mod prompt;
mod reserve;
pub mod runner;
mod text;
pub mod victim;

pub use continuous::{Continuous, ContinuousKnobs, Preemption};
pub use down::Down;
pub use host::HostMemory;
pub use log::LogLine;
pub use reserve::Reserve;
pub use runner::{OnFull, Runner, RunnerKind, RunnerKnobs, SlotView};
pub use victim::{VICTIMS, VictimRule};

use crate::attention::Attention;
use crate::content::Content;
use crate::plan::Plan;
use crate::policy::{ClassId, Policy, Run, SeqId, Usage};

/// A request, as a scheduler sees it.
#[derive(Clone, Debug)]
pub struct Job {
    /// Number of the request; events name it.
    pub id: u64,
    /// Tokens of the prompt; at least 1.
    pub prompt_tokens: u32,
    /// Tokens to generate; at least 1. The token that ends an answer counts: it is sampled and,
    /// being the last, never computed.
    pub output_tokens: u32,
    /// What its tokens are, for sharing. Its chain may go on past the prompt (`chain_end`), and
    /// then tells the tokens of the answer.
    pub content: Content,
    /// Conversation of which it is a turn. Where the chain of a later turn covers an earlier one's
    /// prompt and answer, it begins with both.
    pub session: Option<u64>,
    /// Pieces of the prompt that must be computed in one batch, by rising offset.
    pub unbreakable: Vec<Unbreakable>,
    /// Leading tokens of the prompt that stay when its context is cut or shifted, where the request
    /// says so itself.
    pub num_keep: Option<Keep>,
    /// Most tokens to generate; a shorter `output_tokens` ends the answer by itself.
    pub num_predict: Option<u32>,
}

impl Job {
    /// A request of which nothing else is known.
    pub fn new(id: u64, prompt_tokens: u32, output_tokens: u32) -> Self {
        Job {
            id,
            prompt_tokens,
            output_tokens,
            content: Content::own(id),
            session: None,
            unbreakable: Vec::new(),
            num_keep: None,
            num_predict: None,
        }
    }

    /// Whether a later job is a turn whose prompt begins with this job's prompt and answer. Where it is,
    /// schedulers go on from what a slot holds, so a driver with real tokens has to make them so.
    pub fn is_continued_by(&self, next: &Job) -> bool {
        let total = u64::from(self.prompt_tokens) + u64::from(self.output_tokens);
        self.session.is_some()
            && self.session == next.session
            && text::continues(&self.content, total, &next.content, next.prompt_tokens)
    }
}

/// How much of a prompt's head stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// So many tokens.
    Tokens(u32),
    /// The whole prompt.
    Prompt,
}

impl Keep {
    /// Leading tokens that stay of a prompt in a context of `num_ctx`, which keeps room for one more.
    pub fn tokens(self, prompt_tokens: u32, num_ctx: u32) -> u32 {
        let tokens = match self {
            Keep::Tokens(tokens) => tokens,
            Keep::Prompt => prompt_tokens,
        };
        tokens.min(num_ctx.saturating_sub(1))
    }
}

/// A piece of a prompt that must be computed in one batch: an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unbreakable {
    /// Offset of its first token.
    pub at: u32,
    /// Tokens.
    pub tokens: u32,
}

/// What both families are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Longest context of a sequence, tokens.
    pub num_ctx: u32,
    /// Sequences served at once.
    pub num_parallel: u32,
    /// Tokens of a batch, over all sequences; at least `num_parallel`.
    pub num_batch: u32,
    /// Requests that may wait; more are rejected. None: any number.
    pub queue_max: Option<u32>,
    /// Most cells that compaction may copy between two steps.
    pub maintain_cells: u32,
    /// Hand tokens to the policy only when something can change (see [`Policy::room`]). Results
    /// are the same either way. Off where plans describe writes.
    pub fast_forward: bool,
}

/// A piece of a prompt in a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// Sequence.
    pub seq: SeqId,
    /// New tokens.
    pub tokens: u32,
    /// Tokens before them.
    pub context: u32,
    /// Whether it ends the prompt, so that a token is sampled.
    pub samples: bool,
}

/// One call of [`Policy::place`] within a step. A later call of the same step may give away cells that
/// this one's tokens still read: who computes has to do so before the later call's effects.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Placement {
    /// Effects of the plan up to the end of this call.
    pub effects: usize,
    /// The sequences, in order.
    pub sequences: Vec<SeqId>,
    /// Per sequence and class, where its tokens lie once this call is done: the first that has a cell,
    /// and the cells.
    pub layouts: Vec<(u32, Vec<Run>)>,
}

/// One step: the batch, and what the plan asks for before it can run.
#[derive(Clone, Debug)]
pub struct Step {
    /// Pieces of prompts.
    pub prefills: Vec<Chunk>,
    /// Sequences that decode one token each.
    pub decoding: Vec<SeqId>,
    /// Per class, cells that the attention of all decoding sequences reads: the sum over them of
    /// the context, the new token included, as far as the class reaches.
    pub decode_reads: Vec<u64>,
    /// Per class, what those reads spare, in 32nds of a cell ([`Policy::spared`]); empty unless the policy
    /// [stores some cells coarser](Policy::stores_coarser).
    pub decode_spared: Vec<u64>,
    /// The same of reading the tokens before the pieces of prompts.
    pub context_spared: Vec<u64>,
    /// Per class, the range that attention walks for the whole batch, for policies that read so
    /// ([`Reading::walks`](crate::Reading::walks)); empty for the others. No cells where nothing is
    /// computed.
    pub walks: Vec<Run>,
    /// Per class, tokens of all sequences that may still be read once the step is done.
    pub live: Vec<u64>,
    /// Per class, tokens that idle slots keep for a next request.
    pub kept: Vec<u64>,
    /// Physical effects, to be executed in order before or within the step.
    pub plan: Plan,
    /// How the batch was placed, call by call; only where plans describe writes.
    pub placements: Vec<Placement>,
    /// Sequences of the batch that read K and V of another sequence ([`Policy::foreign`]).
    pub foreign: u32,
    /// The server has crashed: everything in flight is lost, and the model has to be loaded again.
    pub reload: bool,
    /// Where steps overlap: all earlier steps have to end before the effects of this one begin, and these
    /// before those of the next.
    pub drained: bool,
}

impl Step {
    fn new(classes: usize, writes: bool) -> Self {
        Step {
            prefills: Vec::new(),
            decoding: Vec::new(),
            decode_reads: vec![0; classes],
            decode_spared: Vec::new(),
            context_spared: Vec::new(),
            walks: Vec::new(),
            live: vec![0; classes],
            kept: vec![0; classes],
            placements: Vec::new(),
            plan: if writes { Plan::new() } else { Plan::without_writes() },
            foreign: 0,
            reload: false,
            drained: false,
        }
    }

    fn clear(&mut self) {
        self.prefills.clear();
        self.decoding.clear();
        self.plan.clear();
        self.placements.clear();
        self.decode_spared.fill(0);
        self.context_spared.fill(0);
        self.walks.fill(Run { start: 0, len: 0 });
        self.foreign = 0;
        self.reload = false;
        self.drained = false;
    }

    /// Tokens computed.
    pub fn tokens(&self) -> u32 {
        self.decoding.len() as u32 + self.prefills.iter().map(|chunk| chunk.tokens).sum::<u32>()
    }

    /// Sequences in the batch.
    pub fn sequences(&self) -> u32 {
        (self.decoding.len() + self.prefills.len()) as u32
    }

    /// Sequences that sample a token.
    pub fn samples(&self) -> u32 {
        let ends = self.prefills.iter().filter(|chunk| chunk.samples).count();
        (self.decoding.len() + ends) as u32
    }
}

/// Why a job was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The queue was full.
    #[error("server busy, please try again.  maximum pending requests exceeded")]
    QueueFull,
    /// The prompt is longer than the context limit.
    #[error("the prompt is longer than the context")]
    LongerThanContext,
    /// The prompt would not fit into an empty cache.
    #[error("the prompt is longer than the cache")]
    LongerThanCache,
    /// The prompt is longer than the context, and an image that may not be cut begins in the head
    /// that stays.
    #[error("SameBatch may not be specified within numKeep (index: {at} numKeep: {keep} SameBatch: {})", tokens - 1)]
    ImageInHead {
        /// Offset of the image.
        at: u32,
        /// Leading tokens that stay.
        keep: u32,
        /// Tokens of the image.
        tokens: u32,
    },
    /// The prompt is longer than the context, and cutting it without cutting an image leaves no tail.
    #[error("entire prompt removed by truncation")]
    NothingLeft,
}

/// Something that happened to a request. Those told by [`Scheduler::next`] happened as the step
/// began, those told by [`Scheduler::done`] as it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// It was refused.
    Rejected {
        /// Request.
        id: u64,
        /// Reason.
        why: Refusal,
    },
    /// It got its first cells.
    Admitted {
        /// Request.
        id: u64,
        /// Leading tokens found in the cache.
        cached_tokens: u32,
    },
    /// Its prompt was cut to the context limit.
    Truncated {
        /// Request.
        id: u64,
        /// First token cut.
        at: u32,
        /// Tokens cut.
        tokens: u32,
    },
    /// Its context was shifted. Where tokens went here and there ([`Reduction::Picked`](crate::Reduction::Picked))
    /// each piece is told, the last of them first.
    Shifted {
        /// Request.
        id: u64,
        /// First token dropped.
        at: u32,
        /// Tokens dropped.
        tokens: u32,
        /// Pieces that went with it and are still to be told: 0 for the only one.
        left: u32,
    },
    /// It lost its cells and waits again.
    Preempted {
        /// Request.
        id: u64,
    },
    /// It is computed again after a preemption.
    Recomputed {
        /// Request.
        id: u64,
        /// Tokens that had been computed before.
        tokens: u32,
    },
    /// Its first output token is ready.
    FirstToken {
        /// Request.
        id: u64,
    },
    /// Its answer is complete.
    Finished {
        /// Request.
        id: u64,
        /// Output tokens.
        output_tokens: u32,
        /// Whether the answer ended early because the context was full.
        at_limit: bool,
    },
    /// It was lost.
    Failed {
        /// Request.
        id: u64,
        /// Output tokens produced until then.
        output_tokens: u32,
    },
    /// The server crashed; a `Failed` for everyone in flight comes with it.
    Crashed,
}

/// A scheduler.
///
/// Call [`submit`](Scheduler::submit) at any time between steps, then alternate
/// [`next`](Scheduler::next) and [`done`](Scheduler::done).
pub trait Scheduler: Send {
    /// Takes a request into the queue, or refuses it (an event says so).
    fn submit(&mut self, job: Job);

    /// Forms the next step. None if there is nothing to do until another job comes.
    fn next(&mut self) -> Option<&Step>;

    /// The step that [`next`](Scheduler::next) formed last.
    fn step(&self) -> &Step;

    /// The step has been executed: every sequence that samples has one more token.
    fn done(&mut self);

    /// Tells the policy what tokens of the step looked at, between the step's execution and
    /// [`done`](Scheduler::done), where it [needs to know](Policy::needs_scores).
    fn attended(&mut self, attention: &Attention) {
        let _ = attention;
    }

    /// The server is killed from outside, between two steps: everything in flight and all that
    /// idle slots keep is lost, as in a crash. False if this kind of server is never killed.
    fn kill(&mut self) -> bool {
        false
    }

    /// Moves what happened since the last call to the end of `into`, in order.
    fn take_events(&mut self, into: &mut Vec<Event>);

    /// Moves what the server it reproduces has written to its log since the last call to the end of
    /// `into`. Nothing where no log is kept.
    fn take_log(&mut self, into: &mut Vec<LogLine>) {
        let _ = into;
    }

    /// Hands the policy every token it has not been told of yet, so that its books can be read.
    fn settle(&mut self);

    /// The policy.
    fn policy(&self) -> &dyn Policy;

    /// How full a class is. Needs no [`settle`](Scheduler::settle).
    fn usage(&self, class: ClassId) -> Usage {
        self.policy().usage(class)
    }

    /// Sequences that hold cells, with the request each serves or served last.
    fn sequences(&self) -> Vec<(SeqId, u64)>;

    /// How many sequences hold cells.
    fn sequences_len(&self) -> usize;

    /// Requests that wait for cells.
    fn waiting(&self) -> usize;

    /// Hash of every allocation event so far: what each ended sequence held and when, and all
    /// copies, rotations and transfers. Equal for two drivers that made the same decisions.
    fn event_hash(&self) -> u64;
}

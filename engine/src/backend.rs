//! The seam between whoever drives the engine and whatever computes: one call per step.

use std::ops::Range;

use policies::{Cell, ClassId, Plan, Policy, Run, SeqId};

use crate::ballot::Ballot;
use crate::config::Config;
use crate::error::EngineError;

/// What a step gives back for the rows that sample.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Wanted {
    /// The most likely token.
    #[default]
    Argmax,
    /// All logits (and the most likely token).
    Logits,
}

/// The tokens of one step.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// Token ids, sequence after sequence.
    pub tokens: Vec<u32>,
    /// Whose they are.
    pub spans: Vec<Span>,
    /// What is wanted of the rows that sample.
    pub wanted: Wanted,
    /// Per class, the range of cells that attention walks with an owner test, for policies that
    /// read so ([`policies::Reading::walks`]); none for attention through tables.
    pub walks: Vec<Option<Run>>,
}

/// One sequence's part of a batch.
#[derive(Clone, Debug, Default)]
pub struct Span {
    /// Its rows among the tokens.
    pub rows: Range<usize>,
    /// Index of the first of them in the sequence.
    pub first: u32,
    /// What is added to an index to get a token's position: 0 but for policies that drop tokens
    /// without moving later ones.
    pub offset: u32,
    /// How many of the last rows sample: 0, 1, or all where every position is asked for.
    pub samples: usize,
    /// Per class, where its tokens lie.
    pub views: Vec<View>,
    /// What its tokens look at, where that is wanted.
    pub ballot: Option<Ballot>,
}

/// Where a sequence's tokens lie in one class, the new ones included.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// Index of the first token that has a cell.
    pub first: u32,
    /// Cells of the tokens from `first` on, in logical order.
    pub runs: Vec<Run>,
}

impl View {
    /// The cell of every token from `first` on.
    pub fn cells(&self) -> impl Iterator<Item = Cell> + '_ {
        self.runs.iter().flat_map(|run| run.cells())
    }

    /// Asks a policy where a sequence's tokens lie.
    pub fn read(&mut self, policy: &dyn Policy, class: ClassId, seq: SeqId) {
        self.first = policy.layout(class, seq, &mut self.runs).start;
    }
}

/// What a step gives back, in the order of the rows that sample.
#[derive(Clone, Debug, Default)]
pub struct Output {
    /// The most likely token of each row.
    pub argmax: Vec<u32>,
    /// Logits, `[rows, vocab]`; empty unless they are wanted.
    pub logits: Vec<f32>,
}

/// Weights and a cache on some device.
pub trait Backend: Send {
    /// The device, in words.
    fn device(&self) -> String;

    /// The model.
    fn config(&self) -> &Config;

    /// Executes everything of a plan but its writes, in order: the step that follows writes the new
    /// tokens' K and V to where its views say. `request_of` names the request that a sequence
    /// serves; what goes to host memory is kept by request.
    ///
    /// # Errors
    /// A plan that speaks of cells that do not exist, or a device that fails.
    fn apply(&mut self, plan: &Plan, request_of: &dyn Fn(SeqId) -> u64) -> Result<(), EngineError>;

    /// Computes a batch: writes K and V of its tokens and replaces `output`.
    ///
    /// # Errors
    /// A batch that does not agree with itself or the cache, or a device that fails.
    fn step(&mut self, batch: &Batch, output: &mut Output) -> Result<(), EngineError>;

    /// Forgets what lies in host memory: the server was restarted.
    fn restart(&mut self);
}

//! Single cells through a table, and three things to do at the context limit.
//!
//! `truncate` computes the head and the newer part of the rest again, as chat programs do that cut the
//! history, and as Ollama does where K cannot be rotated. `ring` lets the oldest token after the head go
//! for each new one and moves nothing: positions go on ([`Policy::offset`]), a plain ring buffer where no
//! head is kept. `sinks` (StreamingLLM) keeps a few first tokens and the latest, and counts positions
//! within the cache, so the tail slides down for each new token; where K is stored rotated all of it is
//! rotated again. Without a head the last two differ in no score, as only distances count.
//!
//! One token goes and one comes, so cells are taken one by one: nothing can fragment, and a cell that is
//! given back is the next one taken. Reach counts tokens, not positions: a window class reads the head
//! only where the window is about as long as the context.
//! Source: Xiao et al., StreamingLLM, ICLR 2024 (arXiv 2309.17453); the rotating caches of MLX LM (`ring`
//! with a head); Ollama 0.6.6, `ShiftCacheSlot` and its fallback.
//!
//! Cost: O(1) per token before the limit; at it O(head) per token for `ring`, O(sequence) per reduction
//! for the others, beside what is rotated or computed again.

use std::ops::Range;

use crate::delegate::leave_to;
use crate::paged::Paged;
use crate::plan::{Effect, Plan};
use crate::policy::{Geometry, Intent, NotShifted, Policy, Reduction, Run, SeqId, Unsupported};
use crate::shift::{Amount, DROP, Shift};
use crate::spec::{Args, Knob, Spec, SpecError};
use crate::unrotated;

const KEEP: Knob = Knob { name: "keep", about: "leading tokens that stay", default: "4" };

pub(crate) const TRUNCATE: Spec = Spec {
    name: "truncate",
    about: "single cells; at the context limit the head and half of the rest are computed again",
    source: "Ollama 0.6.6 reprocessing; chat programs that cut the history",
    cost: "O(sequence) per reduction, and the prefill of what stays",
    faults: "",
    knobs: &[KEEP, Knob { default: "half", ..DROP }],
    make: |args, geometry| make(args, geometry, Way::Again),
};

pub(crate) const RING: Spec = Spec {
    name: "ring",
    about: "single cells; at the context limit the oldest token goes for each new one, nothing moves",
    source: "ring buffer; the rotating cache of MLX LM",
    cost: "O(kept head) per token at the limit",
    faults: "",
    knobs: &[Knob { default: "0", ..KEEP }, unrotated::KNOB],
    make: |args, geometry| make(args, geometry, Way::Stay),
};

pub(crate) const SINKS: Spec = Spec {
    name: "sinks",
    about: "single cells; at the context limit the first tokens and the latest stay, positions slide down",
    source: "Xiao et al., StreamingLLM, ICLR 2024 (arXiv 2309.17453)",
    cost: "O(sequence) per token at the limit, or per `drop` tokens",
    faults: "",
    knobs: &[KEEP, Knob { default: "1", ..DROP }, unrotated::KNOB],
    make: |args, geometry| make(args, geometry, Way::Slide),
};

fn make(args: &Args, geometry: &Geometry, way: Way) -> Result<Box<dyn Policy>, SpecError> {
    let keep = args.number("keep", 0, 0..=u32::MAX, if way == Way::Stay { 0 } else { 4 })?;
    let drop = match way {
        Way::Again => Amount::read(args, 1, Amount::HALF)?,
        Way::Stay => Amount::Tokens(1),
        Way::Slide => Amount::read(args, 1, Amount::Tokens(1))?,
    };
    let cells = Paged::new(geometry, 1, None);
    let rotates = !args.has_extension("unrotated");
    Ok(Box::new(Limited { cells, rule: Shift { keep, drop }, way, rotates, offsets: Vec::new() }))
}

/// What becomes of the tokens after those that are dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// They are computed again, with the head.
    Again,
    /// They keep their positions.
    Stay,
    /// They slide down, and their K is rotated.
    Slide,
}

struct Limited {
    cells: Paged,
    rule: Shift,
    way: Way,
    /// Whether K of what slides down has to be rotated.
    rotates: bool,
    /// By sequence: positions that its tail is further up than its tokens' numbers say.
    offsets: Vec<u32>,
}

impl Limited {
    fn head(&self) -> u32 {
        self.rule.head(self.geometry().context_max)
    }

    /// Drops tokens and rotates later ones down to their new numbers.
    fn slide(&mut self, seq: SeqId, tokens: &Range<u32>, plan: &mut Plan) {
        self.cells.drop_tokens(seq, tokens);
        if !self.rotates {
            return;
        }
        let delta = -((tokens.end - tokens.start) as i32);
        let mut tail: Vec<Run> = Vec::new();
        for class in self.geometry().class_ids() {
            let first = self.cells.layout(class, seq, &mut tail).start;
            let mut skip = tokens.start.saturating_sub(first);
            for run in &mut tail {
                let skipped = skip.min(run.len);
                *run = Run { start: run.start + skipped, len: run.len - skipped };
                skip -= skipped;
            }
            for &run in tail.iter().filter(|run| run.len > 0) {
                plan.push(Effect::Rotate { class, run, delta });
            }
        }
    }
}

impl Policy for Limited {
    leave_to!(cells: geometry, place, room, restart, retire, waiting);
    leave_to!(cells: len, layout, holding, usage, shape, audit);

    fn open(&mut self, seq: SeqId, intent: &Intent) -> u32 {
        if self.offsets.len() <= seq.index() {
            self.offsets.resize(seq.index() + 1, 0);
        }
        self.offsets[seq.index()] = 0;
        self.cells.open(seq, intent)
    }

    fn remove(&mut self, seq: SeqId, tokens: Range<u32>, plan: &mut Plan) -> Result<(), Unsupported> {
        if self.way != Way::Slide {
            return Err(Unsupported);
        }
        let len = self.cells.len(seq);
        let tokens = tokens.start.min(len)..tokens.end.min(len);
        if !tokens.is_empty() {
            self.slide(seq, &tokens, plan);
        }
        Ok(())
    }

    fn reduces(&self) -> bool {
        true
    }

    fn reduce(&mut self, seq: SeqId, _: u32, plan: &mut Plan) -> Reduction {
        let tokens = self.rule.range(self.cells.len(seq), self.geometry().context_max);
        let dropped = tokens.end - tokens.start;
        if dropped == 0 {
            return Reduction::Stop;
        }
        match self.way {
            Way::Again => {
                self.cells.truncate(seq, 0);
                return Reduction::Again { dropped, why: NotShifted::Rule };
            }
            Way::Stay => {
                self.cells.drop_tokens(seq, &tokens);
                self.offsets[seq.index()] += dropped;
            }
            Way::Slide => self.slide(seq, &tokens, plan),
        }
        Reduction::Dropped(dropped)
    }

    fn head_kept(&self, _: u32) -> u32 {
        self.head()
    }

    fn offset(&self, seq: SeqId) -> u32 {
        self.offsets.get(seq.index()).copied().unwrap_or(0)
    }

    fn truncate(&mut self, seq: SeqId, len: u32) -> u32 {
        let kept = self.cells.truncate(seq, len);
        if kept <= self.head() {
            self.offsets[seq.index()] = 0;
        }
        kept
    }

    fn release(&mut self, seq: SeqId) {
        self.offsets[seq.index()] = 0;
        self.cells.release(seq);
    }

    /// A tail that slides down is rotated where earlier steps read it.
    fn defer(&mut self, epoch: u64) -> bool {
        !(self.way == Way::Slide && self.rotates) && self.cells.defer(epoch)
    }
}

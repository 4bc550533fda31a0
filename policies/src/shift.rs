//! Context shift: at the limit, keep the first tokens, drop the oldest of the rest: half, a share, or so many.
//!
//! The sequence goes on instead of ending. The kept tail slides down, so its K is rotated to the
//! new positions; what the tail once read of the dropped tokens stays in it (the shift is exact in
//! the first layer only). Where a batch finds no run the cache is compacted, as both sources did.
//! Source: llama.cpp `--context-shift` and Ollama 0.6.6 `ShiftCacheSlot`.
//!
//! Cost: O(tokens of the sequence) per shift; the ground is [`cells`](crate::cells).

use std::ops::Range;

use crate::cells::{Cells, Owner};
use crate::defrag::Defrag;
use crate::plan::{Effect, Plan};
use crate::policy::{ClassId, Geometry, Policy, Run, SeqId, push_run};
use crate::spec::{Args, FIT, Knob, Measure, Spec, SpecError};
use crate::unrotated;

pub(crate) const SPEC: Spec = Spec {
    name: "shift",
    about: "batch runs; at the context limit keep the head, drop half of the rest (or so many), rotate",
    source: "llama.cpp context shift; Ollama 0.6.6 ShiftCacheSlot",
    cost: "O(sequence) per shift",
    faults: "",
    knobs: &[
        Knob { name: "keep", about: "leading tokens that stay", default: "4" },
        FIT,
        Knob {
            name: "defrag",
            about: "failure (compact when a batch finds no run) | never",
            default: "failure",
        },
        Knob { default: "half", ..DROP },
        unrotated::KNOB,
    ],
    make,
};

fn make(args: &Args, geometry: &Geometry) -> Result<Box<dyn Policy>, SpecError> {
    let keep = args.number("keep", 0, 0..=u32::MAX, 4)?;
    let mut cells = Cells::new(geometry, args.fit(1)?);
    cells.shift = Some(Shift { keep, drop: Amount::read(args, 3, Amount::HALF)? });
    cells.defrag =
        (args.choice("defrag", 2, &["failure", "never"])? == "failure").then_some(Defrag::ON_FAILURE);
    Ok(Box::new(cells))
}

/// The knob for how much goes at once; policies differ in what they do where nothing is said.
pub(crate) const DROP: Knob = Knob {
    name: "drop",
    about: "half (of what is not kept) | N% of it | so many tokens at once",
    default: "",
};

/// How much goes at the limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Amount {
    /// So much of the context after the head, in per cent; one token at least.
    Percent(u32),
    /// So many tokens, as far as there are.
    Tokens(u32),
}

impl Amount {
    /// Half of the context after the head.
    pub const HALF: Amount = Amount::Percent(50);

    /// Reads [`DROP`].
    pub fn read(args: &Args, position: usize, default: Amount) -> Result<Amount, SpecError> {
        Ok(match args.measure("drop", position, "half")? {
            None => default,
            Some(Measure::Word) => Amount::HALF,
            Some(Measure::Percent(percent)) => Amount::Percent(percent),
            Some(Measure::Number(tokens)) => Amount::Tokens(tokens),
        })
    }
}

/// What a policy keeps and what it drops at the limit.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shift {
    /// Leading tokens that stay.
    pub keep: u32,
    /// How much of the others goes, oldest first.
    pub drop: Amount,
}

impl Shift {
    /// Leading tokens that stay in a full context: one at least must go.
    pub fn head(self, context_max: u32) -> u32 {
        self.keep.min(context_max.saturating_sub(1))
    }

    /// The tokens to drop from a sequence of `len` so that as much of the context after the kept
    /// head becomes free; at least one if anything may go.
    pub fn range(self, len: u32, context_max: u32) -> Range<u32> {
        let keep = self.head(context_max).min(len);
        let target_free = match self.drop {
            Amount::Percent(percent) => {
                let rest = u64::from(context_max.saturating_sub(keep));
                ((rest * u64::from(percent) / 100) as u32).max(1)
            }
            Amount::Tokens(tokens) => tokens,
        };
        let free = context_max.saturating_sub(len);
        keep..keep + target_free.saturating_sub(free).min(len - keep)
    }
}

impl Cells {
    /// Drops tokens; later ones slide down and their K is rotated.
    pub(crate) fn remove_tokens(&mut self, seq: SeqId, tokens: Range<u32>, plan: &mut Plan) {
        let sequence = &mut self.sequences[seq.index()];
        let tokens = tokens.start.min(sequence.len)..tokens.end.min(sequence.len);
        let count = tokens.end.saturating_sub(tokens.start);
        if count == 0 {
            return;
        }
        sequence.len -= count;
        let mut moved: Vec<Run> = Vec::new();
        for (id, (table, class)) in sequence.tables.iter_mut().zip(&mut self.classes).enumerate() {
            let held = table.cells().len();
            let index = |token: u32| (token.saturating_sub(table.first) as usize).min(held);
            let dropped = index(tokens.start)..index(tokens.end);
            for cell in table.drain(dropped.clone()) {
                class.map.vacate(cell..cell + 1);
            }
            if table.first > tokens.start {
                table.first = table.first.max(tokens.end) - count;
            }
            table.lost = table.first;
            moved.clear();
            for (i, &cell) in table.cells().iter().enumerate().skip(dropped.start) {
                class.owners[cell as usize] = Owner { seq: seq.0, token: table.first + i as u32 };
                push_run(&mut moved, cell, 1);
            }
            for &run in &moved {
                plan.push(Effect::Rotate { class: ClassId(id as u8), run, delta: -(count as i32) });
            }
        }
    }
}

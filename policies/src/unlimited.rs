//! A bound: as many cells as anyone asks for, in one run per sequence.
//!
//! Nothing is ever refused, moved or wasted, so what remains is the model's own work and the
//! queue. Sequences live in address space beyond the real cells; usage is reported against the
//! real ones and may exceed them.
//!
//! Cost: O(1).

use std::ops::Range;

use crate::plan::{Effect, Plan};
use crate::policy::{Append, Cell, ClassId, Full, Geometry, Intent, Policy, Run, SeqId, Shape, Usage};
use crate::spec::{Args, Spec, SpecError};

pub(crate) const SPEC: Spec = Spec {
    name: "unlimited",
    about: "bound: never refuses, one run per sequence, no waste",
    source: "upper bound on memory",
    cost: "O(1)",
    faults: "",
    knobs: &[],
    make,
};

fn make(_: &Args, geometry: &Geometry) -> Result<Box<dyn Policy>, SpecError> {
    let held = vec![0; geometry.classes.len()];
    Ok(Box::new(Unlimited { geometry: geometry.clone(), sequences: Vec::new(), held }))
}

#[derive(Clone, Debug, Default)]
struct Sequence {
    open: bool,
    len: u32,
    /// First token kept, per class.
    first: Vec<u32>,
}

struct Unlimited {
    geometry: Geometry,
    sequences: Vec<Sequence>,
    /// Cells in use, per class.
    held: Vec<u64>,
}

impl Unlimited {
    /// Every sequence has a stretch of addresses as long as the longest context.
    fn start(&self, seq: SeqId) -> Cell {
        seq.0.wrapping_mul(self.geometry.context_max)
    }

    fn drop_to(&mut self, seq: SeqId, len: u32) {
        let sequence = &mut self.sequences[seq.index()];
        for (first, held) in sequence.first.iter_mut().zip(&mut self.held) {
            *held -= u64::from(sequence.len - *first);
            if len == 0 {
                *first = 0;
            }
            *held += u64::from(len - *first);
        }
        sequence.len = len;
    }
}

impl Policy for Unlimited {
    fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    fn never_refuses(&self) -> bool {
        true
    }

    fn open(&mut self, seq: SeqId, _: &Intent) -> u32 {
        if self.sequences.len() <= seq.index() {
            self.sequences.resize_with(seq.index() + 1, Sequence::default);
        }
        let sequence = &mut self.sequences[seq.index()];
        assert!(!sequence.open, "sequence {} is not open yet", seq.0);
        *sequence = Sequence { open: true, len: 0, first: vec![0; self.geometry.classes.len()] };
        0
    }

    fn place(&mut self, batch: &[Append], plan: &mut Plan) -> Result<(), Full> {
        for append in batch {
            let start = self.start(append.seq);
            let sequence = &mut self.sequences[append.seq.index()];
            assert!(sequence.open, "sequence {} is open", append.seq.0);
            let from = sequence.len;
            let to = from + append.tokens;
            sequence.len = to;
            for (id, class) in self.geometry.classes.iter().enumerate() {
                let needed =
                    class.reach.first_needed(if append.restored { to } else { from }).max(sequence.first[id]);
                self.held[id] += u64::from(to - needed);
                self.held[id] -= u64::from(from - sequence.first[id]);
                sequence.first[id] = needed;
                if plan.wants_writes() && !append.restored {
                    let first = from.max(needed);
                    let run = Run { start: start.wrapping_add(first), len: to - first };
                    plan.push(Effect::Write { class: ClassId(id as u8), seq: append.seq, first, run });
                }
            }
        }
        Ok(())
    }

    fn truncate(&mut self, seq: SeqId, len: u32) -> u32 {
        let sequence = &self.sequences[seq.index()];
        let keep = len.min(sequence.len);
        let gone = sequence
            .first
            .iter()
            .zip(&self.geometry.classes)
            .any(|(&first, class)| class.reach.first_needed(keep) < first);
        let keep = if gone { 0 } else { keep };
        self.drop_to(seq, keep);
        keep
    }

    fn release(&mut self, seq: SeqId) {
        self.drop_to(seq, 0);
        self.sequences[seq.index()].open = false;
    }

    fn len(&self, seq: SeqId) -> u32 {
        self.sequences.get(seq.index()).map_or(0, |sequence| sequence.len)
    }

    fn layout(&self, class: ClassId, seq: SeqId, runs: &mut Vec<Run>) -> Range<u32> {
        runs.clear();
        let sequence = &self.sequences[seq.index()];
        let tokens = sequence.first[class.index()]..sequence.len;
        if !tokens.is_empty() {
            let start = self.start(seq).wrapping_add(tokens.start);
            runs.push(Run { start, len: tokens.end - tokens.start });
        }
        tokens
    }

    fn usage(&self, class: ClassId) -> Usage {
        let cells = self.geometry.classes[class.index()].cells;
        let held = self.held[class.index()].min(u64::from(u32::MAX)) as u32;
        let cells = cells.max(held);
        Usage { cells, held, cached: 0, free: cells - held, placeable: cells - held }
    }

    fn shape(&self, class: ClassId) -> Shape {
        let usage = self.usage(class);
        Shape { largest_free_run: usage.free, free_runs: u32::from(usage.free > 0), high_water: usage.held }
    }

    fn audit(&self) -> Result<(), String> {
        for (class, &held) in self.held.iter().enumerate() {
            let open = self.sequences.iter().filter(|sequence| sequence.open);
            let sum: u64 = open.map(|sequence| u64::from(sequence.len - sequence.first[class])).sum();
            if sum != held {
                return Err(format!("class {class}: {held} cells counted, {sum} in use"));
            }
        }
        Ok(())
    }
}

//! The wrapper as a policy: `ollama-0.6.6` and `ollama-0.12.4`.

use std::ops::Range;

use crate::ollama::cache::{Kind, Setup, Token, Trim, Trouble};
use crate::ollama::sequence::Held;
use crate::ollama::wrapper::Wrapper;
use crate::ollama::{END, GRAPH_NODES};
use crate::plan::Plan;
use crate::policy::{
    Append, Cell, ClassId, Full, Geometry, Intent, NotShifted, Policy, Reach, Reading, Reduction, Run, SeqId,
    Shape, Unsupported, Usage, push_run,
};
use crate::spec::{Args, Knob, Spec, SpecError};

const COST: &str = "O(log n) per batch, O(log n) per cell moved";

const KNOBS: &[Knob] = &[
    Knob {
        name: "pad",
        about: "cells that the walked range is rounded to: 32 | 256 (flash attention)",
        default: "32",
    },
    Knob { name: "shift", about: "yes | no: whether the model can move tokens (not: MLA)", default: "yes" },
    Knob { name: "nodes", about: "nodes of a compute graph; compaction is split to fit", default: "8192" },
];

pub(crate) const SPEC_0_6_6: Spec = Spec {
    name: "ollama-0.6.6",
    about: "Ollama's own engine: one run per batch, windows trimmed for the sequences of the batch only",
    source: "Ollama v0.6.6 kvcache/, by its behaviour",
    cost: COST,
    faults: "idle sequences keep their last batch; compaction swaps K/V of neighbours; \
             no shift: the fallback frees nothing",
    knobs: KNOBS,
    make: |args, geometry| make(args, geometry, Trim::Batch),
};

pub(crate) const SPEC_0_12_4: Spec = Spec {
    name: "ollama-0.12.4",
    about: "the same with the windows of all sequences trimmed before a batch is placed",
    source: "Ollama commit 1fc35f126 (v0.12.4), by its behaviour",
    cost: COST,
    faults: "compaction swaps K/V of neighbours",
    knobs: KNOBS,
    make: |args, geometry| make(args, geometry, Trim::All),
};

fn make(args: &Args, geometry: &Geometry, trim: Trim) -> Result<Box<dyn Policy>, SpecError> {
    let pad = if args.choice("pad", 0, &["32", "256"])? == "256" { 256 } else { 32 };
    let shift = args.choice("shift", 1, &["yes", "no"])? == "yes";
    let graph_nodes = args.number("nodes", 2, 0..=u32::MAX, GRAPH_NODES)?;
    let setups = geometry.class_ids().map(|class| {
        let layers = &geometry.classes[class.index()];
        let kind = match layers.reach {
            Reach::Window(window) => Kind::Swa { window },
            Reach::Full => Kind::Causal,
        };
        let (cells, layers) = (layers.cells, layers.layers);
        Setup { class, kind, cells, pad, layers, graph_nodes, shift, trim }
    });
    let wrapper = Wrapper::new(setups);
    let batches = vec![Vec::new(); geometry.classes.len()];
    Ok(Box::new(Ollama { geometry: geometry.clone(), trim, wrapper, lens: Vec::new(), batches }))
}

/// The caches, and how many tokens each open sequence has.
struct Ollama {
    geometry: Geometry,
    trim: Trim,
    wrapper: Wrapper,
    lens: Vec<Option<u32>>,
    /// The batch of each class.
    batches: Vec<Vec<Token>>,
}

impl Ollama {
    fn open_len(&self, seq: SeqId) -> u32 {
        let len = self.lens.get(seq.index()).copied().flatten();
        len.unwrap_or_else(|| panic!("sequence {} is open", seq.0))
    }

    fn set_len(&mut self, seq: SeqId, len: u32) {
        self.lens[seq.index()] = Some(len);
    }

    /// A removal that shifts nothing, and so is never refused.
    fn cut(&mut self, seq: SeqId, from: u32) {
        let removed = self.wrapper.remove(seq.0, from as i32, END, &mut Plan::without_writes());
        debug_assert_eq!(removed, Ok(()), "a removal to the end shifts nothing");
    }

    /// The cells of the sequence's tokens, in order, without those that were left behind.
    fn live(&self, class: ClassId, seq: SeqId) -> impl Iterator<Item = &Held> {
        let sequence = self.wrapper.caches()[class.index()].sequence(seq.0);
        sequence.into_iter().flat_map(|sequence| &sequence.held).filter(|held| !held.stale)
    }
}

impl Policy for Ollama {
    fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    fn open(&mut self, seq: SeqId, _: &Intent) -> u32 {
        if self.lens.len() <= seq.index() {
            self.lens.resize(seq.index() + 1, None);
        }
        assert!(self.lens[seq.index()].is_none(), "sequence {} is not open yet", seq.0);
        self.set_len(seq, 0);
        0
    }

    fn place(&mut self, batch: &[Append], plan: &mut Plan) -> Result<(), Full> {
        let mut batches = std::mem::take(&mut self.batches);
        for (tokens, layers) in batches.iter_mut().zip(&self.geometry.classes) {
            tokens.clear();
            for append in batch {
                let len = self.open_len(append.seq);
                let end = len + append.tokens;
                let first = if append.restored { len.max(layers.reach.first_needed(end)) } else { len };
                tokens.extend((first..end).map(|pos| Token { seq: append.seq.0, pos: pos as i32 }));
            }
        }
        let quiet = batch.iter().any(|append| append.restored);
        let placed = if quiet {
            // What comes back from host memory is not written; others in the batch are.
            let mut all = Plan::new();
            let placed = self.wrapper.forward_each(|class| &batches[class], &mut all);
            let is_restored = |seq: SeqId| batch.iter().any(|append| append.seq == seq && append.restored);
            plan.append_without(all, is_restored);
            placed
        } else {
            self.wrapper.forward_each(|class| &batches[class], plan)
        };
        self.batches = batches;
        match placed {
            Ok(()) => {
                for append in batch {
                    self.set_len(append.seq, self.open_len(append.seq) + append.tokens);
                }
                Ok(())
            }
            Err(Trouble::Full { full, .. }) => Err(full),
            Err(trouble) => unreachable!("placing a batch shifts nothing: {trouble}"),
        }
    }

    fn remove(&mut self, seq: SeqId, tokens: Range<u32>, plan: &mut Plan) -> Result<(), Unsupported> {
        let len = self.open_len(seq);
        let tokens = tokens.start.min(len)..tokens.end.min(len);
        if tokens.is_empty() {
            return Ok(());
        }
        if tokens.end == len {
            self.cut(seq, tokens.start);
            self.set_len(seq, tokens.start);
            return Ok(());
        }
        let (begin, end) = (tokens.start as i32, tokens.end as i32);
        let can =
            |cache: &crate::ollama::Cache| cache.setup().shift && cache.first_shared(seq.0, end).is_none();
        if !self.wrapper.caches().iter().all(can) {
            return Err(Unsupported);
        }
        let removed = self.wrapper.remove(seq.0, begin, end, plan);
        debug_assert_eq!(removed, Ok(()), "the caches were asked before");
        self.set_len(seq, len - (tokens.end - tokens.start));
        Ok(())
    }

    fn reduces(&self) -> bool {
        true
    }

    /// The server's own rule: half of what is not kept shall be free. Where the caches refuse, their
    /// books have moved already, and the fallback's removal "to -1" moves them once more and frees
    /// nothing. (0.6.9 corrected the fallback.)
    fn reduce(&mut self, seq: SeqId, keep: u32, plan: &mut Plan) -> Reduction {
        let len = self.open_len(seq);
        let context = self.geometry.context_max;
        let keep = keep.min(context.saturating_sub(1));
        let target_free = ((context - keep) / 2).max(1);
        let discard = target_free.saturating_sub(context.saturating_sub(len));
        if discard == 0 {
            return Reduction::Stop;
        }
        let why = match self.wrapper.remove(seq.0, keep as i32, (keep + discard) as i32, plan) {
            Ok(()) => {
                self.set_len(seq, len - discard);
                return Reduction::Dropped(discard);
            }
            Err(Trouble::Shared) => NotShifted::Shared,
            Err(_) => NotShifted::Model,
        };
        match self.trim {
            Trim::Batch => {
                // The server does not look at the answer either.
                let _ = self.wrapper.remove(seq.0, 0, -1, plan);
                self.wrapper.leave_behind(seq.0);
            }
            Trim::All => self.cut(seq, 0),
        }
        self.set_len(seq, 0);
        Reduction::Again { dropped: discard, why }
    }

    /// Whether the window's tokens are still there is not looked at; `truncate` does.
    fn fork(&mut self, from: SeqId, to: SeqId, tokens: u32) -> u32 {
        let len = tokens.min(self.open_len(from));
        if len == 0 {
            return 0;
        }
        if self.lens.len() <= to.index() {
            self.lens.resize(to.index() + 1, None);
        }
        assert!(self.lens[to.index()].is_none(), "sequence {} is not open yet", to.0);
        self.wrapper.copy_prefix(from.0, to.0, len as i32);
        self.set_len(to, len);
        len
    }

    fn truncate(&mut self, seq: SeqId, len: u32) -> u32 {
        let len = len.min(self.open_len(seq));
        let keep = if self.wrapper.can_resume(seq.0, len as i32) { len } else { 0 };
        self.cut(seq, keep);
        self.set_len(seq, keep);
        keep
    }

    fn release(&mut self, seq: SeqId) {
        assert!(self.lens[seq.index()].is_some(), "sequence {} is open", seq.0);
        self.cut(seq, 0);
        self.lens[seq.index()] = None;
    }

    fn len(&self, seq: SeqId) -> u32 {
        self.lens.get(seq.index()).copied().flatten().unwrap_or(0)
    }

    fn layout(&self, class: ClassId, seq: SeqId, runs: &mut Vec<Run>) -> Range<u32> {
        runs.clear();
        self.live(class, seq).for_each(|held| push_run(runs, held.cell, 1));
        let len = self.len(seq);
        self.live(class, seq).next().map_or(len, |held| held.pos as u32)..len
    }

    fn holding(&self, class: ClassId, seq: SeqId, runs: &mut Vec<Run>) {
        runs.clear();
        if let Some(sequence) = self.wrapper.caches()[class.index()].sequence(seq.0) {
            sequence.held.iter().for_each(|held| push_run(runs, held.cell, 1));
        }
    }

    fn usage(&self, class: ClassId) -> Usage {
        let cache = &self.wrapper.caches()[class.index()];
        let (cells, free) = (cache.setup().cells, cache.free());
        Usage { cells, held: cells - free, cached: 0, free, placeable: cache.map.largest_run() }
    }

    fn shape(&self, class: ClassId) -> Shape {
        self.wrapper.caches()[class.index()].shape()
    }

    fn reading(&self) -> Reading {
        Reading::BatchRange
    }

    fn walk(&self, class: ClassId) -> Run {
        let range = self.wrapper.caches()[class.index()].cur_range();
        Run { start: range.min, len: range.max - range.min + 1 }
    }

    fn foreign(&self, seq: SeqId) -> u32 {
        self.wrapper.caches().iter().map(|cache| cache.foreign(seq.0)).sum()
    }

    fn foreign_cells(&self, class: ClassId, runs: &mut Vec<Run>) {
        runs.clear();
        let cells = self.wrapper.caches()[class.index()].foreign_cells();
        cells.for_each(|cell: Cell| push_run(runs, cell, 1));
    }

    fn audit(&self) -> Result<(), String> {
        self.wrapper.audit()?;
        for (seq, &len) in (0..).map(SeqId).zip(&self.lens) {
            for class in self.geometry.class_ids() {
                let end = i64::from(len.unwrap_or(0));
                let count = self.live(class, seq).count() as i64;
                let in_order =
                    (end - count..).zip(self.live(class, seq)).all(|(pos, held)| pos == held.pos.into());
                if !in_order {
                    return Err(format!("class {}: sequence {} is not {end} tokens long", class.0, seq.0));
                }
            }
        }
        Ok(())
    }
}

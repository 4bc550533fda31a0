//! The cache of Ollama's other runner: one row of cells for all layers, searched from a head.
//!
//! Llama, Qwen 2 and Gemma 2 are served through it in Ollama 0.6.6, Gemma 3 is not. A token has
//! one cell, whatever the layer reads: local layers save nothing, so a model with two layer
//! classes has the cells of the smaller one, and every class has the same layout. Each micro-batch
//! needs one run of free cells and gets the next one from a head that removals pull back. Where
//! none is found the cache is compacted, run by run and in order; a batch that still finds none is
//! taken back as a whole, and in Ollama the process ends. Nothing is trimmed and nothing is
//! reserved. At the context limit the head stays, half of the rest goes, and K is rotated by the
//! next batch; a model whose K cannot be rotated computes everything again.
//!
//! A refusal is not free of consequences: what was rotated and compacted on the way stays so. And
//! a shift moves the positions of all its cells, also of those that a fork shares: the fork then
//! reads its own tokens at wrong positions, keeps what it should drop and drops what it should
//! keep. These are no other sequence's K and V, so [`Policy::foreign`] does not count them;
//! without forks, and without forks that shift, there is no such fault.
//! Source: Ollama 0.6.6 `llama_kv_cache_unified` with its patch 0011, and `llamarunner`.
//!
//! Cost: O(log n) per micro-batch, O(1) per token; O(tokens held) per compaction.

mod cache;

use std::ops::Range;

use crate::plan::{Effect, Plan};
use crate::policy::{
    Append, ClassId, Full, Geometry, Intent, NotShifted, Policy, Reading, Reduction, Run, SeqId, Shape,
    Unsupported, Usage, push_run,
};
use crate::shift::{Amount, Shift};
use crate::spec::{Args, Knob, Spec, SpecError};

pub use cache::{NoSlot, Part, UnifiedCache, Work};

pub(crate) const SPEC: Spec = Spec {
    name: "llama-unified",
    about: "one row of cells for all layers, next fit from a head, ordered compaction, lazy K shift",
    source: "Ollama 0.6.6 llama runner, llama_kv_cache_unified with patch 0011",
    cost: "O(log n) per micro-batch; O(tokens) per compaction",
    faults: "a refused batch may have compacted the cache; a context shift also moves the positions of \
             cells that a fork shares",
    knobs: &[
        Knob { name: "ubatch", about: "most tokens placed in one run", default: "512" },
        Knob {
            name: "pad",
            about: "attention walks a multiple of 32 | 256 (flash attention)",
            default: "32",
        },
        Knob { name: "shift", about: "yes | no (K cannot be rotated: compute again)", default: "yes" },
    ],
    make,
};

fn make(args: &Args, geometry: &Geometry) -> Result<Box<dyn Policy>, SpecError> {
    // The batch that a micro-batch is cut from has `num_batch` tokens for each slot.
    let batch = geometry.batch_max.saturating_mul(geometry.sequences_max);
    let ubatch = args.number("ubatch", 0, 1..=u32::MAX, 512)?.min(batch.max(1));
    let pad = if args.choice("pad", 1, &["32", "256"])? == "256" { 256 } else { 32 };
    let size = geometry.classes.iter().map(|class| class.cells).min().unwrap_or(0);
    let layers = geometry.classes.iter().map(|class| class.layers).sum();
    Ok(Box::new(LlamaUnified {
        geometry: geometry.clone(),
        cache: UnifiedCache::new(size, layers, ubatch, pad),
        fresh: (size, layers, ubatch, pad),
        lens: Vec::new(),
        can_shift: args.choice("shift", 2, &["yes", "no"])? == "yes",
        parts: Vec::new(),
        effects: Vec::new(),
    }))
}

/// The policy: the cache, and what its driver thinks is in it.
struct LlamaUnified {
    geometry: Geometry,
    cache: UnifiedCache,
    /// What an empty cache is made with.
    fresh: (u32, u32, u32, u32),
    /// Tokens of each open sequence.
    lens: Vec<Option<u32>>,
    can_shift: bool,
    parts: Vec<Part>,
    effects: Vec<Effect>,
}

impl LlamaUnified {
    fn len_mut(&mut self, seq: SeqId) -> &mut u32 {
        let len = self.lens.get_mut(seq.index()).and_then(Option::as_mut);
        len.unwrap_or_else(|| panic!("sequence {} is open", seq.0))
    }

    fn set_open(&mut self, seq: SeqId, len: u32) {
        if self.lens.len() <= seq.index() {
            self.lens.resize(seq.index() + 1, None);
        }
        let before = self.lens[seq.index()].replace(len);
        assert!(before.is_none(), "sequence {} is not open yet", seq.0);
    }

    /// Describes what the cache has done, once for every class.
    fn describe(&self, batch: &[Append], is_placed: bool, plan: &mut Plan) {
        let restored = |of: SeqId| batch.iter().any(|append| append.seq == of && append.restored);
        let writes = is_placed && plan.wants_writes();
        let has_restored = batch.iter().any(|append| append.restored);
        let work = self.cache.work();
        let rotates = self.effects.iter().any(|effect| matches!(effect, Effect::Rotate { .. }));
        (0..work.defrags).for_each(|_| plan.begin_defrag());
        (0..work.graphs + u32::from(rotates)).for_each(|_| plan.begin_graph());
        for &effect in &self.effects {
            if let Effect::Write { seq, .. } = effect
                && (!writes || has_restored && restored(seq))
            {
                continue;
            }
            for id in self.geometry.class_ids() {
                let mut effect = effect;
                if let Effect::Write { class, .. }
                | Effect::Copy { class, .. }
                | Effect::Rotate { class, .. } = &mut effect
                {
                    *class = id;
                }
                plan.push(effect);
            }
        }
    }

    /// Drops tokens and slides later ones down, as the runner does.
    fn drop_tokens(&mut self, seq: SeqId, tokens: Range<u32>) {
        let count = tokens.end - tokens.start;
        let len = self.len_mut(seq);
        let end = std::mem::replace(len, *len - count);
        self.cache.remove(seq, tokens.start as i32..tokens.end as i32);
        self.cache.shift(seq, tokens.end as i32..end as i32, -(count as i32));
    }
}

impl Policy for LlamaUnified {
    fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    fn open(&mut self, seq: SeqId, _: &Intent) -> u32 {
        self.set_open(seq, 0);
        0
    }

    fn place(&mut self, batch: &[Append], plan: &mut Plan) -> Result<(), Full> {
        let mut parts = std::mem::take(&mut self.parts);
        parts.clear();
        for append in batch {
            let len = self.len_mut(append.seq);
            parts.push(Part { seq: append.seq, first: *len as i32, tokens: append.tokens });
            *len += append.tokens;
        }
        self.effects.clear();
        let placed = self.cache.decode(&parts, &mut self.effects);
        self.parts = parts;
        self.describe(batch, placed.is_ok(), plan);
        placed.map_err(|_| {
            let mut needed = 0;
            for append in batch {
                *self.len_mut(append.seq) -= append.tokens;
                needed += append.tokens;
            }
            let Usage { free, placeable, .. } = self.usage(ClassId(0));
            Full { class: ClassId(0), needed, free, largest_free_run: placeable }
        })
    }

    fn remove(&mut self, seq: SeqId, tokens: Range<u32>, _: &mut Plan) -> Result<(), Unsupported> {
        let len = *self.len_mut(seq);
        let tokens = tokens.start.min(len)..tokens.end.min(len);
        if tokens.end == len {
            self.truncate(seq, tokens.start);
        } else if !self.can_shift {
            return Err(Unsupported);
        } else if !tokens.is_empty() {
            self.drop_tokens(seq, tokens);
        }
        Ok(())
    }

    fn reduces(&self) -> bool {
        true
    }

    fn restart(&mut self) {
        let (size, layers, ubatch, pad) = self.fresh;
        self.cache = UnifiedCache::new(size, layers, ubatch, pad);
    }

    fn reduce(&mut self, seq: SeqId, keep: u32, _: &mut Plan) -> Reduction {
        let len = *self.len_mut(seq);
        let dropped = Shift { keep, drop: Amount::HALF }.range(len, self.geometry.context_max);
        let count = dropped.end - dropped.start;
        if count == 0 {
            return Reduction::Stop;
        }
        if self.can_shift {
            self.drop_tokens(seq, dropped);
            return Reduction::Dropped(count);
        }
        self.truncate(seq, 0);
        Reduction::Again { dropped: count, why: NotShifted::Model }
    }

    fn fork(&mut self, from: SeqId, to: SeqId, tokens: u32) -> u32 {
        let tokens = tokens.min(*self.len_mut(from));
        if tokens > 0 {
            self.set_open(to, tokens);
            self.cache.copy(from, to, 0..tokens as i32);
        }
        tokens
    }

    fn truncate(&mut self, seq: SeqId, len: u32) -> u32 {
        let tokens = self.len_mut(seq);
        *tokens = len.min(*tokens);
        let keep = *tokens;
        self.cache.remove(seq, keep as i32..-1);
        keep
    }

    fn release(&mut self, seq: SeqId) {
        self.truncate(seq, 0);
        self.lens[seq.index()] = None;
    }

    fn len(&self, seq: SeqId) -> u32 {
        self.lens.get(seq.index()).copied().flatten().unwrap_or(0)
    }

    /// By position, as attention sees the sequence. Where a shift has moved cells that another
    /// sequence shares, these may be more or fewer cells than the sequence has tokens.
    fn layout(&self, _: ClassId, seq: SeqId, runs: &mut Vec<Run>) -> Range<u32> {
        runs.clear();
        self.cache.table(seq).iter().for_each(|&cell| push_run(runs, cell, 1));
        0..self.len(seq)
    }

    fn usage(&self, _: ClassId) -> Usage {
        let (cells, held) = (self.cache.size(), self.cache.used());
        Usage { cells, held, cached: 0, free: cells - held, placeable: self.cache.largest_run() }
    }

    fn shape(&self, _: ClassId) -> Shape {
        self.cache.shape()
    }

    fn reading(&self) -> Reading {
        Reading::BatchRange
    }

    fn walk(&self, _: ClassId) -> Run {
        Run { start: 0, len: self.cache.attended() }
    }

    fn unrotated(&self, _: ClassId, turns: &mut Vec<(Run, i32)>) {
        self.cache.unrotated(turns);
    }

    fn audit(&self) -> Result<(), String> {
        self.cache.audit()?;
        for (seq, len) in (0..).zip(&self.lens) {
            let table = self.cache.table(SeqId(seq));
            let positions = table.iter().map(|&cell| self.cache.position(cell).unwrap_or(u32::MAX));
            if !self.cache.has_shifted_shared() && !positions.eq(0..len.unwrap_or(0)) {
                return Err(format!("sequence {seq} has not its {len:?} tokens at their positions"));
            }
        }
        Ok(())
    }
}

//! One extent per sequence and class, reserved ahead of need.
//!
//! Attention reads one run (two for a window that has wrapped around), at the price of cells
//! reserved and never used, and of free cells in pieces too short for the next reservation.
//! `max` reserves the longest context at once (FasterTransformer, Orca); `pow2` doubles and moves
//! when it cannot grow in place; `exact` is told the length by an oracle. A window class keeps a
//! ring as long as the window and one batch. `run` reserves nothing: see [`cells`](crate::cells). The same
//! sequences over other allocators are [`buddy`](crate::buddy) and [`slab`](crate::slab).
//! Source: the three wastes are those of Kwon et al., SOSP 2023, section 3.1 (arXiv 2309.06180).
//!
//! Cost: O(log n) per reservation, O(1) per token.

use std::ops::Range;

use crate::cells::Cells;
use crate::extents::Extents;
use crate::free::FreeMap;
use crate::plan::{Effect, Plan, Why};
use crate::policy::{
    Append, Cell, ClassId, Full, Geometry, Intent, Policy, Reach, Run, SeqId, Shape, Usage, push_run,
};
use crate::quarantine::Quarantine;
use crate::spec::{Args, FIT, Knob, Spec, SpecError};

pub(crate) const SPEC: Spec = Spec {
    name: "contiguous",
    about: "one run of cells per sequence, reserved ahead (or, as `run`, one run per batch)",
    source: "Yu et al., Orca, OSDI 2022; Kwon et al., SOSP 2023, section 3.1",
    cost: "O(log n) per reservation",
    faults: "",
    knobs: &[
        Knob {
            name: "reserve",
            about: "max | pow2 | exact (oracle) | run (nothing; the batch needs one run)",
            default: "max",
        },
        FIT,
        LEAST,
    ],
    make,
};

/// The knob for how long the shortest reservation is, where reservations follow the length.
pub(crate) const LEAST: Knob =
    Knob { name: "least", about: "cells of the shortest reservation that follows the length", default: "64" };

fn make(args: &Args, geometry: &Geometry) -> Result<Box<dyn Policy>, SpecError> {
    let reserve = args.choice("reserve", 0, &["max", "pow2", "exact", "run"])?;
    let fit = args.fit(1)?;
    let least = least(args, 2, 64)?;
    let over_map = |reserve| Box::new(Contiguous::new(geometry, reserve, |cells| FreeMap::new(cells, fit)));
    Ok(match reserve {
        "run" => Box::new(Cells::new(geometry, fit)),
        "pow2" => over_map(Reserve::PowerOfTwo { least }),
        "exact" => over_map(Reserve::Exact),
        _ => over_map(Reserve::Max),
    })
}

/// Reads [`LEAST`].
pub(crate) fn least(args: &Args, position: usize, default: u32) -> Result<u32, SpecError> {
    args.number("least", position, 1..=1 << 30, default)
}

/// How much is reserved for a sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reserve {
    /// The longest context.
    Max,
    /// The next power of two.
    PowerOfTwo {
        /// The shortest.
        least: u32,
    },
    /// What the oracle says.
    Exact,
    /// What the allocator makes of the length.
    Rounded {
        /// The shortest.
        least: u32,
    },
}

/// A sequence's cells in one class; token `t` is in cell `start + (t - origin) % size`.
#[derive(Clone, Copy, Debug, Default)]
struct Extent {
    start: Cell,
    /// 0 while nothing is reserved.
    size: u32,
    /// Token that is in the first cell.
    origin: u32,
    /// First token it still has.
    first: u32,
}

impl Extent {
    fn cells(self) -> Range<Cell> {
        self.start..self.start + self.size
    }

    /// The cells of tokens `from..to`, in logical order.
    fn runs(self, from: u32, to: u32, mut each: impl FnMut(u32, Run)) {
        let mut token = from;
        while token < to {
            let offset = (token - self.origin) % self.size;
            let len = (to - token).min(self.size - offset);
            each(token, Run { start: self.start + offset, len });
            token += len;
        }
    }
}

#[derive(Clone, Debug, Default)]
struct Sequence {
    open: bool,
    len: u32,
    total: u32,
    extents: Vec<Extent>,
}

/// A reservation made for the batch at hand and not yet final.
struct Move {
    seq: SeqId,
    class: usize,
    old: Extent,
    new: Extent,
}

/// The policy, over an allocator for each class.
pub(crate) struct Contiguous<E> {
    geometry: Geometry,
    reserve: Reserve,
    extents: Vec<E>,
    /// Per class, extents that were given back and may still be read.
    quarantines: Vec<Quarantine<Run>>,
    sequences: Vec<Sequence>,
}

impl<E: Extents> Contiguous<E> {
    /// `make` is told the cells of a class.
    pub fn new(geometry: &Geometry, reserve: Reserve, make: impl Fn(u32) -> E) -> Self {
        let extents = geometry.classes.iter().map(|class| make(class.cells)).collect();
        let quarantines = geometry.classes.iter().map(|_| Quarantine::default()).collect();
        Contiguous { geometry: geometry.clone(), reserve, extents, quarantines, sequences: Vec::new() }
    }

    /// Gives back a reservation, at once or once nobody can read it any more.
    fn give(&mut self, class: usize, extent: Extent) {
        if extent.size == 0 {
            return;
        }
        match self.quarantines[class].epoch() {
            None => self.extents[class].give(extent.cells()),
            Some(epoch) => {
                self.quarantines[class].push(epoch, Run { start: extent.start, len: extent.size });
            }
        }
    }

    fn sequence(&self, seq: SeqId) -> &Sequence {
        let sequence = &self.sequences[seq.index()];
        assert!(sequence.open, "sequence {} is open", seq.0);
        sequence
    }

    /// Cells that a sequence wants reserved in a class once it has `len` tokens.
    fn wanted(&self, class: usize, len: u32, total: u32) -> u32 {
        let limit = self.geometry.context_max.max(len);
        let most = match self.geometry.classes[class].reach {
            Reach::Full => limit,
            Reach::Window(window) => limit.min(window.saturating_add(self.geometry.batch_max)),
        };
        match self.reserve {
            Reserve::Max => most,
            Reserve::Exact => total.max(len).min(most),
            Reserve::PowerOfTwo { least } => len.max(least).next_power_of_two().min(most),
            Reserve::Rounded { least } => len.max(least).min(most),
        }
    }

    /// Cells that tokens `first..end` need: never more than a ring has.
    fn needed(first: u32, end: u32) -> u32 {
        end - first
    }

    /// Reserves or enlarges what one append needs in one class; the old extent stays taken.
    fn reserve(&mut self, append: &Append, class: usize, moves: &mut Vec<Move>) -> Result<(), Full> {
        let sequence = self.sequence(append.seq);
        let old = sequence.extents[class];
        let (len, total) = (sequence.len, sequence.total);
        let end = len + append.tokens;
        let reach = self.geometry.classes[class].reach;
        let next = if append.restored { end } else { len };
        let first = reach.first_needed(next).max(old.first);
        let fits_in_order = reach == Reach::Full && end - old.origin <= old.size;
        let fits_in_ring = reach != Reach::Full && Self::needed(first, end) <= old.size;
        if old.size > 0 && (fits_in_order || fits_in_ring) {
            return Ok(());
        }
        let size = self.wanted(class, end, total).max(Self::needed(first, end));
        let extents = &mut self.extents[class];
        let size = extents.rounded(size);
        // Growing in place keeps every token where it is, unless the ring has wrapped.
        let unwrapped = old.size > 0 && len - old.origin <= old.size;
        let new = if unwrapped && extents.grow(old.cells(), size) {
            Extent { size, ..old }
        } else {
            let Some(start) = extents.take(size) else {
                return Err(Full {
                    class: ClassId(class as u8),
                    needed: size,
                    free: extents.map().free(),
                    largest_free_run: extents.placeable(),
                });
            };
            Extent { start, size, origin: first, first }
        };
        moves.push(Move { seq: append.seq, class, old, new });
        Ok(())
    }

    fn undo(&mut self, moves: Vec<Move>, cursors: &[Cell]) {
        for done in moves.into_iter().rev() {
            let extents = &mut self.extents[done.class];
            if done.new.start == done.old.start && done.old.size > 0 {
                extents.ungrow(done.new.cells(), done.old.size);
            } else {
                extents.give(done.new.cells());
            }
        }
        for (extents, &cursor) in self.extents.iter_mut().zip(cursors) {
            extents.set_cursor(cursor);
        }
    }

    fn commit(&mut self, moves: Vec<Move>, plan: &mut Plan) {
        for Move { seq, class, old, new } in moves {
            let sequence = &mut self.sequences[seq.index()];
            sequence.extents[class] = Extent { first: old.first.max(new.first), ..new };
            let moved = old.size > 0 && new.start != old.start;
            if !moved {
                continue;
            }
            old.runs(new.first, sequence.len, |token, run| {
                let mut from = run.start;
                new.runs(token, token + run.len, |_, target| {
                    let class = ClassId(class as u8);
                    plan.push(Effect::Copy {
                        class,
                        from,
                        to: target.start,
                        len: target.len,
                        why: Why::Grow,
                    });
                    from += target.len;
                });
            });
            self.give(class, old);
        }
    }
}

impl<E: Extents> Policy for Contiguous<E> {
    fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    fn remembers_intent(&self) -> bool {
        self.reserve == Reserve::Exact
    }

    fn open(&mut self, seq: SeqId, intent: &Intent) -> u32 {
        if self.sequences.len() <= seq.index() {
            self.sequences.resize_with(seq.index() + 1, Sequence::default);
        }
        let sequence = &mut self.sequences[seq.index()];
        assert!(!sequence.open, "sequence {} is not open yet", seq.0);
        let extents = vec![Extent::default(); self.geometry.classes.len()];
        *sequence = Sequence { open: true, len: 0, total: intent.total_tokens, extents };
        0
    }

    fn place(&mut self, batch: &[Append], plan: &mut Plan) -> Result<(), Full> {
        let mut moves = Vec::new();
        let cursors: Vec<Cell> = self.extents.iter().map(Extents::cursor).collect();
        for append in batch {
            for class in 0..self.extents.len() {
                if let Err(full) = self.reserve(append, class, &mut moves) {
                    self.undo(moves, &cursors);
                    return Err(full);
                }
            }
        }
        self.commit(moves, plan);
        for append in batch {
            let sequence = &mut self.sequences[append.seq.index()];
            let from = sequence.len;
            let to = from + append.tokens;
            sequence.len = to;
            for (class, extent) in sequence.extents.iter_mut().enumerate() {
                // A ring keeps what it has not yet written over.
                extent.first = extent.first.max(to.saturating_sub(extent.size));
                if plan.wants_writes() && !append.restored {
                    extent.runs(from.max(extent.first), to, |first, run| {
                        plan.push(Effect::Write { class: ClassId(class as u8), seq: append.seq, first, run });
                    });
                }
            }
        }
        Ok(())
    }

    fn room(&self, seq: SeqId) -> u32 {
        let sequence = self.sequence(seq);
        let rooms =
            sequence.extents.iter().zip(&self.geometry.classes).map(|(extent, class)| match class.reach {
                Reach::Full => (extent.origin + extent.size).saturating_sub(sequence.len),
                // A ring as long as the window never runs out while tokens come one by one; a driver
                // may hand over at most as many at once as fit beside the window.
                Reach::Window(window) if extent.size >= window => extent.size - window,
                Reach::Window(_) => (extent.origin + extent.size).saturating_sub(sequence.len),
            });
        rooms.min().unwrap_or(0)
    }

    fn truncate(&mut self, seq: SeqId, len: u32) -> u32 {
        let sequence = &mut self.sequences[seq.index()];
        let mut keep = len.min(sequence.len);
        for (extent, class) in sequence.extents.iter().zip(&self.geometry.classes) {
            if class.reach.first_needed(keep) < extent.first {
                keep = 0;
            }
        }
        sequence.len = keep;
        if keep == 0 {
            for class in 0..self.extents.len() {
                let extent = std::mem::take(&mut self.sequences[seq.index()].extents[class]);
                self.give(class, extent);
            }
        }
        keep
    }

    fn release(&mut self, seq: SeqId) {
        let sequence = std::mem::take(&mut self.sequences[seq.index()]);
        assert!(sequence.open, "sequence {} is open", seq.0);
        for (class, extent) in sequence.extents.into_iter().enumerate() {
            self.give(class, extent);
        }
    }

    fn restart(&mut self) {
        self.retire(u64::MAX);
        self.quarantines.fill_with(Quarantine::default);
        self.extents.iter_mut().for_each(|extents| extents.set_cursor(0));
    }

    fn defer(&mut self, epoch: u64) -> bool {
        self.quarantines.iter_mut().for_each(|quarantine| quarantine.begin(epoch));
        true
    }

    fn retire(&mut self, epoch: u64) {
        for (quarantine, extents) in self.quarantines.iter_mut().zip(&mut self.extents) {
            while let Some((_, run)) = quarantine.pop(epoch) {
                extents.give(run.cells());
            }
        }
    }

    fn waiting(&self, class: ClassId) -> u32 {
        self.quarantines[class.index()].iter().map(|run| run.len).sum()
    }

    fn len(&self, seq: SeqId) -> u32 {
        self.sequences.get(seq.index()).map_or(0, |sequence| sequence.len)
    }

    fn layout(&self, class: ClassId, seq: SeqId, runs: &mut Vec<Run>) -> Range<u32> {
        runs.clear();
        let sequence = self.sequence(seq);
        let extent = sequence.extents[class.index()];
        let first = extent.first.min(sequence.len);
        if extent.size > 0 {
            extent.runs(first, sequence.len, |_, run| push_run(runs, run.start, run.len));
        }
        first..sequence.len
    }

    fn holding(&self, class: ClassId, seq: SeqId, runs: &mut Vec<Run>) {
        runs.clear();
        let extent = self.sequence(seq).extents[class.index()];
        if extent.size > 0 {
            runs.push(Run { start: extent.start, len: extent.size });
        }
    }

    fn usage(&self, class: ClassId) -> Usage {
        let extents = &self.extents[class.index()];
        let (cells, free) = (self.geometry.classes[class.index()].cells, extents.map().free());
        Usage { cells, held: cells - free, cached: 0, free, placeable: extents.placeable() }
    }

    fn shape(&self, class: ClassId) -> Shape {
        self.extents[class.index()].shape()
    }

    fn audit(&self) -> Result<(), String> {
        for (class, allocator) in self.extents.iter().enumerate() {
            let extents = self.sequences.iter().filter_map(|sequence| sequence.extents.get(class));
            let held = extents.filter(|extent| extent.size > 0).map(|extent| extent.cells());
            let waiting = self.quarantines[class].iter().map(|run| run.cells());
            let audited = allocator.map().audit(held.chain(waiting)).and_then(|()| allocator.audit());
            audited.map_err(|what| format!("class {class}: {what}"))?;
        }
        for (id, sequence) in self.sequences.iter().enumerate().filter(|(_, sequence)| sequence.open) {
            for (class, extent) in sequence.extents.iter().enumerate() {
                let needed = self.geometry.classes[class].reach.first_needed(sequence.len);
                if sequence.len > 0 && (extent.first > needed || sequence.len - extent.first > extent.size) {
                    return Err(format!("class {class}: sequence {id} lacks cells it reads"));
                }
            }
        }
        Ok(())
    }
}

//! The physical effects of a policy's decisions, in execution order.
//!
//! The simulator prices a plan, an engine launches kernels for it, and the tests replay it on
//! shadow memory.

use crate::policy::{Cell, ClassId, Run, SeqId};

/// Why cells are copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// Compaction: make free cells neighbours.
    Defrag,
    /// The same beside a step, on a stream of its own: it takes bandwidth from the step, and no launches.
    Background,
    /// A reservation became too small and moved.
    Grow,
    /// A block that others hold or may find is written on by one of them, in a copy of its own.
    CopyOnWrite,
}

/// How K and V of a cell are rounded, from finer to coarser: blocks of 32 numbers along a head with a
/// 16-bit scale each, as in GGUF.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum KvBits {
    /// 8 bits a number.
    Q8_0,
    /// 4 bits a number.
    Q4_0,
}

/// One effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Tokens `first..first + run.len` of the sequence go to the cells of the run.
    Write {
        /// Layer class.
        class: ClassId,
        /// Sequence.
        seq: SeqId,
        /// First token, by index; its position is that plus [`Policy::offset`](crate::Policy::offset).
        first: u32,
        /// Cells.
        run: Run,
    },
    /// The payload (K and V of every layer of the class) of `len` cells is copied as one piece;
    /// source and target may overlap only where the target is lower.
    Copy {
        /// Layer class.
        class: ClassId,
        /// First source cell.
        from: Cell,
        /// First target cell.
        to: Cell,
        /// Cells.
        len: u32,
        /// Reason.
        why: Why,
    },
    /// K of these cells is rotated by `delta` positions.
    Rotate {
        /// Layer class.
        class: ClassId,
        /// Cells.
        run: Run,
        /// Positions, negative after a removal.
        delta: i32,
    },
    /// K and V of these cells are rounded, in place, and count as so coarse until they are written
    /// again. The coarsest rounding counts: a finer one after it moves numbers by less than its own step. A copy
    /// is as coarse as its source.
    Requantise {
        /// Layer class.
        class: ClassId,
        /// Cells.
        run: Run,
        /// How coarse.
        to: KvBits,
    },
    /// Physical memory appears at the virtual addresses of tokens `first..first + run.len`: one call of the
    /// driver for K and one for V of every layer. Cells are addresses of physical memory, so nothing moves.
    Map {
        /// Layer class.
        class: ClassId,
        /// Sequence whose addresses they are.
        seq: SeqId,
        /// First token.
        first: u32,
        /// Cells.
        run: Run,
    },
    /// It disappears from there.
    Unmap {
        /// Layer class.
        class: ClassId,
        /// Sequence whose addresses they were.
        seq: SeqId,
        /// First token.
        first: u32,
        /// Cells.
        run: Run,
    },
    /// The payload of these cells goes to host memory. It belongs to the request that the sequence
    /// serves now; when it comes back, that request may have another sequence.
    SwapOut {
        /// Layer class.
        class: ClassId,
        /// Sequence whose tokens they are.
        seq: SeqId,
        /// First token.
        first: u32,
        /// Cells.
        run: Run,
    },
    /// The payload of tokens `first..first + run.len` comes back from host memory into the cells.
    SwapIn {
        /// Layer class.
        class: ClassId,
        /// Sequence whose tokens they are.
        seq: SeqId,
        /// First token.
        first: u32,
        /// Cells.
        run: Run,
    },
    /// The payload of these cells is copied to as many cells of host memory, whoever's it is.
    Offload {
        /// Layer class.
        class: ClassId,
        /// Cells.
        run: Run,
        /// First cell of host memory.
        slot: Cell,
    },
    /// The payload of as many cells of host memory, which stays there, is copied into these cells.
    Fetch {
        /// Layer class.
        class: ClassId,
        /// First cell of host memory.
        slot: Cell,
        /// Cells.
        run: Run,
    },
}

/// Effects in execution order. The buffer is reused from step to step.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    effects: Vec<Effect>,
    defrag_passes: u32,
    graphs: u32,
    without_writes: bool,
}

impl Plan {
    /// An empty plan.
    pub fn new() -> Self {
        Plan::default()
    }

    /// An empty plan that drops writes: they are the step's own work, and who only prices the
    /// rest saves time.
    pub fn without_writes() -> Self {
        Plan { without_writes: true, ..Plan::default() }
    }

    /// The effects, in order.
    pub fn effects(&self) -> &[Effect] {
        &self.effects
    }

    /// Compaction passes that are part of the plan.
    pub fn defrag_passes(&self) -> u32 {
        self.defrag_passes
    }

    /// Compute graphs that the copies and rotations are launched in, where the policy reproduces a
    /// server that builds one apart from the step's own; 0 for others.
    pub fn graphs(&self) -> u32 {
        self.graphs
    }

    /// Whether nothing is to be done.
    pub fn is_empty(&self) -> bool {
        self.effects.is_empty()
    }

    /// Forgets all effects.
    pub fn clear(&mut self) {
        self.effects.clear();
        self.defrag_passes = 0;
        self.graphs = 0;
    }

    /// Appends an effect.
    pub fn push(&mut self, effect: Effect) {
        if !(self.without_writes && matches!(effect, Effect::Write { .. })) {
            self.effects.push(effect);
        }
    }

    /// Whether writes are kept, so that a policy need not describe them in vain.
    pub(crate) fn wants_writes(&self) -> bool {
        !self.without_writes
    }

    /// Appends another plan, without the writes of some sequences.
    pub(crate) fn append_without(&mut self, other: Plan, is_left_out: impl Fn(SeqId) -> bool) {
        self.defrag_passes += other.defrag_passes;
        self.graphs += other.graphs;
        for effect in other.effects {
            if !matches!(effect, Effect::Write { seq, .. } if is_left_out(seq)) {
                self.push(effect);
            }
        }
    }

    /// Forgets the rotations after the first `from` effects.
    pub(crate) fn forget_rotations(&mut self, from: usize) {
        let mut left = from;
        self.effects.retain(|effect| {
            let is_before = left > 0;
            left = left.saturating_sub(1);
            is_before || !matches!(effect, Effect::Rotate { .. })
        });
    }

    /// Notes a compute graph of copies or rotations.
    pub(crate) fn begin_graph(&mut self) {
        self.graphs += 1;
    }

    /// Notes that a compaction pass has begun.
    pub(crate) fn begin_defrag(&mut self) {
        self.defrag_passes += 1;
    }
}

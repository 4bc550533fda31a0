//! What a cache knows of one sequence: its cells by position, and their bounds.

use std::collections::VecDeque;

use crate::ollama::set::CellSet;
use crate::policy::Cell;

/// Bounds of the cells of a sequence, both inclusive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Lowest cell.
    pub min: Cell,
    /// Highest cell.
    pub max: Cell,
}

impl Span {
    /// The bounds of no cells, which a sequence has when its cells are gone but it is still known.
    pub const EMPTY: Span = Span { min: Cell::MAX, max: 0 };

    pub(super) fn union(self, other: Span) -> Span {
        Span { min: self.min.min(other.min), max: self.max.max(other.max) }
    }
}

/// A cell of a sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Held {
    pub pos: i32,
    pub cell: Cell,
    /// Whether the sequence was told that the cell is gone though it is not.
    pub stale: bool,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Sequence {
    /// As the server keeps them: wider than the cells after a removal that failed halfway, and
    /// none once a removal has left nothing.
    pub range: Option<Span>,
    /// By position; a position may be there twice after a removal that failed.
    pub held: VecDeque<Held>,
    pub cells: CellSet,
    /// Cells that hold another writer's K and V than the books say.
    pub foreign: u32,
    /// Who writes now: a new number whenever the sequence begins anew, 0 until it has one.
    pub writer: u32,
}

impl Sequence {
    /// The true bounds of its cells.
    pub fn bounds(&self) -> Span {
        self.cells.ends().map_or(Span::EMPTY, |(min, max)| Span { min, max })
    }

    /// Index of the first cell whose position is not below `pos`.
    pub fn index_of(&self, pos: i32) -> usize {
        self.held.partition_point(|held| held.pos < pos)
    }

    /// Adds a cell behind all of its position.
    pub fn add(&mut self, held: Held) {
        if self.held.back().is_none_or(|last| last.pos <= held.pos) {
            self.held.push_back(held);
        } else {
            self.held.insert(self.held.partition_point(|other| other.pos <= held.pos), held);
        }
    }

    /// Notes that a cell's content has another cell now.
    pub fn relocate(&mut self, pos: i32, from: Cell, to: Cell, cells: u32) {
        // Where every position is there once, the first one tells where this one is.
        let first = self.held.front().map_or(pos, |held| held.pos);
        let guess = pos.wrapping_sub(first) as usize;
        let index = match self.held.get(guess) {
            Some(held) if held.cell == from => guess,
            _ => {
                let least = self.index_of(pos);
                let offset = self.held.range(least..).position(|held| held.cell == from);
                least + offset.expect("the sequence holds the cell at this position")
            }
        };
        self.held[index].cell = to;
        self.cells.remove(from);
        self.cells.insert(to, cells);
    }
}

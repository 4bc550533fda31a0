//! Compaction as the server does it: pair by pair, in graphs of limited size.
//!
//! The highest used cell goes to the lowest free one until all used cells lie below all free ones.
//! Two moves in a row are joined to one copy where both sources and both targets are neighbours.
//! The books of such a pair are turned over (sources come from the top, targets from the bottom),
//! its data is copied as it lies: each of the two cells then holds the other's K and V.
//!
//! As the pending source starts lower after each join, a third move joins only across a hole: it
//! does when it comes from as many cells further down as the copy is long. Such a copy takes the
//! hole's old content along, of whoever was there, and leaves a used cell's data behind.

use crate::ollama::cache::Cache;
use crate::ollama::sequence::Sequence;
use crate::plan::{Effect, Plan, Why};
use crate::policy::Cell;

/// A copy that waits for a neighbour.
struct Pending {
    from: Cell,
    to: Cell,
    len: u32,
}

impl Cache {
    /// Copies that fit into one graph: two tensors a layer are set up, three nodes for each of K and
    /// V are needed for a copy.
    fn graph_copies(&self) -> i64 {
        let layers = i64::from(self.setup.layers.max(1));
        (i64::from(self.setup.graph_nodes) - 2 * layers) / (6 * layers)
    }

    /// Compacts the cache. The copies and the number of graphs go to the plan.
    pub(super) fn defragment(&mut self, plan: &mut Plan) {
        plan.begin_defrag();
        let mut moves: Vec<(Cell, Cell, u32)> = Vec::new();
        self.map.compact(u32::MAX, |from, to, len| moves.push((from, to, len)));
        let most = self.graph_copies();
        let mut pending: Option<Pending> = None;
        let mut copies = 0;
        for (from, to, len) in moves {
            for (from, to) in (from..from + len).rev().zip(to..) {
                self.move_books(from, to);
                match &mut pending {
                    Some(run) if from + run.len == run.from && to == run.to + run.len => {
                        run.from = from;
                        run.len += 1;
                    }
                    _ => {
                        if let Some(run) = pending.replace(Pending { from, to, len: 1 }) {
                            self.copy(&run, plan);
                            copies += 1;
                        }
                    }
                }
                if copies >= most {
                    plan.begin_graph();
                    copies = 0;
                }
            }
        }
        if let Some(run) = pending {
            self.copy(&run, plan);
            copies += 1;
        }
        if copies > 0 {
            plan.begin_graph();
        }
        for sequence in self.sequences.iter_mut().filter(|sequence| sequence.range.is_some()) {
            sequence.range = Some(Sequence::bounds(sequence));
        }
    }

    /// Moves position, owners and what should be there.
    fn move_books(&mut self, from: Cell, to: Cell) {
        self.acquit(from);
        for i in 0..self.owners(from).len() {
            let owner = self.owners(from)[i];
            let pos = self.pos(from);
            self.sequences[owner as usize].relocate(pos, from, to, self.setup.cells);
        }
        if let Some(owners) = self.shared.remove(&from) {
            self.shared.insert(to, owners);
        }
        // The data follows when the run is copied.
        self.books[to as usize] = self.books[from as usize];
        self.books[from as usize].release();
    }

    /// Copies the data of a pending run.
    fn copy(&mut self, run: &Pending, plan: &mut Plan) {
        let &Pending { from, to, len } = run;
        plan.push(Effect::Copy { class: self.setup.class, from, to, len, why: Why::Defrag });
        for i in 0..len {
            self.books[(to + i) as usize].held = self.books[(from + i) as usize].held;
        }
        (to..to + len).for_each(|cell| self.judge(cell));
    }
}

//! What every cell holds, by the names of the contexts under which its K and V were computed.
//!
//! A policy's books say whose a cell is; this says what lies in it. The two differ after a wrong copy,
//! a wrong hit or a context shift, and then a request reads what is not its own context.

use std::collections::BTreeMap;

use policies::{Effect, Plan, SeqId};

use crate::backend::View;

/// Per class, the name of what lies in each cell; 0 where nothing ever did.
#[derive(Clone, Debug, Default)]
pub(super) struct Ledger {
    cells: Vec<Vec<u64>>,
    host: BTreeMap<(u8, u64, u32), u64>,
    /// Cells of host memory.
    slots: BTreeMap<(u8, u32), u64>,
}

impl Ledger {
    fn class(&mut self, class: usize) -> &mut Vec<u64> {
        if self.cells.len() <= class {
            self.cells.resize_with(class + 1, Vec::new);
        }
        &mut self.cells[class]
    }

    fn get(&self, class: usize, cell: u32) -> u64 {
        self.cells.get(class).and_then(|cells| cells.get(cell as usize)).copied().unwrap_or(0)
    }

    pub fn set(&mut self, class: usize, cell: u32, name: u64) {
        let cells = self.class(class);
        if cells.len() <= cell as usize {
            cells.resize(cell as usize + 1, 0);
        }
        cells[cell as usize] = name;
    }

    /// Executes copies and transfers.
    pub fn apply(&mut self, plan: &Plan, request_of: &dyn Fn(SeqId) -> u64) {
        for effect in plan.effects() {
            match *effect {
                Effect::Copy { class, from, to, len, .. } => {
                    for i in 0..len {
                        let name = self.get(class.index(), from + i);
                        self.set(class.index(), to + i, name);
                    }
                }
                Effect::SwapOut { class, seq, first, run } => {
                    for (cell, token) in run.cells().zip(first..) {
                        let name = self.get(class.index(), cell);
                        self.host.insert((class.0, request_of(seq), token), name);
                    }
                }
                Effect::SwapIn { class, seq, first, run } => {
                    for (cell, token) in run.cells().zip(first..) {
                        let name = self.host.remove(&(class.0, request_of(seq), token)).unwrap_or(0);
                        self.set(class.index(), cell, name);
                    }
                }
                Effect::Offload { class, run, slot } => {
                    for (cell, slot) in run.cells().zip(slot..) {
                        let name = self.get(class.index(), cell);
                        self.slots.insert((class.0, slot), name);
                    }
                }
                Effect::Fetch { class, slot, run } => {
                    for (cell, slot) in run.cells().zip(slot..) {
                        let name = self.slots.get(&(class.0, slot)).copied().unwrap_or(0);
                        self.set(class.index(), cell, name);
                    }
                }
                Effect::Write { .. }
                | Effect::Rotate { .. }
                | Effect::Requantise { .. }
                | Effect::Map { .. }
                | Effect::Unmap { .. } => {}
            }
        }
    }

    /// How many of a sequence's tokens from `from` to below `end` lie in no cell, or in one that holds
    /// something else than `names` say.
    pub fn strangers(&self, class: usize, view: &View, from: u32, end: u32, names: &[u64]) -> u32 {
        let unplaced = view.first.min(end).saturating_sub(from);
        let placed = view.cells().zip(view.first..end).filter(|(_, token)| *token >= from);
        let wrong = placed.filter(|&(cell, token)| self.get(class, cell) != names[token as usize]);
        unplaced + wrong.count() as u32
    }

    /// Forgets what lies in host memory.
    pub fn restart(&mut self) {
        self.host.clear();
        self.slots.clear();
    }
}

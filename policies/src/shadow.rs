//! Shadow memory: what every cell really holds, by executing plans.
//!
//! Metadata (who owns a cell) and payload (which token's K and V lie in it, rotated to which
//! position) are different things; a policy whose copies disagree with its books is seen here.

use std::collections::BTreeMap;

use crate::plan::{Effect, KvBits, Plan};
use crate::policy::{Cell, ClassId, Policy, Run, SeqId};

/// What lies in a cell: a token, and the position its K is rotated to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Payload {
    /// Identity of the token, given by whoever wrote it.
    pub token: u64,
    /// Position of its K; 0 where K is stored before its rotation.
    pub position: u32,
    /// What its K and V have been rounded to; none as they were written.
    pub rounded: Option<KvBits>,
}

/// The payload of all cells, and of what went to host memory.
#[derive(Clone, Debug, Default)]
pub struct Shadow {
    cells: BTreeMap<(u8, Cell), Payload>,
    host: BTreeMap<(u8, u32, u32), Payload>,
    /// Cells of host memory.
    slots: BTreeMap<(u8, Cell), Payload>,
    /// Whether K is stored before its rotation.
    unrotated: bool,
}

impl Shadow {
    /// Nothing anywhere.
    pub fn new() -> Self {
        Shadow::default()
    }

    /// Nothing anywhere, with K stored as a policy wants it ([`Policy::rotates_on_read`]).
    pub fn of(policy: &dyn Policy) -> Self {
        Shadow { unrotated: policy.rotates_on_read(), ..Shadow::default() }
    }

    /// Executes a plan of a policy whose tokens stand at the positions of their indices. `token_of`
    /// gives the identity of a sequence's token by its index.
    pub fn run(&mut self, plan: &Plan, token_of: impl Fn(SeqId, u32) -> u64) {
        self.run_at(plan, |_| 0, token_of);
    }

    /// The same where new tokens of a sequence stand `offset_of` positions further up
    /// ([`Policy::offset`] once the plan is made).
    pub fn run_at(
        &mut self,
        plan: &Plan,
        offset_of: impl Fn(SeqId) -> u32,
        token_of: impl Fn(SeqId, u32) -> u64,
    ) {
        for effect in plan.effects() {
            match *effect {
                Effect::Write { class, seq, first, run } => {
                    let offset = offset_of(seq);
                    for (cell, index) in run.cells().zip(first..) {
                        let position = if self.unrotated { 0 } else { index + offset };
                        let token = token_of(seq, index);
                        self.cells.insert((class.0, cell), Payload { token, position, rounded: None });
                    }
                }
                Effect::Copy { class, from, to, len, .. } => {
                    for i in 0..len {
                        match self.cells.get(&(class.0, from + i)).copied() {
                            Some(payload) => self.cells.insert((class.0, to + i), payload),
                            None => self.cells.remove(&(class.0, to + i)),
                        };
                    }
                }
                Effect::Rotate { class, run, delta } => {
                    for cell in run.cells() {
                        if let Some(payload) = self.cells.get_mut(&(class.0, cell)) {
                            payload.position = payload.position.wrapping_add_signed(delta);
                        }
                    }
                }
                Effect::Requantise { class, run, to } => {
                    for cell in run.cells() {
                        if let Some(payload) = self.cells.get_mut(&(class.0, cell)) {
                            payload.rounded = payload.rounded.max(Some(to));
                        }
                    }
                }
                Effect::Map { .. } | Effect::Unmap { .. } => {}
                Effect::SwapOut { class, seq, first, run } => {
                    for (cell, token) in run.cells().zip(first..) {
                        if let Some(&payload) = self.cells.get(&(class.0, cell)) {
                            self.host.insert((class.0, seq.0, token), payload);
                        }
                    }
                }
                Effect::SwapIn { class, seq, first, run } => {
                    for (cell, token) in run.cells().zip(first..) {
                        match self.host.remove(&(class.0, seq.0, token)) {
                            Some(payload) => self.cells.insert((class.0, cell), payload),
                            None => self.cells.remove(&(class.0, cell)),
                        };
                    }
                }
                Effect::Offload { class, run, slot } => {
                    for (cell, slot) in run.cells().zip(slot..) {
                        match self.cells.get(&(class.0, cell)).copied() {
                            Some(payload) => self.slots.insert((class.0, slot), payload),
                            None => self.slots.remove(&(class.0, slot)),
                        };
                    }
                }
                Effect::Fetch { class, slot, run } => {
                    for (cell, slot) in run.cells().zip(slot..) {
                        match self.slots.get(&(class.0, slot)).copied() {
                            Some(payload) => self.cells.insert((class.0, cell), payload),
                            None => self.cells.remove(&(class.0, cell)),
                        };
                    }
                }
            }
        }
    }

    /// What a cell holds, if anything was ever put there.
    pub fn payload(&self, class: ClassId, cell: Cell) -> Option<Payload> {
        self.cells.get(&(class.0, cell)).copied()
    }

    /// Compares a sequence with what it should read: for every token that is still needed,
    /// `expected` gives the identity by index. A rotation or a transfer that the policy still owes counts as
    /// done; what was rounded is still what it was.
    ///
    /// # Errors
    /// The first token that is somewhere else or something else.
    pub fn check(
        &self,
        policy: &dyn Policy,
        seq: SeqId,
        expected: impl Fn(u32) -> u64,
    ) -> Result<(), String> {
        let mut runs: Vec<Run> = Vec::new();
        let mut turns: Vec<(Run, i32)> = Vec::new();
        let mut owed: Vec<(Run, Cell)> = Vec::new();
        for class in policy.geometry().class_ids() {
            policy.unrotated(class, &mut turns);
            policy.unfetched(class, &mut owed);
            let found = |cell: Cell| match owed.iter().find(|(run, _)| run.cells().contains(&cell)) {
                Some((run, slot)) => self.slots.get(&(class.0, slot + cell - run.start)).copied(),
                None => self.payload(class, cell),
            };
            let still = |cell: Cell| {
                turns.iter().find(|(run, _)| run.cells().contains(&cell)).map_or(0, |turn| turn.1)
            };
            let tokens = policy.layout(class, seq, &mut runs);
            let cells: Vec<Cell> = runs.iter().flat_map(|run| run.cells()).collect();
            if cells.len() != tokens.len() || tokens.end != policy.len(seq) {
                return Err(format!("class {}: {} cells for tokens {tokens:?}", class.0, cells.len()));
            }
            for (token, &cell) in tokens.zip(&cells) {
                let position = if self.unrotated { 0 } else { policy.position(seq, token) };
                let wanted = (expected(token), position.wrapping_add_signed(still(cell).wrapping_neg()));
                match found(cell) {
                    Some(found) if (found.token, found.position) == wanted => {}
                    found => {
                        return Err(format!(
                            "class {}: sequence {} token {token} in cell {cell}: {found:?}, expected {wanted:?}",
                            class.0, seq.0
                        ));
                    }
                }
            }
        }
        Ok(())
    }
}

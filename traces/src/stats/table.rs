//! A table from ids to numbers that is only ever asked for one id, up to a fixed size.
//!
//! Open addressing, at most half full, 16 bytes a slot: one cache miss per look-up, where an
//! ordered map has several.

use crate::chain::scramble;

const SLOTS_MIN: usize = 1 << 10;
/// Marks a free slot; the value that a count or a position never reaches.
const FREE: u64 = u64::MAX;

#[derive(Clone, Debug)]
pub(super) struct IdTable {
    slots: Vec<(u64, u64)>,
    len: usize,
    len_max: usize,
}

impl IdTable {
    /// An empty table that takes at most so many ids.
    pub(super) fn new(len_max: usize) -> Self {
        IdTable { slots: vec![(0, FREE); SLOTS_MIN], len: 0, len_max }
    }

    /// Looks an id up, and puts it in with `value` where it is new and there is room.
    pub(super) fn entry(&mut self, id: u64, value: u64) -> Entry<'_> {
        if (self.len + 1) * 2 > self.slots.len() && self.len < self.len_max {
            self.grow();
        }
        let slot = self.slot_of(id);
        if self.slots[slot].1 != FREE {
            return Entry::Known(&mut self.slots[slot].1);
        }
        if self.len >= self.len_max {
            return Entry::Full;
        }
        self.slots[slot] = (id, value);
        self.len += 1;
        Entry::New
    }

    /// Number of ids.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// The slot that holds an id, or the free one where it would go.
    fn slot_of(&self, id: u64) -> usize {
        let mask = self.slots.len() - 1;
        let mut slot = scramble(id) as usize & mask;
        while self.slots[slot].1 != FREE && self.slots[slot].0 != id {
            slot = (slot + 1) & mask;
        }
        slot
    }

    fn grow(&mut self) {
        let larger = vec![(0, FREE); self.slots.len() * 2];
        for (id, value) in std::mem::replace(&mut self.slots, larger) {
            if value != FREE {
                let slot = self.slot_of(id);
                self.slots[slot] = (id, value);
            }
        }
    }
}

/// What a table says about an id.
pub(super) enum Entry<'a> {
    /// It was there, with this value.
    Known(&'a mut u64),
    /// It was not there and is now.
    New,
    /// It is not there and there is no room.
    Full,
}

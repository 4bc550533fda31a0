//! Which block is known by a key: an open table of eight bytes a slot, for pools larger than the CPU's caches.
//!
//! A slot has the block and 32 bits of the key's hash. Its owner, who keeps the keys anyway, says whether the block has
//! a key; that is asked where the bits agree only. So most calls touch one cache line, while a map that has the keys
//! as well takes one for its control bytes and one for the entry, out of a table twice as large. What is removed
//! leaves no mark: those behind it move up (Knuth, The Art of Computer Programming 3, 6.4, algorithm R).
//!
//! Cost: O(1) expected, 16 to 32 bytes a name once there are a few. The order of slots cannot show: nothing goes through them.

use crate::pool::Block;

/// Slots at first.
const SLOTS_MIN: usize = 16;
/// A slot without a name; no block has this number.
const EMPTY: u64 = u64::MAX;

/// The table.
#[derive(Debug)]
pub(crate) struct Names {
    /// The hash's bits above, the block below; their number is a power of two.
    slots: Vec<u64>,
    len: usize,
}

impl Default for Names {
    fn default() -> Self {
        Names { slots: vec![EMPTY; SLOTS_MIN], len: 0 }
    }
}

impl Names {
    /// Names that are known.
    pub fn len(&self) -> usize {
        self.len
    }

    /// The block that is known by a key; `has_key` says whether a block has it.
    #[inline]
    pub fn find(&self, key: u64, has_key: impl Fn(Block) -> bool) -> Option<Block> {
        self.look(name(key, 0), has_key).ok().map(|i| self.slots[i] as Block)
    }

    /// The slot of whoever is known by a key, or the empty one where one stops looking.
    #[inline]
    fn look(&self, name: u64, has_key: impl Fn(Block) -> bool) -> Result<usize, usize> {
        let mut i = self.home(name);
        while self.slots[i] != EMPTY {
            if self.slots[i] >> 32 == name >> 32 && has_key(self.slots[i] as Block) {
                return Ok(i);
            }
            i = self.after(i);
        }
        Err(i)
    }

    /// Makes a block known by a key, unless one is; `has_key` says whether a block has it. Whether it is known now.
    #[inline]
    pub fn insert(&mut self, key: u64, block: Block, has_key: impl Fn(Block) -> bool) -> bool {
        let name = name(key, block);
        let Err(empty) = self.look(name, has_key) else { return false };
        self.slots[empty] = name;
        self.len += 1;
        if self.len > self.slots.len() / 2 {
            self.grow();
        }
        true
    }

    /// Forgets that a block is known by a key, if it is.
    #[inline]
    pub fn remove(&mut self, key: u64, block: Block) {
        let name = name(key, block);
        let mut hole = self.home(name);
        while self.slots[hole] != name {
            if self.slots[hole] == EMPTY {
                return;
            }
            hole = self.after(hole);
        }
        self.len -= 1;
        let mut i = self.after(hole);
        while self.slots[i] != EMPTY {
            // It may move up as far as the place where one begins to look for it.
            if self.distance(self.home(self.slots[i]), i) >= self.distance(hole, i) {
                self.slots[hole] = self.slots[i];
                hole = i;
            }
            i = self.after(i);
        }
        self.slots[hole] = EMPTY;
    }

    /// Where one begins to look for a name: as many of its upper bits as it takes.
    fn home(&self, name: u64) -> usize {
        (name >> (64 - self.slots.len().trailing_zeros())) as usize
    }

    fn after(&self, i: usize) -> usize {
        (i + 1) & (self.slots.len() - 1)
    }

    /// Steps from one slot on to another.
    fn distance(&self, from: usize, to: usize) -> usize {
        to.wrapping_sub(from) & (self.slots.len() - 1)
    }

    #[cold]
    fn grow(&mut self) {
        let slots = vec![EMPTY; self.slots.len() * 2];
        for name in std::mem::replace(&mut self.slots, slots).into_iter().filter(|&name| name != EMPTY) {
            // All have different keys, so that nobody is found.
            if let Err(empty) = self.look(name, |_| false) {
                self.slots[empty] = name;
            }
        }
    }
}

/// What a slot says of a block that is known by a key: the upper bits of a multiplicative hash (the 64-bit golden
/// ratio), then the block.
fn name(key: u64, block: Block) -> u64 {
    key.wrapping_mul(0x9e37_79b9_7f4a_7c15) & !u64::from(u32::MAX) | u64::from(block)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// Keys that differ in bits which do not reach the slot, keys that lie side by side, and others.
        #[test]
        fn names_are_a_map(
            calls in prop::collection::vec((0..3u8, 0..60u64, 0..3u8), 1..400),
            spread in prop_oneof![Just(1u64), Just(1 << 40), any::<u64>()],
        ) {
            let mut names = Names::default();
            let mut map: BTreeMap<u64, Block> = BTreeMap::new();
            for (block, &(call, word, alike)) in (0..).zip(&calls) {
                // Inverse of the multiplier: the hash of this key is what is written here.
                let hash = (word << 58) | (word / 8) << 33 | u64::from(alike);
                let key = if alike < 2 { hash.wrapping_mul(0xf1de_83e1_9937_733d) } else { word.wrapping_mul(spread) };
                let has_key = |block: Block| map.get(&key) == Some(&block);
                prop_assert_eq!(names.find(key, has_key), map.get(&key).copied());
                if call < 2 {
                    let is_new = names.insert(key, block, has_key);
                    prop_assert_eq!(is_new, !map.contains_key(&key));
                    map.entry(key).or_insert(block);
                } else if let Some(block) = map.remove(&key) {
                    names.remove(key, block);
                } else {
                    names.remove(key, block);
                }
                prop_assert_eq!(names.len(), map.len());
            }
            for (&key, &block) in &map {
                prop_assert_eq!(names.find(key, |block| map.get(&key) == Some(&block)), Some(block));
            }
        }
    }
}

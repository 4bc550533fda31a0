//! Blocks in the order of their ranks, for ranks that mostly come in order.
//!
//! Rising stretches of blocks lie in queues, each below the next; what comes goes to the end of one, or before all
//! of them. Only what fits nowhere goes to a tree. A block that is withdrawn stays in its queue and is passed over
//! later.
//!
//! Cost: O(1) where ranks rise, or fall stretch by stretch; O(log n) otherwise.

use std::collections::{BTreeSet, VecDeque};

use crate::pool::Block;

/// Queues there may be; few in tests, so that something fits nowhere.
const QUEUES_MAX: usize = if cfg!(test) { 4 } else { 1024 };
/// What is moved at most to make a rank fit.
const MOVED_MAX: usize = if cfg!(test) { 3 } else { 64 };

#[derive(Clone, Copy)]
struct Entry<R> {
    rank: R,
    block: Block,
    /// The block's turn when it came.
    turn: u32,
}

impl<R: Copy> Entry<R> {
    fn key(self) -> (R, Block) {
        (self.rank, self.block)
    }
}

/// Of each block, how often it came into a queue and left: odd while it is in one. An entry of the queue that has another
/// turn than its block is stale.
pub(super) struct Turns(Vec<u32>);

impl Turns {
    pub fn new(blocks: u32) -> Self {
        Turns(vec![0; blocks as usize])
    }

    /// The block comes; the turn of its entry.
    pub fn enter(&mut self, block: Block) -> u32 {
        let turn = &mut self.0[block as usize];
        *turn = turn.wrapping_add(1);
        *turn
    }

    /// It leaves: its entry is stale.
    pub fn leave(&mut self, block: Block) {
        self.enter(block);
    }

    pub fn is_in(&self, block: Block) -> bool {
        !self.0[block as usize].is_multiple_of(2)
    }

    /// Whether an entry of this turn counts.
    pub fn count(&self, block: Block, turn: u32) -> bool {
        self.0[block as usize] == turn
    }
}

pub(super) struct Order<R> {
    /// None is empty, and all of one is below all of the next.
    queues: VecDeque<VecDeque<Entry<R>>>,
    /// The queue that grew last.
    last: usize,
    /// What fits into no queue.
    others: BTreeSet<(R, Block)>,
    turns: Turns,
    /// Entries of queues that count, and those that do not.
    queued: usize,
    stale: usize,
}

impl<R: Copy + Ord> Order<R> {
    pub fn new(blocks: u32) -> Self {
        Order {
            queues: VecDeque::new(),
            last: 0,
            others: BTreeSet::new(),
            turns: Turns::new(blocks),
            queued: 0,
            stale: 0,
        }
    }

    pub fn len(&self) -> usize {
        self.queued + self.others.len()
    }

    /// Adds a block that is not there.
    pub fn insert(&mut self, rank: R, block: Block) {
        let Some(queue) = self.queue_for((rank, block)) else {
            self.others.insert((rank, block));
            return;
        };
        let turn = self.turns.enter(block);
        self.queues[queue].push_back(Entry { rank, block, turn });
        self.last = queue;
        self.queued += 1;
    }

    /// The queue whose end is the place for a key, if there is one or can be.
    fn queue_for(&mut self, key: (R, Block)) -> Option<usize> {
        let front = |queue: &VecDeque<Entry<R>>| queue.front().is_some_and(|entry| entry.key() < key);
        let is_behind = |queue: &VecDeque<Entry<R>>| queue.back().is_some_and(|entry| entry.key() < key);
        let is_before = |queue: Option<&VecDeque<Entry<R>>>| queue.is_none_or(|queue| !front(queue));
        let last = self.last;
        if self.queues.get(last).is_some_and(is_behind) && is_before(self.queues.get(last + 1)) {
            return Some(last);
        }
        let below = self.queues.partition_point(front);
        let has_room = self.queues.len() < QUEUES_MAX;
        let Some(queue) = below.checked_sub(1) else {
            if has_room {
                self.queues.push_front(VecDeque::new());
            }
            return has_room.then_some(0);
        };
        if !is_behind(&self.queues[queue]) {
            // What comes after it makes a queue of its own, if that is little.
            let entries = &mut self.queues[queue];
            let from = entries.partition_point(|entry| entry.key() < key);
            if !has_room || entries.len() - from > MOVED_MAX {
                return None;
            }
            let after = entries.split_off(from);
            self.queues.insert(queue + 1, after);
        }
        Some(queue)
    }

    /// Takes out a block that was added with this rank.
    pub fn remove(&mut self, rank: R, block: Block) {
        if !self.turns.is_in(block) {
            self.others.remove(&(rank, block));
            return;
        }
        self.turns.leave(block);
        self.queued -= 1;
        self.stale += 1;
        if self.stale > self.queued + MOVED_MAX {
            let turns = &self.turns;
            self.queues.iter_mut().for_each(|queue| {
                queue.retain(|entry| turns.count(entry.block, entry.turn));
            });
            self.queues.retain(|queue| !queue.is_empty());
            (self.stale, self.last) = (0, 0);
        }
    }

    fn counts(&self, entry: &Entry<R>) -> bool {
        self.turns.count(entry.block, entry.turn)
    }

    /// Takes out the lowest.
    pub fn pop_first(&mut self) -> Option<(R, Block)> {
        while let Some(entry) = self.queues.front().and_then(VecDeque::front).copied() {
            let counts = self.counts(&entry);
            if counts && self.others.first().is_some_and(|first| *first < entry.key()) {
                break;
            }
            self.queues[0].pop_front();
            if self.queues[0].is_empty() {
                self.queues.pop_front();
                self.last = self.last.saturating_sub(1);
            }
            if counts {
                self.turns.leave(entry.block);
                self.queued -= 1;
                return Some(entry.key());
            }
            self.stale -= 1;
        }
        self.others.pop_first()
    }

    /// All blocks, the lowest first.
    pub fn iter(&self) -> impl Iterator<Item = (R, Block)> + '_ {
        let queued = self.queues.iter().flatten().filter(|entry| self.counts(entry)).map(|entry| entry.key());
        let (mut queued, mut others) = (queued.peekable(), self.others.iter().copied().peekable());
        std::iter::from_fn(move || match (queued.peek(), others.peek()) {
            (Some(a), Some(b)) if b < a => others.next(),
            (Some(_), _) => queued.next(),
            (None, _) => others.next(),
        })
    }

    /// Takes out all from this rank on, the lowest first.
    pub fn split_off(&mut self, from: R) -> Vec<(R, Block)> {
        let split: Vec<(R, Block)> = self.iter().skip_while(|(rank, _)| *rank < from).collect();
        split.iter().for_each(|&(rank, block)| self.remove(rank, block));
        split
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Call {
        /// Ranks that rise, that fall by stretches, or any.
        Insert {
            block: Block,
            kind: u8,
            any: i64,
        },
        Remove {
            block: Block,
        },
        Pop,
        Split {
            any: i64,
        },
    }

    fn call() -> impl Strategy<Value = Call> {
        prop_oneof![
            8 => (0..40u32, 0..4u8, -50..50i64).prop_map(|(block, kind, any)| Call::Insert { block, kind, any }),
            3 => (0..40u32).prop_map(|block| Call::Remove { block }),
            3 => Just(Call::Pop),
            1 => (-60..400i64).prop_map(|any| Call::Split { any }),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn an_order_is_a_sorted_set(calls in prop::collection::vec(call(), 1..400)) {
            let mut order = Order::new(40);
            let mut set: BTreeSet<(i64, Block)> = BTreeSet::new();
            for (time, call) in (0..).zip(&calls) {
                match *call {
                    Call::Insert { block, kind, any } if set.iter().all(|entry| entry.1 != block) => {
                        let rank = match kind {
                            0 | 1 => time,
                            2 => -(time / 8) * 8 + time % 8,
                            _ => any,
                        };
                        order.insert(rank, block);
                        set.insert((rank, block));
                    }
                    Call::Insert { .. } => {}
                    Call::Remove { block } => {
                        if let Some(&(rank, block)) = set.iter().find(|entry| entry.1 == block) {
                            order.remove(rank, block);
                            set.remove(&(rank, block));
                        }
                    }
                    Call::Pop => prop_assert_eq!(order.pop_first(), set.pop_first()),
                    Call::Split { any } => {
                        let split = set.split_off(&(any, 0));
                        prop_assert_eq!(order.split_off(any), split.into_iter().collect::<Vec<_>>());
                    }
                }
                prop_assert_eq!(order.len(), set.len());
                prop_assert!(order.iter().eq(set.iter().copied()));
            }
        }
    }
}

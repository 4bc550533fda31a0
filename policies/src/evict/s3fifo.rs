//! S3-FIFO: a small queue for newcomers, a main one for what was used again, and a memory of what went.
//!
//! A block that nobody adopted twice while in the small queue leaves by it and is remembered by its key;
//! one that comes back soon goes to the main queue at once. Hits move nothing: they count to three, and each
//! spares a block one round of the main queue. A held block keeps its place in its queue and is passed
//! over; sizes of queues count blocks on offer.
//! Source: Yang et al., FIFO queues are all you need for cache eviction, SOSP 2023.
//!
//! Cost: O(1) for who comes back in turn, O(log n) for finding one's place again; at most three rounds per block in the main queue.

use std::collections::VecDeque;

use super::Evictor;
use super::ghosts::Ghosts;
use super::order::Order;
use crate::pool::Block;

/// The small queue's share of the blocks is one part in so many.
const SMALL: usize = 10;
/// Hits are counted up to here.
const HITS_MAX: u8 = 3;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Queue {
    Small,
    Main,
}

#[derive(Clone, Copy)]
struct Entry {
    queue: Queue,
    /// Place in the queue; 0 before it has come back for the first time.
    place: u64,
    hits: u8,
    key: u64,
}

pub(super) struct S3Fifo {
    entries: Vec<Entry>,
    small: Order<u64>,
    main: Order<u64>,
    /// Keys that left by the small queue, as many as the main one may have blocks.
    ghosts: Ghosts,
    stamp: u64,
}

impl S3Fifo {
    pub fn new(blocks: u32) -> Self {
        let entry = Entry { queue: Queue::Small, place: 0, hits: 0, key: 0 };
        S3Fifo {
            entries: vec![entry; blocks as usize],
            small: Order::new(blocks),
            main: Order::new(blocks),
            ghosts: Ghosts::new(blocks as usize - blocks as usize / SMALL),
            stamp: 0,
        }
    }

    fn next_stamp(&mut self) -> u64 {
        self.stamp += 1;
        self.stamp
    }

    fn enqueue(&mut self, block: Block, queue: Queue, hits: u8) {
        let place = self.next_stamp();
        let entry = &mut self.entries[block as usize];
        *entry = Entry { queue, place, hits, ..*entry };
        self.main.insert(place, block);
    }
}

impl Evictor for S3Fifo {
    fn store(&mut self, block: Block, key: u64, _: u32) {
        let queue = if self.ghosts.forget(key) { Queue::Main } else { Queue::Small };
        self.entries[block as usize] = Entry { queue, place: 0, hits: 0, key };
    }

    fn hit(&mut self, block: Block) {
        let hits = &mut self.entries[block as usize].hits;
        *hits = (*hits + 1).min(HITS_MAX);
    }

    fn touch(&mut self, block: Block) {
        if self.entries[block as usize].place == 0 {
            self.entries[block as usize].place = self.next_stamp();
        }
    }

    fn offer(&mut self, block: Block) {
        let Entry { queue, place, .. } = self.entries[block as usize];
        match queue {
            Queue::Small => self.small.insert(place, block),
            Queue::Main => self.main.insert(place, block),
        };
    }

    fn withdraw(&mut self, block: Block) {
        let Entry { queue, place, .. } = self.entries[block as usize];
        match queue {
            Queue::Small => self.small.remove(place, block),
            Queue::Main => self.main.remove(place, block),
        };
    }

    fn evict(&mut self) -> Option<Block> {
        loop {
            let is_small_due = self.small.len() * SMALL >= self.small.len() + self.main.len();
            if is_small_due && let Some((_, block)) = self.small.pop_first() {
                let Entry { hits, key, .. } = self.entries[block as usize];
                if hits > 1 {
                    self.enqueue(block, Queue::Main, 0);
                    continue;
                }
                self.ghosts.remember(key);
                return Some(block);
            }
            let (_, block) = self.main.pop_first()?;
            let hits = self.entries[block as usize].hits;
            if hits == 0 {
                return Some(block);
            }
            self.enqueue(block, Queue::Main, hits - 1);
        }
    }

    /// Goes through the queues as [`evict`](Evictor::evict) would, without moving anything.
    fn next(&self, count: u32) -> Vec<Block> {
        let with_hits = |(_, block): (u64, Block)| (block, self.entries[block as usize].hits);
        let (mut small, mut small_len) = (self.small.iter().map(with_hits), self.small.len());
        let (mut main, mut main_len) = (self.main.iter().map(with_hits), self.main.len());
        // What goes to the end of the main queue, behind all that is in it now.
        let mut behind: VecDeque<(Block, u8)> = VecDeque::new();
        let mut next = Vec::new();
        while next.len() < count as usize {
            let is_small_due = small_len * SMALL >= small_len + main_len;
            if is_small_due && let Some((block, hits)) = small.next() {
                small_len -= 1;
                if hits > 1 {
                    main_len += 1;
                    behind.push_back((block, 0));
                } else {
                    next.push(block);
                }
                continue;
            }
            match main.next().or_else(|| behind.pop_front()) {
                None => break,
                Some((block, 0)) => {
                    main_len -= 1;
                    next.push(block);
                }
                Some((block, hits)) => behind.push_back((block, hits - 1)),
            }
        }
        next
    }

    fn offered(&self) -> u32 {
        (self.small.len() + self.main.len()) as u32
    }
}

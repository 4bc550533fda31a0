//! Least recently used first: the block goes that has been idle longest.
//!
//! Cost: O(1); one doubly linked list over the blocks of the pool.

use super::Evictor;
use crate::pool::Block;

#[derive(Clone, Copy)]
struct Link {
    prev: u32,
    next: u32,
}

pub(crate) struct Lru {
    /// One per block, and a last one that ties the ends together.
    links: Vec<Link>,
    offered: u32,
}

impl Lru {
    pub fn new(blocks: u32) -> Self {
        let mut links = vec![Link { prev: 0, next: 0 }; blocks as usize + 1];
        links[blocks as usize] = Link { prev: blocks, next: blocks };
        Lru { links, offered: 0 }
    }

    fn end(&self) -> u32 {
        self.links.len() as u32 - 1
    }
}

impl Evictor for Lru {
    fn offer(&mut self, block: Block) {
        let end = self.end();
        let last = self.links[end as usize].prev;
        self.links[block as usize] = Link { prev: last, next: end };
        self.links[last as usize].next = block;
        self.links[end as usize].prev = block;
        self.offered += 1;
    }

    fn withdraw(&mut self, block: Block) {
        let Link { prev, next } = self.links[block as usize];
        self.links[prev as usize].next = next;
        self.links[next as usize].prev = prev;
        self.offered -= 1;
    }

    fn evict(&mut self) -> Option<Block> {
        let first = self.links[self.end() as usize].next;
        if first == self.end() {
            return None;
        }
        self.withdraw(first);
        Some(first)
    }

    fn next(&self, count: u32) -> Vec<Block> {
        let after = |block: u32| Some(self.links[block as usize].next).filter(|&next| next != self.end());
        std::iter::successors(after(self.end()), |&block| after(block)).take(count as usize).collect()
    }

    fn offered(&self) -> u32 {
        self.offered
    }
}

//! Which idle cached block goes next, when somebody needs one: one short file per rule, and the table.
//!
//! A block is *stored* when its content gets a name, *hit* when a prompt adopts it, *touched* when its
//! last holder gives it back. It may be evicted between *offer* and *withdraw*: while nobody holds it and,
//! in a pool that evicts leaves only, while no cached block goes on from it. A chain comes back tail
//! first, so that among equals the tail goes before what it goes on from.
//!
//! Cost: O(1) for `lru` where any block may go, and for the others where blocks come back nearly in the order in which
//! they go; O(log n) elsewhere (see [`order`]).

mod belady;
mod cost;
mod ghosts;
mod lru;
mod order;
mod ranked;
mod rules;
mod s3fifo;
mod scan;

use std::sync::Arc;

pub(crate) use belady::Future;
pub(crate) use lru::Lru;

use crate::pool::Block;
use ranked::Ranked;

/// A rule of eviction over the blocks of one pool.
pub(crate) trait Evictor: Send {
    /// A held block can be found by this key from now on; `start` tokens come before it.
    fn store(&mut self, block: Block, key: u64, start: u32) {
        let _ = (block, key, start);
    }

    /// A prompt adopts the block.
    fn hit(&mut self, block: Block) {
        let _ = block;
    }

    /// The last holder has given the block back.
    fn touch(&mut self, block: Block) {
        let _ = block;
    }

    /// The block may be evicted from now on.
    fn offer(&mut self, block: Block);

    /// The block may not be evicted any more.
    fn withdraw(&mut self, block: Block);

    /// Takes the block that goes next out of those on offer.
    fn evict(&mut self) -> Option<Block>;

    /// The next so many that would go, in their order, of those on offer.
    fn next(&self, count: u32) -> Vec<Block>;

    /// Blocks on offer, for audits.
    fn offered(&self) -> u32;

    /// Request `now` of the future is served; earlier ones were.
    fn advance(&mut self, now: u32) {
        let _ = now;
    }
}

/// Makes the evictor of a pool: its blocks, their size, and what is known of the future.
type Make = fn(u32, u32, &Arc<Future>) -> Box<dyn Evictor>;

/// One line of the table.
pub struct EvictionRule {
    /// Name in specs.
    pub name: &'static str,
    /// Which block goes, in one line.
    pub about: &'static str,
    /// Where the idea comes from.
    pub source: &'static str,
    /// What an eviction costs.
    pub cost: &'static str,
    /// Makes an evictor where any idle block may go, in order of coming back for equals.
    make: Make,
    /// Whether it makes sense for leaves only.
    pub(crate) leaves_only: bool,
}

/// What evictors by rank cost.
const RANKED: &str = "O(1) where blocks come back nearly in the order in which they go, else O(log n)";

/// Every rule; the first is the default.
pub const EVICTORS: [EvictionRule; 7] = [
    EvictionRule {
        name: "lru",
        about: "the one idle longest",
        source: "vLLM, SGLang; any textbook",
        cost: "O(1)",
        make: |blocks, _, _| Box::new(Lru::new(blocks)),
        leaves_only: false,
    },
    EvictionRule {
        name: "fifo",
        about: "the one that became idle first, whatever hit it since",
        source: "SGLang's radix cache",
        cost: RANKED,
        make: |blocks, _, _| Box::new(Ranked::new(blocks, rules::Fifo::new(blocks))),
        leaves_only: false,
    },
    EvictionRule {
        name: "lfu",
        about: "the one that the fewest prompts have adopted",
        source: "SGLang's radix cache",
        cost: RANKED,
        make: |blocks, _, _| Box::new(Ranked::new(blocks, rules::Lfu::new(blocks))),
        leaves_only: false,
    },
    EvictionRule {
        name: "s3fifo",
        about: "newcomers that nobody adopts twice leave by a small queue, the others by a main one",
        source: "Yang et al., FIFO queues are all you need, SOSP 2023",
        cost: RANKED,
        make: |blocks, _, _| Box::new(s3fifo::S3Fifo::new(blocks)),
        leaves_only: false,
    },
    EvictionRule {
        name: "cost",
        about: "the lowest recompute cost times use, aged; leaves only",
        source: "GreedyDual-Size-Frequency (Cherkasova, HP Labs 1998)",
        cost: RANKED,
        make: |blocks, size, _| Box::new(Ranked::new(blocks, cost::Cost::new(blocks, size))),
        leaves_only: true,
    },
    EvictionRule {
        name: "scan",
        about: "what was never hit, the newest chain first; then the one idle longest",
        source: "bimodal insertion (Qureshi et al., ISCA 2007), by chains",
        cost: RANKED,
        make: |blocks, size, _| Box::new(Ranked::new(blocks, scan::Scan::new(blocks, size))),
        leaves_only: false,
    },
    EvictionRule {
        name: "belady",
        about: "the one that is asked for last, all requests being known (a bound)",
        source: "Belady 1966",
        cost: "O(log n)",
        make: |blocks, _, future| Box::new(Ranked::new(blocks, belady::Belady::new(blocks, future.clone()))),
        leaves_only: false,
    },
];

/// What the spec says of eviction.
#[derive(Clone, Copy)]
pub(crate) struct Eviction {
    pub rule: &'static EvictionRule,
    /// Whether only blocks go that no cached block goes on from.
    pub leaves: bool,
}

impl Eviction {
    /// The default.
    pub const LRU: Eviction = Eviction { rule: &EVICTORS[0], leaves: false };

    /// A rule of the table by its name; the default where there is none of this name.
    pub fn new(name: &str, leaves: bool) -> Self {
        let rule = EVICTORS.iter().find(|rule| rule.name == name).unwrap_or(&EVICTORS[0]);
        Eviction { rule, leaves: leaves || rule.leaves_only }
    }

    /// The evictor of a pool. `leaves` says whether this one offers leaves only.
    pub fn make(&self, blocks: u32, block_size: u32, leaves: bool, future: &Arc<Future>) -> Box<dyn Evictor> {
        if leaves && self.rule.name == "lru" {
            // Blocks are offered in another order than they come back.
            return Box::new(Ranked::new(blocks, rules::Recent));
        }
        (self.rule.make)(blocks, block_size, future)
    }
}

/// Names of the rules.
pub(crate) const NAMES: [&str; EVICTORS.len()] = {
    let mut names = [""; EVICTORS.len()];
    let mut i = 0;
    while i < EVICTORS.len() {
        names[i] = EVICTORS[i].name;
        i += 1;
    }
    names
};

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BLOCKS: u32 = 12;

    /// Stores, gives back, hits or evicts, as far as that can be done with the block now.
    fn run(rule: &'static EvictionRule, calls: &[(u8, Block)]) -> Box<dyn Evictor> {
        #[derive(Clone, Copy, PartialEq)]
        enum State {
            Nameless,
            Held,
            Offered,
        }
        let mut evictor = Eviction { rule, leaves: false }.make(BLOCKS, 16, false, &Arc::default());
        let mut states = [State::Nameless; BLOCKS as usize];
        for (key, &(call, block)) in (1..).zip(calls) {
            let state = &mut states[block as usize];
            match (call, *state) {
                (0 | 1, State::Nameless) => {
                    evictor.store(block, key, 16 * (block % 4));
                    *state = State::Held;
                }
                (0 | 1, State::Held) => {
                    evictor.touch(block);
                    evictor.offer(block);
                    *state = State::Offered;
                }
                (0 | 1, State::Offered) => {
                    evictor.hit(block);
                    evictor.withdraw(block);
                    *state = State::Held;
                }
                _ => {
                    if let Some(block) = evictor.evict() {
                        states[block as usize] = State::Nameless;
                    }
                }
            }
        }
        evictor
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn what_is_said_to_go_next_goes_next(
            calls in prop::collection::vec((0..3u8, 0..BLOCKS), 1..150),
            count in 0..2 * BLOCKS,
        ) {
            for rule in &EVICTORS {
                let told = run(rule, &calls).next(count);
                let mut evictor = run(rule, &calls);
                let gone: Vec<Block> = (0..count).map_while(|_| evictor.evict()).collect();
                prop_assert_eq!(told, gone, "{}", rule.name);
            }
        }
    }
}

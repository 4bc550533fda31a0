//! Two tiers: blocks whose content nobody holds go to main memory before they are evicted, and come back.
//!
//! The cells of the device are those of `paged+prefix`. Each class has so many cells of main memory beside
//! them, in blocks of the same size, found by the same hash chain and reused in LRU order. Before every step
//! the blocks that will be evicted next are copied out, as far as the budget goes; one evicted before its
//! turn is lost. A prompt that finds blocks in main memory takes cells for them and has them fetched instead of
//! computed, ahead of the first batch it is placed in. What was fetched stays in main memory, too.
//! Source: the tiers of SGLang's HiCache, TensorRT-LLM and LMCache; write-back ahead of demand.
//!
//! Cost: that of `paged+prefix`; O(`ahead` / block) per step to look at what is evicted next.

use std::ops::Range;

use crate::content::Content;
use crate::delegate::leave_to;
use crate::evict::Eviction;
use crate::paged::{Paged, Sharing};
use crate::plan::{Effect, Plan};
use crate::policy::{Append, Budget, Cell, ClassId, Full, Geometry, Hit, Intent, Policy, Reach, Run, SeqId};
use crate::pool::{Block, Pool};
use crate::spec::{Args, Knob, Spec, SpecError};

pub(crate) const SPEC: Spec = Spec {
    name: "tiered",
    about: "blocks with prefix reuse; idle ones go to main memory before they are evicted, and come back",
    source: "SGLang HiCache, TensorRT-LLM host blocks, LMCache",
    cost: "as paged; O(ahead / block) per step",
    faults: "",
    knobs: &[
        Knob { name: "block", about: "cells in a block", default: "16" },
        Knob { name: "host", about: "cells of main memory for each layer class", default: "65536" },
        Knob { name: "ahead", about: "cells next to be reused whose content is copied out", default: "4096" },
    ],
    make,
};

fn make(args: &Args, geometry: &Geometry) -> Result<Box<dyn Policy>, SpecError> {
    let block_size = args.number("block", 0, 1..=65_536, 16)?;
    let host_cells = args.number("host", 1, 0..=1 << 26, 65_536)?;
    let ahead = args.number("ahead", 2, 0..=1 << 30, 4096)?;
    let blocks = host_cells / block_size;
    let sharing = Sharing { eviction: Eviction::new("lru", false), parts: false };
    Ok(Box::new(Tiered {
        cells: Paged::new(geometry, block_size, Some(sharing)),
        host: geometry.classes.iter().map(|_| Pool::lru(blocks)).collect(),
        host_blocks: blocks,
        ahead: ahead / block_size,
        owed: Vec::new(),
    }))
}

/// A block that is to be filled from main memory, where its content is held until then.
#[derive(Clone, Copy, Debug)]
struct Fetch {
    class: usize,
    host: Block,
    block: Block,
}

struct Tiered {
    cells: Paged,
    /// Per class, the blocks of main memory; nobody holds one but those that are to be fetched.
    host: Vec<Pool>,
    host_blocks: u32,
    /// Blocks at the head of the queue that are copied out ahead.
    ahead: u32,
    /// What the next plan has to fetch.
    owed: Vec<Fetch>,
}

impl Tiered {
    /// Blocks of a class that a hit of so many tokens needs.
    fn needed(&self, class: usize, hit: u32) -> Range<u32> {
        let block_size = self.cells.granule();
        let reach = self.geometry().classes[class].reach;
        if hit == 0 { 0..0 } else { reach.first_needed(hit) / block_size..hit / block_size }
    }

    /// Blocks of a hit in a class that would come out of the free ones: idle ones, and room for those that
    /// are only in main memory.
    fn taken(&self, class: usize, content: &Content, hit: u32) -> u32 {
        let pool = self.cells.pool(class);
        let blocks = self.needed(class, hit).map(|i| pool.find(self.cells.key(content, i)));
        blocks.filter(|block| block.is_none_or(|block| pool.is_idle(block))).count() as u32
    }

    /// Leading tokens found in either tier, or on the device alone if there is no room to fetch the rest.
    fn matching(&self, content: &Content, tokens: u32) -> u32 {
        let on_device = |class: usize, key: u64| self.cells.pool(class).find(key).is_some();
        let anywhere = |class: usize, key: u64| on_device(class, key) || self.host[class].find(key).is_some();
        let hit = self.cells.match_blocks(content, tokens, anywhere) * self.cells.granule();
        let fits = |class: usize| self.taken(class, content, hit) <= self.cells.pool(class).available();
        if (0..self.host.len()).all(fits) {
            hit
        } else {
            self.cells.match_blocks(content, tokens, on_device) * self.cells.granule()
        }
    }

    /// Gives a device block to every block of the hit that is only in main memory, under its key, so that
    /// all of it is found on the device.
    fn raise(&mut self, class: usize, content: &Content, hit: u32) {
        let keys: Vec<u64> = self.needed(class, hit).map(|i| self.cells.key(content, i)).collect();
        let mut held: Vec<Block> = keys.iter().filter_map(|&key| self.cells.pool(class).find(key)).collect();
        if held.len() == keys.len() {
            return;
        }
        // What is on the device must not make room for the rest.
        held.iter().for_each(|&block| self.cells.pool_mut(class).adopt(block));
        for key in keys {
            if self.cells.pool(class).find(key).is_some() {
                continue;
            }
            let host = self.host[class].find(key).expect("the hit was just matched");
            let block = self.cells.pool_mut(class).take().expect("the hit fits");
            self.cells.pool_mut(class).name_whole(block, key);
            // The block may have been idle and owed another content, which is not wanted there any more.
            self.forget(class, block);
            self.host[class].adopt(host);
            self.owed.push(Fetch { class, host, block });
            held.push(block);
        }
        // The end of the chain first, as in a release.
        held.into_iter().rev().for_each(|block| self.cells.pool_mut(class).give(block));
    }

    fn forget(&mut self, class: usize, block: Block) {
        let Some(at) = self.owed.iter().position(|fetch| (fetch.class, fetch.block) == (class, block)) else {
            return;
        };
        let fetch = self.owed.remove(at);
        self.host[class].give(fetch.host);
    }

    /// Describes what is owed.
    fn fetch(&mut self, plan: &mut Plan) {
        let size = self.cells.granule();
        for Fetch { class, host, block } in self.owed.drain(..) {
            let run = Run { start: block * size, len: size };
            plan.push(Effect::Fetch { class: ClassId(class as u8), slot: host * size, run });
            self.host[class].give(host);
        }
    }
}

impl Policy for Tiered {
    leave_to!(cells: geometry, room, truncate, release, granule, len, layout, holding, caching, usage, shape);

    fn cached(&self, content: &Content, tokens: u32) -> Hit {
        let hit = self.matching(content, tokens);
        let class = self.geometry().classes.iter().position(|class| class.reach == Reach::Full).unwrap_or(0);
        Hit { tokens: hit, idle_cells: self.taken(class, content, hit) * self.cells.granule() }
    }

    fn remembers_intent(&self) -> bool {
        true
    }

    fn open(&mut self, seq: SeqId, intent: &Intent) -> u32 {
        let hit = self.matching(&intent.content, intent.prompt_tokens);
        for class in 0..self.host.len() {
            self.raise(class, &intent.content, hit);
        }
        self.cells.open(seq, intent)
    }

    fn place(&mut self, batch: &[Append], plan: &mut Plan) -> Result<(), Full> {
        // Who reads what is owed has just been opened and takes cells. A driver that hands over tokens within
        // the promised room may have executed the plan already.
        if self.owed.is_empty() || !batch.iter().any(|append| self.cells.grows(append)) {
            return self.cells.place(batch, plan);
        }
        let mut placed = if plan.wants_writes() { Plan::new() } else { Plan::without_writes() };
        self.cells.place(batch, &mut placed)?;
        self.fetch(plan);
        plan.append_without(placed, |_| false);
        Ok(())
    }

    fn restart(&mut self) {
        self.cells.restart();
        self.host.fill_with(|| Pool::lru(self.host_blocks));
        self.owed.clear();
    }

    fn maintain(&mut self, budget: Budget, plan: &mut Plan) -> u32 {
        self.fetch(plan);
        let size = self.cells.granule();
        let mut left = budget.cells / size;
        for class in 0..self.host.len() {
            let pool = self.cells.pool(class);
            for block in pool.evicted_next(self.ahead) {
                let key = pool.key_of(block);
                let Some(key) = key.filter(|&key| left > 0 && self.host[class].find(key).is_none()) else {
                    continue;
                };
                let Some(host) = self.host[class].take() else { break };
                self.host[class].name_whole(host, key);
                self.host[class].give(host);
                let run = Run { start: block * size, len: size };
                plan.push(Effect::Offload { class: ClassId(class as u8), run, slot: host * size });
                left -= 1;
            }
        }
        (budget.cells / size - left) * size
    }

    fn unfetched(&self, class: ClassId, cells: &mut Vec<(Run, Cell)>) {
        let size = self.cells.granule();
        cells.clear();
        let owed = self.owed.iter().filter(|fetch| fetch.class == class.index());
        cells.extend(owed.map(|fetch| (Run { start: fetch.block * size, len: size }, fetch.host * size)));
    }

    fn audit(&self) -> Result<(), String> {
        self.cells.audit()?;
        for (class, host) in self.host.iter().enumerate() {
            let mut holders = vec![0; host.blocks() as usize];
            for fetch in self.owed.iter().filter(|fetch| fetch.class == class) {
                holders[fetch.host as usize] += 1;
                if self.cells.pool(class).key_of(fetch.block) != host.key_of(fetch.host) {
                    return Err(format!("class {class}: block {} is owed another content", fetch.block));
                }
            }
            host.audit(&holders).map_err(|what| format!("main memory of class {class}: {what}"))?;
        }
        Ok(())
    }
}

//! Two tiers: blocks whose content nobody holds go to main memory before they are evicted, and come back.
//!
//! The cells of the device are those of `paged+prefix`, by any of its evictors. Each class has so many cells of
//! main memory beside them, in blocks of the same size, found by the same hash chain and reused in LRU order.
//! Before every step the blocks that will be evicted next are copied out, as far as the budget goes; one evicted
//! before its turn is lost. A prompt that finds blocks in main memory takes cells for them and has them fetched
//! instead of computed, ahead of the first batch it is placed in. What was fetched stays in main memory, too.
//!
//! With `+swap` a preempted sequence's full blocks go there as well ([`Policy::park`]), each content once, whoever
//! has it; the driver copies the rest. It finds them again as any prompt does.
//! Source: the tiers of SGLang's HiCache, TensorRT-LLM and LMCache; write-back ahead of demand.
//!
//! Cost: that of `paged+prefix`; O(`ahead` / block) per step to look at what is evicted next.

use std::ops::Range;

use crate::content::Content;
use crate::delegate::leave_to;
use crate::paged::{Paged, Sharing};
use crate::plan::{Effect, Plan};
use crate::policy::{Append, Budget, Cell, ClassId, Full, Geometry, Hit, Intent, Policy, Reach, Run, SeqId};
use crate::pool::{Block, Pool};
use crate::spec::{Args, Knob, Spec, SpecError, Words};

pub(crate) const SPEC: Spec = Spec {
    name: "tiered",
    about: "blocks with prefix reuse; idle ones go to main memory before they are evicted, and come back",
    source: "SGLang HiCache, TensorRT-LLM host blocks, LMCache",
    cost: "as paged; O(ahead / block) per step",
    faults: "",
    knobs: &[
        Knob { name: "block", about: "cells in a block", default: "16" },
        Knob { name: "host", ..HOST },
        Knob { name: "ahead", ..AHEAD },
        SWAP,
    ],
    make,
};

pub(crate) const HOST: Knob =
    Knob { name: "+tiered(host)", about: "cells of main memory for each layer class", default: "65536" };
pub(crate) const AHEAD: Knob = Knob {
    name: "+tiered(ahead)",
    about: "cells next to be reused whose content is copied out",
    default: "4096",
};
pub(crate) const SWAP: Knob = Knob {
    name: "+swap",
    about: "who is preempted goes to main memory, what is shared once for all who share it",
    default: "off",
};

fn make(args: &Args, geometry: &Geometry) -> Result<Box<dyn Policy>, SpecError> {
    let block_size = args.number("block", 0, 1..=65_536, 16)?;
    let swaps = args.has_extension("swap");
    let tier = Tier { host: host(args, 1)?, ahead: ahead(args, 2)?, swaps };
    Ok(Box::new(Tiered::new(Paged::new(geometry, block_size, Some(Sharing::LRU)), tier)))
}

fn host(words: &Words<'_>, position: usize) -> Result<u32, SpecError> {
    words.number("host", position, 0..=1 << 26, 65_536)
}

fn ahead(words: &Words<'_>, position: usize) -> Result<u32, SpecError> {
    words.number("ahead", position, 0..=1 << 30, 4096)
}

/// Main memory, and what it is for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tier {
    /// Cells for each class.
    host: u32,
    /// Cells next to be reused whose content is copied out.
    ahead: u32,
    /// Whether preempted sequences go there, too.
    swaps: bool,
}

impl Tier {
    /// Reads `+tiered` and `+swap` of a policy.
    pub fn read(args: &Args<'_>) -> Result<Option<Tier>, SpecError> {
        Ok(match (args.extension("tiered"), args.extension("swap")) {
            (None, None) => None,
            (None, Some(swap)) => Some(Tier { host: host(swap, 0)?, ahead: 0, swaps: true }),
            (Some(tiered), swap) => {
                let one_memory = "main memory is one: its size stands in +tiered(host)";
                swap.map_or(Ok(()), |swap| swap.refuse(one_memory))?;
                Some(Tier { host: host(tiered, 0)?, ahead: ahead(tiered, 1)?, swaps: swap.is_some() })
            }
        })
    }
}

/// A block that is to be filled from main memory, where its content is held until then.
#[derive(Clone, Copy, Debug)]
struct Fetch {
    class: usize,
    host: Block,
    block: Block,
}

/// The policy: blocks in two tiers.
pub(crate) struct Tiered {
    cells: Paged,
    /// Per class, the blocks of main memory; nobody holds one but those that are to be fetched.
    host: Vec<Pool>,
    host_blocks: u32,
    /// Blocks at the head of the queue that are copied out ahead.
    ahead: u32,
    swaps: bool,
    /// What the next plan has to fetch.
    owed: Vec<Fetch>,
}

impl Tiered {
    pub fn new(cells: Paged, tier: Tier) -> Self {
        let host_blocks = tier.host / cells.granule();
        Tiered {
            host: cells.geometry().classes.iter().map(|_| Pool::lru(host_blocks)).collect(),
            host_blocks,
            ahead: tier.ahead / cells.granule(),
            swaps: tier.swaps,
            owed: Vec::new(),
            cells,
        }
    }

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

    /// Blocks of a class, by key, that `tokens` leading tokens of a sequence need and main memory lacks, and where
    /// each lies on the device; none if one lies nowhere, or if there is no room for all.
    fn lacking(&self, class: usize, seq: SeqId, content: &Content, tokens: u32) -> Option<Vec<(u64, Block)>> {
        let (pool, host) = (self.cells.pool(class), &self.host[class]);
        let (mut lacking, mut idle) = (Vec::new(), 0);
        for i in self.needed(class, tokens) {
            let key = self.cells.key(content, i);
            match host.find(key) {
                Some(block) => idle += u32::from(host.is_idle(block)),
                None => lacking.push((key, self.cells.block(seq, class, i).or_else(|| pool.find(key))?)),
            }
        }
        (lacking.len() as u32 + idle <= host.available()).then_some(lacking)
    }

    /// Copies what a sequence needs of its full blocks to main memory, as far as that lacks it. Returns the tokens
    /// that are there then: those of all its full blocks, but for one at its very end, or none.
    fn copy_out(&mut self, seq: SeqId, plan: &mut Plan) -> u32 {
        let (len, size) = (self.cells.len(seq), self.cells.granule());
        let Some(content) = self.cells.content(seq) else { return 0 };
        let tokens = len.saturating_sub(1) / size * size;
        let classes = 0..self.host.len();
        let lacking = classes.map(|class| self.lacking(class, seq, &content, tokens));
        let Some(lacking) = lacking.collect::<Option<Vec<_>>>() else { return 0 };
        for (class, lacking) in lacking.into_iter().enumerate() {
            let keys = self.needed(class, tokens).map(|i| self.cells.key(&content, i));
            let host = &mut self.host[class];
            // What is there already must not make room for the rest, and counts as used now.
            let mut held: Vec<Block> = keys.filter_map(|key| host.find(key)).collect();
            held.iter().for_each(|&block| host.adopt(block));
            for (key, block) in lacking {
                let slot = host.take().expect("there is room for all");
                host.name_whole(slot, key);
                held.push(slot);
                let run = Run { start: block * size, len: size };
                plan.push(Effect::Offload { class: ClassId(class as u8), run, slot: slot * size });
            }
            held.into_iter().rev().for_each(|block| host.give(block));
        }
        tokens
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
    leave_to!(cells: geometry, remembers_intent, wants_future, foresee, room, truncate, release, granule);
    leave_to!(cells: len, layout, holding, caching, usage, shape);

    fn cached(&self, content: &Content, tokens: u32) -> Hit {
        let hit = self.matching(content, tokens);
        let class = self.geometry().classes.iter().position(|class| class.reach == Reach::Full).unwrap_or(0);
        Hit { tokens: hit, idle_cells: self.taken(class, content, hit) * self.cells.granule() }
    }

    fn park(&mut self, seq: SeqId, plan: &mut Plan) -> Option<u32> {
        self.swaps.then(|| self.copy_out(seq, plan))
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

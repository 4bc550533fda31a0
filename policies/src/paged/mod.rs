//! Fixed-size blocks through a block table per sequence: any free block will do.
//!
//! No external fragmentation; internal waste is at most one block per sequence and class, beside the
//! blocks below a window: they are given back when their sequence grows, or when somebody else finds
//! no block. Most decode steps change nothing but a length. With `+prefix`, full blocks stay findable by the
//! hash chain of their tokens after their sequence has gone, until an [evictor](crate::evict) chooses them.
//! A block that others hold or may find is never written: whoever has part of it, by a fork or as a hit
//! on its beginning, copies that part when it writes on (copy on write).
//! Source: PagedAttention (Kwon et al., SOSP 2023, arXiv 2309.06180); prefix caching as in vLLM v1; partial
//! hits as in TensorRT-LLM's `copy_on_partial_reuse`.
//!
//! Cost: O(1) per block taken or given back beside the evictor's, O(blocks) to adopt and to release; a
//! batch that finds too few blocks looks at every sequence.

mod dropping;
mod growth;
mod prefix;

use std::ops::Range;
use std::sync::Arc;

use crate::content::Content;
use crate::evict::{Eviction, Future, NAMES};
use crate::plan::Plan;
use crate::policy::{
    Append, ClassId, Full, Geometry, Hit, Intent, Policy, Reach, Run, SeqId, Shape, Usage, push_run,
};
use crate::pool::{Pool, rows};
use crate::spec::{Args, Knob, Spec, SpecError, Words};
use crate::tables::{Table, Tables};
use crate::tiered::{self, Tier, Tiered};
use crate::unrotated;

pub(crate) const SPEC: Spec = Spec {
    name: "paged",
    about: "fixed-size blocks through a block table per sequence",
    source: "Kwon et al., PagedAttention, SOSP 2023 (arXiv 2309.06180)",
    cost: "O(1) per block and that of the evictor; O(sequences) for a batch that finds too few",
    faults: "",
    knobs: &[
        Knob { name: "block", about: "cells in a block", default: "16" },
        Knob { name: "+prefix", about: "keep full blocks for reuse by their hash chain", default: "off" },
        Knob { name: "+prefix(evict)", about: EVICT_ABOUT, default: "lru" },
        Knob { name: "+prefix(partial)", about: PARTIAL_ABOUT, default: "none" },
        Knob {
            name: "+prefix(order)",
            about: "any | leaf: whether a block may go before those that go on from it",
            default: "any; leaf for cost",
        },
        Knob { name: "+tiered", about: TIERED_ABOUT, default: "off" },
        tiered::HOST,
        tiered::AHEAD,
        tiered::SWAP,
        Knob { name: "+swap(host)", ..tiered::HOST },
        unrotated::KNOB,
    ],
    make,
};

pub(crate) const EVICT_ABOUT: &str = "which idle block goes: lru | fifo | lfu | s3fifo | cost (recompute cost \
     times use) | scan (scan-resistant) | belady (bound, knows the trace)";
pub(crate) const PARTIAL_ABOUT: &str =
    "none | cow: what a prompt has in common with the beginning of a block is copied";

const TIERED_ABOUT: &str = "idle blocks go to main memory before they are evicted, and are fetched on a hit; \
     with +prefix in any case";

fn make(args: &Args, geometry: &Geometry) -> Result<Box<dyn Policy>, SpecError> {
    let block_size = args.number("block", 0, 1..=65_536, 16)?;
    let tier = Tier::read(args)?;
    let sharing = match args.extension("prefix") {
        Some(words) => Some(Sharing::read(words, tier.is_some())?),
        None if args.has_extension("tiered") => Some(Sharing::LRU),
        None => None,
    };
    let paged = Paged::new(geometry, block_size, sharing);
    Ok(match tier {
        Some(tier) => Box::new(Tiered::new(paged, tier)),
        None => Box::new(paged),
    })
}

/// How blocks outlive their sequences.
#[derive(Clone, Copy)]
pub(crate) struct Sharing {
    pub eviction: Eviction,
    /// Whether a block can be found by its beginning.
    pub parts: bool,
}

impl Sharing {
    /// Least recently used first.
    pub const LRU: Sharing = Sharing { eviction: Eviction::LRU, parts: false };

    /// Reads the knobs of `+prefix`. Main memory knows whole blocks only.
    fn read(words: &Words<'_>, has_tier: bool) -> Result<Sharing, SpecError> {
        let name = words.choice("evict", 0, &NAMES)?;
        let parts = words.choice("partial", 1, if has_tier { &["none"] } else { &["none", "cow"] })? == "cow";
        let leaves = words.choice("order", 2, &["any", "leaf"])? == "leaf";
        Ok(Sharing { eviction: Eviction::new(name, leaves), parts })
    }
}

/// The policy; with blocks of one cell also the ground of [`clairvoyant`](crate::clairvoyant) and
/// [`limit`](crate::limit) and [`scored`](crate::scored).
pub(crate) struct Paged {
    tables: Tables,
    sharing: Option<Sharing>,
    /// Whether two tables may hold the same block.
    shares: bool,
    future: Arc<Future>,
    pools: Vec<Pool>,
    /// The appends of a batch that take cells; only while it is placed.
    growing: Vec<Append>,
}

impl Paged {
    pub fn new(geometry: &Geometry, block_size: u32, sharing: Option<Sharing>) -> Self {
        let mut paged = Paged {
            tables: Tables::new(geometry.clone(), block_size),
            sharing,
            shares: sharing.is_some(),
            future: Arc::default(),
            pools: Vec::new(),
            growing: Vec::new(),
        };
        paged.restart();
        paged
    }

    fn block_size(&self) -> u32 {
        self.tables.block_size
    }

    fn reach(&self, class: usize) -> Reach {
        self.tables.reach(class)
    }

    /// All blocks of a class, free. In a window class a block is read without those it goes on from, so
    /// there any may be evicted.
    fn new_pool(&self, class: usize) -> Pool {
        let blocks = self.geometry().classes[class].cells / self.block_size();
        let Some(Sharing { eviction, parts }) = self.sharing else { return Pool::new(blocks) };
        let leaves = eviction.leaves && self.reach(class) == Reach::Full;
        let pool = Pool::caching(blocks, eviction.make(blocks, self.block_size(), leaves, &self.future));
        let pool = if leaves { pool.leaves_only() } else { pool };
        if parts { pool.with_parts(self.block_size()) } else { pool }
    }

    /// The blocks of a class.
    pub fn pool(&self, class: usize) -> &Pool {
        &self.pools[class]
    }

    /// The blocks of a class. Who takes some gives them back before anything else is asked.
    pub fn pool_mut(&mut self, class: usize) -> &mut Pool {
        &mut self.pools[class]
    }
}

impl Policy for Paged {
    fn geometry(&self) -> &Geometry {
        &self.tables.geometry
    }

    fn cached(&self, content: &Content, tokens: u32) -> Hit {
        if self.sharing.is_none() {
            return Hit::default();
        }
        let hit = self.match_prefix(content, tokens);
        let class = (0..self.pools.len()).find(|&class| self.reach(class) == Reach::Full).unwrap_or(0);
        let blocks = (0..hit.div_ceil(self.block_size())).filter_map(|i| self.found(class, content, hit, i));
        let idle = blocks.filter(|&block| self.pools[class].is_idle(block)).count() as u32;
        Hit { tokens: hit, idle_cells: idle * self.block_size() }
    }

    fn remembers_intent(&self) -> bool {
        self.sharing.is_some()
    }

    fn wants_future(&self) -> bool {
        self.sharing.is_some_and(|sharing| sharing.eviction.rule.name == "belady") && self.future.is_empty()
    }

    fn foresee(&mut self, prompts: &mut dyn Iterator<Item = (Content, u32)>) {
        if self.wants_future() {
            debug_assert!(self.tables.open().next().is_none(), "nothing is open yet");
            self.future = Arc::new(Future::new(self.block_size(), prompts));
            self.restart();
        }
    }

    fn open(&mut self, seq: SeqId, intent: &Intent) -> u32 {
        let content = &intent.content;
        let hit = if self.sharing.is_some() { self.match_prefix(content, intent.prompt_tokens) } else { 0 };
        self.tables.reserve(seq);
        for class in 0..self.pools.len() {
            let first = if hit == 0 { 0 } else { self.reach(class).first_needed(hit) / self.block_size() };
            let mut blocks = std::mem::take(&mut self.tables.get_mut(seq).tables[class].blocks);
            for i in first..hit.div_ceil(self.block_size()) {
                let block = self.found(class, content, hit, i).expect("the hit was just matched");
                self.pools[class].adopt(block);
                blocks.push_back(block);
            }
            self.tables.get_mut(seq).tables[class] = Table { first, blocks, lost: 0 };
        }
        let named = hit / self.block_size();
        let sequence = self.tables.get_mut(seq);
        sequence.named = named;
        (sequence.open, sequence.len, sequence.capacity, sequence.grown) = (true, hit, hit, hit);
        if self.sharing.is_some() {
            sequence.content = Some(content.clone());
            if let Some(now) = self.future.number(content) {
                self.pools.iter_mut().for_each(|pool| pool.advance(now));
            }
        }
        hit
    }

    fn place(&mut self, batch: &[Append], plan: &mut Plan) -> Result<(), Full> {
        self.grow(batch, plan)?;
        for append in batch {
            let sequence = self.tables.get_mut(append.seq);
            let (from, to) = (sequence.len, sequence.len + append.tokens);
            sequence.len = to;
            if to > sequence.capacity {
                let capacity = self.capacity(append.seq);
                let sequence = self.tables.get_mut(append.seq);
                (sequence.capacity, sequence.grown) = (capacity, to);
            }
            if self.sharing.is_some() {
                self.name_blocks(append.seq);
            }
            if plan.wants_writes() && !append.restored {
                for class in self.tables.geometry.class_ids() {
                    self.tables.view(append.seq, class).push_writes(class, append.seq, from..to, plan);
                }
            }
        }
        Ok(())
    }

    fn room(&self, seq: SeqId) -> u32 {
        let sequence = self.tables.get(seq);
        // The token that fills a block gives it a name, which others may find from then on.
        let kept = u32::from(self.sharing.is_some());
        (sequence.capacity - sequence.len).saturating_sub(kept)
    }

    fn truncate(&mut self, seq: SeqId, len: u32) -> u32 {
        let mut keep = len.min(self.tables.get(seq).len);
        if self.sharing.is_some() {
            // A block that others may find is not cut: it would have to be copied.
            keep -= keep % self.block_size();
        }
        let keep = self.tables.stays(seq, keep);
        let pools = &mut self.pools;
        self.tables.cut(seq, keep, |class, block| pools[class].give(block));
        self.tables.get_mut(seq).capacity = self.capacity(seq);
        keep
    }

    fn release(&mut self, seq: SeqId) {
        let pools = &mut self.pools;
        self.tables.close(seq, |class, block| pools[class].give(block));
    }

    fn fork(&mut self, from: SeqId, to: SeqId, tokens: u32) -> u32 {
        self.share(from, to, tokens)
    }

    fn restart(&mut self) {
        self.shares = self.sharing.is_some();
        self.pools = (0..self.geometry().classes.len()).map(|class| self.new_pool(class)).collect();
    }

    /// Beside that, blocks below a window are given back: when somebody finds no block it is too late.
    fn defer(&mut self, epoch: u64) -> bool {
        self.pools.iter_mut().for_each(|pool| pool.defer(epoch));
        self.trim(&self.tables.others(&[]));
        true
    }

    fn retire(&mut self, epoch: u64) {
        self.pools.iter_mut().for_each(|pool| pool.retire(epoch));
    }

    fn waiting(&self, class: ClassId) -> u32 {
        self.pools[class.index()].waiting() * self.block_size()
    }

    fn granule(&self) -> u32 {
        self.block_size()
    }

    fn len(&self, seq: SeqId) -> u32 {
        self.tables.len(seq)
    }

    fn layout(&self, class: ClassId, seq: SeqId, runs: &mut Vec<Run>) -> Range<u32> {
        self.tables.view(seq, class).layout(self.tables.len(seq), runs)
    }

    fn holding(&self, class: ClassId, seq: SeqId, runs: &mut Vec<Run>) {
        self.tables.view(seq, class).holding(runs);
    }

    fn caching(&self, class: ClassId, runs: &mut Vec<Run>) {
        runs.clear();
        let pool = &self.pools[class.index()];
        for block in (0..pool.blocks()).filter(|&block| pool.is_cached(block)) {
            push_run(runs, block * self.block_size(), self.block_size());
        }
    }

    fn usage(&self, class: ClassId) -> Usage {
        let pool = &self.pools[class.index()];
        let cells = self.geometry().classes[class.index()].cells;
        let cached = pool.cached() * self.block_size();
        let free = (pool.available() - pool.cached()) * self.block_size() + cells % self.block_size();
        Usage {
            cells,
            held: cells - cached - free,
            cached,
            free,
            placeable: pool.available() * self.block_size(),
        }
    }

    fn shape(&self, class: ClassId) -> Shape {
        let (longest, rows, high) = rows(&self.pools[class.index()]);
        Shape {
            largest_free_run: longest * self.block_size(),
            free_runs: rows,
            high_water: high * self.block_size(),
        }
    }

    fn audit(&self) -> Result<(), String> {
        for (class, pool) in self.pools.iter().enumerate() {
            let mut holders = vec![0; pool.blocks() as usize];
            for (_, sequence) in self.tables.open() {
                for &block in &sequence.tables[class].blocks {
                    holders[block as usize] += 1;
                    if holders[block as usize] > 1 && !self.shares {
                        return Err(format!("class {class}: block {block} is held twice"));
                    }
                }
            }
            pool.audit(&holders).map_err(|what| format!("class {class}: {what}"))?;
            self.tables.audit(class)?;
        }
        Ok(())
    }
}

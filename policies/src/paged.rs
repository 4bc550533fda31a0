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

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use crate::block_view::BlockView;
use crate::content::Content;
use crate::evict::{Eviction, Future, NAMES};
use crate::plan::{Effect, Plan, Why};
use crate::policy::{
    Append, ClassId, Full, Geometry, Hit, Intent, Policy, Reach, Run, SeqId, Shape, Usage, push_run,
};
use crate::pool::{Block, Pool, rows};
use crate::spec::{Args, Knob, Spec, SpecError, Words};
use crate::tiered::{self, Tier, Tiered};
use crate::unrotated;

pub(crate) const SPEC: Spec = Spec {
    name: "paged",
    about: "fixed-size blocks through a block table per sequence",
    source: "Kwon et al., PagedAttention, SOSP 2023 (arXiv 2309.06180)",
    cost: "O(1) per block, O(log n) for evictors other than lru; O(sequences) for a batch that finds too few",
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

const TIERED_ABOUT: &str = "idle blocks go to main memory before they are evicted, and are fetched on a hit; with +prefix in any case";

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

/// The blocks of one sequence in one class.
#[derive(Clone, Debug, Default)]
struct Table {
    /// Number, counted from the start of the sequence, of the first block it still has.
    first: u32,
    blocks: VecDeque<Block>,
    /// Tokens below this were already outside the window when later ones slid down, so a window that
    /// reaches back to them finds nothing. Only with blocks of one cell.
    lost: u32,
    /// Leading blocks whose content has a name in the pool.
    named: u32,
}

impl Table {
    fn end(&self) -> u32 {
        self.first + self.blocks.len() as u32
    }
}

#[derive(Clone, Debug)]
struct Sequence {
    open: bool,
    len: u32,
    /// Up to this length nothing is taken.
    capacity: u32,
    /// Length when a block was last taken. It is the same whether later tokens were told at once or not.
    grown: u32,
    /// What its tokens are; none for a fork, whose blocks get no names.
    content: Option<Content>,
    tables: Vec<Table>,
}

/// The policy; with blocks of one cell also the ground of [`clairvoyant`](crate::clairvoyant) and
/// [`limit`](crate::limit) and [`scored`](crate::scored).
pub(crate) struct Paged {
    geometry: Geometry,
    block_size: u32,
    sharing: Option<Sharing>,
    /// Whether two tables may hold the same block.
    shares: bool,
    future: Arc<Future>,
    pools: Vec<Pool>,
    sequences: Vec<Sequence>,
}

/// What a batch that fits asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Growth {
    /// Every append stays within its last block.
    None,
    /// Some take blocks.
    Blocks,
    /// They find them only when sequences outside the batch give back what lies below their windows.
    BlocksOfOthers,
}

/// What one append changes in one class: blocks given back first, then blocks taken.
struct Change {
    give: u32,
    take: u32,
    /// Number of the first block the table has afterwards.
    first: u32,
    /// The last block, if it has to be copied before it is written.
    copy: Option<Block>,
}

impl Paged {
    pub fn new(geometry: &Geometry, block_size: u32, sharing: Option<Sharing>) -> Self {
        let mut paged = Paged {
            geometry: geometry.clone(),
            block_size,
            sharing,
            shares: sharing.is_some(),
            future: Arc::default(),
            pools: Vec::new(),
            sequences: Vec::new(),
        };
        paged.restart();
        paged
    }

    /// All blocks of a class, free. In a window class a block is read without those it goes on from, so
    /// there any may be evicted.
    fn new_pool(&self, class: usize) -> Pool {
        let blocks = self.geometry.classes[class].cells / self.block_size;
        let Some(Sharing { eviction, parts }) = self.sharing else { return Pool::new(blocks) };
        let leaves = eviction.leaves && self.reach(class) == Reach::Full;
        let pool = Pool::caching(blocks, eviction.make(blocks, self.block_size, leaves, &self.future));
        let pool = if leaves { pool.leaves_only() } else { pool };
        if parts { pool.with_parts(self.block_size) } else { pool }
    }

    fn reach(&self, class: usize) -> Reach {
        self.geometry.classes[class].reach
    }

    fn sequence(&self, seq: SeqId) -> &Sequence {
        let sequence = &self.sequences[seq.index()];
        assert!(sequence.open, "sequence {} is open", seq.0);
        sequence
    }

    fn change(&self, append: &Append, class: usize) -> Change {
        let sequence = self.sequence(append.seq);
        let table = &sequence.tables[class];
        let end = sequence.len + append.tokens;
        let next = if append.restored { end } else { sequence.len };
        let needed = self.reach(class).first_needed(next) / self.block_size;
        let blocks_end = end.div_ceil(self.block_size);
        // A table that still fits keeps its old blocks: they are given back when one is taken.
        if blocks_end <= table.end() && !table.blocks.is_empty() {
            return Change {
                give: 0,
                take: 0,
                first: table.first,
                copy: self.shared_tail(append.seq, class),
            };
        }
        let give = needed.saturating_sub(table.first).min(table.blocks.len() as u32);
        let first =
            if table.blocks.len() as u32 == give { needed.max(table.first) } else { table.first + give };
        let kept_end = if table.blocks.len() as u32 == give { first } else { table.end() };
        let is_tail_kept = (give as usize) < table.blocks.len();
        let copy = self.shared_tail(append.seq, class).filter(|_| is_tail_kept);
        Change { give, take: blocks_end - kept_end, first, copy }
    }

    /// The block of a sequence's last token, if it has room for more but must not be written, because
    /// others hold it too or may find it.
    fn shared_tail(&self, seq: SeqId, class: usize) -> Option<Block> {
        let sequence = &self.sequences[seq.index()];
        let table = &sequence.tables[class];
        if sequence.len.is_multiple_of(self.block_size) {
            return None;
        }
        // A table that has been made ready for tokens from host memory may begin after the sequence's end.
        let tail = (sequence.len / self.block_size).checked_sub(table.first)?;
        let tail = table.blocks.get(tail as usize).copied()?;
        let pool = &self.pools[class];
        (pool.holders(tail) > 1 || pool.is_named(tail)).then_some(tail)
    }

    /// Blocks that the copies of a batch take, given the blocks that would have to be copied: who holds one
    /// alone at last, and nobody may find it, writes it in place.
    fn copies(&self, class: usize, mut tails: Vec<Block>) -> u32 {
        tails.sort_unstable();
        let copies = tails.chunk_by(|a, b| a == b).map(|tails| {
            let (count, pool) = (tails.len() as u32, &self.pools[class]);
            if pool.is_named(tails[0]) { count } else { count.min(pool.holders(tails[0]) - 1) }
        });
        copies.sum()
    }

    /// Whether an append takes cells.
    pub fn grows(&self, append: &Append) -> bool {
        let sequence = self.sequence(append.seq);
        sequence.len + append.tokens > sequence.capacity
    }

    /// Sequences that take no block for this batch, so that they do not trim themselves.
    fn others(&self, batch: &[Append]) -> Vec<SeqId> {
        let mut is_other: Vec<bool> = self.sequences.iter().map(|sequence| sequence.open).collect();
        for append in batch.iter().filter(|append| self.grows(append)) {
            is_other[append.seq.index()] = false;
        }
        (0..).zip(is_other).filter(|(_, is_other)| *is_other).map(|(id, _)| SeqId(id)).collect()
    }

    /// Leading blocks of a table that no token reads any more since a block was last taken.
    fn outdated(&self, seq: SeqId, class: usize) -> u32 {
        let sequence = self.sequence(seq);
        let needed = self.reach(class).first_needed(sequence.grown) / self.block_size;
        let table = &sequence.tables[class];
        needed.saturating_sub(table.first).min(table.blocks.len() as u32)
    }

    /// Refuses a batch that does not fit; says what it needs.
    fn check(&self, batch: &[Append]) -> Result<Growth, Full> {
        if !batch.iter().any(|append| self.grows(append)) {
            return Ok(Growth::None);
        }
        let mut growth = Growth::Blocks;
        for class in 0..self.pools.len() {
            let (mut give, mut take, mut tails) = (0u64, 0u64, Vec::new());
            for append in batch {
                if self.grows(append) {
                    let change = self.change(append, class);
                    give += u64::from(self.idle_after(append.seq, class, change.give));
                    take += u64::from(change.take);
                    tails.extend(change.copy);
                }
            }
            take += u64::from(self.copies(class, tails));
            let mut available = self.pools[class].available();
            let is_window = self.reach(class) != Reach::Full;
            if self.pools[class].defers() {
                // What is given back now can be taken in a later step only.
                give = 0;
            } else if take > u64::from(available) + give && is_window {
                let outdated = |&seq: &SeqId| self.idle_after(seq, class, self.outdated(seq, class));
                available += self.others(batch).iter().map(outdated).sum::<u32>();
                growth = Growth::BlocksOfOthers;
            }
            if take > u64::from(available) + give {
                let free = available * self.block_size;
                let needed =
                    (take - give).min(u64::from(u32::MAX / self.block_size)) as u32 * self.block_size;
                return Err(Full { class: ClassId(class as u8), needed, free, largest_free_run: free });
            }
        }
        Ok(growth)
    }

    /// Gives back the outdated blocks of sequences outside the batch.
    fn trim_others(&mut self, batch: &[Append]) {
        let others = self.others(batch);
        self.trim(&others);
    }

    fn trim(&mut self, sequences: &[SeqId]) {
        for &seq in sequences {
            for class in 0..self.pools.len() {
                let outdated = self.outdated(seq, class);
                let table = &mut self.sequences[seq.index()].tables[class];
                for block in table.blocks.drain(..outdated as usize) {
                    self.pools[class].give(block);
                }
                table.first += outdated;
            }
        }
    }

    /// How many of the first `give` blocks of a table nobody else holds.
    fn idle_after(&self, seq: SeqId, class: usize, give: u32) -> u32 {
        if !self.shares {
            return give;
        }
        let blocks = self.sequences[seq.index()].tables[class].blocks.iter().take(give as usize);
        blocks.filter(|&&block| self.pools[class].holders(block) == 1).count() as u32
    }

    /// The blocks of a class.
    pub fn pool(&self, class: usize) -> &Pool {
        &self.pools[class]
    }

    /// The blocks of a class. Who takes some gives them back before anything else is asked.
    pub fn pool_mut(&mut self, class: usize) -> &mut Pool {
        &mut self.pools[class]
    }

    /// The first tokens of a prompt, fewer than all, that every class has in its cache.
    fn match_prefix(&self, content: &Content, tokens: u32) -> u32 {
        let blocks = self.match_blocks(content, tokens, |class, key| self.pools[class].find(key).is_some());
        self.match_part(content, tokens, blocks).unwrap_or(blocks * self.block_size)
    }

    /// The tokens that every class has if the prompt also begins like a block after the first `blocks`.
    fn match_part(&self, content: &Content, tokens: u32, blocks: u32) -> Option<u32> {
        self.sharing.filter(|sharing| sharing.parts)?;
        // The beginning lies in its block and in its copy at once, for which there has to be room even if
        // this prompt is all there is.
        let needed = |class: usize| self.reach(class).clip(tokens.saturating_add(self.geometry.batch_max));
        let fits = |class: usize| {
            let blocks = needed(class).min(tokens).div_ceil(self.block_size);
            let beside = if self.reach(class) == Reach::Full { 1 } else { 2 };
            self.pools[class].blocks() >= blocks + beside
        };
        if !(0..self.pools.len()).all(fits) {
            return None;
        }
        let start = blocks * self.block_size;
        let ends = start + 1..tokens.min(start + self.block_size);
        ends.rev().find(|&end| {
            let key = content.key(end);
            self.pools.iter().all(|pool| pool.find_part(key).is_some())
        })
    }

    /// Leading full blocks of a prompt, fewer tokens than all, that every class has as far as it reads them, which
    /// `has` says of a class and a key.
    pub fn match_blocks(&self, content: &Content, tokens: u32, has: impl Fn(usize, u64) -> bool) -> u32 {
        let mut blocks = tokens.saturating_sub(1) / self.block_size;
        for class in (0..self.pools.len()).filter(|&class| self.reach(class) == Reach::Full) {
            blocks = (0..blocks).find(|&i| !has(class, self.key(content, i))).unwrap_or(blocks);
        }
        while blocks > 0 {
            let missing = (0..self.pools.len()).find_map(|class| {
                let first = self.reach(class).first_needed(blocks * self.block_size) / self.block_size;
                (first..blocks).rev().find(|&i| !has(class, self.key(content, i)))
            });
            match missing {
                None => break,
                Some(i) => blocks = i,
            }
        }
        blocks
    }

    /// The block of a class that has block `i` of a hit of so many tokens.
    fn found(&self, class: usize, content: &Content, hit: u32, i: u32) -> Option<Block> {
        let end = (i + 1) * self.block_size;
        if end > hit {
            self.pools[class].find_part(content.key(hit))
        } else {
            self.pools[class].find(content.key(end))
        }
    }

    /// What the tokens of a sequence are, where its blocks get names.
    pub fn content(&self, seq: SeqId) -> Option<Content> {
        self.sequence(seq).content.clone()
    }

    /// The block of a sequence with this number, if it still has it.
    pub fn block(&self, seq: SeqId, class: usize, number: u32) -> Option<Block> {
        let table = &self.sequence(seq).tables[class];
        table.blocks.get(number.checked_sub(table.first)? as usize).copied()
    }

    /// Key of a block of a content.
    pub fn key(&self, content: &Content, block: u32) -> u64 {
        content.key((block + 1) * self.block_size)
    }

    /// Makes the full blocks of a sequence findable.
    fn name_blocks(&mut self, seq: SeqId) {
        let sequence = &mut self.sequences[seq.index()];
        let (size, full) = (self.block_size, sequence.len / self.block_size);
        let Some(content) = &sequence.content else { return };
        for (table, pool) in sequence.tables.iter_mut().zip(&mut self.pools) {
            for i in table.named.max(table.first)..full {
                let (at, start) = ((i - table.first) as usize, i * size);
                let before = (at > 0).then(|| (table.blocks[at - 1], content.key(start)));
                let part = |tokens| content.key(start + tokens);
                pool.name(table.blocks[at], content.key(start + size), start, before, part);
            }
            table.named = full;
        }
    }

    /// Gives back the cells of some tokens; later ones slide down in number and stay where they are.
    /// Only for blocks of one cell that nobody else may find.
    pub fn drop_tokens(&mut self, seq: SeqId, tokens: &Range<u32>) {
        debug_assert!(self.block_size == 1 && !self.shares, "a block is a cell of one sequence");
        let count = tokens.end - tokens.start;
        let sequence = &mut self.sequences[seq.index()];
        for (table, pool) in sequence.tables.iter_mut().zip(&mut self.pools) {
            let index = |token: u32| (token.saturating_sub(table.first) as usize).min(table.blocks.len());
            for cell in table.blocks.drain(index(tokens.start)..index(tokens.end)) {
                pool.give(cell);
            }
            if table.first > tokens.start {
                table.first = table.first.max(tokens.end) - count;
            }
            table.lost = table.first;
        }
        sequence.len -= count;
        sequence.capacity = sequence.len;
        sequence.grown = sequence.len;
    }

    /// The same for tokens here and there, in rising ranges, looking at each once.
    pub fn drop_ranges(&mut self, seq: SeqId, ranges: &[Range<u32>]) {
        if let [one] = ranges {
            return self.drop_tokens(seq, one);
        }
        debug_assert!(self.block_size == 1 && !self.shares, "a block is a cell of one sequence");
        let sequence = &mut self.sequences[seq.index()];
        for (table, pool) in sequence.tables.iter_mut().zip(&mut self.pools) {
            let (mut next, mut left) = (table.first, ranges.iter().peekable());
            table.blocks.retain(|&cell| {
                let token = next;
                next += 1;
                while left.next_if(|range| range.end <= token).is_some() {}
                let goes = left.peek().is_some_and(|range| range.contains(&token));
                if goes {
                    pool.give(cell);
                }
                !goes
            });
            let below = |range: &Range<u32>| range.end.min(table.first) - range.start.min(table.first);
            table.first -= ranges.iter().map(below).sum::<u32>();
            table.lost = table.first;
        }
        sequence.len -= ranges.iter().map(|range| range.end - range.start).sum::<u32>();
        sequence.capacity = sequence.len;
        sequence.grown = sequence.len;
    }

    /// Length up to which nothing is taken.
    fn capacity(&self, seq: SeqId) -> u32 {
        let sequence = &self.sequences[seq.index()];
        if self.shares && (0..self.pools.len()).any(|class| self.shared_tail(seq, class).is_some()) {
            return sequence.len;
        }
        sequence.tables.iter().map(|table| table.end() * self.block_size).min().unwrap_or(0)
    }

    /// Room for one more sequence, not open yet.
    fn reserve(&mut self, seq: SeqId) {
        let classes = self.pools.len();
        if self.sequences.len() <= seq.index() {
            let empty = || Sequence {
                open: false,
                len: 0,
                capacity: 0,
                grown: 0,
                content: None,
                tables: vec![Table::default(); classes],
            };
            self.sequences.resize_with(seq.index() + 1, empty);
        }
        assert!(!self.sequences[seq.index()].open, "sequence {} is not open yet", seq.0);
    }

    /// Gives a sequence a block of its own for the tokens it has in a block that others hold or may find.
    fn copy_tail(&mut self, seq: SeqId, class: usize, tail: Block, plan: &mut Plan) {
        let copy = self.pools[class].take().expect("the batch was checked");
        let sequence = &mut self.sequences[seq.index()];
        let table = &mut sequence.tables[class];
        table.blocks[(sequence.len / self.block_size - table.first) as usize] = copy;
        plan.push(Effect::Copy {
            class: ClassId(class as u8),
            from: tail * self.block_size,
            to: copy * self.block_size,
            len: sequence.len % self.block_size,
            why: Why::CopyOnWrite,
        });
        self.pools[class].give(tail);
    }

    fn view(&self, seq: SeqId, class: ClassId) -> BlockView<'_> {
        let table = &self.sequence(seq).tables[class.index()];
        BlockView { first: table.first, blocks: &table.blocks, block_size: self.block_size }
    }
}

impl Policy for Paged {
    fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    fn cached(&self, content: &Content, tokens: u32) -> Hit {
        if self.sharing.is_none() {
            return Hit::default();
        }
        let hit = self.match_prefix(content, tokens);
        let class = (0..self.pools.len()).find(|&class| self.reach(class) == Reach::Full).unwrap_or(0);
        let blocks = (0..hit.div_ceil(self.block_size)).filter_map(|i| self.found(class, content, hit, i));
        let idle = blocks.filter(|&block| self.pools[class].is_idle(block)).count() as u32;
        Hit { tokens: hit, idle_cells: idle * self.block_size }
    }

    fn remembers_intent(&self) -> bool {
        self.sharing.is_some()
    }

    fn wants_future(&self) -> bool {
        self.sharing.is_some_and(|sharing| sharing.eviction.rule.name == "belady") && self.future.is_empty()
    }

    fn foresee(&mut self, prompts: &mut dyn Iterator<Item = (Content, u32)>) {
        if self.wants_future() {
            debug_assert!(self.sequences.iter().all(|sequence| !sequence.open), "nothing is open yet");
            self.future = Arc::new(Future::new(self.block_size, prompts));
            self.restart();
        }
    }

    fn open(&mut self, seq: SeqId, intent: &Intent) -> u32 {
        let content = &intent.content;
        let hit = if self.sharing.is_some() { self.match_prefix(content, intent.prompt_tokens) } else { 0 };
        self.reserve(seq);
        for class in 0..self.pools.len() {
            let first = self.reach(class).first_needed(hit) / self.block_size;
            let first = if hit == 0 { 0 } else { first };
            let mut blocks = std::mem::take(&mut self.sequences[seq.index()].tables[class].blocks);
            for i in first..hit.div_ceil(self.block_size) {
                let block = self.found(class, content, hit, i).expect("the hit was just matched");
                self.pools[class].adopt(block);
                blocks.push_back(block);
            }
            let named = hit / self.block_size;
            self.sequences[seq.index()].tables[class] = Table { first, blocks, lost: 0, named };
        }
        let sequence = &mut self.sequences[seq.index()];
        sequence.open = true;
        sequence.len = hit;
        sequence.capacity = hit;
        sequence.grown = hit;
        if self.sharing.is_some() {
            sequence.content = Some(content.clone());
            if let Some(now) = self.future.number(content) {
                self.pools.iter_mut().for_each(|pool| pool.advance(now));
            }
        }
        hit
    }

    fn place(&mut self, batch: &[Append], plan: &mut Plan) -> Result<(), Full> {
        let growth = self.check(batch)?;
        if growth == Growth::BlocksOfOthers {
            self.trim_others(batch);
        }
        for give_pass in if growth == Growth::None { &[] } else { [true, false].as_slice() } {
            for append in batch {
                if !self.grows(append) {
                    continue;
                }
                for class in 0..self.pools.len() {
                    let change = self.change(append, class);
                    let table = &mut self.sequences[append.seq.index()].tables[class];
                    if *give_pass {
                        for block in table.blocks.drain(..change.give as usize) {
                            self.pools[class].give(block);
                        }
                        table.first = change.first;
                    } else {
                        for _ in 0..change.take {
                            table.blocks.push_back(self.pools[class].take().expect("the batch was checked"));
                        }
                        if let Some(tail) = change.copy {
                            self.copy_tail(append.seq, class, tail, plan);
                        }
                    }
                }
            }
        }
        for append in batch {
            let from = self.sequences[append.seq.index()].len;
            let to = from + append.tokens;
            self.sequences[append.seq.index()].len = to;
            if to > self.sequences[append.seq.index()].capacity {
                self.sequences[append.seq.index()].capacity = self.capacity(append.seq);
                self.sequences[append.seq.index()].grown = to;
            }
            if self.sharing.is_some() {
                self.name_blocks(append.seq);
            }
            if plan.wants_writes() && !append.restored {
                for class in self.geometry.class_ids() {
                    self.view(append.seq, class).push_writes(class, append.seq, from..to, plan);
                }
            }
        }
        Ok(())
    }

    fn room(&self, seq: SeqId) -> u32 {
        let sequence = self.sequence(seq);
        // The token that fills a block gives it a name, which others may find from then on.
        let kept = u32::from(self.sharing.is_some());
        (sequence.capacity - sequence.len).saturating_sub(kept)
    }

    fn truncate(&mut self, seq: SeqId, len: u32) -> u32 {
        let sequence = &self.sequences[seq.index()];
        let mut keep = len.min(sequence.len);
        if self.sharing.is_some() {
            // A block that others may find is not cut: it would have to be copied.
            keep -= keep % self.block_size;
        }
        for (class, table) in sequence.tables.iter().enumerate() {
            if self.geometry.classes[class].reach.first_needed(keep) < table.first * self.block_size {
                keep = 0;
            }
        }
        for class in 0..self.pools.len() {
            let table = &mut self.sequences[seq.index()].tables[class];
            let end = keep.div_ceil(self.block_size);
            while table.end() > end && !table.blocks.is_empty() {
                let block = table.blocks.pop_back().expect("the table has blocks");
                self.pools[class].give(block);
            }
            table.named = table.named.min(keep / self.block_size);
            table.lost = table.lost.min(keep);
            if table.blocks.is_empty() {
                table.first = if keep == 0 { 0 } else { table.first.min(end) };
            }
        }
        self.sequences[seq.index()].len = keep;
        self.sequences[seq.index()].capacity = self.capacity(seq);
        self.sequences[seq.index()].grown = keep.min(self.sequences[seq.index()].grown);
        keep
    }

    fn release(&mut self, seq: SeqId) {
        let sequence = &mut self.sequences[seq.index()];
        assert!(sequence.open, "sequence {} is open", seq.0);
        for (table, pool) in sequence.tables.iter_mut().zip(&mut self.pools) {
            // The end of the chain first, so that it is evicted before the beginning.
            for block in table.blocks.drain(..).rev() {
                pool.give(block);
            }
        }
        sequence.open = false;
        sequence.len = 0;
        sequence.capacity = 0;
    }

    fn fork(&mut self, from: SeqId, to: SeqId, tokens: u32) -> u32 {
        let source = self.sequence(from);
        let len = tokens.min(source.len);
        let lacks = |(class, table): (usize, &Table)| {
            self.reach(class).first_needed(len) < (table.first * self.block_size).max(table.lost)
        };
        if len == 0 || source.tables.iter().enumerate().any(lacks) {
            return 0;
        }
        self.reserve(to);
        let mut tables = self.sequences[from.index()].tables.clone();
        for (table, pool) in tables.iter_mut().zip(&mut self.pools) {
            table.blocks.truncate((len.div_ceil(self.block_size) - table.first) as usize);
            table.blocks.iter().for_each(|&block| pool.share(block));
        }
        self.sequences[to.index()] =
            Sequence { open: true, len, capacity: len, grown: len, content: None, tables };
        self.shares = true;
        // Whichever of the two writes on in a block that both hold has to copy it.
        for seq in [from, to] {
            self.sequences[seq.index()].capacity = self.capacity(seq);
        }
        len
    }

    fn restart(&mut self) {
        self.shares = self.sharing.is_some();
        self.pools = (0..self.geometry.classes.len()).map(|class| self.new_pool(class)).collect();
    }

    /// Beside that, blocks below a window are given back: when somebody finds no block it is too late.
    fn defer(&mut self, epoch: u64) -> bool {
        self.pools.iter_mut().for_each(|pool| pool.defer(epoch));
        self.trim(&self.others(&[]));
        true
    }

    fn retire(&mut self, epoch: u64) {
        self.pools.iter_mut().for_each(|pool| pool.retire(epoch));
    }

    fn waiting(&self, class: ClassId) -> u32 {
        self.pools[class.index()].waiting() * self.block_size
    }

    fn granule(&self) -> u32 {
        self.block_size
    }

    fn len(&self, seq: SeqId) -> u32 {
        self.sequences.get(seq.index()).map_or(0, |sequence| sequence.len)
    }

    fn layout(&self, class: ClassId, seq: SeqId, runs: &mut Vec<Run>) -> Range<u32> {
        self.view(seq, class).layout(self.sequence(seq).len, runs)
    }

    fn holding(&self, class: ClassId, seq: SeqId, runs: &mut Vec<Run>) {
        self.view(seq, class).holding(runs);
    }

    fn caching(&self, class: ClassId, runs: &mut Vec<Run>) {
        runs.clear();
        let pool = &self.pools[class.index()];
        for block in (0..pool.blocks()).filter(|&block| pool.is_cached(block)) {
            push_run(runs, block * self.block_size, self.block_size);
        }
    }

    fn usage(&self, class: ClassId) -> Usage {
        let pool = &self.pools[class.index()];
        let cells = self.geometry.classes[class.index()].cells;
        let cached = pool.cached() * self.block_size;
        let free = (pool.available() - pool.cached()) * self.block_size + cells % self.block_size;
        Usage {
            cells,
            held: cells - cached - free,
            cached,
            free,
            placeable: pool.available() * self.block_size,
        }
    }

    fn shape(&self, class: ClassId) -> Shape {
        let (longest, rows, high) = rows(&self.pools[class.index()]);
        Shape {
            largest_free_run: longest * self.block_size,
            free_runs: rows,
            high_water: high * self.block_size,
        }
    }

    fn audit(&self) -> Result<(), String> {
        for (class, pool) in self.pools.iter().enumerate() {
            let mut holders = vec![0; pool.blocks() as usize];
            for sequence in self.sequences.iter().filter(|sequence| sequence.open) {
                for &block in &sequence.tables[class].blocks {
                    holders[block as usize] += 1;
                    if holders[block as usize] > 1 && !self.shares {
                        return Err(format!("class {class}: block {block} is held twice"));
                    }
                }
            }
            pool.audit(&holders).map_err(|what| format!("class {class}: {what}"))?;
        }
        for (id, sequence) in self.sequences.iter().enumerate().filter(|(_, sequence)| sequence.open) {
            for (class, table) in sequence.tables.iter().enumerate() {
                let end = sequence.len.div_ceil(self.block_size);
                let needed = self.reach(class).first_needed(sequence.len).max(table.lost) / self.block_size;
                if sequence.len > 0 && (table.end() < end || table.first > needed) {
                    return Err(format!("class {class}: sequence {id} lacks blocks it reads"));
                }
            }
        }
        Ok(())
    }
}

//! Sequences over the pool of blocks: the server's block manager, call by call.

use std::collections::VecDeque;
use std::iter::once;
use std::ops::Range;

use crate::policy::Reach;
use crate::vllm::Block;
use crate::vllm::blocks::{Blocks, Place};

/// Which blocks of a window class keep their content findable. Classes that read everything keep all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retention {
    /// Every full block, as before August 2026.
    Dense,
    /// The windows before every so many tokens, and those of [`Last`](Retention::Last).
    Every(u32),
    /// The window before the last token of the prompt, and before the end of what other groups still knew.
    Last,
}

/// Whose content goes first when blocks run out. Blocks without a content always go before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Eviction {
    /// The least recently released, as the server does.
    Lru,
    /// Whole sequences, each until nothing of it is left; before that what slid out of a window. Those that
    /// found less than half of their prompt go first, the latest first, but for one in 32; then the others,
    /// the least recently released first. So who comes once, or comes back too late, does not push out the
    /// rest (after bimodal insertion, Qureshi et al., ISCA 2007).
    Whole,
}

/// One in so many sequences that found little counts as one that found its prompt.
const ONE_STRANGER_IN: u32 = 32;

/// What a cache is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setup {
    /// Blocks of the pool, with block 0, which is nobody's.
    pub blocks: u32,
    /// Tokens in a block; at least 1.
    pub block_size: u32,
    /// How far back the layers of each group read.
    pub groups: Vec<Reach>,
    /// Whether contents are kept and found again.
    pub caching: bool,
    /// Which contents of windows are kept.
    pub retention: Retention,
    /// Which contents go first.
    pub eviction: Eviction,
    /// Whether blocks without a content are taken before all others; before the server's change 42656 they
    /// stood in line with them.
    pub keyless_first: bool,
}

/// The pool has too few blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{needed} blocks needed, {free} free")]
pub struct TooFew {
    /// Blocks asked for.
    pub needed: u32,
    /// Blocks that nobody holds.
    pub free: u32,
}

/// Leading tokens of a prompt that are cached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Tokens that every group has, in whole blocks.
    pub tokens: u32,
    /// Where the group that has most of them ends, if that is further.
    pub junction: u32,
}

/// The blocks of one sequence in one group.
#[derive(Clone, Debug, Default)]
pub(super) struct Table {
    /// Leading blocks that are gone: the server's table has block 0 there.
    pub first: u32,
    pub blocks: VecDeque<Block>,
    /// Leading blocks that were named, or passed over for good.
    named: u32,
}

impl Table {
    pub fn end(&self) -> u32 {
        self.first + self.blocks.len() as u32
    }
}

#[derive(Clone, Debug, Default)]
struct Sequence {
    open: bool,
    len: u32,
    /// Up to this length nothing is taken or given back.
    quiet: u32,
    prompt: u32,
    junction: u32,
    /// Whether it found most of its prompt, or counts as one that did.
    is_known: bool,
    /// How many had been opened before it.
    serial: u32,
    tables: Vec<Table>,
}

/// Groups that read alike, which are looked up together.
#[derive(Clone, Debug)]
struct Kind {
    reach: Reach,
    groups: Vec<usize>,
}

/// The block manager.
#[derive(Clone, Debug)]
pub struct Cache {
    setup: Setup,
    /// Those that read everything come first.
    kinds: Vec<Kind>,
    pub(super) blocks: Blocks,
    sequences: Vec<Sequence>,
    strangers: u32,
    opened: u32,
}

/// Blocks that a window needs in a row to serve a hit that ends with them.
fn blocks_for_hit(reach: Reach, block_size: u32) -> u32 {
    match reach {
        Reach::Full => 0,
        Reach::Window(window) => window.saturating_sub(1).div_ceil(block_size),
    }
}

/// Whether a block is among the last `needed` full ones before one of the boundaries, tokens.
fn is_tail(at: u32, needed: u32, block_size: u32, boundaries: [u32; 2]) -> bool {
    boundaries.iter().any(|boundary| {
        let end = boundary / block_size;
        (end.saturating_sub(needed)..end).contains(&at)
    })
}

impl Cache {
    /// Nothing in it.
    ///
    /// # Panics
    /// If a block has no cell.
    pub fn new(setup: Setup) -> Self {
        assert!(setup.block_size > 0, "a block has cells");
        let mut kinds: Vec<Kind> = Vec::new();
        for (group, &reach) in setup.groups.iter().enumerate() {
            match kinds.iter_mut().find(|kind| kind.reach == reach) {
                Some(kind) => kind.groups.push(group),
                None => kinds.push(Kind { reach, groups: vec![group] }),
            }
        }
        kinds.sort_by_key(|kind| kind.reach != Reach::Full);
        let whole = setup.eviction == Eviction::Whole;
        let blocks = Blocks::new(setup.blocks, setup.groups.len(), setup.keyless_first, whole);
        Cache { setup, kinds, blocks, sequences: Vec::new(), strangers: 0, opened: 0 }
    }

    /// What it was made of.
    pub fn setup(&self) -> &Setup {
        &self.setup
    }

    /// Blocks that nobody holds, with or without a content.
    pub fn free(&self) -> u32 {
        self.blocks.idle()
    }

    /// Tokens of a sequence; 0 for one that is not open.
    pub fn len(&self, seq: u32) -> u32 {
        self.sequences.get(seq as usize).map_or(0, |sequence| sequence.len)
    }

    /// The blocks of a sequence in a group, in order, as the server's table has them: 0 for those that are
    /// gone.
    pub fn table(&self, seq: u32, group: usize) -> impl Iterator<Item = Block> + '_ {
        let table = self.block_table(seq, group);
        (0..table.first).map(|_| 0).chain(table.blocks.iter().copied())
    }

    pub(super) fn block_table(&self, seq: u32, group: usize) -> &Table {
        &self.sequence(seq).tables[group]
    }

    fn sequence(&self, seq: u32) -> &Sequence {
        let sequence = &self.sequences[seq as usize];
        assert!(sequence.open, "sequence {seq} is open");
        sequence
    }

    /// Leading blocks that a window no longer reads once `computed` tokens are there.
    fn skipped(&self, group: usize, computed: u32) -> u32 {
        self.setup.groups[group].first_needed(computed) / self.setup.block_size
    }

    /// Leading tokens of a prompt of `tokens` that are cached: each kind of group shortens what the others
    /// have until all agree. The last token is always left to compute. `key` gives the key of the text up to
    /// the end of a block, never 0.
    pub fn find(&self, tokens: u32, key: impl Fn(u32) -> u64) -> Found {
        if !self.setup.caching {
            return Found::default();
        }
        let limit = tokens.saturating_sub(1) / self.setup.block_size;
        let (mut blocks, mut longest, mut is_first) = (limit, 0, true);
        loop {
            let before = blocks;
            for kind in &self.kinds {
                blocks = match kind.reach {
                    Reach::Full if is_first => {
                        (0..blocks).find(|&at| !self.has(kind, key(at))).unwrap_or(blocks)
                    }
                    Reach::Full => blocks,
                    Reach::Window(_) => self.find_window(kind, blocks, &key),
                };
                longest = longest.max(blocks);
            }
            // With one kind of window a second look finds the same.
            if blocks == before || self.kinds.len() <= 2 && is_first && self.kinds[0].reach == Reach::Full {
                break;
            }
            is_first = false;
        }
        let junction = if longest > blocks { longest * self.setup.block_size } else { 0 };
        Found { tokens: blocks * self.setup.block_size, junction }
    }

    fn has(&self, kind: &Kind, key: u64) -> bool {
        kind.groups.iter().all(|&group| self.blocks.find(group, key).is_some())
    }

    /// The last place at or before `limit` where a window's worth of blocks ends; or what there is of the
    /// beginning.
    fn find_window(&self, kind: &Kind, limit: u32, key: &impl Fn(u32) -> u64) -> u32 {
        let needed = blocks_for_hit(kind.reach, self.setup.block_size);
        let mut row = 0;
        for at in (0..limit).rev() {
            if self.has(kind, key(at)) {
                row += 1;
                if row >= needed {
                    return at + row;
                }
            } else {
                row = 0;
            }
        }
        row
    }

    /// Starts a sequence with what is cached of its prompt, and returns how much that is.
    ///
    /// # Panics
    /// If the sequence is open already.
    pub fn open(&mut self, seq: u32, prompt: u32, key: impl Fn(u32) -> u64) -> Found {
        let found = self.find(prompt, &key);
        self.adopt(seq, prompt, found, &key);
        found
    }

    fn adopt(&mut self, seq: u32, prompt: u32, found: Found, key: &impl Fn(u32) -> u64) {
        let groups = self.setup.groups.len();
        if self.sequences.len() <= seq as usize {
            self.sequences.resize_with(seq as usize + 1, Sequence::default);
        }
        let hit = found.tokens / self.setup.block_size;
        let is_known = found.tokens >= prompt - prompt / 2;
        self.strangers = self.strangers.wrapping_add(u32::from(!is_known));
        self.opened = self.opened.wrapping_add(1);
        let mut tables = std::mem::take(&mut self.sequences[seq as usize].tables);
        tables.resize_with(groups, Table::default);
        for (group, table) in tables.iter_mut().enumerate() {
            *table = Table { first: self.skipped(group, found.tokens), named: hit, ..Table::default() };
            for at in table.first..hit {
                let block = self.blocks.find(group, key(at)).expect("the content was found");
                self.blocks.share(block);
                table.blocks.push_back(block);
            }
        }
        let sequence = &mut self.sequences[seq as usize];
        assert!(!sequence.open, "sequence {seq} is not open yet");
        *sequence = Sequence {
            open: true,
            len: found.tokens,
            quiet: 0,
            prompt,
            junction: found.junction,
            is_known: is_known || self.strangers.is_multiple_of(ONE_STRANGER_IN),
            serial: self.opened,
            tables,
        };
        self.note_quiet(seq);
    }

    /// Blocks that opening a sequence with what was found and giving it `tokens` more would take out of the
    /// free ones. Windows count no more than they hold at once when given `batch` tokens at a time.
    pub fn needed_to_open(&self, found: Found, tokens: u32, batch: u32, key: impl Fn(u32) -> u64) -> u32 {
        let block_size = self.setup.block_size;
        let (hit, end) =
            (found.tokens / block_size, found.tokens.saturating_add(tokens).div_ceil(block_size));
        let of_group = |(group, &reach): (usize, &Reach)| {
            let skipped = self.skipped(group, found.tokens);
            let most = match reach {
                Reach::Full => u32::MAX,
                Reach::Window(window) => {
                    window.saturating_sub(1).saturating_add(batch).div_ceil(block_size).saturating_add(1)
                }
            };
            let idle = (skipped..hit).filter(|&at| {
                self.blocks.find(group, key(at)).is_some_and(|block| self.blocks.holders(block) == 0)
            });
            (end.min(most.max(hit)) - hit.min(end)) + idle.count() as u32
        };
        self.setup.groups.iter().enumerate().map(of_group).fold(0, u32::saturating_add)
    }

    /// Looks the prompt up and gives all of it blocks, in one call as the server does: nothing changes where
    /// they are too few.
    ///
    /// # Errors
    /// [`TooFew`]. What was found is told in any case.
    pub fn admit(&mut self, seq: u32, prompt: u32, key: impl Fn(u32) -> u64) -> (Found, Result<(), TooFew>) {
        let found = self.find(prompt, &key);
        let (needed, free) =
            (self.needed_to_open(found, prompt - found.tokens, u32::MAX, &key), self.blocks.idle());
        if needed > free {
            return (found, Err(TooFew { needed, free }));
        }
        self.adopt(seq, prompt, found, &key);
        (found, self.append(seq, prompt - found.tokens, false, &key))
    }

    /// What an append gives back and takes, in blocks of all groups. Blocks that others hold too do not count
    /// as given back.
    fn change(&self, seq: u32, tokens: u32, restored: bool) -> (u32, u32) {
        let sequence = self.sequence(seq);
        let end = sequence.len + tokens;
        let blocks_end = end.div_ceil(self.setup.block_size);
        let (mut give, mut take) = (0, 0);
        for (group, table) in sequence.tables.iter().enumerate() {
            let skipped = self.skipped(group, if restored { end } else { sequence.len });
            let gone = table.blocks.iter().take(skipped.saturating_sub(table.first) as usize);
            give += gone.filter(|&&block| self.blocks.holders(block) == 1).count() as u32;
            let from = if restored { table.end().max(skipped) } else { table.end() };
            take += blocks_end.saturating_sub(from);
        }
        (give, take)
    }

    /// Whether appends fit, one after the other; what goes below a window makes room for those that follow.
    ///
    /// # Errors
    /// [`TooFew`], of the first that does not fit.
    pub fn fits(&self, appends: impl Iterator<Item = (u32, u32, bool)>) -> Result<(), TooFew> {
        let mut free = self.blocks.idle();
        for (seq, tokens, restored) in appends {
            if self.sequence(seq).len + tokens <= self.sequence(seq).quiet {
                continue;
            }
            let (give, needed) = self.change(seq, tokens, restored);
            free += give;
            if needed > free {
                return Err(TooFew { needed, free });
            }
            free -= needed;
        }
        Ok(())
    }

    /// Gives a sequence blocks for more tokens, after giving back those below its windows. `restored` tokens
    /// come from elsewhere, so windows need blocks only for what is still read.
    ///
    /// # Errors
    /// [`TooFew`]; what was below the windows is gone then, too.
    pub fn append(
        &mut self,
        seq: u32,
        tokens: u32,
        restored: bool,
        key: impl Fn(u32) -> u64,
    ) -> Result<(), TooFew> {
        let block_size = self.setup.block_size;
        let (len, quiet) = (self.sequence(seq).len, self.sequence(seq).quiet);
        let end = len + tokens;
        if end > quiet {
            self.drop_skipped(seq, if restored { end } else { len }, restored);
            let (_, needed) = self.change(seq, tokens, restored);
            let free = self.blocks.idle();
            if needed > free {
                self.note_quiet(seq);
                return Err(TooFew { needed, free });
            }
            for (group, table) in self.sequences[seq as usize].tables.iter_mut().enumerate() {
                while table.end() < end.div_ceil(block_size) {
                    table.blocks.push_back(self.blocks.take(group).expect("the free blocks were counted"));
                }
            }
        }
        self.sequences[seq as usize].len = end;
        if self.setup.caching && end / block_size > len / block_size {
            self.name_blocks(seq, end / block_size, &key);
        }
        if end > quiet {
            self.note_quiet(seq);
        }
        Ok(())
    }

    /// Gives back the blocks below the windows, the latest first.
    fn drop_skipped(&mut self, seq: u32, computed: u32, restored: bool) {
        let place = self.place(seq);
        for group in 0..self.setup.groups.len() {
            let skipped = self.skipped(group, computed);
            let Sequence { prompt, junction, serial, ref mut tables, .. } = self.sequences[seq as usize];
            let table = &mut tables[group];
            let gone = skipped.saturating_sub(table.first).min(table.blocks.len() as u32);
            let last = table.first + gone;
            let given = table.blocks.drain(..gone as usize).rev();
            if self.setup.eviction == Eviction::Lru {
                self.blocks.give(given, place, serial);
            } else {
                // What the next turn looks for goes with the sequence, what only the last one did does not.
                let needed = blocks_for_hit(self.setup.groups[group], self.setup.block_size);
                for (at, block) in (table.first..last).rev().zip(given) {
                    let is_tail =
                        is_tail(at, needed, self.setup.block_size, [prompt.saturating_sub(1), junction]);
                    self.blocks.give(once(block), if is_tail { place } else { Place::Doomed }, serial);
                }
            }
            table.first = last;
            if restored && table.blocks.is_empty() {
                table.first = table.first.max(skipped);
            }
        }
    }

    /// Makes the full blocks of a sequence findable, as far as they are to be kept.
    fn name_blocks(&mut self, seq: u32, full: u32, key: &impl Fn(u32) -> u64) {
        let Sequence { prompt, junction, ref tables, .. } = self.sequences[seq as usize];
        for (group, table) in tables.iter().enumerate() {
            for at in table.named.max(table.first)..full {
                if self.keeps(group, at, prompt, junction) {
                    self.blocks.name(table.blocks[(at - table.first) as usize], key(at));
                }
            }
        }
        for table in &mut self.sequences[seq as usize].tables {
            table.named = full;
        }
    }

    /// Whether a block of a group is kept findable.
    fn keeps(&self, group: usize, at: u32, prompt: u32, junction: u32) -> bool {
        let (block_size, reach) = (self.setup.block_size, self.setup.groups[group]);
        let segment = match self.setup.retention {
            _ if reach == Reach::Full => return true,
            Retention::Dense => return true,
            Retention::Every(tokens) => tokens / block_size,
            Retention::Last => 0,
        };
        let needed = blocks_for_hit(reach, block_size);
        let ends_segment = segment > 0 && (needed >= segment || at % segment >= segment - needed);
        ends_segment || is_tail(at, needed, block_size, [prompt.saturating_sub(1), junction])
    }

    /// Works out up to which length nothing is taken or given back.
    fn note_quiet(&mut self, seq: u32) {
        let block_size = u64::from(self.setup.block_size);
        let tables = self.sequences[seq as usize].tables.iter().zip(&self.setup.groups);
        let quiet = tables.map(|(table, &reach)| {
            let end = u64::from(table.end()) * block_size;
            match reach {
                Reach::Window(window) if !table.blocks.is_empty() => {
                    end.min((u64::from(table.first) + 1) * block_size + u64::from(window) - 1)
                }
                _ => end,
            }
        });
        self.sequences[seq as usize].quiet = quiet.min().unwrap_or(0).min(u64::from(u32::MAX)) as u32;
    }

    /// Tokens that a sequence can still be given, one after another, while nothing is taken or given back.
    pub fn room(&self, seq: u32) -> u32 {
        let sequence = self.sequence(seq);
        sequence.quiet.saturating_sub(sequence.len)
    }

    /// Rolls a sequence back to at most `len` tokens, in whole blocks where others may find them, and returns
    /// how many stay: none where a window has let go of what the next token reads.
    pub fn truncate(&mut self, seq: u32, len: u32) -> u32 {
        let block_size = self.setup.block_size;
        let mut keep = len.min(self.sequence(seq).len);
        if self.setup.caching {
            keep -= keep % block_size;
        }
        let reads_gone =
            |(table, reach): (&Table, &Reach)| reach.first_needed(keep) < table.first * block_size;
        if self.sequence(seq).tables.iter().zip(&self.setup.groups).any(reads_gone) {
            keep = 0;
        }
        let sequence = &mut self.sequences[seq as usize];
        sequence.len = keep;
        for table in &mut sequence.tables {
            let stay = keep.div_ceil(block_size).saturating_sub(table.first) as usize;
            let stay = stay.min(table.blocks.len());
            self.blocks.give(table.blocks.drain(stay..).rev(), Place::Kept, sequence.serial);
            table.named = table.named.min(keep / block_size);
            if table.blocks.is_empty() {
                table.first = if keep == 0 { 0 } else { table.first.min(keep.div_ceil(block_size)) };
            }
        }
        self.note_quiet(seq);
        keep
    }

    /// Where the contents of a sequence go in the end.
    fn place(&self, seq: u32) -> Place {
        let is_stranger = self.setup.eviction == Eviction::Whole && !self.sequence(seq).is_known;
        if is_stranger { Place::Stranger } else { Place::Kept }
    }

    /// Gives back everything a sequence holds, group by group, the end of the text first.
    pub fn release(&mut self, seq: u32) {
        let place = self.place(seq);
        let sequence = &mut self.sequences[seq as usize];
        for table in &mut sequence.tables {
            self.blocks.give(table.blocks.drain(..).rev(), place, sequence.serial);
        }
        sequence.open = false;
        sequence.len = 0;
    }

    /// Leading tokens of what is cached, in a group, that nobody holds now.
    pub(super) fn idle_of(&self, group: usize, blocks: Range<u32>, key: impl Fn(u32) -> u64) -> u32 {
        let is_idle =
            |at: &u32| self.blocks.find(group, key(*at)).is_some_and(|block| self.blocks.holders(block) == 0);
        blocks.filter(is_idle).count() as u32
    }

    /// Checks all books, in O(blocks).
    ///
    /// # Errors
    /// What does not agree.
    pub fn audit(&self) -> Result<(), String> {
        let mut holders = vec![(0, 0); self.blocks.len() as usize];
        for (seq, sequence) in self.sequences.iter().enumerate().filter(|(_, sequence)| sequence.open) {
            for (group, table) in sequence.tables.iter().enumerate() {
                let needed = self.skipped(group, sequence.len);
                let end = sequence.len.div_ceil(self.setup.block_size);
                if sequence.len > 0 && (table.end() < end || table.first > needed) {
                    return Err(format!("group {group}: sequence {seq} lacks blocks it reads"));
                }
                for &block in &table.blocks {
                    let (count, of) = &mut holders[block as usize];
                    if block == 0 || *count > 0 && (*of != group || !self.setup.caching) {
                        return Err(format!("block {block} is in tables that do not share it"));
                    }
                    (*count, *of) = (*count + 1, group);
                }
            }
        }
        self.blocks.audit(&holders)
    }
}
